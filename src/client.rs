//! HTTP out: guarded targets, bounded exchanges.

pub mod attempt;
pub mod guard;
pub mod resolver;

pub use attempt::WebhookClient;
pub use guard::TargetGuard;
pub use resolver::Resolver;
