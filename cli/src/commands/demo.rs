//! `demo`: jobs become signed webhooks.

use std::{collections::HashMap, io::Write, path::PathBuf, time::Duration};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, anyhow, ensure};
use aws_sdk_dynamodb::types::AttributeValue;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{Method, Request, StatusCode},
};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use nano_webhooks::{
    aws,
    clock::{Clock, Stopwatch},
};
use nano_webhooks_core::target_policy::TargetPolicy;
use nano_webhooks_core::{
    api_key::ApiKey, delivery::schedule::RetrySchedule, event::JobOutcome, secret::Secret,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};

use crate::{
    args::ServeArgs,
    dev_server::{DEMO_ACCOUNT, DevServer},
    http_server::ephemeral_port,
    local_client::local_client,
    received_request::ReceivedRequest,
};

const SECRET: &str = "my-secret-key";
/// How long a webhook may take to arrive.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// A job of the demo.
struct DemoJob {
    outcome: JobOutcome,
    task_type: &'static str,
    data: Value,
}

/// Runs the service in memory with a receiver, and prints the webhooks of a completed and a failed
/// job.
pub async fn run() -> anyhow::Result<()> {
    let mut out = anstream::stdout();
    let server = DevServer::start(serve_args()).await?;
    let (endpoint, mut requests) = start_receiver().await?;
    writeln!(
        out,
        "nano-webhooks: when a job finishes, its subscriber receives a signed webhook."
    )?;

    print_step(&mut out, 1, "The service runs on this machine")?;
    writeln!(out, "  API       http://{}/api/v1", server.api)?;
    writeln!(out, "  DynamoDB  {} (embedded)", server.dynamodb_endpoint)?;

    print_step(&mut out, 2, "A customer registers an endpoint")?;
    register_webhook(&mut out, &server, &endpoint).await?;

    let completed = DemoJob {
        outcome: JobOutcome::Completed,
        task_type: "video",
        data: json!({ "url": "https://cdn.example.com/video.mp4", "credits_charged": 6 }),
    };
    let failed = DemoJob {
        outcome: JobOutcome::Failed,
        task_type: "image",
        data: json!({ "error": "The prompt was rejected." }),
    };
    print_step(
        &mut out,
        3,
        "A worker writes a completed job with a single PutItem",
    )?;
    deliver_job(&mut out, &server, &mut requests, completed).await?;
    print_step(
        &mut out,
        4,
        "A worker writes a failed job with a single PutItem",
    )?;
    deliver_job(&mut out, &server, &mut requests, failed).await?;

    server.stop().await;
    writeln!(
        out,
        "\nBoth webhooks arrived, and their signatures are valid. \
         Next: start the service with `cargo run`."
    )?;
    Ok(())
}

fn serve_args() -> ServeArgs {
    ServeArgs {
        listen: ephemeral_port(),
        dynamodb_listen: ephemeral_port(),
        data_dir: PathBuf::new(),
        in_memory: true,
        dynamodb_endpoint: None,
        targets: TargetPolicy::Any,
        allow_cidrs: Vec::new(),
        deny_cidrs: Vec::new(),
        retry_schedule: RetrySchedule::default(),
        ca_file: None,
        api_key: None,
        json: false,
    }
}

/// Starts a receiver. Returns its URL and the requests that it gets.
async fn start_receiver() -> anyhow::Result<(String, mpsc::Receiver<ReceivedRequest>)> {
    let (sender, requests) = mpsc::channel(8);
    let listener = TcpListener::bind(ephemeral_port()).await?;
    let endpoint = format!("http://{}/webhooks/nano", listener.local_addr()?);
    let router = Router::new().fallback(receive).with_state(sender);
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok((endpoint, requests))
}

async fn receive(
    State(sender): State<mpsc::Sender<ReceivedRequest>>,
    request: ReceivedRequest,
) -> StatusCode {
    match sender.send(request).await {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn register_webhook(
    out: &mut impl Write,
    server: &DevServer,
    endpoint: &str,
) -> anyhow::Result<()> {
    let webhook = json!({
        "url": endpoint,
        "events": ["job.completed", "job.failed"],
        "secret_key": SECRET,
    });
    writeln!(out, "  POST /api/v1/webhooks\n  {webhook}")?;
    let url = format!("http://{}/api/v1/webhooks", server.api);
    let (status, body) = post_json(&url, &server.api_key, &webhook).await?;
    writeln!(out, "  → {status} {body}")?;
    ensure!(
        status == StatusCode::CREATED,
        "the API did not create the webhook"
    );
    Ok(())
}

async fn post_json(url: &str, key: &ApiKey, body: &Value) -> anyhow::Result<(StatusCode, String)> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(url)
        .header("authorization", format!("Bearer {}", key.expose()))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Writes a job, waits for its webhook, and prints and verifies it.
async fn deliver_job(
    out: &mut impl Write,
    server: &DevServer,
    requests: &mut mpsc::Receiver<ReceivedRequest>,
    job: DemoJob,
) -> anyhow::Result<()> {
    let task_id = format!("task_{}", job.outcome.as_str());
    let stopwatch = Stopwatch::start();
    put_job(server, &task_id, job).await?;
    let request = timeout(DELIVERY_TIMEOUT, requests.recv())
        .await
        .map_err(|_| anyhow!("no webhook arrived within {DELIVERY_TIMEOUT:?}"))?
        .context("the receiver stopped")?;
    let elapsed = stopwatch.elapsed().as_millis();
    writeln!(
        out,
        "  The webhook arrived {elapsed} ms after the write started:\n"
    )?;

    let secret = Secret::parse(SECRET.to_owned()).map_err(anyhow::Error::msg)?;
    let report = request.verify(Some(&secret), Clock::system().now());
    write!(out, "{}", request.format(&report))?;
    let payload: Value = serde_json::from_slice(&request.body)?;
    ensure!(
        report.is_valid(),
        "the webhook does not have two valid signatures"
    );
    ensure!(
        payload["task_id"] == task_id,
        "the webhook is not about {task_id}"
    );
    Ok(())
}

async fn put_job(server: &DevServer, task_id: &str, job: DemoJob) -> anyhow::Result<()> {
    let data: HashMap<String, AttributeValue> = serde_dynamo::to_item(&job.data)?;
    local_client(&server.dynamodb_endpoint, aws::timeouts())
        .put_item()
        .table_name(&server.jobs_table)
        .item("task_id", AttributeValue::S(task_id.to_owned()))
        .item("account_id", AttributeValue::S(DEMO_ACCOUNT.to_owned()))
        .item("task_type", AttributeValue::S(job.task_type.to_owned()))
        .item("status", AttributeValue::S(job.outcome.as_str().to_owned()))
        .item("data", AttributeValue::M(data))
        .send()
        .await?;
    Ok(())
}

fn print_step(out: &mut impl Write, number: u32, title: &str) -> std::io::Result<()> {
    let style = Style::new().bold().fg_color(Some(AnsiColor::Cyan.into()));
    writeln!(out, "\n{style}{number}. {title}{style:#}")
}
