//! The fault matrix: no fault at any step loses a delivery or records an unsent one as delivered.
//! Each fault repeats a delivery at most once.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_sdk_dynamodb::config::{retry::RetryConfig, timeout::TimeoutConfig};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
};
use futures_util::{StreamExt, stream};
use nano_webhooks::{
    clock::{Clock, Deadline},
    dispatch::{Dispatcher, InFlightLimiter, lambda_event::Invocation, stream_record::Record},
    queue::RetryQueue,
    store::{
        Store,
        data_keys::{DataKeyCache, KeyProvider},
    },
};
use nano_webhooks_core::{
    delivery::{endpoint_health::EndpointHealth, scheduled_retry::ScheduledRetry},
    timestamp::Timestamp,
};
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::{
    client::client_with_timeout,
    proxy::{Fault, PartitionFault, Proxy},
    receiver::TEST_TIMEOUT,
    sqs::{Sqs, SqsMode},
    stream::{insert_record, job_image},
    tables::TestTables,
    webhooks::{put_health, subscribe},
};

/// The phase of the dispatcher and the request that a fault hits.
struct FaultPoint {
    doing: Phase,
    name: &'static str,
    operation: &'static str,
    /// A text in the body of the request.
    body: &'static str,
    /// The number of earlier requests of this kind, which succeed.
    skip: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Stream,
    Retry,
    Sweep,
}

const STEPS: [FaultPoint; 11] = [
    FaultPoint {
        doing: Phase::Stream,
        name: "stream: load webhooks",
        operation: "Query",
        body: "",
        skip: 0,
    },
    FaultPoint {
        doing: Phase::Stream,
        name: "stream: find existing deliveries",
        operation: "BatchGetItem",
        body: "",
        skip: 0,
    },
    FaultPoint {
        doing: Phase::Stream,
        name: "stream: write successes (after sending)",
        operation: "BatchWriteItem",
        body: "",
        skip: 0,
    },
    FaultPoint {
        doing: Phase::Stream,
        name: "stream: write others (after sending)",
        operation: "PutItem",
        body: "state_key",
        skip: 0,
    },
    FaultPoint {
        doing: Phase::Stream,
        name: "stream: update health (after scheduling)",
        operation: "PutItem",
        body: "#HEALTH",
        skip: 0,
    },
    FaultPoint {
        doing: Phase::Stream,
        name: "stream: store poison (after health)",
        operation: "PutItem",
        body: "POISON#",
        skip: 0,
    },
    FaultPoint {
        doing: Phase::Retry,
        name: "retry: load webhook",
        operation: "Query",
        body: "",
        skip: 0,
    },
    FaultPoint {
        doing: Phase::Retry,
        name: "retry: lease",
        operation: "UpdateItem",
        body: "",
        skip: 0,
    },
    FaultPoint {
        doing: Phase::Retry,
        name: "retry: complete (after sending)",
        operation: "PutItem",
        body: "",
        skip: 0,
    },
    FaultPoint {
        doing: Phase::Sweep,
        name: "sweep: list due deliveries",
        operation: "Query",
        body: "",
        skip: 3,
    },
    FaultPoint {
        doing: Phase::Sweep,
        name: "sweep: mark enqueued (before sending)",
        operation: "UpdateItem",
        body: "",
        skip: 0,
    },
];

const FAULTS: [(Fault, &str); 6] = [
    (Fault::CrashBefore, "crash before"),
    (Fault::CrashAfter, "crash after"),
    (Fault::ServerError, "server error"),
    (Fault::Throttled, "throttled"),
    (Fault::ResponseLost, "response lost"),
    (Fault::Timeout, "timeout"),
];

/// Faults of the queue, of the stream's batches, and of parts of the Deliveries table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interference {
    None,
    MessagesLost,
    MessagesTwice,
    MessagesReversed,
    MessagesLate,
    BatchTwice,
    BatchReversed,
    TwoReaders,
    QueueRejects,
    PartitionsThrottled,
    IndexLags,
    KeyUnavailable,
}

impl Interference {
    /// Dispatches the batch. Returns the number of records that must be read again.
    async fn read_batch(self, dispatcher: &Dispatcher, records: &[Record]) -> usize {
        if self != Self::TwoReaders {
            return read_once(dispatcher, records).await;
        }
        let (one, other) = tokio::join!(
            read_once(dispatcher, records),
            read_once(dispatcher, records)
        );
        one + other
    }
}

async fn read_once(dispatcher: &Dispatcher, records: &[Record]) -> usize {
    let response = dispatcher.handle_stream_batch(records, deadline()).await;
    response.batch_item_failures.len()
}

/// A client of the proxy whose tries end at this time-out and follow each other at once.
fn impatient_client(
    client: &aws_sdk_dynamodb::Client,
    proxy: &Proxy,
    request_timeout: Duration,
) -> aws_sdk_dynamodb::Client {
    let retries = RetryConfig::standard().with_initial_backoff(Duration::from_millis(2));
    let timeouts = TimeoutConfig::builder()
        .operation_attempt_timeout(request_timeout)
        .build();
    let config = client
        .config()
        .to_builder()
        .endpoint_url(&proxy.url)
        .retry_config(retries)
        .timeout_config(timeouts);
    aws_sdk_dynamodb::Client::from_conf(config.build())
}

/// Only `/once-hang` waits for it. The other endpoints respond in time on a busy machine too.
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(3);

fn deadline() -> Deadline {
    Deadline::from_now(Duration::from_secs(10))
}

const DISTURBANCES: [(Interference, &str); 12] = [
    (Interference::None, "nothing"),
    (
        Interference::MessagesLost,
        "messages of half an hour are lost",
    ),
    (Interference::MessagesTwice, "every message comes twice"),
    (Interference::MessagesReversed, "messages come in reverse"),
    (Interference::MessagesLate, "messages come ten minutes late"),
    (Interference::BatchTwice, "the batch is read twice"),
    (Interference::BatchReversed, "the batch is read in reverse"),
    (
        Interference::QueueRejects,
        "SQS rejects the messages of half an hour",
    ),
    (
        Interference::PartitionsThrottled,
        "the partitions of two webhooks refuse updates for half an hour",
    ),
    (
        Interference::IndexLags,
        "the due index shows the state before the latest sweep",
    ),
    (
        Interference::TwoReaders,
        "two processes read the batch at the same time",
    ),
    (
        Interference::KeyUnavailable,
        "no data key can be unwrapped for an hour",
    ),
];

/// Keys are a path and an event.
type Sent = HashMap<(String, String), Vec<u16>>;

/// Endpoints whose behavior depends on their path.
#[derive(Clone, Default)]
struct Endpoints {
    /// The status codes that were sent for each path and event; 0 if none was sent.
    sent: Arc<Mutex<Sent>>,
}

/// The first endpoint is marked slow, so that its first attempts are made from the queue.
const PATHS: [&str; 6] = [
    "/slow-ok",
    "/ok",
    "/once-500",
    "/always-500",
    "/once-hang",
    "/always-503-later",
];

async fn response(
    State(endpoints): State<Endpoints>,
    uri: Uri,
    headers: HeaderMap,
) -> (StatusCode, [(&'static str, &'static str); 1]) {
    let id = headers["webhook-id"].to_str().unwrap().to_owned();
    let path = uri.path().to_owned();
    let (status, hangs) = {
        let mut sent = endpoints.sent.lock().unwrap();
        let sent = sent.entry((path.clone(), id)).or_default();
        let first = sent.is_empty();
        let (status, hangs) = match path.as_str() {
            "/once-500" if first => (500, false),
            "/once-hang" if first => (0, true),
            "/always-500" => (500, false),
            "/always-503-later" => (503, false),
            _ => (200, false),
        };
        sent.push(status);
        (status, hangs)
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    (
        StatusCode::from_u16(status).unwrap(),
        [("retry-after", "3")],
    )
}

/// One cell of the matrix: a service whose process can die and whose clock the test moves.
struct FaultCase {
    tables: TestTables,
    proxy: Proxy,
    store: Store,
    /// The same tables in a process that can unwrap no data key.
    store_without_keys: Store,
    endpoints: Endpoints,
    clock: Clock,
    limiter: InFlightLimiter,
    disturbance: Interference,
    sqs: Sqs,
}

impl FaultCase {
    async fn new(disturbance: Interference, request_timeout: Duration) -> Self {
        let tables = TestTables::new().await;
        let endpoints = Endpoints::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(
            axum::serve(
                listener,
                Router::new()
                    .fallback(response)
                    .with_state(endpoints.clone()),
            )
            .into_future(),
        );
        for path in PATHS {
            let webhook = subscribe(
                &tables,
                "acme",
                &format!("{url}{path}"),
                Some("my-secret-key"),
            )
            .await;
            if path == "/slow-ok" {
                let slow = EndpointHealth {
                    has_succeeded: true,
                    slow: true,
                    ..EndpointHealth::default()
                };
                put_health(&tables, webhook, &slow).await;
            }
        }
        let proxy = Proxy::start(tables.endpoint.clone()).await;
        let client = impatient_client(&tables.client, &proxy, request_timeout);
        let store = tables.store_through(client.clone());
        let no_keys = DataKeyCache::new(KeyProvider::None);
        let store_without_keys = Store::new(client, tables.names.clone(), no_keys);
        let clock = Clock::manual(START);
        Self {
            tables,
            proxy,
            store,
            store_without_keys,
            endpoints,
            clock,
            limiter: InFlightLimiter::default(),
            disturbance,
            sqs: Sqs::start(SqsMode::RejectAll).await,
        }
    }

    fn is_first_half_hour(&self) -> bool {
        self.clock.now().saturating_duration_since(START) < Duration::from_mins(30)
    }

    fn queue(&self) -> RetryQueue {
        if self.disturbance == Interference::QueueRejects && self.is_first_half_hour() {
            self.sqs.queue()
        } else {
            self.tables.queue.clone()
        }
    }

    /// Sets the faults of the Deliveries table.
    fn disturb_table(&self) {
        let is_throttled =
            self.disturbance == Interference::PartitionsThrottled && self.is_first_half_hour();
        let throttled: &[&str] = if is_throttled {
            &["acme#1", "acme#3"]
        } else {
            &[]
        };
        self.proxy
            .set_partition_fault(throttled, PartitionFault::Throttled);
        self.proxy
            .set_due_index_lags(self.disturbance == Interference::IndexLags);
    }

    /// The store, which can unwrap no data key in the first hour of that interference.
    fn present_store(&self) -> &Store {
        let since_start = self.clock.now().saturating_duration_since(START);
        let is_first_hour = since_start < Duration::from_hours(1);
        if self.disturbance == Interference::KeyUnavailable && is_first_hour {
            &self.store_without_keys
        } else {
            &self.store
        }
    }

    fn dispatcher(&self) -> Dispatcher {
        Dispatcher {
            store: self.present_store().clone(),
            direct_client: client_with_timeout(ENDPOINT_TIMEOUT),
            retry_client: client_with_timeout(ENDPOINT_TIMEOUT),
            queue: self.queue(),
            limiter: self.limiter.clone(),
            clock: self.clock.clone(),
            // One delay fits in the queue, and one does not.
            schedule: "1s,20m".parse().unwrap(),
            ..self.tables.dispatcher()
        }
    }

    /// Runs `work` until it ends or the process dies. Arms the fault if it belongs to `phase`.
    async fn run<T>(
        &mut self,
        doing: Phase,
        armed: &mut Option<(&FaultPoint, Fault)>,
        work: impl AsyncFnOnce(Dispatcher) -> T,
    ) -> Option<T> {
        let dispatcher = self.dispatcher();
        self.disturb_table();
        let fault = armed.filter(|(step, _)| step.doing == doing);
        if let Some((step, fault)) = fault {
            let proxy = &self.proxy;
            proxy.arm_matching(step.operation, step.body, step.skip, fault);
        }
        let result = self.proxy.until_crash(Box::pin(work(dispatcher))).await;
        if fault.is_some() && !self.proxy.disarm() {
            *armed = None;
        }
        if result.is_none() {
            // The state in memory is lost with the process.
            self.limiter = InFlightLimiter::default();
        }
        result
    }

    /// Reads the batch until it is acknowledged, then advances the clock until nothing is pending.
    async fn play(&mut self, records: Vec<Record>, mut armed: Option<(&FaultPoint, Fault)>) {
        let disturbance = self.disturbance;
        let mut readings = if self.disturbance == Interference::BatchTwice {
            2
        } else {
            1
        };
        for _ in 0..10 {
            let response = self
                .run(Phase::Stream, &mut armed, async |dispatcher| {
                    disturbance.read_batch(&dispatcher, &records).await
                })
                .await;
            if response == Some(0) {
                readings -= 1;
            }
            if readings == 0 {
                break;
            }
        }
        assert_eq!(readings, 0, "the batch was never acknowledged");
        let mut messages: Vec<ScheduledRetry> = Vec::new();
        // Two days are longer than the schedule and all recovery mechanisms need. The sweep runs
        // every four minutes only, as if most of its runs were missed.
        for _ in 0..720 {
            for _ in 0..4 {
                self.receive(&mut messages);
                let now = self.clock.now();
                let (mut ready, later): (Vec<_>, Vec<_>) =
                    messages.drain(..).partition(|timer| timer.due <= now);
                messages = later;
                // The endpoint that accepts is first, so that a fault hits it in every run.
                ready.sort_by_key(|timer| timer.message.key.webhook);
                if self.disturbance == Interference::MessagesReversed {
                    ready.reverse();
                }
                for timer in ready {
                    let done = self
                        .run(Phase::Retry, &mut armed, async |dispatcher| {
                            dispatcher.retry(&timer.message).await
                        })
                        .await;
                    if !matches!(done, Some(Ok(()))) {
                        // As in SQS, the message becomes visible again later.
                        messages.push(ScheduledRetry {
                            due: now + Duration::from_secs(90),
                            ..timer
                        });
                    }
                }
                self.clock.advance(Duration::from_mins(1));
            }
            let _ = self
                .run(Phase::Sweep, &mut armed, async |dispatcher| {
                    dispatcher.sweep(deadline()).await
                })
                .await;
            if self.pending().await == 0 {
                break;
            }
        }
        assert!(armed.is_none(), "the fault did not occur");
    }

    fn receive(&self, messages: &mut Vec<ScheduledRetry>) {
        let mut came = self.tables.timers();
        match self.disturbance {
            // SQS is unavailable for half an hour.
            Interference::MessagesLost if self.is_first_half_hour() => came.clear(),
            Interference::MessagesTwice => came.extend(came.clone()),
            Interference::MessagesLate => {
                for timer in &mut came {
                    timer.due = timer.due + Duration::from_mins(10);
                }
            }
            _ => {}
        }
        messages.extend(came);
    }

    async fn pending(&self) -> usize {
        let items = self.tables.items(&self.tables.names.deliveries).await;
        items
            .iter()
            .filter(|item| item["status"].as_s().unwrap() == "pending")
            .count()
    }

    /// Checks the final state of each delivery, and counts those that were accepted more than once.
    async fn judge(&self, events: usize, faults: usize, name: &str) -> usize {
        let items = self.tables.items(&self.tables.names.deliveries).await;
        assert_eq!(items.len(), events * PATHS.len(), "{name}: deliveries");
        let poison = self.tables.items_under("POISON#").await;
        assert_eq!(poison.len(), 1, "{name}: poison records");
        let mut repeats = 0;
        for item in items {
            let text = |name: &str| item[name].as_s().unwrap().clone();
            let path = text("url")
                .rsplit_once('/')
                .map(|(_, path)| format!("/{path}"))
                .unwrap();
            let sent = self
                .endpoints
                .sent
                .lock()
                .unwrap()
                .get(&(path.clone(), text("SK")))
                .cloned()
                .unwrap_or_default();
            let accepted = sent.iter().filter(|status| **status == 200).count();
            let expected = if path.starts_with("/always") {
                "failed"
            } else {
                "delivered"
            };
            assert_eq!(text("status"), expected, "{name}: {path} {sent:?}");
            assert_eq!(
                accepted > 0,
                expected == "delivered",
                "{name}: {path} {sent:?}"
            );
            // Without faults: one attempt, two attempts, or all three of the schedule.
            let due = match path.as_str() {
                "/slow-ok" | "/ok" => 1,
                "/once-500" | "/once-hang" => 2,
                _ => 3,
            };
            assert!(sent.len() <= due + faults, "{name}: {path} {sent:?}");
            repeats += accepted.saturating_sub(1);
        }
        repeats
    }
}

fn records(events: usize, reversed: bool) -> Vec<Record> {
    let mut records: Vec<_> = (0..events)
        .map(|n| insert_record(n, job_image(&format!("t{n}"), "completed")))
        .collect();
    let mut poison = job_image("poison", "completed");
    poison.as_object_mut().unwrap().remove("account_id");
    records.push(insert_record(events, poison));
    if reversed {
        records.reverse();
    }
    match Invocation::from_json(&json!({ "Records": records }).to_string()).unwrap() {
        Invocation::Stream(records) => records,
        other => panic!("{other:?}"),
    }
}

/// How long a request of the SDK may take. Only a request that never gets a response needs the end
/// of this time.
fn request_timeout(fault: Fault) -> Duration {
    match fault {
        Fault::Timeout => Duration::from_secs(1),
        _ => TEST_TIMEOUT,
    }
}

const EVENTS: usize = 2;
/// The start time of each cell.
const START: Timestamp = Timestamp::from_millis(1_734_948_000_000);
/// The number of cells that run at the same time.
const CONCURRENT_CELLS: usize = 8;

/// A fault of DynamoDB at any step of any path loses no delivery.
#[tokio::test]
async fn faults_lose_nothing() {
    let cells = STEPS.iter().flat_map(|step| {
        FAULTS
            .iter()
            .map(move |(fault, column)| (step, *fault, *column))
    });
    let played: Vec<_> = stream::iter(cells.map(|(step, fault, column)| async move {
        let name = format!("{}, {column}", step.name);
        let mut cell = FaultCase::new(Interference::None, request_timeout(fault)).await;
        Box::pin(cell.play(records(EVENTS, false), Some((step, fault)))).await;
        cell.judge(EVENTS, 1, &name).await
    }))
    .buffered(CONCURRENT_CELLS)
    .collect()
    .await;

    let deliveries = EVENTS * PATHS.len();
    let mut table =
        format!("Deliveries that were accepted twice, of {deliveries} in each cell.\n\n| |");
    for (_, column) in FAULTS {
        write!(table, " {column} |").unwrap();
    }
    table.push_str("\n|---|");
    table.push_str(&"---|".repeat(FAULTS.len()));
    for (step, row) in STEPS.iter().zip(played.chunks(FAULTS.len())) {
        write!(table, "\n| {} |", step.name).unwrap();
        for repeats in row {
            write!(table, " {repeats} |").unwrap();
        }
    }
    let documented = include_str!("../../docs/FAULTS.md");
    assert!(
        documented.contains(&table),
        "docs/FAULTS.md is outdated, expected\n\n{table}"
    );
}

/// Early, late, repeated and lost messages and batches, and unavailable keys, lose and repeat no
/// delivery. Two readers of one batch lose none and send none more often than twice.
#[tokio::test]
async fn interference_loses_and_repeats_nothing() {
    let cells = stream::iter(DISTURBANCES).map(async |(disturbance, name)| {
        let mut cell = FaultCase::new(disturbance, TEST_TIMEOUT).await;
        Box::pin(cell.play(
            records(EVENTS, disturbance == Interference::BatchReversed),
            None,
        ))
        .await;
        if disturbance == Interference::TwoReaders {
            // Each reader sends each event. What one of them records as delivered stays delivered.
            cell.judge(EVENTS, 1, name).await;
        } else {
            assert_eq!(cell.judge(EVENTS, 0, name).await, 0, "{name}");
        }
    });
    let played: Vec<()> = cells.buffer_unordered(CONCURRENT_CELLS).collect().await;
    assert_eq!(played.len(), DISTURBANCES.len());
}
