//! Local mode: the whole service in one process, including the engine.

use std::{collections::HashMap, process::Command, time::Duration};

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
};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    float, local_binary, per_thousand, percentile, platform,
    process_stats::{self, Process},
    receiver::Receiver,
};

/// The number of jobs that are written.
const EVENTS: usize = 5_000;
/// How many jobs are written at the same time.
const CONCURRENT_WRITES: usize = 32;

/// A `serve` process without a data directory.
#[derive(Clone)]
struct Service {
    process: std::sync::Arc<Process>,
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
            process: process.into(),
            ready,
            http,
        }
    }

    fn field(&self, name: &str) -> &str {
        self.ready[name].as_str().expect("the field is a string")
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
        let url = format!("{}/metrics", self.field("api"))
            .parse()
            .expect("a URL");
        let response = self.http.get(url).await.expect("the service responds");
        let text = response
            .into_body()
            .collect()
            .await
            .expect("the service sends the whole response")
            .to_bytes();
        String::from_utf8(text.into()).expect("it is text")
    }

    /// Registers a signed webhook of the service's own account.
    async fn subscribe(&self, url: &str) {
        let body = json!({"url": url, "events": ["job.completed"], "secret_key": "my-secret-key"});
        let headers = [
            (
                "authorization",
                &*format!("Bearer {}", self.field("api_key")),
            ),
            ("content-type", "application/json"),
        ];
        self.post(
            &format!("{}/api/v1/webhooks", self.field("api")),
            &headers,
            body.to_string(),
        )
        .await;
    }

    /// Registers an unsigned webhook of another account.
    async fn subscribe_other(&self, account: &str, url: &str) {
        let name = |table: &str| {
            self.ready["tables"][table]
                .as_str()
                .expect("the field is a string")
                .to_owned()
        };
        let tables = TableNames {
            webhooks: name("webhooks"),
            deliveries: name("deliveries"),
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
            description: None,
        };
        let account = AccountId::parse(account).expect("a name");
        store
            .webhooks()
            .create(&account, &new, 50, None, Clock::system().now())
            .await
            .expect("it is stored");
    }

    /// Writes a finished job with PutItem, as a worker does.
    async fn put_job(&self, task: &str, account: &str) {
        let headers = [
            ("content-type", "application/x-amz-json-1.0"),
            ("x-amz-target", "DynamoDB_20120810.PutItem"),
            ("x-amz-date", "20241223T100000Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=any/20241223/us-east-1/dynamodb/aws4_request, SignedHeaders=host;x-amz-date, Signature=0",
            ),
        ];
        let table = self.ready["tables"]["jobs"]
            .as_str()
            .expect("the field is a string");
        let body = json!({"TableName": table, "Item": platform::job(task, account, 0)});
        self.post(self.field("dynamodb"), &headers, body.to_string())
            .await;
    }

    /// Writes jobs at a rate. Returns the time of each write by task id.
    async fn put_jobs_at(
        &self,
        rate: u32,
        seconds: u32,
        prefix: &str,
        account: &str,
    ) -> HashMap<String, std::time::Instant> {
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut started = HashMap::new();
        let mut posts = Vec::new();
        for n in 0..rate * seconds {
            ticks.tick().await;
            let task = format!("{prefix}{n}");
            started.insert(task.clone(), process_stats::now());
            let (service, account) = (self.clone(), account.to_owned());
            posts.push(tokio::spawn(async move {
                service.put_job(&task, &account).await;
            }));
        }
        for post in posts {
            post.await.expect("the job is written");
        }
        started
    }

    /// The times from a job's write to the arrival of its event, at 20 jobs per second.
    async fn latencies(
        &self,
        receiver: &Receiver,
        seconds: u32,
        prefix: &str,
        account: &str,
    ) -> Vec<Duration> {
        receiver.take_arrivals();
        let expected = receiver.count() + 20 * seconds as usize;
        let started = self.put_jobs_at(20, seconds, prefix, account).await;
        assert!(receiver.wait_for(expected).await, "every event comes");
        let arrived = receiver.take_arrivals();
        started
            .iter()
            .map(|(task, started)| arrived[task].saturating_duration_since(*started))
            .collect()
    }
}

/// Rate and CPU time of 5,000 jobs that are written through the DynamoDB endpoint, 32 at a time;
/// then the latency at 20 jobs per second.
pub async fn serve() {
    println!(
        "\nserve: {EVENTS} jobs written {CONCURRENT_WRITES} at once, the engine in the same process"
    );
    println!(
        "| subscribers | deliveries/s, writing included | CPU-s per 1,000, all of it | p50 ms at 20/s | p99 ms |"
    );
    println!("|---|---|---|---|---|");
    for subscribers in [1, 10] {
        let (receiver, service) = (Receiver::start(), Service::start());
        for n in 0..subscribers {
            service.subscribe(&format!("{}/ok/{n}", receiver.url)).await;
        }
        for n in 0..20 {
            service.put_job(&format!("warm-{n}"), "demo").await;
        }
        assert!(
            receiver.wait_for(20 * subscribers).await,
            "every event comes"
        );
        let (cpu, started) = (service.process.cpu(), process_stats::now());
        let posts = (0..EVENTS).map(|n| {
            let service = service.clone();
            async move { service.put_job(&format!("task-{n}"), "demo").await }
        });
        stream::iter(posts)
            .buffer_unordered(CONCURRENT_WRITES)
            .collect::<Vec<()>>()
            .await;
        assert!(
            receiver.wait_for((EVENTS + 20) * subscribers).await,
            "every event comes"
        );
        let (took, deliveries) = (started.elapsed(), EVENTS * subscribers);
        let cpu = service
            .process
            .cpu()
            .checked_sub(cpu)
            .expect("CPU time only grows");
        let (p50, p99) = if subscribers == 1 {
            let mut latencies = service.latencies(&receiver, 15, "lat-", "demo").await;
            let mut at = |percent| format!("{:.1}", percentile(&mut latencies, percent));
            (at(50), at(99))
        } else {
            ("–".to_owned(), "–".to_owned())
        };
        println!(
            "| {subscribers} | {:.0} | {:.3} | {p50} | {p99} |",
            float(deliveries) / took.as_secs_f64(),
            per_thousand(cpu, deliveries),
        );
    }
}

/// The latency of a healthy endpoint at 20 events per second, without and with an endpoint of
/// another account that hangs, at 200 events per second.
pub async fn noisy_neighbor() {
    println!(
        "\nnoisy_neighbor: a healthy endpoint at 20/s, without and with one that hangs at 200/s"
    );
    println!("| other endpoint | p50 ms | p99 ms |");
    println!("|---|---|---|");
    let (receiver, service) = (Receiver::start(), Service::start());
    service.subscribe(&format!("{}/ok", receiver.url)).await;
    service
        .subscribe_other("noisy_neighbor", &format!("{}/hang", receiver.url))
        .await;
    service.latencies(&receiver, 2, "lat-warm-", "demo").await;
    let mut alone = service.latencies(&receiver, 15, "lat-alone-", "demo").await;
    println!(
        "| none | {:.1} | {:.1} |",
        percentile(&mut alone, 50),
        percentile(&mut alone, 99)
    );
    let noise = tokio::spawn({
        let service = service.clone();
        async move {
            service
                .put_jobs_at(200, 40, "noise-", "noisy_neighbor")
                .await
                .len()
        }
    });
    // The breaker opens after five attempts that time out.
    let started = process_stats::now();
    while !service
        .metrics()
        .await
        .contains("breaker_transitions_total{to=\"open\"} 1")
    {
        assert!(
            started.elapsed() < Duration::from_secs(25),
            "the breaker opens while the noise lasts"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut with_noise = service
        .latencies(&receiver, 15, "lat-with-noise-", "demo")
        .await;
    println!(
        "| one that hangs | {:.1} | {:.1} |",
        percentile(&mut with_noise, 50),
        percentile(&mut with_noise, 99)
    );
    assert_eq!(noise.await.expect("the jobs are written"), 8_000);
}
