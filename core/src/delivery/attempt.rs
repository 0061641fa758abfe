//! One attempt to deliver: what was sent, and how it went.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{endpoint_health::Observation, timings::PhaseTimings};
use crate::{
    event::{EventId, traceparent::Traceparent},
    signing::Signatures,
    timestamp::Timestamp,
    webhook::EventType,
};

/// How far an attempt had come when its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutStage {
    /// Resolving the name, connecting, the TLS handshake.
    Connect,
    /// The request was on its way or sent, and no answer had begun.
    AwaitingResponse,
    /// The answer had begun.
    Body,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The host name did not resolve.
    Dns,
    /// No connection, or it broke before an answer.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The deadline passed, at this stage.
    Timeout(TimeoutStage),
    /// The target policy refuses the address; the rule that does.
    Blocked(&'static str),
    /// The answer was a redirect, which is not followed.
    Redirect(u16),
    /// The answer was another status than 2xx.
    Status(u16),
    /// The answer could not be read as HTTP, or its body broke off.
    InvalidResponse,
}

/// The kind of a [`Failure`], as it is stored and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// See [`Failure::Dns`].
    Dns,
    /// See [`Failure::Connect`].
    Connect,
    /// See [`Failure::Tls`].
    Tls,
    /// See [`Failure::Timeout`].
    Timeout,
    /// See [`Failure::Blocked`].
    Blocked,
    /// See [`Failure::Redirect`].
    Redirect,
    /// See [`Failure::Status`].
    Status,
    /// See [`Failure::InvalidResponse`]. Items of version 0.1 have the name `body`.
    #[serde(alias = "body")]
    InvalidResponse,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Blocked,
        Self::Redirect,
        Self::Status,
        Self::InvalidResponse,
    ];

    /// The name, as it is stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Blocked => "blocked",
            Self::Redirect => "redirect",
            Self::Status => "status",
            Self::InvalidResponse => "invalid_response",
        }
    }
}

impl Failure {
    /// Its kind.
    pub const fn kind(&self) -> FailureKind {
        match self {
            Self::Dns => FailureKind::Dns,
            Self::Connect => FailureKind::Connect,
            Self::Tls => FailureKind::Tls,
            Self::Timeout(_) => FailureKind::Timeout,
            Self::Blocked(_) => FailureKind::Blocked,
            Self::Redirect(_) => FailureKind::Redirect,
            Self::Status(_) => FailureKind::Status,
            Self::InvalidResponse => FailureKind::InvalidResponse,
        }
    }
}

impl fmt::Display for Failure {
    /// A sentence that tells the endpoint's owner what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns => f.write_str("The host name does not resolve: check the URL and its DNS records."),
            Self::Connect => f.write_str(
                "No connection, or it was closed before an answer: check that the server is up and reachable on this port.",
            ),
            Self::Tls => f.write_str(
                "The TLS handshake failed: check that the certificate is valid, matches the host name and comes with its chain.",
            ),
            Self::Timeout(TimeoutStage::Connect) => f.write_str(
                "No connection in time: check that the server is up and reachable, and that its DNS and TLS answer quickly.",
            ),
            Self::Timeout(TimeoutStage::AwaitingResponse) => {
                f.write_str("Connected, but no answer in time: answer 2xx at once and do the work afterwards.")
            }
            Self::Timeout(TimeoutStage::Body) => {
                f.write_str("The answer began but did not end in time: send a short body, or none, at once.")
            }
            Self::Blocked(rule) => write!(f, "The target is refused ({rule}): use a public https address."),
            Self::Redirect(status) => {
                write!(f, "The answer was a redirect ({status}), which is not followed: register the final URL.")
            }
            Self::Status(status) => write!(f, "The answer was status {status}: answer 2xx to accept an event."),
            Self::InvalidResponse => {
                f.write_str("The answer could not be read as HTTP or broke off: check the server's response.")
            }
        }
    }
}

/// How an exchange with an endpoint went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptOutcome {
    /// How long it took.
    pub duration: Duration,
    /// Where that time went.
    pub timings: PhaseTimings,
    /// The status of the answer, if one came.
    pub status_code: Option<u16>,
    /// Why it counts as failed; `None`: a 2xx was read.
    pub failure: Option<Failure>,
    /// The answer's `Retry-After`, as it came.
    pub retry_after: Option<String>,
    /// The beginning of the answer's body.
    pub body_excerpt: Option<String>,
}

impl AttemptOutcome {
    /// What it says of the endpoint's health.
    pub fn observation(&self) -> Observation {
        Observation {
            failure: self.failure.as_ref().map(Failure::kind),
            duration: self.duration,
        }
    }
}

/// One attempt, as it is stored and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// 1 for the first.
    pub number: u32,
    /// When it began.
    #[serde(rename = "at")]
    pub started_at: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// Where that time went.
    #[serde(default, rename = "phases")]
    pub timings: PhaseTimings,
    /// The status of the answer, if one came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    /// Why it failed; absent if it was delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureKind>,
    /// The failure in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The beginning of the answer's body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_excerpt: Option<String>,
    /// The signatures it carried; the other headers follow from the delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signatures: Option<Signatures>,
    /// The version of this software that sent it, as in `User-Agent`.
    pub version: String,
}

impl Attempt {
    /// Joins what was sent with how it went.
    pub fn new(request: &WebhookRequest<'_>, outcome: &AttemptOutcome) -> Self {
        Self {
            number: request.number,
            started_at: request.started_at,
            duration_ms: u64::try_from(outcome.duration.as_millis()).unwrap_or(u64::MAX),
            timings: outcome.timings,
            status_code: outcome.status_code,
            failure: outcome.failure.as_ref().map(Failure::kind),
            detail: outcome.failure.as_ref().map(ToString::to_string),
            response_excerpt: outcome.body_excerpt.clone(),
            signatures: request.signatures.cloned(),
            version: request.version.to_owned(),
        }
    }

    /// What identified its request, as an attempt to deliver this event.
    pub fn to_request<'a>(
        &'a self,
        id: &'a EventId,
        event: EventType,
        traceparent: Option<&'a Traceparent>,
    ) -> WebhookRequest<'a> {
        let signatures = self.signatures.as_ref();
        WebhookRequest {
            id,
            event,
            number: self.number,
            started_at: self.started_at,
            signatures,
            traceparent,
            version: &self.version,
        }
    }
}

/// What identifies one attempt's request; its headers follow from this.
#[derive(Clone, Copy, Debug)]
pub struct WebhookRequest<'a> {
    /// The event: `webhook-id`, the same in every attempt.
    pub id: &'a EventId,
    /// The event's type.
    pub event: EventType,
    /// 1 for the first attempt.
    pub number: u32,
    /// When it begins.
    pub started_at: Timestamp,
    /// Its signatures, if the webhook has a secret.
    pub signatures: Option<&'a Signatures>,
    /// The trace that the job belongs to.
    pub traceparent: Option<&'a Traceparent>,
    /// The version of this software.
    pub version: &'a str,
}

impl WebhookRequest<'_> {
    /// The request's headers, names in lower case as HTTP libraries have them.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let timestamp = self.started_at.as_unix_seconds().to_string();
        let mut headers = vec![
            ("content-type", "application/json".to_owned()),
            ("user-agent", format!("nano-webhooks/{}", self.version)),
            ("x-nano-event", self.event.as_str().to_owned()),
            ("x-nano-attempt", self.number.to_string()),
            ("x-nano-timestamp", timestamp.clone()),
            ("webhook-id", self.id.to_string()),
            ("webhook-timestamp", timestamp),
        ];
        if let Some(signatures) = self.signatures {
            headers.push(("x-nano-signature", signatures.nano.clone()));
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

    #[test]
    fn a_kind_is_stored_by_its_name() {
        for kind in FailureKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn without_a_secret_both_signatures_are_absent_and_timestamps_and_id_remain() {
        let id = EventId::parse("evt_01JFS8TX800000000000000000").unwrap();
        let mut request = WebhookRequest {
            id: &id,
            event: EventType::JobFailed,
            number: 3,
            started_at: Timestamp::from_millis(1_734_948_000_999),
            signatures: None,
            traceparent: None,
            version: "1.2.3",
        };
        let unsigned = [
            ("content-type", "application/json"),
            ("user-agent", "nano-webhooks/1.2.3"),
            ("x-nano-event", "job.failed"),
            ("x-nano-attempt", "3"),
            ("x-nano-timestamp", "1734948000"),
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
            request.headers()[7..],
            [
                ("x-nano-signature", "v1=00".into()),
                ("webhook-signature", "v1,AA==".into())
            ]
        );

        let traceparent =
            Traceparent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        request.traceparent = Some(&traceparent);
        assert_eq!(
            request.headers()[9..],
            [("traceparent", traceparent.as_str().to_owned())]
        );
    }
}
