//! Account ids.

use nano_webhooks_core::account_id::AccountId;

pub fn account(name: &str) -> AccountId {
    AccountId::parse(name).unwrap()
}
