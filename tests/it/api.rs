//! The API's routes and every row of its error table, through the router over a real engine.

mod auth;
mod bodies;
mod deliveries;
mod errors;
mod idempotency;
mod rate_limits;
mod webhooks;

use serde_json::{Value, json};

fn valid() -> Value {
    json!({ "url": "https://example.com/hooks", "events": ["job.completed", "job.failed"] })
}

/// A valid body with another value of one field.
fn valid_with(field: &str, value: Value) -> Value {
    let mut body = valid();
    body[field] = value;
    body
}
