//! Makes connections to checked addresses.
//!
//! The connector is below every way in which the HTTP library reaches a host. A literal address, a
//! redirect or a proxy setting cannot bypass the target guard.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{Uri, uri::Scheme};
use nano_webhooks_core::delivery::{
    failure::{Failure, TimeoutStage},
    timings::Phase,
    tls_fault::TlsFault,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use super::{
    byte_meter::{ByteMeter, MeteredStream},
    local_failure::{ExchangeError, LocalFailure},
    phase_recorder::PhaseRecorder,
    tls_diagnosis::diagnose_handshake,
};

/// How long one address has before the next one is tried as well (RFC 8305, section 8: 100 ms to
/// 2 s).
const HAPPY_EYEBALLS_DELAY: Duration = Duration::from_millis(150);
/// How long an address has in all, unless it is one of the last. So an attempt holds at most three
/// sockets, however many addresses a name has.
const HURRIED_CONNECT: Duration = Duration::from_millis(300);
/// How many of the last addresses have all the time there is.
const UNHURRIED_ADDRESSES: usize = 2;

/// The addresses that an attempt may connect to.
#[derive(Clone)]
pub(super) struct ResolvedTarget {
    /// Every address of the host, each checked by the guard.
    pub addresses: Arc<[SocketAddr]>,
    /// The recorder of the attempt.
    pub recorder: PhaseRecorder,
}

/// A stream to an endpoint, with or without TLS.
pub(super) type EndpointStream = Either<RawStream, TlsStream<RawStream>>;

/// A stream whose meter counts the bytes of TLS too.
pub(super) type RawStream = MeteredStream<TcpStream>;

/// Makes connections to targets.
#[derive(Clone)]
pub(super) struct Connector {
    tls: Arc<ClientConfig>,
    timeout: Duration,
}

impl Connector {
    /// Makes a connector. `timeout` covers resolving, connecting and the TLS handshake.
    pub(super) const fn new(tls: Arc<ClientConfig>, timeout: Duration) -> Self {
        Self { tls, timeout }
    }

    /// Connects to the target, for the scheme and host of this URI.
    pub(super) async fn connect(
        &self,
        uri: &Uri,
        target: &ResolvedTarget,
    ) -> Result<(EndpointStream, ByteMeter), ExchangeError> {
        let remaining = self.timeout.saturating_sub(target.recorder.elapsed());
        let connect = self.connect_without_timeout(uri, target);
        match tokio::time::timeout(remaining, connect).await {
            Ok(stream) => stream,
            Err(_) => Err(Failure::Timeout(TimeoutStage::Connect).into()),
        }
    }

    async fn connect_without_timeout(
        &self,
        uri: &Uri,
        target: &ResolvedTarget,
    ) -> Result<(EndpointStream, ByteMeter), ExchangeError> {
        target.recorder.mark(Phase::Connect);
        let tcp = connect_happy_eyeballs(&target.addresses).await?;
        // Nagle's algorithm delays small requests. A socket that refuses the option still works.
        let _ = tcp.set_nodelay(true);
        let raw = ByteMeter::raw();
        let tcp = MeteredStream::new(tcp, raw.clone());
        if uri.scheme() == Some(&Scheme::HTTP) {
            target.recorder.mark(Phase::Wait);
            return Ok((Either::Left(tcp), raw));
        }
        target.recorder.mark(Phase::Tls);
        let tls = self.handshake(uri.host().unwrap_or_default(), tcp).await?;
        target.recorder.mark(Phase::Wait);
        Ok((Either::Right(tls), raw))
    }

    async fn handshake(&self, host: &str, tcp: RawStream) -> Result<TlsStream<RawStream>, Failure> {
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|_| Failure::Tls(TlsFault::WrongName))?;
        let handshake = TlsConnector::from(self.tls.clone()).connect(name, tcp);
        diagnose_handshake(handshake).await.map_err(Failure::Tls)
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
            Some(address) if waiting.len() < UNHURRIED_ADDRESSES => {
                connecting.push(connect_within(*address, Duration::MAX));
            }
            Some(address) => connecting.push(connect_within(*address, HURRIED_CONNECT)),
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

async fn connect_within(address: SocketAddr, time: Duration) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(time, TcpStream::connect(address)).await;
    connected.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}
