//! `GET /api/v1/openapi.json`: the description of this API, put together from what stands beside each operation.

use std::{borrow::Cow, collections::BTreeMap, sync::LazyLock};

use axum::{
    http::{HeaderName, header::CONTENT_TYPE},
    response::{IntoResponse, Response as Answer},
};
use hyper::body::Bytes;
use serde_json::{Value, json};
use utoipa::{
    IntoParams, IntoResponses, Modify, OpenApi, PartialSchema, ToSchema,
    openapi::{
        self, Array, ArrayBuilder, Content, ContentBuilder, Header, HeaderBuilder, KnownFormat,
        Object, ObjectBuilder, Ref, RefOr, Required, Response, ResponseBuilder, Schema,
        SchemaFormat, Type,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem},
        schema::SchemaType,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{
    auth::AuthenticatedAccount,
    body::{JsonBody, OptionalJson},
    callbacks, deliveries,
    error::{self, ApiError},
    portal, replays, rotate_secret, test_event, webhooks,
};
use crate::store::delivery_log;
use nano_webhooks_core::{
    delivery::attempt,
    endpoint_url::EndpointUrl,
    secret::Secret,
    webhook::{self, WebhookId},
};

/// Each operation is described beside its handler; what all have in common is added here.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "nano-webhooks",
        description = "Outgoing webhooks: register an endpoint, and every job that completes or fails is sent to it as a \
            signed HTTP callback.\n\n\
            Every answer under `/api/v1`, but for this description, is JSON in an envelope: `{\"success\":true,\"data\":…}` or \
            `{\"success\":false,\"error\":{\"code\":\"…\",\"message\":\"…\"}}`. Every answer has an `X-Request-Id`, to be \
            named in a question. A path that is not described here is answered with 404 and `not_found`, a method that is not \
            with 405, `method_not_allowed` and `Allow`. An id that cannot be one names nothing, which is a 404 as well.\n\n\
            Times are RFC 3339 in UTC. Fields may be added to answers; requests with fields that are not known are refused."
    ),
    paths(
        webhooks::list,
        webhooks::create,
        webhooks::show,
        webhooks::change,
        webhooks::remove,
        rotate_secret::rotate,
        test_event::send,
        replays::begin,
        replays::show,
        replays::cancel,
        deliveries::list,
        deliveries::show,
        deliveries::retry,
        document,
        super::healthz,
        portal::serve_portal,
    ),
    components(schemas(error::ErrorResponse, callbacks::JobEvent, callbacks::WebhookDisabled)),
    servers((url = "/", description = "Where this description was read from.")),
    security(("api_key" = [])),
    tags(
        (name = "Webhooks", description = "Endpoints, and what they subscribe to."),
        (name = "Deliveries", description = "What was sent to an endpoint, and how that went."),
        (name = "Service", description = "What needs no key."),
        (name = "Callbacks", description = "What a subscriber receives."),
    ),
    modifiers(&SharedResponses),
)]
struct Description;

/// The document as it is served, which does not change while the process lives.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let document = Description::openapi()
        .to_json()
        .expect("a description is maps with texts as keys");
    Bytes::from(document)
});

/// This description
#[utoipa::path(get, path = "/api/v1/openapi.json", operation_id = "getDescription", tag = "Service", security(),
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = Object)))]
pub(super) async fn document() -> Answer {
    const HEADERS: [(HeaderName, &str); 1] = [(CONTENT_TYPE, "application/json")];
    (HEADERS, DOCUMENT.clone()).into_response()
}

/// What all operations have in common.
struct SharedResponses;

impl Modify for SharedResponses {
    fn modify(&self, api: &mut openapi::OpenApi) {
        for operation in api.paths.paths.values_mut().flat_map(operations) {
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response {
                    response
                        .headers
                        .insert("X-Request-Id".to_owned(), request_id().into());
                    if status.starts_with('2') {
                        response.content.values_mut().for_each(wrap_in_envelope);
                    }
                }
            }
            if let Some(RefOr::T(body)) = &mut operation.request_body {
                body.content.values_mut().for_each(unwrap_optional_body);
            }
        }
        api.webhooks = Some(callbacks::callback_paths());
        let components = api.components.get_or_insert_default();
        for (error, meaning) in refusals() {
            components
                .responses
                .insert(error.told().1.to_owned(), refusal(&error, meaning).into());
        }
        let key = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("sk-…").description(Some(
            "An API key: `sk-`, 32 characters and 6 of checksum. A deployment may have an authorizer of its own in front \
             instead.",
        ));
        components.add_security_scheme("api_key", SecurityScheme::Http(key.build()));
    }
}

/// What is described of a success is the `data` of its envelope. Only what is described inline stands outside.
fn wrap_in_envelope(content: &mut RefOr<Content>) {
    if let RefOr::T(Content {
        schema: Some(schema),
        ..
    }) = content
        && matches!(schema, RefOr::Ref(_) | RefOr::T(Schema::Array(_)))
    {
        let envelope = ObjectBuilder::new()
            .property("success", const_true())
            .property("data", schema.clone());
        *schema = envelope.required("success").required("data").build().into();
    }
}

/// A body that is an `Option` may be absent, which is said beside it. It may not be `null`, as its schema has it.
fn unwrap_optional_body(content: &mut RefOr<Content>) {
    if let RefOr::T(Content {
        schema: Some(schema),
        ..
    }) = content
        && let RefOr::T(Schema::OneOf(either)) = schema
    {
        *schema = either.items.swap_remove(0);
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem {
        get,
        put,
        post,
        delete,
        patch,
        ..
    } = item;
    [get, put, post, delete, patch]
        .into_iter()
        .filter_map(Option::as_mut)
}

/// The error table, with what each row means, and an example where the message varies.
fn refusals() -> [(ApiError, &'static str); 8] {
    [
        (
            ApiError::field("url", "expected a URL that begins with `https://`"),
            "The request is not as expected; the message names the field and what is expected of it.",
        ),
        (ApiError::Unauthorized, "The API key is missing or invalid."),
        (
            ApiError::NotFound("No webhook 1".to_owned()),
            "There is no such resource, or it belongs to another account. An id that cannot be one names nothing.",
        ),
        (ApiError::PayloadTooLarge, "The body is over 64 KiB."),
        (
            ApiError::UnsupportedMediaType,
            "There is a body, and it is not declared as JSON.",
        ),
        (
            ApiError::RateLimited {
                retry_after_seconds: 30,
            },
            "The account has made too many requests; by default 60 a minute and 10,000 a day are allowed.",
        ),
        (
            ApiError::Internal(String::new()),
            "Our fault. The cause is in our log, under the request's id.",
        ),
        (
            ApiError::Unavailable(String::new()),
            "What the answer needs is out of reach for the moment.",
        ),
    ]
}

fn refusal(error: &ApiError, meaning: &str) -> Response {
    let (status, code, message) = error.told();
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Error")))
        .example(Some(
            json!({ "success": false, "error": { "code": code, "message": message } }),
        ));
    let response = ResponseBuilder::new()
        .description(meaning)
        .content("application/json", content.build())
        .header("X-Request-Id", request_id());
    let seconds = || {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .build()
    };
    let response = match status.as_u16() {
        401 => response.header(
            "WWW-Authenticate",
            header("`Bearer`.", Object::with_type(Type::String)),
        ),
        429 | 503 => response.header(
            "Retry-After",
            header("When to try again, in seconds.", seconds()),
        ),
        _ => response,
    };
    response.build()
}

fn request_id() -> Header {
    let text = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .build();
    header("Names the request, in a question as in our log.", text)
}

fn header(description: &str, schema: Object) -> Header {
    HeaderBuilder::new()
        .schema(Some(schema))
        .description(Some(description))
        .build()
}

type Responses = BTreeMap<String, RefOr<Response>>;

/// The answers of the error table that have these statuses.
fn refused(statuses: &[u16]) -> Responses {
    let named = |(error, _): &(ApiError, _)| {
        let (status, code, _) = error.told();
        (status.as_u16(), code)
    };
    let table = BTreeMap::from(refusals().each_ref().map(named));
    let answer = |status: &u16| {
        (
            status.to_string(),
            Ref::from_response_name(table[status]).into(),
        )
    };
    statuses.iter().map(answer).collect()
}

// An operation refuses what the parts refuse that it takes.

impl IntoResponses for AuthenticatedAccount {
    fn responses() -> Responses {
        refused(&[401, 429, 500, 503])
    }
}

impl IntoResponses for webhooks::WebhookPath {
    fn responses() -> Responses {
        refused(&[404])
    }
}

impl IntoResponses for deliveries::DeliveryPath {
    fn responses() -> Responses {
        refused(&[404])
    }
}

impl IntoResponses for replays::ReplayPath {
    fn responses() -> Responses {
        refused(&[404])
    }
}

impl<T> IntoResponses for JsonBody<T> {
    fn responses() -> Responses {
        refused(&[400, 413, 415])
    }
}

impl<T> IntoResponses for OptionalJson<T> {
    fn responses() -> Responses {
        refused(&[400, 413, 415])
    }
}

/// The query of a list of deliveries.
pub(super) struct ListQuery;

impl IntoResponses for ListQuery {
    fn responses() -> Responses {
        refused(&[400])
    }
}

impl IntoParams for ListQuery {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let limit = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(deliveries::MAX_LIMIT))
            .default(Some(json!(deliveries::DEFAULT_LIMIT)));
        let cursor = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1));
        let in_query = |name, description, schema| {
            optional(name, ParameterIn::Query, description, schema).build()
        };
        vec![
            in_query(
                "status",
                "Those with this status alone.",
                Ref::from_schema_name("DeliveryStatus").into(),
            ),
            in_query(
                "event",
                "Those of this event type alone.",
                Ref::from_schema_name("EventType").into(),
            ),
            in_query("limit", "How many at most.", limit.build().into()),
            in_query(
                "cursor",
                "The `next_cursor` of the page before.",
                cursor.build().into(),
            ),
        ]
    }
}

/// The header of a request that may be sent again.
pub(super) struct IdempotencyKey;

impl IntoParams for IdempotencyKey {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        // At its ends no space: HTTP drops it.
        let key = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(webhooks::MAX_IDEMPOTENCY_KEY))
            .pattern(Some("^[!-~]([ -~]*[!-~])?$"));
        let description = "A name for this request, of 1 to 255 printable ASCII characters.";
        let key = optional(
            "Idempotency-Key",
            ParameterIn::Header,
            description,
            key.build().into(),
        );
        vec![key.example(Some(json!("order-1234"))).build()]
    }
}

fn optional(
    name: &str,
    place: ParameterIn,
    description: &str,
    schema: RefOr<Schema>,
) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(schema))
}

impl IntoParams for webhooks::WebhookPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_param(
            "id",
            "The webhook.",
            webhook_id_schema(),
            json!(1),
        )]
    }
}

impl IntoParams for deliveries::DeliveryPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let event = path_param(
            "event_id",
            "The event.",
            event_id_schema(),
            json!("evt_01JFSFB4807P0XDV4PAY2Y4PMB"),
        );
        vec![
            path_param("id", "The webhook.", webhook_id_schema(), json!(1)),
            event,
        ]
    }
}

impl IntoParams for replays::ReplayPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let replay = path_param(
            "replay",
            "The replay.",
            replay_id_schema(),
            json!("rpl_0123456789abcdef"),
        );
        vec![
            path_param("id", "The webhook.", webhook_id_schema(), json!(1)),
            replay,
        ]
    }
}

fn path_param(name: &str, description: &str, schema: Object, example: Value) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(schema))
        .example(Some(example))
        .build()
}

/// A webhook's number within its account.
pub(super) fn webhook_id_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(1))
        .maximum(Some(WebhookId::MAX))
        .build()
}

/// An event's id.
pub(super) fn event_id_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^evt_[0-9A-HJKMNP-TV-Z]{26}$"))
        .build()
}

/// A replay's id.
pub(super) fn replay_id_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^rpl_[0-9a-f]{16}$"))
        .build()
}

/// The status of a process that answers.
pub(super) fn status_ok_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(["ok"]))
        .build()
}

/// What is always so.
fn const_bool(value: bool) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Boolean)
        .enum_values(Some([value]))
        .build()
}

/// `success` of a success.
pub(super) fn const_true() -> Object {
    const_bool(true)
}

/// `success` of what is none.
pub(super) fn const_false() -> Object {
    const_bool(false)
}

/// Where callbacks go.
pub(super) fn url_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(
            "Where callbacks go: `https://` (`http://` too where the deployment allows it), a host directly after it, no user \
             name, password or fragment, no space, backslash, control or invisible character, and no address that the \
             deployment's target policy refuses. It is kept as it is given.",
        ))
        .max_length(Some(EndpointUrl::MAX))
        .pattern(Some(r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#:@\\\s][^#\\\s]*$"))
        .build()
}

/// What is subscribed to.
pub(super) fn events_schema() -> Array {
    ArrayBuilder::new()
        .items(Ref::from_schema_name("EventType"))
        .min_items(Some(1))
        .unique_items(true)
        .build()
}

/// A signing secret, or none.
pub(super) fn secret() -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .description(Some(
            "The key of the signatures; `null` is none. One that begins with `whsec_` goes on in base64 with padding.",
        ))
        .min_length(Some(*Secret::LENGTH_RANGE.start()))
        .max_length(Some(*Secret::LENGTH_RANGE.end()))
        .build()
}

/// A signing secret; without one it is generated.
pub(super) fn new_secret() -> Object {
    let mut secret = secret();
    let description = "The new key of the signatures; without it, or with `null`, one is generated. One that begins with \
                       `whsec_` goes on in base64 with padding.";
    secret.description = Some(description.to_owned());
    secret
}

/// A note, or none.
pub(super) fn description_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .description(Some("The account's own note; `null` is none."))
        .max_length(Some(webhooks::MAX_DESCRIPTION))
        .build()
}

/// `error_code_schema` of an error.
pub(super) fn error_code_schema() -> Object {
    // Of a method that is not supported no operation tells.
    let others = [
        ApiError::MethodNotAllowed(String::new()),
        ApiError::Conflict(String::new()),
    ];
    let all = refusals()
        .into_iter()
        .map(|(error, _)| error)
        .chain(others)
        .map(|error| error.told().1);
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(all.collect::<Vec<_>>()))
        .build()
}

/// A schema of a string that has one of a few values.
macro_rules! one_of {
    ($type:ident, $name:literal, $description:literal, $values:expr) => {
        #[doc = $description]
        pub(super) struct $type;

        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some($description));
                text.enum_values(Some($values)).build().into()
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }
        }
    };
}

one_of!(
    EventTypeSchema,
    "EventType",
    "What can be subscribed to.",
    nano_webhooks_core::event_type::EventType::ALL
        .map(nano_webhooks_core::event_type::EventType::as_str)
);
one_of!(
    WebhookStatusSchema,
    "WebhookStatus",
    "Whether a webhook receives events.",
    webhook::WebhookStatus::ALL.map(webhook::WebhookStatus::as_str)
);
one_of!(
    DeliveryStatusSchema,
    "DeliveryStatus",
    "`pending`: another attempt is to be made. `delivered`: a 2xx was read. `failed`: no attempt is left. `cancelled`: the \
     webhook was deleted.",
    delivery_log::DeliveryStatus::ALL.map(delivery_log::DeliveryStatus::as_str)
);
one_of!(
    FailureKindSchema,
    "FailureKind",
    "Why an attempt failed: the name did not resolve, no connection, the TLS handshake, out of time, a target that is not \
     allowed, an answer that was a redirect or no 2xx, or a body that broke off.",
    attempt::FailureKind::ALL.map(|kind| json!(kind))
);
one_of!(
    HealthStateSchema,
    "HealthState",
    "`slow`: it answers, but not within the first attempt's deadline. `failing`: its attempts fail.",
    ["healthy", "slow", "failing"]
);
