//! The built binary over real sockets: jobs that are written with the SDK become webhooks.

#[path = "../../tests/it/support/engine.rs"]
mod engine;
#[expect(dead_code, reason = "these tests use a part of the shared receiver")]
#[path = "../../tests/it/support/receiver.rs"]
mod receiver;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use aws_sdk_dynamodb::{config::timeout::TimeoutConfig, types::AttributeValue};
use axum::body::Bytes;
use engine::other_engine;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use nano_webhooks::random;
use nano_webhooks_cli::local_client;
use receiver::{Receiver, TEST_TIMEOUT};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempDir};

const BINARY: &str = env!("CARGO_BIN_EXE_nano-webhooks");
const SECRET: &str = "my-secret-key";
const FREE_PORTS: [&str; 4] = [
    "--listen",
    "127.0.0.1:0",
    "--dynamodb-listen",
    "127.0.0.1:0",
];
/// The environment variable of each table, and the table's name in the ready line.
const TABLES: [(&str, &str); 3] = [
    ("JOBS_TABLE", "jobs"),
    ("WEBHOOKS_TABLE", "webhooks"),
    ("DELIVERIES_TABLE", "deliveries"),
];

/// A running `serve`. Dropping it kills the process.
struct TestServer {
    child: Child,
    /// The line that `serve --json` prints when it is ready.
    ready: Value,
}

impl TestServer {
    fn start_in_memory() -> Self {
        Self::start(Self::command(&["--in-memory"]))
    }

    fn start_in(data_dir: &TempDir) -> Self {
        Self::start(Self::command(&["--data-dir", path_str(data_dir.path())]))
    }

    /// `serve` with these options. Its tables are its own, also if another engine is used.
    fn command(args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .args(["serve", "--json"])
            .args(FREE_PORTS)
            .args(args)
            .stderr(Stdio::null());
        if let Some(endpoint) = other_engine() {
            command.args(["--dynamodb-endpoint", &endpoint]);
            let suffix = table_suffix(args);
            for (variable, table) in TABLES {
                command.env(variable, format!("{table}-{suffix}"));
            }
        }
        command
    }

    /// Starts the command and waits until it is ready.
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not ready: {line:?}"));
        Self { child, ready }
    }

    fn api(&self) -> &str {
        self.ready["api"].as_str().unwrap()
    }

    fn api_key(&self) -> &str {
        self.ready["api_key"].as_str().unwrap()
    }

    fn dynamodb(&self) -> &str {
        self.ready["dynamodb"].as_str().unwrap()
    }

    fn table(&self, name: &str) -> &str {
        self.ready["tables"][name].as_str().unwrap()
    }

    /// Creates a webhook for all job events and returns the response.
    async fn register(&self, url: &str) -> Value {
        let body = json!({
            "url": url,
            "events": ["job.completed", "job.failed"],
            "secret_key": SECRET,
        });
        let request = http::Request::post(format!("{}/api/v1/webhooks", self.api()))
            .header("authorization", format!("Bearer {}", self.api_key()))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    /// Writes a completed job with the SDK.
    async fn complete_job(&self, task_id: &str) {
        local_client(self.dynamodb(), TimeoutConfig::disabled())
            .put_item()
            .table_name(self.table("jobs"))
            .item("task_id", AttributeValue::S(task_id.to_owned()))
            .item("account_id", AttributeValue::S("demo".to_owned()))
            .item("task_type", AttributeValue::S("image".to_owned()))
            .item("status", AttributeValue::S("completed".to_owned()))
            .send()
            .await
            .unwrap();
    }

    /// Runs a command on the same tables.
    fn run_command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(BINARY);
        for (variable, table) in TABLES {
            command.env(variable, self.table(table));
        }
        command
            .args(args)
            .args(["--dynamodb-endpoint", self.dynamodb()])
            .output()
            .unwrap()
    }

    /// Sends SIGTERM and waits until the process ends with status 0.
    fn terminate(mut self) {
        let signal = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status();
        assert!(signal.unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A suffix that stays the same when a server restarts on the same data directory.
fn table_suffix(args: &[&str]) -> String {
    match args {
        ["--data-dir", data_dir, ..] => hex::encode(&Sha256::digest(data_dir)[..16]),
        _ => random::request_id(),
    }
}

fn path_str(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[tokio::test]
async fn job_becomes_signed_webhook() {
    let receiver = Receiver::start().await;
    let server = TestServer::start_in_memory();
    assert_eq!(server.ready["account"], "demo");
    let registered = server.register(&receiver.url("/hook")).await;
    assert_eq!(registered["data"]["id"], 1);
    server.complete_job("t1").await;
    let received = receiver.wait_for(1).await;
    assert_eq!(received[0].json()["task_id"], "t1");
    let verifier = standardwebhooks::Webhook::from_bytes(SECRET.as_bytes().to_vec()).unwrap();
    verifier
        .verify(received[0].body.as_bytes(), &received[0].headers)
        .unwrap();
    server.terminate();
}

/// A job that was written right before a kill is delivered after the next start, and no job is
/// delivered twice.
#[tokio::test]
async fn kill_loses_and_repeats_nothing() {
    let receiver = Receiver::start().await;
    let data_dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(&data_dir);
    let api_key = server.api_key().to_owned();
    server.register(&receiver.url("/hook")).await;
    server.complete_job("before").await;
    receiver.wait_for(1).await;
    server.terminate();

    let server = TestServer::start_in(&data_dir);
    assert_eq!(server.api_key(), api_key);
    server.complete_job("during").await;
    drop(server);

    let server = TestServer::start_in(&data_dir);
    server.complete_job("after").await;
    let received = receiver.wait_for(3).await;
    let mut task_ids: Vec<_> = received
        .iter()
        .map(|request| request.json()["task_id"].as_str().unwrap().to_owned())
        .collect();
    task_ids.sort();
    assert_eq!(task_ids, ["after", "before", "during"]);
    server.terminate();
}

#[test]
fn data_directory_has_one_process() {
    let data_dir = tempfile::tempdir().unwrap();
    let _server = TestServer::start_in(&data_dir);
    let path = path_str(data_dir.path());
    let second = run(&[&["serve", "--data-dir", path][..], &FREE_PORTS].concat());
    assert!(!second.status.success());
    assert_eq!(
        stderr(&second),
        format!("nano-webhooks: another process uses the data directory {path}\n")
    );
}

#[test]
fn demo_verifies_two_webhooks() {
    let demo = run(&["demo"]);
    let printed = stdout(&demo);
    assert!(demo.status.success(), "{printed}{}", stderr(&demo));
    assert_eq!(printed.matches("✓ X-Nano-Signature is valid").count(), 2);
    assert_eq!(printed.matches("✓ webhook-signature is valid").count(), 2);
}

/// The demo ignores proxies, AWS settings and the variables of `serve`.
#[test]
fn environment_does_not_change_demo() {
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
    let demo = demo
        .arg("demo")
        .env("API_KEY", "not-an-api-key")
        .env("LISTEN", "not-an-address")
        .env("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:9")
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .unwrap();
    assert!(demo.status.success(), "{}{}", stdout(&demo), stderr(&demo));
}

#[test]
fn malformed_api_key_is_not_printed() {
    let serve = Command::new(BINARY)
        .arg("--in-memory")
        .env("API_KEY", "not-an-api-key")
        .output()
        .unwrap();
    let printed = stderr(&serve);
    assert!(
        printed.starts_with("nano-webhooks: --api-key: expected"),
        "{printed}"
    );
    assert!(!printed.contains("not-an-api-key"));
}

#[tokio::test]
async fn revoked_key_stays_revoked() {
    let data_dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(&data_dir);
    let revoked = server.run_command(&["keys", "revoke", "--account", "demo", server.api_key()]);
    assert!(revoked.status.success());
    server.terminate();
    let server = TestServer::start_in(&data_dir);
    let response = server.register("http://127.0.0.1:9/").await;
    assert_eq!(response["error"]["code"], "unauthorized");
}

/// The most verbose log has no secret and no key.
#[tokio::test]
async fn log_reveals_no_secret() {
    let receiver = Receiver::start().await;
    let log = NamedTempFile::new().unwrap();
    let mut command = TestServer::command(&["--in-memory"]);
    command
        .env("RUST_LOG", "trace")
        .stderr(log.reopen().unwrap());
    let server = TestServer::start(command);
    server.register(&receiver.url("/hook")).await;
    server.complete_job("t1").await;
    receiver.wait_for(1).await;
    let api_key = server.api_key().to_owned();
    server.terminate();
    let log = fs::read_to_string(log.path()).unwrap();
    assert!(log.contains("Attempt completed"), "{log}");
    let encoded_secret = "bXktc2VjcmV0LWtleQ";
    for secret in [SECRET, &api_key, encoded_secret] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

/// Retries follow the schedule. One that is due at a kill happens after the next start.
#[tokio::test]
async fn retries_continue_after_kill() {
    let receiver = Receiver::start().await;
    let data_dir = tempfile::tempdir().unwrap();
    let path = path_str(data_dir.path());
    let args = ["--data-dir", path, "--retry-schedule", "50ms,2s,50ms"];
    let server = TestServer::start(TestServer::command(&args));
    server.register(&receiver.url("/status/500")).await;
    server.complete_job("t1").await;
    receiver.wait_for(2).await;
    drop(server);
    let _server = TestServer::start(TestServer::command(&args));
    let received = receiver.wait_for(4).await;
    let last = received.last().unwrap();
    assert_eq!(last.header("webhook-id"), received[0].header("webhook-id"));
    assert!(["3", "4"].contains(&last.header("x-nano-attempt")));
}

#[test]
fn keys_command_manages_keys() {
    let server = TestServer::start_in_memory();
    let keys = |args: &[&str]| server.run_command(&[&["keys"], args].concat());
    let created = keys(&["create", "--account", "acme", "--json"]);
    let created: Value = serde_json::from_slice(&created.stdout).unwrap();
    assert_eq!(created["account"], "acme");
    let api_key = created["api_key"].as_str().unwrap();
    let prefix = &api_key[..11];

    let listed = keys(&["list", "--account", "acme"]);
    assert!(stdout(&listed).starts_with(prefix) && !stdout(&listed).contains(api_key));
    let revoke = ["revoke", "--account", "acme", api_key];
    assert!(keys(&revoke).status.success());
    assert!(keys(&["list", "--account", "acme"]).stdout.is_empty());
    let repeated = keys(&revoke);
    assert_eq!(repeated.status.code(), Some(1));
    assert_eq!(
        stderr(&repeated),
        format!(
            "nano-webhooks: account acme has no key {prefix}…; list its keys with `keys list`\n"
        )
    );
}

/// `listen` prints and verifies the webhook of a job that `job fail` wrote.
#[tokio::test]
async fn listen_verifies_webhook_of_job_command() {
    let server = TestServer::start_in_memory();
    let mut listen = Command::new(BINARY)
        .args(["listen", "--port", "0", "--secret", SECRET])
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
    server.register(url).await;
    let data = r#"{"error":"Refused."}"#;
    let job = server.run_command(&["job", "fail", "--task-id", "t9", "--data", data]);
    assert_eq!(
        stdout(&job),
        "Wrote job t9 of account demo with status failed.\n"
    );
    let printed: Vec<_> = lines
        .by_ref()
        .take_while(|line| !line.contains("webhook-signature is valid"))
        .collect();
    let printed = printed.join("\n");
    assert!(printed.contains(&format!(r#""data":{data}"#)), "{printed}");
    assert!(printed.contains("✓ X-Nano-Signature is valid"), "{printed}");
    listen.kill().unwrap();
    listen.wait().unwrap();
}

/// A usage error has status 2, any other error status 1. Both name the option.
#[test]
fn malformed_option_is_named() {
    let missing_ca_file = [&FREE_PORTS[..], &["--ca-file", "/no/such/file"]].concat();
    let missing_ca_file = [&["serve", "--in-memory"], &missing_ca_file[..]].concat();
    for (args, status, name) in [
        (&["serve", "--targets", "private"][..], 2, "--targets"),
        (
            &["serve", "--retry-schedule", "soon"],
            2,
            "--retry-schedule",
        ),
        (&["serve", "--allow-cidr", "office"], 2, "--allow-cidr"),
        (&["serve", "--listen", "here"], 2, "--listen"),
        (&["keys", "create", "--account", ""], 2, "--account"),
        (
            &["serve", "--in-memory", "--api-key", "sk-123"],
            1,
            "--api-key",
        ),
        (&missing_ca_file, 1, "EXTRA_CA_FILE"),
        (&["listen", "--secret", "short"], 1, "--secret"),
        (&["job", "complete", "--data", "[1]"], 2, "--data"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        assert!(
            stderr(&output).contains(name),
            "{args:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn malformed_variable_is_named() {
    let serve = Command::new(BINARY)
        .arg("serve")
        .env("WEBHOOKS_PER_ACCOUNT", "many")
        .output()
        .unwrap();
    assert!(stderr(&serve).starts_with("nano-webhooks: WEBHOOKS_PER_ACCOUNT: "));
}

#[tokio::test]
async fn hanging_endpoint_does_not_block_shutdown() {
    let receiver = Receiver::start().await;
    let server = TestServer::start_in_memory();
    server.register(&receiver.url("/hang")).await;
    server.complete_job("t1").await;
    receiver.wait_for(1).await;
    let terminated = tokio::task::spawn_blocking(|| server.terminate());
    tokio::time::timeout(TEST_TIMEOUT, terminated)
        .await
        .unwrap()
        .unwrap();
}
