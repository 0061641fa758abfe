//! The scheduled jobs: the sweep, and the steps of resumes and probes.

use std::time::Duration;

use nano_webhooks_core::{
    delivery::{
        DeliveryState,
        breaker::{MAX_PROBE_INTERVAL, ProbeStep, probe_interval},
        lease,
    },
    timestamp::Timestamp,
    webhook::WebhookStatus,
};

use crate::{
    deployment::{Deployment, Event},
    report::Writes,
};

const JOB_INTERVAL: Duration = Duration::from_mins(1);
/// How long a sweep moves deliveries.
const SWEEP_TIME: Duration = Duration::from_secs(21);
/// The writes of a sweep that are in flight to one webhook's partition.
const SWEEP_WRITES: usize = 8;
/// The deliveries of a step of a resume.
const RESUME_STEP: usize = 300;
const MAX_SCHEDULED_AHEAD: Duration = Duration::from_mins(2);
const RESCAN_WINDOW: Duration = Duration::from_mins(2);

const MARK_ENQUEUED: Writes = Writes::item(3);
const MAKE_DUE: Writes = Writes::item(3);
const SAVE_MARKER: Writes = Writes::item(1);

/// Names an endpoint whose breaker is open.
#[derive(Clone, Copy, Debug)]
pub struct Marker {
    pub next_probe_at: Timestamp,
    /// The delivery that was made due last.
    pub cursor: Option<usize>,
}

impl Marker {
    pub const fn new(next_probe_at: Timestamp) -> Self {
        Self {
            next_probe_at,
            cursor: None,
        }
    }
}

/// Names a webhook whose paused deliveries are resumed.
#[derive(Clone, Copy, Debug)]
pub struct Resume {
    started_at: Timestamp,
    scheduled_until: Timestamp,
}

impl Resume {
    pub const fn new(now: Timestamp) -> Self {
        Self {
            started_at: now,
            scheduled_until: now,
        }
    }
}

/// One of the writers of a webhook in a sweep.
#[derive(Clone, Copy, Debug)]
pub struct SweepLane {
    account: usize,
    ends_at: Timestamp,
}

impl Deployment {
    pub fn start_sweep(&mut self) {
        self.at(self.now + JOB_INTERVAL, Event::SweepStarted);
        let ends_at = self.now + SWEEP_TIME;
        for account in 0..self.scenario.accounts {
            for _ in 0..SWEEP_WRITES {
                self.continue_sweep(SweepLane { account, ends_at });
            }
        }
    }

    /// Moves the next delivery of a webhook to the queue.
    pub fn continue_sweep(&mut self, lane: SweepLane) {
        let Some((sweep_at, id)) = self.webhooks[lane.account].due.first().copied() else {
            return;
        };
        let DeliveryState::Pending(due) = self.deliveries[id].state else {
            return;
        };
        if sweep_at > self.now || self.now >= lane.ends_at {
            return;
        }
        let sweep_at = lease::sweep_at(due, self.now);
        self.set_state(id, DeliveryState::Pending(due), Some(sweep_at));
        self.send(id, due);
        self.report.swept += 1;
        let written_at = self.write_delivery(id, MARK_ENQUEUED);
        self.at(written_at, Event::SweepContinued(lane));
    }

    /// Runs a step of each resume and of each probe that is due.
    pub fn advance(&mut self) {
        self.at(self.now + JOB_INTERVAL, Event::JobsAdvanced);
        for account in 0..self.scenario.accounts {
            if let Some(resume) = self.webhooks[account].resume {
                self.advance_resume(account, resume);
            }
            if let Some(marker) = self.webhooks[account].marker
                && marker.next_probe_at <= self.now
            {
                self.advance_probe(account, marker);
            }
        }
    }

    fn advance_resume(&mut self, account: usize, resume: Resume) {
        if resume.scheduled_until > self.now + MAX_SCHEDULED_AHEAD {
            return;
        }
        let newest = self.webhooks[account].paused.iter().rev();
        let step: Vec<_> = newest.take(RESUME_STEP).copied().collect();
        if step.is_empty() && resume.started_at + RESCAN_WINDOW <= self.now {
            self.webhooks[account].resume = None;
            return self.count_writes(account, SAVE_MARKER);
        }
        let mut due = self.now.max(resume.scheduled_until);
        for id in step {
            due = due + lease::PACING_INTERVAL;
            self.make_due(id, due);
            self.write_delivery(id, MAKE_DUE);
        }
        self.webhooks[account].resume = Some(Resume {
            scheduled_until: due,
            ..resume
        });
        self.count_writes(account, SAVE_MARKER);
    }

    fn advance_probe(&mut self, account: usize, marker: Marker) {
        let webhook = &mut self.webhooks[account];
        let health = webhook.health;
        match ProbeStep::new(Some((WebhookStatus::Active, &health)), self.now) {
            ProbeStep::Skip => return,
            ProbeStep::Delete => webhook.marker = None,
            ProbeStep::Resume => {
                webhook.marker = None;
                webhook.resume = Some(Resume::new(self.now));
            }
            ProbeStep::MakeDue => {
                let older = webhook.paused.range(..marker.cursor.unwrap_or(usize::MAX));
                let next = older.last().or(webhook.paused.last()).copied();
                let interval = match next {
                    Some(_) => probe_interval(health.probe_count),
                    None => MAX_PROBE_INTERVAL,
                };
                webhook.marker = Some(Marker {
                    next_probe_at: self.now + interval,
                    cursor: next,
                });
                if let Some(id) = next {
                    self.make_due(id, self.now);
                    self.write_delivery(id, MAKE_DUE);
                }
            }
        }
        self.count_writes(account, SAVE_MARKER);
    }
}
