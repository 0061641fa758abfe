//! How many attempts from the queue are in flight to each endpoint, in this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    clock::Instant,
    delivery::health::{Seen, fails_to_answer},
    webhook::{Account, WebhookId},
};

/// How long what finds no place waits before it asks again: 5 s, and as much again by jitter.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How many may ask again within that time. When more wait they ask more rarely, so that what waiting costs does not grow
/// with how much waits.
const ASKING: u32 = 100;
/// The longest that it waits.
const ASK_AT_LATEST: Duration = Duration::from_mins(10);
/// The time between two health writes of one endpoint.
const HEALTH_WRITE: Duration = Duration::from_secs(1);

/// Whose endpoint it is, and which.
pub(super) type Endpoint = (Account, WebhookId);

/// What this process has under way.
#[derive(Clone, Debug, Default)]
pub struct Gates(Arc<Mutex<HashMap<Endpoint, Gate>>>);

#[derive(Debug, Default)]
struct Gate {
    in_flight: usize,
    /// How many found no place since one did.
    turned_away: u32,
    health_written_at: Option<Instant>,
    /// Failures to answer, one after the other.
    failures: u32,
}

/// A place among those in flight; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    gates: Gates,
    endpoint: Endpoint,
}

impl Gates {
    /// Takes a place, if fewer than `limit` are in flight; else says how long to wait. `jitter` is from 0 to 1.
    pub(super) fn enter(&self, endpoint: &Endpoint, limit: usize, jitter: f64) -> Result<Place, Duration> {
        let mut gates = self.lock();
        let gate = gates.entry(endpoint.clone()).or_default();
        if gate.in_flight >= limit {
            gate.turned_away = gate.turned_away.saturating_add(1);
            let wait = ASK_AGAIN.mul_f64(1.0 + jitter) * (1 + gate.turned_away / ASKING);
            return Err(wait.min(ASK_AT_LATEST.mul_f64(0.5 + jitter / 2.0)));
        }
        gate.in_flight += 1;
        gate.turned_away = gate.turned_away.saturating_sub(1);
        Ok(Place { gates: self.clone(), endpoint: endpoint.clone() })
    }

    /// Counts how attempts ended, and says how many in a row got no answer. Attempts that run side by side each know the
    /// health from before; together they would count as one.
    pub(super) fn failures(&self, endpoint: &Endpoint, seen: impl Iterator<Item = Seen>) -> u32 {
        let mut gates = self.lock();
        let failures = &mut gates.entry(endpoint.clone()).or_default().failures;
        for seen in seen {
            *failures = if seen.failure.is_some_and(fails_to_answer) { failures.saturating_add(1) } else { 0 };
        }
        *failures
    }

    /// Whether the endpoint's health may be written now; counts it as written.
    pub(super) fn may_write_health(&self, endpoint: &Endpoint, now: Instant) -> bool {
        let mut gates = self.lock();
        let written_at = &mut gates.entry(endpoint.clone()).or_default().health_written_at;
        let may = written_at.is_none_or(|at| at + HEALTH_WRITE <= now);
        if may {
            *written_at = Some(now);
        }
        may
    }

    /// Forgets endpoints with nothing in flight, so that the map does not grow with the number of customers.
    pub(super) fn forget_idle(&self, now: Instant) {
        self.lock()
            .retain(|_, gate| gate.in_flight > 0 || gate.health_written_at.is_some_and(|at| at + ASK_AT_LATEST > now));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Endpoint, Gate>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(gate) = self.gates.lock().get_mut(&self.endpoint) {
            gate.in_flight -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(id: u64) -> Endpoint {
        (Account::parse("acme").unwrap(), WebhookId::new(id).unwrap())
    }

    #[test]
    fn a_place_is_free_again_when_its_holder_has_gone_and_endpoints_do_not_share() {
        let gates = Gates::default();
        let first = gates.enter(&endpoint(1), 1, 0.0).unwrap();
        assert!(gates.enter(&endpoint(1), 1, 0.0).is_err());
        assert!(gates.enter(&endpoint(2), 1, 0.0).is_ok());
        drop(first);
        assert!(gates.enter(&endpoint(1), 1, 0.0).is_ok());
    }

    #[test]
    fn the_more_wait_the_more_rarely_they_ask() {
        let gates = Gates::default();
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
        assert_eq!((wait(0.0), wait(1.0)), (Duration::from_mins(5), Duration::from_mins(10)));
    }

    #[test]
    fn health_is_written_at_most_once_a_second() {
        let gates = Gates::default();
        let at = Instant::from_millis;
        let may: Vec<_> = [0, 999, 1000, 1500, 2000].map(|ms| gates.may_write_health(&endpoint(1), at(ms))).into();
        assert_eq!(may, [true, false, true, false, true]);
    }
}
