//! The state of the simulated deployment, and its clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Duration,
};

use nano_webhooks_core::{
    delivery::{
        DeliveryState,
        breaker::{AfterFailure, BreakerChange, probe_interval},
        endpoint_health::{EndpointHealth, FAILURE_THRESHOLD, Observation},
        failure::FailureKind,
        lease,
        schedule::RetrySchedule,
    },
    timestamp::Timestamp,
};

use crate::{
    jobs::{Marker, Resume, SweepLane},
    queue::{Message, MessageQueue},
    report::{Report, Writes},
    scenario::{BACKLOG_ACCOUNT, EndpointKind, Policy, Random, Scenario, Source},
    stream::{DirectAttempt, StreamLane},
    workers::{Environment, QueuedAttempt},
};

/// The start of the virtual clock.
pub const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
/// A write of a table, without waiting for its partition.
const WRITE_TIME: Duration = Duration::from_millis(5);
/// How long a write keeps the partition of a webhook's deliveries busy: 1,000 per second.
const PARTITION_TIME: Duration = Duration::from_millis(1);
/// The deliveries of the backlog have used between one and this number of steps of the schedule.
const BACKLOG_STEPS: usize = 5;
const SEED: u64 = 42;

/// A write whose condition fails is billed as well.
pub const CONDITION_FAILED: Writes = Writes::item(1);
/// Health, marker and resume, in a transaction.
const BREAKER_CHANGE: Writes = Writes { items: 3, units: 6 };
/// A delivery with its entries in `due` and `by_state`; docs/SCALE.md explains the units.
pub const RECORD_DUE: Writes = Writes::item(3);
const COMPLETE_SETTLED: Writes = Writes::item(3);
const COMPLETE_PAUSED: Writes = Writes::item(3);
const COMPLETE_RETRY: Writes = Writes::item(4);

/// A delivery that did not succeed at once.
#[derive(Debug)]
pub struct Delivery {
    pub account: usize,
    pub state: DeliveryState,
    pub attempt_count: u32,
    pub schedule_step: u32,
    pub leased_until: Option<Timestamp>,
    /// The entry in the due index.
    pub sweep_at: Option<Timestamp>,
}

/// A webhook of an account.
#[derive(Debug)]
pub struct Webhook {
    pub kind: EndpointKind,
    pub health: EndpointHealth,
    pub marker: Option<Marker>,
    pub resume: Option<Resume>,
    pub paused: BTreeSet<usize>,
    /// The part of the due index.
    pub due: BTreeSet<(Timestamp, usize)>,
    partition_free_at: Timestamp,
}

/// Something that happens at a time.
#[derive(Debug)]
pub enum Event {
    JobEnded { account: usize },
    StreamLaneFree { lane: usize },
    DirectAttemptLate(DirectAttempt),
    DirectAttemptEnded(DirectAttempt),
    MessageVisible(Message),
    QueuedAttemptEnded(QueuedAttempt),
    BatchEnded { environment: usize },
    EnvironmentsAdded,
    SweepStarted,
    SweepContinued(SweepLane),
    JobsAdvanced,
    Recovered,
}

/// The simulated deployment.
pub struct Deployment {
    pub scenario: Scenario,
    pub now: Timestamp,
    events: BTreeMap<(Timestamp, u64), Event>,
    last_event: u64,
    pub random: Random,
    schedule: RetrySchedule,
    pub webhooks: Vec<Webhook>,
    pub deliveries: Vec<Delivery>,
    pub stream: Vec<StreamLane>,
    pub queue: MessageQueue,
    pub environments: Vec<Environment>,
    pub idle: Vec<usize>,
    pub report: Report,
}

impl Deployment {
    pub fn new(scenario: Scenario) -> Self {
        let mut deployment = Self {
            scenario,
            now: START,
            events: BTreeMap::new(),
            last_event: 0,
            random: Random::new(SEED),
            schedule: RetrySchedule::default(),
            webhooks: (0..scenario.accounts).map(Webhook::new).collect(),
            deliveries: Vec::new(),
            stream: StreamLane::all(),
            queue: MessageQueue::new(scenario.queue_order),
            environments: Vec::new(),
            idle: Vec::new(),
            report: Report::default(),
        };
        deployment.webhooks[BACKLOG_ACCOUNT].health = open_health();
        for number in 0..scenario.backlog {
            let step = u32::try_from(1 + number % BACKLOG_STEPS).expect("few steps");
            deployment.add_delivery(BACKLOG_ACCOUNT, step);
            deployment.set_state(number, DeliveryState::Pending(START), Some(START));
        }
        deployment
    }

    /// Runs the scenario. Returns a report of each interval.
    pub fn run(mut self) -> Vec<Report> {
        self.start_events();
        self.at(START, Event::EnvironmentsAdded);
        self.at(START, Event::SweepStarted);
        self.at(START, Event::JobsAdvanced);
        if let Some(time) = self.scenario.recovers_after {
            self.at(START + time, Event::Recovered);
        }
        let mut reports = Vec::new();
        let mut end = START;
        for _ in 0..self.scenario.reports {
            end = end + self.scenario.report_interval;
            self.run_until(end);
            reports.push(self.take_report());
        }
        reports
    }

    fn run_until(&mut self, end: Timestamp) {
        while let Some(entry) = self.events.first_entry()
            && entry.key().0 < end
        {
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.handle(event);
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::JobEnded { account } => self.receive_event(account),
            Event::StreamLaneFree { lane } => self.start_stream_batch(lane),
            Event::DirectAttemptLate(attempt) => self.leave_late(&attempt),
            Event::DirectAttemptEnded(attempt) => self.end_direct_attempt(&attempt),
            Event::MessageVisible(message) => {
                self.queue.push(message);
                self.start_batches();
            }
            Event::QueuedAttemptEnded(attempt) => self.end_queued_attempt(&attempt),
            Event::BatchEnded { environment } => self.end_batch(environment),
            Event::EnvironmentsAdded => self.add_environments(),
            Event::SweepStarted => self.start_sweep(),
            Event::SweepContinued(lane) => self.continue_sweep(lane),
            Event::JobsAdvanced => self.advance(),
            Event::Recovered => self.webhooks[BACKLOG_ACCOUNT].kind = EndpointKind::Healthy,
        }
    }

    /// The report of the interval that ends now. Attempts that are overdue count with their wait
    /// until now.
    fn take_report(&mut self) -> Report {
        let mut report = mem::take(&mut self.report);
        for delivery in &self.deliveries {
            let DeliveryState::Pending(due) = delivery.state else {
                continue;
            };
            if delivery.leased_until.is_some() || due >= self.now {
                continue;
            }
            let wait = self.now.saturating_duration_since(due);
            match self.webhooks[delivery.account].kind {
                EndpointKind::Healthy => report.healthy_retries.push(wait),
                EndpointKind::Slow => report.slow_attempts.push(wait),
                EndpointKind::Dead => {}
            }
        }
        for delivery in self.deliveries.iter().take(self.scenario.backlog) {
            if delivery.state == DeliveryState::Pending(START) {
                report.untouched += 1;
            }
        }
        report.healthy_retries.sort();
        report.slow_attempts.sort();
        report.healthy_first_attempts.sort();
        report
    }

    pub fn at(&mut self, time: Timestamp, event: Event) {
        self.last_event += 1;
        self.events.insert((time, self.last_event), event);
    }

    /// Adds a delivery that is neither due nor paused yet.
    pub fn add_delivery(&mut self, account: usize, schedule_step: u32) -> usize {
        self.deliveries.push(Delivery {
            account,
            state: DeliveryState::Pending(self.now),
            attempt_count: schedule_step,
            schedule_step,
            leased_until: None,
            sweep_at: None,
        });
        self.deliveries.len() - 1
    }

    /// Changes the state of a delivery, ends its lease, and moves it in the indexes.
    pub fn set_state(&mut self, id: usize, state: DeliveryState, sweep_at: Option<Timestamp>) {
        let delivery = &mut self.deliveries[id];
        let webhook = &mut self.webhooks[delivery.account];
        if let Some(previous) = delivery.sweep_at {
            webhook.due.remove(&(previous, id));
        }
        if let Some(sweep_at) = sweep_at {
            webhook.due.insert((sweep_at, id));
        }
        if state == DeliveryState::Paused {
            webhook.paused.insert(id);
        } else {
            webhook.paused.remove(&id);
        }
        delivery.leased_until = None;
        delivery.sweep_at = sweep_at;
        delivery.state = state;
    }

    /// Leases a delivery.
    pub fn lease(&mut self, id: usize) {
        let until = self.now + lease::LEASE_DURATION;
        let state = self.deliveries[id].state;
        self.set_state(id, state, Some(until));
        self.deliveries[id].leased_until = Some(until);
    }

    /// Makes a delivery due, and sends its message.
    pub fn make_due(&mut self, id: usize, due: Timestamp) {
        let sweep_at = lease::sweep_at(due, self.now);
        self.set_state(id, DeliveryState::Pending(due), Some(sweep_at));
        if lease::fits_in_queue(due, self.now) {
            self.send(id, due);
        }
    }

    /// Sends the message of a delivery.
    pub fn send(&mut self, id: usize, due: Timestamp) {
        let delivery = &self.deliveries[id];
        let message = Message {
            account: delivery.account,
            delivery: id,
            attempt_count: delivery.attempt_count,
        };
        self.report.messages += 1;
        self.at(due.max(self.now), Event::MessageVisible(message));
    }

    /// Makes an attempt.
    pub fn attempt(&mut self, account: usize, source: Source) -> Observation {
        let random = self.random.unit();
        let kind = self.webhooks[account].kind;
        if account == BACKLOG_ACCOUNT {
            self.report.backlog_attempts += 1;
        } else if kind == EndpointKind::Dead {
            self.report.dead_attempts += 1;
        }
        kind.respond(source, random)
    }

    /// Acquires the right to probe, and moves the time of the next probe.
    pub fn acquire_probe(&mut self, account: usize) {
        let now = self.now;
        let webhook = &mut self.webhooks[account];
        let mut writes = Writes::item(1) + Writes::item(1);
        if webhook.health.probed_at.is_none() {
            writes += Writes::item(1);
        }
        webhook.health.probed_at = Some(now);
        webhook.health.probe_count += 1;
        let cursor = webhook.marker.and_then(|marker| marker.cursor);
        webhook.marker = Some(Marker {
            next_probe_at: now + probe_interval(webhook.health.probe_count),
            cursor,
        });
        self.count_writes(account, writes);
    }

    /// Writes the result of the attempt of a delivery. Returns when it is written.
    pub fn complete(
        &mut self,
        id: usize,
        observation: Observation,
        after_failure: AfterFailure,
    ) -> Timestamp {
        let delivery = &mut self.deliveries[id];
        delivery.attempt_count += 1;
        let writes = if observation.failure.is_none() {
            self.set_state(id, DeliveryState::Delivered, None);
            self.note_delivered(id);
            COMPLETE_SETTLED
        } else if after_failure == AfterFailure::WaitForEndpoint {
            self.set_state(id, DeliveryState::Paused, None);
            COMPLETE_PAUSED
        } else {
            delivery.schedule_step += 1;
            let step = delivery.schedule_step;
            self.schedule_retry(id, step)
        };
        self.write_delivery(id, writes)
    }

    fn schedule_retry(&mut self, id: usize, step: u32) -> Writes {
        let jitter = self.random.unit();
        let Some(delay) = self.schedule.delay_after(step, jitter, None) else {
            self.set_state(id, DeliveryState::Failed, None);
            return COMPLETE_SETTLED;
        };
        self.make_due(id, self.now + delay);
        COMPLETE_RETRY
    }

    /// Records a new delivery whose first attempt failed.
    pub fn record_failed(&mut self, account: usize) {
        let id = self.add_delivery(account, 1);
        self.schedule_retry(id, 1);
        self.write_delivery(id, RECORD_DUE);
    }

    fn note_delivered(&mut self, id: usize) {
        if id < self.scenario.backlog {
            let time = self.now.saturating_duration_since(START);
            self.report.delivered_after.push(time);
        }
    }

    /// Writes the health of an endpoint if it changed.
    pub fn update_health(&mut self, account: usize, health: EndpointHealth) {
        let now = self.now;
        let webhook = &mut self.webhooks[account];
        if !health.needs_write(&webhook.health) {
            return;
        }
        let change = match self.scenario.policy {
            Policy::Before => None,
            Policy::After => BreakerChange::between(&webhook.health, &health),
        };
        let Some(change) = change else {
            webhook.health = health;
            return self.count_writes(account, Writes::item(1));
        };
        webhook.health = change.reset_probes(health, now);
        webhook.marker = None;
        webhook.resume = None;
        match change {
            BreakerChange::Opened => {
                let next_probe_at = now + probe_interval(0);
                webhook.marker = Some(Marker::new(next_probe_at));
            }
            BreakerChange::Closed => webhook.resume = Some(Resume::new(now)),
        }
        self.count_writes(account, BREAKER_CHANGE);
    }

    /// Writes a delivery. Returns when its partition has written it.
    pub fn write_delivery(&mut self, id: usize, writes: Writes) -> Timestamp {
        let account = self.deliveries[id].account;
        if id < self.scenario.backlog {
            self.report.backlog_writes += writes;
        }
        self.write_to_partition(account, writes)
    }

    /// Writes an item to the partition of a webhook's deliveries.
    pub fn write_to_partition(&mut self, account: usize, writes: Writes) -> Timestamp {
        self.count_writes(account, writes);
        let webhook = &mut self.webhooks[account];
        webhook.partition_free_at = webhook.partition_free_at.max(self.now) + PARTITION_TIME;
        webhook.partition_free_at + WRITE_TIME
    }

    /// Counts writes that wait for no partition of deliveries.
    pub fn count_writes(&mut self, account: usize, writes: Writes) {
        let report = &mut self.report;
        if account == BACKLOG_ACCOUNT {
            report.backlog_account_writes += writes;
        } else if self.webhooks[account].kind == EndpointKind::Dead {
            report.dead_writes += writes;
        } else {
            report.other_writes += writes;
        }
    }
}

impl Webhook {
    fn new(account: usize) -> Self {
        Self {
            kind: EndpointKind::new(account),
            health: EndpointHealth {
                has_succeeded: true,
                ..EndpointHealth::default()
            },
            marker: None,
            resume: None,
            paused: BTreeSet::new(),
            due: BTreeSet::new(),
            partition_free_at: START,
        }
    }
}

/// The health of an endpoint that has been down for long, as the earlier version stored it.
fn open_health() -> EndpointHealth {
    EndpointHealth {
        has_succeeded: true,
        slow: true,
        slow_until: Some(START),
        consecutive_failures: FAILURE_THRESHOLD,
        failing_since: Some(START),
        failed_attempts: 10,
        last_failure: Some(FailureKind::Timeout),
        ..EndpointHealth::default()
    }
}
