//! Requests to endpoints: guarded targets and bounded exchanges.

pub mod attempt_slots;
mod byte_meter;
mod connection;
mod connector;
#[cfg(fuzzing)]
pub mod fuzzing;
mod header_case;
mod hosts;
pub mod local_failure;
mod lookup_slots;
mod phase_recorder;
mod pool;
pub mod resolver;
pub(crate) mod response_body;
mod system_resolver;
pub mod target_guard;
pub mod tls;
mod tls_diagnosis;
pub mod webhook_client;
