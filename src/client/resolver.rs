//! Names, looked up by the system's resolver each time they are needed: nothing is cached, so a name that changes is seen to.

use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::watch;

use crate::clock::Stopwatch;

/// How long those who ask for a name wait for a look-up that others have begun, rather than begin one of their own: longer than
/// the system's resolver takes to give up (resolv.conf(5): 5 s, twice, for each server).
const SHARE_TIMEOUT: Duration = Duration::from_secs(30);

/// What looks a name up; the ports of the addresses mean nothing.
pub type Lookup =
    Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Looks names up.
///
/// The system's resolver takes a thread for each look-up and cannot be told to stop. One of a name that hangs is therefore
/// shared by all who ask for the name while it lasts: a subscriber's dead name server costs one thread, not one an attempt.
#[derive(Clone)]
pub struct Resolver {
    lookup: Lookup,
    shared_for: Duration,
    under_way: Arc<Mutex<HashMap<String, InFlightLookup>>>,
}

struct InFlightLookup {
    since: Stopwatch,
    answer: watch::Receiver<Option<Vec<SocketAddr>>>,
}

impl Resolver {
    /// The system's resolver.
    pub fn system() -> Self {
        Self::new(Arc::new(|name| {
            async { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) }.boxed()
        }))
    }

    /// One that asks `lookup`.
    pub fn new(lookup: Lookup) -> Self {
        Self {
            lookup,
            shared_for: SHARE_TIMEOUT,
            under_way: Arc::default(),
        }
    }

    /// The addresses of a name; none if it does not resolve.
    pub async fn addresses(&self, name: &str) -> Vec<SocketAddr> {
        let mut answer = self.ask(name);
        let answered = answer.wait_for(Option::is_some).await;
        answered
            .ok()
            .and_then(|answer| answer.clone())
            .unwrap_or_default()
    }

    /// Joins the look-up that is under way, or begins one. It goes on even if all who asked have left.
    fn ask(&self, name: &str) -> watch::Receiver<Option<Vec<SocketAddr>>> {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(InFlightLookup { since, answer }) = under_way.get(name)
            && since.elapsed() < self.shared_for
        {
            return answer.clone();
        }
        let (tell, answer) = watch::channel(None);
        under_way.insert(
            name.to_owned(),
            InFlightLookup {
                since: Stopwatch::start(),
                answer: answer.clone(),
            },
        );
        let (lookup, all, name) = (
            (self.lookup)(name.to_owned()),
            self.under_way.clone(),
            name.to_owned(),
        );
        tokio::spawn(async move {
            let found = lookup.await.unwrap_or_default();
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            // A later one may have taken its place.
            if all
                .get(&name)
                .is_some_and(|of_name| of_name.answer.same_channel(&tell.subscribe()))
            {
                all.remove(&name);
            }
            drop(all);
            tell.send_replace(Some(found));
        });
        answer
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

    /// A resolver whose look-ups end when `gate` lets them, and how many it has begun.
    fn gated(gate: Arc<Semaphore>) -> (Resolver, Arc<AtomicUsize>) {
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let lookup: Lookup = Arc::new(move |_| {
            let nth = count.fetch_add(1, Ordering::Relaxed);
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(vec![([10, 0, 0, u8::try_from(nth).unwrap()], 0).into()])
            }
            .boxed()
        });
        (Resolver::new(lookup), begun)
    }

    #[tokio::test]
    async fn a_name_that_hangs_takes_one_look_up_however_many_ask_and_leave() {
        let gate = Arc::new(Semaphore::new(0));
        let (resolver, begun) = gated(gate.clone());
        for _ in 0..20 {
            assert_eq!(resolver.addresses("hangs.example").now_or_never(), None);
        }
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        assert_eq!(resolver.addresses("other.example").now_or_never(), None);
        assert_eq!(begun.load(Ordering::Relaxed), 2, "another name has its own");
        let joined = resolver.addresses("hangs.example");
        gate.add_permits(2);
        assert_eq!(joined.await, [([10, 0, 0, 0], 0).into()]);
    }

    #[tokio::test]
    async fn a_look_up_that_was_begun_long_ago_is_joined_no_more() {
        let gate = Arc::new(Semaphore::new(0));
        let (resolver, _) = gated(gate.clone());
        let resolver = Resolver {
            shared_for: Duration::ZERO,
            ..resolver
        };
        assert_eq!(resolver.addresses("hangs.example").now_or_never(), None);
        let second = resolver.addresses("hangs.example");
        gate.add_permits(2);
        assert_eq!(second.await, [([10, 0, 0, 1], 0).into()]);
    }

    #[tokio::test]
    async fn nothing_is_kept_of_a_look_up_that_has_ended() {
        let (resolver, _) = gated(Arc::new(Semaphore::new(3)));
        for nth in 0..3 {
            assert_eq!(
                resolver.addresses("example.com").await,
                [([10, 0, 0, nth], 0).into()]
            );
        }
        assert!(resolver.under_way.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_fails_has_no_addresses() {
        let resolver = Resolver::new(Arc::new(|_| {
            async { Err(io::Error::other("refused")) }.boxed()
        }));
        assert!(resolver.addresses("example.com").await.is_empty());
    }
}
