//! First attempts, made from the jobs stream.

use std::{collections::VecDeque, time::Duration};

use nano_webhooks_core::{
    delivery::{
        DeliveryState,
        breaker::{AfterFailure, BreakerDecision},
        endpoint_health::{DispatchMode, Observation},
    },
    timestamp::Timestamp,
};

use crate::{
    deployment::{Deployment, Event, RECORD_DUE, START},
    report::Writes,
    scenario::{EndpointKind, Source},
};

/// The time between two events of an account.
const EVENT_INTERVAL: Duration = Duration::from_secs(10);
/// Four shards, each with ten batches at a time.
const LANES: usize = 40;
const MAX_BATCH: usize = 100;
/// How long a batch waits for one attempt.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// Four requests to the tables, one after the other.
const BATCH_TIME: Duration = Duration::from_millis(40);

const RECORD_DELIVERED: Writes = Writes::item(1);
const RECORD_PAUSED: Writes = Writes::item(2);
/// The counter of environments that late attempts hold.
const COUNT_HOLD: Writes = Writes::item(1);

/// The records that one batch at a time is made of.
#[derive(Debug, Default)]
pub struct StreamLane {
    waiting: VecDeque<(Timestamp, usize)>,
    is_busy: bool,
}

impl StreamLane {
    pub fn all() -> Vec<Self> {
        (0..LANES).map(|_| Self::default()).collect()
    }
}

/// A first attempt from the stream.
#[derive(Debug)]
pub struct DirectAttempt {
    account: usize,
    /// The delivery, if it was recorded before the attempt ended.
    delivery: Option<usize>,
    observation: Observation,
    after_failure: AfterFailure,
    ends_at: Timestamp,
}

impl Deployment {
    /// Schedules the first event of each account.
    pub fn start_events(&mut self) {
        for account in 0..self.scenario.accounts {
            let offset = EVENT_INTERVAL.mul_f64(self.random.unit());
            self.at(START + offset, Event::JobEnded { account });
        }
    }

    pub fn receive_event(&mut self, account: usize) {
        self.at(self.now + EVENT_INTERVAL, Event::JobEnded { account });
        let lane = self.random.below(LANES);
        self.stream[lane].waiting.push_back((self.now, account));
        if !self.stream[lane].is_busy {
            self.start_stream_batch(lane);
        }
    }

    pub fn start_stream_batch(&mut self, lane: usize) {
        let waiting = &mut self.stream[lane].waiting;
        let count = waiting.len().min(MAX_BATCH);
        let batch: Vec<_> = waiting.drain(..count).collect();
        self.stream[lane].is_busy = !batch.is_empty();
        if batch.is_empty() {
            return;
        }
        let mut longest = Duration::ZERO;
        for (occurred_at, account) in batch {
            if self.webhooks[account].kind == EndpointKind::Healthy {
                let wait = self.now.saturating_duration_since(occurred_at);
                self.report.healthy_first_attempts.push(wait);
            }
            longest = longest.max(self.start_first_attempt(account));
        }
        self.at(
            self.now + BATCH_TIME + longest,
            Event::StreamLaneFree { lane },
        );
    }

    /// Makes the first attempt of an event, or leaves it without one. Returns how long its batch
    /// waits for it.
    fn start_first_attempt(&mut self, account: usize) -> Duration {
        let policy = self.scenario.policy;
        let health = self.webhooks[account].health;
        match policy.decide(&health, self.now) {
            BreakerDecision::Wait => {
                let id = self.add_delivery(account, 0);
                self.set_state(id, DeliveryState::Paused, None);
                self.write_delivery(id, RECORD_PAUSED);
                return Duration::ZERO;
            }
            BreakerDecision::Probe => self.acquire_probe(account),
            BreakerDecision::Attempt => {
                if policy.dispatch_mode(&health, self.now) == DispatchMode::Queued {
                    let id = self.add_delivery(account, 0);
                    self.make_due(id, self.now);
                    self.write_delivery(id, RECORD_DUE);
                    return Duration::ZERO;
                }
            }
        }
        let observation = self.attempt(account, Source::Stream);
        let attempt = DirectAttempt {
            account,
            delivery: None,
            observation,
            after_failure: policy.after_failure(&health),
            ends_at: self.now + observation.duration,
        };
        if observation.duration > BATCH_WAIT {
            self.at(self.now + BATCH_WAIT, Event::DirectAttemptLate(attempt));
            return BATCH_WAIT;
        }
        self.at(attempt.ends_at, Event::DirectAttemptEnded(attempt));
        observation.duration
    }

    /// Records the delivery of an attempt for which its batch no longer waits.
    pub fn leave_late(&mut self, attempt: &DirectAttempt) {
        let account = attempt.account;
        let id = self.add_delivery(account, 0);
        self.lease(id);
        self.write_delivery(id, RECORD_DUE);
        self.count_writes(account, COUNT_HOLD);
        let health = self.webhooks[account].health.observe_late(self.now);
        self.update_health(account, health);
        let attempt = DirectAttempt {
            delivery: Some(id),
            ..*attempt
        };
        self.at(attempt.ends_at, Event::DirectAttemptEnded(attempt));
    }

    pub fn end_direct_attempt(&mut self, attempt: &DirectAttempt) {
        let DirectAttempt {
            account,
            observation,
            ..
        } = *attempt;
        match attempt.delivery {
            Some(id) => {
                self.complete(id, observation, attempt.after_failure);
            }
            None if observation.failure.is_none() => {
                self.write_to_partition(account, RECORD_DELIVERED);
            }
            None => self.record_failed(account),
        }
        let health = self.webhooks[account].health;
        self.update_health(account, health.observe(observation, self.now));
    }
}
