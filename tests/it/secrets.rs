//! Secrets at rest: who reads the tables learns none, and what is needed to sign is never lost.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use nano_webhooks::random;
use nano_webhooks::{
    clock::Clock,
    dispatch::Dispatcher,
    store::{
        Store, key_schema,
        secrets::{DataKeyCache, KeyProvider},
        webhooks::WebhookRecord,
    },
};
use nano_webhooks_core::{data_key::KeyMaterial, secret::Secret, webhook::WebhookId};
use sha2::{Digest, Sha256};

use crate::{
    dispatch::{dispatch_batch, insert_record, job_image, subscribe},
    support::{Receiver, TestTables, account},
};

const SECRET: &str = "my-secret-key";

async fn secrets(world: &TestTables, store: &Store, webhook: WebhookId) -> Vec<Secret> {
    let subscriber: WebhookRecord = world
        .store
        .webhooks()
        .get_record(&account("acme"), webhook)
        .await
        .unwrap()
        .unwrap();
    store
        .secrets()
        .decrypt_active(
            &account("acme"),
            subscriber.webhook.id,
            &subscriber.secrets,
            Clock::system().now(),
        )
        .await
        .unwrap()
}

fn secret() -> Vec<Secret> {
    vec![Secret::parse(SECRET.to_owned()).unwrap()]
}

/// Another process over the same tables.
fn another(world: &TestTables, wrapping: KeyProvider) -> Store {
    Store::new(
        world.client.clone(),
        world.tables.clone(),
        DataKeyCache::new(wrapping),
    )
}

async fn versions(world: &TestTables) -> Vec<String> {
    let mut versions: Vec<_> = world
        .items_under(key_schema::DATA_KEYS)
        .await
        .iter()
        .map(|key| key["SK"].as_s().unwrap().clone())
        .collect();
    versions.sort();
    versions
}

#[tokio::test]
async fn the_tables_hold_neither_a_secret_nor_a_hash_to_try_one_against() {
    let world = TestTables::new().await;
    let webhook = subscribe(&world, "acme", "https://example.com/", Some(SECRET)).await;
    let everything = format!("{:?}", world.items(&world.tables.webhooks).await);
    for trace in [
        SECRET.to_owned(),
        hex::encode(SECRET),
        hex::encode(Sha256::digest(SECRET)),
    ] {
        assert!(!everything.contains(&trace), "{trace} is in the table");
    }
    assert_eq!(secrets(&world, &world.store, webhook).await, secret());
}

#[tokio::test]
async fn processes_that_begin_at_the_same_time_share_one_data_key() {
    let (world, key) = (
        TestTables::new().await,
        KeyMaterial::from_random(random::bytes()),
    );
    let stores: Vec<_> = (0..8)
        .map(|_| another(&world, KeyProvider::Local(key.clone())))
        .collect();
    let now = Clock::system().now();
    let sealing = stores
        .iter()
        .map(|store| store.secrets().active_data_key(now));
    for key in futures_util::future::join_all(sealing).await {
        assert_eq!(key.unwrap().unwrap().version(), 1);
    }
    assert_eq!(versions(&world).await, ["0000000001"]);
}

#[tokio::test]
async fn a_new_data_key_seals_from_now_on_and_what_the_old_one_sealed_stays_readable() {
    let (world, now) = (TestTables::new().await, Clock::system().now());
    let old = subscribe(&world, "acme", "https://example.com/", Some(SECRET)).await;
    assert_eq!(world.store.secrets().rotate_data_key(now).await.unwrap(), 2);
    let new = subscribe(&world, "acme", "https://example.com/", Some(SECRET)).await;
    assert_eq!(versions(&world).await, ["0000000001", "0000000002"]);
    for webhook in [old, new] {
        assert_eq!(secrets(&world, &world.store, webhook).await, secret());
    }
    let sealed_by = async || {
        let mut items = world.items_under("ACCOUNT#acme").await;
        items.retain(|item| item["SK"].as_s().unwrap().starts_with("WEBHOOK#"));
        items.sort_by_key(|item| item["SK"].as_s().unwrap().clone());
        let version = |item: &std::collections::HashMap<String, AttributeValue>| {
            item["secrets"].as_l().unwrap()[0].as_m().unwrap()["data_key"]
                .as_n()
                .unwrap()
                .clone()
        };
        items.iter().map(version).collect::<Vec<_>>()
    };
    assert_eq!(sealed_by().await, ["1", "2"]);

    let (resealed, next) = world
        .store
        .secrets()
        .reencrypt_page(None, now)
        .await
        .unwrap();
    assert_eq!(
        (
            resealed.sealed,
            resealed.kept,
            resealed.changed,
            next.is_none()
        ),
        (1, 1, 0, true)
    );
    assert_eq!(sealed_by().await, ["2", "2"]);
    for webhook in [old, new] {
        assert_eq!(secrets(&world, &world.store, webhook).await, secret());
    }
}

#[tokio::test]
async fn a_new_data_key_is_not_started_by_whoever_cannot_open_the_one_before() {
    let world = TestTables::new().await;
    subscribe(&world, "acme", "https://example.com/", Some(SECRET)).await;
    let stranger = another(
        &world,
        KeyProvider::Local(KeyMaterial::from_random(random::bytes())),
    );
    assert!(
        stranger
            .secrets()
            .rotate_data_key(Clock::system().now())
            .await
            .is_err()
    );
    assert_eq!(versions(&world).await, ["0000000001"]);
}

#[tokio::test]
async fn secrets_from_the_time_before_there_was_a_key_are_read_and_can_be_sealed() {
    let mut world = TestTables::new().await;
    let plain = another(&world, KeyProvider::None);
    let sealing = std::mem::replace(&mut world.store, plain);
    let webhook = subscribe(&world, "acme", "https://example.com/", Some(SECRET)).await;
    world.store = sealing;
    assert!(format!("{:?}", world.items(&world.tables.webhooks).await).contains(SECRET));
    assert_eq!(secrets(&world, &world.store, webhook).await, secret());
    let (resealed, _) = world
        .store
        .secrets()
        .reencrypt_page(None, Clock::system().now())
        .await
        .unwrap();
    assert_eq!(resealed.sealed, 1);
    assert!(!format!("{:?}", world.items(&world.tables.webhooks).await).contains(SECRET));
    assert_eq!(secrets(&world, &world.store, webhook).await, secret());
}

#[tokio::test]
async fn while_secrets_cannot_be_opened_signed_events_wait_and_hold_up_no_others() {
    let (world, receiver) = (TestTables::new().await, Receiver::start().await);
    let signed = subscribe(&world, "acme", &receiver.url("/signed"), Some(SECRET)).await;
    subscribe(&world, "acme", &receiver.url("/unsigned"), None).await;
    let clock = Clock::manual(Clock::system().now());
    for (n, wrapping) in [
        KeyProvider::None,
        KeyProvider::Local(KeyMaterial::from_random(random::bytes())),
    ]
    .into_iter()
    .enumerate()
    {
        let locked = Dispatcher {
            store: another(&world, wrapping),
            clock: clock.clone(),
            ..world.dispatcher()
        };
        assert_eq!(
            dispatch_batch(
                &locked,
                &[insert_record(n, job_image(&format!("t{n}"), "completed"))]
            )
            .await,
            []
        );
        assert_eq!(receiver.wait_for(1).await[0].path, "/unsigned");
        let timer = world.timers().pop().unwrap();
        assert_eq!(
            (timer.message.key.webhook, timer.due),
            (signed, clock.now())
        );
        locked.retry(&timer.message).await.unwrap();
        let later = world.timers().pop().unwrap();
        assert_eq!(
            (
                later.due.saturating_duration_since(clock.now()),
                later.message.attempt_count
            ),
            (Duration::from_mins(1), 0)
        );

        clock.advance(Duration::from_mins(1));
        let mended = Dispatcher {
            clock: clock.clone(),
            ..world.dispatcher()
        };
        mended.retry(&later.message).await.unwrap();
        let received = receiver.wait_for(2).await.pop().unwrap();
        assert!(received.path == "/signed" && received.is_signed_by(SECRET));
        assert_eq!(
            received.header("x-nano-attempt"),
            "1",
            "waiting has used no attempt"
        );
        receiver.forget();
    }
    assert!(world.items_under("POISON#").await.is_empty());
}

#[tokio::test]
async fn a_secret_that_was_moved_to_another_webhook_signs_nothing_there() {
    let (world, receiver) = (TestTables::new().await, Receiver::start().await);
    subscribe(&world, "acme", "https://example.com/", Some(SECRET)).await;
    let thief = subscribe(
        &world,
        "acme",
        &receiver.url("/thief"),
        Some("another-secret"),
    )
    .await;
    let mut items = world.items_under("ACCOUNT#acme").await;
    items.retain(|item| item.contains_key("secrets"));
    items.sort_by_key(|item| item["SK"].as_s().unwrap().clone());
    let mut moved = items.remove(1);
    assert_eq!(
        key_schema::parse_webhook(moved["SK"].as_s().unwrap()),
        Some(thief)
    );
    moved.insert("secrets".to_owned(), items[0]["secrets"].clone());
    world
        .client
        .put_item()
        .table_name(&world.tables.webhooks)
        .set_item(Some(moved))
        .send()
        .await
        .unwrap();

    let record = insert_record(1, job_image("t1", "completed"));
    assert_eq!(dispatch_batch(&world.dispatcher(), &[record]).await, []);
    assert_eq!(receiver.received().len(), 0);
    let poison = world.items_under("POISON#").await;
    let reason = poison[0]["reason"].as_s().unwrap();
    assert!(
        reason.contains("the secret of webhook 2 cannot be read"),
        "{reason}"
    );
}
