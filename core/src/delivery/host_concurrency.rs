//! Whether idle connections to a host are kept.
//!
//! A host that serves one connection at a time accepts the next one when the client closes the
//! last. An idle connection to it would make every other request wait.

/// How many connections a host serves at the same time, as far as it has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostConcurrency {
    /// It has not shown it.
    #[default]
    Unknown,
    /// It responded on a connection while it held another one that it had served.
    Many,
    /// It let requests wait while it held an idle connection.
    Queues,
}

impl HostConcurrency {
    /// The state after a response, while the host held `other_served` more connections that it had
    /// served before.
    #[must_use]
    pub const fn after_response(self, other_served: usize) -> Self {
        if other_served > 0 { Self::Many } else { self }
    }

    /// The state after a request waited on a new connection while another one was idle.
    ///
    /// The host may be slow, so this does not count against one that has shown that it serves many.
    #[must_use]
    pub const fn after_wait(self) -> Self {
        match self {
            Self::Unknown => Self::Queues,
            Self::Many | Self::Queues => self,
        }
    }

    /// Whether a connection may be idle while `in_flight` exchanges with the host are in flight.
    ///
    /// Another process may want to connect to a host that has shown nothing, so a connection to it
    /// is idle only during a burst of this process.
    pub const fn keeps_idle(self, in_flight: usize) -> bool {
        match self {
            Self::Unknown => in_flight > 0,
            Self::Many => true,
            Self::Queues => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::HostConcurrency::{Many, Queues, Unknown};

    #[test]
    fn responses_and_waits_are_learned() {
        for (before, other_served, after) in [
            (Unknown, 0, Unknown),
            (Unknown, 1, Many),
            (Queues, 0, Queues),
            (Queues, 2, Many),
            (Many, 0, Many),
        ] {
            assert_eq!(before.after_response(other_served), after);
        }
        for (before, after) in [(Unknown, Queues), (Queues, Queues), (Many, Many)] {
            assert_eq!(before.after_wait(), after);
        }
    }

    #[test]
    fn idle_connections_are_kept_by_concurrency() {
        for (concurrency, at_rest, in_burst) in [
            (Unknown, false, true),
            (Many, true, true),
            (Queues, false, false),
        ] {
            assert_eq!(concurrency.keeps_idle(0), at_rest);
            assert_eq!(concurrency.keeps_idle(1), in_burst);
        }
    }
}
