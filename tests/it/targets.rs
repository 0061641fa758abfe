//! The target guard in the client: sockets are opened only to addresses that were checked.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use nano_webhooks::client::{
    resolver::Resolver,
    target_guard::TargetGuard,
    webhook_client::{Timeouts, WebhookClient},
};
use nano_webhooks_core::{
    delivery::{attempt::AttemptOutcome, failure::Failure, tls_fault::TlsFault},
    endpoint_url::EndpointUrl,
    target_policy::{NOT_ALLOWED, TargetPolicy},
};
use tokio::net::TcpListener;

use crate::support::client::{account, post};

/// A listener on the loopback addresses that counts connections and closes each at once.
struct ConnectionCounter {
    port: u16,
    connected: Arc<AtomicUsize>,
}

impl ConnectionCounter {
    async fn start() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connected = Arc::new(AtomicUsize::new(0));
        let count = connected.clone();
        tokio::spawn(async move {
            loop {
                let _ = listener.accept().await;
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { port, connected }
    }

    fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    fn url(&self, host: &str) -> EndpointUrl {
        EndpointUrl::parse(&format!("https://{host}:{}/", self.port)).unwrap()
    }
}

/// A resolver that returns one list of addresses for each lookup, and the lists that are left.
fn scripted_resolver(lookups: &[&[&str]]) -> (Resolver, Arc<Mutex<VecDeque<Vec<IpAddr>>>>) {
    let mut remaining = VecDeque::new();
    for addresses in lookups {
        remaining.push_back(
            addresses
                .iter()
                .map(|address| address.parse().unwrap())
                .collect(),
        );
    }
    let remaining = Arc::new(Mutex::new(remaining));
    let script = remaining.clone();
    let lookup = move |_| {
        let addresses = script.lock().unwrap().pop_front();
        Box::pin(async { Ok(addresses.expect("another lookup is expected")) }) as _
    };
    (Resolver::new(Arc::new(lookup)), remaining)
}

async fn attempt(guard: &TargetGuard, url: &EndpointUrl) -> AttemptOutcome {
    let client = WebhookClient::new(guard.clone(), Timeouts::QUEUED, None).unwrap();
    post(&client, url.as_str()).await
}

/// A name that is public at registration and private at the attempt reaches nothing.
#[tokio::test]
async fn rebinding_reaches_nothing() {
    let canary = ConnectionCounter::start().await;
    let (resolver, left) = scripted_resolver(&[
        &["93.184.215.14"],
        &["127.0.0.1"],
        &["93.184.215.14", "127.0.0.1"],
        &["::1"],
    ]);
    let guard = TargetGuard::new(TargetPolicy::Public, vec![]).with_resolver(resolver);
    let url = canary.url("rebinding.example");
    assert_eq!(guard.check_registration(&account(), &url).await, Ok(()));
    for rule in [NOT_ALLOWED, NOT_ALLOWED, NOT_ALLOWED] {
        let outcome = attempt(&guard, &url).await;
        assert_eq!(outcome.failure, Some(Failure::Blocked(rule)));
    }
    assert_eq!((canary.connected(), left.lock().unwrap().len()), (0, 0));
}

/// The connection goes to the address that was checked.
#[tokio::test]
async fn checked_address_is_connected() {
    let canary = ConnectionCounter::start().await;
    // A second lookup in the same attempt would get the second list, whose address is blocked.
    let (resolver, left) = scripted_resolver(&[&["127.0.0.2"], &["127.0.0.1"]]);
    let guard = TargetGuard::new(TargetPolicy::Public, vec!["127.0.0.2/32".parse().unwrap()])
        .with_resolver(resolver);
    let url = canary.url("changing.example");
    assert_eq!(
        attempt(&guard, &url).await.failure,
        Some(Failure::Tls(TlsFault::Closed)),
        "the connection reached the listener, which has no TLS"
    );
    assert_eq!((canary.connected(), left.lock().unwrap().len()), (1, 1));
    assert_eq!(
        attempt(&guard, &url).await.failure,
        Some(Failure::Blocked(NOT_ALLOWED))
    );
    assert_eq!(canary.connected(), 1);
}

/// Literal addresses pass the guard although they need no resolver.
#[tokio::test]
async fn literals_pass_guard() {
    let canary = ConnectionCounter::start().await;
    let guard =
        TargetGuard::new(TargetPolicy::Public, vec![]).with_resolver(scripted_resolver(&[]).0);
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0",
        "0.0.0.0",
        "[::]",
    ] {
        let outcome = attempt(&guard, &canary.url(host)).await;
        assert!(
            matches!(outcome.failure, Some(Failure::Blocked(_))),
            "{host}: {outcome:?}"
        );
    }
    assert_eq!(canary.connected(), 0);
}
