//! The stored form of a delivery.

use std::time::Duration;

use serde::Deserialize;

use super::{
    error::{Error, Result},
    item::{Item, primary_key},
    item_writer::BorrowedItem,
    key_schema::{self, PrimaryKey},
    tables::{DUE_SHARD, EXPIRES_AT, STATE_KEY, SWEEP_AT},
};
use nano_webhooks_core::{
    delivery::{
        Delivery, DeliveryKey, DeliveryState, attempt::Attempt, lease, status::DeliveryStatus,
        wait_reason::WaitReason,
    },
    event::traceparent::Traceparent,
    event_type::EventType,
    replay::ReplayId,
    timestamp::Timestamp,
};

/// The most attributes that a delivery has.
const MAX_ATTRIBUTES: usize = 23;

/// A delivery as it is read; [`write_delivery`] writes it.
#[derive(Deserialize)]
pub(super) struct DeliveryRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    event: String,
    task_id: Option<String>,
    url: String,
    #[serde(rename = "body")]
    payload: String,
    traceparent: Option<String>,
    status: String,
    attempt_count: u32,
    step: u32,
    /// A JSON list of [`Attempt`].
    attempts: String,
    created_at: Timestamp,
    next_attempt_at: Option<Timestamp>,
    waiting_for: Option<WaitReason>,
    #[serde(default)]
    deferrals: u32,
    paced_since: Option<Timestamp>,
    /// The state before a manual retry was requested: a status, and for `pending` its time.
    resume_status: Option<String>,
    resume_at: Option<Timestamp>,
    /// The replay that requested the next attempt.
    replay: Option<ReplayId>,
}

impl DeliveryRow {
    pub(super) fn into_delivery(self) -> Result<Delivery> {
        let primary_key = PrimaryKey {
            pk: self.pk,
            sk: self.sk,
        };
        let key = key_schema::parse_delivery(&primary_key)
            .ok_or_else(|| Error::corrupt_item("delivery key"))?;
        let event_type =
            EventType::parse(&self.event).ok_or_else(|| Error::corrupt_item("event type"))?;
        let attempts: Vec<Attempt> = serde_json::from_str(&self.attempts)
            .map_err(|_| Error::corrupt_item("list of attempts"))?;
        // An invalid one is not sent, and does not make the delivery unreadable.
        let traceparent = self.traceparent.as_deref().and_then(Traceparent::parse);
        let state_before_retry = match self.resume_status {
            Some(status) => Some(parse_state(&status, self.resume_at)?),
            None => None,
        };
        Ok(Delivery {
            key,
            event_type,
            task_id: self.task_id,
            url: self.url,
            payload: self.payload.into(),
            traceparent,
            state: parse_state(&self.status, self.next_attempt_at)?,
            waiting_for: self.waiting_for,
            deferrals: self.deferrals,
            paced_since: self.paced_since,
            state_before_retry,
            replay: self.replay,
            attempt_count: self.attempt_count,
            schedule_step: self.step,
            attempts,
            created_at: self.created_at,
        })
    }
}

/// The delivery that an item's keys name.
pub(super) fn parse_key(item: &Item) -> Result<DeliveryKey> {
    primary_key(item)
        .and_then(|key| key_schema::parse_delivery(&key))
        .ok_or_else(|| Error::corrupt_item("delivery key"))
}

/// Writes a delivery for the SDK. It expires after `retention` once it is no longer due.
pub(super) fn to_delivery_item(delivery: &Delivery, now: Timestamp, retention: Duration) -> Item {
    write_delivery(delivery, now, retention).into()
}

/// Writes a delivery for the body of a request. It expires after `retention` once it is no longer
/// due.
pub(super) fn write_delivery(
    delivery: &Delivery,
    now: Timestamp,
    retention: Duration,
) -> BorrowedItem<'_> {
    let mut item = BorrowedItem::with_capacity(MAX_ATTRIBUTES);
    let PrimaryKey { pk, sk } = key_schema::delivery(&delivery.key);
    item.text(key_schema::PK, pk);
    item.text(key_schema::SK, sk);
    item.text("event", delivery.event_type.as_str());
    item.text("url", &*delivery.url);
    item.text("body", &*delivery.payload);
    item.text("status", delivery.state.status().as_str());
    item.number("attempt_count", delivery.attempt_count);
    item.number("step", delivery.schedule_step);
    let attempts = serde_json::to_string(&delivery.attempts).expect("attempts are plain data");
    item.text("attempts", attempts);
    item.number("created_at", delivery.created_at.as_unix_millis());
    if let Some(task_id) = &delivery.task_id {
        item.text("task_id", task_id);
    }
    if let Some(traceparent) = &delivery.traceparent {
        item.text("traceparent", traceparent.as_str());
    }
    if let Some(failure) = delivery.attempts.last().and_then(|last| last.failure) {
        item.text("last_failure", failure.as_str());
    }
    if let Some(reason) = delivery.waiting_for {
        item.text("waiting_for", reason.as_str());
    }
    if delivery.deferrals > 0 {
        item.number("deferrals", delivery.deferrals);
    }
    if let Some(since) = delivery.paced_since {
        item.number("paced_since", since.as_unix_millis());
    }
    if let Some(replay) = &delivery.replay {
        item.text("replay", replay.as_str());
    }
    if let Some(state) = delivery.state_before_retry {
        item.text("resume_status", state.status().as_str());
        if let DeliveryState::Pending(due_at) = state {
            item.number("resume_at", due_at.as_unix_millis());
        }
    }
    write_index_keys(&mut item, delivery, now, retention);
    item
}

/// Only deliveries that are due sometime are in the due index, and only the others expire. Only
/// pending and failed deliveries are in the state index.
fn write_index_keys(
    item: &mut BorrowedItem<'_>,
    delivery: &Delivery,
    now: Timestamp,
    retention: Duration,
) {
    if let DeliveryState::Pending(due_at) = delivery.state {
        item.number("next_attempt_at", due_at.as_unix_millis());
        item.text(DUE_SHARD, key_schema::due_shard(&delivery.key.event));
        item.number(SWEEP_AT, lease::sweep_at(due_at, now).as_unix_millis());
    } else {
        item.number(EXPIRES_AT, (now + retention).as_unix_seconds());
    }
    match delivery.state {
        DeliveryState::Pending(_) | DeliveryState::Paused | DeliveryState::Failed => {
            let DeliveryKey {
                account, webhook, ..
            } = &delivery.key;
            let status = delivery.state.status();
            let state_key = key_schema::state_index_key(account, *webhook, status);
            item.text(STATE_KEY, state_key);
        }
        DeliveryState::Delivered | DeliveryState::Cancelled => {}
    }
}

fn parse_state(status: &str, due_at: Option<Timestamp>) -> Result<DeliveryState> {
    let status = status
        .parse()
        .map_err(|_| Error::corrupt_item("delivery state"))?;
    Ok(match (status, due_at) {
        (DeliveryStatus::Pending, Some(due_at)) => DeliveryState::Pending(due_at),
        (DeliveryStatus::Pending, None) => DeliveryState::Paused,
        (DeliveryStatus::Delivered, _) => DeliveryState::Delivered,
        (DeliveryStatus::Failed, _) => DeliveryState::Failed,
        (DeliveryStatus::Cancelled, _) => DeliveryState::Cancelled,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::response_body::MAX_BODY_KEPT,
        store::{
            item::{attr_n, attr_s, from_item},
            rotation::MAX_ACTIVE_SECRETS,
        },
    };
    use nano_webhooks_core::{
        account_id::AccountId,
        delivery::{
            failure::{Failure, FailureKind},
            schedule::RetrySchedule,
            timings::PhaseTimings,
        },
        endpoint_url::EndpointUrl,
        event::{EventId, MAX_PAYLOAD_LEN},
        signing::Signatures,
        static_headers::{StaticHeaderName, StaticHeaders},
        webhook::WebhookId,
    };

    const NOW: Timestamp = at(100);
    const RETENTION: Duration = Duration::from_mins(1);

    const fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn delivery_key() -> DeliveryKey {
        DeliveryKey {
            account: AccountId::parse("acme").unwrap(),
            webhook: WebhookId::new(1).unwrap(),
            event: EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
        }
    }

    fn new_delivery() -> Delivery {
        let url = "https://example.com".to_owned();
        let event_type = EventType::JobFailed;
        Delivery::new(delivery_key(), event_type, None, url, "{}".into(), at(1))
    }

    fn failed_attempt() -> Attempt {
        Attempt {
            number: 1,
            started_at: at(5),
            duration_ms: u64::MAX,
            timings: PhaseTimings {
                wait: Some(7),
                ..PhaseTimings::default()
            },
            status_code: Some(503),
            failure: Some(FailureKind::Status),
            detail: Some("The endpoint returned status 503.".to_owned()),
            response_excerpt: Some(String::new()),
            signatures: Some(Signatures {
                nano: "v1=00".to_owned(),
                standard: "v1,AA==".to_owned(),
            }),
            static_headers: vec!["X-Api-Key".to_owned()],
            version: "1.2.3".to_owned(),
        }
    }

    /// An attempt without optional fields.
    fn bare_attempt() -> Attempt {
        Attempt {
            status_code: None,
            failure: None,
            detail: None,
            response_excerpt: None,
            signatures: None,
            static_headers: Vec::new(),
            ..failed_attempt()
        }
    }

    /// A delivery with all optional fields.
    fn full_delivery(state: DeliveryState, state_before_retry: Option<DeliveryState>) -> Delivery {
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        Delivery {
            task_id: Some("task".to_owned()),
            traceparent: Some(Traceparent::parse(traceparent).unwrap()),
            state,
            waiting_for: Some(WaitReason::Secret),
            deferrals: 3,
            paced_since: Some(at(77)),
            state_before_retry,
            replay: Some(ReplayId::from_random([7; 8])),
            attempt_count: 22,
            schedule_step: 2,
            attempts: vec![bare_attempt(), failed_attempt()],
            created_at: at(3),
            ..new_delivery()
        }
    }

    #[test]
    fn written_delivery_is_read() {
        let due = DeliveryState::Pending(at(9));
        let due_before = DeliveryState::Pending(at(10));
        for delivery in [
            new_delivery(),
            full_delivery(due, Some(DeliveryState::Failed)),
            full_delivery(due, Some(due_before)),
            full_delivery(DeliveryState::Paused, None),
            full_delivery(DeliveryState::Delivered, None),
            full_delivery(DeliveryState::Failed, None),
            full_delivery(DeliveryState::Cancelled, None),
        ] {
            let item = to_delivery_item(&delivery, NOW, RETENTION);
            let row: DeliveryRow = from_item(item).unwrap();
            assert_eq!(row.into_delivery().unwrap(), delivery);
        }
    }

    /// The values of the attributes that indexes and TTL use, and of the latest failure.
    fn index_attributes(delivery: &Delivery) -> [Option<String>; 5] {
        let item = to_delivery_item(delivery, NOW, RETENTION);
        ["last_failure", DUE_SHARD, SWEEP_AT, STATE_KEY, EXPIRES_AT].map(|name| {
            let value = item.get(name)?;
            value.as_s().or(value.as_n()).ok().cloned()
        })
    }

    #[test]
    fn state_decides_index_attributes() {
        let shard = key_schema::due_shard(&delivery_key().event);
        let sweep_at = lease::sweep_at(at(9), NOW).as_unix_millis().to_string();
        let pending = full_delivery(DeliveryState::Pending(at(9)), None);
        let expected = [
            Some("status".to_owned()),
            Some(shard),
            Some(sweep_at),
            Some("acme#1#pending".to_owned()),
            None,
        ];
        assert_eq!(index_attributes(&pending), expected);
        let failed = full_delivery(DeliveryState::Failed, None);
        let key = Some("acme#1#failed".to_owned());
        let expected = [
            Some("status".to_owned()),
            None,
            None,
            key,
            Some("60".to_owned()),
        ];
        assert_eq!(index_attributes(&failed), expected);
        let mut delivered = full_delivery(DeliveryState::Delivered, None);
        delivered.attempts = vec![bare_attempt()];
        let expected = [None, None, None, None, Some("60".to_owned())];
        assert_eq!(index_attributes(&delivered), expected);
    }

    /// The stored form is fixed: tables have deliveries that earlier versions wrote.
    #[test]
    fn stored_delivery_is_read() {
        let item = [
            ("PK", attr_s("acme#1")),
            ("SK", attr_s("evt_01JFS8TX800000000000000000")),
            ("event", attr_s("job.failed")),
            ("task_id", attr_s("task")),
            ("url", attr_s("https://example.com")),
            ("body", attr_s("{}")),
            ("status", attr_s("pending")),
            ("attempt_count", attr_n(1)),
            ("step", attr_n(1)),
            ("attempts", attr_s("[]")),
            ("created_at", attr_n(3)),
            ("next_attempt_at", attr_n(9)),
            ("due_shard", attr_s("07")),
            ("sweep_at", attr_n(309)),
            ("state_key", attr_s("acme#1#pending")),
            ("resume_status", attr_s("failed")),
            ("replay", attr_s("rpl_0707070707070707")),
            ("leased_until", attr_n(45)),
        ];
        let item: Item = item.map(|(name, value)| (name.to_owned(), value)).into();
        let row: DeliveryRow = from_item(item).unwrap();
        let expected = Delivery {
            task_id: Some("task".to_owned()),
            state: DeliveryState::Pending(at(9)),
            state_before_retry: Some(DeliveryState::Failed),
            replay: Some(ReplayId::from_random([7; 8])),
            attempt_count: 1,
            schedule_step: 1,
            created_at: at(3),
            ..new_delivery()
        };
        assert_eq!(row.into_delivery().unwrap(), expected);
    }

    #[test]
    fn largest_delivery_fits_item() {
        let key = DeliveryKey {
            account: AccountId::parse(&"a".repeat(AccountId::MAX)).unwrap(),
            webhook: WebhookId::new(1).unwrap(),
            event: EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
        };
        let failure = Failure::Connect;
        let attempt = Attempt {
            number: u32::MAX,
            started_at: at(i64::MAX),
            duration_ms: u64::MAX,
            timings: PhaseTimings {
                dns: Some(u64::MAX),
                ..PhaseTimings::default()
            },
            status_code: Some(503),
            failure: Some(failure.kind()),
            detail: Some(failure.to_string()),
            // JSON writes this character with two.
            response_excerpt: Some("\"".repeat(MAX_BODY_KEPT)),
            signatures: Some(Signatures {
                nano: "v".repeat(67),
                standard: "v".repeat(MAX_ACTIVE_SECRETS * 48),
            }),
            static_headers: vec!["x".repeat(StaticHeaderName::MAX); StaticHeaders::MAX],
            version: "100.100.100".to_owned(),
        };
        let url = format!(
            "https://example.com/{}",
            "\u{10348}".repeat(EndpointUrl::MAX)
        );
        let delivery = Delivery {
            attempts: vec![attempt; RetrySchedule::MAX_ATTEMPTS],
            ..Delivery::new(
                key,
                EventType::JobFailed,
                Some("t".repeat(2_048)),
                url,
                "b".repeat(MAX_PAYLOAD_LEN).into(),
                at(1),
            )
        };
        let item = to_delivery_item(&delivery, NOW, RETENTION);
        let mut bytes = 0;
        for (name, value) in &item {
            bytes += name.len() + value.as_s().or(value.as_n()).unwrap().len();
        }
        assert!(bytes <= 400 * 1024, "{bytes}");
    }
}
