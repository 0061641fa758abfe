//! Outgoing webhooks on AWS Lambda and DynamoDB streams.
//!
//! # Map
//!
//! | what | where |
//! |---|---|
//! | what is decided, without I/O | [`webhook`], [`event`], [`signing`], [`delivery`], [`api_key`], [`data_key`] |
//! | what talks to the outside | [`store`] (DynamoDB), [`queue`] (SQS), [`transport`] (endpoints), [`telemetry`] (logs), [`metrics`] |
//! | what the functions do | [`api`] (the HTTP API), [`dispatch`] (the fan-out) |
//! | what a developer's machine runs | `local`, behind the cargo feature of that name |
//! | what is read once, in one place | [`config`] (environment), [`clock`] (time), [`random`] (entropy), [`aws`] (SDK clients) |
//!
//! Uses point downwards only: binaries → api, dispatch, local → store, transport → webhook, event, signing, delivery.

pub mod api;
pub mod api_key;
pub mod aws;
mod bounded;
pub mod clock;
pub mod config;
pub mod data_key;
pub mod delivery;
pub mod dispatch;
pub mod event;
#[cfg(feature = "local")]
pub mod local;
pub mod metrics;
pub mod queue;
pub mod random;
pub mod signing;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod webhook;

/// The version of this software, as receivers see it in `User-Agent`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
