//! Advances the jobs that markers name: resumes of paused deliveries, replays, and probes of
//! unreachable endpoints.
//!
//! Runs every minute in an invocation of its own, so that a backlog of due deliveries does not take
//! its time. The jobs take turns, so that each advances every minute, and each schedules a minute's
//! deliveries, which paces the endpoint.

use std::{collections::VecDeque, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};

use crate::{
    clock::{Clock, Deadline},
    error_chain::error_chain,
    queue::scheduler::{RetryScheduler, SendOutcome},
    random,
    store::{
        Result, Store,
        due_index::DueDelivery,
        probes::DueProbe,
        replays::{READS_PER_MINUTE, ReplayKey, ReplayProgress},
        resumes::ResumeJob,
    },
};
use nano_webhooks_core::{
    account_id::AccountId, delivery::scheduled_retry::ScheduledRetry, webhook::WebhookId,
};

/// The most jobs of a kind that an invocation lists.
const MAX_JOBS: usize = 10_000;
/// How many deliveries of a replay a step reads, before it is the turn of the other jobs.
const READS_PER_STEP: usize = 48;
/// How many jobs run their step at the same time.
const CONCURRENT_JOBS: usize = 32;
/// How long before the deadline no step goes on: the time of a request to a table, of sending
/// messages, and of leaving those that were not sent to the next sweep, less the reserve of an
/// invocation.
const FINISH_TIME: Duration = Duration::from_secs(4);

/// Advances resumes, replays and probes.
#[derive(Clone, Copy)]
pub(super) struct Advancer<'a> {
    pub store: &'a Store,
    pub scheduler: RetryScheduler<'a>,
    pub clock: &'a Clock,
}

/// A job that a marker names.
enum Job {
    Resume(ResumeJob),
    Replay {
        key: ReplayKey,
        /// How many more deliveries are read in this run.
        reads_left: usize,
    },
    Probe(DueProbe),
}

/// The result of a step.
struct StepResult {
    /// How many deliveries became due.
    scheduled: usize,
    /// What is left of the job for this run.
    next: Option<Job>,
}

impl Job {
    const fn webhook(&self) -> WebhookId {
        match self {
            Self::Resume(job) => job.webhook,
            Self::Replay { key, .. } => key.webhook,
            Self::Probe(probe) => probe.webhook,
        }
    }

    const fn account(&self) -> &AccountId {
        match self {
            Self::Resume(job) => &job.account,
            Self::Replay { key, .. } => &key.account,
            Self::Probe(probe) => &probe.account,
        }
    }
}

impl Advancer<'_> {
    /// Advances each job by a minute's deliveries, until the deadline is near. Returns the number
    /// of deliveries that became due.
    ///
    /// # Errors
    /// If a list of jobs cannot be read.
    pub(super) async fn advance(self, deadline: Deadline) -> Result<usize> {
        let deadline = Deadline::from_now(deadline.remaining().saturating_sub(FINISH_TIME));
        let mut jobs = self.list_jobs().await?;
        // In random order, so that an account with many jobs cannot starve the others.
        jobs.sort_by_cached_key(|_| random::bytes::<8>());
        let mut waiting = VecDeque::from(jobs);
        let mut running = FuturesUnordered::new();
        let mut scheduled = 0;
        loop {
            while running.len() < CONCURRENT_JOBS
                && !deadline.remaining().is_zero()
                && let Some(job) = waiting.pop_front()
            {
                running.push(self.run_step(job, deadline));
            }
            let Some(step) = running.next().await else {
                break;
            };
            scheduled += step.scheduled;
            waiting.extend(step.next);
        }
        if scheduled > 0 {
            tracing::info!(
                deliveries = scheduled,
                "Resumes, replays and probes advanced"
            );
        }
        Ok(scheduled)
    }

    async fn list_jobs(self) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        let resumes = self.store.resumes().list(MAX_JOBS).await?;
        jobs.extend(resumes.into_iter().map(Job::Resume));
        for key in self.store.replays().list_active(MAX_JOBS).await? {
            let reads_left = READS_PER_MINUTE;
            jobs.push(Job::Replay { key, reads_left });
        }
        let probes = self.store.probes().list_due(self.clock.now(), MAX_JOBS);
        jobs.extend(probes.await?.into_iter().map(Job::Probe));
        Ok(jobs)
    }

    /// Runs a step and sends messages for what it made due. A failed step is logged, so that the
    /// other jobs continue; the next run repeats it.
    async fn run_step(self, job: Job, deadline: Deadline) -> StepResult {
        let mut due = Vec::new();
        let next = match self.schedule(&job, deadline, &mut due).await {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(
                    account = job.account().as_str(),
                    webhook = %job.webhook(),
                    error = error_chain(&error),
                    "Could not advance a resume, a replay or a probe; \
                     the step is repeated in a minute"
                );
                None
            }
        };
        let scheduled = due.len();
        let retries = due.into_iter().map(ScheduledRetry::from).collect();
        let now = self.clock.now();
        match self.scheduler.schedule(retries, now).await {
            SendOutcome::AllSent => StepResult { scheduled, next },
            // Each further step would only leave more messages to the next sweep.
            SendOutcome::SomeUnsent => StepResult {
                scheduled,
                next: None,
            },
        }
    }

    /// Makes deliveries due and adds them to `due`. Returns what is left of the job for this run.
    async fn schedule(
        self,
        job: &Job,
        deadline: Deadline,
        due: &mut Vec<DueDelivery>,
    ) -> Result<Option<Job>> {
        let now = self.clock.now();
        match job {
            Job::Resume(resume) => {
                let resumes = self.store.resumes();
                resumes.run_step(resume, now, deadline, due).await?;
                Ok(None)
            }
            Job::Probe(probe) => {
                due.extend(self.store.probes().run_step(probe, now).await?);
                Ok(None)
            }
            Job::Replay { key, reads_left } => {
                let limit = READS_PER_STEP.min(*reads_left);
                let replays = self.store.replays();
                let progress = replays.run_step(key, limit, now, deadline, due).await?;
                let reads_left = reads_left - limit;
                if progress == ReplayProgress::Settled || reads_left == 0 {
                    return Ok(None);
                }
                let key = key.clone();
                Ok(Some(Job::Replay { key, reads_left }))
            }
        }
    }
}
