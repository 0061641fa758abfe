//! The sweep: moves what falls due in the next minutes to the queue, and finds what was left behind.

use super::Dispatcher;
use crate::{
    bounded,
    clock::Deadline,
    delivery::due::{GRACE, LEASE, QUEUE_REACH},
    queue::Timer,
    store::{Result, claims::Due, replays::STEP},
};

/// How many due deliveries are taken from each shard of the index at a time.
const PAGE: usize = 100;
/// How many deliveries are taken for the queue at the same time.
const CONCURRENT: usize = 32;

impl Dispatcher {
    /// Sends a message for each delivery whose time for a look has come, until there are no more or time is up; what is left
    /// is found by the next sweep. Returns how many were sent.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn sweep(&self, deadline: Deadline) -> Result<usize> {
        let mut sent = 0;
        while !deadline.remaining().is_zero() {
            let due = self.store.due(self.clock.now(), PAGE).await?;
            let moved = self.enqueue(due, false).await?;
            sent += moved;
            if moved == 0 {
                break;
            }
        }
        for unparking in self.store.unparking().await? {
            let due = self.store.unpark(&unparking, self.clock.now()).await?;
            sent += due.len();
            self.queue.set(due.into_iter().map(Timer::from).collect(), self.clock.now()).await;
        }
        for replaying in self.store.replaying().await? {
            let due = self.store.step_replay(&replaying, STEP, self.clock.now(), self.retention).await?;
            sent += due.len();
            self.queue.set(due.into_iter().map(Timer::from).collect(), self.clock.now()).await;
        }
        if sent > 0 {
            tracing::info!(deliveries = sent, "sweep");
        }
        self.gates.forget_idle(self.clock.now());
        Ok(sent)
    }

    /// Takes over what another process of the same tables left behind, which must be known to be gone: everything that was in
    /// its queue or in flight.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn take_over(&self) -> Result<usize> {
        let now = self.clock.now();
        let due = self.store.due(now + QUEUE_REACH + GRACE, usize::MAX).await?;
        let taken = due.len();
        // What may be claimed must be changed in the table; of the rest it is enough to set the timer again.
        let (claimed, queued): (Vec<_>, Vec<_>) = due.into_iter().partition(|due| due.is_looked_at_by(now + LEASE));
        self.queue.set(queued.into_iter().map(Timer::from).collect(), now).await;
        self.enqueue(claimed, true).await?;
        Ok(taken)
    }

    async fn enqueue(&self, due: Vec<Due>, take_over: bool) -> Result<usize> {
        let now = self.clock.now();
        let enqueue = due
            .into_iter()
            .map(|due| async move { Ok(self.store.enqueue(&due, now, take_over).await?.then(|| Timer::from(due))) });
        // The table first, the message second: a message that is lost in between is sent again by a later sweep.
        let (mut timers, mut failed) = (Vec::new(), None);
        for taken in bounded::join(enqueue.collect(), CONCURRENT).await {
            match taken {
                Ok(timer) => timers.extend(timer),
                Err(error) => failed = Some(error),
            }
        }
        // What was taken is sent, whatever became of the others.
        let sent = timers.len();
        self.queue.set(timers, now).await;
        failed.map_or(Ok(sent), Err)
    }
}
