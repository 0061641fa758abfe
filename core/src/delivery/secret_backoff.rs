//! How long a delivery waits while its webhook's secrets cannot be decrypted.
//!
//! A person has to fix a disabled key or a missing permission, which can take hours. The waits
//! grow, so that waiting deliveries cost little.

use std::time::Duration;

/// The first wait, without jitter. Each further one is twice as long.
const BASE_WAIT: Duration = Duration::from_mins(1);
/// The longest wait, without jitter. With jitter it is 15 minutes, the longest delay of a queue
/// message.
const MAX_BASE_WAIT: Duration = Duration::from_mins(10);
/// The largest part of the wait that jitter adds.
const MAX_JITTER: f64 = 0.5;

/// The wait after `deferrals` earlier ones in a row. `jitter` is a number from 0 to 1.
pub fn secret_backoff(deferrals: u32, jitter: f64) -> Duration {
    let factor = 2_u32.saturating_pow(deferrals);
    let wait = BASE_WAIT.saturating_mul(factor).min(MAX_BASE_WAIT);
    wait.mul_f64(1.0 + jitter * MAX_JITTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::lease::MAX_QUEUE_DELAY;

    #[test]
    fn wait_doubles_up_to_limit() {
        for (deferrals, jitter, seconds) in [
            (0, 0.0, 60),
            (0, 1.0, 90),
            (1, 0.0, 120),
            (2, 0.5, 300),
            (3, 0.0, 480),
            (3, 1.0, 720),
            (4, 0.0, 600),
            (4, 1.0, 900),
            (u32::MAX, 0.0, 600),
        ] {
            let expected = Duration::from_secs(seconds);
            let wait = secret_backoff(deferrals, jitter);
            assert_eq!(wait, expected, "{deferrals} {jitter}");
        }
    }

    /// One message covers each wait, so the sweep has no work.
    #[test]
    fn longest_wait_fits_in_queue() {
        assert_eq!(secret_backoff(u32::MAX, 1.0), MAX_QUEUE_DELAY);
    }
}
