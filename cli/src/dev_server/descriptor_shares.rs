//! The file descriptors of the process: its limit, and who may use how many.

use nano_webhooks::client::{
    attempt_slots::AttemptSlots, resolver::Resolver, webhook_client::ClientLimits,
};

use super::retry_timer::MAX_CONCURRENT_RETRIES;

/// Descriptors for files, listeners and the runtime, which has about 20.
const RESERVED: usize = 48;
/// The parts into which the others are divided.
const PARTS: usize = 16;
/// The most file descriptors that are divided. More are never used.
const MAX_USED: usize = 65_536;

/// The most sockets of an attempt: those of three addresses while it connects.
const SOCKETS_PER_ATTEMPT: usize = 3;
/// The most sockets of a lookup.
const SOCKETS_PER_LOOKUP: usize = 8;
/// How many file descriptors each use has, so that none of them takes those of another.
///
/// Of 16 parts, attempts have nine, lookups two, idle connections one and a half, and requests to
/// the embedded engine two, which are both ends of a connection. Connections to the API and to the
/// engine's port have the rest.
#[derive(Clone, Copy, Debug)]
pub struct DescriptorShares {
    part: usize,
}

impl DescriptorShares {
    /// Raises the soft limit of the process to its hard limit, and divides what there is.
    pub fn raise_limit() -> Self {
        let limit = match rlimit::increase_nofile_limit(u64::MAX) {
            Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
            Err(error) => {
                tracing::warn!(%error, "Could not raise the limit of open files");
                RESERVED
            }
        };
        Self::divide(limit)
    }

    fn divide(limit: usize) -> Self {
        let available = limit.min(MAX_USED).saturating_sub(RESERVED);
        Self {
            part: (available / PARTS).max(1),
        }
    }

    /// The limits of the clients that make attempts, which share the slots.
    pub fn client_limits(self) -> ClientLimits {
        ClientLimits {
            attempts: AttemptSlots::new(self.attempts()),
            idle_connections: (self.part / 2).max(1),
            resolver: Resolver::system(self.lookups()),
        }
    }

    /// The most retries at the same time. Each makes an attempt, so more would wait for a slot.
    pub fn concurrent_retries(self) -> usize {
        self.attempts().min(MAX_CONCURRENT_RETRIES)
    }

    /// The most late attempts: a process that runs on has no other limit for them in all.
    pub const fn late_attempts(self) -> usize {
        self.attempts()
    }

    const fn attempts(self) -> usize {
        9 * self.part / SOCKETS_PER_ATTEMPT
    }

    /// The most requests to the embedded engine at the same time.
    pub const fn engine_requests(self) -> usize {
        self.part
    }

    fn lookups(self) -> usize {
        (2 * self.part / SOCKETS_PER_LOOKUP).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the limit is, all shares together are below it.
    #[test]
    fn shares_fit_in_limit() {
        for limit in [128, 256, 1_024, 10_240, 1_048_576, usize::MAX] {
            let shares = DescriptorShares::divide(limit);
            let attempts = SOCKETS_PER_ATTEMPT * shares.attempts();
            let lookups = SOCKETS_PER_LOOKUP * shares.lookups();
            // The clients of first attempts, retries and test events.
            let idle = 3 * shares.client_limits().idle_connections;
            let engine = 2 * shares.engine_requests();
            assert!(shares.attempts() >= 15, "{limit}");
            assert!(RESERVED + attempts + lookups + idle + engine + shares.part <= limit);
        }
    }

    #[test]
    fn tiny_limit_leaves_something() {
        assert_eq!(DescriptorShares::divide(0).part, 1);
    }
}
