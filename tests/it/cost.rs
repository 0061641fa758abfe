//! The requests and units that DynamoDB bills for each path through the service. The engine counts
//! them, and `docs/COST.md` lists them. `UPDATE_COST=1` rewrites the table of that page.

use std::{fs, path::Path, time::Duration};

use axum::http::StatusCode;
use nano_webhooks::clock::Deadline;
use serde_json::{Value, json};

use crate::support::{
    app::WEBHOOKS, cost_fixture::CostFixture, engine::other_engine, proxy::ConsumedCapacity,
};

const PAGE: &str = "docs/COST.md";
const BEGIN: &str = "<!-- counted -->\n";
const END: &str = "<!-- /counted -->\n";

fn row(what: &str, per: f64, used: ConsumedCapacity) -> String {
    let requests = f64::from(u32::try_from(used.requests).unwrap());
    format!(
        "| {what} | {} | {} | {} |\n",
        round_to_tenth(requests * per),
        round_to_tenth(used.read_units * per),
        round_to_tenth(used.write_units * per)
    )
}

/// The number with one decimal, which is left out if it is 0.
fn round_to_tenth(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

fn table_head(what: &str) -> String {
    format!("| {what} | requests | read units | write units |\n|---|---|---|---|\n")
}

async fn single_subscriber_rows() -> String {
    let fixture = CostFixture::new(&["/ok"]).await;
    let mut rows = String::new();
    for (what, padding) in [
        ("one subscriber, a body of 250 bytes", 0),
        ("one subscriber, a body of 4 KB", 3_850),
        ("one subscriber, a body of 16 KB", 16_130),
        ("one subscriber, a body of 64 KB", 65_280),
    ] {
        fixture.end_jobs(padding, 100, padding).await;
        rows += &row(what, 10.0, fixture.proxy.take_used());
    }
    fixture.end_jobs(500, 10, 0).await;
    rows += &row(
        "one subscriber, batches of 10 instead of 100",
        100.0,
        fixture.proxy.take_used(),
    );
    rows
}

async fn ten_subscribers_row() -> String {
    let fixture = CostFixture::new(&["/ok"; 10]).await;
    fixture.end_jobs(0, 100, 0).await;
    row("ten subscribers", 1.0, fixture.proxy.take_used())
}

/// One of ten endpoints returns 500 to the first attempt.
async fn failing_subscriber_row() -> String {
    let mut paths = ["/ok"; 10];
    paths[0] = "/status/500";
    let fixture = CostFixture::new(&paths).await;
    // The first failure also writes the endpoint's health.
    fixture.end_jobs(500, 1, 0).await;
    fixture.app.tables.timers();
    fixture.proxy.take_used();
    fixture.end_jobs(0, 100, 0).await;
    let first = fixture.proxy.take_used();
    let fixed = json!({"url": fixture.receiver.url("/ok")});
    fixture
        .app
        .send_json("PATCH", "/api/v1/webhooks/1", &fixed)
        .await;
    fixture.proxy.take_used();
    fixture.retry_all().await;
    let second = fixture.proxy.take_used();
    let both = ConsumedCapacity {
        requests: first.requests + second.requests,
        read_units: first.read_units + second.read_units,
        write_units: first.write_units + second.write_units,
    };
    row("ten subscribers, one of which fails once", 1.0, both)
}

async fn scheduled_job_rows() -> String {
    let fixture = CostFixture::new(&["/ok"]).await;
    let minute = Deadline::from_now(Duration::from_mins(1));
    fixture.dispatcher.sweep(minute).await.unwrap();
    let sweep = row("sweep, nothing due", 1.0, fixture.proxy.take_used());
    fixture.dispatcher.advance(minute).await.unwrap();
    sweep + &row("advance, no job", 1.0, fixture.proxy.take_used())
}

/// An account with ten webhooks and 101 deliveries of each, whose requests become rows.
struct RouteTable {
    fixture: CostFixture,
    rows: String,
}

impl RouteTable {
    async fn new() -> Self {
        let fixture = CostFixture::new(&["/ok"; 10]).await;
        fixture.end_jobs(0, 100, 0).await;
        fixture.proxy.take_used();
        Self {
            fixture,
            rows: String::new(),
        }
    }

    fn add_row(&mut self, what: &str) {
        let used = self.fixture.proxy.take_used();
        self.rows += &row(&format!("`{what}`"), 1.0, used);
    }

    async fn get(&mut self, what: &str, path: &str) {
        let response = self.fixture.app.get(path).await;
        assert_eq!(response.status, StatusCode::OK, "{what}: {}", response.text);
        self.add_row(what);
    }

    async fn delete(&mut self, what: &str, path: &str) {
        let response = self.fixture.app.delete(path).await;
        assert_eq!(response.status, StatusCode::OK, "{what}: {}", response.text);
        self.add_row(what);
    }

    async fn send(&mut self, what: &str, method: &str, path: &str, body: Value) {
        let response = self.fixture.app.send_json(method, path, &body).await;
        let is_success = response.status.is_success();
        assert!(is_success, "{what}: {}", response.text);
        self.add_row(what);
    }

    async fn add_webhook_rows(&mut self) {
        let webhook = "/api/v1/webhooks/1";
        let rotate = format!("{webhook}/rotate-secret");
        let test = format!("{webhook}/test");
        let create = self.fixture.webhook_body();
        let change = json!({"description": "changed"});
        self.get("GET /webhooks, with ten", WEBHOOKS).await;
        self.send("POST /webhooks", "POST", WEBHOOKS, create).await;
        self.get("GET /webhooks/{id}", webhook).await;
        self.send("PATCH /webhooks/{id}", "PATCH", webhook, change)
            .await;
        let what = "POST /webhooks/{id}/rotate-secret";
        self.send(what, "POST", &rotate, json!({})).await;
        let what = "POST /webhooks/{id}/test";
        self.send(what, "POST", &test, json!({})).await;
    }

    async fn add_delivery_rows(&mut self) {
        let list = "/api/v1/webhooks/1/deliveries?limit=50";
        let listed = self.fixture.app.get(list).await;
        self.fixture.proxy.take_used();
        let event = listed.json["data"][0]["event_id"].as_str().unwrap();
        let delivery = format!("/api/v1/webhooks/1/deliveries/{event}");
        self.get("GET /webhooks/{id}/deliveries, 50 of 101", list)
            .await;
        self.get("GET /webhooks/{id}/deliveries/{event_id}", &delivery)
            .await;
        let what = "POST /webhooks/{id}/deliveries/{event_id}/retry";
        self.send(what, "POST", &format!("{delivery}/retry"), json!({}))
            .await;
    }

    async fn add_replay_rows(&mut self) {
        let since = json!({"since": "2024-12-23T00:00:00Z"});
        let created = self
            .fixture
            .app
            .send_json("POST", "/api/v1/webhooks/3/replay", &since)
            .await;
        self.fixture.proxy.take_used();
        let what = "POST /webhooks/{id}/replay, nothing failed";
        self.send(what, "POST", "/api/v1/webhooks/2/replay", since)
            .await;
        let replay = created.header("location");
        self.get("GET /webhooks/{id}/replays/{replay}", replay)
            .await;
        self.delete("DELETE /webhooks/{id}/replays/{replay}", replay)
            .await;
    }

    async fn add_refusal_rows(&mut self) {
        let app = &self.fixture.app;
        let refused = app.get_with("sk-wrong", WEBHOOKS).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        self.add_row("a request with a wrong key");
        let refused = self.fixture.app.get("/api/v1/webhooks/99").await;
        assert_eq!(refused.status, StatusCode::NOT_FOUND);
        self.add_row("a request for another's webhook: 404");
    }
}

async fn route_rows() -> String {
    let mut table = RouteTable::new().await;
    table.add_webhook_rows().await;
    table.add_delivery_rows().await;
    table.add_replay_rows().await;
    let what = "DELETE /webhooks/{id}, nothing pending";
    table.delete(what, "/api/v1/webhooks/11").await;
    table.add_refusal_rows().await;
    table.rows
}

/// A table without its units.
fn requests(table: &str) -> Vec<String> {
    table
        .lines()
        .map(|line| line.split(" | ").take(2).collect::<Vec<_>>().join(" | "))
        .collect()
}

/// docs/COST.md has the units that the engine consumes.
#[tokio::test]
async fn cost_page_matches_consumed_units() {
    let counted = [
        table_head("1,000 deliveries"),
        single_subscriber_rows().await,
        ten_subscribers_row().await,
        failing_subscriber_row().await,
        "\n".to_owned(),
        table_head("one scheduled job"),
        scheduled_job_rows().await,
        "\n".to_owned(),
        table_head("one API request"),
        route_rows().await,
    ]
    .concat();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (written, after) = rest.split_once(END).unwrap();
    if other_engine().is_some() {
        // DynamoDB bills reads of missing items, which DynamoDB Local does not count.
        return assert_eq!(requests(written), requests(&counted));
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the variable asks for an update of the page"
    )]
    if std::env::var("UPDATE_COST").is_ok() {
        return fs::write(&path, format!("{before}{BEGIN}{counted}{END}{after}")).unwrap();
    }
    assert_eq!(
        written, counted,
        "{PAGE} is outdated: run UPDATE_COST=1 cargo test --test it cost"
    );
}
