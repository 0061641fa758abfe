//! When a pending delivery is looked at: by its queue message, and by the sweep as the safety net.

use std::time::Duration;

use crate::timestamp::Timestamp;

/// The longest delay of a queue message (Amazon SQS, `DelaySeconds`).
pub const MAX_QUEUE_DELAY: Duration = Duration::from_mins(15);
/// How long before its due time the sweep moves a delivery to the queue. A sweep runs every minute,
/// so one missed sweep delays nothing.
pub const SWEEP_LOOKAHEAD: Duration = Duration::from_mins(5);
/// How long after its due time the sweep sends another message for a queued delivery.
pub const SWEEP_GRACE: Duration = Duration::from_mins(5);
/// The time between two deliveries of a resume or a replay to one endpoint: five a second.
pub const PACING_INTERVAL: Duration = Duration::from_millis(200);
/// How long a worker holds a delivery: 15 s for the queued attempt, and as much twice for requests
/// to the table.
pub const LEASE_DURATION: Duration = Duration::from_secs(45);

/// Whether a queue message can wait until `due`. If not, the sweep sends the message later.
pub fn fits_in_queue(due: Timestamp, now: Timestamp) -> bool {
    due <= now + MAX_QUEUE_DELAY
}

/// When the sweep looks at a delivery that is due at `due`, if a message that fits in the queue is
/// sent at `now`.
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
    fn sweep_time_depends_on_queue_delay() {
        let now = Timestamp::from_millis(1_000_000_000);
        for (delay, expected) in [(0, 300), (5, 305), (900, 1200), (901, 601), (7200, 6900)] {
            let due = now + Duration::from_secs(delay);
            let expected = now + Duration::from_secs(expected);
            assert_eq!(sweep_at(due, now), expected, "{delay}");
        }
    }

    #[test]
    fn overdue_delivery_is_swept_after_grace() {
        let now = Timestamp::from_millis(1_000_000_000);
        assert_eq!(sweep_at(Timestamp::from_millis(0), now), now + SWEEP_GRACE);
    }
}
