//! The OpenAPI document. Operations are described at their handlers; this file adds what they
//! share.

use utoipa::{
    OpenApi,
    openapi::{
        self, Content, Header, HeaderBuilder, ObjectBuilder, RefOr, Response, Schema, Type,
        path::{Operation, PathItem},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{
    callbacks,
    error::{ErrorResponse, error_components},
    schemas,
};

/// The document without the operations, which the router adds.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "nano-webhooks",
        description = "nano-webhooks sends an event to your endpoints whenever a job completes or \
            fails. Use this API to manage webhooks, and to inspect, retry and replay \
            deliveries.\n\n\
            **Responses.** Every response under `/api/v1` except this document is JSON in an \
            envelope: `{\"success\":true,\"data\":…}` or \
            `{\"success\":false,\"error\":{\"code\":\"…\",\"message\":\"…\"}}`. Unknown paths \
            return 404 with the code `not_found`. Unsupported methods return 405 with the code \
            `method_not_allowed` and the header `Allow`. Malformed ids return 404. Every response \
            has the header `X-Request-Id`; include its value when you contact support.\n\n\
            **Times** are in RFC 3339 format and in UTC.\n\n\
            **Compatibility.** New fields may be added to responses. Requests with unknown fields \
            are rejected."
    ),
    components(schemas(
        ErrorResponse,
        callbacks::JobEvent,
        callbacks::WebhookDisabledEvent,
        callbacks::OperationalEventSchema,
    )),
    servers((url = "/", description = "The server that returned this document.")),
    security(("api_key" = [])),
    tags(
        (name = "Webhooks", description = "Create and manage webhooks."),
        (name = "Deliveries", description = "Inspect, retry and replay deliveries."),
        (name = "Service", description = "Operations that need no API key."),
        (name = "Events", description = "The requests that your endpoints receive."),
    ),
)]
pub(super) struct Description;

/// Completes a document that contains all operations.
pub(super) fn complete(document: &mut openapi::OpenApi) {
    for item in document.paths.paths.values_mut() {
        for operation in operations(item) {
            complete_operation(operation);
        }
    }
    document.webhooks = Some(callbacks::callback_paths());

    let components = document.components.get_or_insert_default();
    components.responses.extend(error_components());
    for response in components.responses.values_mut() {
        add_request_id(response);
    }
    let api_key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("sk-…")
        .description(Some(
            "An API key: `sk-` followed by 38 letters and digits. A deployment may use its own \
             authorizer instead.",
        ));
    components.add_security_scheme("api_key", SecurityScheme::Http(api_key.build()));
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.patch,
    ]
    .into_iter()
    .filter_map(Option::as_mut)
}

fn complete_operation(operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        add_request_id(response);
        if status.starts_with('2')
            && let RefOr::T(response) = response
        {
            response.content.values_mut().for_each(wrap_in_envelope);
        }
    }
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        body.content.values_mut().for_each(unwrap_optional_body);
    }
}

/// Describes `X-Request-Id`, unless the response is a reference.
fn add_request_id(response: &mut RefOr<Response>) {
    if let RefOr::T(response) = response {
        let header = request_id_header();
        response
            .headers
            .insert("X-Request-Id".to_owned(), header.into());
    }
}

fn request_id_header() -> Header {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1));
    HeaderBuilder::new()
        .schema(Some(schema.build()))
        .description(Some("The id of the request."))
        .build()
}

/// Handlers describe the `data` of the envelope. Inline schemas are complete responses.
fn wrap_in_envelope(content: &mut RefOr<Content>) {
    if let RefOr::T(Content {
        schema: Some(schema),
        ..
    }) = content
        && matches!(schema, RefOr::Ref(_) | RefOr::T(Schema::Array(_)))
    {
        let envelope = ObjectBuilder::new()
            .property("success", schemas::const_true())
            .property("data", schema.clone())
            .required("success")
            .required("data");
        *schema = envelope.build().into();
    }
}

/// utoipa describes an optional body as its schema or `null`. The body may be absent, but not
/// `null`.
fn unwrap_optional_body(content: &mut RefOr<Content>) {
    if let RefOr::T(Content {
        schema: Some(schema),
        ..
    }) = content
        && let RefOr::T(Schema::OneOf(alternatives)) = schema
    {
        *schema = alternatives.items.swap_remove(0);
    }
}
