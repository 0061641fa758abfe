//! The functions as they are deployed.

use std::time::Duration;

use hyper::body::Bytes;
use nano_webhooks::{clock::Clock, random};
use nano_webhooks_core::{account_id::AccountId, api_key::ApiKey};
use serde_json::{Value, json};

use super::{
    Built, baseline,
    lambda::Function,
    per_thousand, percentile,
    platform::{self, JobBatches, Platform},
    process_stats::{self, Process},
    receiver::Receiver,
    to_f64,
};

/// How many requests the baseline of each row makes.
const BASELINE_REQUESTS: u32 = 30_000;
/// How often `cold_start` starts each function.
const STARTS: usize = 20;
/// How many webhooks the account of `list` has.
const OWN_WEBHOOKS: usize = 10;
/// How many requests `list` makes.
const LIST_REQUESTS: usize = 3_000;
/// How many requests `growth` makes of the delivery log.
const LOG_REQUESTS: usize = 200;
/// How many of them are not measured.
const LOG_WARM_UP_REQUESTS: usize = 50;

/// The cost of a run of batches.
struct Cost {
    deliveries: usize,
    function_cpu: Duration,
    engine_cpu: Duration,
    duration: Duration,
}

/// Invokes the function with one batch after the other, and checks that every delivery arrived.
async fn measure_batches(
    function: &mut Function,
    engine: &Process,
    receiver: &Receiver,
    batches: Vec<Bytes>,
    deliveries: usize,
) -> Cost {
    let expected = receiver.count() + deliveries;
    let function_cpu = function.process.cpu();
    let engine_cpu = engine.cpu();
    let started = process_stats::now();
    for batch in batches {
        assert_eq!(function.invoke(batch).await, r#"{"batchItemFailures":[]}"#);
    }
    let duration = started.elapsed();
    assert_eq!(receiver.count(), expected, "each delivery arrives once");
    Cost {
        deliveries,
        function_cpu: function.process.cpu_since(function_cpu),
        engine_cpu: engine.cpu_since(engine_cpu),
        duration,
    }
}

/// Invokes the function with batches that are not measured.
async fn warm_up(function: &mut Function, batches: Vec<Bytes>) {
    for batch in batches {
        function.invoke(batch).await;
    }
}

/// Where the function writes deliveries.
#[derive(Clone, Copy, PartialEq)]
enum DeliveriesTable {
    Engine,
    /// Accepts every write at once.
    Fake,
}

impl DeliveriesTable {
    const fn label(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Fake => "fake",
        }
    }
}

/// One row of the table of `dispatch`.
struct DispatchCase {
    table: DeliveriesTable,
    subscribers: usize,
    batches: usize,
}

const DISPATCH_CASES: [DispatchCase; 4] = [
    DispatchCase {
        table: DeliveriesTable::Engine,
        subscribers: 1,
        batches: 300,
    },
    DispatchCase {
        table: DeliveriesTable::Engine,
        subscribers: 10,
        batches: 60,
    },
    DispatchCase {
        table: DeliveriesTable::Fake,
        subscribers: 1,
        batches: 300,
    },
    DispatchCase {
        table: DeliveriesTable::Fake,
        subscribers: 10,
        batches: 60,
    },
];

/// The batches of `dispatch`.
const DISPATCH_BATCHES: JobBatches = JobBatches {
    accounts: &["acme"],
    records: 100,
    padding: 0,
};

/// CPU time and rate of deliveries, with a real engine and with a fake table that accepts every
/// write at once. The fake shows the rate that the dispatcher alone can reach.
pub async fn dispatch(built: &Built) {
    println!("\ndispatch: batches of 100 records, tables and an endpoint in other processes");
    println!(
        "| tables | subscribers | CPU-s per 1,000 | baseline | ratio | engine, CPU-s per 1,000 \
         | deliveries/s | baseline/s | peak MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let receiver = Receiver::start();
    for case in DISPATCH_CASES {
        measure_dispatch(built, &receiver, &case).await;
    }
}

async fn measure_dispatch(built: &Built, receiver: &Receiver, case: &DispatchCase) {
    let baseline = baseline::measure(&format!("{}/ok", receiver.url), BASELINE_REQUESTS);
    let mut platform = Platform::start().await;
    subscribe_all(&platform, receiver, "acme", case.subscribers).await;
    let mut function = Function::start(&built.dispatch, &platform.environment()).await;
    // The first attempt to each endpoint is a probe.
    warm_up(&mut function, DISPATCH_BATCHES.create(0, 3)).await;
    if case.table == DeliveriesTable::Fake {
        platform.fake_deliveries_table();
        function = Function::start(&built.dispatch, &platform.environment()).await;
    }
    // Open the connections.
    warm_up(&mut function, DISPATCH_BATCHES.create(300, 3)).await;
    let cost = measure_batches(
        &mut function,
        &platform.engine,
        receiver,
        DISPATCH_BATCHES.create(1_000, case.batches),
        case.batches * DISPATCH_BATCHES.records * case.subscribers,
    )
    .await;
    let function_cpu = per_thousand(cost.function_cpu, cost.deliveries);
    let baseline_cpu = per_thousand(baseline.cpu, 1);
    println!(
        "| {} | {} | {function_cpu:.4} | {baseline_cpu:.4} | {:.2} | {:.4} | {:.0} | {:.0} | {} |",
        case.table.label(),
        case.subscribers,
        function_cpu / baseline_cpu,
        per_thousand(cost.engine_cpu, cost.deliveries),
        to_f64(cost.deliveries) / cost.duration.as_secs_f64(),
        baseline.rate,
        function.process.peak_memory(),
    );
}

/// Registers webhooks with an endpoint each.
async fn subscribe_all(platform: &Platform, receiver: &Receiver, account: &str, webhooks: usize) {
    for number in 0..webhooks {
        platform
            .subscribe(account, &format!("{}/ok/{number}", receiver.url))
            .await;
    }
}

/// A GET request as an event of API Gateway.
fn get_request(path: &str, api_key: &str) -> Bytes {
    let event = json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"authorization": format!("Bearer {api_key}"), "host": "api.example.com"},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api",
            "domainName": "api.example.com",
            "domainPrefix": "api",
            "http": {
                "method": "GET",
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "bench",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": "$default",
            "stage": "$default",
            "time": "23/Dec/2024:10:00:00 +0000",
            "timeEpoch": 1_734_948_000_000_u64,
        },
        "isBase64Encoded": false,
    });
    Bytes::from(event.to_string())
}

async fn create_api_key(platform: &Platform, account: &str) -> String {
    let key = ApiKey::from_random(&random::bytes());
    let account = AccountId::parse(account).expect("a name");
    platform
        .store
        .api_keys()
        .insert(&account, &key, Clock::system().now())
        .await
        .expect("the key is stored");
    key.expose().to_owned()
}

/// The time from the start of the process to its first response.
pub async fn cold_start(built: &Built) {
    println!("\ncold_start: from spawn to the first response, over {STARTS} starts");
    println!("| function | median ms | worst ms |");
    println!("|---|---|---|");
    let receiver = Receiver::start();
    let platform = Platform::start().await;
    platform
        .subscribe("acme", &format!("{}/ok", receiver.url))
        .await;
    let api_key = create_api_key(&platform, "acme").await;
    let api_events = vec![get_request("/api/v1/webhooks", &api_key); STARTS];
    measure_cold_starts("api", &built.api, &platform, api_events).await;
    let batches = JobBatches {
        accounts: &["acme"],
        records: 1,
        padding: 0,
    };
    let dispatch_events = batches.create(0, STARTS);
    measure_cold_starts("dispatch", &built.dispatch, &platform, dispatch_events).await;
}

/// Starts the function once for each event.
async fn measure_cold_starts(name: &str, binary: &str, platform: &Platform, events: Vec<Bytes>) {
    let mut durations = Vec::new();
    for event in events {
        let started = process_stats::now();
        let mut function = Function::start(binary, &platform.environment()).await;
        function.invoke(event).await;
        durations.push(started.elapsed());
    }
    println!(
        "| {name} | {:.1} | {:.1} |",
        percentile(&mut durations, 50),
        percentile(&mut durations, 100)
    );
}

/// How fast an account lists its ten webhooks, without and with 100,000 webhooks of other accounts.
pub async fn list(built: &Built) {
    println!("\nlist: GET /api/v1/webhooks with {OWN_WEBHOOKS} webhooks, sequential requests");
    println!("| webhooks of other accounts | requests/s | p50 ms | p99 ms | CPU-s per 1,000 |");
    println!("|---|---|---|---|---|");
    let platform = Platform::start().await;
    for number in 0..OWN_WEBHOOKS {
        platform
            .subscribe("acme", &format!("https://example.com/{number}"))
            .await;
    }
    let api_key = create_api_key(&platform, "acme").await;
    for other_webhooks in [0, 100_000] {
        platform.fill_other_accounts(other_webhooks).await;
        measure_list(built, &platform, &api_key, other_webhooks).await;
    }
}

async fn measure_list(built: &Built, platform: &Platform, api_key: &str, other_webhooks: usize) {
    let request = get_request("/api/v1/webhooks", api_key);
    let mut function = Function::start(&built.api, &platform.environment()).await;
    let response = function.invoke(request.clone()).await;
    assert_eq!(count_listed(&response), OWN_WEBHOOKS);
    let cpu_before = function.process.cpu();
    let started = process_stats::now();
    let mut durations = measure_requests(&mut function, &request, LIST_REQUESTS).await;
    let requests_per_second = to_f64(LIST_REQUESTS) / started.elapsed().as_secs_f64();
    let cpu = function.process.cpu_since(cpu_before);
    println!(
        "| {other_webhooks} | {requests_per_second:.0} | {:.2} | {:.2} | {:.4} |",
        percentile(&mut durations, 50),
        percentile(&mut durations, 99),
        per_thousand(cpu, LIST_REQUESTS),
    );
}

/// Invokes the function with a request again and again. Returns the duration of each invocation.
async fn measure_requests(
    function: &mut Function,
    request: &Bytes,
    requests: usize,
) -> Vec<Duration> {
    let mut durations = Vec::new();
    for _ in 0..requests {
        let started = process_stats::now();
        function.invoke(request.clone()).await;
        durations.push(started.elapsed());
    }
    durations
}

/// The length of the list in a response of the API function.
fn count_listed(response: &[u8]) -> usize {
    let response: Value = serde_json::from_slice(response).expect("the response is JSON");
    let body = response["body"].as_str().expect("the body is text");
    let body: Value = serde_json::from_str(body).expect("the body is JSON");
    body["data"].as_array().expect("the data is a list").len()
}

/// One row of the table of `growth`.
struct GrowthCase {
    accounts: usize,
    webhooks: usize,
    padding: usize,
    batches: usize,
    records: usize,
}

const GROWTH_BASE: GrowthCase = GrowthCase {
    accounts: 1,
    webhooks: 1,
    padding: 0,
    batches: 100,
    records: 100,
};

const GROWTH_CASES: [GrowthCase; 7] = [
    GROWTH_BASE,
    GrowthCase {
        accounts: 100,
        ..GROWTH_BASE
    },
    GrowthCase {
        accounts: 10_000,
        ..GROWTH_BASE
    },
    GrowthCase {
        webhooks: 10,
        batches: 30,
        ..GROWTH_BASE
    },
    GrowthCase {
        webhooks: 50,
        batches: 10,
        ..GROWTH_BASE
    },
    GrowthCase {
        padding: 10_000,
        batches: 60,
        ..GROWTH_BASE
    },
    GrowthCase {
        padding: 200_000,
        batches: 40,
        records: 25,
        ..GROWTH_BASE
    },
];

/// How costs grow with the number of accounts and webhooks, the size of payloads and the length of
/// the delivery log.
pub async fn growth(built: &Built) {
    println!("\ngrowth: CPU-s per 1,000 deliveries");
    println!("| accounts, in turn | webhooks each | body, bytes | dispatch | engine |");
    println!("|---|---|---|---|---|");
    let receiver = Receiver::start();
    for case in GROWTH_CASES {
        measure_growth(built, &receiver, &case).await;
    }
    measure_log_growth(built, &receiver).await;
}

async fn measure_growth(built: &Built, receiver: &Receiver, case: &GrowthCase) {
    let platform = Platform::start().await;
    let accounts: Vec<_> = (0..case.accounts)
        .map(|number| format!("account-{number}"))
        .collect();
    let accounts: Vec<_> = accounts.iter().map(String::as_str).collect();
    for account in &accounts {
        subscribe_all(&platform, receiver, account, case.webhooks).await;
    }
    let batches = JobBatches {
        accounts: &accounts,
        records: case.records,
        padding: case.padding,
    };
    let mut function = Function::start(&built.dispatch, &platform.environment()).await;
    // The first attempt to each endpoint is a probe.
    let probe_batches = case.accounts.div_ceil(case.records).max(2);
    warm_up(&mut function, batches.create(0, probe_batches)).await;
    let cost = measure_batches(
        &mut function,
        &platform.engine,
        receiver,
        batches.create(1_000_000, case.batches),
        case.batches * case.records * case.webhooks,
    )
    .await;
    println!(
        "| {} | {} | {} | {:.4} | {:.4} |",
        case.accounts,
        case.webhooks,
        platform::payload(case.padding).len(),
        per_thousand(cost.function_cpu, cost.deliveries),
        per_thousand(cost.engine_cpu, cost.deliveries),
    );
}

/// Measures the time to list the latest 50 deliveries.
async fn measure_log_growth(built: &Built, receiver: &Receiver) {
    println!("\n| deliveries in the log | list the latest 50, p50 ms |");
    println!("|---|---|");
    let platform = Platform::start().await;
    platform
        .subscribe("acme", &format!("{}/ok", receiver.url))
        .await;
    let api_key = create_api_key(&platform, "acme").await;
    let request = get_request("/api/v1/webhooks/1/deliveries", &api_key);
    let mut dispatcher = Function::start(&built.dispatch, &platform.environment()).await;
    let mut api = Function::start(&built.api, &platform.environment()).await;
    let mut stored = 0;
    for log_length in [100, 100_000, 1_000_000] {
        if stored == 0 {
            warm_up(&mut dispatcher, DISPATCH_BATCHES.create(0, 1)).await;
        } else {
            platform.fill_delivery_log(stored, log_length).await;
        }
        stored = log_length;
        let mut durations = measure_requests(&mut api, &request, LOG_REQUESTS).await;
        let measured = &mut durations[LOG_WARM_UP_REQUESTS..];
        println!("| {log_length} | {:.2} |", percentile(measured, 50));
    }
}
