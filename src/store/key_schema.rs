//! The keys of all items. No other file formats or parses a key.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use sha2::{Digest, Sha256};

use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{DeliveryKey, status::DeliveryStatus},
    event::EventId,
    replay::ReplayId,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// The partition key's attribute in both tables.
pub const PK: &str = "PK";
/// The sort key's attribute in both tables.
pub const SK: &str = "SK";

/// The prefix of the sort keys of an account's webhooks.
pub const WEBHOOK_PREFIX: &str = "WEBHOOK#";
/// The prefix of the sort keys of an account's API keys.
pub const API_KEY_PREFIX: &str = "KEY#";
/// How many digits ids have in keys.
const ID_DIGITS: usize = 10;
/// The most bytes of a sort key.
const MAX_SORT_KEY: usize = 1024;
/// The sort key of an item that is alone in its partition.
const SINGLETON_SK: &str = "-";

/// A primary key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PrimaryKey {
    /// Partition key.
    pub pk: String,
    /// Sort key.
    pub sk: String,
}

impl PrimaryKey {
    fn new(pk: String, sk: impl Into<String>) -> Self {
        Self { pk, sk: sk.into() }
    }

    /// An item with only this key.
    pub fn into_item(self) -> HashMap<String, AttributeValue> {
        HashMap::from([
            (PK.to_owned(), AttributeValue::S(self.pk)),
            (SK.to_owned(), AttributeValue::S(self.sk)),
        ])
    }
}

/// The partition of an account.
pub fn account_partition(account: &AccountId) -> String {
    format!("ACCOUNT#{account}")
}

/// The account of a partition.
pub fn parse_account(pk: &str) -> Option<AccountId> {
    AccountId::parse(pk.strip_prefix("ACCOUNT#")?).ok()
}

/// An account's last webhook id and number of webhooks.
pub fn account_counters(account: &AccountId) -> PrimaryKey {
    PrimaryKey::new(account_partition(account), "META")
}

/// A webhook. Its id has ten digits in the key, so keys sort by id.
pub fn webhook(account: &AccountId, id: WebhookId) -> PrimaryKey {
    PrimaryKey::new(
        account_partition(account),
        format!("{WEBHOOK_PREFIX}{:0ID_DIGITS$}", id.get()),
    )
}

/// The health of a webhook's endpoint. It sorts directly after the webhook, so one query reads
/// both.
pub fn health(account: &AccountId, id: WebhookId) -> PrimaryKey {
    let PrimaryKey { pk, sk } = webhook(account, id);
    PrimaryKey {
        pk,
        sk: format!("{sk}#HEALTH"),
    }
}

/// The slots of a webhook whose deliveries are spaced in time.
pub fn pace(account: &AccountId, id: WebhookId) -> PrimaryKey {
    let id = id.get();
    PrimaryKey::new(account_partition(account), format!("PACE#{id:0ID_DIGITS$}"))
}

/// The latest report of a webhook's exhausted deliveries.
pub fn exhausted_report(account: &AccountId, id: WebhookId) -> PrimaryKey {
    let id = id.get();
    let sort_key = format!("EXHAUSTED#{id:0ID_DIGITS$}");
    PrimaryKey::new(account_partition(account), sort_key)
}

/// How many partitions the notices for the operator's topic have, so that a burst is spread over
/// them.
pub const NOTICE_SHARDS: u8 = DUE_SHARDS;
/// The prefix of the partitions of notices.
pub const NOTICES: &str = "NOTICE#";

/// A partition of the notices.
pub fn notices(shard: u8) -> String {
    format!("{NOTICES}{}", shard_name(shard))
}

/// A notice for the operator's topic. Event ids start with the time, so the keys of a partition
/// sort by it.
pub fn operator_notice(event: &EventId, account: &AccountId) -> PrimaryKey {
    let partition = format!("{NOTICES}{}", due_shard(event));
    PrimaryKey::new(partition, format!("{event}#{account}"))
}

/// The event and the account of a notice.
pub fn parse_operator_notice(sk: &str) -> Option<(EventId, AccountId)> {
    let (event, account) = sk.split_once('#')?;
    Some((EventId::parse(event)?, AccountId::parse(account).ok()?))
}

/// The webhook of a sort key; `None` if the item is not a webhook.
pub fn parse_webhook(sk: &str) -> Option<WebhookId> {
    let digits = sk.strip_prefix(WEBHOOK_PREFIX)?;
    if digits.len() != ID_DIGITS {
        return None;
    }
    WebhookId::new(digits.parse().ok()?)
}

/// The request counters of an account on a day.
pub fn rate(account: &AccountId, day: &str) -> PrimaryKey {
    PrimaryKey::new(account_partition(account), format!("RATE#{day}"))
}

/// A slot of an account's test events.
pub fn account_test_slot(account: &AccountId, slot: u32) -> PrimaryKey {
    PrimaryKey::new(account_partition(account), format!("TEST#{slot}"))
}

/// A slot of the deployment's test events. Each is a partition of its own, so that the slots share
/// no limit of a partition.
pub fn deployment_test_slot(slot: u32) -> PrimaryKey {
    PrimaryKey::new(format!("TEST#{slot}"), SINGLETON_SK)
}

/// An API key in its account's list. `prefix` is the part that may be shown.
pub fn api_key_listing(account: &AccountId, prefix: &str) -> PrimaryKey {
    PrimaryKey::new(
        account_partition(account),
        format!("{API_KEY_PREFIX}{prefix}"),
    )
}

/// An API key by its hash.
pub fn api_key(sha256: &[u8; 32]) -> PrimaryKey {
    PrimaryKey::new(format!("KEY#{}", hex::encode(sha256)), SINGLETON_SK)
}

/// The record of an `Idempotency-Key`. The caller's key is hashed, so its length is fixed and it
/// cannot imitate the key of another account.
pub fn idempotency(account: &AccountId, key: &str) -> PrimaryKey {
    PrimaryKey::new(
        format!("IDEMPOTENCY#{account}#{}", hex::encode(Sha256::digest(key))),
        SINGLETON_SK,
    )
}

/// The partition of the data keys.
pub const DATA_KEYS: &str = "DATAKEY";

/// A wrapped data key. Its version has ten digits in the key, so keys sort by version.
pub fn data_key(version: u32) -> PrimaryKey {
    PrimaryKey::new(DATA_KEYS.to_owned(), format!("{version:0ID_DIGITS$}"))
}

/// The version of a data key.
pub fn parse_data_key(sk: &str) -> Option<u32> {
    if sk.len() != ID_DIGITS {
        return None;
    }
    sk.parse().ok()
}

/// How many partitions the poison records of a day have, so that a burst is spread over them.
pub const POISON_SHARDS: u8 = 16;
/// The prefix of the partitions of poison records.
pub const POISON: &str = "POISON#";

/// A poison record, in a partition of the day on which it was stored. `stream` and
/// `sequence_number` identify it. Names that exceed the 1,024 bytes of a sort key, which no stream
/// produces, are hashed.
pub fn poison(day: &str, stream: &str, sequence_number: &str) -> PrimaryKey {
    let mut name = format!("{sequence_number}#{stream}");
    if name.len() > MAX_SORT_KEY {
        name = hex::encode(Sha256::digest(name));
    }
    let shard = poison_shard(parse_poison_number(&name));
    PrimaryKey::new(poison_partition(day, shard), name)
}

/// The partitions that contain the poison records of a day. Version 0.2.0 stored them in the last
/// one.
pub fn poison_partitions(day: &str) -> Vec<String> {
    let mut partitions: Vec<_> = (0..POISON_SHARDS)
        .map(|shard| poison_partition(day, shard))
        .collect();
    partitions.push(unsharded_poison_partition(day));
    partitions
}

/// The partitions that may contain the poison records of a day with this number.
pub fn poison_partitions_of_number(day: &str, number: &str) -> [String; 2] {
    [
        poison_partition(day, poison_shard(number)),
        unsharded_poison_partition(day),
    ]
}

/// The day and the number of a poison record.
pub fn parse_poison(primary: &PrimaryKey) -> (&str, &str) {
    let day = primary.pk.split('#').nth(1).unwrap_or_default();
    (day, parse_poison_number(&primary.sk))
}

fn poison_partition(day: &str, shard: u8) -> String {
    format!("{POISON}{day}#{}", shard_name(shard))
}

fn unsharded_poison_partition(day: &str) -> String {
    format!("{POISON}{day}")
}

fn poison_shard(number: &str) -> u8 {
    Sha256::digest(number)[0] % POISON_SHARDS
}

/// The sequence number of a poison record's name. An ARN contains no `#`. For a hashed name, the
/// hash is returned.
fn parse_poison_number(name: &str) -> &str {
    match name.rsplit_once('#') {
        Some((number, _)) => number,
        None => name,
    }
}

/// The prefix of the partitions of [`hold_window`].
pub const HOLDS: &str = "HOLD#";

/// The counter of environments that began to be held in a window of time.
pub fn hold_window(window: i64) -> PrimaryKey {
    PrimaryKey::new(format!("{HOLDS}{window}"), SINGLETON_SK)
}

/// The checkpoint of a stream's shard.
pub fn checkpoint(stream: &str, shard: &str) -> PrimaryKey {
    PrimaryKey::new(format!("CHECKPOINT#{stream}"), shard)
}

/// The partition of a webhook's deliveries.
pub fn deliveries(account: &AccountId, id: WebhookId) -> String {
    format!("{account}#{id}")
}

/// The webhook of a partition of deliveries. An account id may contain `#`; a webhook id cannot.
pub fn parse_deliveries(pk: &str) -> Option<(AccountId, WebhookId)> {
    let (account, webhook) = pk.rsplit_once('#')?;
    Some((AccountId::parse(account).ok()?, WebhookId::parse(webhook)?))
}

/// The partition of webhooks that are resuming.
pub const PENDING_RESUMES: &str = "RESUME";

/// The marker of a webhook that was enabled again and may have paused deliveries.
pub fn pending_resume(account: &AccountId, id: WebhookId) -> PrimaryKey {
    PrimaryKey::new(PENDING_RESUMES.to_owned(), deliveries(account, id))
}

/// The partition of endpoints whose circuit breaker is open.
pub const OPEN_BREAKERS: &str = "PROBE";

/// The marker of an endpoint whose circuit breaker is open.
pub fn open_breaker(account: &AccountId, id: WebhookId) -> PrimaryKey {
    PrimaryKey::new(OPEN_BREAKERS.to_owned(), deliveries(account, id))
}

/// A replay.
pub fn replay(account: &AccountId, id: WebhookId, replay: &ReplayId) -> PrimaryKey {
    PrimaryKey::new(
        account_partition(account),
        format!("REPLAY#{:0ID_DIGITS$}#{replay}", id.get()),
    )
}

/// The partition of webhooks with an active replay.
pub const ACTIVE_REPLAYS: &str = "REPLAY";

/// The marker of a webhook's active replay. A webhook has one at a time.
pub fn active_replay(account: &AccountId, id: WebhookId) -> PrimaryKey {
    PrimaryKey::new(ACTIVE_REPLAYS.to_owned(), deliveries(account, id))
}

/// A delivery.
pub fn delivery(key: &DeliveryKey) -> PrimaryKey {
    PrimaryKey::new(deliveries(&key.account, key.webhook), key.event.as_str())
}

/// The delivery of a primary key.
pub fn parse_delivery(primary: &PrimaryKey) -> Option<DeliveryKey> {
    let (account, webhook) = parse_deliveries(&primary.pk)?;
    Some(DeliveryKey {
        account,
        webhook,
        event: EventId::parse(&primary.sk)?,
    })
}

/// The partition of the state index: a webhook's deliveries with a status.
pub fn state_index_key(account: &AccountId, id: WebhookId, status: DeliveryStatus) -> String {
    format!("{}#{}", deliveries(account, id), status.as_str())
}

/// The shard of the due index that contains a delivery.
pub fn due_shard(event: &EventId) -> String {
    shard_name(Sha256::digest(event.as_str())[0] % DUE_SHARDS)
}

/// The name of a shard, in keys.
pub fn shard_name(shard: u8) -> String {
    format!("{shard:02}")
}

/// How many shards the due index has, so that its writes are spread over several partitions.
pub const DUE_SHARDS: u8 = 16;

/// The UTC day of a time, as keys contain it: `2024-12-23`.
pub fn utc_day(at: Timestamp) -> String {
    at.to_rfc3339()[..10].to_owned()
}

/// Checks a day, as keys contain it.
pub fn parse_utc_day(text: &str) -> Option<String> {
    let midnight = Timestamp::parse_rfc3339(&format!("{text}T00:00:00Z"))?;
    let day = utc_day(midnight);
    if day == text { Some(day) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An account id may contain the separator.
    #[test]
    fn delivery_key_round_trips() {
        for name in ["acme", "a#b", "a#1#2", "#"] {
            let key = DeliveryKey {
                account: AccountId::parse(name).unwrap(),
                webhook: WebhookId::new(12).unwrap(),
                event: EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
            };
            assert_eq!(parse_delivery(&delivery(&key)), Some(key));
        }
    }

    #[test]
    fn webhook_keys_sort_by_number() {
        let acme = AccountId::parse("acme").unwrap();
        let sk = |n| webhook(&acme, WebhookId::new(n).unwrap()).sk;
        assert!(sk(9) < sk(10) && sk(10) < sk(9_999_999_999));
        assert_eq!(parse_webhook(&sk(10)), WebhookId::new(10));
        assert_eq!(parse_webhook("WEBHOOK#0000000010#HEALTH"), None);
        assert_eq!(parse_webhook("META"), None);
    }

    #[test]
    fn poison_key_names_day_and_number() {
        let arn =
            "arn:aws:dynamodb:eu-west-1:123456789012:table/jobs/stream/2024-12-23T00:00:00.000";
        for (stream, number) in [(arn, "100"), ("", "unknown-0a")] {
            let key = poison("2024-12-23", stream, number);
            assert_eq!(parse_poison(&key), ("2024-12-23", number));
        }
        let hashed = poison("2024-12-23", arn, &"9".repeat(5_000));
        assert_eq!(parse_poison(&hashed), ("2024-12-23", hashed.sk.as_str()));
        let unsharded = PrimaryKey::new("POISON#2024-12-23".to_owned(), format!("100#{arn}"));
        assert_eq!(parse_poison(&unsharded), ("2024-12-23", "100"));
    }

    /// Every record is in a partition that is listed, and in one that its number leads to.
    #[test]
    fn poison_partitions_cover_all_records() {
        let day = "2024-12-23";
        let partitions = poison_partitions(day);
        let mut used = std::collections::BTreeSet::new();
        for number in 0..1_000 {
            let key = poison(day, "arn", &number.to_string());
            let (_, number) = parse_poison(&key);
            assert!(partitions.contains(&key.pk), "{key:?}");
            assert!(poison_partitions_of_number(day, number).contains(&key.pk));
            used.insert(key.pk.clone());
        }
        let hashed = poison(day, "arn", &"9".repeat(5_000));
        let (_, number) = parse_poison(&hashed);
        assert!(poison_partitions_of_number(day, number).contains(&hashed.pk));
        assert_eq!(used.len(), usize::from(POISON_SHARDS));
    }

    #[test]
    fn utc_day_is_only_a_date() {
        assert_eq!(parse_utc_day("2024-02-29").as_deref(), Some("2024-02-29"));
        for wrong in [
            "",
            "2024-2-29",
            "2023-02-29",
            "yesterday",
            "2024-12-23T00:00:00Z",
            "2024-12-23#",
        ] {
            assert_eq!(parse_utc_day(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn idempotency_keys_of_accounts_differ() {
        let key = |account: &str, key| idempotency(&AccountId::parse(account).unwrap(), key);
        assert_ne!(key("a", "b#c"), key("a#b", "c"));
    }
}
