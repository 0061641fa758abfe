//! What clients send to create and update webhooks.

use std::time::Duration;

use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use utoipa::{
    IntoParams, ToSchema,
    openapi::{
        Object, ObjectBuilder, Required, Type,
        path::{Parameter, ParameterBuilder, ParameterIn},
        schema::SchemaType,
    },
};
use zeroize::Zeroizing;

use crate::{
    api::{
        error::ApiError,
        fields::{
            MAX_DESCRIPTION, deserialize_description, deserialize_description_update,
            deserialize_events, deserialize_headers, deserialize_headers_update,
            deserialize_max_per_second, deserialize_max_per_second_update, deserialize_secret,
            deserialize_secret_update, deserialize_url, deserialize_webhook_status,
        },
        schemas::{self, WebhookStatusSchema},
    },
    store::{
        update::WebhookUpdate,
        webhooks::{IdempotencyKey, NewWebhook},
    },
};
use nano_webhooks_core::{
    delivery::pace::MaxPerSecond,
    endpoint_url::EndpointUrl,
    event_type::EventTypes,
    secret::Secret,
    static_headers::{StaticHeaderName, StaticHeaders},
    timestamp::Timestamp,
    webhook::WebhookStatus,
};

/// How long an `Idempotency-Key` is remembered.
const IDEMPOTENCY_TTL: Duration = Duration::from_hours(24);
/// The name of a header (RFC 9110, section 5.6.2).
const HEADER_NAME: &str = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";
/// Limit of an `Idempotency-Key`, in bytes.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// The webhook to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateWebhookRequest {
    #[serde(default, deserialize_with = "deserialize_url")]
    #[schema(required, schema_with = schemas::url)]
    url: Option<EndpointUrl>,
    #[serde(default, deserialize_with = "deserialize_events")]
    #[schema(required, schema_with = schemas::events)]
    events: Option<EventTypes>,
    #[serde(default, deserialize_with = "deserialize_secret")]
    #[schema(schema_with = secret_schema)]
    secret_key: Option<Secret>,
    #[serde(default, deserialize_with = "deserialize_headers")]
    #[schema(schema_with = headers_schema)]
    headers: StaticHeaders,
    #[serde(default, deserialize_with = "deserialize_description")]
    #[schema(schema_with = description_schema)]
    description: Option<String>,
    #[serde(default, deserialize_with = "deserialize_max_per_second")]
    #[schema(schema_with = schemas::max_per_second)]
    max_per_second: Option<MaxPerSecond>,
}

impl CreateWebhookRequest {
    /// Checks that the required fields are present.
    pub fn into_new_webhook(self) -> Result<NewWebhook, ApiError> {
        let Some(url) = self.url else {
            return Err(ApiError::field("url", "required"));
        };
        let Some(events) = self.events else {
            return Err(ApiError::field("events", "required"));
        };
        Ok(NewWebhook {
            url,
            events,
            secret: self.secret_key,
            headers: self.headers,
            description: self.description,
            max_per_second: self.max_per_second,
        })
    }
}

/// Binds an `Idempotency-Key` to the request for `new`.
pub(crate) fn bind_idempotency_key(
    key: String,
    new: &NewWebhook,
    now: Timestamp,
) -> IdempotencyKey {
    IdempotencyKey {
        key,
        request_hash: hash_fields(new),
        expires_at: now + IDEMPOTENCY_TTL,
    }
}

/// The parsed fields of a request in their canonical form. Hashes are stored, so the order and the
/// names must not change, and a further field must be left out if the request does not have it.
#[derive(Serialize)]
struct CanonicalFields<'a> {
    url: &'a str,
    events: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_per_second: Option<u32>,
    /// Sorted by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(&'a str, &'a str)>,
}

/// The SHA-256 of the parsed fields. Requests with equal fields have the same hash, whatever their
/// white space and key order.
fn hash_fields(new: &NewWebhook) -> [u8; 32] {
    let fields = CanonicalFields {
        url: new.url.as_str(),
        events: new.events.names().collect(),
        secret_key: new.secret.as_ref().map(Secret::expose),
        description: new.description.as_deref(),
        max_per_second: new.max_per_second.map(MaxPerSecond::get),
        headers: new
            .headers
            .as_slice()
            .iter()
            .map(|header| (header.name(), header.expose_value()))
            .collect(),
    };
    let json = Zeroizing::new(serde_json::to_vec(&fields).expect("all keys are strings"));
    Sha256::digest(json.as_slice()).into()
}

/// The fields to change. Fields that are absent keep their value.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateWebhookRequest {
    #[serde(default, deserialize_with = "deserialize_url")]
    #[schema(schema_with = schemas::url)]
    url: Option<EndpointUrl>,
    #[serde(default, deserialize_with = "deserialize_events")]
    #[schema(schema_with = schemas::events)]
    events: Option<EventTypes>,
    #[serde(default, deserialize_with = "deserialize_webhook_status")]
    #[schema(value_type = WebhookStatusSchema)]
    status: Option<WebhookStatus>,
    // `Some(None)` is `null`.
    #[serde(default, deserialize_with = "deserialize_secret_update")]
    #[schema(schema_with = secret_schema)]
    secret_key: Option<Option<Secret>>,
    #[serde(default, deserialize_with = "deserialize_headers_update")]
    #[schema(schema_with = headers_schema)]
    headers: Option<StaticHeaders>,
    // `Some(None)` is `null`.
    #[serde(default, deserialize_with = "deserialize_description_update")]
    #[schema(schema_with = description_schema)]
    description: Option<Option<String>>,
    // `Some(None)` is `null`.
    #[serde(default, deserialize_with = "deserialize_max_per_second_update")]
    #[schema(schema_with = schemas::max_per_second)]
    max_per_second: Option<Option<MaxPerSecond>>,
}

impl From<UpdateWebhookRequest> for WebhookUpdate {
    fn from(request: UpdateWebhookRequest) -> Self {
        Self {
            url: request.url,
            events: request.events,
            status: request.status,
            secret: request.secret_key,
            headers: request.headers,
            description: request.description,
            max_per_second: request.max_per_second,
        }
    }
}

fn secret_schema() -> Object {
    nullable_string()
        .description(Some(
            "The secret that signs requests to the endpoint. `null` means that they are not \
             signed. It has no control characters. After the prefix `whsec_` it must be base64 of \
             24 to 64 bytes, with padding. It is never returned.",
        ))
        .pattern(Some(schemas::PRINTABLE_TEXT))
        .min_length(Some(*Secret::LENGTH_RANGE.start()))
        .max_length(Some(*Secret::LENGTH_RANGE.end()))
        .build()
}

fn headers_schema() -> Object {
    let value = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(r"^[!-~]([\t -~]*[!-~])?$"));
    let name = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(HEADER_NAME))
        .max_length(Some(StaticHeaderName::MAX))
        .build();
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .description(Some(
            "Headers that every request to the endpoint has in addition, such as the API key of a \
             gateway: at most 10, with at most 4 KiB of names and values. They replace all earlier \
             ones; `null` and `{}` mean none. Values are stored encrypted and never returned. \
             Each name may be given once, whatever its case. Names that requests have already or \
             that control the connection are refused: `Host`, `Content-*`, `Connection`, \
             `Transfer-Encoding`, `TE`, `Trailer`, `Upgrade`, `Keep-Alive`, `Proxy-*`, `Expect`, \
             `Accept`, `User-Agent`, `X-Nano-*`, `webhook-*` and `traceparent`.",
        ))
        .property_names(Some(name))
        .additional_properties(Some(value))
        .max_properties(Some(StaticHeaders::MAX))
        .build()
}

fn description_schema() -> Object {
    nullable_string()
        .description(Some("A note for the account's own use. `null` means none."))
        .max_length(Some(MAX_DESCRIPTION))
        .build()
}

fn nullable_string() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Null]))
}

/// The header `Idempotency-Key`, for OpenAPI.
pub(crate) struct IdempotencyKeyHeader;

impl IntoParams for IdempotencyKeyHeader {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        // HTTP removes spaces at both ends of a header value.
        let schema = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(MAX_IDEMPOTENCY_KEY))
            .pattern(Some("^[!-~]([ -~]*[!-~])?$"));
        let header = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(
                "A unique value of 1 to 255 printable ASCII characters. A request that is sent \
                 again with the same key and equal fields within 24 hours returns the same \
                 response and creates nothing. White space and the order of keys do not matter.",
            ))
            .schema(Some(schema.build()))
            .example(Some(json!("order-1234")));
        vec![header.build()]
    }
}

/// The request's `Idempotency-Key`.
pub(crate) fn parse_idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let is_repeated = values.next().is_some();
    match value.to_str() {
        Ok(key) if !is_repeated && (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len()) => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(ApiError::field(
            "Idempotency-Key",
            "expected one value of 1 to 255 printable ASCII characters",
        )),
    }
}
