//! A limit on the attempts that a process makes at the same time.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// How long an attempt waits for its slot. It is shorter than a batch of events waits for an
/// attempt.
pub const SLOT_WAIT: Duration = Duration::from_millis(500);

/// The slots for attempts. Clones share them.
#[derive(Clone, Debug)]
pub struct AttemptSlots(Arc<Semaphore>);

impl AttemptSlots {
    /// Makes this many slots.
    pub fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))))
    }

    /// Takes a slot until the permit is dropped. `None` if there is none within [`SLOT_WAIT`].
    pub(super) async fn acquire(&self) -> Option<OwnedSemaphorePermit> {
        let permit = timeout(SLOT_WAIT, self.0.clone().acquire_owned()).await;
        permit.ok()?.ok()
    }
}

impl Default for AttemptSlots {
    /// No limit: another one bounds the attempts.
    fn default() -> Self {
        Self::new(Semaphore::MAX_PERMITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn full_slots_refuse() {
        let slots = AttemptSlots::new(1);
        let permit = slots.acquire().await;
        assert!(permit.is_some());
        assert!(slots.acquire().await.is_none());
        drop(permit);
        assert!(slots.acquire().await.is_some());
    }
}
