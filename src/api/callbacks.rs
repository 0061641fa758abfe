//! What subscribers receive, as the API's description tells it.

use serde_json::{Map, Value, json};
use utoipa::{
    ToSchema,
    openapi::{
        ContentBuilder, HttpMethod, Object, ObjectBuilder, Paths, PathsBuilder, Ref, Required,
        Response, Type,
        path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem},
        request_body::RequestBodyBuilder,
    },
};

use super::openapi::{event_id_schema, webhook_id_schema};
use nano_webhooks_core::event_type::EventType;

/// The body that tells of a job.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "the body itself is written as canonical bytes, see `event`"
)]
pub(super) struct JobEvent {
    #[schema(schema_with = job_event)]
    event: String,
    task_id: String,
    /// `image`, `video`, or any other.
    task_type: String,
    #[schema(schema_with = job_status)]
    status: String,
    /// What the worker says of the result. A number that no double holds exactly is a string.
    #[schema(value_type = Object)]
    data: Map<String, Value>,
    /// When the job ended.
    #[schema(format = DateTime)]
    timestamp: String,
}

/// The body that tells an account's other webhooks that one was disabled.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "the body itself is written as canonical bytes, see `event`"
)]
pub(super) struct WebhookDisabled {
    #[schema(schema_with = webhook_event)]
    event: String,
    #[schema(inline)]
    data: DisabledWebhook,
    /// When it was disabled.
    #[schema(format = DateTime)]
    timestamp: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "as above")]
struct DisabledWebhook {
    disabled_reason: String,
    url: String,
    #[schema(schema_with = webhook_id_schema)]
    webhook_id: u64,
}

fn job_event() -> Object {
    one_of([EventType::JobCompleted, EventType::JobFailed].map(EventType::as_str))
}

fn job_status() -> Object {
    one_of(["completed", "failed"])
}

fn webhook_event() -> Object {
    one_of([EventType::WebhookDisabled.as_str()])
}

fn one_of<const N: usize>(texts: [&str; N]) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(texts))
        .build()
}

/// A callback for each event type.
pub(super) fn callback_paths() -> Paths {
    let job = |event: &str, task_type: &str, status: &str, data: &Value| {
        json!({
            "event": event,
            "task_id": "task_xxx",
            "task_type": task_type,
            "status": status,
            "data": data,
            "timestamp": "2024-12-23T10:00:00Z",
        })
    };
    EventType::ALL
        .into_iter()
        .fold(PathsBuilder::new(), |callbacks, event| {
            let (schema, summary, example) = match event {
                EventType::JobCompleted => {
                    let data = json!({ "url": "https://cdn.example.com/image.png", "credits_charged": 6 });
                    ("JobEvent", "A job was completed", job(event.as_str(), "image", "completed", &data))
                }
                EventType::JobFailed => {
                    let data = json!({ "error": "The prompt was refused." });
                    ("JobEvent", "A job failed", job(event.as_str(), "video", "failed", &data))
                }
                EventType::WebhookDisabled => {
                    let data = json!({
                        "disabled_reason": "The endpoint answered 410.",
                        "url": "https://example.com/hooks",
                        "webhook_id": 1,
                    });
                    let body = json!({ "event": event.as_str(), "data": data, "timestamp": "2024-12-23T10:00:00Z" });
                    ("WebhookDisabled", "One of the account's webhooks was disabled", body)
                }
            };
            callbacks.path(event.as_str(), callback(event, schema, summary, example))
        })
        .build()
}

fn callback(event: EventType, schema: &str, summary: &str, example: Value) -> PathItem {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .example(Some(example))
        .build();
    let body = RequestBodyBuilder::new()
        .description(Some(
            "Signatures are computed over these bytes, as they arrive.",
        ))
        .content("application/json", content)
        .required(Some(Required::True));
    let operation = OperationBuilder::new()
        .operation_id(Some(event.as_str()))
        .summary(Some(summary))
        .description(Some(
            "Sent to every active webhook that subscribes to it, at least once and in no order. Answer 2xx at once, then do \
             the work: the first attempt has 1 s, later ones 15 s. What fails is sent again over days.",
        ))
        .tag("Callbacks")
        .securities(Some([]))
        .parameters(Some(headers(event)))
        .request_body(Some(body.build()))
        .response("2XX", Response::new("The event is accepted."))
        .response("410", Response::new("The webhook is disabled at once: nothing more is sent to it."))
        .response(
            "default",
            Response::new(
                "A failure, redirects included: the event is sent again. `Retry-After` of a 429 or 5xx can make the wait \
                 longer.",
            ),
        );
    PathItem::new(HttpMethod::Post, operation)
}

fn headers(event: EventType) -> Vec<Parameter> {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let number = || {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .build()
    };
    let always = [
        (
            "webhook-id",
            "The event, the same in every attempt: the key by which to drop duplicates.",
            event_id_schema(),
        ),
        (
            "webhook-timestamp",
            "When this attempt was made, in Unix seconds.",
            number(),
        ),
        ("X-Nano-Timestamp", "The same.", number()),
        (
            "X-Nano-Event",
            "The event's type.",
            one_of([event.as_str()]),
        ),
        ("X-Nano-Attempt", "1 for the first attempt.", number()),
        (
            "User-Agent",
            "The sender and its version.",
            text().pattern(Some("^nano-webhooks/")).build(),
        ),
    ];
    let sometimes = [
        (
            "webhook-signature",
            "If the webhook has a secret, for each that is live a signature as Standard Webhooks 1.0.0 has it, separated by \
             a space: `v1,` and the base64 of HMAC-SHA256 over `{webhook-id}.{webhook-timestamp}.{body}`.",
            text()
                .pattern(Some("^v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*$"))
                .build(),
        ),
        (
            "X-Nano-Signature",
            "If the webhook has a secret: `v1=` and the lower-case hex of HMAC-SHA256 over `{X-Nano-Timestamp}.{body}`, \
             keyed with the UTF-8 bytes of the newest secret.",
            text().pattern(Some("^v1=[0-9a-f]{64}$")).build(),
        ),
        (
            "traceparent",
            "If the job belongs to a trace: the `traceparent` of W3C Trace Context that the job has.",
            text()
                .pattern(Some("^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"))
                .build(),
        ),
    ];
    let described = always.into_iter().map(|header| (header, Required::True));
    let described = described.chain(
        sometimes
            .into_iter()
            .map(|header| (header, Required::False)),
    );
    let parameter = |((name, description, schema), required)| {
        ParameterBuilder::new()
            .name::<&str>(name)
            .parameter_in(ParameterIn::Header)
            .description(Some::<&str>(description))
            .required(required)
            .schema::<Object>(Some(schema))
            .build()
    };
    described.map(parameter).collect()
}
