//! Limits on the direct attempts of a batch that are in flight.

use std::{pin::pin, time::Duration};

use tokio::{sync::Semaphore, time::timeout};

/// The most direct attempts in flight, to all endpoints.
const CONCURRENT_ATTEMPTS: usize = 256;
/// The most attempts in flight that are younger than [`BURST_WINDOW`]. Endpoints that respond at
/// once then need few connections, whose memory stays in the processor's caches. Slow endpoints do
/// not hold the others up, because their attempts leave the burst.
const CONCURRENT_NEW_ATTEMPTS: usize = 64;
/// How long an attempt belongs to the burst.
const BURST_WINDOW: Duration = Duration::from_millis(5);

/// Limits the attempts of a batch.
pub(super) struct AttemptLimiter {
    total: Semaphore,
    burst: Semaphore,
    burst_window: Duration,
}

impl AttemptLimiter {
    pub(super) fn new() -> Self {
        Self {
            total: Semaphore::new(CONCURRENT_ATTEMPTS),
            burst: Semaphore::new(CONCURRENT_NEW_ATTEMPTS),
            burst_window: BURST_WINDOW,
        }
    }

    /// Runs an attempt as soon as both limits allow it.
    pub(super) async fn run<F: Future>(&self, attempt: F) -> F::Output {
        let _total_permit = self.total.acquire().await;
        let burst_permit = self.burst.acquire().await;
        let mut attempt = pin!(attempt);
        if let Ok(output) = timeout(self.burst_window, &mut attempt).await {
            return output;
        }
        drop(burst_permit);
        attempt.await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        sync::atomic::{AtomicUsize, Ordering},
        task::Poll,
    };

    use futures_util::future::join_all;
    use tokio::task::unconstrained;

    use super::*;

    /// Starts attempts that never end until at least `expected` have started; returns how many
    /// have.
    async fn count_started(limiter: AttemptLimiter, expected: usize) -> usize {
        let started = AtomicUsize::new(0);
        let never_ending = |_| {
            limiter.run(async {
                started.fetch_add(1, Ordering::Relaxed);
                pending::<()>().await;
            })
        };
        let mut attempts = pin!(join_all((0..2 * CONCURRENT_ATTEMPTS).map(never_ending)));
        let all_started = poll_fn(|context| {
            assert!(attempts.as_mut().poll(context).is_pending());
            let count = started.load(Ordering::Relaxed);
            if count < expected {
                Poll::Pending
            } else {
                Poll::Ready(count)
            }
        });
        // Unconstrained, because tokio's own budget would limit the attempts of one poll.
        timeout(Duration::from_secs(20), unconstrained(all_started))
            .await
            .expect("the expected number of attempts starts")
    }

    #[tokio::test]
    async fn burst_limits_new_attempts() {
        let endless_burst = AttemptLimiter {
            burst_window: Duration::from_hours(1),
            ..AttemptLimiter::new()
        };
        let started = count_started(endless_burst, 1).await;
        assert_eq!(started, CONCURRENT_NEW_ATTEMPTS);
    }

    #[tokio::test]
    async fn total_limits_all_attempts() {
        let large_burst = AttemptLimiter {
            burst: Semaphore::new(2 * CONCURRENT_ATTEMPTS),
            ..AttemptLimiter::new()
        };
        assert_eq!(count_started(large_burst, 1).await, CONCURRENT_ATTEMPTS);
    }

    #[tokio::test]
    async fn old_attempts_leave_burst() {
        let limiter = AttemptLimiter::new();
        let started = count_started(limiter, CONCURRENT_ATTEMPTS).await;
        assert_eq!(started, CONCURRENT_ATTEMPTS);
    }

    #[tokio::test]
    async fn ended_attempt_returns_its_permits() {
        let limiter = AttemptLimiter::new();
        let during = limiter
            .run(async {
                let total = limiter.total.available_permits();
                (total, limiter.burst.available_permits())
            })
            .await;
        assert_eq!(
            during,
            (CONCURRENT_ATTEMPTS - 1, CONCURRENT_NEW_ATTEMPTS - 1)
        );
        assert_eq!(limiter.total.available_permits(), CONCURRENT_ATTEMPTS);
        assert_eq!(limiter.burst.available_permits(), CONCURRENT_NEW_ATTEMPTS);
    }
}
