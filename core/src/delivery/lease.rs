//! When a delivery needs looking at: by the queue, which holds a message for it, and by the sweep, which is the safety net.

use std::time::Duration;

use crate::timestamp::Timestamp;

/// The longest delay that a queue message can have (Amazon SQS, `DelaySeconds`).
pub const MAX_QUEUE_DELAY: Duration = Duration::from_mins(15);
/// How long before it is due the sweep moves a delivery to the queue. More than the minute between two sweeps, so that
/// none comes late when one is missed.
pub const SWEEP_LOOKAHEAD: Duration = Duration::from_mins(5);
/// How long after a delivery's message should have been taken the sweep sends another.
pub const SWEEP_GRACE: Duration = Duration::from_mins(5);
/// The time between two deliveries to an endpoint that are made due because somebody asks for many: five a second, and as many as
/// a sweep's step in a minute.
pub const PACING_INTERVAL: Duration = Duration::from_millis(200);
/// How long a worker has for an attempt that it has claimed: the queued attempt's 15 s, and time for the table, thrice.
pub const LEASE_DURATION: Duration = Duration::from_secs(45);

/// Whether a message is to be sent for a delivery that is due at `due`; if not, the sweep will send it.
pub fn fits_in_queue(due: Timestamp, now: Timestamp) -> bool {
    due <= now + MAX_QUEUE_DELAY
}

/// When the sweep looks at a delivery that is due at `due`, whose message, if it is within reach, is sent now.
pub fn sweep_at(due: Timestamp, now: Timestamp) -> Timestamp {
    if fits_in_queue(due, now) {
        due.max(now) + SWEEP_GRACE
    } else {
        due - SWEEP_LOOKAHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_wait_is_the_queues_and_a_long_one_the_sweeps() {
        let now = Timestamp::from_millis(1_000_000_000);
        let seconds = |at: Timestamp| (at.as_unix_millis() - now.as_unix_millis()) / 1000;
        for (wait, swept) in [(0, 300), (5, 305), (900, 1200), (901, 601), (7200, 6900)] {
            let due = now + Duration::from_secs(wait);
            assert_eq!(seconds(sweep_at(due, now)), swept, "{wait}");
        }
        assert_eq!(
            seconds(sweep_at(Timestamp::from_millis(0), now)),
            300,
            "what is overdue is sent now"
        );
    }
}
