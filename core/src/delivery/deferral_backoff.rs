//! How long an attempt that cannot be made now is deferred. The waits grow, so that waiting
//! deliveries cost little.

use std::time::Duration;

/// The largest part of the wait that jitter adds.
const MAX_JITTER: f64 = 0.5;

/// Waits that double up to a limit.
#[derive(Clone, Copy, Debug)]
pub struct DeferralBackoff {
    /// The first wait, without jitter.
    base: Duration,
    /// The longest wait, without jitter.
    max: Duration,
}

impl DeferralBackoff {
    /// While a webhook's secrets cannot be decrypted. A person has to fix a disabled key or a
    /// missing permission, which can take hours. With jitter the longest wait is 15 minutes, the
    /// longest delay of a queue message.
    pub const SECRET: Self = Self {
        base: Duration::from_mins(1),
        max: Duration::from_mins(10),
    };
    /// While a process lacks what an attempt needs, such as file descriptors.
    pub const ATTEMPT: Self = Self {
        base: Duration::from_secs(1),
        max: Duration::from_mins(1),
    };

    /// The wait after `deferrals` earlier ones in a row. `jitter` is a number from 0 to 1.
    pub fn wait(self, deferrals: u32, jitter: f64) -> Duration {
        let factor = 2_u32.saturating_pow(deferrals);
        let wait = self.base.saturating_mul(factor).min(self.max);
        wait.mul_f64(1.0 + jitter * MAX_JITTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::lease::MAX_QUEUE_DELAY;

    #[test]
    fn wait_doubles_up_to_limit() {
        for (deferrals, jitter, of_secret, of_attempt) in [
            (0, 0.0, 60.0, 1.0),
            (0, 1.0, 90.0, 1.5),
            (1, 0.0, 120.0, 2.0),
            (2, 0.5, 300.0, 5.0),
            (3, 0.0, 480.0, 8.0),
            (3, 1.0, 720.0, 12.0),
            (4, 0.0, 600.0, 16.0),
            (4, 1.0, 900.0, 24.0),
            (6, 0.0, 600.0, 60.0),
            (u32::MAX, 0.0, 600.0, 60.0),
        ] {
            for (backoff, expected) in [
                (DeferralBackoff::SECRET, of_secret),
                (DeferralBackoff::ATTEMPT, of_attempt),
            ] {
                let wait = backoff.wait(deferrals, jitter);
                let expected = Duration::from_secs_f64(expected);
                assert_eq!(wait, expected, "{backoff:?} {deferrals} {jitter}");
            }
        }
    }

    /// One message covers each wait, so the sweep has no work.
    #[test]
    fn longest_wait_fits_in_queue() {
        let longest = DeferralBackoff::SECRET.wait(u32::MAX, 1.0);
        assert_eq!(longest, MAX_QUEUE_DELAY);
    }
}
