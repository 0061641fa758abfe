//! `GET /healthz`

use axum::Json;
use serde::Serialize;
use utoipa::{ToSchema, openapi::Object};

use super::{
    responses::{SuccessResponse, ok},
    schemas,
};

/// The state of the process.
#[derive(Serialize, ToSchema)]
pub(super) struct HealthCheckResponse {
    #[schema(schema_with = status_schema)]
    status: &'static str,
}

fn status_schema() -> Object {
    schemas::string_enum(["ok"])
}

/// Health check
///
/// Checks that the process responds. It does not check the tables.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "getHealth",
    tag = "Service",
    security(),
    responses(
        (
            status = 200,
            description = "Healthy.",
            body = HealthCheckResponse,
            example = json!({ "success": true, "data": { "status": "ok" } }),
        ),
    ),
)]
pub(super) async fn healthz() -> Json<SuccessResponse<HealthCheckResponse>> {
    ok(HealthCheckResponse { status: "ok" })
}
