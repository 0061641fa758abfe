//! `serve`: the whole service on this machine.

use std::{io::Write, path::Path};

use serde_json::json;

use crate::{
    args::{DEFAULT_DYNAMODB_ENDPOINT, ServeArgs},
    dev_server::{DEMO_ACCOUNT, DevServer},
    http_server::shutdown_signal,
    invocation::command_prefix,
    json_line::print_json,
};

/// Runs the service until Ctrl-C or SIGTERM.
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let json = args.json;
    let data_dir = (!args.in_memory).then(|| args.data_dir.clone());
    let mut server = DevServer::start(args).await?;
    if json {
        print_ready(&server)?;
    } else {
        print_welcome(&server, data_dir.as_deref())?;
    }
    let result = tokio::select! {
        signal = shutdown_signal() => signal.map_err(anyhow::Error::new),
        error = server.wait_for_failure() => Err(error),
    };
    server.stop().await;
    result
}

fn print_ready(server: &DevServer) -> std::io::Result<()> {
    let ready = json!({
        "api": format!("http://{}", server.api),
        "dynamodb": server.dynamodb_endpoint,
        "account": DEMO_ACCOUNT,
        "api_key": server.api_key.expose(),
        "tables": {
            "jobs": server.jobs_table,
            "webhooks": server.tables.webhooks,
            "deliveries": server.tables.deliveries,
        },
    });
    print_json(&ready)
}

fn print_welcome(server: &DevServer, data_dir: Option<&Path>) -> std::io::Result<()> {
    let api = server.api;
    let dynamodb = &server.dynamodb_endpoint;
    let jobs_table = &server.jobs_table;
    let key = server.api_key.expose();
    let command = command_prefix();
    let engine_option = if dynamodb == DEFAULT_DYNAMODB_ENDPOINT {
        String::new()
    } else {
        format!("--dynamodb-endpoint {dynamodb} ")
    };
    let data = match data_dir {
        Some(data_dir) => data_dir.display().to_string(),
        None => "in memory; deleted when the service stops".to_owned(),
    };
    writeln!(
        anstream::stdout(),
        "\
nano-webhooks is ready.

  API        http://{api}/api/v1
  Portal     http://{api}/portal
  Metrics    http://{api}/metrics   (for Prometheus)
  DynamoDB   {dynamodb}   (any AWS SDK or CLI, any credentials; jobs table: `{jobs_table}`)
  Account    {DEMO_ACCOUNT}
  API key    {key}
  Data       {data}

Register a webhook:
  curl http://{api}/api/v1/webhooks \\
    -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
    -d '{{\"url\":\"http://127.0.0.1:9000/\",\"events\":[\"job.completed\",\"job.failed\"],\
\"secret_key\":\"my-secret-key\"}}'
Receive it in a second terminal:
  {command} listen --secret my-secret-key
Complete a job in a third terminal:
  {command} job complete {engine_option}\
--data '{{\"url\":\"https://cdn.example.com/image.png\"}}'
"
    )
}
