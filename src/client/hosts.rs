//! The connections of a process, by host.

use std::{collections::HashMap, time::Duration};

use http::{
    Uri,
    uri::{Authority, Scheme},
};
use nano_webhooks_core::delivery::host_concurrency::HostConcurrency;

use super::connection::Connection;
use crate::clock::Stopwatch;

/// Idle connections to all hosts, twice as many as attempts start in a burst.
const MAX_IDLE: usize = 128;
/// How long an idle connection is kept. It is shorter than the 5 s of Node, Apache and uvicorn, so
/// that few connections are closed by the server first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long an idle connection is kept while a request waits on a new connection to its host.
pub(super) const IDLE_TIMEOUT_WHILE_WAITING: Duration = Duration::from_millis(50);

/// The scheme, name and port of a host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct HostKey {
    scheme: Scheme,
    authority: Authority,
}

impl HostKey {
    /// The host of an absolute URI.
    pub(super) fn of(uri: &Uri) -> Self {
        let scheme = uri.scheme().cloned();
        let authority = uri.authority().cloned();
        Self {
            scheme: scheme.expect("an endpoint's URI has a scheme"),
            authority: authority.expect("an endpoint's URI has an authority"),
        }
    }
}

/// The hosts to which connections are open or wanted.
pub(super) struct Hosts {
    by_key: HashMap<HostKey, Host>,
    is_swept: bool,
    pub max_idle: usize,
    pub idle_timeout: Duration,
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            by_key: HashMap::new(),
            is_swept: false,
            max_idle: MAX_IDLE,
            idle_timeout: IDLE_TIMEOUT,
        }
    }
}

#[derive(Default)]
struct Host {
    /// The latest last.
    idle: Vec<IdleConnection>,
    /// The exchanges in flight that have had no response, on connections without an earlier one.
    new: usize,
    /// The exchanges in flight on connections that have had a response.
    served: usize,
    concurrency: HostConcurrency,
}

struct IdleConnection {
    connection: Connection,
    idle_for: Stopwatch,
}

impl Host {
    fn in_flight(&self) -> usize {
        self.new + self.served
    }

    /// The connection that has been idle for the shortest time, if that is less than the time-out.
    fn take_idle(&mut self, timeout: Duration) -> Option<Connection> {
        while let Some(IdleConnection {
            connection,
            idle_for,
        }) = self.idle.pop()
        {
            if idle_for.elapsed() >= timeout {
                self.idle.clear();
            } else if !connection.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    /// Closes the connections that have been idle for this time. True if there were any.
    fn close_idle(&mut self, timeout: Duration) -> bool {
        self.idle.retain(|idle| !idle.connection.is_closed());
        let before = self.idle.len();
        self.idle.retain(|idle| idle.idle_for.elapsed() < timeout);
        self.idle.len() < before
    }
}

impl Hosts {
    /// Starts an exchange, on an idle connection if there is one.
    pub(super) fn start_exchange(&mut self, key: &HostKey) -> Option<Connection> {
        let host = self.by_key.entry(key.clone()).or_default();
        let idle = host.take_idle(self.idle_timeout);
        match idle {
            Some(_) => host.served += 1,
            None => host.new += 1,
        }
        idle
    }

    /// An exchange starts over on a new connection: the host had closed its idle one.
    pub(super) fn restart_exchange(&mut self, key: &HostKey) {
        let host = self.in_flight(key);
        host.served -= 1;
        host.new += 1;
    }

    /// The host responded to an exchange on a connection, which may be new.
    pub(super) fn note_response(&mut self, key: &HostKey, is_new: bool) {
        let host = self.in_flight(key);
        if is_new {
            host.new -= 1;
            host.served += 1;
        }
        if host.concurrency != HostConcurrency::Many {
            host.idle.retain(|idle| !idle.connection.is_closed());
            let other_served = host.served - 1 + host.idle.len();
            host.concurrency = host.concurrency.after_response(other_served);
        }
    }

    /// A request waits on a new connection, perhaps for an idle one to close.
    pub(super) fn note_wait(&mut self, key: &HostKey) {
        let host = self.in_flight(key);
        if host.close_idle(IDLE_TIMEOUT_WHILE_WAITING) {
            host.concurrency = host.concurrency.after_wait();
        }
    }

    /// Keeps the connection of an exchange in flight, or closes it.
    pub(super) fn keep(&mut self, key: &HostKey, connection: Connection) {
        let host = self.in_flight(key);
        if host.concurrency.keeps_idle(host.in_flight() - 1) {
            host.idle.push(IdleConnection {
                connection,
                idle_for: Stopwatch::start(),
            });
        }
        if self.count_idle() > self.max_idle {
            self.close_oldest();
        }
    }

    /// Ends an exchange. `is_new`: there was no response on its connection.
    pub(super) fn end_exchange(&mut self, key: &HostKey, is_new: bool) {
        let host = self.in_flight(key);
        if is_new {
            host.new -= 1;
        } else {
            host.served -= 1;
        }
        let in_flight = host.in_flight();
        if !host.concurrency.keeps_idle(in_flight) {
            host.idle.clear();
        }
        if in_flight == 0 && host.idle.is_empty() {
            self.by_key.remove(key);
        }
    }

    fn in_flight(&mut self, key: &HostKey) -> &mut Host {
        let host = self.by_key.get_mut(key);
        host.expect("the host of an exchange in flight is listed")
    }

    /// Whether idle connections need a sweep from now on, which is not under way yet.
    pub(super) fn start_sweep(&mut self) -> bool {
        let starts = !self.is_swept && self.count_idle() > 0;
        self.is_swept |= starts;
        starts
    }

    /// Closes the connections that have been idle for too long. False if none are left, which ends
    /// the sweep.
    pub(super) fn close_expired(&mut self) -> bool {
        self.by_key.retain(|_, host| {
            host.close_idle(self.idle_timeout);
            host.in_flight() > 0 || !host.idle.is_empty()
        });
        self.is_swept = self.count_idle() > 0;
        self.is_swept
    }

    pub(super) fn count_idle(&self) -> usize {
        self.by_key.values().map(|host| host.idle.len()).sum()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    fn close_oldest(&mut self) {
        let oldest = self
            .by_key
            .values_mut()
            .filter(|host| !host.idle.is_empty())
            .max_by_key(|host| host.idle[0].idle_for.elapsed());
        if let Some(host) = oldest {
            host.idle.remove(0);
        }
    }
}
