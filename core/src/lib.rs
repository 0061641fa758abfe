//! Values and pure decisions: events, signatures, deliveries, endpoint health.
//!
//! This crate performs no I/O. It reads no clock, no entropy and no environment: callers pass the
//! time and random bytes.

pub mod account_id;
pub mod api_key;
pub mod data_key;
pub mod delivery;
pub mod endpoint_url;
pub mod event;
pub mod event_type;
pub mod operational_event;
pub mod readable_duration;
pub mod replay;
pub mod secret;
pub mod signing;
pub mod static_headers;
pub mod target_policy;
pub mod timestamp;
pub mod webhook;
