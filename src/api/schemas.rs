//! OpenAPI schemas that several operations share.

use std::borrow::Cow;

use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Array, ArrayBuilder, KnownFormat, Object, ObjectBuilder, Ref, RefOr, Schema, SchemaFormat,
        Type, schema::SchemaType,
    },
};

use nano_webhooks_core::{
    delivery::{
        endpoint_health::HealthState, failure::FailureKind, pace::MaxPerSecond,
        status::DeliveryStatus, wait_reason::WaitReason,
    },
    endpoint_url::EndpointUrl,
    event_type::EventType,
    webhook::{WebhookId, WebhookStatus},
};

/// Text without control characters that is not only white space.
pub(super) const PRINTABLE_TEXT: &str =
    r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$";

/// The id of a webhook.
pub(super) fn webhook_id() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(1))
        .maximum(Some(WebhookId::MAX))
        .build()
}

/// The id of an event.
pub(super) fn event_id() -> Object {
    string_with_pattern("^evt_[0-9A-HJKMNP-TV-Z]{26}$")
}

/// The id of a replay.
pub(super) fn replay_id() -> Object {
    string_with_pattern("^rpl_[0-9a-f]{16}$")
}

/// A string that matches `pattern`.
pub(super) fn string_with_pattern(pattern: &str) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(pattern))
        .build()
}

/// A string that is one of `values`.
pub(super) fn string_enum<const N: usize>(values: [&str; N]) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(values))
        .build()
}

/// An integer of at least 1.
pub(super) fn positive_integer() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(1))
        .build()
}

/// The most attempts to an endpoint that start in a second.
pub(super) fn max_per_second() -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Integer, Type::Null]))
        .description(Some(
            "The most deliveries per second. Further ones wait for their turn, without using \
             retries. What waits already is not sent sooner when the limit is raised. Manual \
             retries are sent at once. `null` means no limit.",
        ))
        .minimum(Some(1))
        .maximum(Some(MaxPerSecond::MAX))
        .build()
}

/// `success` of a successful response.
pub(super) fn const_true() -> Object {
    const_bool(true)
}

/// `success` of an error response.
pub(super) fn const_false() -> Object {
    const_bool(false)
}

fn const_bool(value: bool) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Boolean)
        .enum_values(Some([value]))
        .build()
}

/// The URL of an endpoint.
pub(super) fn url() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(
            "The endpoint URL. It must use `https` (`http` only if the deployment allows it) and \
             must not contain credentials, a fragment, whitespace, backslashes or control \
             characters. Its address must be allowed by the deployment's target policy. Returned \
             exactly as given.",
        ))
        .max_length(Some(EndpointUrl::MAX))
        .pattern(Some(r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#:@\\\s][^#\\\s]*$"))
        .build()
}

/// The event types that a webhook subscribes to.
pub(super) fn events() -> Array {
    ArrayBuilder::new()
        .items(Ref::from_schema_name("EventType"))
        .min_items(Some(1))
        .unique_items(true)
        .description(Some("The event types to subscribe to, without duplicates."))
        .build()
}

/// A type whose schema is inlined into parameters.
macro_rules! inline_schema {
    ($type:ident, $schema:expr) => {
        pub(super) struct $type;

        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                $schema.into()
            }
        }

        impl ToSchema for $type {}
    };
}

inline_schema!(WebhookIdSchema, webhook_id());
inline_schema!(EventIdSchema, event_id());
inline_schema!(ReplayIdSchema, replay_id());

/// A type whose schema is a named string enum.
macro_rules! string_enum_schema {
    ($type:ident, $name:literal, $description:literal, $values:expr) => {
        #[doc = $description]
        pub(super) struct $type;

        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some($description))
                    .enum_values(Some($values))
                    .build()
                    .into()
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }
        }
    };
}

string_enum_schema!(
    EventTypeSchema,
    "EventType",
    "The type of an event.",
    EventType::ALL.map(EventType::as_str)
);
string_enum_schema!(
    WebhookStatusSchema,
    "WebhookStatus",
    "Whether events are sent to the webhook.",
    WebhookStatus::ALL.map(WebhookStatus::as_str)
);
string_enum_schema!(
    DeliveryStatusSchema,
    "DeliveryStatus",
    "`pending`: another attempt follows; if the webhook is disabled, after it is enabled again; \
     if the endpoint is unreachable, when it responds again. \
     `delivered`: the endpoint responded with a 2xx status. `failed`: all attempts failed. \
     `cancelled`: the webhook was deleted, or does not subscribe to the event.",
    DeliveryStatus::ALL.map(DeliveryStatus::as_str)
);
string_enum_schema!(
    WaitReasonSchema,
    "WaitReason",
    "Why a pending delivery waits. `schedule`: until the next attempt of the retry schedule. \
     `endpoint`: until the endpoint responds again. `webhook`: until the webhook is enabled. \
     `rate`: until it is its turn, because deliveries to the endpoint are spaced in time. \
     `secret`: until the webhook's secret and headers can be decrypted.",
    WaitReason::ALL.map(WaitReason::as_str)
);
string_enum_schema!(
    FailureKindSchema,
    "FailureKind",
    "Why an attempt failed. `dns`: the host name did not resolve. `connect`: no connection, \
     or it was closed before a response. `tls`: the TLS handshake failed. `timeout`: no response \
     headers in time. `blocked`: the target policy does not allow the address. `redirect`: the \
     endpoint responded with 301, 302, 303, 307 or 308. `status`: the endpoint responded with \
     another status that is not 2xx. `invalid_response`: the response was not valid HTTP, or too long.",
    FailureKind::ALL.map(|kind| json!(kind))
);
string_enum_schema!(
    HealthStateSchema,
    "HealthState",
    "`unknown`: no attempt was made yet. `healthy`: attempts succeed. `slow`: responses \
     take more than 500 ms or miss the first attempt's deadline. `failing`: every attempt since \
     `failing_since` failed. `unreachable`: the endpoint did not respond to five attempts in a \
     row. Its deliveries wait, and one attempt at a time finds out whether it responds again.",
    HealthState::ALL.map(HealthState::as_str)
);
