//! The pool of connections.

use std::{
    error::Error as StdError,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    client::legacy::{
        self,
        connect::{CaptureConnection, capture_connection},
    },
    rt::{TokioExecutor, TokioTimer},
};
use nano_webhooks_core::delivery::failure::Failure;
use rustls::ClientConfig;

use super::{
    byte_meter::{ByteMeter, MAX_BYTES_BEFORE_HEADERS, TooManyBytes},
    connector::{ConnectError, Connector, ResolvedTarget},
    local_failure::ExchangeError,
    tls_diagnosis::explain_alert,
};

/// The longest response head, in bytes.
const MAX_RESPONSE_HEAD: usize = 16 * 1024;
/// Idle connections to one host, which may serve many endpoints: as many as direct attempts are in
/// flight.
const MAX_IDLE_PER_HOST: usize = 256;
/// Connections that a pool opens before a new pool replaces it and its idle connections close.
///
/// With 256 attempts in flight over older pools, this stays below the 1,024 file descriptors of a
/// Lambda environment (Lambda quotas), for any number of hosts.
const MAX_CONNECTIONS_PER_POOL: usize = 512;
/// How long an idle connection is kept. It is shorter than the common keep-alive of servers, so
/// that few connections are closed by the server first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

type HttpClient = legacy::Client<Connector, Full<Bytes>>;

/// A pool of connections that clones share.
#[derive(Clone)]
pub(super) struct SharedPool(Arc<Mutex<Pool>>);

impl SharedPool {
    pub(super) fn new(tls: Arc<ClientConfig>, connect_timeout: Duration) -> Self {
        let connector = Connector::new(tls, connect_timeout);
        Self(Arc::new(Mutex::new(Pool::new(connector))))
    }

    /// Sets the number of connections after which a pool is replaced, at most as many as without.
    pub(super) fn with_max_connections(self, max_connections: usize) -> Self {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.max_connections = pool.max_connections.min(max_connections);
        drop(pool);
        self
    }

    /// Sends a request over an idle connection or a new one to the target. If an idle connection
    /// ends before it returns anything, the server had closed it, and the request is sent once more
    /// over a new connection.
    pub(super) async fn send(
        &self,
        target: ResolvedTarget,
        mut request: http::Request<Full<Bytes>>,
    ) -> Result<http::Response<Incoming>, ExchangeError> {
        let again = request.clone();
        let connection = capture_connection(&mut request);
        let client = self.current();
        let error = match target.clone().scope(client.request(request)).await {
            Ok(response) => return Ok(start_body(response)),
            Err(error) => error,
        };
        if !is_reused_without_response(&connection) {
            return Err(classify_error(&error));
        }
        tracing::info!(
            event = again
                .headers()
                .get("webhook-id")
                .and_then(|id| id.to_str().ok()),
            "Sent a request again over a new connection: the endpoint had closed the idle one"
        );
        target.recorder.mark_resend();
        let unpooled = self.unpooled();
        match target.scope(unpooled.request(again)).await {
            Ok(response) => Ok(start_body(response)),
            Err(error) => Err(classify_error(&error)),
        }
    }

    fn current(&self) -> HttpClient {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.current()
    }

    /// A client that makes a new connection for each request.
    fn unpooled(&self) -> HttpClient {
        let pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        build_client(pool.connector.clone(), 0)
    }
}

struct Pool {
    client: HttpClient,
    connector: Connector,
    max_connections: usize,
}

impl Pool {
    fn new(connector: Connector) -> Self {
        Self {
            client: build_client(connector.clone(), MAX_IDLE_PER_HOST),
            connector,
            max_connections: MAX_CONNECTIONS_PER_POOL,
        }
    }

    /// The client for the next exchange. Exchanges over a replaced client are not interrupted.
    fn current(&mut self) -> HttpClient {
        if self.connector.connections_opened() >= self.max_connections {
            self.connector = self.connector.renew();
            self.client = build_client(self.connector.clone(), MAX_IDLE_PER_HOST);
        }
        self.client.clone()
    }
}

/// The header section of a response has been received.
fn start_body(response: http::Response<Incoming>) -> http::Response<Incoming> {
    if let Some(meter) = response.extensions().get::<ByteMeter>() {
        meter.start_body();
    }
    response
}

fn is_reused_without_response(connection: &CaptureConnection) -> bool {
    let mut extras = http::Extensions::new();
    if let Some(connected) = connection.connection_metadata().as_ref() {
        connected.get_extras(&mut extras);
    }
    match extras.get::<ByteMeter>() {
        Some(meter) => meter.is_reused_without_response(),
        None => false,
    }
}

fn build_client(connector: Connector, max_idle_per_host: usize) -> HttpClient {
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(max_idle_per_host)
        .http1_max_buf_size(MAX_RESPONSE_HEAD)
        // As browsers and curl do.
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true)
        .build(connector)
}

/// Finds the cause in the chain of the library's error.
fn classify_error(error: &legacy::Error) -> ExchangeError {
    let mut source: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(cause) = source {
        if let Some(ConnectError(error)) = cause.downcast_ref() {
            return error.clone();
        }
        if let Some(http) = cause.downcast_ref::<hyper::Error>()
            && http.is_parse()
        {
            return Failure::InvalidResponse.into();
        }
        if let Some(fault) = explain_alert(cause) {
            return Failure::Tls(fault).into();
        }
        if is_too_many_bytes(cause) {
            return Failure::ResponseTooLarge(MAX_BYTES_BEFORE_HEADERS).into();
        }
        source = cause.source();
    }
    Failure::Connect.into()
}

fn is_too_many_bytes(error: &(dyn StdError + 'static)) -> bool {
    let Some(error) = error.downcast_ref::<std::io::Error>() else {
        return false;
    };
    match error.get_ref() {
        Some(cause) => cause.is::<TooManyBytes>(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::client::{phase_recorder::PhaseRecorder, tls::tls_config};

    const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

    /// A host that returns 200 to every request and counts its open connections.
    async fn start_host(open: Arc<AtomicUsize>) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve_connection(stream, open.clone()));
            }
        });
        address
    }

    async fn serve_connection(mut stream: TcpStream, open: Arc<AtomicUsize>) {
        open.fetch_add(1, Ordering::SeqCst);
        let mut request = [0; 4096];
        while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
            let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(response).await.unwrap();
        }
        open.fetch_sub(1, Ordering::SeqCst);
    }

    async fn send(pool: &SharedPool, address: std::net::SocketAddr) {
        let target = ResolvedTarget {
            addresses: Arc::from([address]),
            recorder: PhaseRecorder::start(),
        };
        let request = http::Request::get(format!("http://{address}/"));
        let request = request.body(Full::default()).unwrap();
        let response = pool.send(target, request).await.unwrap();
        assert_eq!(response.status(), http::StatusCode::OK);
    }

    /// A pool that opened its share of connections is replaced, so that the number of open
    /// connections is bounded for any number of hosts.
    #[tokio::test]
    async fn open_connections_are_bounded() {
        let pool = SharedPool::new(Arc::new(tls_config(None).unwrap()), CONNECT_TIMEOUT);
        pool.0.lock().unwrap().max_connections = 3;
        let open = Arc::new(AtomicUsize::new(0));
        let mut hosts = Vec::new();
        for _ in 0..10 {
            hosts.push(start_host(open.clone()).await);
        }
        for host in hosts.iter().cycle().take(30) {
            send(&pool, *host).await;
        }
        let old_pools_are_closed = async {
            while open.load(Ordering::SeqCst) > 3 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, old_pools_are_closed)
            .await
            .expect("idle connections of replaced pools are closed");
    }
}
