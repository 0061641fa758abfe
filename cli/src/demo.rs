//! `demo`: a job becomes a signed webhook before one's eyes.

use std::{io::Write, path::PathBuf, time::Duration};

use anstyle::{AnsiColor, Style};
use aws_sdk_dynamodb::types::AttributeValue;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};

use super::{
    args::{CliError, ServeArgs},
    dynamodb, http,
    listen::format_request,
    serve::{DEMO_ACCOUNT, Service, bind},
    verify::{SignatureStatus, verify},
};
use nano_webhooks::{
    client::guard::TargetPolicy,
    clock::{Clock, Stopwatch},
};
use nano_webhooks_core::{delivery::schedule::RetrySchedule, secret::Secret};

const SECRET: &str = "my-secret-key";
/// How long a webhook may take to arrive before the demo has failed.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

struct Received {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

/// Runs the service in memory, with a receiver, and shows a completed and a failed job arrive.
pub(super) async fn run() -> Result<(), CliError> {
    let mut out = anstream::stdout();
    let any = || ([127, 0, 0, 1], 0).into();
    let service = Service::start(ServeArgs {
        listen: any(),
        dynamodb_listen: any(),
        data_dir: PathBuf::new(),
        in_memory: true,
        dynamodb_endpoint: None,
        targets: TargetPolicy::Any,
        allow_cidrs: Vec::new(),
        retry_schedule: RetrySchedule::default(),
        ca_file: None,
        api_key: None,
        json: false,
    })
    .await?;
    let (sender, mut receiver) = mpsc::channel(8);
    let listener = bind(any()).await?;
    let endpoint = format!("http://{}/webhooks/nano", listener.local_addr()?);
    tokio::spawn(
        axum::serve(listener, Router::new().fallback(receive).with_state(sender)).into_future(),
    );

    writeln!(
        out,
        "nano-webhooks: a job finishes, its subscriber hears of it."
    )?;
    print_step(&mut out, 1, "The service runs, all of it on this machine")?;
    writeln!(out, "  API       http://{}/api/v1", service.api)?;
    writeln!(out, "  DynamoDB  {} (embedded)", service.dynamodb)?;

    print_step(&mut out, 2, "A customer registers an endpoint")?;
    let url = format!("http://{}/api/v1/webhooks", service.api);
    let webhook =
        json!({ "url": endpoint, "events": ["job.completed", "job.failed"], "secret_key": SECRET });
    writeln!(out, "  POST /api/v1/webhooks\n  {webhook}")?;
    let (status, answer) = http::send(Method::POST, &url, &service.api_key, &webhook).await?;
    writeln!(out, "  → {status} {answer}")?;
    if status != StatusCode::CREATED {
        return Err(CliError("the webhook was not created".to_owned()));
    }

    let jobs = [
        (
            "completed",
            "video",
            json!({ "url": "https://cdn.example.com/video.mp4", "credits_charged": 6 }),
        ),
        (
            "failed",
            "image",
            json!({ "error": "The prompt was refused." }),
        ),
    ];
    for (number, (status, task_type, data)) in (3..).zip(jobs) {
        print_step(
            &mut out,
            number,
            &format!("A worker writes that its job {status}: one PutItem, and nothing else"),
        )?;
        let task_id = format!("task_{status}");
        let data: std::collections::HashMap<String, AttributeValue> =
            serde_dynamo::to_item(&data).map_err(|error| CliError(error.to_string()))?;
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let watch = Stopwatch::start();
        dynamodb(&service.dynamodb)
            .put_item()
            .table_name(&service.jobs)
            .item("task_id", text(&task_id))
            .item("account_id", text(DEMO_ACCOUNT))
            .item("task_type", text(task_type))
            .item("status", text(status))
            .item("data", AttributeValue::M(data))
            .send()
            .await?;
        let received = timeout(DELIVERY_TIMEOUT, receiver.recv())
            .await
            .ok()
            .flatten();
        let received =
            received.ok_or_else(|| CliError("no webhook arrived within 10 s".to_owned()))?;
        writeln!(
            out,
            "  The webhook arrived {} ms after the write began:\n",
            watch.elapsed().as_millis()
        )?;
        let secret =
            Secret::parse(SECRET.to_owned()).map_err(|error| CliError(error.to_string()))?;
        let verdicts = verify(
            &received.headers,
            &received.body,
            Some(&secret),
            Clock::system().now(),
        );
        write!(
            out,
            "{}",
            format_request(
                &received.method,
                &received.uri,
                &received.headers,
                &received.body,
                verdicts
            )
        )?;
        let about_it =
            serde_json::from_slice::<serde_json::Value>(&received.body)?["task_id"] == task_id;
        if (
            verdicts.nano,
            verdicts.standard,
            verdicts.stale_by,
            about_it,
        ) != (SignatureStatus::Holds, SignatureStatus::Holds, None, true)
        {
            return Err(CliError(
                "the webhook that arrived is not the one that was expected".to_owned(),
            ));
        }
    }
    service.stop().await;
    writeln!(
        out,
        "\nBoth webhooks arrived, signed and verified. Next: `cargo run` starts the service to try it yourself."
    )?;
    Ok(())
}

async fn receive(
    State(sender): State<mpsc::Sender<Received>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    match sender
        .send(Received {
            method,
            uri,
            headers,
            body,
        })
        .await
    {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn print_step(out: &mut impl Write, number: u32, says: &str) -> Result<(), CliError> {
    let style = Style::new().bold().fg_color(Some(AnsiColor::Cyan.into()));
    Ok(writeln!(out, "\n{style}{number}. {says}{style:#}")?)
}
