//! Resolves host names. Nothing is cached, so that a changed record takes effect at once.

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};
use nano_webhooks_core::{account_id::AccountId, delivery::failure::Failure};
use tokio::time::timeout;

use super::{
    local_failure::LocalFailure,
    lookup_slots::{LookupSlot, LookupSlots, MAX_LOOKUPS},
    system_resolver::{LookupResult, SystemResolver},
};

/// The longest time of a lookup: all that an attempt has to connect.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A function that looks up a name.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, LookupResult> + Send + Sync>;

type SharedLookup = Shared<BoxFuture<'static, LookupResult>>;

/// Resolves host names, within limits for each account and in all.
///
/// Attempts of an account share a lookup of the same name while it runs. It ends when none of them
/// waits for it any longer.
#[derive(Clone)]
pub struct Resolver {
    lookup: Lookup,
    slots: LookupSlots,
    running: RunningLookups,
}

/// The lookups that attempts can join, by account and name. Each has a number, because one that has
/// ended may be replaced before it is removed.
#[derive(Clone, Default)]
struct RunningLookups(Arc<Mutex<LookupTable>>);

#[derive(Default)]
struct LookupTable {
    lookups: HashMap<LookupKey, (u64, WeakShared<BoxFuture<'static, LookupResult>>)>,
    started: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct LookupKey {
    account: AccountId,
    name: String,
}

/// A lookup in progress. Dropping it ends the lookup, unless others have joined it.
pub struct RunningLookup(SharedLookup);

impl Future for RunningLookup {
    type Output = LookupResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<LookupResult> {
        self.0.poll_unpin(context)
    }
}

impl Resolver {
    /// Makes a resolver that looks names up as the system does, at most `max_lookups` at the same
    /// time and at most 32.
    pub fn system(max_lookups: usize) -> Self {
        let system = Arc::new(SystemResolver::new());
        let lookup: Lookup = Arc::new(move |name| {
            let system = system.clone();
            async move { system.lookup(&name).await }.boxed()
        });
        Self {
            slots: LookupSlots::new(max_lookups),
            ..Self::new(lookup)
        }
    }

    /// Makes a resolver that calls `lookup`.
    pub fn new(lookup: Lookup) -> Self {
        Self {
            lookup,
            slots: LookupSlots::new(MAX_LOOKUPS),
            running: RunningLookups::default(),
        }
    }

    /// Starts to look up a name for an account, or joins the lookup that another attempt started.
    ///
    /// # Errors
    /// If there is no slot for the lookup.
    pub async fn start(
        &self,
        account: &AccountId,
        name: &str,
    ) -> Result<RunningLookup, LocalFailure> {
        let key = LookupKey {
            account: account.clone(),
            name: name.to_owned(),
        };
        if let Some(running) = self.running.find(&key) {
            return Ok(RunningLookup(running));
        }
        let lookup = match self.slots.acquire(account).await {
            Some(slot) => Some(self.join_or_start(key, slot)),
            None => self.running.find(&key),
        };
        lookup.map(RunningLookup).ok_or(LocalFailure::NoLookupSlot)
    }

    /// Another attempt may have started the lookup while this one waited for its slot.
    fn join_or_start(&self, key: LookupKey, slot: LookupSlot) -> SharedLookup {
        let mut table = self.running.lock();
        if let Some((_, running)) = table.lookups.get(&key)
            && let Some(running) = running.upgrade()
        {
            return running;
        }
        table.started += 1;
        let entry = LookupEntry {
            key: key.clone(),
            number: table.started,
            running: self.running.clone(),
        };
        let lookup = (self.lookup)(key.name.clone());
        let lookup = run_lookup(lookup, slot, entry).boxed().shared();
        let joinable = lookup.downgrade().expect("the lookup has not been polled");
        let number = table.started;
        table.lookups.insert(key, (number, joinable));
        lookup
    }
}

async fn run_lookup(
    lookup: BoxFuture<'static, LookupResult>,
    mut slot: LookupSlot,
    _entry: LookupEntry,
) -> LookupResult {
    tokio::select! {
        biased;
        result = timeout(LOOKUP_TIMEOUT, lookup) => {
            result.unwrap_or(Err(Failure::NameServer.into()))
        }
        () = slot.revoked() => Err(LocalFailure::NoLookupSlot.into()),
    }
}

impl RunningLookups {
    fn find(&self, key: &LookupKey) -> Option<SharedLookup> {
        let table = self.lock();
        let (_, running) = table.lookups.get(key)?;
        running.upgrade()
    }

    fn lock(&self) -> MutexGuard<'_, LookupTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a lookup among those that can be joined. Dropping it removes the lookup.
struct LookupEntry {
    key: LookupKey,
    number: u64,
    running: RunningLookups,
}

impl Drop for LookupEntry {
    fn drop(&mut self) {
        let mut table = self.running.lock();
        if let Some((number, _)) = table.lookups.get(&self.key)
            && *number == self.number
        {
            table.lookups.remove(&self.key);
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::IpAddr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::sync::Semaphore;

    use super::*;
    use crate::client::{local_failure::ExchangeError, lookup_slots::MAX_LOOKUPS_PER_ACCOUNT};

    /// A resolver whose lookups wait for `gate`, and the number of lookups that started. The nth
    /// lookup finds the address 10.0.0.n.
    fn gated_resolver(gate: Arc<Semaphore>) -> (Resolver, Arc<AtomicUsize>) {
        let started = Arc::new(AtomicUsize::new(0));
        let counter = started.clone();
        let lookup: Lookup = Arc::new(move |_| {
            let index = counter.fetch_add(1, Ordering::Relaxed);
            gated_lookup(gate.clone(), index).boxed()
        });
        (Resolver::new(lookup), started)
    }

    async fn gated_lookup(gate: Arc<Semaphore>, index: usize) -> LookupResult {
        gate.acquire().await.unwrap().forget();
        Ok(vec![address(index)])
    }

    fn address(index: usize) -> IpAddr {
        IpAddr::from([10, 0, 0, u8::try_from(index).unwrap()])
    }

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    async fn start(resolver: &Resolver, name: &str) -> RunningLookup {
        start_for(resolver, "acme", name).await
    }

    async fn start_for(resolver: &Resolver, owner: &str, name: &str) -> RunningLookup {
        resolver.start(&account(owner), name).await.unwrap()
    }

    /// A name that hangs takes one lookup, however many attempts of the account wait for it.
    #[tokio::test]
    async fn hanging_name_takes_one_lookup() {
        let gate = Arc::new(Semaphore::new(0));
        let (resolver, started) = gated_resolver(gate.clone());
        let mut waiting = Vec::new();
        for _ in 0..20 {
            waiting.push(start(&resolver, "hangs.example").await);
        }
        let other = start(&resolver, "other.example").await;
        let stranger = start_for(&resolver, "stranger", "hangs.example").await;
        assert_eq!(started.load(Ordering::Relaxed), 3);
        gate.add_permits(3);
        for waiting in waiting {
            assert_eq!(waiting.await, Ok(vec![address(0)]));
        }
        assert_eq!(other.await, Ok(vec![address(1)]));
        assert_eq!(stranger.await, Ok(vec![address(2)]));
    }

    /// A lookup ends when nothing waits for it, and the next one starts again.
    #[tokio::test]
    async fn abandoned_lookup_ends() {
        let gate = Arc::new(Semaphore::new(0));
        let (resolver, started) = gated_resolver(gate.clone());
        let mut first = start(&resolver, "hangs.example").await;
        assert!((&mut first).now_or_never().is_none());
        drop(first);
        assert!(resolver.running.lock().lookups.is_empty());
        let second = start(&resolver, "hangs.example").await;
        assert_eq!(started.load(Ordering::Relaxed), 2);
        gate.add_permits(1);
        assert_eq!(second.await, Ok(vec![address(1)]));
        assert!(resolver.running.lock().lookups.is_empty());
    }

    /// An account whose names hang is refused further lookups. Other accounts are not.
    #[tokio::test]
    async fn hanging_names_use_own_slots() {
        let gate = Arc::new(Semaphore::new(0));
        let (resolver, _) = gated_resolver(gate.clone());
        let mut hanging = Vec::new();
        for number in 0..MAX_LOOKUPS_PER_ACCOUNT {
            hanging.push(start(&resolver, &format!("{number}.example")).await);
        }
        let refused = resolver.start(&account("acme"), "one-more.example").await;
        assert_eq!(refused.err(), Some(LocalFailure::NoLookupSlot));
        let joined = start(&resolver, "0.example").await;
        let other = start_for(&resolver, "other", "other.example").await;
        gate.add_permits(hanging.len() + 1);
        for lookup in hanging {
            assert!(lookup.await.is_ok());
        }
        assert!(joined.await.is_ok());
        assert!(other.await.is_ok());
    }

    #[tokio::test]
    async fn failed_lookup_keeps_its_reason() {
        let lookup: Lookup = Arc::new(|_| async { Err(Failure::Dns.into()) }.boxed());
        let resolver = Resolver::new(lookup);
        let result = start(&resolver, "example.com").await.await;
        assert_eq!(result, Err(ExchangeError::Endpoint(Failure::Dns)));
    }
}
