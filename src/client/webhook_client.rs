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

use http::{HeaderName, HeaderValue, Method, header::RETRY_AFTER};
use http_body_util::Full;
use hyper::body::Bytes;
use nano_webhooks_core::{
    delivery::{
        attempt::{Attempt, AttemptOutcome, WebhookRequest},
        failure::{Failure, TimeoutStage},
        timings::{Phase, PhaseTimings},
    },
    endpoint_url::EndpointUrl,
};
use tokio::sync::oneshot;
use url::Host;

use super::{
    connector::ResolvedTarget,
    phase_recorder::PhaseRecorder,
    pool::SharedPool,
    response_body::read_excerpt,
    target_guard::TargetGuard,
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

/// How long a response body is read.
const BODY_READ_TIME: Duration = Duration::from_secs(1);

/// Sends signed requests to endpoints. Clones share the connections.
#[derive(Clone)]
pub struct WebhookClient {
    guard: Arc<TargetGuard>,
    pool: SharedPool,
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
            pool: SharedPool::new(tls, timeouts.connect),
            timeouts,
        })
    }

    /// The deadlines of an exchange.
    pub const fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Posts `body` to `url`, within the client's deadlines.
    pub async fn attempt(
        &self,
        url: &EndpointUrl,
        request: WebhookRequest<'_>,
        body: &str,
    ) -> (Attempt, AttemptOutcome) {
        let outcome = self.start(url, &request, body).await;
        (Attempt::new(&request, &outcome), outcome)
    }

    /// Starts to post `body` to `url`. The exchange ends within the client's deadlines, and makes
    /// progress only while it is polled.
    pub fn start(
        &self,
        url: &EndpointUrl,
        request: &WebhookRequest<'_>,
        body: &str,
    ) -> OpenExchange {
        let http_request = to_http_request(url, request, body);
        let (cut, is_cut) = oneshot::channel();
        let exchange = Exchange {
            client: self.clone(),
            url: url.clone(),
            recorder: PhaseRecorder::start(),
        };
        OpenExchange {
            outcome: Box::pin(exchange.run(http_request, is_cut)),
            cut,
        }
    }
}

/// An exchange that has started. It resolves to its outcome.
pub struct OpenExchange {
    outcome: Pin<Box<dyn Future<Output = AttemptOutcome> + Send>>,
    cut: oneshot::Sender<()>,
}

impl OpenExchange {
    /// Ends the exchange now, as if its deadline had passed.
    pub async fn cut(self) -> AttemptOutcome {
        // The receiver is dropped only when the exchange has ended by itself.
        let _ = self.cut.send(());
        self.outcome.await
    }
}

impl Future for OpenExchange {
    type Output = AttemptOutcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<AttemptOutcome> {
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
    let headers = http_request.headers_mut();
    for (name, value) in request.headers() {
        let value = HeaderValue::try_from(value).expect("header values are printable ASCII");
        headers.append(HeaderName::from_static(name), value);
    }
    http_request
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
    url: EndpointUrl,
    recorder: PhaseRecorder,
}

impl Exchange {
    async fn run(
        self,
        request: http::Request<Full<Bytes>>,
        is_cut: oneshot::Receiver<()>,
    ) -> AttemptOutcome {
        let mut outcome = AttemptOutcome {
            duration: Duration::ZERO,
            timings: PhaseTimings::default(),
            status_code: None,
            failure: None,
            retry_after: None,
            body_excerpt: None,
        };
        let ended = tokio::select! {
            biased;
            result = self.exchange(request, &mut outcome) => Some(result),
            Ok(()) = is_cut => None,
            () = tokio::time::sleep(self.client.timeouts.total) => None,
        };
        // A status that was received is never hidden by what happens to the body.
        outcome.failure = match (outcome.status_code, ended) {
            (Some(status), _) => classify_status(status),
            (None, Some(result)) => result.err(),
            (None, None) => Some(Failure::Timeout(TimeoutStage::AwaitingResponse)),
        };
        (outcome.duration, outcome.timings) = self.recorder.finish();
        outcome
    }

    async fn exchange(
        &self,
        request: http::Request<Full<Bytes>>,
        outcome: &mut AttemptOutcome,
    ) -> Result<(), Failure> {
        let target = self.resolve_target().await?;
        let response = self.client.pool.send(target, request).await?;
        self.recorder.mark(Phase::Receive);
        let status = response.status().as_u16();
        outcome.status_code = Some(status);
        if let Some(value) = response.headers().get(&RETRY_AFTER) {
            outcome.retry_after = value.to_str().ok().map(str::to_owned);
        }
        let read = read_excerpt(response.into_body(), &mut outcome.body_excerpt);
        // The body is for the log only, so one that drips does not hold the attempt up.
        let _ = tokio::time::timeout(BODY_READ_TIME, read).await;
        Ok(())
    }

    /// Resolves and checks the target for every request. A name may have changed since a pooled
    /// connection was made.
    async fn resolve_target(&self) -> Result<ResolvedTarget, Failure> {
        if matches!(self.url.url().host(), Some(Host::Domain(_))) {
            self.recorder.mark(Phase::Dns);
        }
        let resolve = self.client.guard.resolve(&self.url);
        let resolved = tokio::time::timeout(self.client.timeouts.connect, resolve).await;
        let addresses = resolved.unwrap_or(Err(Failure::Timeout(TimeoutStage::Connect)))?;
        self.recorder.mark_resolved();
        Ok(ResolvedTarget {
            addresses: Arc::from(addresses),
            recorder: self.recorder.clone(),
        })
    }
}
