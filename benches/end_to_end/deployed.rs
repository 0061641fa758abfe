//! The functions as they are deployed.

use std::time::Duration;

use hyper::body::Bytes;
use nano_webhooks::clock::Clock;
use nano_webhooks::random;
use nano_webhooks_core::{account_id::AccountId, api_key::ApiKey};
use serde_json::{Value, json};

use super::{
    Built, baseline, float,
    lambda::Function,
    per_thousand, percentile,
    platform::{self, Platform},
    process_stats::{self, Process},
    receiver::Receiver,
};

/// The cost of a run of batches.
struct Cost {
    deliveries: usize,
    function: Duration,
    engine: Duration,
    took: Duration,
}

/// Invokes the function with one batch after the other, and checks that every delivery arrived.
async fn run_batches(
    function: &mut Function,
    engine: &Process,
    receiver: &Receiver,
    batches: Vec<Bytes>,
    deliveries: usize,
) -> Cost {
    let expected = receiver.count() + deliveries;
    let (cpu, engine_cpu, started) = (function.process.cpu(), engine.cpu(), process_stats::now());
    for batch in batches {
        assert_eq!(function.invoke(batch).await, r#"{"batchItemFailures":[]}"#);
    }
    let took = started.elapsed();
    assert_eq!(receiver.count(), expected, "each once");
    let difference =
        |before: Duration, after: Duration| after.checked_sub(before).expect("CPU time only grows");
    Cost {
        deliveries,
        function: difference(cpu, function.process.cpu()),
        engine: difference(engine_cpu, engine.cpu()),
        took,
    }
}

/// CPU time and rate of deliveries, with a real engine and with a fake table that accepts every
/// write at once. The fake shows the rate that the dispatcher alone can reach.
pub async fn dispatch(built: &Built) {
    println!("\ndispatch: batches of 100 records, tables and an endpoint in other processes");
    println!(
        "| tables | subscribers | CPU-s per 1,000 | baseline | ratio | engine, CPU-s per 1,000 | deliveries/s | baseline/s | peak MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let receiver = Receiver::start();
    for (tables, subscribers, count) in [
        ("engine", 1, 300),
        ("engine", 10, 60),
        ("stand-in", 1, 300),
        ("stand-in", 10, 60),
    ] {
        let baseline = baseline::measure(&format!("{}/ok", receiver.url), 30_000);
        let mut platform = Platform::start().await;
        for n in 0..subscribers {
            platform
                .subscribe("acme", &format!("{}/ok/{n}", receiver.url))
                .await;
        }
        let mut function = Function::start(&built.dispatch, &platform.environment()).await;
        // The first attempt to each endpoint is a probe.
        for batch in platform::batches(0, 3, 100, &["acme"], 0) {
            function.invoke(batch).await;
        }
        if tables == "stand-in" {
            platform.fake_deliveries_table();
            function = Function::start(&built.dispatch, &platform.environment()).await;
        }
        // Open the connections.
        for batch in platform::batches(300, 3, 100, &["acme"], 0) {
            function.invoke(batch).await;
        }
        let batches = platform::batches(1_000, count, 100, &["acme"], 0);
        let cost = run_batches(
            &mut function,
            &platform.engine,
            &receiver,
            batches,
            count * 100 * subscribers,
        )
        .await;
        let (own, floor_cpu) = (
            per_thousand(cost.function, cost.deliveries),
            per_thousand(baseline.cpu, 1),
        );
        println!(
            "| {tables} | {subscribers} | {own:.4} | {floor_cpu:.4} | {:.2} | {:.4} | {:.0} | {:.0} | {} |",
            own / floor_cpu,
            per_thousand(cost.engine, cost.deliveries),
            float(cost.deliveries) / cost.took.as_secs_f64(),
            baseline.rate,
            function.process.peak_memory(),
        );
    }
}

/// An event of API Gateway.
fn request(method: &str, path: &str, key: &str) -> Bytes {
    let (raw_path, query) = path.split_once('?').unwrap_or((path, ""));
    let event = json!({
        "version": "2.0", "routeKey": "$default", "rawPath": raw_path, "rawQueryString": query,
        "headers": {"authorization": format!("Bearer {key}"), "host": "api.example.com"},
        "requestContext": {
            "accountId": "123456789012", "apiId": "api", "domainName": "api.example.com", "domainPrefix": "api",
            "http": {"method": method, "path": raw_path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "bench"},
            "requestId": "JKJaXmPLvHcESHA=", "routeKey": "$default", "stage": "$default",
            "time": "23/Dec/2024:10:00:00 +0000", "timeEpoch": 1_734_948_000_000_u64,
        },
        "isBase64Encoded": false,
    });
    Bytes::from(event.to_string())
}

async fn create_key(platform: &Platform, account: &str) -> String {
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
    println!("\ncold_start: from spawn to the first response, over 20 starts");
    println!("| function | median ms | worst ms |");
    println!("|---|---|---|");
    let (receiver, platform) = (Receiver::start(), Platform::start().await);
    platform
        .subscribe("acme", &format!("{}/ok", receiver.url))
        .await;
    let key = create_key(&platform, "acme").await;
    let listing = request("GET", "/api/v1/webhooks", &key);
    for (name, binary) in [("api", &built.api), ("dispatch", &built.dispatch)] {
        let mut took = Vec::new();
        for n in 0..20 {
            let event = match name {
                "api" => listing.clone(),
                _ => platform::batches(n, 1, 1, &["acme"], 0).remove(0),
            };
            let started = process_stats::now();
            let mut function = Function::start(binary, &platform.environment()).await;
            function.invoke(event).await;
            took.push(started.elapsed());
        }
        println!(
            "| {name} | {:.1} | {:.1} |",
            percentile(&mut took, 50),
            percentile(&mut took, 100)
        );
    }
}

/// How fast an account lists its ten webhooks, without and with 100,000 webhooks of other accounts.
pub async fn list(built: &Built) {
    println!("\nlist: GET /api/v1/webhooks with ten of one's own, one request after the other");
    println!("| others stored | requests/s | p50 ms | p99 ms | CPU-s per 1,000 |");
    println!("|---|---|---|---|---|");
    let platform = Platform::start().await;
    for n in 0..10 {
        platform
            .subscribe("acme", &format!("https://example.com/{n}"))
            .await;
    }
    let listing = request(
        "GET",
        "/api/v1/webhooks",
        &create_key(&platform, "acme").await,
    );
    for others in [0, 100_000] {
        platform.fill_other_accounts(others).await;
        let mut function = Function::start(&built.api, &platform.environment()).await;
        let response = function.invoke(listing.clone()).await;
        let body = serde_json::from_slice::<Value>(&response).expect("JSON")["body"]
            .as_str()
            .expect("text")
            .to_owned();
        let listed = serde_json::from_str::<Value>(&body).expect("JSON")["data"]
            .as_array()
            .expect("a list")
            .len();
        assert_eq!(listed, 10);
        let (cpu, started, mut took) = (function.process.cpu(), process_stats::now(), Vec::new());
        for _ in 0..3_000 {
            let sent = process_stats::now();
            function.invoke(listing.clone()).await;
            took.push(sent.elapsed());
        }
        println!(
            "| {others} | {:.0} | {:.2} | {:.2} | {:.4} |",
            float(took.len()) / started.elapsed().as_secs_f64(),
            percentile(&mut took, 50),
            percentile(&mut took, 99),
            per_thousand(
                function
                    .process
                    .cpu()
                    .checked_sub(cpu)
                    .expect("CPU time only grows"),
                took.len()
            ),
        );
    }
}

/// How costs grow with the number of accounts and webhooks, the size of payloads and the length of
/// the delivery log.
pub async fn growth(built: &Built) {
    println!("\ngrowth: CPU-s per 1,000 deliveries");
    println!("| accounts, by turns | webhooks | body | dispatch | engine |");
    println!("|---|---|---|---|---|");
    let receiver = Receiver::start();
    for (accounts, webhooks, padding, batches, records) in [
        (1_usize, 1, 0, 100, 100),
        (100, 1, 0, 100, 100),
        (10_000, 1, 0, 100, 100),
        (1, 10, 0, 30, 100),
        (1, 50, 0, 10, 100),
        (1, 1, 10_000, 60, 100),
        (1, 1, 200_000, 40, 25),
    ] {
        let platform = Platform::start().await;
        let names: Vec<_> = (0..accounts).map(|n| format!("account-{n}")).collect();
        for name in &names {
            for n in 0..webhooks {
                platform
                    .subscribe(name, &format!("{}/ok/{n}", receiver.url))
                    .await;
            }
        }
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let mut function = Function::start(&built.dispatch, &platform.environment()).await;
        // The first attempt to each endpoint is a probe.
        for batch in platform::batches(
            0,
            accounts.div_ceil(records).max(2),
            records,
            &names,
            padding,
        ) {
            function.invoke(batch).await;
        }
        let events = platform::batches(1_000_000, batches, records, &names, padding);
        let cost = run_batches(
            &mut function,
            &platform.engine,
            &receiver,
            events,
            batches * records * webhooks,
        )
        .await;
        println!(
            "| {accounts} | {webhooks} | {} | {:.4} | {:.4} |",
            platform::body(padding).len(),
            per_thousand(cost.function, cost.deliveries),
            per_thousand(cost.engine, cost.deliveries),
        );
    }
    list_growing_log(built, &receiver).await;
}

/// How long it takes to list the latest deliveries as the delivery log grows.
async fn list_growing_log(built: &Built, receiver: &Receiver) {
    println!("\n| deliveries in the log | list the latest 50, p50 ms |");
    println!("|---|---|");
    let platform = Platform::start().await;
    platform
        .subscribe("acme", &format!("{}/ok", receiver.url))
        .await;
    let listing = request(
        "GET",
        "/api/v1/webhooks/1/deliveries",
        &create_key(&platform, "acme").await,
    );
    let mut function = Function::start(&built.dispatch, &platform.environment()).await;
    let mut api = Function::start(&built.api, &platform.environment()).await;
    let mut stored = 0;
    for upto in [100, 100_000, 1_000_000] {
        if stored == 0 {
            for batch in platform::batches(0, 1, upto, &["acme"], 0) {
                function.invoke(batch).await;
            }
        } else {
            platform.fill_delivery_log(stored, upto).await;
        }
        stored = upto;
        let mut took = Vec::new();
        for _ in 0..200 {
            let sent = process_stats::now();
            api.invoke(listing.clone()).await;
            took.push(sent.elapsed());
        }
        println!("| {upto} | {:.2} |", percentile(&mut took[50..], 50));
    }
}
