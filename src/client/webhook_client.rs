//! The client that makes attempts: one bounded exchange each, over pooled connections.
//!
//! The client follows no redirect, reads no proxy from the environment and decompresses nothing.

use std::{
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{HOST, RETRY_AFTER},
};
use http_body_util::Full;
use hyper::body::Bytes;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        attempt::{Attempt, AttemptOutcome, WebhookRequest},
        failure::{Failure, TimeoutStage},
        timings::{Phase, PhaseTimings},
    },
    endpoint_url::EndpointUrl,
};
use tokio::sync::oneshot;

use super::{
    attempt_slots::AttemptSlots,
    connector::ResolvedTarget,
    header_case::{HeaderCase, UnusualNames},
    local_failure::{ExchangeError, LocalFailure},
    phase_recorder::PhaseRecorder,
    pool::ConnectionPool,
    resolver::Resolver,
    response_body::read_excerpt,
    target_guard::{Resolution, TargetGuard},
    tls::{CaFileError, tls_config},
};

/// The deadlines of an exchange.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For resolving the name, connecting and the TLS handshake.
    pub connect: Duration,
    /// For the whole exchange, including connecting and the response body.
    pub total: Duration,
}

impl Timeouts {
    /// For first attempts, made directly from the stream.
    pub const DIRECT: Self = Self {
        connect: Duration::from_secs(5),
        total: Duration::from_secs(10),
    };
    /// For attempts from the queue.
    pub const QUEUED: Self = Self {
        connect: Duration::from_secs(5),
        total: Duration::from_secs(15),
    };
}

/// The limits of a client, in addition to those of who calls it.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// The attempts at the same time. Several clients can share them.
    pub attempts: AttemptSlots,
    /// The most idle connections of a client.
    pub idle_connections: usize,
    /// Looks up the names. Several clients can share its limit.
    pub resolver: Resolver,
}

/// How long a response body is read.
const BODY_READ_TIME: Duration = Duration::from_secs(1);

/// Sends signed requests to endpoints. Clones share the connections.
#[derive(Clone)]
pub struct WebhookClient {
    guard: Arc<TargetGuard>,
    pool: ConnectionPool,
    header_case: HeaderCase,
    slots: AttemptSlots,
    timeouts: Timeouts,
}

impl WebhookClient {
    /// Makes a client that calls the targets that `guard` allows.
    ///
    /// It trusts Mozilla's root certificates and those of `extra_ca`, a PEM file.
    pub fn new(
        guard: TargetGuard,
        timeouts: Timeouts,
        extra_ca: Option<&Path>,
    ) -> Result<Self, CaFileError> {
        let tls = Arc::new(tls_config(extra_ca)?);
        Ok(Self {
            guard: Arc::new(guard),
            pool: ConnectionPool::new(tls, timeouts.connect),
            header_case: HeaderCase::default(),
            slots: AttemptSlots::default(),
            timeouts,
        })
    }

    /// Sets further limits.
    #[must_use]
    pub fn with_limits(self, limits: &ClientLimits) -> Self {
        let guard = TargetGuard::clone(&self.guard);
        Self {
            guard: Arc::new(guard.with_resolver(limits.resolver.clone())),
            pool: self.pool.with_max_idle(limits.idle_connections),
            slots: limits.attempts.clone(),
            ..self
        }
    }

    /// The deadlines of an exchange.
    pub const fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Posts `body` to `url` for an account, within the client's deadlines.
    ///
    /// # Errors
    /// If this process cannot make the attempt now.
    pub async fn attempt(
        &self,
        account: &AccountId,
        url: &EndpointUrl,
        request: WebhookRequest<'_>,
        body: &str,
    ) -> Result<(Attempt, AttemptOutcome), LocalFailure> {
        let outcome = self.start(account, url, &request, body).await?;
        Ok((Attempt::new(&request, &outcome), outcome))
    }

    /// Starts to post `body` to `url` for an account. The exchange ends within the client's
    /// deadlines, and makes progress only while it is polled.
    pub fn start(
        &self,
        account: &AccountId,
        url: &EndpointUrl,
        request: &WebhookRequest<'_>,
        body: &str,
    ) -> OpenExchange {
        let http_request = to_http_request(url, request, body);
        let (cut, is_cut) = oneshot::channel();
        let exchange = Exchange {
            client: self.clone(),
            account: account.clone(),
            url: url.clone(),
            unusual_names: UnusualNames::new(request.static_headers),
        };
        OpenExchange {
            outcome: Box::pin(exchange.run(http_request, is_cut)),
            cut,
        }
    }
}

/// An exchange that has started. It resolves to its outcome, or to the reason why this process
/// could not make the attempt.
pub struct OpenExchange {
    outcome: Pin<Box<dyn Future<Output = ExchangeResult> + Send>>,
    cut: oneshot::Sender<()>,
}

type ExchangeResult = Result<AttemptOutcome, LocalFailure>;

impl OpenExchange {
    /// Ends the exchange now, as if its deadline had passed.
    pub async fn cut(self) -> ExchangeResult {
        // The receiver is dropped only when the exchange has ended by itself.
        let _ = self.cut.send(());
        self.outcome.await
    }
}

impl Future for OpenExchange {
    type Output = ExchangeResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<ExchangeResult> {
        self.outcome.as_mut().poll(context)
    }
}

fn to_http_request(
    url: &EndpointUrl,
    request: &WebhookRequest<'_>,
    body: &str,
) -> http::Request<Full<Bytes>> {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let mut http_request = http::Request::new(Full::new(body));
    *http_request.method_mut() = Method::POST;
    *http_request.uri_mut() = url.uri().clone();
    *http_request.headers_mut() = to_header_map(request);
    http_request.headers_mut().insert(HOST, host_header(url));
    http_request
}

/// No name occurs twice, whatever the static headers are.
fn to_header_map(request: &WebhookRequest<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in request.headers() {
        let value = HeaderValue::try_from(value).expect("header values are printable ASCII");
        let name = HeaderName::try_from(name).expect("header names are tokens");
        headers.insert(name, value);
    }
    for header in request.static_headers.as_slice() {
        let name = HeaderName::try_from(header.name()).expect("header names are tokens");
        let value = HeaderValue::try_from(header.expose_value());
        let mut value = value.expect("header values are printable ASCII");
        value.set_sensitive(true);
        headers.entry(name).or_insert(value);
    }
    headers
}

/// Host name and port, the port only if it is not the scheme's default one.
fn host_header(url: &EndpointUrl) -> HeaderValue {
    let authority = url
        .uri()
        .authority()
        .map_or("", |authority| authority.as_str());
    HeaderValue::from_str(authority).expect("an authority is printable ASCII")
}

/// What a status code means; `None` for a success. A redirect has a target to register instead
/// (RFC 9110, section 15.4); 304 does not.
const fn classify_status(status: u16) -> Option<Failure> {
    match status {
        200..=299 => None,
        301 | 302 | 303 | 307 | 308 => Some(Failure::Redirect(status)),
        _ => Some(Failure::Status(status)),
    }
}

/// One exchange with an endpoint.
struct Exchange {
    client: WebhookClient,
    account: AccountId,
    url: EndpointUrl,
    unusual_names: UnusualNames,
}

impl Exchange {
    async fn run(
        self,
        request: http::Request<Full<Bytes>>,
        mut is_cut: oneshot::Receiver<()>,
    ) -> ExchangeResult {
        let Some(_slot) = self.client.slots.acquire().await else {
            return Err(LocalFailure::NoAttemptSlot);
        };
        let started = tokio::select! {
            biased;
            started = self.client.guard.start(&self.account, &self.url) => started,
            Ok(()) = &mut is_cut => Err(LocalFailure::NoLookupSlot.into()),
        };
        // The time for the endpoint starts now: it is not the reason for what came before.
        let recorder = PhaseRecorder::start();
        let mut outcome = AttemptOutcome {
            duration: Duration::ZERO,
            timings: PhaseTimings::default(),
            status_code: None,
            failure: None,
            retry_after: None,
            body_excerpt: None,
        };
        let exchange = self.exchange(started, request, &recorder, &mut outcome);
        let ended = tokio::select! {
            biased;
            result = exchange => Some(result),
            Ok(()) = is_cut => None,
            () = tokio::time::sleep(self.client.timeouts.total) => None,
        };
        // A status that was received is never hidden by what happens to the body.
        outcome.failure = match (outcome.status_code, ended) {
            (Some(status), _) => classify_status(status),
            (None, Some(Ok(()))) => None,
            (None, Some(Err(ExchangeError::Endpoint(failure)))) => Some(failure),
            (None, Some(Err(ExchangeError::Local(failure)))) => return Err(failure),
            (None, None) => Some(Failure::Timeout(TimeoutStage::AwaitingResponse)),
        };
        (outcome.duration, outcome.timings) = recorder.finish();
        Ok(outcome)
    }

    async fn exchange(
        &self,
        started: Result<Resolution<'_>, ExchangeError>,
        request: http::Request<Full<Bytes>>,
        recorder: &PhaseRecorder,
        outcome: &mut AttemptOutcome,
    ) -> Result<(), ExchangeError> {
        let target = self.resolve_target(started?, recorder).await?;
        let spelling = self.client.header_case.spell(&self.unusual_names).await;
        let sent = self.client.pool.send(target, request, &spelling).await;
        let (response, connection) = sent?;
        recorder.mark(Phase::Receive);
        let status = response.status().as_u16();
        outcome.status_code = Some(status);
        if let Some(value) = response.headers().get(&RETRY_AFTER) {
            outcome.retry_after = value.to_str().ok().map(str::to_owned);
        }
        let read = async {
            if read_excerpt(response.into_body(), &mut outcome.body_excerpt).await {
                connection.release().await;
            }
        };
        // The body is for the log only, so one that drips does not hold the attempt up.
        let _ = tokio::time::timeout(BODY_READ_TIME, read).await;
        Ok(())
    }

    /// Resolves and checks the target for every request. A name may have changed since a pooled
    /// connection was made.
    async fn resolve_target(
        &self,
        resolution: Resolution<'_>,
        recorder: &PhaseRecorder,
    ) -> Result<ResolvedTarget, ExchangeError> {
        if resolution.is_lookup() {
            recorder.mark(Phase::Dns);
        }
        let resolved = tokio::time::timeout(self.client.timeouts.connect, resolution.finish());
        let addresses = resolved.await.unwrap_or(Err(Failure::NameServer.into()))?;
        recorder.mark_resolved();
        Ok(ResolvedTarget {
            addresses: Arc::from(addresses),
            recorder: recorder.clone(),
        })
    }
}
