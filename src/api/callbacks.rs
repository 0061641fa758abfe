//! The requests that endpoints receive, for the OpenAPI document.

use serde_json::{Map, Value, json};
use utoipa::{
    ToSchema,
    openapi::{
        ContentBuilder, HttpMethod, Object, Paths, PathsBuilder, Ref, Required, Response,
        path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem},
        request_body::RequestBodyBuilder,
    },
};

use super::schemas;
use nano_webhooks_core::{
    event_type::EventType, operational_event::OperationalEvent, timestamp::Timestamp,
    webhook::WebhookId,
};

const EXAMPLE_TIMESTAMP: &str = "2024-12-23T10:00:00Z";

/// A job completed or failed.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "only its schema is used; `JobEvent::to_canonical_json` writes the payload"
)]
pub(super) struct JobEvent {
    #[schema(schema_with = job_event_type)]
    event: String,
    task_id: String,
    /// `image`, `video`, or any other type.
    task_type: String,
    #[schema(schema_with = job_status)]
    status: String,
    /// The result of the job. Numbers that a double cannot represent exactly are strings.
    #[schema(value_type = Object)]
    data: Map<String, Value>,
    /// When the job completed or failed.
    #[schema(format = DateTime)]
    timestamp: String,
}

/// A webhook of the account was disabled.
#[derive(ToSchema)]
#[schema(as = WebhookDisabled)]
#[expect(
    dead_code,
    reason = "only its schema is used; the event itself writes the payload"
)]
pub(super) struct WebhookDisabledEvent {
    #[schema(schema_with = webhook_disabled_event_type)]
    event: String,
    #[schema(inline)]
    data: DisabledWebhook,
    /// When the webhook was disabled.
    #[schema(format = DateTime)]
    timestamp: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct DisabledWebhook {
    disabled_reason: String,
    url: String,
    #[schema(schema_with = schemas::webhook_id)]
    webhook_id: u64,
}

/// An operational event about a webhook of the account.
#[derive(ToSchema)]
#[schema(as = OperationalEvent)]
#[expect(
    dead_code,
    reason = "only its schema is used; the event itself writes the payload"
)]
pub(super) struct OperationalEventSchema {
    #[schema(schema_with = operational_event_type)]
    event: String,
    /// `url` and `webhook_id` name the webhook. The other fields depend on the event type; see its
    /// example.
    #[schema(value_type = Object)]
    data: Map<String, Value>,
    /// When the event happened.
    #[schema(format = DateTime)]
    timestamp: String,
}

fn operational_event_type() -> Object {
    schemas::string_enum([
        EventType::WebhookFailing.as_str(),
        EventType::WebhookRecovered.as_str(),
        EventType::DeliveryExhausted.as_str(),
    ])
}

fn job_event_type() -> Object {
    schemas::string_enum([
        EventType::JobCompleted.as_str(),
        EventType::JobFailed.as_str(),
    ])
}

fn job_status() -> Object {
    schemas::string_enum(["completed", "failed"])
}

fn webhook_disabled_event_type() -> Object {
    schemas::string_enum([EventType::WebhookDisabled.as_str()])
}

/// One callback for each event type.
pub(super) fn callback_paths() -> Paths {
    let mut paths = PathsBuilder::new();
    for event in EventType::ALL {
        paths = paths.path(event.as_str(), describe_callback(event));
    }
    paths.build()
}

fn describe_callback(event: EventType) -> PathItem {
    let (schema, summary) = match event {
        EventType::JobCompleted => ("JobEvent", "A job completed"),
        EventType::JobFailed => ("JobEvent", "A job failed"),
        EventType::WebhookDisabled => ("WebhookDisabled", "A webhook was disabled"),
        EventType::WebhookFailing => (
            "OperationalEvent",
            "Every attempt to an endpoint has failed for 20, 50 or 90 percent of the time after \
             which its webhook is disabled",
        ),
        EventType::WebhookRecovered => (
            "OperationalEvent",
            "An endpoint that had failed for long accepted an event",
        ),
        EventType::DeliveryExhausted => (
            "OperationalEvent",
            "The last attempt of a delivery failed; at most one event an hour for each webhook",
        ),
    };
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .example(Some(example_payload(event)))
        .build();
    let body = RequestBodyBuilder::new()
        .description(Some(
            "The payload. Verify signatures over the raw bytes, before parsing them.",
        ))
        .content("application/json", content)
        .required(Some(Required::True));
    let operation = OperationBuilder::new()
        .operation_id(Some(event.as_str()))
        .summary(Some(summary))
        .description(Some(
            "Sent to every active webhook that subscribes to the event type. Events are delivered \
             at least once and in no particular order. Respond with 2xx before you process the \
             event: the first attempt has a deadline of 10 s, later attempts of 15 s. Failed \
             deliveries are retried over several days.",
        ))
        .tag("Events")
        .securities(Some([]))
        .parameters(Some(header_parameters(event)))
        .request_body(Some(body.build()))
        .response("2XX", Response::new("The event is accepted."))
        .response(
            "410",
            Response::new("The webhook is disabled at once and receives no more events."),
        )
        .response(
            "default",
            Response::new(
                "The attempt failed and is retried. Redirects are failures. `Retry-After` with \
                 429 or a 5xx status can delay the next attempt.",
            ),
        );
    PathItem::new(HttpMethod::Post, operation)
}

fn example_payload(event: EventType) -> Value {
    match event {
        EventType::JobCompleted => json!({
            "event": event.as_str(),
            "task_id": "task_xxx",
            "task_type": "image",
            "status": "completed",
            "data": { "url": "https://cdn.example.com/image.png", "credits_charged": 6 },
            "timestamp": EXAMPLE_TIMESTAMP,
        }),
        EventType::JobFailed => json!({
            "event": event.as_str(),
            "task_id": "task_xxx",
            "task_type": "video",
            "status": "failed",
            "data": { "error": "The prompt was rejected." },
            "timestamp": EXAMPLE_TIMESTAMP,
        }),
        EventType::WebhookDisabled => json!({
            "event": event.as_str(),
            "data": {
                "disabled_reason": "The endpoint responded with 410 Gone.",
                "url": "https://example.com/hooks",
                "webhook_id": 1,
            },
            "timestamp": EXAMPLE_TIMESTAMP,
        }),
        EventType::WebhookFailing | EventType::WebhookRecovered | EventType::DeliveryExhausted => {
            sample_operational_event(event)
        }
    }
}

fn sample_operational_event(event: EventType) -> Value {
    let webhook = WebhookId::new(1).expect("1 is an id");
    let now = Timestamp::parse_rfc3339(EXAMPLE_TIMESTAMP).expect("the example is a time");
    let url = "https://example.com/hooks";
    let sample = OperationalEvent::sample(event, webhook, url, now);
    let payload = sample.map(|sample| sample.payload(now)).unwrap_or_default();
    serde_json::from_str(&payload).expect("payloads are JSON")
}

fn header_parameters(event: EventType) -> Vec<Parameter> {
    let mut parameters = required_headers(event);
    parameters.extend(optional_headers());
    parameters
}

fn required_headers(event: EventType) -> Vec<Parameter> {
    vec![
        header_parameter(
            "webhook-id",
            Required::True,
            "The id of the event. It is the same in every attempt; use it to ignore duplicates.",
            schemas::event_id(),
        ),
        header_parameter(
            "webhook-timestamp",
            Required::True,
            "The time of this attempt, in Unix seconds.",
            schemas::positive_integer(),
        ),
        header_parameter(
            "X-Nano-Timestamp",
            Required::True,
            "The time of this attempt, in Unix seconds.",
            schemas::positive_integer(),
        ),
        header_parameter(
            "X-Nano-Event",
            Required::True,
            "The event type.",
            schemas::string_enum([event.as_str()]),
        ),
        header_parameter(
            "X-Nano-Attempt",
            Required::True,
            "The number of this attempt, starting at 1.",
            schemas::positive_integer(),
        ),
        header_parameter(
            "User-Agent",
            Required::True,
            "`nano-webhooks/` and its version.",
            schemas::string_with_pattern("^nano-webhooks/"),
        ),
        header_parameter(
            "Accept",
            Required::True,
            "`*/*`.",
            schemas::string_enum(["*/*"]),
        ),
    ]
}

fn optional_headers() -> Vec<Parameter> {
    vec![
        header_parameter(
            "webhook-signature",
            Required::False,
            "Present if the webhook has a secret. One signature for each active secret, separated \
             by spaces, as in Standard Webhooks 1.0.0: `v1,` and the base64 of HMAC-SHA256 over \
             `{webhook-id}.{webhook-timestamp}.{body}`.",
            schemas::string_with_pattern("^v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*$"),
        ),
        header_parameter(
            "X-Nano-Signature",
            Required::False,
            "Present if the webhook has a secret. `v1=` and the lowercase hex of HMAC-SHA256 over \
             `{X-Nano-Timestamp}.{body}`, keyed with the UTF-8 bytes of the secret; during the \
             grace time of a rotation, of the oldest active one.",
            schemas::string_with_pattern("^v1=[0-9a-f]{64}$"),
        ),
        header_parameter(
            "traceparent",
            Required::False,
            "The `traceparent` (W3C Trace Context) of the job, if it has one.",
            schemas::string_with_pattern("^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
        ),
    ]
}

fn header_parameter(
    name: &str,
    required: Required,
    description: &str,
    schema: Object,
) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .description(Some(description))
        .required(required)
        .schema(Some(schema))
        .build()
}
