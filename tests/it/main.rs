//! The service's parts and the whole of it, against a real DynamoDB engine and over real sockets.

mod api;
mod architecture;
mod canonical_json;
mod cost;
mod dispatch;
mod events;
mod fault_matrix;
mod limits;
mod limits_page;
mod metrics;
mod openapi;
mod poison;
mod replays;
mod retries;
mod rotation;
mod secrets;
mod support;
mod targets;
mod template_values;
mod test_event;
mod tls;
