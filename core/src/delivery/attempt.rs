//! One attempt of a delivery: the request and its outcome.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    endpoint_health::Observation,
    failure::{Failure, FailureKind},
    timings::PhaseTimings,
};
use crate::{
    event::{EventId, traceparent::Traceparent},
    event_type::EventType,
    signing::Signatures,
    static_headers::StaticHeaders,
    timestamp::Timestamp,
};

/// The result of an exchange with an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptOutcome {
    /// The time that the exchange took.
    pub duration: Duration,
    /// The parts of that time.
    pub timings: PhaseTimings,
    /// The status code, if response headers arrived.
    pub status_code: Option<u16>,
    /// The failure; `None` if the endpoint returned a 2xx status.
    pub failure: Option<Failure>,
    /// The `Retry-After` header of the response, not parsed.
    pub retry_after: Option<String>,
    /// The beginning of the response body.
    pub body_excerpt: Option<String>,
}

impl AttemptOutcome {
    /// Whether the endpoint accepted the event.
    pub const fn is_success(&self) -> bool {
        self.failure.is_none()
    }

    /// The part of the outcome that endpoint health depends on.
    pub fn observation(&self) -> Observation {
        Observation {
            failure: self.failure.as_ref().map(Failure::kind),
            duration: self.duration,
        }
    }
}

/// One attempt, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// 1 for the first attempt.
    pub number: u32,
    /// The time at which the attempt started.
    #[serde(rename = "at")]
    pub started_at: Timestamp,
    /// The time that the attempt took, in milliseconds.
    pub duration_ms: u64,
    /// The parts of that time.
    #[serde(default, rename = "phases")]
    pub timings: PhaseTimings,
    /// The status code, if response headers arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    /// The kind of failure; `None` if the endpoint accepted the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureKind>,
    /// The failure in one or two sentences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The beginning of the response body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_excerpt: Option<String>,
    /// The signature headers. The other headers of the service follow from the delivery, see
    /// [`Self::logged_headers`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signatures: Option<Signatures>,
    /// The names of the webhook's static headers at the time of the attempt.
    #[serde(default, rename = "headers", skip_serializing_if = "Vec::is_empty")]
    pub static_headers: Vec<String>,
    /// The version of this software in `User-Agent`.
    pub version: String,
}

impl Attempt {
    /// Joins a request with its outcome. No value of a static header is kept, even if the endpoint
    /// repeated it.
    pub fn new(request: &WebhookRequest<'_>, outcome: &AttemptOutcome) -> Self {
        let excerpt = outcome.body_excerpt.as_deref();
        Self {
            number: request.attempt_number,
            started_at: request.started_at,
            duration_ms: u64::try_from(outcome.duration.as_millis()).unwrap_or(u64::MAX),
            timings: outcome.timings,
            status_code: outcome.status_code,
            failure: outcome.failure.as_ref().map(Failure::kind),
            detail: outcome.failure.as_ref().map(ToString::to_string),
            response_excerpt: excerpt.map(|text| request.static_headers.redact(text)),
            signatures: request.signatures.cloned(),
            static_headers: request.static_headers.names(),
            version: request.version.to_owned(),
        }
    }

    /// The request headers that this attempt sent for a delivery's event, for the log: values of
    /// static headers are redacted.
    pub fn logged_headers(
        &self,
        event_id: &EventId,
        event_type: EventType,
        traceparent: Option<&Traceparent>,
    ) -> Vec<(&str, String)> {
        let request = WebhookRequest {
            event_id,
            event_type,
            attempt_number: self.number,
            started_at: self.started_at,
            signatures: self.signatures.as_ref(),
            traceparent,
            static_headers: &StaticHeaders::NONE,
            version: &self.version,
        };
        let mut headers: Vec<(&str, String)> = request.headers();
        for name in &self.static_headers {
            headers.push((name, StaticHeaders::REDACTED.to_owned()));
        }
        headers
    }
}

/// The values that an attempt's request headers follow from.
#[derive(Clone, Copy, Debug)]
pub struct WebhookRequest<'a> {
    /// `webhook-id`, the same in every attempt.
    pub event_id: &'a EventId,
    /// `X-Nano-Event`.
    pub event_type: EventType,
    /// `X-Nano-Attempt`, 1 for the first attempt.
    pub attempt_number: u32,
    /// The time at which the attempt starts: `X-Nano-Timestamp` and `webhook-timestamp`.
    pub started_at: Timestamp,
    /// The signature headers, if the webhook has a secret.
    pub signatures: Option<&'a Signatures>,
    /// The job's trace context.
    pub traceparent: Option<&'a Traceparent>,
    /// The headers that the webhook's owner chose.
    pub static_headers: &'a StaticHeaders,
    /// The version of this software in `User-Agent`.
    pub version: &'a str,
}

impl WebhookRequest<'_> {
    /// The request headers of the service, with names in the case that is sent.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let timestamp = self.started_at.as_unix_seconds().to_string();
        let mut headers = vec![
            ("Content-Type", "application/json".to_owned()),
            ("User-Agent", format!("nano-webhooks/{}", self.version)),
            ("Accept", "*/*".to_owned()),
            ("X-Nano-Event", self.event_type.as_str().to_owned()),
            ("X-Nano-Attempt", self.attempt_number.to_string()),
            ("X-Nano-Timestamp", timestamp.clone()),
            ("webhook-id", self.event_id.to_string()),
            ("webhook-timestamp", timestamp),
        ];
        if let Some(signatures) = self.signatures {
            headers.push(("X-Nano-Signature", signatures.nano.clone()));
            headers.push(("webhook-signature", signatures.standard.clone()));
        }
        if let Some(traceparent) = self.traceparent {
            headers.push(("traceparent", traceparent.as_str().to_owned()));
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attempts that version 0.1 stored are still read.
    #[test]
    fn attempt_of_version_0_1_is_read() {
        let stored = concat!(
            r#"{"number":2,"at":1734948000000,"duration_ms":31,"phases":"1,2,,28,","#,
            r#""status_code":200,"failure":"body","detail":"…","version":"0.1.0"}"#,
        );
        let attempt: Attempt = serde_json::from_str(stored).unwrap();
        assert_eq!(attempt.failure, Some(FailureKind::InvalidResponse));
        assert_eq!(
            attempt.started_at,
            Timestamp::from_millis(1_734_948_000_000)
        );
        assert_eq!(attempt.timings.wait, Some(28));
    }

    /// Without a secret both signature headers are absent; the id and the timestamps remain.
    #[test]
    fn headers_follow_from_request() {
        let id = EventId::parse("evt_01JFS8TX800000000000000000").unwrap();
        let mut request = WebhookRequest {
            event_id: &id,
            event_type: EventType::JobFailed,
            attempt_number: 3,
            started_at: Timestamp::from_millis(1_734_948_000_999),
            signatures: None,
            traceparent: None,
            static_headers: &StaticHeaders::NONE,
            version: "1.2.3",
        };
        let unsigned = [
            ("Content-Type", "application/json"),
            ("User-Agent", "nano-webhooks/1.2.3"),
            ("Accept", "*/*"),
            ("X-Nano-Event", "job.failed"),
            ("X-Nano-Attempt", "3"),
            ("X-Nano-Timestamp", "1734948000"),
            ("webhook-id", "evt_01JFS8TX800000000000000000"),
            ("webhook-timestamp", "1734948000"),
        ]
        .map(|(name, value)| (name, value.to_owned()));
        assert_eq!(request.headers(), unsigned);

        let signatures = Signatures {
            nano: "v1=00".into(),
            standard: "v1,AA==".into(),
        };
        request.signatures = Some(&signatures);
        assert_eq!(
            request.headers()[8..],
            [
                ("X-Nano-Signature", "v1=00".into()),
                ("webhook-signature", "v1,AA==".into())
            ]
        );

        let traceparent =
            Traceparent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        request.traceparent = Some(&traceparent);
        assert_eq!(
            request.headers()[10..],
            [("traceparent", traceparent.as_str().to_owned())]
        );
    }

    /// The log of an attempt shows the names of static headers. A value is nowhere in the attempt,
    /// although the endpoint repeated it.
    #[test]
    fn static_headers_are_redacted() {
        let id = EventId::parse("evt_01JFS8TX800000000000000000").unwrap();
        let static_headers = StaticHeaders::from_json(r#"[["x-api-key","open-sesame"]]"#).unwrap();
        let request = WebhookRequest {
            event_id: &id,
            event_type: EventType::JobFailed,
            attempt_number: 1,
            started_at: Timestamp::from_millis(1_734_948_000_999),
            signatures: None,
            traceparent: None,
            static_headers: &static_headers,
            version: "1.2.3",
        };
        let outcome = AttemptOutcome {
            duration: Duration::ZERO,
            timings: PhaseTimings::default(),
            status_code: Some(403),
            failure: Some(Failure::Status(403)),
            retry_after: None,
            body_excerpt: Some("Invalid key: open-sesame".to_owned()),
        };
        let attempt = Attempt::new(&request, &outcome);
        let excerpt = attempt.response_excerpt.as_deref();
        assert_eq!(excerpt, Some("Invalid key: [redacted]"));
        let stored = serde_json::to_string(&attempt).unwrap();
        assert!(stored.contains(r#""headers":["x-api-key"]"#) && !stored.contains("sesame"));
        let restored: Attempt = serde_json::from_str(&stored).unwrap();
        let logged = restored.logged_headers(&id, EventType::JobFailed, None);
        let (last, others) = logged.split_last().unwrap();
        assert_eq!(*last, ("x-api-key", "[redacted]".to_owned()));
        assert_eq!(others, request.headers());
    }
}
