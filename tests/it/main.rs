//! Integration tests: the parts of the service over a real DynamoDB engine and real sockets.

#![allow(
    clippy::large_futures,
    reason = "tests run few futures, and their size does not matter"
)]

mod advance;
mod api;
mod architecture;
mod canonical_json;
mod cost;
mod deferred_attempts;
mod dispatch;
mod events;
mod exchange;
mod extension;
mod fault_matrix;
mod late_attempts;
mod limits;
mod limits_page;
mod metrics;
mod openapi;
mod operational_events;
mod poison;
mod replays;
mod request_head;
mod retries;
mod rotation;
mod secrets;
mod static_headers;
mod stream_readers;
mod support;
mod sweep;
mod targets;
mod template_values;
mod test_event;
mod tls;
mod unreadable_webhooks;
