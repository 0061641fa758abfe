//! The sweep: sends messages for deliveries that are due soon or were left behind.
//!
//! The shards of the due index are read concurrently, each with a cursor that advances past
//! whatever was read. The table is written before the message is sent, so that a repeated sweep
//! sends no second message; if the message is not sent, the delivery is left to the next sweep.

use std::time::Duration;

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};

use super::{
    fair_queue::{FairQueue, LaneKey, Offer},
    in_flight::InFlightLimiter,
};
use crate::{
    clock::{Clock, Deadline, Stopwatch},
    error_chain::error_chain,
    metrics::{Metrics, SweepStats},
    queue::scheduler::{RetryScheduler, SWEEP_REQUEST_TIME_LIMIT},
    store::{
        Error, Result, Store, WriteOutcome,
        due_index::{DueCursor, DueDelivery, DuePage},
        key_schema::DUE_SHARDS,
    },
};
use nano_webhooks_core::delivery::scheduled_retry::ScheduledRetry;

/// How long before its deadline a sweep starts nothing more: the time of a write, of sending
/// messages, and of leaving those that were not sent to the next sweep, less the reserve of an
/// invocation.
const FINISH_TIME: Duration = Duration::from_secs(4);
/// How many due deliveries of a shard are read per request.
const PAGE_SIZE: usize = 100;
/// How many due deliveries are marked as enqueued at the same time.
const CONCURRENT_MARKS: usize = 64;
/// How many deliveries are announced to the queue in a call.
const MESSAGES_PER_SEND: usize = 80;
/// How many of these calls run at the same time.
const CONCURRENT_SENDS: usize = 4;
/// How many marked deliveries wait for their messages at most. Nothing more is marked until
/// messages are sent, so that little is left to do again if the queue is unavailable.
const MAX_OUTBOX: usize = 640;
/// How many webhooks with refused writes a sweep names in the log.
const MAX_REFUSAL_LINES: usize = 100;

/// Sweeps the due index.
#[derive(Clone, Copy)]
pub(super) struct Sweeper<'a> {
    pub store: &'a Store,
    pub scheduler: RetryScheduler<'a>,
    pub limiter: &'a InFlightLimiter,
    pub clock: &'a Clock,
    pub metrics: &'a Metrics,
}

impl Sweeper<'_> {
    /// Sends a message for each delivery that is due soon, until none is left or the deadline is
    /// near; the next sweep continues. Returns the number of messages.
    ///
    /// A delivery whose write is refused is counted, and does not end the sweep.
    ///
    /// # Errors
    /// If a shard of the due index could not be read, after everything else was done.
    pub(super) async fn sweep(self, deadline: Deadline) -> Result<usize> {
        let mut run = SweepRun::new(self, deadline);
        run.run().await;
        self.limiter.evict_idle(self.clock.now());
        run.report();
        match run.read_error {
            Some(error) => Err(error),
            None => Ok(run.sent),
        }
    }

    async fn read_page(self, shard: u8, cursor: Option<DueCursor>) -> TaskResult {
        let now = self.clock.now();
        let index = self.store.due_index();
        let page = index.query_page(shard, now, cursor, PAGE_SIZE).await;
        TaskResult::Read { shard, page }
    }

    async fn mark_enqueued(self, due: DueDelivery) -> TaskResult {
        let now = self.clock.now();
        let outcome = self.store.due_index().mark_enqueued(&due, now).await;
        TaskResult::Marked { due, outcome }
    }

    async fn send(self, retries: Vec<ScheduledRetry>) -> TaskResult {
        let count = retries.len();
        let queue = self.scheduler.queue;
        let unsent = queue.send(retries, self.clock.now()).await;
        TaskResult::Sent { count, unsent }
    }
}

/// The result of a request of a sweep.
enum TaskResult {
    Read {
        shard: u8,
        page: Result<DuePage>,
    },
    Marked {
        due: DueDelivery,
        outcome: Result<WriteOutcome>,
    },
    Sent {
        count: usize,
        unsent: Vec<ScheduledRetry>,
    },
}

/// How far a shard of the due index was read.
enum ShardPosition {
    /// The next page starts here.
    At(Option<DueCursor>),
    /// A page is being read.
    Reading,
    End,
}

/// One sweep.
struct SweepRun<'a> {
    sweeper: Sweeper<'a>,
    deadline: Deadline,
    elapsed: Stopwatch,
    shards: Vec<ShardPosition>,
    due: FairQueue,
    tasks: FuturesUnordered<BoxFuture<'a, TaskResult>>,
    marks_in_flight: usize,
    sends_in_flight: usize,
    /// Deliveries that are marked as enqueued and wait for their messages.
    outbox: Vec<ScheduledRetry>,
    /// Deliveries that are marked as enqueued and have no message.
    unsent: Vec<ScheduledRetry>,
    queue_is_unavailable: bool,
    /// Whether deliveries of this pass found their lane full.
    has_left_over: bool,
    /// How many deliveries this pass marked as enqueued.
    marked_in_pass: usize,
    sent: usize,
    lag: Duration,
    pages_read: usize,
    read_error: Option<Error>,
    /// The last reason why a write was refused.
    refusal: Option<Error>,
}

impl<'a> SweepRun<'a> {
    fn new(sweeper: Sweeper<'a>, deadline: Deadline) -> Self {
        Self {
            sweeper,
            deadline,
            elapsed: Stopwatch::start(),
            shards: start_of_shards(),
            due: FairQueue::default(),
            tasks: FuturesUnordered::new(),
            marks_in_flight: 0,
            sends_in_flight: 0,
            outbox: Vec::new(),
            unsent: Vec::new(),
            queue_is_unavailable: false,
            has_left_over: false,
            marked_in_pass: 0,
            sent: 0,
            lag: Duration::ZERO,
            pages_read: 0,
            read_error: None,
            refusal: None,
        }
    }

    async fn run(&mut self) {
        loop {
            if !self.is_stopping() {
                self.start_reads();
                self.start_marks();
            }
            self.start_sends();
            if !self.tasks.is_empty() {
                self.wait().await;
                continue;
            }
            if self.is_stopping() {
                break;
            }
            if let Some(rest_ends) = self.due.next_rest_ends() {
                sleep(rest_ends.saturating_sub(self.elapsed.elapsed())).await;
            } else if !self.start_next_pass() {
                break;
            }
        }
        let Sweeper {
            scheduler, clock, ..
        } = self.sweeper;
        let now = clock.now();
        let deadline = Deadline::from_now(SWEEP_REQUEST_TIME_LIMIT).max(self.deadline);
        scheduler.request_sweep(&self.unsent, now, deadline).await;
    }

    /// Whether only what was started is finished.
    fn is_stopping(&self) -> bool {
        self.queue_is_unavailable || self.deadline.remaining() <= FINISH_TIME
    }

    fn start_reads(&mut self) {
        for (shard, position) in (0..DUE_SHARDS).zip(&mut self.shards) {
            if !self.due.has_room() {
                return;
            }
            if let ShardPosition::At(cursor) = position {
                let read = self.sweeper.read_page(shard, cursor.take());
                self.tasks.push(Box::pin(read));
                *position = ShardPosition::Reading;
            }
        }
    }

    fn start_marks(&mut self) {
        while self.marks_in_flight < CONCURRENT_MARKS
            && self.marks_in_flight + self.outbox.len() < MAX_OUTBOX
            && let Some(due) = self.due.take(self.elapsed.elapsed())
        {
            self.tasks.push(Box::pin(self.sweeper.mark_enqueued(due)));
            self.marks_in_flight += 1;
        }
    }

    /// Sends messages once there are enough for a call, or no more will follow.
    fn start_sends(&mut self) {
        if self.queue_is_unavailable {
            self.unsent.append(&mut self.outbox);
        }
        while self.sends_in_flight < CONCURRENT_SENDS
            && !self.outbox.is_empty()
            && (self.outbox.len() >= MESSAGES_PER_SEND || self.marks_in_flight == 0)
        {
            let count = self.outbox.len().min(MESSAGES_PER_SEND);
            let retries = self.outbox.drain(..count).collect();
            self.tasks.push(Box::pin(self.sweeper.send(retries)));
            self.sends_in_flight += 1;
        }
    }

    /// Waits for a result, or for the end of a rest.
    async fn wait(&mut self) {
        let result = match self.due.next_rest_ends() {
            Some(rest_ends) => {
                let rest = rest_ends.saturating_sub(self.elapsed.elapsed());
                timeout(rest, self.tasks.next()).await.ok().flatten()
            }
            None => self.tasks.next().await,
        };
        match result {
            Some(TaskResult::Read { shard, page }) => self.handle_page(shard, page),
            Some(TaskResult::Marked { due, outcome }) => self.handle_mark(due, outcome),
            Some(TaskResult::Sent { count, unsent }) => self.handle_send(count, unsent),
            None => {}
        }
    }

    /// The cursor advances whatever becomes of the page, so that deliveries which have changed
    /// since the index listed them do not hold up the shard.
    fn handle_page(&mut self, shard: u8, page: Result<DuePage>) {
        let position = &mut self.shards[usize::from(shard)];
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                *position = ShardPosition::End;
                self.read_error = Some(error);
                return;
            }
        };
        self.pages_read += 1;
        *position = match page.next {
            Some(next) => ShardPosition::At(Some(next)),
            None => ShardPosition::End,
        };
        let now = self.sweeper.clock.now();
        for due in page.due {
            self.lag = self.lag.max(due.sweep_lag(now));
            if self.due.offer(due, self.elapsed.elapsed()) == Offer::LeftOver {
                self.has_left_over = true;
            }
        }
    }

    fn handle_mark(&mut self, due: DueDelivery, outcome: Result<WriteOutcome>) {
        self.marks_in_flight -= 1;
        let elapsed = self.elapsed.elapsed();
        match outcome {
            Ok(outcome) => {
                self.due.complete(&due, elapsed);
                if outcome.is_applied() {
                    self.marked_in_pass += 1;
                    self.outbox.push(ScheduledRetry::from(due));
                }
            }
            Err(error) => {
                self.due.refuse(&due, elapsed);
                self.refusal = Some(error);
            }
        }
    }

    fn handle_send(&mut self, count: usize, unsent: Vec<ScheduledRetry>) {
        self.sends_in_flight -= 1;
        self.queue_is_unavailable |= unsent.len() == count;
        self.sent += count - unsent.len();
        self.unsent.extend(unsent);
    }

    /// Reads the due index once more for the deliveries that found their lane full. Returns whether
    /// there is a reason to.
    fn start_next_pass(&mut self) -> bool {
        if !self.has_left_over || self.marked_in_pass == 0 {
            return false;
        }
        self.shards = start_of_shards();
        self.due.start_pass();
        self.has_left_over = false;
        self.marked_in_pass = 0;
        true
    }

    /// Reports what the sweep did. A sweep that could not read anything reports no metrics, because
    /// it does not know what is due.
    fn report(&self) {
        if self.sent > 0 {
            tracing::info!(deliveries = self.sent, "Sweep completed");
        }
        let refused = self.due.refused();
        self.log_refusals(&refused);
        if self.pages_read > 0 {
            self.sweeper.metrics.record_sweep(SweepStats {
                due: self.sent,
                lag: self.lag,
                refused: refused.iter().map(|(_, count)| count).sum(),
            });
        }
    }

    fn log_refusals(&self, refused: &[(LaneKey, usize)]) {
        let table = self.sweeper.store.due_index().table_name();
        let error = self.refusal.as_ref().map(|error| error_chain(error));
        let (named, others) = refused.split_at(refused.len().min(MAX_REFUSAL_LINES));
        for (key, count) in named {
            tracing::warn!(
                account = key.account.as_str(),
                webhook = %key.webhook,
                table,
                refused = count,
                error,
                "The table refused writes for due deliveries of a webhook; \
                 the next sweep repeats them"
            );
        }
        if !others.is_empty() {
            tracing::warn!(
                webhooks = others.len(),
                table,
                "The table refused writes for due deliveries of more webhooks; \
                 the next sweep repeats them"
            );
        }
    }
}

fn start_of_shards() -> Vec<ShardPosition> {
    let shards = 0..DUE_SHARDS;
    shards.map(|_| ShardPosition::At(None)).collect()
}
