//! Advances the jobs that markers name: resumes of paused deliveries, and replays.
//!
//! Runs every minute in an invocation of its own, so that a backlog of due deliveries does not take
//! its time. Each job makes one step, which paces the endpoint.

use std::time::Duration;

use crate::{
    clock::{Clock, Deadline},
    error_chain::error_chain,
    queue::RetryQueue,
    random,
    store::{
        Result, Store,
        due_index::DueDelivery,
        replays::{ReplayKey, STEP_SIZE},
        resumes::ResumeJob,
    },
};
use nano_webhooks_core::{account_id::AccountId, delivery::scheduled_retry::ScheduledRetry};

/// The most jobs of a kind that an invocation lists.
const MAX_JOBS: usize = 2_000;

/// Advances resumes and replays.
#[derive(Clone, Copy)]
pub(super) struct Advancer<'a> {
    pub store: &'a Store,
    pub queue: &'a RetryQueue,
    pub clock: &'a Clock,
    pub retention: Duration,
}

/// A job that a marker names.
enum Job {
    Resume(ResumeJob),
    Replay(ReplayKey),
}

impl Job {
    const fn account(&self) -> &AccountId {
        match self {
            Self::Resume(job) => &job.account,
            Self::Replay(replay) => &replay.account,
        }
    }
}

impl Advancer<'_> {
    /// Runs one step of each job until the deadline. Returns the number of deliveries that became
    /// due.
    ///
    /// # Errors
    /// If a list of jobs cannot be read.
    pub(super) async fn advance(self, deadline: Deadline) -> Result<usize> {
        let mut jobs = self.list_jobs().await?;
        // In random order, so that an account with many jobs cannot starve the others.
        jobs.sort_by_cached_key(|_| random::bytes::<8>());
        let mut sent = 0;
        for job in jobs {
            if deadline.remaining().is_zero() {
                break;
            }
            sent += self.run_step(&job, deadline).await;
        }
        if sent > 0 {
            tracing::info!(deliveries = sent, "Resumes and replays advanced");
        }
        Ok(sent)
    }

    async fn list_jobs(self) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        let resumes = self.store.resumes().list(MAX_JOBS).await?;
        jobs.extend(resumes.into_iter().map(Job::Resume));
        let replays = self.store.replays().list_active(MAX_JOBS).await?;
        jobs.extend(replays.into_iter().map(Job::Replay));
        Ok(jobs)
    }

    /// Runs a step and sends messages for what it made due. A failed step is logged, so that the
    /// other jobs continue; the next invocation repeats it.
    async fn run_step(self, job: &Job, deadline: Deadline) -> usize {
        let now = self.clock.now();
        let step = match job {
            Job::Resume(resume) => self.store.resumes().run_step(resume, now).await,
            Job::Replay(replay) => {
                self.store
                    .replays()
                    .run_step(replay, STEP_SIZE, now, self.retention, deadline)
                    .await
            }
        };
        match step {
            Ok(due) => {
                let sent = due.len();
                self.schedule(due).await;
                sent
            }
            Err(error) => {
                tracing::error!(
                    account = job.account().as_str(),
                    error = error_chain(&error),
                    "Could not advance a resume or a replay; the step is repeated in a minute"
                );
                0
            }
        }
    }

    async fn schedule(self, due: Vec<DueDelivery>) {
        let retries = due.into_iter().map(ScheduledRetry::from).collect();
        self.queue.schedule(retries, self.clock.now()).await;
    }
}
