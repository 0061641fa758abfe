//! Local mode: the whole service in one process, including the engine.

use std::{
    collections::HashMap,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use nano_webhooks::{
    aws,
    clock::Clock,
    store::{
        Store, TableNames,
        data_keys::{DataKeyCache, KeyProvider},
        webhooks::NewWebhook,
    },
};
use nano_webhooks_cli::local_client;
use nano_webhooks_core::{
    account_id::AccountId, endpoint_url::EndpointUrl, event_type::EventTypes,
    static_headers::StaticHeaders,
};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    local_binary, per_thousand, percentile, platform,
    process_stats::{self, Process},
    receiver::Receiver,
    to_f64,
};

/// The number of jobs that are written.
const EVENTS: usize = 5_000;
/// How many jobs are written at the same time.
const CONCURRENT_WRITES: usize = 32;
/// The number of jobs that open the connections before a measurement.
const WARM_UP_EVENTS: usize = 20;
/// The account of the service's own webhooks.
const ACCOUNT: &str = "demo";
/// The account whose endpoint hangs.
const OTHER_ACCOUNT: &str = "noisy_neighbor";
/// The jobs per second while latency is measured.
const LATENCY_RATE: u32 = 20;
/// The jobs per second of the account whose endpoint hangs.
const NOISE_RATE: u32 = 200;
/// How long jobs of the account whose endpoint hangs are written.
const NOISE_SECONDS: u32 = 40;
/// The engine requires a signature and does not check it.
const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 \
    Credential=any/20241223/us-east-1/dynamodb/aws4_request, \
    SignedHeaders=host;x-amz-date, Signature=0";

/// A `serve` process without a data directory.
#[derive(Clone)]
struct Service {
    process: Arc<Process>,
    ready: Value,
    http: Client<HttpConnector, Full<Bytes>>,
}

impl Service {
    fn start() -> Self {
        let started = process_stats::now();
        let mut command = Command::new(local_binary());
        command.env_clear().env("RUST_LOG", "warn");
        command.args([
            "serve",
            "--in-memory",
            "--json",
            "--listen",
            "127.0.0.1:0",
            "--dynamodb-listen",
            "127.0.0.1:0",
        ]);
        let (process, line) = Process::spawn_and_read_line(&mut command);
        println!(
            "(ready after {:.0} ms)",
            started.elapsed().as_secs_f64() * 1000.0
        );
        let ready = serde_json::from_str(&line).expect("one line of JSON");
        let http = Client::builder(TokioExecutor::new()).build_http();
        Self {
            process: Arc::new(process),
            ready,
            http,
        }
    }

    fn field(&self, name: &str) -> &str {
        self.ready[name].as_str().expect("the field is a string")
    }

    fn table_name(&self, table: &str) -> &str {
        self.ready["tables"][table]
            .as_str()
            .expect("the field is a string")
    }

    async fn post(&self, url: &str, headers: &[(&str, &str)], body: String) -> Bytes {
        let mut request = Request::post(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .expect("a request");
        let response = self
            .http
            .request(request)
            .await
            .expect("the service responds");
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("the service sends the whole response")
            .to_bytes();
        assert!(
            status.is_success(),
            "{status}: {}",
            String::from_utf8_lossy(&body)
        );
        body
    }

    async fn metrics(&self) -> String {
        let url = format!("{}/metrics", self.field("api"));
        let url = url.parse().expect("a URL");
        let response = self.http.get(url).await.expect("the service responds");
        let text = response
            .into_body()
            .collect()
            .await
            .expect("the service sends the whole response")
            .to_bytes();
        String::from_utf8(text.into()).expect("the metrics are text")
    }

    /// Registers a signed webhook of the service's own account.
    async fn subscribe(&self, url: &str) {
        let webhooks_url = format!("{}/api/v1/webhooks", self.field("api"));
        let authorization = format!("Bearer {}", self.field("api_key"));
        let headers = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/json"),
        ];
        let body = json!({"url": url, "events": ["job.completed"], "secret_key": "my-secret-key"});
        self.post(&webhooks_url, &headers, body.to_string()).await;
    }

    /// Registers an unsigned webhook of another account.
    async fn subscribe_other(&self, account: &str, url: &str) {
        let tables = TableNames {
            webhooks: self.table_name("webhooks").to_owned(),
            deliveries: self.table_name("deliveries").to_owned(),
        };
        let store = Store::new(
            local_client(self.field("dynamodb"), aws::timeouts()),
            tables,
            DataKeyCache::new(KeyProvider::None),
        );
        let new = NewWebhook {
            url: EndpointUrl::parse(url).expect("a URL"),
            events: EventTypes::parse(["job.completed"]).expect("known events"),
            secret: None,
            headers: StaticHeaders::NONE,
            description: None,
            max_per_second: None,
        };
        let account = AccountId::parse(account).expect("a name");
        store
            .webhooks()
            .create(&account, &new, 50, None, Clock::system().now())
            .await
            .expect("the webhook is stored");
    }

    /// Writes a finished job with PutItem, as a worker does.
    async fn put_job(&self, task_id: &str, account: &str) {
        let headers = [
            ("content-type", "application/x-amz-json-1.0"),
            ("x-amz-target", "DynamoDB_20120810.PutItem"),
            ("x-amz-date", "20241223T100000Z"),
            ("authorization", AUTHORIZATION),
        ];
        let job = platform::job_image(task_id, account, 0);
        let body = json!({"TableName": self.table_name("jobs"), "Item": job});
        self.post(self.field("dynamodb"), &headers, body.to_string())
            .await;
    }

    /// Writes jobs, a number of them at the same time.
    async fn put_jobs_concurrently(&self, jobs: usize, concurrency: usize) {
        let writes = (0..jobs).map(|number| self.put_numbered_job(number));
        stream::iter(writes)
            .buffer_unordered(concurrency)
            .collect::<Vec<()>>()
            .await;
    }

    async fn put_numbered_job(&self, number: usize) {
        self.put_job(&format!("task-{number}"), ACCOUNT).await;
    }

    /// Writes jobs at a rate per second. Returns the time of each write by task id.
    async fn put_jobs_at(
        &self,
        rate: u32,
        seconds: u32,
        prefix: &str,
        account: &'static str,
    ) -> HashMap<String, Instant> {
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut started_at = HashMap::new();
        let mut writes = Vec::new();
        for number in 0..rate * seconds {
            ticks.tick().await;
            let task_id = format!("{prefix}{number}");
            started_at.insert(task_id.clone(), process_stats::now());
            let service = self.clone();
            writes.push(tokio::spawn(async move {
                service.put_job(&task_id, account).await;
            }));
        }
        for write in writes {
            write.await.expect("the job is written");
        }
        started_at
    }

    /// The times from a job's write to the arrival of its event, at 20 jobs per second.
    async fn measure_latencies(
        &self,
        receiver: &Receiver,
        seconds: u32,
        prefix: &str,
    ) -> Vec<Duration> {
        receiver.take_arrivals();
        let expected = receiver.count() + (LATENCY_RATE * seconds) as usize;
        let started_at = self
            .put_jobs_at(LATENCY_RATE, seconds, prefix, ACCOUNT)
            .await;
        receiver.wait_for(expected).await;
        let arrived_at = receiver.take_arrivals();
        started_at
            .iter()
            .map(|(task_id, started)| arrived_at[task_id].saturating_duration_since(*started))
            .collect()
    }

    /// Waits until the circuit breaker opens, after five attempts that time out.
    async fn wait_for_open_breaker(&self) {
        let started = process_stats::now();
        while !self
            .metrics()
            .await
            .contains("breaker_transitions_total{to=\"open\"} 1")
        {
            assert!(
                started.elapsed() < Duration::from_secs(25),
                "the breaker did not open in 25 s"
            );
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Rate and CPU time of 5,000 jobs that are written through the DynamoDB endpoint, 32 at a time;
/// then the latency at 20 jobs per second.
pub async fn serve() {
    println!(
        "\nserve: {EVENTS} jobs, {CONCURRENT_WRITES} concurrent writes, \
         the engine in the same process"
    );
    println!(
        "| subscribers | deliveries/s, with writes | CPU-s per 1,000, whole process \
         | p50 ms at 20/s | p99 ms |"
    );
    println!("|---|---|---|---|---|");
    for subscribers in [1, 10] {
        measure_serve(subscribers).await;
    }
}

async fn measure_serve(subscribers: usize) {
    let receiver = Receiver::start();
    let service = Service::start();
    for number in 0..subscribers {
        service
            .subscribe(&format!("{}/ok/{number}", receiver.url))
            .await;
    }
    for number in 0..WARM_UP_EVENTS {
        service.put_job(&format!("warm-{number}"), ACCOUNT).await;
    }
    receiver.wait_for(WARM_UP_EVENTS * subscribers).await;
    let cpu_before = service.process.cpu();
    let started = process_stats::now();
    service
        .put_jobs_concurrently(EVENTS, CONCURRENT_WRITES)
        .await;
    receiver
        .wait_for((EVENTS + WARM_UP_EVENTS) * subscribers)
        .await;
    let duration = started.elapsed();
    let cpu = service.process.cpu_since(cpu_before);
    let deliveries = EVENTS * subscribers;
    let mut latencies = Vec::new();
    if subscribers == 1 {
        latencies = service.measure_latencies(&receiver, 15, "lat-").await;
    }
    println!(
        "| {subscribers} | {:.0} | {:.3} | {} | {} |",
        to_f64(deliveries) / duration.as_secs_f64(),
        per_thousand(cpu, deliveries),
        format_percentile(&mut latencies, 50),
        format_percentile(&mut latencies, 99),
    );
}

/// A percentile in milliseconds, or a dash if nothing was measured.
fn format_percentile(latencies: &mut [Duration], percent: usize) -> String {
    if latencies.is_empty() {
        "–".to_owned()
    } else {
        format!("{:.1}", percentile(latencies, percent))
    }
}

/// The latency of a healthy endpoint at 20 events per second, without and with an endpoint of
/// another account that hangs, at 200 events per second.
pub async fn noisy_neighbor() {
    println!(
        "\nnoisy_neighbor: a healthy endpoint at 20/s, \
         while another account's endpoint hangs at 200/s"
    );
    println!("| other endpoint | p50 ms | p99 ms |");
    println!("|---|---|---|");
    let receiver = Receiver::start();
    let service = Service::start();
    service.subscribe(&format!("{}/ok", receiver.url)).await;
    service
        .subscribe_other(OTHER_ACCOUNT, &format!("{}/hang", receiver.url))
        .await;
    service.measure_latencies(&receiver, 2, "lat-warm-").await;
    let mut latencies = service.measure_latencies(&receiver, 15, "lat-alone-").await;
    print_latencies("none", &mut latencies);
    let noise = tokio::spawn(make_noise(service.clone()));
    service.wait_for_open_breaker().await;
    let mut latencies = service
        .measure_latencies(&receiver, 15, "lat-with-noise-")
        .await;
    print_latencies("hangs", &mut latencies);
    noise.await.expect("the jobs are written");
}

/// Writes jobs of the account whose endpoint hangs.
async fn make_noise(service: Service) {
    service
        .put_jobs_at(NOISE_RATE, NOISE_SECONDS, "noise-", OTHER_ACCOUNT)
        .await;
}

fn print_latencies(other_endpoint: &str, latencies: &mut [Duration]) {
    println!(
        "| {other_endpoint} | {:.1} | {:.1} |",
        percentile(latencies, 50),
        percentile(latencies, 99)
    );
}
