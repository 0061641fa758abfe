//! The envelope of successful responses.

use axum::{
    Json,
    http::{StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// `{"success":true,"data":…}`
#[derive(Serialize)]
pub(super) struct SuccessResponse<T> {
    success: bool,
    data: T,
}

/// Wraps `data` in the envelope.
pub(super) fn ok<T: Serialize>(data: T) -> Json<SuccessResponse<T>> {
    Json(SuccessResponse {
        success: true,
        data,
    })
}

/// A response that names the new resource in `Location`. `status` is 201, or 202 if the work
/// continues after the response.
pub(super) fn created<T: Serialize>(status: StatusCode, location: String, data: T) -> Response {
    (status, [(LOCATION, location)], ok(data)).into_response()
}
