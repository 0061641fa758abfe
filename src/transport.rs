//! HTTP out: guarded targets, bounded exchanges.

pub mod client;
pub mod guard;

pub use client::Client;
pub use guard::Guard;
