//! HTTP out: guarded targets, bounded exchanges.

pub mod client;
pub mod guard;
pub mod resolver;

pub use client::Client;
pub use guard::Guard;
pub use resolver::Resolver;
