//! Deliveries and attempts as clients see them.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    api::schemas::{
        self, DeliveryStatusSchema, EventTypeSchema, FailureKindSchema, WaitReasonSchema,
    },
    store::{delivery_log::DeliverySummary, webhooks::WebhookRecord},
};
use nano_webhooks_core::{
    delivery::{
        Delivery, DeliveryState, attempt::Attempt, failure::FailureKind, status::DeliveryStatus,
        timings::PhaseTimings, wait_reason::WaitReason,
    },
    event::{EventId, traceparent::Traceparent},
    event_type::EventType,
    timestamp::Timestamp,
};

/// A page of deliveries.
#[derive(Serialize, ToSchema)]
#[schema(as = DeliveryList)]
pub(crate) struct DeliveryListResponse {
    #[schema(schema_with = schemas::const_true)]
    pub success: bool,
    pub data: Vec<DeliverySummaryResponse>,
    /// The `cursor` of the next page. `null` if this is the last page. A page with fewer than
    /// `limit` deliveries may be followed by others.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

/// A delivery: one event for one webhook.
#[derive(Serialize, ToSchema)]
#[schema(as = DeliverySummary, example = json!({
    "event_id": "evt_01JFSFB4807P0XDV4PAY2Y4PMB",
    "event": "job.completed",
    "task_id": "task_xxx",
    "status": "delivered",
    "attempt_count": 1,
    "created_at": "2024-12-23T10:00:00Z",
    "next_attempt_at": null,
    "waiting_for": null,
    "last_failure": null,
}))]
pub struct DeliverySummaryResponse {
    #[schema(schema_with = schemas::event_id)]
    event_id: String,
    #[schema(value_type = EventTypeSchema)]
    event: String,
    /// The id of the job. `null` if the event does not concern a job.
    #[schema(required)]
    task_id: Option<String>,
    #[schema(value_type = DeliveryStatusSchema)]
    status: String,
    /// The number of attempts so far.
    attempt_count: u32,
    #[schema(format = DateTime)]
    created_at: String,
    /// When the next attempt is due. `null` if the status is not `pending`, or if the delivery is
    /// paused because its webhook is disabled or its endpoint does not respond.
    #[schema(required, format = DateTime)]
    next_attempt_at: Option<String>,
    /// Why the delivery waits. `null` if the status is not `pending`.
    #[schema(required, value_type = Option<WaitReasonSchema>)]
    waiting_for: Option<&'static str>,
    /// Why the latest attempt failed. `null` if it succeeded.
    #[schema(required, value_type = Option<FailureKindSchema>)]
    last_failure: Option<FailureKind>,
}

impl DeliverySummaryResponse {
    /// The response for a delivery of `webhook`, which is `None` if it was deleted. Then a pending
    /// delivery is shown as cancelled; the delivery itself is cancelled a while later.
    pub fn new(summary: DeliverySummary, webhook: Option<&WebhookRecord>) -> Self {
        let DeliverySummary { event_id, row } = summary;
        let response = Self {
            event_id: event_id.to_string(),
            event: row.event,
            task_id: row.task_id,
            status: row.status,
            attempt_count: row.attempt_count,
            created_at: row.created_at.to_rfc3339(),
            next_attempt_at: row.next_attempt_at.map(Timestamp::to_rfc3339),
            waiting_for: None,
            last_failure: row.last_failure,
        };
        response.explain_wait(webhook, row.next_attempt_at, row.waiting_for)
    }

    /// Does the same for a delivery that was read as a whole.
    pub fn from_delivery(delivery: &Delivery, webhook: Option<&WebhookRecord>) -> Self {
        let next_attempt_at = match delivery.state {
            DeliveryState::Pending(due_at) => Some(due_at),
            _ => None,
        };
        let response = Self {
            event_id: delivery.key.event.to_string(),
            event: delivery.event_type.as_str().to_owned(),
            task_id: delivery.task_id.clone(),
            status: delivery.state.status().as_str().to_owned(),
            attempt_count: delivery.attempt_count,
            created_at: delivery.created_at.to_rfc3339(),
            next_attempt_at: next_attempt_at.map(Timestamp::to_rfc3339),
            waiting_for: None,
            last_failure: delivery.attempts.last().and_then(|attempt| attempt.failure),
        };
        let response = response.explain_wait(webhook, next_attempt_at, delivery.waiting_for);
        if response.waiting_for == Some(WaitReason::Endpoint.as_str()) && delivery.is_manual_retry()
        {
            // It is attempted although the endpoint is unreachable.
            return Self {
                next_attempt_at: next_attempt_at.map(Timestamp::to_rfc3339),
                waiting_for: Some(WaitReason::Schedule.as_str()),
                ..response
            };
        }
        response
    }

    fn explain_wait(
        self,
        webhook: Option<&WebhookRecord>,
        next_attempt_at: Option<Timestamp>,
        stored: Option<WaitReason>,
    ) -> Self {
        if self.status != DeliveryStatus::Pending.as_str() {
            return self;
        }
        match webhook {
            Some(webhook) => {
                let reason = webhook.explain_wait(next_attempt_at, stored);
                Self {
                    next_attempt_at: self.next_attempt_at.filter(|_| reason.allows_attempt()),
                    waiting_for: Some(reason.as_str()),
                    ..self
                }
            }
            None => Self {
                status: DeliveryStatus::Cancelled.as_str().to_owned(),
                next_attempt_at: None,
                ..self
            },
        }
    }
}

/// A delivery with its payload and attempts.
#[derive(Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryResponse {
    #[serde(flatten)]
    summary: DeliverySummaryResponse,
    /// The request body that the endpoint receives, exactly as sent.
    payload: String,
    /// The endpoint URL.
    url: String,
    /// The latest 20 attempts, oldest first.
    attempts: Vec<AttemptResponse>,
}

impl DeliveryResponse {
    /// See [`DeliverySummaryResponse::new`].
    pub fn new(delivery: &Delivery, webhook: Option<&WebhookRecord>) -> Self {
        let mut attempts = Vec::with_capacity(delivery.attempts.len());
        for attempt in &delivery.attempts {
            attempts.push(AttemptResponse::new(
                &delivery.key.event,
                delivery.event_type,
                delivery.traceparent.as_ref(),
                attempt,
            ));
        }
        Self {
            summary: DeliverySummaryResponse::from_delivery(delivery, webhook),
            payload: delivery.payload.to_string(),
            url: delivery.url.clone(),
            attempts,
        }
    }
}

/// One request to the endpoint and its outcome.
#[derive(Serialize, ToSchema)]
#[schema(as = Attempt, example = json!({
    "number": 1,
    "at": "2024-12-23T10:00:00.25Z",
    "duration_ms": 61,
    "timings": {
        "dns_ms": 4.2,
        "connect_ms": 11.9,
        "tls_ms": 20.4,
        "wait_ms": 23.8,
        "receive_ms": 0.1,
    },
    "status_code": 503,
    "failure": "status",
    "detail": "The endpoint returned status 503. Return a 2xx status to accept the event.",
    "response_excerpt": "Try again later",
    "request_headers": {
        "Content-Type": "application/json",
        "webhook-id": "evt_01JFSFB4807P0XDV4PAY2Y4PMB",
    },
}))]
pub(crate) struct AttemptResponse {
    /// 1 for the first attempt.
    #[schema(minimum = 1)]
    number: u32,
    /// When the attempt started.
    #[schema(format = DateTime)]
    at: String,
    duration_ms: u64,
    timings: TimingsResponse,
    /// The status code of the response. `null` if there was no response.
    #[schema(required, minimum = 100, maximum = 999)]
    status_code: Option<u16>,
    /// Why the attempt failed. `null` if it succeeded.
    #[schema(required, value_type = Option<FailureKindSchema>)]
    failure: Option<FailureKind>,
    /// The failure in one sentence, with advice.
    #[schema(required)]
    detail: Option<String>,
    /// The first part of the response body.
    #[schema(required)]
    response_excerpt: Option<String>,
    /// The request headers that were sent. The values of static headers are `[redacted]`, also
    /// where the endpoint repeated them in its response.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    request_headers: Map<String, Value>,
}

impl AttemptResponse {
    pub fn new(
        event: &EventId,
        event_type: EventType,
        traceparent: Option<&Traceparent>,
        attempt: &Attempt,
    ) -> Self {
        let mut request_headers = Map::new();
        for (name, value) in attempt.logged_headers(event, event_type, traceparent) {
            request_headers.insert(name.to_owned(), value.into());
        }
        Self {
            number: attempt.number,
            at: attempt.started_at.to_rfc3339(),
            duration_ms: attempt.duration_ms,
            timings: TimingsResponse::from(attempt.timings),
            status_code: attempt.status_code,
            failure: attempt.failure,
            detail: attempt.detail.clone(),
            response_excerpt: attempt.response_excerpt.clone(),
            request_headers,
        }
    }
}

/// The duration of each phase of an attempt in milliseconds. `null`: the phase did not take place.
/// For example, a reused connection needs no `connect` and no `tls`.
#[derive(Serialize, ToSchema)]
#[schema(as = Timings)]
#[expect(
    clippy::struct_field_names,
    reason = "the unit is part of the name on the wire"
)]
struct TimingsResponse {
    /// Resolving the host name.
    #[schema(required, minimum = 0)]
    dns_ms: Option<f64>,
    /// Connecting.
    #[schema(required, minimum = 0)]
    connect_ms: Option<f64>,
    /// The TLS handshake.
    #[schema(required, minimum = 0)]
    tls_ms: Option<f64>,
    /// Sending the request and waiting for the response.
    #[schema(required, minimum = 0)]
    wait_ms: Option<f64>,
    /// Receiving the response body.
    #[schema(required, minimum = 0)]
    receive_ms: Option<f64>,
}

impl From<PhaseTimings> for TimingsResponse {
    fn from(timings: PhaseTimings) -> Self {
        Self {
            dns_ms: to_milliseconds(timings.dns),
            connect_ms: to_milliseconds(timings.connect),
            tls_ms: to_milliseconds(timings.tls),
            wait_ms: to_milliseconds(timings.wait),
            receive_ms: to_milliseconds(timings.receive),
        }
    }
}

/// Rounds microseconds to tenths of a millisecond.
#[expect(
    clippy::cast_precision_loss,
    reason = "a phase lasts seconds, not centuries"
)]
fn to_milliseconds(micros: Option<u64>) -> Option<f64> {
    micros.map(|micros| (micros as f64 / 100.0).round() / 10.0)
}
