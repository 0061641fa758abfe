//! Late attempts: direct attempts that are still open when their batch stops waiting for them.
//!
//! A late attempt is not cut. Its batch is recorded and acknowledged, and the exchange ends in the
//! same process. So an endpoint that needs some seconds to wake up receives its event once, and no
//! batch waits for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nano_webhooks_core::{account_id::AccountId, delivery::attempt::AttemptOutcome};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{attempt::SentRequest, in_flight::EndpointKey};
use crate::client::{local_failure::LocalFailure, webhook_client::OpenExchange};

/// The most late attempts to one endpoint in this process.
pub const MAX_LATE_PER_ENDPOINT: usize = 32;
/// The most late attempts of one account in this process.
pub const MAX_LATE_PER_ACCOUNT: usize = 64;
/// The most late attempts in a function's process.
pub const MAX_LATE: usize = 128;

/// The late attempts of a process. Clones share them.
#[derive(Clone, Default)]
pub struct LateAttempts {
    /// The most in this process; 0 if it may stop as soon as a batch is acknowledged.
    max: usize,
    slots: Arc<Mutex<Slots>>,
    completions: TaskTracker,
}

#[derive(Default)]
struct Slots {
    total: usize,
    per_account: HashMap<AccountId, usize>,
    per_endpoint: HashMap<EndpointKey, usize>,
}

/// The right to leave one attempt open. It ends when the permit is dropped.
pub(super) struct LatePermit {
    endpoint: EndpointKey,
    slots: Arc<Mutex<Slots>>,
}

/// An attempt that its batch no longer waits for. Dropping it ends the exchange.
pub(super) struct LateAttempt {
    pub(super) sent: SentRequest,
    exchange: AbortOnDropHandle<Result<AttemptOutcome, LocalFailure>>,
    _permit: LatePermit,
}

impl LateAttempt {
    /// Lets the exchange go on in the background.
    pub(super) fn new(sent: SentRequest, exchange: OpenExchange, permit: LatePermit) -> Self {
        Self {
            sent,
            exchange: AbortOnDropHandle::new(tokio::spawn(exchange)),
            _permit: permit,
        }
    }

    /// Waits until the exchange has ended. `None` if it panicked.
    pub(super) async fn outcome(&mut self) -> Option<Result<AttemptOutcome, LocalFailure>> {
        (&mut self.exchange).await.ok()
    }
}

impl LateAttempts {
    /// At most `max` late attempts, in a process that runs until [`Self::drain`] has returned.
    pub fn enabled(max: usize) -> Self {
        Self {
            max,
            ..Self::default()
        }
    }

    /// No late attempts: the process may stop as soon as a batch is acknowledged.
    pub fn disabled() -> Self {
        Self::default()
    }

    /// Allows one more late attempt to an endpoint, if there is room for it.
    pub(super) fn try_admit(&self, endpoint: &EndpointKey) -> Option<LatePermit> {
        let mut slots = lock(&self.slots);
        if slots.total >= self.max || !slots.have_room(endpoint) {
            return None;
        }
        slots.total += 1;
        *slots
            .per_account
            .entry(endpoint.account.clone())
            .or_default() += 1;
        *slots.per_endpoint.entry(endpoint.clone()).or_default() += 1;
        Some(LatePermit {
            endpoint: endpoint.clone(),
            slots: self.slots.clone(),
        })
    }

    /// Runs the end of a late attempt in the background.
    pub(super) fn spawn(&self, completion: impl Future<Output = ()> + Send + 'static) {
        self.completions.spawn(completion);
    }

    /// Waits until every late attempt has ended and its outcome is recorded.
    pub async fn drain(&self) {
        self.completions.close();
        self.completions.wait().await;
        self.completions.reopen();
    }
}

impl Slots {
    fn have_room(&self, endpoint: &EndpointKey) -> bool {
        let of_account = self.per_account.get(&endpoint.account).copied();
        let of_endpoint = self.per_endpoint.get(endpoint).copied();
        of_account.unwrap_or(0) < MAX_LATE_PER_ACCOUNT
            && of_endpoint.unwrap_or(0) < MAX_LATE_PER_ENDPOINT
    }
}

impl Drop for LatePermit {
    fn drop(&mut self) {
        let mut slots = lock(&self.slots);
        slots.total -= 1;
        decrement(&mut slots.per_account, &self.endpoint.account);
        decrement(&mut slots.per_endpoint, &self.endpoint);
    }
}

/// Takes one from a count, and removes a count of zero.
fn decrement<K: Eq + std::hash::Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nano_webhooks_core::webhook::WebhookId;

    fn endpoint(account: &str, webhook: u64) -> EndpointKey {
        EndpointKey {
            account: AccountId::parse(account).unwrap(),
            webhook: WebhookId::new(webhook).unwrap(),
        }
    }

    /// Takes slots of an endpoint until one is refused.
    fn take_all(late: &LateAttempts, endpoint: &EndpointKey) -> Vec<LatePermit> {
        let mut permits = Vec::new();
        while let Some(permit) = late.try_admit(endpoint) {
            permits.push(permit);
        }
        permits
    }

    #[test]
    fn slots_are_limited_at_every_level() {
        let late = LateAttempts::enabled(MAX_LATE);
        let first = take_all(&late, &endpoint("acme", 1));
        assert_eq!(first.len(), MAX_LATE_PER_ENDPOINT);
        let second = take_all(&late, &endpoint("acme", 2));
        assert_eq!(first.len() + second.len(), MAX_LATE_PER_ACCOUNT);
        assert_eq!(take_all(&late, &endpoint("acme", 3)).len(), 0);
        let mut others = Vec::new();
        for webhook in 1..=8 {
            others.extend(take_all(&late, &endpoint(&format!("other-{webhook}"), 1)));
        }
        assert_eq!(first.len() + second.len() + others.len(), MAX_LATE);
        drop(first);
        assert_eq!(
            take_all(&late, &endpoint("acme", 3)).len(),
            MAX_LATE_PER_ENDPOINT
        );
        drop((second, others));
        let slots = lock(&late.slots);
        assert_eq!(
            (
                slots.total,
                slots.per_account.len(),
                slots.per_endpoint.len()
            ),
            (0, 0, 0)
        );
    }

    #[test]
    fn disabled_process_admits_nothing() {
        assert!(
            LateAttempts::disabled()
                .try_admit(&endpoint("acme", 1))
                .is_none()
        );
    }
}
