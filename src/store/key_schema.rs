//! Every key string of the tables, made and parsed here alone.

use aws_sdk_dynamodb::types::AttributeValue;
use sha2::{Digest, Sha256};

use super::Item;
use nano_webhooks_core::{
    account_id::AccountId, delivery::DeliveryKey, event::EventId, replay::ReplayId,
    timestamp::Timestamp, webhook::WebhookId,
};

/// The partition key's attribute in both tables.
pub const PK: &str = "PK";
/// The sort key's attribute in both tables.
pub const SK: &str = "SK";

/// What the sort keys of an account's webhooks begin with.
pub const WEBHOOK_PREFIX: &str = "WEBHOOK#";
/// What the sort keys of an account's API keys begin with.
pub const API_KEY_PREFIX: &str = "KEY#";
/// The sort key of items that are alone in their partition.
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

    /// As the attributes of an item.
    pub fn into_item(self) -> Item {
        Item::from([
            (PK.to_owned(), AttributeValue::S(self.pk)),
            (SK.to_owned(), AttributeValue::S(self.sk)),
        ])
    }
}

/// The partition of an account.
pub fn account(account: &AccountId) -> String {
    format!("ACCOUNT#{account}")
}

/// The account whose partition this is.
pub fn parse_account(pk: &str) -> Option<AccountId> {
    AccountId::parse(pk.strip_prefix("ACCOUNT#")?).ok()
}

/// The item with an account's last webhook id and number of webhooks.
pub fn account_counters(of: &AccountId) -> PrimaryKey {
    PrimaryKey::new(account(of), "META")
}

/// A webhook; ids have ten digits, so that they sort by number.
pub fn webhook(of: &AccountId, id: WebhookId) -> PrimaryKey {
    PrimaryKey::new(account(of), format!("{WEBHOOK_PREFIX}{:010}", id.get()))
}

/// The health of a webhook's endpoint: right behind the webhook, so that one query reads both.
pub fn health(of: &AccountId, id: WebhookId) -> PrimaryKey {
    let PrimaryKey { pk, sk } = webhook(of, id);
    PrimaryKey {
        pk,
        sk: format!("{sk}#HEALTH"),
    }
}

/// The webhook that a sort key names; `None` if it names something else.
pub fn parse_webhook(sk: &str) -> Option<WebhookId> {
    let digits = sk.strip_prefix(WEBHOOK_PREFIX)?;
    WebhookId::new(digits.parse().ok()?).filter(|_| digits.len() == 10)
}

/// The counter of an account's requests on a day.
pub fn rate(of: &AccountId, day: &str) -> PrimaryKey {
    PrimaryKey::new(account(of), format!("RATE#{day}"))
}

/// An API key in its account's list; `prefix` is the part that may be shown.
pub fn api_key_listing(of: &AccountId, prefix: &str) -> PrimaryKey {
    PrimaryKey::new(account(of), format!("{API_KEY_PREFIX}{prefix}"))
}

/// An API key by the hash that a request gives.
pub fn api_key(sha256: &[u8; 32]) -> PrimaryKey {
    PrimaryKey::new(format!("KEY#{}", hex::encode(sha256)), SINGLETON_SK)
}

/// The record of an `Idempotency-Key`. The caller's key is hashed, so that it has a fixed length and cannot look like
/// another account's.
pub fn idempotency(of: &AccountId, key: &str) -> PrimaryKey {
    PrimaryKey::new(
        format!("IDEMPOTENCY#{of}#{}", hex::encode(Sha256::digest(key))),
        SINGLETON_SK,
    )
}

/// The partition of the data keys.
pub const DATA_KEYS: &str = "DATAKEY";

/// A data key, wrapped; versions have ten digits, so that they sort by number.
pub fn data_key(version: u32) -> PrimaryKey {
    PrimaryKey::new(DATA_KEYS.to_owned(), format!("{version:010}"))
}

/// The version of the data key that a sort key names.
pub fn parse_data_key(sk: &str) -> Option<u32> {
    sk.parse().ok().filter(|_| sk.len() == 10)
}

/// A record that could not be understood; one partition a day. `stream` and `sequence_number` name the record; names that no
/// stream gives, and that are longer than a sort key may be (1,024 bytes), are hashed.
pub fn poison(day: &str, stream: &str, sequence_number: &str) -> PrimaryKey {
    let name = format!("{sequence_number}#{stream}");
    let name = if name.len() > 1024 {
        hex::encode(Sha256::digest(name))
    } else {
        name
    };
    PrimaryKey::new(format!("POISON#{day}"), name)
}

/// The day and the number in its stream of the record that a primary key names. An ARN holds no `#`; of a name that was hashed
/// the hash is all there is.
pub fn parse_poison(primary: &PrimaryKey) -> (&str, &str) {
    let day = primary.pk.split_once('#').map_or("", |(_, day)| day);
    (
        day,
        primary
            .sk
            .rsplit_once('#')
            .map_or(&primary.sk, |(number, _)| number),
    )
}

/// The position of a reader of a stream's shard.
pub fn checkpoint(stream: &str, shard: &str) -> PrimaryKey {
    PrimaryKey::new(format!("CHECKPOINT#{stream}"), shard)
}

/// The partition of a webhook's deliveries.
pub fn deliveries(of: &AccountId, id: WebhookId) -> String {
    format!("{of}#{id}")
}

/// The webhook whose deliveries a partition holds. An account's name may hold a `#`; a webhook's id cannot.
pub fn parse_deliveries(pk: &str) -> Option<(AccountId, WebhookId)> {
    let (account, webhook) = pk.rsplit_once('#')?;
    Some((AccountId::parse(account).ok()?, WebhookId::parse(webhook)?))
}

/// The partition of webhooks whose parked deliveries are being made due.
pub const PENDING_RESUMES: &str = "RESUME";

/// A webhook that was enabled again and may still have parked deliveries.
pub fn pending_resume(of: &AccountId, id: WebhookId) -> PrimaryKey {
    PrimaryKey::new(PENDING_RESUMES.to_owned(), deliveries(of, id))
}

/// A replay of a webhook's deliveries.
pub fn replay(of: &AccountId, id: WebhookId, replay: &ReplayId) -> PrimaryKey {
    PrimaryKey::new(account(of), format!("REPLAY#{:010}#{replay}", id.get()))
}

/// The partition of webhooks of which a replay goes on.
pub const ACTIVE_REPLAYS: &str = "REPLAY";

/// A webhook of which a replay goes on: one at a time.
pub fn active_replay(of: &AccountId, id: WebhookId) -> PrimaryKey {
    PrimaryKey::new(ACTIVE_REPLAYS.to_owned(), deliveries(of, id))
}

/// A delivery.
pub fn delivery(key: &DeliveryKey) -> PrimaryKey {
    PrimaryKey::new(deliveries(&key.account, key.webhook), key.event.as_str())
}

/// The delivery that a primary key names.
pub fn parse_delivery(primary: &PrimaryKey) -> Option<DeliveryKey> {
    let (account, webhook) = parse_deliveries(&primary.pk)?;
    Some(DeliveryKey {
        account,
        webhook,
        event: EventId::parse(&primary.sk)?,
    })
}

/// The partition of the listing index: one webhook's deliveries in one state.
pub fn state_index_key(of: &AccountId, id: WebhookId, state: &str) -> String {
    format!("{}#{state}", deliveries(of, id))
}

/// The partition of the due index that a delivery lies in.
pub fn due_shard(event: &EventId) -> String {
    due_shard_name(Sha256::digest(event.as_str())[0] % DUE_SHARDS)
}

/// A partition of the due index.
pub fn due_shard_name(shard: u8) -> String {
    format!("{shard:02}")
}

/// How many partitions the due index has, so that no single one takes all of its writes.
pub const DUE_SHARDS: u8 = 16;

/// The day of an instant in UTC, as keys have it: `2024-12-23`.
pub fn utc_day(at: Timestamp) -> String {
    at.to_rfc3339()[..10].to_owned()
}

/// A day as keys have it, if `text` is one.
pub fn parse_utc_day(text: &str) -> Option<String> {
    let begin = Timestamp::parse_rfc3339(&format!("{text}T00:00:00Z"))?;
    Some(utc_day(begin)).filter(|day| day == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_found_again_from_its_key_even_if_the_account_holds_the_separator() {
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
    fn webhooks_sort_by_number_and_their_companions_are_not_webhooks() {
        let acme = AccountId::parse("acme").unwrap();
        let sk = |n| webhook(&acme, WebhookId::new(n).unwrap()).sk;
        assert!(sk(9) < sk(10) && sk(10) < sk(9_999_999_999));
        assert_eq!(parse_webhook(&sk(10)), WebhookId::new(10));
        assert_eq!(parse_webhook("WEBHOOK#0000000010#HEALTH"), None);
        assert_eq!(parse_webhook("META"), None);
    }

    #[test]
    fn a_kept_record_is_named_by_its_day_and_number_also_where_its_name_was_hashed() {
        let arn =
            "arn:aws:dynamodb:eu-west-1:123456789012:table/jobs/stream/2024-12-23T00:00:00.000";
        assert_eq!(
            parse_poison(&poison("2024-12-23", arn, "100")),
            ("2024-12-23", "100")
        );
        assert_eq!(
            parse_poison(&poison("2024-12-23", "", "unknown-0a")),
            ("2024-12-23", "unknown-0a")
        );
        let hashed = poison("2024-12-23", arn, &"9".repeat(5_000));
        assert_eq!(parse_poison(&hashed), ("2024-12-23", hashed.sk.as_str()));
    }

    #[test]
    fn a_day_is_a_date_and_nothing_else() {
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
    fn account_cannot_reach_others_idempotency_record() {
        let key = |account: &str, key| idempotency(&AccountId::parse(account).unwrap(), key);
        assert_ne!(key("a", "b#c"), key("a#b", "c"));
    }
}
