//! Fixtures of the integration tests.

pub mod accounts;
pub mod app;
pub mod breaker_fixture;
pub mod client;
pub mod cost_fixture;
pub mod engine;
pub mod kms;
pub mod logs;
pub mod metrics;
pub mod module_graph;
pub mod permissions;
pub mod poison_fixture;
pub mod proxy;
pub mod queue;
pub mod receiver;
pub mod replay_fixture;
pub mod retry_fixture;
pub mod sns;
pub mod sqs;
pub mod stream;
pub mod sweep_fixture;
pub mod tables;
pub mod webhooks;
pub mod wire;
