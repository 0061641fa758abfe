//! Outgoing webhooks on AWS Lambda and DynamoDB streams: what the deployed functions consist of.
//!
//! # Code map
//!
//! | part | module |
//! |---|---|
//! | the HTTP API | [`api`] |
//! | the dispatcher: stream batches, retries, the sweep | [`dispatch`] |
//! | DynamoDB, SQS, endpoints | [`store`], [`queue`], [`client`] |
//! | logs and metrics | [`telemetry`], [`metrics`] |
//! | environment, clock, entropy, AWS clients | [`config`], [`clock`], [`random`], [`aws`] |
//!
//! Values and decisions are in [`nano_webhooks_core`].

pub mod api;
pub mod aws;
pub mod client;
pub mod clock;
pub mod concurrency;
pub mod config;
pub mod dispatch;
pub mod error_chain;
pub mod extension;
pub mod lambda;
pub mod metrics;
pub mod queue;
pub mod random;
pub mod store;
pub mod telemetry;

/// The version of this software, as receivers see it in `User-Agent`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
