//! What is simulated: the accounts, their endpoints, and the policy for unreachable endpoints.

use std::time::Duration;

use nano_webhooks_core::{
    delivery::{
        breaker::{AfterFailure, BreakerDecision},
        endpoint_health::{DispatchMode, EndpointHealth, Observation},
        failure::FailureKind,
    },
    timestamp::Timestamp,
};

/// The account whose endpoint is dead and has a backlog.
pub const BACKLOG_ACCOUNT: usize = 0;
/// In each group of this many accounts, one has a dead endpoint and one a slow endpoint.
const ACCOUNTS_PER_BAD_ENDPOINT: usize = 20;
/// The share of first attempts to healthy endpoints that get an error status.
const ERROR_SHARE: f64 = 0.02;
/// The response time of a healthy endpoint.
const FAST_RESPONSE: Duration = Duration::from_millis(100);
/// The response time of a slow endpoint.
const SLOW_RESPONSE: Duration = Duration::from_secs(3);
/// How long a first attempt waits for a response.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an attempt from the queue waits for a response.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);

/// The parameters of a run.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub policy: Policy,
    pub accounts: usize,
    /// The pending deliveries of [`BACKLOG_ACCOUNT`], which are due at the start.
    pub backlog: usize,
    pub queue_order: QueueOrder,
    /// The time that each report covers.
    pub report_interval: Duration,
    pub reports: usize,
    /// When the endpoint of [`BACKLOG_ACCOUNT`] responds again.
    pub recovers_after: Option<Duration>,
}

/// What is done about an endpoint whose breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Each process makes up to eight attempts at a time, until ADR 42.
    Before,
    /// Deliveries wait, and one attempt is the probe.
    After,
}

/// In which order the retry queue returns messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueOrder {
    /// Messages of a webhook that has more than its share in flight come last.
    Fair,
    /// The oldest first.
    Oldest,
}

impl Policy {
    /// What a delivery that comes up may do.
    pub fn decide(self, health: &EndpointHealth, now: Timestamp) -> BreakerDecision {
        match self {
            Self::Before => BreakerDecision::Attempt,
            Self::After => BreakerDecision::new(health, now),
        }
    }

    /// How a first attempt is made, if it is made.
    pub fn dispatch_mode(self, health: &EndpointHealth, now: Timestamp) -> DispatchMode {
        if self == Self::Before && health.is_open() {
            return DispatchMode::Queued;
        }
        health.dispatch_mode(now)
    }

    /// What a failed attempt leads to.
    pub fn after_failure(self, health: &EndpointHealth) -> AfterFailure {
        match self {
            Self::Before => AfterFailure::Retry,
            Self::After => AfterFailure::new(health),
        }
    }
}

/// How an endpoint responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    Healthy,
    Slow,
    /// It does not respond.
    Dead,
}

/// Whether an attempt is made from the stream or from the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Stream,
    Queue,
}

impl EndpointKind {
    pub fn new(account: usize) -> Self {
        match account % ACCOUNTS_PER_BAD_ENDPOINT {
            0 => Self::Dead,
            10 => Self::Slow,
            _ => Self::Healthy,
        }
    }

    /// The outcome of an attempt. `random` is from 0 to 1.
    pub fn respond(self, source: Source, random: f64) -> Observation {
        let (failure, duration) = match (self, source) {
            (Self::Healthy, Source::Stream) if random < ERROR_SHARE => {
                (Some(FailureKind::Status), FAST_RESPONSE)
            }
            (Self::Healthy, _) => (None, FAST_RESPONSE),
            (Self::Slow, _) => (None, SLOW_RESPONSE),
            (Self::Dead, Source::Stream) => (Some(FailureKind::Timeout), FIRST_TIMEOUT),
            (Self::Dead, Source::Queue) => (Some(FailureKind::Timeout), RETRY_TIMEOUT),
        };
        Observation { failure, duration }
    }
}

/// A seeded generator: `SplitMix64`.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to 1.
    pub fn unit(&mut self) -> f64 {
        let high = u32::try_from(self.next() >> 32).expect("32 bits");
        f64::from(high) / f64::from(u32::MAX)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).expect("64 bits");
        usize::try_from(self.next() % limit).expect("below a usize")
    }
}
