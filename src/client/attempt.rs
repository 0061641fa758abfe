//! The HTTP client: one bounded exchange at a time over pooled connections, each made to an address that was checked.
//!
//! Each attempt resolves its name and has all addresses checked. The connector, below every way an HTTP library has to reach
//! a host, connects to these and to nothing else, so that no literal, redirect or proxy setting can go around it. The client follows no redirect, reads no proxy from the environment and decompresses nothing.

use std::{
    error::Error as StdError,
    future::Future,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header::RETRY_AFTER, uri::Scheme};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::Service;
use url::Host;

use super::guard::TargetGuard;
use crate::clock::Stopwatch;
use nano_webhooks_core::{
    delivery::{
        attempt::{Attempt, AttemptOutcome, Failure, TimeoutStage, WebhookRequest},
        timings::{Phase, PhaseTimings},
    },
    endpoint_url::EndpointUrl,
};

/// How long an exchange may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Resolving the name, connecting and the TLS handshake.
    pub connect: Duration,
    /// The whole exchange, connecting and the answer's body included.
    pub total: Duration,
}

impl Timeouts {
    /// An attempt that is made straight from the stream.
    pub const DIRECT: Self = Self {
        connect: Duration::from_millis(500),
        total: Duration::from_secs(1),
    };
    /// An attempt that is made from the queue.
    pub const QUEUED: Self = Self {
        connect: Duration::from_secs(5),
        total: Duration::from_secs(15),
    };
}

/// How much of a response body is read.
const MAX_BODY_READ: usize = 16 * 1024;
/// How much of it is kept.
pub(crate) const MAX_BODY_KEPT: usize = 1024;
/// How much room a response head gets; a longer one is a `body` failure.
const MAX_RESPONSE_HEAD: usize = 16 * 1024;
/// How many idle connections are kept to one host, which may be that of many endpoints: as many as attempts are in flight from
/// the stream.
const MAX_IDLE_PER_HOST: usize = 256;
/// How many connections a pool makes before the next takes its place and what is idle is closed. With the 256 attempts that may
/// be in flight over those before, this stays under the 1,024 file descriptors of a Lambda environment (Lambda quotas), to
/// however many hosts events go.
const MAX_CONNECTIONS_PER_POOL: usize = 512;
/// How long an idle connection is kept: less than the common keep-alive of servers, so that few are found closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// When the next address is tried beside one that does not answer (RFC 8305, section 8, asks for 100 ms to 2 s).
const HAPPY_EYEBALLS_DELAY: Duration = Duration::from_millis(150);

/// Sends signed requests to endpoints.
#[derive(Clone)]
pub struct WebhookClient {
    guard: TargetGuard,
    pool: Arc<Mutex<Pool>>,
    limits: Timeouts,
}

/// Connections that are kept.
struct Pool {
    http: legacy::Client<Connector, Full<Bytes>>,
    /// How many were made.
    made: Arc<AtomicUsize>,
    at_most: usize,
    tls: TlsConnector,
    timeout: Duration,
}

impl Pool {
    fn new(tls: TlsConnector, timeout: Duration, at_most: usize) -> Self {
        let made = Arc::new(AtomicUsize::new(0));
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE_PER_HOST)
            .http1_max_buf_size(MAX_RESPONSE_HEAD)
            .build(Connector {
                timeout,
                tls: tls.clone(),
                made: made.clone(),
            });
        Self {
            http,
            made,
            at_most,
            tls,
            timeout,
        }
    }

    /// The client to make an exchange with. What was in flight over a pool that is replaced ends as it would have.
    fn http(&mut self) -> legacy::Client<Connector, Full<Bytes>> {
        if self.made.load(Ordering::Relaxed) >= self.at_most {
            *self = Self::new(self.tls.clone(), self.timeout, self.at_most);
        }
        self.http.clone()
    }
}

/// The trust store could not be built.
#[derive(Debug, thiserror::Error)]
#[error("{0}: expected a file with PEM certificates")]
pub struct CaFileError(String);

impl WebhookClient {
    /// A client behind `guard`, which trusts Mozilla's root certificates and those of `extra_ca`, a PEM file.
    ///
    /// # Errors
    /// If the file cannot be read or holds no certificate.
    pub fn new(
        guard: TargetGuard,
        limits: Timeouts,
        extra_ca: Option<&Path>,
    ) -> Result<Self, CaFileError> {
        let mut roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        if let Some(path) = extra_ca {
            let unreadable = || CaFileError(path.display().to_string());
            let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
                .map_err(|_| unreadable())?
                .collect::<Result<_, _>>()
                .map_err(|_| unreadable())?;
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(unreadable());
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider supports TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let pool = Pool::new(
            TlsConnector::from(Arc::new(tls)),
            limits.connect,
            MAX_CONNECTIONS_PER_POOL,
        );
        Ok(Self {
            guard,
            pool: Arc::new(Mutex::new(pool)),
            limits,
        })
    }

    /// How long an exchange may take.
    pub const fn limits(&self) -> Timeouts {
        self.limits
    }

    /// Makes one attempt: posts `body` to `url`, within the client's limits and `at_most`.
    pub async fn attempt(
        &self,
        url: &EndpointUrl,
        request: WebhookRequest<'_>,
        body: &str,
        at_most: Duration,
    ) -> (Attempt, AttemptOutcome) {
        let marks = PhaseRecorder::start();
        let body = Bytes::copy_from_slice(body.as_bytes());
        let mut outcome = self
            .post(url, request.headers(), body, at_most, &marks)
            .await;
        (outcome.duration, outcome.timings) = marks.end();
        (Attempt::new(&request, &outcome), outcome)
    }

    async fn post(
        &self,
        url: &EndpointUrl,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
        at_most: Duration,
        marks: &PhaseRecorder,
    ) -> AttemptOutcome {
        let mut outcome = AttemptOutcome {
            duration: Duration::ZERO,
            timings: PhaseTimings::default(),
            status_code: None,
            failure: None,
            retry_after: None,
            body_excerpt: None,
        };
        let mut request = http::Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url.uri().clone();
        *request.headers_mut() = headers
            .into_iter()
            .map(|(name, value)| {
                let value = HeaderValue::try_from(value).expect("our headers are printable ASCII");
                (HeaderName::from_static(name), value)
            })
            .collect();
        let exchange = self.exchange(url, request, marks, &mut outcome);
        let ended = tokio::time::timeout(self.limits.total.min(at_most), exchange).await;
        outcome.failure = match ended {
            Ok(result) => result.err(),
            Err(_) if outcome.status_code.is_some() => Some(Failure::Timeout(TimeoutStage::Body)),
            Err(_) => Some(Failure::Timeout(TimeoutStage::AwaitingResponse)),
        };
        outcome
    }

    async fn exchange(
        &self,
        url: &EndpointUrl,
        request: http::Request<Full<Bytes>>,
        marks: &PhaseRecorder,
        outcome: &mut AttemptOutcome,
    ) -> Result<(), Failure> {
        if matches!(url.url().host(), Some(Host::Domain(_))) {
            marks.begin(Phase::Dns);
        }
        // Also where a kept connection will be used: a name that has changed since is not to be called.
        let resolved = tokio::time::timeout(self.limits.connect, self.guard.resolve(url)).await;
        let addresses = resolved
            .unwrap_or(Err(Failure::Timeout(TimeoutStage::Connect)))?
            .into();
        marks.resolved();
        let permit = ResolvedTarget {
            addresses,
            marks: marks.clone(),
        };
        let http = self
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .http();
        let response = RESOLVED_TARGET
            .scope(permit, http.request(request))
            .await
            .map_err(|error| classify_error(&error))?;
        marks.begin(Phase::Receive);
        let status = response.status().as_u16();
        outcome.status_code = Some(status);
        outcome.retry_after = header_str(response.headers(), &RETRY_AFTER);
        read_body(response.into_body(), &mut outcome.body_excerpt).await?;
        match status {
            200..=299 => Ok(()),
            300..=399 => Err(Failure::Redirect(status)),
            _ => Err(Failure::Status(status)),
        }
    }
}

/// Reads the body up to [`MAX_BODY_READ`] and keeps its beginning; what lies beyond is left unread.
async fn read_body(mut body: Incoming, excerpt: &mut Option<String>) -> Result<(), Failure> {
    let mut read = 0;
    let mut kept = Vec::new();
    while read < MAX_BODY_READ
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|_| Failure::InvalidResponse)?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        read += data.len();
        let more = &data[..data.len().min(MAX_BODY_KEPT - kept.len())];
        if !more.is_empty() {
            kept.extend_from_slice(more);
            // At once, since the deadline may pass before the next part comes.
            *excerpt = Some(truncate_excerpt(&kept));
        }
    }
    Ok(())
}

/// The text of the bytes, cut to [`MAX_BODY_KEPT`] again, since a replacement character is longer than what it replaces.
fn truncate_excerpt(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    text.truncate(text.floor_char_boundary(MAX_BODY_KEPT));
    text
}

fn header_str(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn classify_error(error: &legacy::Error) -> Failure {
    let mut source: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(cause) = source {
        if let Some(ConnectError(failure)) = cause.downcast_ref() {
            return failure.clone();
        }
        if let Some(http) = cause.downcast_ref::<hyper::Error>()
            && http.is_parse()
        {
            return Failure::InvalidResponse;
        }
        source = cause.source();
    }
    Failure::Connect
}

/// A connection could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ConnectError(Failure);

/// Makes connections, and only to addresses that the guard let through.
#[derive(Clone)]
struct Connector {
    timeout: Duration,
    tls: TlsConnector,
    /// How many connections were made.
    made: Arc<AtomicUsize>,
}

type Connection = MaybeHttpsStream<TokioIo<TcpStream>>;

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        let permit = RESOLVED_TARGET.try_with(ResolvedTarget::clone);
        Box::pin(async move {
            let permit = permit.map_err(|_| ConnectError(Failure::Connect))?;
            let left = this.timeout.saturating_sub(permit.marks.watch.elapsed());
            let connection = tokio::time::timeout(left, this.connect(&uri, &permit)).await;
            connection
                .unwrap_or(Err(Failure::Timeout(TimeoutStage::Connect)))
                .map_err(ConnectError)
        })
    }
}

impl Connector {
    async fn connect(
        &self,
        uri: &Uri,
        ResolvedTarget { addresses, marks }: &ResolvedTarget,
    ) -> Result<Connection, Failure> {
        marks.begin(Phase::Connect);
        self.made.fetch_add(1, Ordering::Relaxed);
        let tcp = connect_happy_eyeballs(addresses)
            .await
            .ok_or(Failure::Connect)?;
        // Without it small requests wait for acknowledgements (Nagle); a socket that refuses it still works.
        let _ = tcp.set_nodelay(true);
        if uri.scheme() == Some(&Scheme::HTTP) {
            marks.begin(Phase::Wait);
            return Ok(MaybeHttpsStream::Http(TokioIo::new(tcp)));
        }
        marks.begin(Phase::Tls);
        let host = uri
            .host()
            .ok_or(Failure::Tls)?
            .trim_matches(['[', ']'])
            .to_owned();
        let name = ServerName::try_from(host).map_err(|_| Failure::Tls)?;
        let tls = self
            .tls
            .connect(name, TokioIo::new(TokioIo::new(tcp)))
            .await
            .map_err(|_| Failure::Tls)?;
        marks.begin(Phase::Wait);
        Ok(MaybeHttpsStream::Https(TokioIo::new(tls)))
    }
}

tokio::task_local! {
    /// That of the attempt that is being made: the connector is reached through a library that knows nothing of it.
    static RESOLVED_TARGET: ResolvedTarget;
}

/// What a connection may be made to: the addresses that the guard let through for this attempt, and no others.
#[derive(Clone)]
struct ResolvedTarget {
    addresses: Arc<[SocketAddr]>,
    marks: PhaseRecorder,
}

/// When the phases of an attempt began.
#[derive(Clone)]
struct PhaseRecorder {
    watch: Stopwatch,
    began: Arc<Mutex<PhaseStarts>>,
}

#[derive(Default)]
struct PhaseStarts {
    phases: Vec<(Phase, Duration)>,
    /// When there was nothing to do but to connect, or to ask over a connection that was kept.
    resolved: Option<Duration>,
}

impl PhaseRecorder {
    fn start() -> Self {
        Self {
            watch: Stopwatch::start(),
            began: Arc::default(),
        }
    }

    fn began(&self) -> MutexGuard<'_, PhaseStarts> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A phase begins now.
    fn begin(&self, phase: Phase) {
        let mut began = self.began();
        if phase == Phase::Receive {
            began.ask();
        }
        began.phases.push((phase, self.watch.elapsed()));
    }

    /// The name is resolved.
    fn resolved(&self) {
        self.began().resolved = Some(self.watch.elapsed());
    }

    /// How long the attempt took, and its phases.
    fn end(&self) -> (Duration, PhaseTimings) {
        let took = self.watch.elapsed();
        let mut began = self.began();
        began.ask();
        (took, PhaseTimings::new(&began.phases, took))
    }
}

impl PhaseStarts {
    /// Without a new connection the answer was waited for as soon as the name was resolved.
    fn ask(&mut self) {
        if let Some(resolved) = self.resolved
            && self.phases.iter().all(|(phase, _)| *phase == Phase::Dns)
        {
            self.phases.push((Phase::Wait, resolved));
        }
    }
}

/// The first connection to one of the addresses: the next one is tried when one fails, or beside one that is slow.
async fn connect_happy_eyeballs(addresses: &[SocketAddr]) -> Option<TcpStream> {
    let mut waiting = addresses.iter();
    let mut trying = FuturesUnordered::new();
    loop {
        match waiting.next() {
            Some(address) => trying.push(TcpStream::connect(address)),
            None if trying.is_empty() => return None,
            None => {}
        }
        let patience = if waiting.len() == 0 {
            Duration::MAX
        } else {
            HAPPY_EYEBALLS_DELAY
        };
        if let Ok(Some(Ok(tcp))) = tokio::time::timeout(patience, trying.next()).await {
            return Some(tcp);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::client::guard::TargetPolicy;
    use nano_webhooks_core::{event::EventId, event_type::EventType, timestamp::Timestamp};

    /// A host that answers every request, and counts the connections that are open to it.
    async fn host(open: Arc<AtomicUsize>) -> EndpointUrl {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let open = open.clone();
                tokio::spawn(async move {
                    open.fetch_add(1, Ordering::SeqCst);
                    let mut request = [0; 4096];
                    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                            .await
                            .unwrap();
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        EndpointUrl::parse(&url).unwrap()
    }

    #[tokio::test]
    async fn connections_are_kept_and_to_however_many_hosts_no_more_than_there_are_file_descriptors_for()
     {
        let client = WebhookClient::new(
            TargetGuard::new(TargetPolicy::Any, vec![]),
            Timeouts::QUEUED,
            None,
        )
        .unwrap();
        client.pool.lock().unwrap().at_most = 3;
        let id = EventId::parse("evt_01JFS8TX800000000000000000").unwrap();
        let request = WebhookRequest {
            event_id: &id,
            event_type: EventType::JobCompleted,
            attempt_number: 1,
            started_at: Timestamp::from_millis(0),
            signatures: None,
            traceparent: None,
            version: "0",
        };
        let open = Arc::new(AtomicUsize::new(0));
        let mut hosts = Vec::new();
        for _ in 0..10 {
            hosts.push(host(open.clone()).await);
        }
        for again in 0..2 {
            for url in &hosts[..2] {
                let (attempt, _) = client
                    .attempt(url, request, "{}", Duration::from_secs(5))
                    .await;
                assert_eq!(
                    (attempt.failure, attempt.timings.connect.is_some()),
                    (None, again == 0)
                );
            }
        }
        for url in hosts.iter().cycle().take(30) {
            assert_eq!(
                client
                    .attempt(url, request, "{}", Duration::from_secs(5))
                    .await
                    .0
                    .failure,
                None
            );
        }
        // Those of the pools before are closed by now or soon.
        let closed = async {
            while open.load(Ordering::SeqCst) > 3 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), closed)
            .await
            .expect("what is idle in pools before is closed");
    }
}
