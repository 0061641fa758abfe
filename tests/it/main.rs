//! The service's parts and the whole of it, against a real DynamoDB engine and over real sockets.

mod api;
mod dispatch;
mod events;
mod faults;
mod fixed_point;
mod layers;
mod limits;
mod metrics;
mod openapi;
mod poison;
mod proxy;
mod replays;
mod retries;
mod rotation;
mod secrets;
mod support;
mod targets;
mod tls;
mod trial;
mod units;
