//! Replays: deliveries that failed in a time window are sent again, once, paced, and counted.

use std::{collections::HashSet, time::Duration};

use aws_sdk_dynamodb::types::AttributeValue;
use axum::http::StatusCode;
use nano_webhooks::{
    aws,
    dispatch::redrive::{RedriveOutcome, redrive},
    store::replays::{INITIAL_STEP_SIZE, READS_PER_MINUTE},
};
use nano_webhooks_cli::local_client;
use nano_webhooks_core::{delivery::DeliveryState, webhook::WebhookId};
use serde_json::json;

use crate::support::{
    app::NO_LIMITS,
    poison_fixture::{DAY, RETENTION},
    proxy::{Fault, Proxy},
    replay_fixture::{ReplayFixture, SINCE, WEBHOOK},
    stream::{dispatch_batch, insert_record, job_image},
};

fn done(counts: [u64; 4]) -> (String, [u64; 4]) {
    ("done".to_owned(), counts)
}

/// Deletes the item of a replay, as TTL does.
async fn delete_replay(fixture: &ReplayFixture, replay: &str) {
    let tables = &fixture.app.tables;
    let id = replay.rsplit('/').next().unwrap();
    let delete = tables.client.delete_item();
    delete
        .table_name(&tables.names.webhooks)
        .key("PK", AttributeValue::S("ACCOUNT#acme".to_owned()))
        .key("SK", AttributeValue::S(format!("REPLAY#0000000001#{id}")))
        .send()
        .await
        .unwrap();
}

/// Failed deliveries are sent again with their ids, paced, and counted.
#[tokio::test]
async fn failed_deliveries_are_replayed() {
    let fixture = ReplayFixture::new(3).await;
    fixture.fix_endpoint().await;
    let response = fixture.replay(json!({"since": SINCE})).await;
    assert_eq!(response.status, StatusCode::ACCEPTED);
    let location = response.header("location").to_owned();
    let data = &response.json["data"];
    assert_eq!(
        location,
        format!("{WEBHOOK}/replays/{}", data["id"].as_str().unwrap())
    );
    let now = fixture.app.clock.now();
    let id = data["id"].clone();
    assert_eq!(
        data,
        &json!({
            "id": id, "state": "running", "since": SINCE, "until": now.to_rfc3339(),
            "found": 3, "sent": 3, "delivered": 0, "failed": 0,
        })
    );
    let timers = fixture.retry_all().await;
    let waits: Vec<_> = timers
        .iter()
        .map(|timer| timer.due.saturating_duration_since(now).as_millis())
        .collect();
    assert_eq!(waits, [200, 400, 600], "the endpoint is not flooded");
    assert_eq!(fixture.progress(&location).await, done([3, 3, 3, 0]));
    let received = fixture.received_at("/ok");
    assert!(
        received
            .iter()
            .all(|received| received.header("x-nano-attempt") == "3")
    );
    let before: HashSet<_> = fixture
        .received_at("/status/500")
        .iter()
        .map(|received| received.header("webhook-id").to_owned())
        .collect();
    assert!(
        received
            .iter()
            .all(|received| before.contains(received.header("webhook-id")))
            && before.len() == 3
    );
    for event in before {
        assert_eq!(
            fixture.delivery(&event).await.state,
            DeliveryState::Delivered
        );
    }
    let again = fixture.start_replay(json!({"since": SINCE})).await;
    assert_eq!(
        fixture.progress(&again).await,
        done([0, 0, 0, 0]),
        "the window has no failed delivery left"
    );
}

/// A replayed delivery that fails again is counted and keeps its state.
#[tokio::test]
async fn failed_replay_restores_state() {
    let fixture = ReplayFixture::new(2).await;
    let replay = fixture
        .start_replay(json!({"since": SINCE, "status": "failed"}))
        .await;
    assert_eq!(fixture.retry_all().await.len(), 2);
    assert_eq!(fixture.progress(&replay).await, done([2, 2, 0, 2]));
    assert!(
        fixture.app.tables.timers().is_empty(),
        "the schedule does not restart"
    );
    for received in fixture.receiver.received() {
        assert_eq!(
            fixture.delivery(received.header("webhook-id")).await.state,
            DeliveryState::Failed
        );
    }
}

/// The filter `all` includes delivered ones, and the window is respected.
#[tokio::test]
async fn filter_and_window_are_respected() {
    let fixture = ReplayFixture::new(1).await;
    fixture.fix_endpoint().await;
    assert_eq!(
        dispatch_batch(
            &fixture.dispatcher,
            &[insert_record(7, job_image("t7", "completed"))]
        )
        .await,
        []
    );
    for (window, found) in [
        (json!({"since": SINCE, "status": "all"}), 2),
        (json!({"since": "2024-12-23T10:00:01Z", "status": "all"}), 0),
        (
            json!({"since": SINCE, "until": "2024-12-23T09:59:59Z", "status": "all"}),
            0,
        ),
        (
            json!({
                "since": "2024-12-23T11:00:00+01:00",
                "until": "2024-12-23T10:00:00.001Z",
                "status": "all",
            }),
            2,
        ),
    ] {
        let replay = fixture.start_replay(window.clone()).await;
        fixture.retry_all().await;
        assert_eq!(
            fixture.progress(&replay).await,
            done([found, found, found, 0]),
            "{window}"
        );
    }
}

/// A long replay advances every minute; crashes and concurrent runs repeat and lose nothing.
#[tokio::test]
async fn long_replay_survives_crashes() {
    let all = INITIAL_STEP_SIZE + READS_PER_MINUTE + 40;
    let fixture = ReplayFixture::new(all).await;
    fixture.fix_endpoint().await;
    let replay = fixture.start_replay(json!({"since": SINCE})).await;
    assert_eq!(
        fixture.progress(&replay).await.1[1],
        INITIAL_STEP_SIZE as u64
    );
    let refused = fixture.replay(json!({"since": SINCE})).await;
    let (status, code, _) = refused.error();
    assert_eq!(
        (status, code),
        (409, "conflict"),
        "a webhook has one replay at a time"
    );

    let mut timers = fixture.app.tables.timers();
    // The messages of the first runs are lost; a sweep finds their deliveries.
    tokio::join!(fixture.advance(), fixture.advance());
    drop(fixture.app.tables.timers());
    // The run that started later can find more deliveries.
    let sent = fixture.progress(&replay).await.1[1];
    assert!(
        ((INITIAL_STEP_SIZE + READS_PER_MINUTE) as u64..=all as u64).contains(&sent),
        "{sent}"
    );
    fixture.advance().await;
    timers.extend(fixture.app.tables.timers());
    assert_eq!(fixture.progress(&replay).await.1[1], all as u64);
    fixture.app.clock.advance(Duration::from_mins(30));
    fixture.sweep().await;
    timers.extend(fixture.app.tables.timers());
    for timer in timers {
        fixture.dispatcher.retry(&timer.message).await.unwrap();
    }
    assert_eq!(
        fixture.progress(&replay).await,
        done([all as u64, all as u64, all as u64, 0])
    );
    let heard: HashSet<_> = fixture
        .received_at("/ok")
        .iter()
        .map(|received| received.header("webhook-id").to_owned())
        .collect();
    assert_eq!(
        (heard.len(), fixture.received_at("/ok").len()),
        (all, all),
        "each event is sent once"
    );
}

/// A cancelled replay sends nothing more.
#[tokio::test]
async fn cancelled_replay_sends_nothing() {
    let fixture = ReplayFixture::new(INITIAL_STEP_SIZE + 5).await;
    fixture.fix_endpoint().await;
    let replay = fixture.start_replay(json!({"since": SINCE})).await;
    let mut timers = fixture.app.tables.timers();
    fixture.app.clock.advance(Duration::from_mins(10));
    let first = timers.remove(0);
    fixture.dispatcher.retry(&first.message).await.unwrap();
    let cancelled = fixture.app.send_json("DELETE", &replay, &json!({})).await;
    assert_eq!(
        (cancelled.status, &cancelled.json["data"]["state"]),
        (StatusCode::OK, &json!("cancelled"))
    );
    for timer in timers {
        fixture.dispatcher.retry(&timer.message).await.unwrap();
        assert_eq!(
            fixture
                .delivery(timer.message.key.event.as_str())
                .await
                .state,
            DeliveryState::Failed
        );
    }
    assert_eq!(fixture.advance().await, 0);
    assert_eq!(fixture.received_at("/ok").len(), 1);
    let (state, [_, _, delivered, failed]) = fixture.progress(&replay).await;
    assert_eq!((state.as_str(), delivered, failed), ("cancelled", 1, 0));

    let next = fixture.start_replay(json!({"since": SINCE})).await;
    fixture.retry_all().await;
    fixture.advance().await;
    fixture.retry_all().await;
    let rest = (INITIAL_STEP_SIZE + 4) as u64;
    assert_eq!(
        fixture.progress(&next).await,
        done([rest, rest, rest, 0]),
        "another replay can start"
    );
    let too_late = fixture.app.send_json("DELETE", &next, &json!({})).await;
    assert_eq!(too_late.json["data"]["state"], "done");
}

/// Each delivery of a cancelled replay leaves it when it comes up, without an attempt. The replay
/// counts only what was attempted, and ends after the last one.
#[tokio::test]
async fn unattempted_delivery_leaves_cancelled_replay() {
    let fixture = ReplayFixture::new(4).await;
    fixture.fix_endpoint().await;
    let replay = fixture.start_replay(json!({"since": SINCE})).await;
    let timers = fixture.app.tables.timers();
    fixture.app.clock.advance(Duration::from_mins(1));
    fixture.retry(&timers[0]).await;
    fixture.app.send_json("DELETE", &replay, &json!({})).await;
    for (scheduled, timer) in [(3, &timers[1]), (2, &timers[2])] {
        fixture.retry(timer).await;
        // A second message for the same delivery changes nothing.
        fixture.retry(timer).await;
        assert_eq!(
            fixture.progress(&replay).await,
            ("cancelled".to_owned(), [4, scheduled, 1, 0])
        );
        fixture.advance().await;
        assert_eq!(fixture.app.tables.items_under("REPLAY").await.len(), 1);
    }
    fixture.retry(&timers[3]).await;
    fixture.advance().await;
    assert_eq!(
        fixture.progress(&replay).await,
        ("cancelled".to_owned(), [4, 1, 1, 0])
    );
    let markers = fixture.app.tables.items_under("REPLAY").await;
    assert_eq!(markers, [], "the replay ends");
    for timer in &timers[1..] {
        let delivery = fixture.delivery(timer.message.key.event.as_str()).await;
        assert_eq!(delivery.state, DeliveryState::Failed);
        assert_eq!((delivery.attempt_count, delivery.replay), (2, None));
    }
}

/// A delivery that was recorded while its webhook could not be read, and that the webhook does not
/// subscribe to, leaves its replay without an attempt. The replay ends as done.
#[tokio::test]
async fn unsubscribed_delivery_leaves_replay() {
    let fixture = ReplayFixture::new(2).await;
    fixture.fix_endpoint().await;
    let webhook = WebhookId::new(1).unwrap();
    let tables = &fixture.app.tables;
    let whole = tables.break_webhook("acme", webhook).await;
    let unsubscribed = insert_record(7, job_image("t7", "failed"));
    assert_eq!(
        dispatch_batch(&fixture.dispatcher, &[unsubscribed]).await,
        []
    );
    tables.put_webhooks_item(whole).await;
    let page = tables.store.poison().list_page(DAY, None, 10).await;
    let poison = page.unwrap().records.pop().unwrap();
    let now = fixture.app.clock.now();
    let resumed = redrive(&tables.store, None, &poison, now, now, RETENTION).await;
    assert!(matches!(
        resumed.unwrap(),
        RedriveOutcome::WebhookResumed(_)
    ));
    fixture.advance().await;
    let resumed = fixture.retry_all().await;
    let event = resumed[0].message.key.event.as_str();
    assert_eq!(
        fixture.delivery(event).await.state,
        DeliveryState::Cancelled,
        "the webhook does not subscribe to the event"
    );

    let all = json!({"since": SINCE, "status": "all"});
    let replay = fixture.start_replay(all).await;
    assert_eq!(
        fixture.progress(&replay).await,
        ("running".to_owned(), [3, 3, 0, 0])
    );
    assert_eq!(fixture.retry_all().await.len(), 3);
    assert_eq!(fixture.progress(&replay).await, done([3, 2, 2, 0]));
    let delivery = fixture.delivery(event).await;
    assert_eq!(delivery.state, DeliveryState::Cancelled);
    assert_eq!((delivery.attempt_count, delivery.replay), (0, None));
    assert_eq!(fixture.received_at("/ok").len(), 2);
    fixture.advance().await;
    assert_eq!(fixture.app.tables.items_under("REPLAY").await, []);
}

/// A replay that expired counts nothing more. Its deliveries are sent and recorded.
#[tokio::test]
async fn delivery_of_expired_replay_is_recorded() {
    let fixture = ReplayFixture::new(1).await;
    fixture.fix_endpoint().await;
    let replay = fixture.start_replay(json!({"since": SINCE})).await;
    delete_replay(&fixture, &replay).await;
    let timers = fixture.retry_all().await;
    let delivery = fixture.delivery(timers[0].message.key.event.as_str()).await;
    assert_eq!(delivery.state, DeliveryState::Delivered);
    assert_eq!(fixture.app.get(&replay).await.status, StatusCode::NOT_FOUND);
}

/// After a cancelled replay the next one can start once nothing of it is due.
#[tokio::test]
async fn cancelled_replay_frees_webhook() {
    let fixture = ReplayFixture::new(3).await;
    fixture.fix_endpoint().await;
    let first = fixture.start_replay(json!({"since": SINCE})).await;
    let timers = fixture.app.tables.timers();
    fixture.app.send_json("DELETE", &first, &json!({})).await;
    let refused = fixture.replay(json!({"since": SINCE})).await;
    let (status, _, message) = refused.error();
    assert_eq!(status, 409, "deliveries of the first replay are still due");
    assert!(
        message.contains(first.rsplit('/').next().unwrap()),
        "{message}"
    );
    fixture.app.clock.advance(Duration::from_mins(1));
    for timer in timers {
        fixture.dispatcher.retry(&timer.message).await.unwrap();
    }
    let second = fixture.start_replay(json!({"since": SINCE})).await;
    fixture.retry_all().await;
    assert_eq!(fixture.progress(&second).await, done([3, 3, 3, 0]));
    assert_eq!(fixture.received_at("/ok").len(), 3);
}

/// A delivery with a manual retry leaves its replay, which ends without it.
#[tokio::test]
async fn manual_retry_leaves_replay() {
    let fixture = ReplayFixture::new(3).await;
    fixture.fix_endpoint().await;
    let replay = fixture.start_replay(json!({"since": SINCE})).await;
    let timers = fixture.app.tables.timers();
    let by_hand = &timers[0].message.key.event;
    let retried = fixture
        .app
        .post_to(&format!("{WEBHOOK}/deliveries/{by_hand}/retry"))
        .await;
    assert_eq!(retried.status, StatusCode::ACCEPTED, "{}", retried.text);
    fixture.app.send_json("DELETE", &replay, &json!({})).await;
    fixture.app.clock.advance(Duration::from_mins(1));
    for timer in fixture.app.tables.timers().iter().chain(&timers) {
        fixture.dispatcher.retry(&timer.message).await.unwrap();
    }
    assert_eq!(
        fixture.delivery(by_hand.as_str()).await.state,
        DeliveryState::Delivered,
        "the manual retry is made"
    );
    assert_eq!(fixture.received_at("/ok").len(), 1);
    assert_eq!(
        fixture.progress(&replay).await,
        ("cancelled".to_owned(), [3, 0, 0, 0])
    );
}

/// A manual retry that is concurrent with a step does not remove the delivery from its replay.
#[tokio::test]
async fn concurrent_retry_keeps_replay() {
    let fixture = ReplayFixture::new(1).await;
    fixture.fix_endpoint().await;
    let listed = fixture.app.get(&format!("{WEBHOOK}/deliveries")).await;
    let event = listed.json["data"][0]["event_id"].as_str().unwrap();
    let read = fixture.delivery(event).await;
    let replay = fixture.start_replay(json!({"since": SINCE})).await;
    let crossed = fixture
        .app
        .tables
        .store
        .leases()
        .schedule_retry(&read, fixture.app.clock.now(), Duration::from_hours(1))
        .await
        .unwrap();
    assert!(
        crossed.is_none(),
        "the delivery has changed since it was read"
    );
    fixture.retry_all().await;
    assert_eq!(fixture.progress(&replay).await, done([1, 1, 1, 0]));
}

/// A replay waits while its webhook is disabled and continues when it is enabled.
#[tokio::test]
async fn replay_waits_for_disabled_webhook() {
    let all = INITIAL_STEP_SIZE + 5;
    let fixture = ReplayFixture::new(all).await;
    fixture.fix_endpoint().await;
    let replay = fixture.start_replay(json!({"since": SINCE})).await;
    let first_step = INITIAL_STEP_SIZE as u64;
    fixture
        .app
        .send_json("PATCH", WEBHOOK, &json!({"status": "disabled"}))
        .await;
    fixture.retry_all().await;
    assert_eq!(
        fixture.advance().await,
        0,
        "the replay waits for the webhook"
    );
    assert_eq!(
        fixture.progress(&replay).await,
        ("running".to_owned(), [first_step, first_step, 0, 0])
    );
    assert_eq!(fixture.replay(json!({"since": SINCE})).await.error().0, 409);

    fixture
        .app
        .send_json("PATCH", WEBHOOK, &json!({"status": "active"}))
        .await;
    fixture.retry_all().await;
    fixture.advance().await;
    fixture.retry_all().await;
    fixture.advance().await;
    fixture.retry_all().await;
    assert_eq!(
        fixture.progress(&replay).await,
        done([all as u64, all as u64, all as u64, 0])
    );
    assert_eq!(fixture.received_at("/ok").len(), all);
}

/// Deleting a webhook ends its replay.
#[tokio::test]
async fn deleted_webhook_ends_replay() {
    let fixture = ReplayFixture::new(5).await;
    let replay = fixture.start_replay(json!({"since": SINCE})).await;
    fixture.app.send_json("DELETE", WEBHOOK, &json!({})).await;
    assert_eq!(fixture.advance().await, 0);
    assert_eq!(
        fixture.progress(&replay).await.0,
        "cancelled",
        "no delivery of the replay is due"
    );
    assert!(fixture.app.tables.items_under("REPLAY").await.is_empty());
}

/// Of concurrent requests one creates a replay, and the others return its id with 409.
#[tokio::test]
async fn concurrent_replays_create_one() {
    let fixture = ReplayFixture::new(2).await;
    fixture.fix_endpoint().await;
    let responses =
        futures_util::future::join_all((0..8).map(|_| fixture.replay(json!({"since": SINCE}))))
            .await;
    let (created, refused): (Vec<_>, Vec<_>) = responses
        .iter()
        .partition(|response| response.status == StatusCode::ACCEPTED);
    let [created] = created[..] else {
        panic!("{} were created", created.len())
    };
    for response in refused {
        let (status, _, message) = response.error();
        assert_eq!(status, 409);
        assert!(
            message.contains(created.json["data"]["id"].as_str().unwrap()),
            "{message}"
        );
    }
    fixture.retry_all().await;
    assert_eq!(
        fixture.progress(created.header("location")).await,
        done([2, 2, 2, 0])
    );
}

/// A replay is created once even if the response to its write is lost.
#[tokio::test]
async fn lost_response_creates_one_replay() {
    for lost in [0, 1] {
        let fixture = ReplayFixture::new(2).await;
        fixture.fix_endpoint().await;
        let proxy = Proxy::start(fixture.app.tables.endpoint.clone()).await;
        let store = fixture
            .app
            .tables
            .store_through(local_client(&proxy.url, aws::timeouts()));
        let fixture = ReplayFixture {
            app: fixture.app.over(store, NO_LIMITS),
            ..fixture
        };
        proxy.arm("PutItem", lost, Fault::ResponseLost);
        let replay = fixture.start_replay(json!({"since": SINCE})).await;
        assert!(!proxy.disarm());
        fixture.retry_all().await;
        assert_eq!(fixture.progress(&replay).await, done([2, 2, 2, 0]));
    }
}

/// A replay that TTL deleted before its end does not block the next one.
#[tokio::test]
async fn expired_replay_frees_webhook() {
    let fixture = ReplayFixture::new(INITIAL_STEP_SIZE + 1).await;
    fixture.fix_endpoint().await;
    let first = fixture.start_replay(json!({"since": SINCE})).await;
    assert_eq!(
        fixture.replay(json!({"since": SINCE})).await.status,
        StatusCode::CONFLICT
    );
    delete_replay(&fixture, &first).await;
    assert_eq!(fixture.app.get(&first).await.status, StatusCode::NOT_FOUND);
    fixture.start_replay(json!({"since": SINCE})).await;
}

/// The other replays continue.
#[tokio::test]
async fn unreadable_replay_delays_no_other() {
    let fixture = ReplayFixture::new(INITIAL_STEP_SIZE + 5).await;
    fixture.fix_endpoint().await;
    let replay = fixture.start_replay(json!({"since": SINCE})).await;
    for sort_key in ["acme#0000", "a#7", "zzz#1"] {
        let marker = fixture
            .app
            .tables
            .client
            .put_item()
            .table_name(&fixture.app.tables.names.webhooks);
        let text = |text: &str| aws_sdk_dynamodb::types::AttributeValue::S(text.to_owned());
        marker
            .item("PK", text("REPLAY"))
            .item("SK", text(sort_key))
            .item("replay", text("?"))
            .send()
            .await
            .unwrap();
    }
    fixture.advance().await;
    fixture.retry_all().await;
    let all = (INITIAL_STEP_SIZE + 5) as u64;
    assert_eq!(fixture.progress(&replay).await, done([all, all, all, 0]));
}

/// An invalid request returns 400 and names the field.
#[tokio::test]
async fn invalid_request_is_refused() {
    let fixture = ReplayFixture::new(0).await;
    for (body, field) in [
        (json!({}), "since"),
        (json!({"since": "yesterday"}), "since"),
        (json!({"since": 1_734_948_000}), "since"),
        (json!({"since": "2999-01-01T00:00:00Z"}), "since"),
        (
            json!({"since": SINCE, "until": "2024-12-23T08:00:00Z"}),
            "since",
        ),
        (json!({"since": SINCE, "until": null}), "until"),
        (json!({"since": SINCE, "status": "pending"}), "status"),
        (json!({"since": SINCE, "events": []}), "events"),
    ] {
        let refused = fixture.replay(body.clone()).await;
        let (status, code, message) = refused.error();
        assert_eq!((status, code), (400, "invalid_request"), "{body}");
        assert!(message.contains(field), "{message}");
    }
    for path in [
        "/api/v1/webhooks/1/replays/rpl_0123456789abcdef",
        "/api/v1/webhooks/1/replays/x",
    ] {
        assert_eq!(fixture.app.get(path).await.error().0, 404);
        assert_eq!(
            fixture
                .app
                .send_json("DELETE", path, &json!({}))
                .await
                .error()
                .0,
            404
        );
    }
}
