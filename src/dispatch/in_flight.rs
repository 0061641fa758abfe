//! Limits on the attempts from the queue that are in flight in this process, and the health of
//! their endpoints as far as it is not stored yet.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nano_webhooks_core::{
    account_id::AccountId,
    delivery::endpoint_health::{FailureCounts, Observation},
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// How long a delivery without a slot waits at first. Jitter adds up to the same again.
const BASE_WAIT: Duration = Duration::from_secs(5);
/// The wait grows by [`BASE_WAIT`] after this many rejections since the last success.
const REJECTIONS_PER_STEP: u32 = 100;
/// The longest wait. It bounds how late a delivery learns that its endpoint has recovered.
const MAX_WAIT: Duration = Duration::from_mins(2);
/// The most attempts in flight to the endpoints of one account, so that one account cannot use all
/// slots.
const MAX_IN_FLIGHT_PER_ACCOUNT: usize = 64;
/// The most attempts in flight in this process.
const MAX_IN_FLIGHT: usize = 2_048;
/// The shortest time between two health writes of one endpoint. Transitions of the breaker are
/// written at once.
const HEALTH_WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// How long an idle endpoint is remembered.
const IDLE_TTL: Duration = Duration::from_mins(10);

/// Identifies an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct EndpointKey {
    pub account: AccountId,
    pub webhook: WebhookId,
}

/// Held while an endpoint's health is read and written.
pub(super) type HealthLock = tokio::sync::Mutex<()>;

/// The attempts in flight in this process; clones share the limits.
#[derive(Clone, Debug, Default)]
pub struct InFlightLimiter(Arc<Mutex<LimiterState>>);

#[derive(Debug, Default)]
struct LimiterState {
    endpoints: HashMap<EndpointKey, EndpointSlots>,
    in_flight_per_account: HashMap<AccountId, usize>,
    in_flight: usize,
}

#[derive(Debug, Default)]
struct EndpointSlots {
    in_flight: usize,
    /// Deliveries that found no slot since the last success.
    rejected: u32,
    health_written_at: Option<Timestamp>,
    health_lock: Arc<HealthLock>,
    /// The failed attempts, including those that were not written yet.
    failures: FailureCounts,
    /// The same counts as they were last read from the table or written to it.
    stored_failures: FailureCounts,
}

/// The right to make one attempt; dropping it frees the slot.
#[derive(Debug)]
pub(super) struct InFlightPermit {
    limiter: InFlightLimiter,
    endpoint: EndpointKey,
}

/// No slot is free.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoFreeSlot {
    /// How long to wait before the next try.
    pub wait: Duration,
}

impl InFlightLimiter {
    /// Takes a slot if fewer than `limit` attempts are in flight to the endpoint, and the account
    /// and the process have slots left. `jitter` is from 0 to 1.
    pub(super) fn try_acquire(
        &self,
        endpoint: &EndpointKey,
        limit: usize,
        jitter: f64,
    ) -> Result<InFlightPermit, NoFreeSlot> {
        let mut state = self.lock();
        let account_in_flight = state
            .in_flight_per_account
            .get(&endpoint.account)
            .copied()
            .unwrap_or_default();
        let is_full =
            account_in_flight >= MAX_IN_FLIGHT_PER_ACCOUNT || state.in_flight >= MAX_IN_FLIGHT;
        let slots = state.endpoints.entry(endpoint.clone()).or_default();
        if is_full || slots.in_flight >= limit {
            slots.rejected = slots.rejected.saturating_add(1);
            return Err(NoFreeSlot {
                wait: wait_after(slots.rejected, jitter),
            });
        }
        slots.in_flight += 1;
        state.in_flight += 1;
        *state
            .in_flight_per_account
            .entry(endpoint.account.clone())
            .or_default() += 1;
        Ok(InFlightPermit {
            limiter: self.clone(),
            endpoint: endpoint.clone(),
        })
    }

    /// Resets the wait of rejected deliveries, because an attempt succeeded.
    pub(super) fn note_success(&self, endpoint: &EndpointKey) {
        if let Some(slots) = self.lock().endpoints.get_mut(endpoint) {
            slots.rejected = 0;
        }
    }

    /// The failed attempts that are counted in this process.
    pub(super) fn counted_failures(&self, endpoint: &EndpointKey) -> FailureCounts {
        match self.lock().endpoints.get(endpoint) {
            Some(slots) => slots.failures,
            None => FailureCounts::default(),
        }
    }

    /// The counts of failed attempts after these observations, including failures that were not
    /// written yet. `stored` are the table's counts: if they are not those that this process knows,
    /// another process wrote them, and the local counts are discarded. The caller holds the health
    /// lock and calls [`Self::set_failures`] afterwards.
    pub(super) fn count_failures(
        &self,
        endpoint: &EndpointKey,
        stored: FailureCounts,
        observations: impl Iterator<Item = Observation>,
    ) -> FailureCounts {
        let counted = match self.lock().endpoints.get(endpoint) {
            Some(slots) if slots.stored_failures == stored => slots.failures,
            Some(_) | None => stored,
        };
        observations.fold(counted, FailureCounts::observe)
    }

    /// Remembers the counts in the table, and the counts including failures that were not written.
    /// The caller holds the health lock.
    pub(super) fn set_failures(
        &self,
        endpoint: &EndpointKey,
        stored: FailureCounts,
        counted: FailureCounts,
    ) {
        let mut state = self.lock();
        let slots = state.endpoints.entry(endpoint.clone()).or_default();
        slots.stored_failures = stored;
        slots.failures = counted;
    }

    /// The lock of the endpoint's health. Without it, concurrent updates would overwrite each
    /// other.
    pub(super) fn health_lock(&self, endpoint: &EndpointKey) -> Arc<HealthLock> {
        let mut state = self.lock();
        let slots = state.endpoints.entry(endpoint.clone()).or_default();
        slots.health_lock.clone()
    }

    /// Claims the next health write if [`HEALTH_WRITE_INTERVAL`] has passed since the last one.
    pub(super) fn try_claim_health_write(&self, endpoint: &EndpointKey, now: Timestamp) -> bool {
        let mut state = self.lock();
        let slots = state.endpoints.entry(endpoint.clone()).or_default();
        if let Some(written_at) = slots.health_written_at
            && written_at + HEALTH_WRITE_INTERVAL > now
        {
            return false;
        }
        slots.health_written_at = Some(now);
        true
    }

    /// Removes idle endpoints, so that the memory does not grow with the number of customers.
    pub(super) fn evict_idle(&self, now: Timestamp) {
        self.lock().endpoints.retain(|_, slots| {
            let recently_written = slots
                .health_written_at
                .is_some_and(|written_at| written_at + IDLE_TTL > now);
            slots.in_flight > 0 || Arc::strong_count(&slots.health_lock) > 1 || recently_written
        });
    }

    fn lock(&self) -> MutexGuard<'_, LimiterState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait_after(rejections: u32, jitter: f64) -> Duration {
    let wait = BASE_WAIT.mul_f64(1.0 + jitter) * (1 + rejections / REJECTIONS_PER_STEP);
    wait.min(MAX_WAIT.mul_f64(0.5 + jitter / 2.0))
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        let mut state = self.limiter.lock();
        state.in_flight -= 1;
        if let Some(slots) = state.endpoints.get_mut(&self.endpoint) {
            slots.in_flight -= 1;
        }
        let account = &self.endpoint.account;
        if let Some(in_flight) = state.in_flight_per_account.get_mut(account) {
            *in_flight -= 1;
            if *in_flight == 0 {
                state.in_flight_per_account.remove(account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nano_webhooks_core::delivery::failure::FailureKind;

    const TIMEOUT: Observation = Observation {
        failure: Some(FailureKind::Timeout),
        duration: Duration::ZERO,
    };
    const STATUS: Observation = Observation {
        failure: Some(FailureKind::Status),
        duration: Duration::ZERO,
    };
    const SUCCESS: Observation = Observation {
        failure: None,
        duration: Duration::ZERO,
    };

    fn endpoint(id: u64) -> EndpointKey {
        EndpointKey {
            account: AccountId::parse("acme").unwrap(),
            webhook: WebhookId::new(id).unwrap(),
        }
    }

    #[test]
    fn dropped_permit_frees_its_slot() {
        let limiter = InFlightLimiter::default();
        let permit = limiter.try_acquire(&endpoint(1), 1, 0.0).unwrap();
        assert!(limiter.try_acquire(&endpoint(1), 1, 0.0).is_err());
        assert!(limiter.try_acquire(&endpoint(2), 1, 0.0).is_ok());
        drop(permit);
        assert!(limiter.try_acquire(&endpoint(1), 1, 0.0).is_ok());
    }

    #[test]
    fn wait_grows_with_rejections_up_to_limit() {
        for (rejections, jitter, seconds) in [
            (1, 0.0, 5),
            (2, 1.0, 10),
            (1_000, 0.0, 55),
            (1_000_000, 0.0, 60),
            (1_000_000, 1.0, 120),
        ] {
            let expected = Duration::from_secs(seconds);
            assert_eq!(
                wait_after(rejections, jitter),
                expected,
                "{rejections} {jitter}"
            );
        }
    }

    #[test]
    fn success_resets_wait() {
        let limiter = InFlightLimiter::default();
        let _permit = limiter.try_acquire(&endpoint(1), 1, 0.0).unwrap();
        for _ in 0..1000 {
            limiter.try_acquire(&endpoint(1), 1, 0.5).unwrap_err();
        }
        let rejection = limiter.try_acquire(&endpoint(1), 1, 0.0).unwrap_err();
        assert_eq!(rejection.wait, Duration::from_secs(55));
        limiter.note_success(&endpoint(1));
        let rejection = limiter.try_acquire(&endpoint(1), 1, 0.0).unwrap_err();
        assert_eq!(rejection.wait, Duration::from_secs(5));
    }

    #[test]
    fn account_cannot_take_all_slots() {
        let limiter = InFlightLimiter::default();
        let mut permits = Vec::new();
        for id in 1..=20 {
            for _ in 0..8 {
                permits.extend(limiter.try_acquire(&endpoint(id), 8, 0.0));
            }
        }
        assert_eq!(permits.len(), MAX_IN_FLIGHT_PER_ACCOUNT);
        let other_account = EndpointKey {
            account: AccountId::parse("other").unwrap(),
            webhook: WebhookId::new(1).unwrap(),
        };
        assert!(limiter.try_acquire(&other_account, 8, 0.0).is_ok());
        drop(permits);
        assert!(limiter.try_acquire(&endpoint(1), 8, 0.0).is_ok());
        assert_eq!(limiter.lock().in_flight, 0);
    }

    const fn counts(consecutive: u32, since_success: u32) -> FailureCounts {
        FailureCounts {
            consecutive,
            since_success,
        }
    }

    /// Failures of concurrent attempts add up until they are written. Counts in the table that
    /// this process did not write replace them.
    #[test]
    fn stored_counts_of_other_process_replace_local() {
        let limiter = InFlightLimiter::default();
        let endpoint = endpoint(1);
        let count = |stored, observations: &[Observation]| {
            let counted = limiter.count_failures(&endpoint, stored, observations.iter().copied());
            limiter.set_failures(&endpoint, stored, counted);
            counted
        };
        let none = FailureCounts::default();
        assert_eq!(count(none, &[TIMEOUT; 3]), counts(3, 3));
        assert_eq!(count(none, &[TIMEOUT]), counts(4, 4), "not written yet");
        limiter.set_failures(&endpoint, counts(4, 4), counts(4, 4));
        let again = count(counts(4, 4), &[STATUS, TIMEOUT]);
        assert_eq!(again, counts(1, 6), "written failures count once");
        let after_response = count(none, &[TIMEOUT]);
        assert_eq!(
            after_response,
            counts(1, 1),
            "another process saw a success"
        );
        let after_failures = count(counts(3, 8), &[TIMEOUT]);
        assert_eq!(after_failures, counts(4, 9), "another process saw failures");
        assert_eq!(limiter.counted_failures(&endpoint), counts(4, 9));
        let after_success = count(counts(3, 8), &[SUCCESS, TIMEOUT]);
        assert_eq!(after_success, counts(1, 1), "success not written yet");
        assert_eq!(count(counts(3, 8), &[SUCCESS]), none);
        assert_eq!(limiter.counted_failures(&endpoint), none);
    }

    fn remaining_after_eviction(limiter: &InFlightLimiter, now: Timestamp) -> Vec<u64> {
        limiter.evict_idle(now);
        let state = limiter.lock();
        let mut remaining: Vec<_> = state
            .endpoints
            .keys()
            .map(|key| key.webhook.get())
            .collect();
        remaining.sort_unstable();
        remaining
    }

    /// Endpoints stay while an attempt is in flight, their lock is held, or their health was just
    /// written.
    #[test]
    fn only_idle_endpoints_are_evicted() {
        let limiter = InFlightLimiter::default();
        let now = Timestamp::from_millis(0);
        let permit = limiter.try_acquire(&endpoint(1), 1, 0.0).unwrap();
        let lock = limiter.health_lock(&endpoint(2));
        assert!(limiter.try_claim_health_write(&endpoint(3), now));
        let none = FailureCounts::default();
        limiter.set_failures(&endpoint(4), none, none);
        assert_eq!(remaining_after_eviction(&limiter, now), [1, 2, 3]);
        assert_eq!(remaining_after_eviction(&limiter, now + IDLE_TTL), [1, 2]);
        drop((permit, lock));
        assert_eq!(remaining_after_eviction(&limiter, now + IDLE_TTL), [0; 0]);
    }

    #[test]
    fn health_is_written_once_per_second() {
        let limiter = InFlightLimiter::default();
        for (millis, expected) in [
            (0, true),
            (999, false),
            (1000, true),
            (1500, false),
            (2000, true),
        ] {
            let now = Timestamp::from_millis(millis);
            assert_eq!(
                limiter.try_claim_health_write(&endpoint(1), now),
                expected,
                "{millis}"
            );
        }
    }
}
