//! Resolves host names through the system's resolver. Nothing is cached, so that a changed record
//! takes effect at once.

use std::{
    collections::HashMap,
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::watch;

use crate::clock::Stopwatch;

/// How long attempts join a lookup that another attempt started. It is longer than the system's
/// resolver takes to give up (resolv.conf(5): 5 s, twice, for each server).
const SHARE_TIMEOUT: Duration = Duration::from_secs(30);

/// A function that looks up a name.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Resolves host names.
///
/// The system's resolver takes a thread for each lookup and cannot be cancelled. Attempts share a
/// lookup of the same name while it runs, so a dead name server costs one thread for each name
/// instead of one for each attempt.
#[derive(Clone)]
pub struct Resolver {
    lookup: Lookup,
    share_timeout: Duration,
    lookups: InFlightLookups,
}

type InFlightLookups = Arc<Mutex<HashMap<String, InFlightLookup>>>;

/// The addresses, once the lookup has ended.
type LookupResult = Option<Vec<IpAddr>>;

struct InFlightLookup {
    started: Stopwatch,
    result: watch::Receiver<LookupResult>,
}

impl Resolver {
    /// Makes a resolver that uses the system's.
    pub fn system() -> Self {
        Self::new(Arc::new(|name| lookup_host(name).boxed()))
    }

    /// Makes a resolver that calls `lookup`.
    pub fn new(lookup: Lookup) -> Self {
        Self {
            lookup,
            share_timeout: SHARE_TIMEOUT,
            lookups: Arc::default(),
        }
    }

    /// Looks up the addresses of a name. Returns none if the name does not resolve.
    pub async fn lookup(&self, name: &str) -> Vec<IpAddr> {
        let mut result = self.join_or_start(name);
        match result.wait_for(Option::is_some).await {
            Ok(addresses) => addresses.clone().unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Joins a running lookup or starts one. It runs to its end even if every attempt that waits
    /// for it is cancelled.
    fn join_or_start(&self, name: &str) -> watch::Receiver<LookupResult> {
        let mut lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = lookups.get(name)
            && running.started.elapsed() < self.share_timeout
        {
            return running.result.clone();
        }
        let (sender, receiver) = watch::channel(None);
        let running = InFlightLookup {
            started: Stopwatch::start(),
            result: receiver.clone(),
        };
        lookups.insert(name.to_owned(), running);
        let lookup = (self.lookup)(name.to_owned());
        let lookups = self.lookups.clone();
        tokio::spawn(run_lookup(name.to_owned(), lookup, lookups, sender));
        receiver
    }
}

async fn lookup_host(name: String) -> io::Result<Vec<IpAddr>> {
    let addresses = tokio::net::lookup_host((name, 0)).await?;
    Ok(addresses.map(|address| address.ip()).collect())
}

async fn run_lookup(
    name: String,
    lookup: BoxFuture<'static, io::Result<Vec<IpAddr>>>,
    lookups: InFlightLookups,
    sender: watch::Sender<LookupResult>,
) {
    let addresses = lookup.await.unwrap_or_default();
    forget(&name, &lookups, &sender);
    sender.send_replace(Some(addresses));
}

/// Removes a lookup that has ended, unless a later one has replaced it.
fn forget(name: &str, lookups: &InFlightLookups, sender: &watch::Sender<LookupResult>) {
    let mut lookups = lookups.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = lookups.get(name)
        && running.result.same_channel(&sender.subscribe())
    {
        lookups.remove(name);
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

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

    async fn gated_lookup(gate: Arc<Semaphore>, index: usize) -> io::Result<Vec<IpAddr>> {
        gate.acquire().await.unwrap().forget();
        Ok(vec![address(index)])
    }

    fn address(index: usize) -> IpAddr {
        IpAddr::from([10, 0, 0, u8::try_from(index).unwrap()])
    }

    /// A name that hangs takes one lookup, however many attempts wait for it and are cancelled.
    #[tokio::test]
    async fn hanging_name_takes_one_lookup() {
        let gate = Arc::new(Semaphore::new(0));
        let (resolver, started) = gated_resolver(gate.clone());
        for _ in 0..20 {
            assert_eq!(resolver.lookup("hangs.example").now_or_never(), None);
        }
        assert_eq!(started.load(Ordering::Relaxed), 1);
        assert_eq!(resolver.lookup("other.example").now_or_never(), None);
        assert_eq!(started.load(Ordering::Relaxed), 2);
        let joined = resolver.lookup("hangs.example");
        gate.add_permits(2);
        assert_eq!(joined.await, [address(0)]);
    }

    #[tokio::test]
    async fn old_lookup_is_not_joined() {
        let gate = Arc::new(Semaphore::new(0));
        let (mut resolver, _) = gated_resolver(gate.clone());
        resolver.share_timeout = Duration::ZERO;
        assert_eq!(resolver.lookup("hangs.example").now_or_never(), None);
        let second = resolver.lookup("hangs.example");
        gate.add_permits(2);
        assert_eq!(second.await, [address(1)]);
    }

    #[tokio::test]
    async fn ended_lookup_is_forgotten() {
        let (resolver, _) = gated_resolver(Arc::new(Semaphore::new(3)));
        for index in 0..3 {
            assert_eq!(resolver.lookup("example.com").await, [address(index)]);
        }
        assert!(resolver.lookups.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn failed_lookup_has_no_addresses() {
        let lookup: Lookup = Arc::new(|_| async { Err(io::Error::other("refused")) }.boxed());
        let resolver = Resolver::new(lookup);
        assert!(resolver.lookup("example.com").await.is_empty());
    }
}
