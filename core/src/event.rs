//! An event: its id and the canonical bytes of its payload.

pub mod attribute_data;
pub mod decimal;
pub mod traceparent;

use std::fmt;

use sha2::{Digest, Sha256};

use crate::{account_id::AccountId, event_type::EventType, timestamp::Timestamp};
use attribute_data::{AttributeData, write_string};
use traceparent::Traceparent;

/// The largest payload, in bytes. A delivery item holds the payload and the latest attempts, and
/// DynamoDB limits an item to 400 KB.
pub const MAX_PAYLOAD_LEN: usize = 256 * 1024;

/// The terminal status of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// `completed`.
    Completed,
    /// `failed`.
    Failed,
}

impl JobOutcome {
    /// Parses a job's `status`; `None` while the job is in progress.
    pub fn from_status(status: &str) -> Option<Self> {
        match status {
            "completed" => Some(Self::Completed),
            "failed" => Some(Self::Failed),
            _ => None,
        }
    }

    /// The job's `status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// The type of the event that this outcome raises.
    pub const fn event_type(self) -> EventType {
        match self {
            Self::Completed => EventType::JobCompleted,
            Self::Failed => EventType::JobFailed,
        }
    }
}

/// A job that reached a terminal status.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEvent {
    /// The event's id, the same in every delivery and attempt.
    pub id: EventId,
    /// The owner of the job.
    pub account: AccountId,
    /// The job.
    pub task_id: String,
    /// `image`, `video`, or any other type.
    pub task_type: String,
    /// The terminal status.
    pub outcome: JobOutcome,
    /// The time of the outcome: RFC 3339 in UTC.
    pub timestamp: String,
    /// The result of the job; an [`AttributeData::Map`].
    pub data: AttributeData,
    /// The job's trace context.
    pub traceparent: Option<Traceparent>,
}

impl JobEvent {
    /// Makes the event that a test delivery sends; its `data` has `"test": true`.
    pub fn sample(
        id: EventId,
        account: AccountId,
        task_id: &str,
        outcome: JobOutcome,
        now: Timestamp,
    ) -> Self {
        let (key, value) = match outcome {
            JobOutcome::Completed => ("url", "https://cdn.example.com/image.png"),
            JobOutcome::Failed => ("error", "an example of an error"),
        };
        let result = (key.to_owned(), AttributeData::String(value.to_owned()));
        let test = ("test".to_owned(), AttributeData::Bool(true));
        Self {
            id,
            account,
            task_id: task_id.to_owned(),
            task_type: "image".to_owned(),
            outcome,
            timestamp: now.to_rfc3339(),
            data: AttributeData::Map(vec![result, test]),
            traceparent: None,
        }
    }

    /// Writes the payload. Exactly these bytes are stored, signed and sent.
    pub fn to_canonical_json(&self) -> String {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(b"{\"event\":");
        write_string(self.outcome.event_type().as_str(), &mut out);
        out.extend_from_slice(b",\"task_id\":");
        write_string(&self.task_id, &mut out);
        out.extend_from_slice(b",\"task_type\":");
        write_string(&self.task_type, &mut out);
        out.extend_from_slice(b",\"status\":");
        write_string(self.outcome.as_str(), &mut out);
        out.extend_from_slice(b",\"data\":");
        self.data.write_json(&mut out);
        out.extend_from_slice(b",\"timestamp\":");
        write_string(&self.timestamp, &mut out);
        out.push(b'}');
        String::from_utf8(out).expect("JSON that was written from strings is UTF-8")
    }
}

/// The id of an event: `evt_` and 26 characters of Crockford base32, 48 bits of time and 80 bits of
/// a hash. Ids sort by time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(String);

/// The stream record that an event comes from.
#[derive(Clone, Copy, Debug)]
pub struct EventOrigin<'a> {
    /// The ARN of the stream.
    pub stream: &'a str,
    /// The sequence number of the record.
    pub sequence_number: &'a str,
    /// The creation time of the record.
    pub created_at: Timestamp,
}

impl EventId {
    /// Crockford's alphabet, without I, L, O and U.
    const ALPHABET: &'static [u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    const PREFIX: &'static str = "evt_";
    const LENGTH: usize = 26;
    /// The digits of the 48 bits of time. 26 digits have 130 bits for 128, so the first digit holds
    /// only three bits.
    const TIME_DIGITS: usize = 10;

    /// Derives the id of an event. A stream record always gives the same id, and two changes of one
    /// job never share one.
    pub fn from_origin(
        origin: EventOrigin<'_>,
        account: &AccountId,
        task_id: &str,
        event_type: EventType,
    ) -> Self {
        let mut hash = Sha256::new();
        for part in [
            origin.stream,
            origin.sequence_number,
            account.as_str(),
            task_id,
            event_type.as_str(),
        ] {
            // The length separates the part from the next one.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let mut hash_bits = [0; 10];
        hash_bits.copy_from_slice(&hash.finalize()[..10]);
        Self::from_parts(origin.created_at, hash_bits)
    }

    /// Derives the id of an event without a stream record from its subject and time.
    pub fn synthetic(
        created_at: Timestamp,
        account: &AccountId,
        subject: &str,
        event_type: EventType,
    ) -> Self {
        let origin = EventOrigin {
            stream: "",
            sequence_number: &created_at.as_unix_millis().to_string(),
            created_at,
        };
        Self::from_origin(origin, account, subject, event_type)
    }

    /// The first id in sort order of this millisecond.
    pub fn min_at(time: Timestamp) -> Self {
        Self::from_parts(time, [0; 10])
    }

    /// The last id in sort order of this millisecond.
    pub fn max_at(time: Timestamp) -> Self {
        Self::from_parts(time, [0xff; 10])
    }

    fn from_parts(time: Timestamp, hash_bits: [u8; 10]) -> Self {
        let mut bytes = [0; 16];
        let millis = u64::try_from(time.as_unix_millis()).unwrap_or(0);
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&hash_bits);
        let bits = u128::from_be_bytes(bytes);
        let mut id = String::with_capacity(Self::PREFIX.len() + Self::LENGTH);
        id.push_str(Self::PREFIX);
        for index in (0..Self::LENGTH).rev() {
            let digit = usize::try_from((bits >> (index * 5)) & 31).unwrap_or(0);
            id.push(char::from(Self::ALPHABET[digit]));
        }
        Self(id)
    }

    /// Parses an id; `None` if `text` is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(Self::PREFIX)?.as_bytes();
        let is_valid = digits.len() == Self::LENGTH
            && digits.iter().all(|digit| Self::ALPHABET.contains(digit));
        if is_valid {
            Some(Self(text.to_owned()))
        } else {
            None
        }
    }

    /// The creation time of the stream record, in milliseconds.
    pub fn created_at(&self) -> Timestamp {
        let digits = &self.0.as_bytes()[Self::PREFIX.len()..];
        let mut millis = 0;
        for digit in &digits[..Self::TIME_DIGITS] {
            let value = Self::ALPHABET.iter().position(|known| known == digit);
            millis = millis << 5 | value.unwrap_or(0) as u64;
        }
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
    use decimal::Decimal;

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    #[test]
    fn payload_is_documented_one() {
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
        // The documented example lists `url` before `credits_charged`; inside `data` the keys are
        // sorted.
        assert_eq!(
            event.to_canonical_json(),
            concat!(
                r#"{"event":"job.completed","task_id":"task_xxx","task_type":"image","#,
                r#""status":"completed","data":{"credits_charged":6,"#,
                r#""url":"https://cdn.example.com/image.png"},"timestamp":"2024-12-23T10:00:00Z"}"#
            )
        );
    }

    #[test]
    fn id_depends_on_every_part() {
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

    /// An id is a prefix and 26 characters that sort by time.
    #[test]
    fn ids_sort_by_time() {
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
