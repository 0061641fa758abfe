//! A job that ended: the event that subscribers hear of, its id, and the canonical bytes of its body.

pub mod attribute_data;
pub mod decimal;
pub mod traceparent;

use std::fmt;

use sha2::{Digest, Sha256};

use crate::{
    timestamp::Timestamp,
    webhook::{AccountId, EventType, WebhookId},
};
use attribute_data::{AttributeData, write_string};
use decimal::Decimal;
use traceparent::Traceparent;

/// The largest body that is sent: 256 KiB. It keeps a delivery item, which holds the body and the latest attempts, under DynamoDB's
/// 400 KB.
pub const MAX_PAYLOAD_LEN: usize = 256 * 1024;

/// The status of a job that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// `completed`.
    Completed,
    /// `failed`.
    Failed,
}

impl JobOutcome {
    /// The outcome that a job's `status` names, or `None` while the job is in progress.
    pub fn from_status(status: &str) -> Option<Self> {
        match status {
            "completed" => Some(Self::Completed),
            "failed" => Some(Self::Failed),
            _ => None,
        }
    }

    /// The `status` that names this outcome.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// The event type that subscribers know it by.
    pub const fn event_type(self) -> EventType {
        match self {
            Self::Completed => EventType::JobCompleted,
            Self::Failed => EventType::JobFailed,
        }
    }
}

/// A job that ended, as its stream record told it.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEvent {
    /// Names this event in every delivery and attempt: the receivers' key for removing duplicates.
    pub id: EventId,
    /// Whose job it was.
    pub account: AccountId,
    /// The job.
    pub task_id: String,
    /// `image`, `video`, or any other.
    pub task_type: String,
    /// How it ended.
    pub outcome: JobOutcome,
    /// When it ended: RFC 3339 in UTC.
    pub timestamp: String,
    /// What the worker says of the result; a [`AttributeData::Map`].
    pub data: AttributeData,
    /// The trace that the job belongs to, if it says so.
    pub traceparent: Option<Traceparent>,
}

impl JobEvent {
    /// A job to try an endpoint with; its `data` says that it is none.
    pub fn sample(
        id: EventId,
        account: AccountId,
        task_id: &str,
        outcome: JobOutcome,
        now: Timestamp,
    ) -> Self {
        let text = |text: &str| AttributeData::String(text.to_owned());
        let told = match outcome {
            JobOutcome::Completed => ("url".to_owned(), text("https://cdn.example.com/image.png")),
            JobOutcome::Failed => ("error".to_owned(), text("an example of an error")),
        };
        Self {
            id,
            account,
            task_id: task_id.to_owned(),
            task_type: "image".to_owned(),
            outcome,
            timestamp: now.to_rfc3339(),
            data: AttributeData::Map(vec![told, ("test".to_owned(), AttributeData::Bool(true))]),
            traceparent: None,
        }
    }

    /// The body that every subscriber receives: exactly these bytes are stored, signed and sent.
    pub fn to_canonical_json(&self) -> String {
        let mut out = Vec::with_capacity(512);
        let mut field = |name: &str, text: &str| {
            out.extend_from_slice(name.as_bytes());
            write_string(text, &mut out);
        };
        field("{\"event\":", self.outcome.event_type().as_str());
        field(",\"task_id\":", &self.task_id);
        field(",\"task_type\":", &self.task_type);
        field(",\"status\":", self.outcome.as_str());
        out.extend_from_slice(b",\"data\":");
        self.data.write_json(&mut out);
        out.extend_from_slice(b",\"timestamp\":");
        write_string(&self.timestamp, &mut out);
        out.push(b'}');
        String::from_utf8(out).expect("JSON that was written from strings is UTF-8")
    }
}

/// The body that tells an account's other webhooks that one was disabled, in the form of a job's.
pub fn webhook_disabled_payload(
    webhook: WebhookId,
    url: &str,
    reason: &str,
    timestamp: &str,
) -> String {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"event\":");
    write_string(EventType::WebhookDisabled.as_str(), &mut out);
    out.extend_from_slice(b",\"data\":");
    let data = AttributeData::Map(vec![
        (
            "disabled_reason".to_owned(),
            AttributeData::String(reason.to_owned()),
        ),
        ("url".to_owned(), AttributeData::String(url.to_owned())),
        (
            "webhook_id".to_owned(),
            AttributeData::Number(Decimal::parse(&webhook.to_string()).expect("an id is a number")),
        ),
    ]);
    data.write_json(&mut out);
    out.extend_from_slice(b",\"timestamp\":");
    write_string(timestamp, &mut out);
    out.push(b'}');
    String::from_utf8(out).expect("JSON that was written from strings is UTF-8")
}

/// `evt_` and 26 characters of Crockford base32: 48 bits of time, then 80 bits of a hash. Sorts by time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(String);

/// What makes a change of a job unique in its stream.
#[derive(Clone, Copy, Debug)]
pub struct EventOrigin<'a> {
    /// The ARN of the stream.
    pub stream: &'a str,
    /// The sequence number of the record in it.
    pub sequence_number: &'a str,
    /// When the record was created.
    pub created_at: Timestamp,
}

impl EventId {
    /// Crockford's alphabet: no I, L, O or U.
    const ALPHABET: &'static [u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    const PREFIX: &'static str = "evt_";
    const LENGTH: usize = 26;
    /// How many of the digits hold the 48 bits of time: 128 bits fill 26 digits of 5 but for the first two bits.
    const TIME_DIGITS: usize = 10;

    /// The id of an event: the same stream record always gives the same id, and two changes of one job never share one.
    pub fn from_origin(
        origin: EventOrigin<'_>,
        account: &AccountId,
        task_id: &str,
        event: EventType,
    ) -> Self {
        let mut hash = Sha256::new();
        for part in [
            origin.stream,
            origin.sequence_number,
            account.as_str(),
            task_id,
            event.as_str(),
        ] {
            // With its length in front no part can run over into the next.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let mut rest = [0; 10];
        rest.copy_from_slice(&hash.finalize()[..10]);
        Self::from_parts(origin.created_at, rest)
    }

    /// The id that comes before all others of this moment.
    pub fn min_at(at: Timestamp) -> Self {
        Self::from_parts(at, [0; 10])
    }

    /// The id that comes after all others of this moment.
    pub fn max_at(at: Timestamp) -> Self {
        Self::from_parts(at, [0xff; 10])
    }

    fn from_parts(at: Timestamp, rest: [u8; 10]) -> Self {
        let mut bytes = [0; 16];
        let millis = u64::try_from(at.as_unix_millis()).unwrap_or(0);
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&rest);
        let bits = u128::from_be_bytes(bytes);
        let digits = (0..Self::LENGTH).rev().map(|place| {
            let digit = (bits >> (place * 5)) & 31;
            char::from(Self::ALPHABET[usize::try_from(digit).unwrap_or(0)])
        });
        Self(Self::PREFIX.chars().chain(digits).collect())
    }

    /// The id of an event that no stream record told of: this account's and subject's own, at this moment.
    pub fn synthetic(
        moment: Timestamp,
        account: &AccountId,
        subject: &str,
        event: EventType,
    ) -> Self {
        let sequence_number = moment.as_unix_millis().to_string();
        let origin = EventOrigin {
            stream: "",
            sequence_number: &sequence_number,
            created_at: moment,
        };
        Self::from_origin(origin, account, subject, event)
    }

    /// Reads an id; `None` if `text` cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(Self::PREFIX)?;
        let known =
            digits.len() == Self::LENGTH && digits.bytes().all(|b| Self::ALPHABET.contains(&b));
        known.then(|| Self(text.to_owned()))
    }

    /// When the stream record was created that told of the event.
    pub fn created_at(&self) -> Timestamp {
        let digits = self
            .0
            .bytes()
            .skip(Self::PREFIX.len())
            .take(Self::TIME_DIGITS);
        let value = |digit| {
            Self::ALPHABET
                .iter()
                .position(|known| *known == digit)
                .unwrap_or(0)
        };
        let millis = digits.fold(0, |millis, digit| millis << 5 | value(digit) as u64);
        Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    #[test]
    fn the_body_is_the_documented_one_to_the_letter() {
        let event = JobEvent {
            id: EventId::parse("evt_01JFRZ4AN0000000000000000A").unwrap(),
            account: account("acme"),
            task_id: "task_xxx".into(),
            task_type: "image".into(),
            outcome: JobOutcome::Completed,
            timestamp: "2024-12-23T10:00:00Z".into(),
            data: AttributeData::Map(vec![
                (
                    "url".into(),
                    AttributeData::String("https://cdn.example.com/image.png".into()),
                ),
                (
                    "credits_charged".into(),
                    AttributeData::Number(Decimal::parse("6").unwrap()),
                ),
            ]),
            traceparent: None,
        };
        // The documented example lists `url` before `credits_charged`; inside `data` the keys are sorted.
        assert_eq!(
            event.to_canonical_json(),
            r#"{"event":"job.completed","task_id":"task_xxx","task_type":"image","status":"completed","data":{"credits_charged":6,"url":"https://cdn.example.com/image.png"},"timestamp":"2024-12-23T10:00:00Z"}"#
        );
    }

    #[test]
    fn a_disabled_webhook_is_told_of_in_the_form_of_a_job() {
        assert_eq!(
            webhook_disabled_payload(
                WebhookId::new(7).unwrap(),
                "https://example.com/\"",
                "Gone.",
                "2024-12-23T10:00:00Z"
            ),
            r#"{"event":"webhook.disabled","data":{"disabled_reason":"Gone.","url":"https://example.com/\"","webhook_id":7},"timestamp":"2024-12-23T10:00:00Z"}"#
        );
    }

    #[test]
    fn an_id_depends_on_every_part_and_on_nothing_else() {
        let origin = EventOrigin {
            stream: "arn",
            sequence_number: "100",
            created_at: Timestamp::from_millis(1_734_948_000_000),
        };
        let id =
            |origin, a: &str, task, event| EventId::from_origin(origin, &account(a), task, event);
        let base = id(origin, "acme", "t1", EventType::JobCompleted);
        assert_eq!(base, id(origin, "acme", "t1", EventType::JobCompleted));
        let others = [
            id(
                EventOrigin {
                    stream: "arn2",
                    ..origin
                },
                "acme",
                "t1",
                EventType::JobCompleted,
            ),
            id(
                EventOrigin {
                    sequence_number: "101",
                    ..origin
                },
                "acme",
                "t1",
                EventType::JobCompleted,
            ),
            id(
                EventOrigin {
                    created_at: Timestamp::from_millis(1),
                    ..origin
                },
                "acme",
                "t1",
                EventType::JobCompleted,
            ),
            id(origin, "acmet", "1", EventType::JobCompleted),
            id(origin, "acme", "t2", EventType::JobCompleted),
            id(origin, "acme", "t1", EventType::JobFailed),
        ];
        for (n, other) in others.iter().enumerate() {
            assert_ne!(&base, other, "{n}");
        }
    }

    #[test]
    fn an_id_is_a_prefix_and_26_characters_that_sort_by_time() {
        let at = |millis| {
            let origin = EventOrigin {
                stream: "arn",
                sequence_number: "1",
                created_at: Timestamp::from_millis(millis),
            };
            EventId::from_origin(origin, &account("a"), "t", EventType::JobFailed)
        };
        let id = at(1_734_948_000_000);
        assert_eq!(id.as_str().len(), 30);
        assert!(id.as_str().starts_with("evt_01JFSFB480"), "{id}");
        assert_eq!(id.created_at(), Timestamp::from_millis(1_734_948_000_000));
        assert_eq!(
            at((1 << 48) - 1).created_at(),
            Timestamp::from_millis((1 << 48) - 1)
        );
        assert!(at(1) < at(2) && at(2) < at(1_000_000) && at(1_000_000) < id);
        let moment = Timestamp::from_millis(2);
        assert!(at(1) < EventId::min_at(moment) && EventId::min_at(moment) < at(2));
        assert!(at(2) < EventId::max_at(moment) && EventId::max_at(moment) < at(3));
        assert_eq!(EventId::parse(id.as_str()), Some(id));
        for wrong in [
            "",
            "evt_",
            "evt_01JFRZ4AN0000000000000000U",
            "01JFRZ4AN0000000000000000A",
            "evt_01jfrz4an0000000000000000a",
        ] {
            assert_eq!(EventId::parse(wrong), None, "{wrong}");
        }
    }
}
