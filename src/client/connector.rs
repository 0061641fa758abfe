//! Makes connections to checked addresses.
//!
//! The connector is below every way in which the HTTP library reaches a host. A literal address, a
//! redirect or a proxy setting cannot bypass the target guard.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{Uri, uri::Scheme};
use hyper_util::rt::TokioIo;
use nano_webhooks_core::delivery::{
    failure::{Failure, TimeoutStage},
    timings::Phase,
    tls_fault::TlsFault,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use tower::Service;

use super::{
    byte_meter::MeteredStream,
    local_failure::{ExchangeError, LocalFailure},
    phase_recorder::PhaseRecorder,
    tls_diagnosis::diagnose_handshake,
};

/// How long one address has before the next one is tried as well (RFC 8305, section 8: 100 ms to
/// 2 s).
const HAPPY_EYEBALLS_DELAY: Duration = Duration::from_millis(150);

tokio::task_local! {
    /// The target of the current attempt. The HTTP library between the client and the connector
    /// does not pass it on.
    static RESOLVED_TARGET: ResolvedTarget;
}

/// The addresses that an attempt may connect to.
#[derive(Clone)]
pub(super) struct ResolvedTarget {
    /// Every address of the host, each checked by the guard.
    pub addresses: Arc<[SocketAddr]>,
    /// The recorder of the attempt.
    pub recorder: PhaseRecorder,
}

impl ResolvedTarget {
    /// Runs a request whose connection, if it needs a new one, goes to this target.
    pub(super) async fn scope<F: Future>(self, request: F) -> F::Output {
        RESOLVED_TARGET.scope(self, request).await
    }
}

/// The connection failed.
#[derive(Debug, thiserror::Error)]
#[error("the connection failed: {0:?}")]
pub(super) struct ConnectError(pub ExchangeError);

/// Makes connections to the target of the current attempt.
#[derive(Clone)]
pub(super) struct Connector {
    tls: Arc<ClientConfig>,
    timeout: Duration,
    connections_opened: Arc<AtomicUsize>,
}

type Connection = TokioIo<MeteredStream<Either<TcpStream, TlsStream<TcpStream>>>>;

impl Connector {
    /// Makes a connector. `timeout` covers resolving, connecting and the TLS handshake.
    pub(super) fn new(tls: Arc<ClientConfig>, timeout: Duration) -> Self {
        Self {
            tls,
            timeout,
            connections_opened: Arc::default(),
        }
    }

    /// Makes a connector with the same configuration and a count of its own.
    pub(super) fn renew(&self) -> Self {
        Self::new(self.tls.clone(), self.timeout)
    }

    /// The number of connections that this connector and its clones opened.
    pub(super) fn connections_opened(&self) -> usize {
        self.connections_opened.load(Ordering::Relaxed)
    }

    async fn connect_within_timeout(self, uri: Uri) -> Result<Connection, ConnectError> {
        let target = RESOLVED_TARGET
            .try_with(ResolvedTarget::clone)
            .map_err(|_| ConnectError(Failure::Connect.into()))?;
        let remaining = self.timeout.saturating_sub(target.recorder.elapsed());
        let connect = self.connect(&uri, &target);
        let connected = tokio::time::timeout(remaining, connect).await;
        let timed_out = Failure::Timeout(TimeoutStage::Connect);
        connected
            .unwrap_or(Err(timed_out.into()))
            .map_err(ConnectError)
    }

    async fn connect(
        &self,
        uri: &Uri,
        target: &ResolvedTarget,
    ) -> Result<Connection, ExchangeError> {
        target.recorder.mark(Phase::Connect);
        self.connections_opened.fetch_add(1, Ordering::Relaxed);
        let tcp = connect_happy_eyeballs(&target.addresses).await?;
        // Nagle's algorithm delays small requests. A socket that refuses the option still works.
        let _ = tcp.set_nodelay(true);
        if uri.scheme() == Some(&Scheme::HTTP) {
            target.recorder.mark(Phase::Wait);
            return Ok(TokioIo::new(MeteredStream::new(Either::Left(tcp))));
        }
        target.recorder.mark(Phase::Tls);
        let tls = self.handshake(uri.host().unwrap_or_default(), tcp).await?;
        target.recorder.mark(Phase::Wait);
        Ok(TokioIo::new(MeteredStream::new(Either::Right(tls))))
    }
}

impl Connector {
    async fn handshake(&self, host: &str, tcp: TcpStream) -> Result<TlsStream<TcpStream>, Failure> {
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|_| Failure::Tls(TlsFault::WrongName))?;
        let handshake = TlsConnector::from(self.tls.clone()).connect(name, tcp);
        diagnose_handshake(handshake).await.map_err(Failure::Tls)
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect_within_timeout(uri))
    }
}

/// Connects to the first address that accepts. The next address is tried when one fails, and in
/// parallel when one does not respond.
async fn connect_happy_eyeballs(addresses: &[SocketAddr]) -> Result<TcpStream, ExchangeError> {
    let mut waiting = addresses.iter();
    let mut connecting = FuturesUnordered::new();
    let mut error = ExchangeError::Endpoint(Failure::Connect);
    loop {
        match waiting.next() {
            Some(address) => connecting.push(TcpStream::connect(address)),
            None if connecting.is_empty() => return Err(error),
            None => {}
        }
        let timeout = if waiting.len() == 0 {
            Duration::MAX
        } else {
            HAPPY_EYEBALLS_DELAY
        };
        match tokio::time::timeout(timeout, connecting.next()).await {
            Ok(Some(Ok(tcp))) => return Ok(tcp),
            Ok(Some(Err(failed))) => {
                if let Some(failure) = LocalFailure::from_io(&failed) {
                    error = failure.into();
                }
            }
            Ok(None) | Err(_) => {}
        }
    }
}
