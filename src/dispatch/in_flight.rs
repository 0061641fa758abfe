//! How many attempts from the queue are in flight to each endpoint, in this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nano_webhooks_core::{
    account_id::AccountId,
    delivery::endpoint_health::{Observation, is_unresponsive},
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// How long what finds no place waits before it asks again: 5 s, and as much again by jitter.
const BASE_WAIT: Duration = Duration::from_secs(5);
/// How many may be turned away before they ask more rarely; counted since the last success.
const REJECTIONS_PER_STEP: u32 = 100;
/// The longest that one waits: it bounds how late the last one hears that the endpoint is well again.
const MAX_WAIT: Duration = Duration::from_mins(2);
/// How many attempts from the queue may be in flight to one account's endpoints, so that none takes all places.
const MAX_IN_FLIGHT_PER_ACCOUNT: usize = 64;
/// How many may be in flight in all.
const MAX_IN_FLIGHT: usize = 2_048;
/// The time between two health writes of one endpoint whose breaker does not open or close.
const HEALTH_WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// How long an endpoint with nothing in flight is remembered.
const IDLE_TTL: Duration = Duration::from_mins(10);

/// Whose endpoint it is, and which.
pub(super) type EndpointKey = (AccountId, WebhookId);

/// Held by whoever learns how healthy an endpoint is.
pub(super) type HealthLock = tokio::sync::Mutex<()>;

/// What this process has under way.
#[derive(Clone, Debug, Default)]
pub struct InFlightLimiter(Arc<Mutex<LimiterState>>);

#[derive(Debug, Default)]
struct LimiterState {
    endpoints: HashMap<EndpointKey, EndpointSlots>,
    in_flight_of_account: HashMap<AccountId, usize>,
    in_flight: usize,
}

#[derive(Debug, Default)]
struct EndpointSlots {
    in_flight: usize,
    /// How many found no place since an attempt succeeded.
    turned_away: u32,
    health_written_at: Option<Timestamp>,
    turn: Arc<HealthLock>,
    /// Failures to answer, one after the other.
    failures: u32,
    /// The same as it was last read from the table, or written to it.
    known_failures: u32,
}

/// A place among those in flight; given back when dropped.
#[derive(Debug)]
pub(super) struct InFlightPermit {
    gates: InFlightLimiter,
    endpoint: EndpointKey,
}

impl InFlightLimiter {
    /// Takes a place, if fewer than `limit` are in flight to the endpoint and the account and the process have places left;
    /// else says how long to wait. `jitter` is from 0 to 1.
    pub(super) fn enter(
        &self,
        endpoint: &EndpointKey,
        limit: usize,
        jitter: f64,
    ) -> Result<InFlightPermit, Duration> {
        let mut state = self.lock();
        let of_account = state
            .in_flight_of_account
            .get(&endpoint.0)
            .copied()
            .unwrap_or_default();
        let full = of_account >= MAX_IN_FLIGHT_PER_ACCOUNT || state.in_flight >= MAX_IN_FLIGHT;
        let gate = state.endpoints.entry(endpoint.clone()).or_default();
        if full || gate.in_flight >= limit {
            gate.turned_away = gate.turned_away.saturating_add(1);
            let wait =
                BASE_WAIT.mul_f64(1.0 + jitter) * (1 + gate.turned_away / REJECTIONS_PER_STEP);
            return Err(wait.min(MAX_WAIT.mul_f64(0.5 + jitter / 2.0)));
        }
        gate.in_flight += 1;
        state.in_flight += 1;
        *state
            .in_flight_of_account
            .entry(endpoint.0.clone())
            .or_default() += 1;
        Ok(InFlightPermit {
            gates: self.clone(),
            endpoint: endpoint.clone(),
        })
    }

    /// Hears that attempts ended, and says whether failures are counted here that an answer would end.
    pub(super) fn hear(&self, endpoint: &EndpointKey, of_success: bool) -> bool {
        let mut state = self.lock();
        let Some(gate) = state.endpoints.get_mut(endpoint) else {
            return false;
        };
        if of_success {
            // It is well: those that were turned away need not be patient any more.
            gate.turned_away = 0;
        }
        gate.failures > 0
    }

    /// Counts how attempts ended, and says how many in a row got no answer, with those that were not worth a write.
    /// `known` is the count that the table has: another than this process read or wrote last is another process's, and what
    /// was counted here is void. It is the caller's turn.
    pub(super) fn count(
        &self,
        endpoint: &EndpointKey,
        known: u32,
        seen: impl Iterator<Item = Observation>,
    ) -> u32 {
        let mut state = self.lock();
        let gate = state.endpoints.entry(endpoint.clone()).or_default();
        if gate.known_failures != known {
            (gate.known_failures, gate.failures) = (known, known);
        }
        for seen in seen {
            gate.failures = if seen.failure.is_some_and(is_unresponsive) {
                gate.failures.saturating_add(1)
            } else {
                0
            };
        }
        gate.failures
    }

    /// The table has this count of failures now. It is the caller's turn.
    pub(super) fn wrote(&self, endpoint: &EndpointKey, failures: u32) {
        self.lock()
            .endpoints
            .entry(endpoint.clone())
            .or_default()
            .known_failures = failures;
    }

    /// The turn of whoever reads the endpoint's health and writes it: side by side, they would overwrite each other's.
    pub(super) fn turn(&self, endpoint: &EndpointKey) -> Arc<HealthLock> {
        self.lock()
            .endpoints
            .entry(endpoint.clone())
            .or_default()
            .turn
            .clone()
    }

    /// Whether the endpoint's health may be written again now; counts it as written.
    pub(super) fn may_write_health(&self, endpoint: &EndpointKey, now: Timestamp) -> bool {
        let mut state = self.lock();
        let written_at = &mut state
            .endpoints
            .entry(endpoint.clone())
            .or_default()
            .health_written_at;
        let may = written_at.is_none_or(|at| at + HEALTH_WRITE_INTERVAL <= now);
        if may {
            *written_at = Some(now);
        }
        may
    }

    /// Forgets endpoints with nothing in flight, so that the map does not grow with the number of customers.
    pub(super) fn forget_idle(&self, now: Timestamp) {
        self.lock().endpoints.retain(|_, gate| {
            gate.in_flight > 0
                || Arc::strong_count(&gate.turn) > 1
                || gate.health_written_at.is_some_and(|at| at + IDLE_TTL > now)
        });
    }

    fn lock(&self) -> MutexGuard<'_, LimiterState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        let mut state = self.gates.lock();
        state.in_flight -= 1;
        if let Some(gate) = state.endpoints.get_mut(&self.endpoint) {
            gate.in_flight -= 1;
        }
        if let Some(of_account) = state.in_flight_of_account.get_mut(&self.endpoint.0) {
            *of_account -= 1;
            if *of_account == 0 {
                state.in_flight_of_account.remove(&self.endpoint.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nano_webhooks_core::delivery::attempt::FailureKind;

    fn endpoint(id: u64) -> EndpointKey {
        (
            AccountId::parse("acme").unwrap(),
            WebhookId::new(id).unwrap(),
        )
    }

    #[test]
    fn a_place_is_free_again_when_its_holder_has_gone_and_endpoints_do_not_share() {
        let gates = InFlightLimiter::default();
        let first = gates.enter(&endpoint(1), 1, 0.0).unwrap();
        assert!(gates.enter(&endpoint(1), 1, 0.0).is_err());
        assert!(gates.enter(&endpoint(2), 1, 0.0).is_ok());
        drop(first);
        assert!(gates.enter(&endpoint(1), 1, 0.0).is_ok());
    }

    #[test]
    fn the_more_wait_the_more_rarely_they_ask() {
        let gates = InFlightLimiter::default();
        let _held = gates.enter(&endpoint(1), 1, 0.0).unwrap();
        let wait = |jitter| gates.enter(&endpoint(1), 1, jitter).unwrap_err();
        assert_eq!(wait(0.0), Duration::from_secs(5));
        assert_eq!(wait(1.0), Duration::from_secs(10));
        for _ in 0..1000 {
            wait(0.5);
        }
        assert_eq!(wait(0.0), Duration::from_secs(55));
        for _ in 0..1_000_000 {
            wait(0.5);
        }
        assert_eq!(
            (wait(0.0), wait(1.0)),
            (Duration::from_mins(1), Duration::from_mins(2))
        );
        assert!(!gates.hear(&endpoint(1), false));
        assert_ne!(wait(0.0), Duration::from_secs(5));
        assert!(!gates.hear(&endpoint(1), true));
        assert_eq!(wait(0.0), Duration::from_secs(5), "it is well again");
    }

    #[test]
    fn no_account_takes_all_places() {
        let gates = InFlightLimiter::default();
        let places: Vec<_> = (1..=20)
            .flat_map(|id| {
                (0..8)
                    .filter_map(|_| gates.enter(&endpoint(id), 8, 0.0).ok())
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(places.len(), MAX_IN_FLIGHT_PER_ACCOUNT);
        let other = (
            AccountId::parse("other").unwrap(),
            WebhookId::new(1).unwrap(),
        );
        assert!(gates.enter(&other, 8, 0.0).is_ok());
        drop(places);
        assert!(gates.enter(&endpoint(1), 8, 0.0).is_ok());
        assert_eq!(gates.lock().in_flight, 0);
    }

    #[test]
    fn failures_add_up_over_attempts_side_by_side_and_are_void_once_another_process_wrote() {
        let silent = Observation {
            failure: Some(FailureKind::Timeout),
            duration: Duration::ZERO,
        };
        let well = Observation {
            failure: None,
            duration: Duration::ZERO,
        };
        let (gates, endpoint) = (InFlightLimiter::default(), endpoint(1));
        let count =
            |known, seen: &[Observation]| gates.count(&endpoint, known, seen.iter().copied());
        assert_eq!(count(0, &[silent; 3]), 3);
        assert_eq!(count(0, &[silent]), 4, "as long as nothing is written");
        gates.wrote(&endpoint, 4);
        assert_eq!(
            count(4, &[silent]),
            5,
            "what was written is not counted again"
        );
        assert_eq!(count(0, &[silent]), 1, "another process had an answer");
        assert_eq!(count(3, &[silent]), 4, "another process had failures");
        assert!(gates.hear(&endpoint, true));
        assert_eq!(count(3, &[well, silent]), 1, "the answer was not written");
        assert_eq!(count(3, &[well]), 0);
        assert!(!gates.hear(&endpoint, true));
    }

    #[test]
    fn what_is_idle_is_forgotten_unless_its_health_was_just_written_or_somebody_learns_of_it() {
        let (gates, now) = (InFlightLimiter::default(), Timestamp::from_millis(0));
        let held = gates.enter(&endpoint(1), 1, 0.0).unwrap();
        let turn = gates.turn(&endpoint(2));
        assert!(gates.may_write_health(&endpoint(3), now));
        assert_eq!(gates.count(&endpoint(4), 0, [].into_iter()), 0);
        let left = |now| {
            gates.forget_idle(now);
            let mut left: Vec<_> = gates
                .lock()
                .endpoints
                .keys()
                .map(|(_, id)| id.to_string())
                .collect();
            left.sort();
            left.concat()
        };
        assert_eq!(left(now), "123");
        assert_eq!(left(now + IDLE_TTL), "12");
        drop((held, turn));
        assert_eq!(left(now + IDLE_TTL), "");
    }

    #[test]
    fn health_is_written_at_most_once_a_second() {
        let gates = InFlightLimiter::default();
        let at = Timestamp::from_millis;
        let may: Vec<_> = [0, 999, 1000, 1500, 2000]
            .map(|ms| gates.may_write_health(&endpoint(1), at(ms)))
            .into();
        assert_eq!(may, [true, false, true, false, true]);
    }
}
