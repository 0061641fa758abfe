//! The retry function: attempts from the queue.

use std::{collections::HashMap, time::Duration};

use nano_webhooks_core::{
    delivery::{
        DeliveryState,
        breaker::{AfterFailure, BreakerDecision},
        endpoint_health::Observation,
    },
    timestamp::Timestamp,
};

use crate::{
    deployment::{CONDITION_FAILED, Deployment, Event},
    queue::Message,
    report::Writes,
    scenario::{EndpointKind, Source},
};

/// `RetryConcurrency`.
const MAX_ENVIRONMENTS: usize = 100;
/// Lambda starts with five batches and adds 300 per minute.
const ENVIRONMENTS_PER_SECOND: usize = 5;
/// The waits of deliveries without a slot, as in `src/dispatch/in_flight.rs`.
const BASE_WAIT: Duration = Duration::from_secs(5);
const REJECTIONS_PER_STEP: u32 = 100;
const MAX_WAIT: Duration = Duration::from_mins(2);

const CLAIM: Writes = Writes::item(3);
const PAUSE: Writes = Writes::item(3);
const DEFER: Writes = Writes::item(4);

/// An environment of the retry function, which handles one batch at a time.
#[derive(Debug, Default)]
pub struct Environment {
    accounts: Vec<usize>,
    in_flight: HashMap<usize, usize>,
    attempts_left: usize,
    started_at: Option<Timestamp>,
    ends_at: Option<Timestamp>,
    /// Deliveries that found no slot since the last success, for each account.
    rejections: HashMap<usize, u32>,
}

/// An attempt from the queue.
#[derive(Debug)]
pub struct QueuedAttempt {
    environment: usize,
    account: usize,
    delivery: usize,
    observation: Observation,
    after_failure: AfterFailure,
}

impl Deployment {
    pub fn add_environments(&mut self) {
        for _ in 0..ENVIRONMENTS_PER_SECOND {
            self.idle.push(self.environments.len());
            self.environments.push(Environment::default());
        }
        if self.environments.len() < MAX_ENVIRONMENTS {
            let next = self.now + Duration::from_secs(1);
            self.at(next, Event::EnvironmentsAdded);
        }
        self.start_batches();
    }

    /// Receives batches while an environment is idle.
    pub fn start_batches(&mut self) {
        while !self.queue.is_empty()
            && let Some(environment) = self.idle.pop()
        {
            let batch = self.queue.receive();
            let state = &mut self.environments[environment];
            state.accounts = batch.iter().map(|message| message.account).collect();
            state.in_flight.clear();
            state.attempts_left = 0;
            state.started_at = Some(self.now);
            state.ends_at = None;
            for message in batch {
                let written_at = self.handle_message(environment, message);
                let state = &mut self.environments[environment];
                state.ends_at = state.ends_at.max(Some(written_at));
            }
            self.end_batch_if_complete(environment);
        }
    }

    /// Handles a message. Returns when its writes are done, without those that follow an attempt.
    fn handle_message(&mut self, environment: usize, message: Message) -> Timestamp {
        let Message {
            account,
            delivery: id,
            attempt_count,
        } = message;
        let delivery = &self.deliveries[id];
        let is_current = delivery.attempt_count == attempt_count && delivery.leased_until.is_none();
        let DeliveryState::Pending(due) = delivery.state else {
            return self.write_delivery(id, CONDITION_FAILED);
        };
        if !is_current {
            return self.write_delivery(id, CONDITION_FAILED);
        }
        let health = self.webhooks[account].health;
        let decision = self.scenario.policy.decide(&health, self.now);
        if decision == BreakerDecision::Wait {
            self.report.paused += 1;
            self.set_state(id, DeliveryState::Paused, None);
            return self.write_delivery(id, PAUSE);
        }
        if due > self.now {
            self.send(id, due);
            return self.write_delivery(id, CONDITION_FAILED);
        }
        let slots = &mut self.environments[environment].in_flight;
        let slots = slots.entry(account).or_default();
        if *slots >= health.max_in_flight() {
            return self.defer(environment, id);
        }
        *slots += 1;
        self.environments[environment].attempts_left += 1;
        self.claim_and_attempt(environment, id, due, decision)
    }

    /// Makes a delivery due later, because its endpoint has no free slot in this process.
    fn defer(&mut self, environment: usize, id: usize) -> Timestamp {
        let account = self.deliveries[id].account;
        let rejections = &mut self.environments[environment].rejections;
        let rejections = rejections.entry(account).or_default();
        *rejections += 1;
        let steps = 1 + *rejections / REJECTIONS_PER_STEP;
        let jitter = self.random.unit();
        let wait = BASE_WAIT.mul_f64(1.0 + jitter) * steps;
        let wait = wait.min(MAX_WAIT.mul_f64(0.5 + jitter / 2.0));
        self.report.deferred += 1;
        self.make_due(id, self.now + wait);
        self.write_delivery(id, DEFER)
    }

    fn claim_and_attempt(
        &mut self,
        environment: usize,
        id: usize,
        due: Timestamp,
        decision: BreakerDecision,
    ) -> Timestamp {
        let account = self.deliveries[id].account;
        let health = self.webhooks[account].health;
        self.lease(id);
        let claimed_at = self.write_delivery(id, CLAIM);
        let wait = claimed_at.saturating_duration_since(due);
        match self.webhooks[account].kind {
            EndpointKind::Healthy => self.report.healthy_retries.push(wait),
            EndpointKind::Slow => self.report.slow_attempts.push(wait),
            EndpointKind::Dead => {}
        }
        if decision == BreakerDecision::Probe {
            self.acquire_probe(account);
        }
        let observation = self.attempt(account, Source::Queue);
        let attempt = QueuedAttempt {
            environment,
            account,
            delivery: id,
            observation,
            after_failure: self.scenario.policy.after_failure(&health),
        };
        let ends_at = claimed_at + observation.duration;
        self.at(ends_at, Event::QueuedAttemptEnded(attempt));
        claimed_at
    }

    pub fn end_queued_attempt(&mut self, attempt: &QueuedAttempt) {
        let QueuedAttempt {
            environment,
            account,
            observation,
            ..
        } = *attempt;
        let written_at = self.complete(attempt.delivery, observation, attempt.after_failure);
        let health = self.webhooks[account].health;
        self.update_health(account, health.observe(observation, self.now));
        let state = &mut self.environments[environment];
        if observation.failure.is_none() {
            state.rejections.remove(&account);
        }
        state.attempts_left -= 1;
        state.ends_at = state.ends_at.max(Some(written_at));
        self.end_batch_if_complete(environment);
    }

    fn end_batch_if_complete(&mut self, environment: usize) {
        let state = &self.environments[environment];
        if state.attempts_left == 0
            && let Some(ends_at) = state.ends_at
        {
            self.at(ends_at, Event::BatchEnded { environment });
        }
    }

    pub fn end_batch(&mut self, environment: usize) {
        let state = &mut self.environments[environment];
        if let Some(started_at) = state.started_at.take() {
            self.report.busy += self.now.saturating_duration_since(started_at);
        }
        self.queue.delete(&state.accounts);
        self.idle.push(environment);
        self.start_batches();
    }
}
