//! The requests and units that DynamoDB bills for each path through the service. The engine counts
//! them, and `docs/COST.md` lists them. `UPDATE_COST=1` rewrites the table of that page.

use std::{fs, path::Path, time::Duration};

use nano_webhooks::clock::Deadline;
use serde_json::{Value, json};

use crate::support::{cost_fixture::CostFixture, engine::other_engine, proxy::ConsumedCapacity};

const PAGE: &str = "docs/COST.md";
const BEGIN: &str = "<!-- counted -->\n";
const END: &str = "<!-- /counted -->\n";

fn row(what: &str, per: f64, used: ConsumedCapacity) -> String {
    let number = |n: f64| {
        let n = (n * 10.0).round() / 10.0;
        if n.fract() == 0.0 {
            format!("{n:.0}")
        } else {
            format!("{n:.1}")
        }
    };
    let requests = f64::from(u32::try_from(used.requests).unwrap());
    format!(
        "| {what} | {} | {} | {} |\n",
        number(requests * per),
        number(used.read_units * per),
        number(used.write_units * per)
    )
}

async fn deliveries() -> String {
    let mut table =
        "| 1,000 deliveries | requests | read units | write units |\n|---|---|---|---|\n"
            .to_owned();
    let fixture = CostFixture::new(&["/ok"]).await;
    for (what, padding) in [
        ("one subscriber, a body of 250 bytes", 0),
        ("one subscriber, a body of 4 KB", 3_850),
        ("one subscriber, a body of 16 KB", 16_130),
        ("one subscriber, a body of 64 KB", 65_280),
    ] {
        fixture.end_jobs(padding, 100, padding).await;
        table += &row(what, 10.0, fixture.proxy.take_used());
    }
    fixture.end_jobs(500, 10, 0).await;
    table += &row(
        "one subscriber, batches of 10 instead of 100",
        100.0,
        fixture.proxy.take_used(),
    );

    let fixture = CostFixture::new(&["/ok"; 10]).await;
    fixture.end_jobs(0, 100, 0).await;
    table += &row("ten subscribers", 1.0, fixture.proxy.take_used());

    // One of ten endpoints returns 500 to the first attempt.
    let fixture = CostFixture::new(&[
        "/status/500",
        "/ok",
        "/ok",
        "/ok",
        "/ok",
        "/ok",
        "/ok",
        "/ok",
        "/ok",
        "/ok",
    ])
    .await;
    // The first failure also writes the endpoint's health.
    fixture.end_jobs(500, 1, 0).await;
    fixture.app.tables.timers();
    fixture.proxy.take_used();
    fixture.end_jobs(0, 100, 0).await;
    let fixed = json!({"url": fixture.receiver.url("/ok")});
    let first = fixture.proxy.take_used();
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
    table += &row("ten subscribers, one of which fails once", 1.0, both);

    fixture
        .dispatcher
        .sweep(Deadline::from_now(Duration::from_mins(1)))
        .await
        .unwrap();
    table += "\n| one scheduled job | requests | read units | write units |\n|---|---|---|---|\n";
    table += &row("sweep, nothing due", 1.0, fixture.proxy.take_used());
    fixture
        .dispatcher
        .advance(Deadline::from_now(Duration::from_mins(1)))
        .await
        .unwrap();
    table += &row("advance, no job", 1.0, fixture.proxy.take_used());
    table
}

async fn routes() -> String {
    let mut table =
        "| one API request | requests | read units | write units |\n|---|---|---|---|\n".to_owned();
    let fixture = CostFixture::new(&["/ok"; 10]).await;
    fixture.end_jobs(0, 100, 0).await;
    let app = &fixture.app;
    let list = app.get("/api/v1/webhooks/1/deliveries?limit=50").await;
    let delivery = list.json["data"][0]["event_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let delivery = format!("/api/v1/webhooks/1/deliveries/{delivery}");
    let create = fixture.webhook_body();
    let since = json!({"since": "2024-12-23T00:00:00Z"});
    let replay = app
        .send_json("POST", "/api/v1/webhooks/3/replay", &since)
        .await
        .header("location")
        .to_owned();
    fixture.proxy.take_used();
    let routes: [(&str, &str, &str, Value); 15] = [
        (
            "GET /webhooks, with ten",
            "GET",
            "/api/v1/webhooks",
            Value::Null,
        ),
        ("POST /webhooks", "POST", "/api/v1/webhooks", create),
        (
            "GET /webhooks/{id}",
            "GET",
            "/api/v1/webhooks/1",
            Value::Null,
        ),
        (
            "PATCH /webhooks/{id}",
            "PATCH",
            "/api/v1/webhooks/1",
            json!({"description": "changed"}),
        ),
        (
            "POST /webhooks/{id}/rotate-secret",
            "POST",
            "/api/v1/webhooks/1/rotate-secret",
            json!({}),
        ),
        (
            "POST /webhooks/{id}/test",
            "POST",
            "/api/v1/webhooks/1/test",
            json!({}),
        ),
        (
            "GET /webhooks/{id}/deliveries, 50 of 101",
            "GET",
            "/api/v1/webhooks/1/deliveries?limit=50",
            Value::Null,
        ),
        (
            "GET /webhooks/{id}/deliveries/{event_id}",
            "GET",
            &delivery,
            Value::Null,
        ),
        (
            "POST /webhooks/{id}/deliveries/{event_id}/retry",
            "POST",
            &format!("{delivery}/retry"),
            json!({}),
        ),
        (
            "POST /webhooks/{id}/replay, nothing failed",
            "POST",
            "/api/v1/webhooks/2/replay",
            since,
        ),
        (
            "GET /webhooks/{id}/replays/{replay}",
            "GET",
            &replay,
            Value::Null,
        ),
        (
            "DELETE /webhooks/{id}/replays/{replay}",
            "DELETE",
            &replay,
            Value::Null,
        ),
        (
            "DELETE /webhooks/{id}, nothing pending",
            "DELETE",
            "/api/v1/webhooks/11",
            Value::Null,
        ),
        (
            "a request with a wrong key",
            "GET",
            "/api/v1/webhooks",
            json!("wrong"),
        ),
        (
            "a request for another's webhook: 404",
            "GET",
            "/api/v1/webhooks/99",
            Value::Null,
        ),
    ];
    for (what, method, path, body) in routes {
        let response = match &body {
            Value::Null if method == "GET" => app.get(path).await,
            Value::Null => app.delete(path).await,
            Value::String(_) => app.get_with("sk-wrong", path).await,
            body => app.send_json(method, path, body).await,
        };
        let refused = what.contains("wrong key") || what.contains("404");
        assert_eq!(
            response.status.is_success(),
            !refused,
            "{what}: {}",
            response.text
        );
        table += &row(&format!("`{what}`"), 1.0, fixture.proxy.take_used());
    }
    table
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
    let counted = format!(
        "{}\n{}",
        Box::pin(deliveries()).await,
        Box::pin(routes()).await
    );
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
