//! The whole way over real sockets, with the built binary: a job is written with the SDK, a webhook
//! arrives.

#[path = "../../tests/it/support/engine.rs"]
mod engine;
#[expect(dead_code, reason = "these tests use a part of the shared receiver")]
#[path = "../../tests/it/support/receiver.rs"]
mod receiver;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
};

use aws_sdk_dynamodb::types::AttributeValue;
use axum::body::Bytes;
use engine::other_engine;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use nano_webhooks::{aws, random};
use nano_webhooks_cli::local_client;
use receiver::{Receiver, TEST_TIMEOUT};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const BINARY: &str = env!("CARGO_BIN_EXE_nano-webhooks");

/// A running `serve`.
struct Serve {
    child: Child,
    ready: Value,
}

impl Serve {
    fn start(args: &[&str]) -> Self {
        Self::with(args, |_| ())
    }

    fn with(args: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(BINARY);
        command
            .args([
                "serve",
                "--json",
                "--listen",
                "127.0.0.1:0",
                "--dynamodb-listen",
                "127.0.0.1:0",
            ])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(endpoint) = other_engine() {
            // Tables of its own, the same after a restart on the same data directory.
            let home = args
                .iter()
                .position(|arg| *arg == "--data-dir")
                .map(|at| args[at + 1]);
            let own = home.map_or_else(random::request_id, |home| {
                hex::encode(&Sha256::digest(home)[..16])
            });
            command.args(["--dynamodb-endpoint", &endpoint]);
            for (table, name) in [
                ("JOBS_TABLE", "jobs"),
                ("WEBHOOKS_TABLE", "webhooks"),
                ("DELIVERIES_TABLE", "deliveries"),
            ] {
                command.env(table, format!("{name}-{own}"));
            }
        }
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not ready: {line:?}"));
        Self { child, ready }
    }

    fn part(&self, name: &str) -> &str {
        self.ready[name].as_str().unwrap()
    }

    async fn register(&self, url: &str) -> Value {
        let body = json!({
            "url": url,
            "events": ["job.completed", "job.failed"],
            "secret_key": "my-secret-key",
        });
        let request = http::Request::post(format!("{}/api/v1/webhooks", self.part("api")))
            .header("authorization", format!("Bearer {}", self.part("api_key")))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let answer = Client::builder(TokioExecutor::new())
            .build_http()
            .request(request)
            .await
            .unwrap();
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    async fn end_job(&self, task: &str) {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let put = local_client(self.part("dynamodb"), aws::timeouts())
            .put_item()
            .table_name(self.ready["tables"]["jobs"].as_str().unwrap());
        let put = put
            .item("task_id", text(task))
            .item("account_id", text("demo"))
            .item("task_type", text("image"));
        put.item("status", text("completed")).send().await.unwrap();
    }

    /// Runs a command on the same tables.
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(BINARY);
        for (variable, table) in [
            ("JOBS_TABLE", "jobs"),
            ("WEBHOOKS_TABLE", "webhooks"),
            ("DELIVERIES_TABLE", "deliveries"),
        ] {
            command.env(variable, self.ready["tables"][table].as_str().unwrap());
        }
        command
            .args(args)
            .args(["--dynamodb-endpoint", self.part("dynamodb")])
            .output()
            .unwrap()
    }

    /// Sends SIGTERM and waits for the end.
    fn terminate(mut self) -> bool {
        let sent = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        self.child.wait().unwrap().success()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_job_written_with_the_sdk_arrives_as_a_signed_webhook() {
    let receiver = Receiver::start().await;
    let serve = Serve::start(&["--in-memory"]);
    assert_eq!(serve.ready["account"], "demo");
    let registered = serve.register(&receiver.url("/hook")).await;
    assert_eq!(registered["data"]["id"], 1);
    serve.end_job("t1").await;
    let received = receiver.wait_for(1).await;
    assert_eq!(received[0].json()["task_id"], "t1");
    let verifier = standardwebhooks::Webhook::from_bytes(b"my-secret-key".to_vec()).unwrap();
    verifier
        .verify(received[0].body.as_bytes(), &received[0].headers)
        .unwrap();
    assert!(serve.terminate());
}

#[tokio::test]
async fn what_was_written_before_a_kill_is_delivered_after_the_next_start_and_nothing_twice() {
    let (receiver, home) = (Receiver::start().await, tempfile::tempdir().unwrap());
    let home = home.path().to_str().unwrap();
    let serve = Serve::start(&["--data-dir", home]);
    let key = serve.part("api_key").to_owned();
    serve.register(&receiver.url("/hook")).await;
    serve.end_job("before").await;
    receiver.wait_for(1).await;
    assert!(serve.terminate());

    // The engine alone, so that a job is written while nobody reads the stream.
    let engine = Serve::start(&["--data-dir", home]);
    assert_eq!(engine.part("api_key"), key, "the key is kept");
    engine.end_job("during").await;
    drop(engine);

    let serve = Serve::start(&["--data-dir", home]);
    serve.end_job("after").await;
    let received = receiver.wait_for(3).await;
    let mut tasks: Vec<_> = received
        .iter()
        .map(|request| request.json()["task_id"].as_str().unwrap().to_owned())
        .collect();
    tasks.sort();
    assert_eq!(tasks, ["after", "before", "during"]);
    assert!(serve.terminate());
}

#[test]
fn a_data_directory_belongs_to_one_process() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().to_str().unwrap();
    let _serve = Serve::start(&["--data-dir", home]);
    let second = run(&[
        "serve",
        "--data-dir",
        home,
        "--listen",
        "127.0.0.1:0",
        "--dynamodb-listen",
        "127.0.0.1:0",
    ]);
    assert!(!second.status.success());
    assert_eq!(
        text(&second.stderr),
        format!("nano-webhooks: another process uses the data directory {home}\n")
    );
}

#[test]
fn the_demo_shows_two_verified_webhooks_and_exits_with_0() {
    let demo = run(&["demo"]);
    let shown = text(&demo.stdout);
    assert!(demo.status.success(), "{shown}{}", text(&demo.stderr));
    assert_eq!(shown.matches("✓ X-Nano-Signature is valid").count(), 2);
    assert_eq!(shown.matches("✓ webhook-signature is valid").count(), 2);
}

#[test]
fn proxies_and_other_peoples_settings_in_the_environment_change_nothing() {
    let mut demo = Command::new(BINARY);
    for proxy in [
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
        "HTTPS_PROXY",
    ] {
        demo.env(proxy, "http://127.0.0.1:9");
    }
    demo.env("API_KEY", "somebody-elses-key")
        .env("LISTEN", "nonsense");
    demo.env("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:9")
        .env_remove("NO_PROXY")
        .env_remove("no_proxy");
    let demo = demo.arg("demo").output().unwrap();
    assert!(
        demo.status.success(),
        "{}{}",
        text(&demo.stdout),
        text(&demo.stderr)
    );

    let serve = Command::new(BINARY)
        .arg("--in-memory")
        .env("API_KEY", "somebody-elses-key")
        .output()
        .unwrap();
    assert!(
        text(&serve.stderr).starts_with("nano-webhooks: --api-key: expected"),
        "{}",
        text(&serve.stderr)
    );
    assert!(!text(&serve.stderr).contains("somebody"));
}

#[tokio::test]
async fn a_revoked_key_stays_revoked_after_the_next_start() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().to_str().unwrap();
    let serve = Serve::start(&["--data-dir", home]);
    assert!(
        serve
            .run(&["keys", "revoke", "--account", "demo", serve.part("api_key")])
            .status
            .success()
    );
    assert!(serve.terminate());
    let serve = Serve::start(&["--data-dir", home]);
    assert_eq!(
        serve.register("http://127.0.0.1:9/").await["error"]["code"],
        "unauthorized"
    );
}

#[tokio::test]
async fn a_secret_and_a_key_are_in_no_line_of_the_most_verbose_log() {
    let (receiver, log) = (
        Receiver::start().await,
        tempfile::NamedTempFile::new().unwrap(),
    );
    let serve = Serve::with(&["--in-memory"], |command| {
        command
            .env("RUST_LOG", "trace")
            .stderr(log.reopen().unwrap());
    });
    serve.register(&receiver.url("/hook")).await;
    serve.end_job("t1").await;
    receiver.wait_for(1).await;
    let key = serve.part("api_key").to_owned();
    assert!(serve.terminate());
    let log = std::fs::read_to_string(log.path()).unwrap();
    assert!(log.contains("attempt"), "{log}");
    for secret in ["my-secret-key", &key, "bXktc2VjcmV0LWtleQ"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn a_failed_attempt_is_made_again_and_what_was_due_at_a_kill_is_made_after_the_next_start() {
    let (receiver, home) = (Receiver::start().await, tempfile::tempdir().unwrap());
    let args = [
        "--data-dir",
        home.path().to_str().unwrap(),
        "--retry-schedule",
        "50ms,2s,50ms",
    ];
    let serve = Serve::start(&args);
    serve.register(&receiver.url("/status/500")).await;
    serve.end_job("t1").await;
    receiver.wait_for(2).await;
    drop(serve);
    let _serve = Serve::start(&args);
    let received = receiver.wait_for(4).await;
    let last = received.last().unwrap();
    assert_eq!(last.header("webhook-id"), received[0].header("webhook-id"));
    assert!(["3", "4"].contains(&last.header("x-nano-attempt")));
}

#[tokio::test]
async fn keys_and_jobs_are_made_from_the_command_line_and_listen_verifies_what_arrives() {
    let serve = Serve::start(&["--in-memory"]);
    let keys = |args: &[&str]| serve.run(&[&["keys"], args].concat());

    let created = keys(&["create", "--account", "acme", "--json"]);
    let created: Value = serde_json::from_slice(&created.stdout).unwrap();
    let key = created["api_key"].as_str().unwrap();
    assert_eq!(created["account"], "acme");
    assert!(text(&keys(&["list", "--account", "acme"]).stdout).starts_with(&key[..11]));
    assert!(!text(&keys(&["list", "--account", "acme"]).stdout).contains(key));
    assert!(keys(&["revoke", "--account", "acme", key]).status.success());
    assert!(keys(&["list", "--account", "acme"]).stdout.is_empty());
    assert!(!keys(&["revoke", "--account", "acme", key]).status.success());

    let mut listen = Command::new(BINARY)
        .args(["listen", "--port", "0", "--secret", "my-secret-key"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(listen.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let greeting = lines.next().unwrap();
    let url = greeting
        .split_whitespace()
        .find(|word| word.starts_with("http://"))
        .unwrap();
    serve.register(url).await;
    let job = serve.run(&[
        "job",
        "fail",
        "--task-id",
        "t9",
        "--data",
        r#"{"error":"Refused."}"#,
    ]);
    assert_eq!(
        text(&job.stdout),
        "Wrote job t9 of account demo with status failed.\n"
    );
    let shown: Vec<_> = lines
        .by_ref()
        .take_while(|line| !line.contains("webhook-signature is valid"))
        .collect();
    let shown = shown.join("\n");
    assert!(
        shown.contains(r#""data":{"error":"Refused."}"#)
            && shown.contains("✓ X-Nano-Signature is valid"),
        "{shown}"
    );
    listen.kill().unwrap();
    listen.wait().unwrap();
}

#[test]
fn a_wrong_setting_stops_the_start_with_a_line_that_names_it() {
    for (args, named) in [
        (&["serve", "--targets", "private"][..], "--targets"),
        (&["serve", "--retry-schedule", "soon"], "--retry-schedule"),
        (&["serve", "--api-key", "sk-123"], "--api-key"),
        (&["serve", "--allow-cidr", "office"], "--allow-cidr"),
        (&["serve", "--listen", "here"], "--listen"),
        (
            &[
                "serve",
                "--in-memory",
                "--dynamodb-listen",
                "127.0.0.1:0",
                "--listen",
                "127.0.0.1:0",
                "--ca-file",
                "/no/such/file",
            ],
            "EXTRA_CA_FILE",
        ),
        (&["listen", "--secret", "short"], "--secret"),
        (&["job", "complete", "--data", "[1]"], "--data"),
        (&["keys", "create", "--account", ""], "--account"),
    ] {
        let output = run(args);
        assert!(!output.status.success(), "{args:?}");
        assert!(
            text(&output.stderr).contains(named),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
    let malformed = Command::new(BINARY)
        .args(["serve"])
        .env("WEBHOOKS_PER_ACCOUNT", "many")
        .output()
        .unwrap();
    assert!(text(&malformed.stderr).starts_with("nano-webhooks: WEBHOOKS_PER_ACCOUNT: "));
}

#[tokio::test]
async fn a_hanging_endpoint_does_not_hold_up_the_end() {
    let receiver = Receiver::start().await;
    let serve = Serve::start(&["--in-memory"]);
    serve.register(&receiver.url("/hang")).await;
    serve.end_job("t1").await;
    receiver.wait_for(1).await;
    let ended = tokio::time::timeout(
        TEST_TIMEOUT,
        tokio::task::spawn_blocking(|| serve.terminate()),
    )
    .await;
    assert!(ended.unwrap().unwrap());
}
