//! Secrets at rest: the tables contain no plain secret, and secrets stay readable for signing.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use nano_webhooks::{
    clock::Clock,
    dispatch::Dispatcher,
    random,
    store::{
        Store,
        data_keys::{DataKeyCache, KeyProvider},
        key_schema,
        webhooks::WebhookRecord,
    },
};
use nano_webhooks_core::{data_key::KeyMaterial, secret::Secret, webhook::WebhookId};
use sha2::{Digest, Sha256};

use crate::support::{
    accounts::account,
    receiver::Receiver,
    stream::{dispatch_batch, insert_record, job_image},
    tables::TestTables,
    webhooks::subscribe,
};

const SECRET: &str = "my-secret-key";

async fn secrets(tables: &TestTables, store: &Store, webhook: WebhookId) -> Vec<Secret> {
    let subscriber: WebhookRecord = tables
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
fn another(tables: &TestTables, wrapping: KeyProvider) -> Store {
    Store::new(
        tables.client.clone(),
        tables.names.clone(),
        DataKeyCache::new(wrapping),
    )
}

async fn versions(tables: &TestTables) -> Vec<String> {
    let mut versions: Vec<_> = tables
        .items_under(key_schema::DATA_KEYS)
        .await
        .iter()
        .map(|key| key["SK"].as_s().unwrap().clone())
        .collect();
    versions.sort();
    versions
}

/// The tables contain neither a secret nor a hash that guesses can be compared with.
#[tokio::test]
async fn tables_hide_secrets() {
    let tables = TestTables::new().await;
    let webhook = subscribe(&tables, "acme", "https://example.com/", Some(SECRET)).await;
    let everything = format!("{:?}", tables.items(&tables.names.webhooks).await);
    for trace in [
        SECRET.to_owned(),
        hex::encode(SECRET),
        hex::encode(Sha256::digest(SECRET)),
    ] {
        assert!(!everything.contains(&trace), "{trace} is in the table");
    }
    assert_eq!(secrets(&tables, &tables.store, webhook).await, secret());
}

/// Processes that start at the same time share one data key.
#[tokio::test]
async fn concurrent_starts_share_data_key() {
    let tables = TestTables::new().await;
    let key = KeyMaterial::from_random(random::bytes());
    let stores: Vec<_> = (0..8)
        .map(|_| another(&tables, KeyProvider::Local(key.clone())))
        .collect();
    let now = Clock::system().now();
    let sealing = stores
        .iter()
        .map(|store| store.secrets().active_data_key(now));
    for key in futures_util::future::join_all(sealing).await {
        assert_eq!(key.unwrap().unwrap().version(), 1);
    }
    assert_eq!(versions(&tables).await, ["0000000001"]);
}

/// A new data key encrypts new secrets, and older ones stay readable.
#[tokio::test]
async fn new_data_key_keeps_old_secrets() {
    let tables = TestTables::new().await;
    let now = Clock::system().now();
    let old = subscribe(&tables, "acme", "https://example.com/", Some(SECRET)).await;
    assert_eq!(
        tables.store.secrets().rotate_data_key(now).await.unwrap(),
        2
    );
    let new = subscribe(&tables, "acme", "https://example.com/", Some(SECRET)).await;
    assert_eq!(versions(&tables).await, ["0000000001", "0000000002"]);
    for webhook in [old, new] {
        assert_eq!(secrets(&tables, &tables.store, webhook).await, secret());
    }
    let sealed_by = async || {
        let mut items = tables.items_under("ACCOUNT#acme").await;
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

    let (resealed, next) = tables
        .store
        .secrets()
        .reencrypt_page(None, now)
        .await
        .unwrap();
    assert_eq!(
        (
            resealed.reencrypted,
            resealed.unchanged,
            resealed.conflicted,
            next.is_none()
        ),
        (1, 1, 0, true)
    );
    assert_eq!(sealed_by().await, ["2", "2"]);
    for webhook in [old, new] {
        assert_eq!(secrets(&tables, &tables.store, webhook).await, secret());
    }
}

/// A process that cannot unwrap the current data key starts no new one.
#[tokio::test]
async fn new_data_key_needs_access_to_old() {
    let tables = TestTables::new().await;
    subscribe(&tables, "acme", "https://example.com/", Some(SECRET)).await;
    let stranger = another(
        &tables,
        KeyProvider::Local(KeyMaterial::from_random(random::bytes())),
    );
    assert!(
        stranger
            .secrets()
            .rotate_data_key(Clock::system().now())
            .await
            .is_err()
    );
    assert_eq!(versions(&tables).await, ["0000000001"]);
}

/// Secrets that were stored without a key are read and can be encrypted.
#[tokio::test]
async fn plain_secrets_can_be_encrypted() {
    let mut tables = TestTables::new().await;
    let plain = another(&tables, KeyProvider::None);
    let sealing = std::mem::replace(&mut tables.store, plain);
    let webhook = subscribe(&tables, "acme", "https://example.com/", Some(SECRET)).await;
    tables.store = sealing;
    assert!(format!("{:?}", tables.items(&tables.names.webhooks).await).contains(SECRET));
    assert_eq!(secrets(&tables, &tables.store, webhook).await, secret());
    let (resealed, _) = tables
        .store
        .secrets()
        .reencrypt_page(None, Clock::system().now())
        .await
        .unwrap();
    assert_eq!(resealed.reencrypted, 1);
    assert!(!format!("{:?}", tables.items(&tables.names.webhooks).await).contains(SECRET));
    assert_eq!(secrets(&tables, &tables.store, webhook).await, secret());
}

/// While a key is unavailable, signed events wait and delay no others.
#[tokio::test]
async fn unavailable_key_delays_no_other() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    let signed = subscribe(&tables, "acme", &receiver.url("/signed"), Some(SECRET)).await;
    subscribe(&tables, "acme", &receiver.url("/unsigned"), None).await;
    let clock = Clock::manual(Clock::system().now());
    for (n, wrapping) in [
        KeyProvider::None,
        KeyProvider::Local(KeyMaterial::from_random(random::bytes())),
    ]
    .into_iter()
    .enumerate()
    {
        let locked = Dispatcher {
            store: another(&tables, wrapping),
            clock: clock.clone(),
            ..tables.dispatcher()
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
        let timer = tables.timers().pop().unwrap();
        assert_eq!(
            (timer.message.key.webhook, timer.due),
            (signed, clock.now())
        );
        locked.retry(&timer.message).await.unwrap();
        let later = tables.timers().pop().unwrap();
        assert_eq!(
            (
                later.due.saturating_duration_since(clock.now()),
                later.message.attempt_count
            ),
            (Duration::from_mins(1), 0)
        );

        clock.advance(Duration::from_mins(1));
        let recovered = Dispatcher {
            clock: clock.clone(),
            ..tables.dispatcher()
        };
        recovered.retry(&later.message).await.unwrap();
        let received = receiver.wait_for(2).await.pop().unwrap();
        assert!(received.path == "/signed" && received.is_signed_by(SECRET));
        assert_eq!(
            received.header("x-nano-attempt"),
            "1",
            "the wait uses no attempt"
        );
        receiver.clear();
    }
    assert!(tables.items_under("POISON#").await.is_empty());
}

/// A secret that was copied to another webhook signs nothing there.
#[tokio::test]
async fn moved_secret_signs_nothing() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    subscribe(&tables, "acme", "https://example.com/", Some(SECRET)).await;
    let thief = subscribe(
        &tables,
        "acme",
        &receiver.url("/thief"),
        Some("another-secret"),
    )
    .await;
    let mut items = tables.items_under("ACCOUNT#acme").await;
    items.retain(|item| item.contains_key("secrets"));
    items.sort_by_key(|item| item["SK"].as_s().unwrap().clone());
    let mut moved = items.remove(1);
    assert_eq!(
        key_schema::parse_webhook(moved["SK"].as_s().unwrap()),
        Some(thief)
    );
    moved.insert("secrets".to_owned(), items[0]["secrets"].clone());
    tables
        .client
        .put_item()
        .table_name(&tables.names.webhooks)
        .set_item(Some(moved))
        .send()
        .await
        .unwrap();

    let record = insert_record(1, job_image("t1", "completed"));
    assert_eq!(dispatch_batch(&tables.dispatcher(), &[record]).await, []);
    assert_eq!(receiver.received().len(), 0);
    let poison = tables.items_under("POISON#").await;
    let reason = poison[0]["reason"].as_s().unwrap();
    assert!(
        reason.contains("the secret of webhook 2 cannot be read"),
        "{reason}"
    );
}
