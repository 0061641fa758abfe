//! Limits on the lookups that run at the same time.
//!
//! A lookup at a dead name server takes its whole time. So that the dead names of some accounts do
//! not keep those of others from being looked up, an account with few lookups takes the slot of one
//! with many.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nano_webhooks_core::account_id::AccountId;
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

use crate::clock::Stopwatch;

/// The most lookups in progress. Each takes up to eight sockets: a question for IPv4 and one for
/// IPv6, both repeated up to three times.
pub const MAX_LOOKUPS: usize = 32;
/// The most lookups of one account in progress.
pub const MAX_LOOKUPS_PER_ACCOUNT: usize = 8;
/// How long a lookup waits for a slot. It is shorter than a batch of events waits for an attempt.
pub const SLOT_WAIT: Duration = Duration::from_millis(500);

/// The slots for lookups. Clones share them.
#[derive(Clone)]
pub(super) struct LookupSlots(Arc<SharedSlots>);

struct SharedSlots {
    max: usize,
    table: Mutex<SlotTable>,
    released: Notify,
}

#[derive(Default)]
struct SlotTable {
    /// The slots in use, oldest first.
    in_use: Vec<SlotInUse>,
    acquired: u64,
}

struct SlotInUse {
    number: u64,
    account: AccountId,
    since: Stopwatch,
    revoke: oneshot::Sender<()>,
}

/// The right to one lookup. It ends when the slot is dropped or revoked.
pub(super) struct LookupSlot {
    number: u64,
    shared: Arc<SharedSlots>,
    revoked: oneshot::Receiver<()>,
}

impl LookupSlot {
    /// Waits until the slot is revoked. The lookup must end then.
    pub(super) async fn revoked(&mut self) {
        let _ = (&mut self.revoked).await;
    }
}

impl LookupSlots {
    /// Makes this many slots, at most [`MAX_LOOKUPS`].
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(SharedSlots {
            max: max.min(MAX_LOOKUPS),
            table: Mutex::default(),
            released: Notify::new(),
        }))
    }

    /// Takes a slot for an account. `None` if there is none within [`SLOT_WAIT`].
    pub(super) async fn acquire(&self, account: &AccountId) -> Option<LookupSlot> {
        match timeout(SLOT_WAIT, self.acquire_released(account)).await {
            Ok(slot) => Some(slot),
            // A slot may be old enough to be revoked by now.
            Err(_) => self.try_acquire(account),
        }
    }

    async fn acquire_released(&self, account: &AccountId) -> LookupSlot {
        loop {
            let mut released = pin!(self.0.released.notified());
            released.as_mut().enable();
            if let Some(slot) = self.try_acquire(account) {
                return slot;
            }
            released.await;
        }
    }

    fn try_acquire(&self, account: &AccountId) -> Option<LookupSlot> {
        let mut table = self.0.lock();
        let of_account = table.count(account);
        if of_account >= MAX_LOOKUPS_PER_ACCOUNT {
            return None;
        }
        if table.in_use.len() >= self.0.max {
            let index = table.find_revocable(of_account)?;
            // The receiver is dropped only when the lookup has ended.
            let _ = table.in_use.remove(index).revoke.send(());
        }
        let (revoke, revoked) = oneshot::channel();
        table.acquired += 1;
        let number = table.acquired;
        table.in_use.push(SlotInUse {
            number,
            account: account.clone(),
            since: Stopwatch::start(),
            revoke,
        });
        Some(LookupSlot {
            number,
            shared: self.0.clone(),
            revoked,
        })
    }
}

impl SlotTable {
    fn count(&self, account: &AccountId) -> usize {
        let slots = self.in_use.iter();
        slots.filter(|slot| slot.account == *account).count()
    }

    /// The slot that is revoked for an account that has `of_account` slots: the oldest one of the
    /// account with the most, if that has more than this account would have. An account without a
    /// slot may also have the oldest of all, if others have waited for it long enough.
    fn find_revocable(&self, of_account: usize) -> Option<usize> {
        let mut counts: HashMap<&AccountId, usize> = HashMap::new();
        for slot in &self.in_use {
            *counts.entry(&slot.account).or_default() += 1;
        }
        let (richest, most) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        if most > of_account + 1 {
            let mut slots = self.in_use.iter();
            return slots.position(|slot| slot.account == *richest);
        }
        let oldest = self.in_use.first()?;
        (of_account == 0 && oldest.since.elapsed() >= SLOT_WAIT).then_some(0)
    }
}

impl SharedSlots {
    fn lock(&self) -> MutexGuard<'_, SlotTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LookupSlot {
    fn drop(&mut self) {
        let mut table = self.shared.lock();
        table.in_use.retain(|slot| slot.number != self.number);
        drop(table);
        self.shared.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn account(number: usize) -> AccountId {
        AccountId::parse(&format!("account-{number}")).unwrap()
    }

    /// Takes `count` slots for an account.
    fn take(slots: &LookupSlots, account: &AccountId, count: usize) -> Vec<LookupSlot> {
        let taken = (0..count).map_while(|_| slots.try_acquire(account));
        taken.collect()
    }

    fn is_revoked(slot: &mut LookupSlot) -> bool {
        slot.revoked().now_or_never().is_some()
    }

    #[test]
    fn account_has_limit() {
        let slots = LookupSlots::new(MAX_LOOKUPS);
        let taken = take(&slots, &account(1), usize::MAX);
        assert_eq!(taken.len(), MAX_LOOKUPS_PER_ACCOUNT);
    }

    /// Accounts that take all they can leave an equal share to each one that comes later.
    #[test]
    fn later_accounts_have_equal_share() {
        let slots = LookupSlots::new(MAX_LOOKUPS);
        let mut taken = Vec::new();
        for number in 0..MAX_LOOKUPS {
            taken.extend(take(&slots, &account(number), usize::MAX));
        }
        taken.retain_mut(|slot| !is_revoked(slot));
        assert_eq!(taken.len(), MAX_LOOKUPS);
        for number in 0..MAX_LOOKUPS {
            assert_eq!(slots.0.lock().count(&account(number)), 1, "{number}");
        }
    }

    /// The oldest slot of the account with the most is revoked.
    #[test]
    fn oldest_slot_of_richest_account_is_revoked() {
        let slots = LookupSlots::new(MAX_LOOKUPS);
        let mut rich = take(&slots, &account(0), MAX_LOOKUPS_PER_ACCOUNT);
        let mut others = Vec::new();
        for number in 1..=6 {
            others.extend(take(&slots, &account(number), 4));
        }
        assert!(slots.try_acquire(&account(7)).is_some());
        assert!(is_revoked(&mut rich[0]) && !is_revoked(&mut rich[1]));
        assert!(others.iter_mut().all(|slot| !is_revoked(slot)));
    }

    /// With one slot for each account, a further account takes the oldest slot after a while.
    #[tokio::test]
    async fn old_slot_is_revoked_for_account_without_slot() {
        let slots = LookupSlots::new(MAX_LOOKUPS);
        let mut taken = Vec::new();
        for number in 0..MAX_LOOKUPS {
            taken.extend(take(&slots, &account(number), 1));
        }
        assert!(slots.try_acquire(&account(MAX_LOOKUPS)).is_none());
        assert!(slots.acquire(&account(0)).await.is_none());
        let acquired = slots.acquire(&account(MAX_LOOKUPS)).await;
        assert!(acquired.is_some() && is_revoked(&mut taken[0]));
    }

    /// A waiting account takes the slot that is released.
    #[tokio::test]
    async fn released_slot_is_taken() {
        let slots = LookupSlots::new(MAX_LOOKUPS);
        let mut taken = take(&slots, &account(1), usize::MAX);
        let waiting = account(1);
        let mut next = pin!(slots.acquire_released(&waiting));
        assert!(next.as_mut().now_or_never().is_none());
        taken.pop();
        let slot = next.await;
        drop((slot, taken));
        assert!(slots.0.lock().in_use.is_empty());
    }
}
