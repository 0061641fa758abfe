//! Replays: what failed in a window of time is delivered again, once, at a pace, and counted.

use std::{collections::HashSet, time::Duration};

use axum::http::StatusCode;
use nano_webhooks::{
    aws,
    clock::Deadline,
    dispatch::Dispatcher,
    queue::ScheduledRetry,
    store::replays::{INITIAL_STEP_SIZE, STEP_SIZE},
};
use nano_webhooks_cli::local_client;
use nano_webhooks_core::{
    delivery::{DeliveryKey, DeliveryState},
    event::EventId,
    webhook::WebhookId,
};
use serde_json::{Value, json};

use crate::{
    api::{NO_LIMITS, TestApp, TestResponse},
    dispatch::{dispatch_batch, insert_record, job_image},
    proxy::{Fault, Proxy},
    support::{
        Received, Receiver, account,
        permissions::{RETRY, run_as},
    },
};

const WEBHOOK: &str = "/api/v1/webhooks/1";
/// Long before all events of these tests.
const SINCE: &str = "2024-12-23T09:00:00Z";

/// A webhook whose endpoint was broken, and deliveries to it that failed.
struct ReplayFixture {
    app: TestApp,
    receiver: Receiver,
    dispatcher: Dispatcher,
}

impl ReplayFixture {
    async fn new(failed: usize) -> Self {
        let (app, receiver) = (TestApp::new().await, Receiver::start().await);
        let created = json!({"url": receiver.url("/status/500"), "events": ["job.completed"]});
        assert_eq!(app.create(created).await.status, StatusCode::CREATED);
        let dispatcher = Dispatcher {
            clock: app.clock.clone(),
            schedule: "1s".parse().unwrap(),
            ..app.world.dispatcher()
        };
        let scene = Self {
            app,
            receiver,
            dispatcher,
        };
        let records: Vec<_> = (0..failed)
            .map(|n| insert_record(n, job_image(&format!("t{n}"), "completed")))
            .collect();
        assert_eq!(dispatch_batch(&scene.dispatcher, &records).await, []);
        // Each fails twice, which exhausts the schedule; what finds no place comes again.
        while !scene.retry_all().await.is_empty() {}
        let listed = scene
            .app
            .get(&format!("{WEBHOOK}/deliveries?status=pending"))
            .await;
        assert_eq!(listed.json["data"], json!([]));
        scene
    }

    async fn mend(&self) {
        let mended = json!({"url": self.receiver.url("/ok")});
        assert_eq!(
            self.app.send_json("PATCH", WEBHOOK, &mended).await.status,
            StatusCode::OK
        );
    }

    /// Makes all attempts whose timers were set, when they are due, and gives the timers.
    async fn retry_all(&self) -> Vec<ScheduledRetry> {
        let timers = self.app.world.timers();
        self.app.clock.advance(Duration::from_mins(10));
        for timer in &timers {
            run_as(RETRY, self.dispatcher.retry(&timer.message))
                .await
                .unwrap();
        }
        timers
    }

    async fn replay(&self, body: Value) -> TestResponse {
        self.app
            .send_json("POST", &format!("{WEBHOOK}/replay"), &body)
            .await
    }

    async fn begun(&self, body: Value) -> String {
        let answer = self.replay(body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
        answer.header("location").to_owned()
    }

    /// state, found, sent, delivered, failed
    async fn progress(&self, replay: &str) -> (String, [u64; 4]) {
        let answer = self.app.get(replay).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let data = &answer.json["data"];
        let counts =
            ["found", "sent", "delivered", "failed"].map(|name| data[name].as_u64().unwrap());
        (data["state"].as_str().unwrap().to_owned(), counts)
    }

    async fn sweep(&self) -> usize {
        self.dispatcher
            .sweep(Deadline::from_now(Duration::from_mins(1)))
            .await
            .unwrap()
    }

    async fn state(&self, event: &str) -> DeliveryState {
        let key = DeliveryKey {
            account: account("acme"),
            webhook: WebhookId::new(1).unwrap(),
            event: EventId::parse(event).unwrap(),
        };
        self.app
            .world
            .store
            .deliveries()
            .get(&key)
            .await
            .unwrap()
            .unwrap()
            .state
    }

    fn received_at(&self, path: &str) -> Vec<Received> {
        self.receiver
            .received()
            .into_iter()
            .filter(|received| received.path == path)
            .collect()
    }
}

fn done(counts: [u64; 4]) -> (String, [u64; 4]) {
    ("done".to_owned(), counts)
}

/// Failed deliveries are sent again with their ids, paced, and counted.
#[tokio::test]
async fn failed_deliveries_are_replayed() {
    let scene = ReplayFixture::new(3).await;
    scene.mend().await;
    let answer = scene.replay(json!({"since": SINCE})).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    let location = answer.header("location").to_owned();
    let data = &answer.json["data"];
    assert_eq!(
        location,
        format!("{WEBHOOK}/replays/{}", data["id"].as_str().unwrap())
    );
    let now = scene.app.clock.now();
    let id = data["id"].clone();
    assert_eq!(
        data,
        &json!({
            "id": id, "state": "running", "since": SINCE, "until": now.to_rfc3339(),
            "found": 3, "sent": 3, "delivered": 0, "failed": 0,
        })
    );
    let timers = scene.retry_all().await;
    let waits: Vec<_> = timers
        .iter()
        .map(|timer| timer.due.saturating_duration_since(now).as_millis())
        .collect();
    assert_eq!(waits, [200, 400, 600], "the endpoint is not flooded");
    assert_eq!(scene.progress(&location).await, done([3, 3, 3, 0]));
    let received = scene.received_at("/ok");
    assert!(
        received
            .iter()
            .all(|received| received.header("x-nano-attempt") == "3")
    );
    let before: HashSet<_> = scene
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
        assert_eq!(scene.state(&event).await, DeliveryState::Delivered);
    }
    let again = scene.begun(json!({"since": SINCE})).await;
    assert_eq!(
        scene.progress(&again).await,
        done([0, 0, 0, 0]),
        "nothing has failed any more"
    );
}

/// A replayed delivery that fails again is counted and keeps its state.
#[tokio::test]
async fn failed_replay_restores_state() {
    let scene = ReplayFixture::new(2).await;
    let replay = scene
        .begun(json!({"since": SINCE, "status": "failed"}))
        .await;
    assert_eq!(scene.retry_all().await.len(), 2);
    assert_eq!(scene.progress(&replay).await, done([2, 2, 0, 2]));
    assert!(
        scene.app.world.timers().is_empty(),
        "the schedule is not begun anew"
    );
    for received in scene.receiver.received() {
        assert_eq!(
            scene.state(received.header("webhook-id")).await,
            DeliveryState::Failed
        );
    }
}

/// The filter `all` includes delivered ones, and the window is respected.
#[tokio::test]
async fn filter_and_window_are_respected() {
    let scene = ReplayFixture::new(1).await;
    scene.mend().await;
    assert_eq!(
        dispatch_batch(
            &scene.dispatcher,
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
            json!({"since": "2024-12-23T11:00:00+01:00", "until": "2024-12-23T10:00:00.001Z", "status": "all"}),
            2,
        ),
    ] {
        let replay = scene.begun(window.clone()).await;
        scene.retry_all().await;
        assert_eq!(
            scene.progress(&replay).await,
            done([found, found, found, 0]),
            "{window}"
        );
    }
}

/// A long replay continues with each sweep; crashes and concurrent sweeps repeat and lose nothing.
#[tokio::test]
async fn long_replay_survives_crashes() {
    let all = INITIAL_STEP_SIZE + STEP_SIZE + 40;
    let scene = ReplayFixture::new(all).await;
    scene.mend().await;
    let replay = scene.begun(json!({"since": SINCE})).await;
    assert_eq!(scene.progress(&replay).await.1[1], INITIAL_STEP_SIZE as u64);
    let refused = scene.replay(json!({"since": SINCE})).await;
    let (status, code, _) = refused.error();
    assert_eq!((status, code), (409, "conflict"), "one at a time");

    let mut timers = scene.app.world.timers();
    // The timers of this first sweep are lost with its process; a later sweep finds what they were for.
    tokio::join!(scene.sweep(), scene.sweep());
    drop(scene.app.world.timers());
    // Whichever of the two began later may see a little further.
    let sent = scene.progress(&replay).await.1[1];
    assert!(
        ((INITIAL_STEP_SIZE + STEP_SIZE) as u64..=all as u64).contains(&sent),
        "{sent}"
    );
    scene.sweep().await;
    timers.extend(scene.app.world.timers());
    assert_eq!(scene.progress(&replay).await.1[1], all as u64);
    scene.app.clock.advance(Duration::from_mins(30));
    scene.sweep().await;
    timers.extend(scene.app.world.timers());
    for timer in timers {
        scene.dispatcher.retry(&timer.message).await.unwrap();
    }
    assert_eq!(
        scene.progress(&replay).await,
        done([all as u64, all as u64, all as u64, 0])
    );
    let heard: HashSet<_> = scene
        .received_at("/ok")
        .iter()
        .map(|received| received.header("webhook-id").to_owned())
        .collect();
    assert_eq!(
        (heard.len(), scene.received_at("/ok").len()),
        (all, all),
        "each once"
    );
}

/// A cancelled replay sends nothing more.
#[tokio::test]
async fn cancelled_replay_sends_nothing() {
    let scene = ReplayFixture::new(INITIAL_STEP_SIZE + 5).await;
    scene.mend().await;
    let replay = scene.begun(json!({"since": SINCE})).await;
    let mut timers = scene.app.world.timers();
    scene.app.clock.advance(Duration::from_mins(10));
    let first = timers.remove(0);
    scene.dispatcher.retry(&first.message).await.unwrap();
    let cancelled = scene.app.send_json("DELETE", &replay, &json!({})).await;
    assert_eq!(
        (cancelled.status, &cancelled.json["data"]["state"]),
        (StatusCode::OK, &json!("cancelled"))
    );
    for timer in timers {
        scene.dispatcher.retry(&timer.message).await.unwrap();
        assert_eq!(
            scene.state(timer.message.key.event.as_str()).await,
            DeliveryState::Failed
        );
    }
    assert_eq!(scene.sweep().await, 0);
    assert_eq!(scene.received_at("/ok").len(), 1);
    let (state, [_, _, delivered, failed]) = scene.progress(&replay).await;
    assert_eq!((state.as_str(), delivered, failed), ("cancelled", 1, 0));

    let next = scene.begun(json!({"since": SINCE})).await;
    scene.retry_all().await;
    scene.sweep().await;
    scene.retry_all().await;
    let rest = (INITIAL_STEP_SIZE + 4) as u64;
    assert_eq!(
        scene.progress(&next).await,
        done([rest, rest, rest, 0]),
        "another can begin"
    );
    let too_late = scene.app.send_json("DELETE", &next, &json!({})).await;
    assert_eq!(too_late.json["data"]["state"], "done");
}

/// After a cancelled replay the next one can start once nothing of it is due.
#[tokio::test]
async fn cancelled_replay_frees_webhook() {
    let scene = ReplayFixture::new(3).await;
    scene.mend().await;
    let first = scene.begun(json!({"since": SINCE})).await;
    let timers = scene.app.world.timers();
    scene.app.send_json("DELETE", &first, &json!({})).await;
    let refused = scene.replay(json!({"since": SINCE})).await;
    let (status, _, message) = refused.error();
    assert_eq!(status, 409, "what the first has made due would be missed");
    assert!(
        message.contains(first.rsplit('/').next().unwrap()),
        "{message}"
    );
    scene.app.clock.advance(Duration::from_mins(1));
    for timer in timers {
        scene.dispatcher.retry(&timer.message).await.unwrap();
    }
    let second = scene.begun(json!({"since": SINCE})).await;
    scene.retry_all().await;
    assert_eq!(scene.progress(&second).await, done([3, 3, 3, 0]));
    assert_eq!(scene.received_at("/ok").len(), 3);
}

/// A delivery with a manual retry leaves its replay, which ends without it.
#[tokio::test]
async fn manual_retry_leaves_replay() {
    let scene = ReplayFixture::new(3).await;
    scene.mend().await;
    let replay = scene.begun(json!({"since": SINCE})).await;
    let timers = scene.app.world.timers();
    let by_hand = &timers[0].message.key.event;
    let retried = scene
        .app
        .post_to(&format!("{WEBHOOK}/deliveries/{by_hand}/retry"))
        .await;
    assert_eq!(retried.status, StatusCode::ACCEPTED, "{}", retried.text);
    scene.app.send_json("DELETE", &replay, &json!({})).await;
    scene.app.clock.advance(Duration::from_mins(1));
    for timer in scene.app.world.timers().iter().chain(&timers) {
        scene.dispatcher.retry(&timer.message).await.unwrap();
    }
    assert_eq!(
        scene.state(by_hand.as_str()).await,
        DeliveryState::Delivered,
        "what a person asked for is done all the same"
    );
    assert_eq!(scene.received_at("/ok").len(), 1);
    assert_eq!(
        scene.progress(&replay).await,
        ("cancelled".to_owned(), [3, 0, 0, 0])
    );
}

/// A manual retry that is concurrent with a step does not remove the delivery from its replay.
#[tokio::test]
async fn concurrent_retry_keeps_replay() {
    let scene = ReplayFixture::new(1).await;
    scene.mend().await;
    let listed = scene.app.get(&format!("{WEBHOOK}/deliveries")).await;
    let event = EventId::parse(listed.json["data"][0]["event_id"].as_str().unwrap()).unwrap();
    let key = DeliveryKey {
        account: account("acme"),
        webhook: WebhookId::new(1).unwrap(),
        event,
    };
    let read = scene
        .app
        .world
        .store
        .deliveries()
        .get(&key)
        .await
        .unwrap()
        .unwrap();
    let replay = scene.begun(json!({"since": SINCE})).await;
    let crossed = scene
        .app
        .world
        .store
        .leases()
        .schedule_retry(&read, scene.app.clock.now(), Duration::from_hours(1))
        .await
        .unwrap();
    assert!(crossed.is_none(), "it has changed since it was read");
    scene.retry_all().await;
    assert_eq!(scene.progress(&replay).await, done([1, 1, 1, 0]));
}

/// A replay waits while its webhook is disabled and continues when it is enabled.
#[tokio::test]
async fn replay_waits_for_disabled_webhook() {
    let all = INITIAL_STEP_SIZE + 5;
    let scene = ReplayFixture::new(all).await;
    scene.mend().await;
    let replay = scene.begun(json!({"since": SINCE})).await;
    let counts = |delivered: usize| {
        [
            INITIAL_STEP_SIZE as u64,
            INITIAL_STEP_SIZE as u64,
            delivered as u64,
            0,
        ]
    };
    scene
        .app
        .send_json("PATCH", WEBHOOK, &json!({"status": "disabled"}))
        .await;
    scene.retry_all().await;
    assert_eq!(scene.sweep().await, 0, "it waits for the webhook");
    assert_eq!(
        scene.progress(&replay).await,
        ("running".to_owned(), counts(0))
    );
    assert_eq!(scene.replay(json!({"since": SINCE})).await.error().0, 409);

    scene
        .app
        .send_json("PATCH", WEBHOOK, &json!({"status": "active"}))
        .await;
    scene.retry_all().await;
    scene.sweep().await;
    scene.retry_all().await;
    scene.sweep().await;
    scene.retry_all().await;
    assert_eq!(
        scene.progress(&replay).await,
        done([all as u64, all as u64, all as u64, 0])
    );
    assert_eq!(scene.received_at("/ok").len(), all);
}

/// Deleting a webhook ends its replay.
#[tokio::test]
async fn deleted_webhook_ends_replay() {
    let scene = ReplayFixture::new(5).await;
    let replay = scene.begun(json!({"since": SINCE})).await;
    scene.app.send_json("DELETE", WEBHOOK, &json!({})).await;
    assert_eq!(scene.sweep().await, 0);
    assert_eq!(
        scene.progress(&replay).await.0,
        "cancelled",
        "although nothing of it is due any more"
    );
    assert!(scene.app.world.items_under("REPLAY").await.is_empty());
}

/// Of concurrent requests one creates a replay, and the others return its id with 409.
#[tokio::test]
async fn concurrent_replays_create_one() {
    let scene = ReplayFixture::new(2).await;
    scene.mend().await;
    let answers =
        futures_util::future::join_all((0..8).map(|_| scene.replay(json!({"since": SINCE})))).await;
    let (begun, refused): (Vec<_>, Vec<_>) = answers
        .iter()
        .partition(|answer| answer.status == StatusCode::ACCEPTED);
    let [begun] = begun[..] else {
        panic!("{} were begun", begun.len())
    };
    for answer in refused {
        let (status, _, message) = answer.error();
        assert_eq!(status, 409);
        assert!(
            message.contains(begun.json["data"]["id"].as_str().unwrap()),
            "{message}"
        );
    }
    scene.retry_all().await;
    assert_eq!(
        scene.progress(begun.header("location")).await,
        done([2, 2, 2, 0])
    );
}

/// A replay is created once even if the response to its write is lost.
#[tokio::test]
async fn lost_response_creates_one_replay() {
    for lost in [0, 1] {
        let scene = ReplayFixture::new(2).await;
        scene.mend().await;
        let proxy = Proxy::start(scene.app.world.endpoint.clone()).await;
        let store = scene
            .app
            .world
            .store_through(local_client(&proxy.url, aws::timeouts()));
        let scene = ReplayFixture {
            app: scene.app.over(store, NO_LIMITS),
            ..scene
        };
        proxy.arm("PutItem", lost, Fault::AnswerLost);
        let replay = scene.begun(json!({"since": SINCE})).await;
        assert!(!proxy.disarm());
        scene.retry_all().await;
        assert_eq!(scene.progress(&replay).await, done([2, 2, 2, 0]));
    }
}

/// A replay that TTL deleted before its end does not block the next one.
#[tokio::test]
async fn expired_replay_frees_webhook() {
    let scene = ReplayFixture::new(INITIAL_STEP_SIZE + 1).await;
    scene.mend().await;
    let first = scene.begun(json!({"since": SINCE})).await;
    assert_eq!(
        scene.replay(json!({"since": SINCE})).await.status,
        StatusCode::CONFLICT
    );
    let world = &scene.app.world;
    let text = |text: String| aws_sdk_dynamodb::types::AttributeValue::S(text);
    let id = first.rsplit('/').next().unwrap();
    let gone = world
        .client
        .delete_item()
        .table_name(&world.tables.webhooks);
    let gone = gone
        .key("PK", text("ACCOUNT#acme".to_owned()))
        .key("SK", text(format!("REPLAY#0000000001#{id}")));
    gone.send().await.unwrap();
    assert_eq!(scene.app.get(&first).await.status, StatusCode::NOT_FOUND);
    scene.begun(json!({"since": SINCE})).await;
}

/// The other replays continue.
#[tokio::test]
async fn unreadable_replay_delays_no_other() {
    let scene = ReplayFixture::new(INITIAL_STEP_SIZE + 5).await;
    scene.mend().await;
    let replay = scene.begun(json!({"since": SINCE})).await;
    for sort_key in ["acme#0000", "a#7", "zzz#1"] {
        let marker = scene
            .app
            .world
            .client
            .put_item()
            .table_name(&scene.app.world.tables.webhooks);
        let text = |text: &str| aws_sdk_dynamodb::types::AttributeValue::S(text.to_owned());
        marker
            .item("PK", text("REPLAY"))
            .item("SK", text(sort_key))
            .item("replay", text("?"))
            .send()
            .await
            .unwrap();
    }
    scene.sweep().await;
    scene.retry_all().await;
    let all = (INITIAL_STEP_SIZE + 5) as u64;
    assert_eq!(scene.progress(&replay).await, done([all, all, all, 0]));
}

/// An invalid request returns 400 and names the field.
#[tokio::test]
async fn invalid_request_is_refused() {
    let scene = ReplayFixture::new(0).await;
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
        let refused = scene.replay(body.clone()).await;
        let (status, code, message) = refused.error();
        assert_eq!((status, code), (400, "invalid_request"), "{body}");
        assert!(message.contains(field), "{message}");
    }
    for path in [
        "/api/v1/webhooks/1/replays/rpl_0123456789abcdef",
        "/api/v1/webhooks/1/replays/x",
    ] {
        assert_eq!(scene.app.get(path).await.error().0, 404);
        assert_eq!(
            scene
                .app
                .send_json("DELETE", path, &json!({}))
                .await
                .error()
                .0,
            404
        );
    }
}
