//! Secrets at rest: the tables contain no plain secret, and secrets stay readable for signing.

use std::time::Duration;

use nano_webhooks::{
    clock::Clock,
    dispatch::Dispatcher,
    random,
    store::{
        Error, Store,
        data_keys::{DataKeyCache, KeyProvider},
        key_schema,
        update::WebhookUpdate,
        webhooks::WebhookRecord,
    },
};
use nano_webhooks_cli::local_client;
use nano_webhooks_core::{
    data_key::KeyMaterial,
    secret::Secret,
    webhook::{WebhookId, WebhookStatus},
};
use sha2::{Digest, Sha256};

use crate::support::{
    accounts::account,
    kms::{FakeKms, KmsBehavior},
    proxy::Proxy,
    receiver::Receiver,
    stream::{dispatch_batch, insert_record, job_image},
    tables::{TestTables, patient_timeouts},
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
    assert_eq!(sealing_versions(&tables).await, ["1", "2"]);

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
    assert_eq!(sealing_versions(&tables).await, ["2", "2"]);
    for webhook in [old, new] {
        assert_eq!(secrets(&tables, &tables.store, webhook).await, secret());
    }
}

/// The version of the data key that encrypted the secret of each webhook.
async fn sealing_versions(tables: &TestTables) -> Vec<String> {
    let mut items = tables.items_under("ACCOUNT#acme").await;
    items.retain(|item| item["SK"].as_s().unwrap().starts_with("WEBHOOK#"));
    items.sort_by_key(|item| item["SK"].as_s().unwrap().clone());
    let mut versions = Vec::new();
    for item in items {
        let secret = item["secrets"].as_l().unwrap()[0].as_m().unwrap();
        versions.push(secret["data_key"].as_n().unwrap().clone());
    }
    versions
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
        assert_eq!(timer.message.key.webhook, signed);

        clock.advance(Duration::from_secs(90));
        let recovered = Dispatcher {
            clock: clock.clone(),
            ..tables.dispatcher()
        };
        recovered.retry(&timer.message).await.unwrap();
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

/// The stored number of put-offs makes the waits longer. One update and one message put a delivery
/// off, and the attempt removes what was stored.
#[tokio::test]
async fn waits_for_unavailable_key_grow() {
    let (tables, receiver) = (TestTables::new().await, Receiver::start().await);
    subscribe(&tables, "acme", &receiver.url("/ok"), Some(SECRET)).await;
    let proxy = Proxy::start(tables.endpoint.clone()).await;
    let counted = local_client(&proxy.url, patient_timeouts());
    let clock = Clock::manual(Clock::system().now());
    let locked = Dispatcher {
        store: Store::new(
            counted,
            tables.names.clone(),
            DataKeyCache::new(KeyProvider::None),
        ),
        clock: clock.clone(),
        ..tables.dispatcher()
    };
    let record = insert_record(1, job_image("t1", "completed"));
    assert_eq!(dispatch_batch(&locked, &[record]).await, []);
    for (deferrals, shortest, longest) in [
        (1, 60, 90),
        (2, 120, 180),
        (3, 240, 360),
        (4, 480, 720),
        (5, 600, 900),
        (6, 600, 900),
    ] {
        let timer = tables.timers().pop().unwrap();
        let wait = timer.due.saturating_duration_since(clock.now()).as_secs();
        assert!(
            (shortest..=longest).contains(&wait),
            "{deferrals}: {wait} s"
        );
        let item = tables.items(&tables.names.deliveries).await.pop().unwrap();
        assert_eq!(item["waiting_for"].as_s().unwrap(), "secret");
        assert_eq!(item["deferrals"].as_n().unwrap(), &deferrals.to_string());
        clock.advance(Duration::from_secs(longest));
        proxy.take_used();
        locked.retry(&timer.message).await.unwrap();
        let used = proxy.take_used();
        assert!(used.write_units <= 4.0, "{} units", used.write_units);
    }
    let timer = tables.timers().pop().unwrap();
    clock.advance(Duration::from_mins(15));
    let recovered = Dispatcher {
        clock: clock.clone(),
        ..tables.dispatcher()
    };
    recovered.retry(&timer.message).await.unwrap();
    let received = receiver.wait_for(1).await.pop().unwrap();
    assert_eq!(received.header("x-nano-attempt"), "1");
    let item = tables.items(&tables.names.deliveries).await.pop().unwrap();
    assert!(!item.contains_key("waiting_for") && !item.contains_key("deferrals"));
}

/// A delivery that waits for the key while its webhook is disabled waits for the webhook.
#[tokio::test]
async fn disabled_webhook_ends_wait_for_secret() {
    let (tables, receiver) = (TestTables::new().await, Receiver::start().await);
    let webhook = subscribe(&tables, "acme", &receiver.url("/ok"), Some(SECRET)).await;
    let clock = Clock::manual(Clock::system().now());
    let locked = Dispatcher {
        store: another(&tables, KeyProvider::None),
        clock: clock.clone(),
        ..tables.dispatcher()
    };
    let record = insert_record(1, job_image("t1", "completed"));
    assert_eq!(dispatch_batch(&locked, &[record]).await, []);
    let disable = WebhookUpdate {
        status: Some(WebhookStatus::Disabled),
        ..WebhookUpdate::default()
    };
    let webhooks = tables.store.webhooks();
    webhooks
        .update(&account("acme"), webhook, &disable, clock.now())
        .await
        .unwrap();
    let timer = tables.timers().pop().unwrap();
    locked.retry(&timer.message).await.unwrap();
    let item = tables.items(&tables.names.deliveries).await.pop().unwrap();
    for name in ["next_attempt_at", "waiting_for", "deferrals"] {
        assert!(!item.contains_key(name), "{name}");
    }
}

/// Concurrent requests unwrap a data key once, whether KMS answers or refuses. A failure is
/// remembered for a while.
#[tokio::test]
async fn concurrent_requests_ask_kms_once() {
    let (mut tables, kms) = (TestTables::new().await, FakeKms::start().await);
    tables.store = another(&tables, kms.provider());
    let webhook = subscribe(&tables, "acme", "https://example.com/", Some(SECRET)).await;
    let acme = account("acme");
    let webhooks = tables.store.webhooks();
    let record = webhooks.get_record(&acme, webhook).await.unwrap().unwrap();
    let decrypt_often = async |store: &Store| {
        let now = Clock::system().now();
        let secrets = store.secrets();
        let decrypts =
            (0..50).map(|_| secrets.decrypt_active(&acme, webhook, &record.secrets, now));
        futures_util::future::join_all(decrypts).await
    };
    let refused = another(&tables, kms.provider());
    kms.set(KmsBehavior::Refuses);
    for _ in 0..2 {
        for outcome in decrypt_often(&refused).await {
            assert!(matches!(outcome, Err(Error::KeyUnavailable(_))));
        }
    }
    assert_eq!(kms.decrypts(), 1);
    kms.set(KmsBehavior::Answers);
    let answered = another(&tables, kms.provider());
    for _ in 0..2 {
        for outcome in decrypt_often(&answered).await {
            assert_eq!(outcome.unwrap(), secret());
        }
    }
    assert_eq!(kms.decrypts(), 2);
}

/// While KMS hangs for one data key, a batch makes the deliveries of other data keys and the
/// unsigned ones.
#[tokio::test]
async fn hanging_kms_delays_no_other_key() {
    let (mut tables, kms) = (TestTables::new().await, FakeKms::start().await);
    let receiver = Receiver::start().await;
    tables.store = another(&tables, kms.provider());
    subscribe(&tables, "acme", &receiver.url("/hanging"), Some(SECRET)).await;
    let secrets = tables.store.secrets();
    secrets
        .rotate_data_key(Clock::system().now())
        .await
        .unwrap();
    subscribe(&tables, "acme", &receiver.url("/other"), Some(SECRET)).await;
    subscribe(&tables, "acme", &receiver.url("/unsigned"), None).await;
    kms.set(KmsBehavior::HangsFor(1));
    let dispatcher = Dispatcher {
        store: another(&tables, kms.provider()),
        ..tables.dispatcher()
    };
    let records = [insert_record(1, job_image("t1", "completed"))];
    let batch = dispatch_batch(&dispatcher, &records);
    tokio::pin!(batch);
    let received = tokio::select! {
        biased;
        _ = &mut batch => panic!("the batch ended before the others were delivered"),
        received = receiver.wait_for(2) => received,
    };
    kms.wait_for_decrypts(2).await;
    let mut paths: Vec<_> = received
        .iter()
        .map(|request| request.path.as_str())
        .collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/other", "/unsigned"]);
    // KMS has 2 s to respond.
    assert_eq!(batch.await, []);
    let timer = tables.timers().pop().unwrap();
    assert_eq!(timer.message.key.webhook, WebhookId::new(1).unwrap());
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
        reason.contains("the secret or the headers of webhook 2 cannot be read"),
        "{reason}"
    );
}
