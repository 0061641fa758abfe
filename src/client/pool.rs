//! The pool of connections.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use http::{StatusCode, Uri};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use rustls::ClientConfig;

use super::{
    connection::Connection,
    connector::{Connector, ResolvedTarget},
    header_case::Spelling,
    hosts::{HostKey, Hosts, IDLE_TIMEOUT_WHILE_WAITING},
    local_failure::ExchangeError,
};

/// How often idle connections are checked for their age.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

type Request = http::Request<Full<Bytes>>;
type Response = http::Response<Incoming>;

/// A pool of connections that clones share.
#[derive(Clone)]
pub(super) struct ConnectionPool {
    connector: Connector,
    hosts: SharedHosts,
}

#[derive(Clone, Default)]
struct SharedHosts(Arc<Mutex<Hosts>>);

impl SharedHosts {
    fn lock(&self) -> MutexGuard<'_, Hosts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionPool {
    pub(super) fn new(tls: Arc<ClientConfig>, connect_timeout: Duration) -> Self {
        Self {
            connector: Connector::new(tls, connect_timeout),
            hosts: SharedHosts::default(),
        }
    }

    /// Sets the number of idle connections, at most as many as without.
    pub(super) fn with_max_idle(self, max_idle: usize) -> Self {
        let mut hosts = self.hosts.lock();
        hosts.max_idle = hosts.max_idle.min(max_idle);
        drop(hosts);
        self
    }

    /// Sends a request over an idle connection or a new one to the target. If an idle connection
    /// ends before it returns anything, the host had closed it, and the request is sent once more
    /// over a new connection.
    pub(super) async fn send(
        &self,
        target: ResolvedTarget,
        mut request: Request,
        spelling: &Spelling,
    ) -> Result<(Response, PooledConnection), ExchangeError> {
        let uri = to_origin_form(&mut request);
        let (mut exchange, idle) = self.start_exchange(&uri);
        if let Some(mut connection) = idle {
            let mut first = request.clone();
            spelling.apply(&mut first);
            match connection.send(first).await {
                // Some servers say that they close an idle connection (RFC 9110, section 15.5.9).
                Ok(response) if response.status() == StatusCode::REQUEST_TIMEOUT => {}
                Ok(response) => return Ok((response, exchange.respond(connection))),
                Err(error) if !error.is_without_response => return Err(error.failure.into()),
                Err(_) => {}
            }
            log_resend(&request);
            target.recorder.mark_resend();
            exchange.restart();
        }
        spelling.apply(&mut request);
        let send = self.send_over_new(&uri, &target, request);
        let (response, connection) = exchange.wait(send).await?;
        Ok((response, exchange.respond(connection)))
    }

    fn start_exchange(&self, uri: &Uri) -> (HostExchange, Option<Connection>) {
        let host = HostKey::of(uri);
        let idle = self.hosts.lock().start_exchange(&host);
        let exchange = HostExchange {
            hosts: self.hosts.clone(),
            host,
            is_new: idle.is_none(),
        };
        (exchange, idle)
    }

    async fn send_over_new(
        &self,
        uri: &Uri,
        target: &ResolvedTarget,
        request: Request,
    ) -> Result<(Response, Connection), ExchangeError> {
        let (stream, raw_meter) = self.connector.connect(uri, target).await?;
        let mut connection = Connection::new(stream, raw_meter).await?;
        match connection.send(request).await {
            Ok(response) => Ok((response, connection)),
            Err(error) => Err(error.failure.into()),
        }
    }
}

/// Removes scheme and authority from the request's URI, and returns the whole URI.
fn to_origin_form(request: &mut Request) -> Uri {
    let path = request.uri().path_and_query();
    let path = path.map_or(Uri::default(), |path| Uri::from(path.clone()));
    std::mem::replace(request.uri_mut(), path)
}

fn log_resend(request: &Request) {
    let event = request.headers().get("webhook-id");
    tracing::info!(
        event = event.and_then(|id| id.to_str().ok()),
        "Sent a request again over a new connection: the endpoint had closed the idle one"
    );
}

/// An exchange in flight, counted by its host.
struct HostExchange {
    hosts: SharedHosts,
    host: HostKey,
    /// Whether there was no response yet on its connection.
    is_new: bool,
}

impl HostExchange {
    fn restart(&mut self) {
        self.hosts.lock().restart_exchange(&self.host);
        self.is_new = true;
    }

    /// Waits on a new connection. The host may accept it only when an idle one has closed.
    async fn wait<F: Future>(&self, send: F) -> F::Output {
        let mut send = pin!(send);
        loop {
            match tokio::time::timeout(IDLE_TIMEOUT_WHILE_WAITING, &mut send).await {
                Ok(result) => return result,
                Err(_) => self.hosts.lock().note_wait(&self.host),
            }
        }
    }

    fn respond(mut self, connection: Connection) -> PooledConnection {
        self.hosts.lock().note_response(&self.host, self.is_new);
        self.is_new = false;
        PooledConnection {
            connection,
            exchange: self,
        }
    }
}

impl Drop for HostExchange {
    fn drop(&mut self) {
        self.hosts.lock().end_exchange(&self.host, self.is_new);
    }
}

/// A connection whose exchange has had a response. Dropping it closes it.
pub(super) struct PooledConnection {
    connection: Connection,
    exchange: HostExchange,
}

impl PooledConnection {
    /// Ends the exchange after its body has been read to its end.
    pub(super) async fn release(self) {
        let Self {
            mut connection,
            exchange,
        } = self;
        if !connection.becomes_idle().await {
            return;
        }
        let mut hosts = exchange.hosts.lock();
        hosts.keep(&exchange.host, connection);
        if hosts.start_sweep() {
            tokio::spawn(sweep(Arc::downgrade(&exchange.hosts.0)));
        }
    }
}

/// Closes connections that have been idle for too long, until there are none.
async fn sweep(hosts: Weak<Mutex<Hosts>>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(hosts) = hosts.upgrade() else {
            return;
        };
        if !SharedHosts(hosts).lock().close_expired() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::client::{
        phase_recorder::PhaseRecorder, response_body::read_excerpt, tls::tls_config,
    };

    const TIMEOUT: Duration = Duration::from_secs(20);

    /// A host that returns 200 to every request and counts its open connections.
    async fn start_host(open: Arc<AtomicUsize>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve_connection(stream, open.clone()));
            }
        });
        address
    }

    async fn serve_connection(mut stream: TcpStream, open: Arc<AtomicUsize>) {
        let mut request = [0; 4096];
        while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
            let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(response).await.unwrap();
        }
        open.fetch_sub(1, Ordering::SeqCst);
    }

    fn pool() -> ConnectionPool {
        ConnectionPool::new(Arc::new(tls_config(None).unwrap()), TIMEOUT)
    }

    async fn send(pool: &ConnectionPool, address: SocketAddr) {
        let target = ResolvedTarget {
            addresses: Arc::from([address]),
            recorder: PhaseRecorder::start(),
        };
        let request = http::Request::get(format!("http://{address}/"));
        let request = request.body(Full::default()).unwrap();
        let (response, connection) = pool
            .send(target, request, &Spelling::default())
            .await
            .unwrap();
        assert_eq!(response.status(), http::StatusCode::OK);
        assert!(read_excerpt(response.into_body(), &mut None).await);
        connection.release().await;
    }

    /// Sends two requests at the same time, after which the pool knows that the host serves both.
    async fn send_two(pool: &ConnectionPool, address: SocketAddr) {
        tokio::join!(send(pool, address), send(pool, address));
    }

    async fn wait_for_open(open: &AtomicUsize, expected: usize) {
        let is_reached = async {
            while open.load(Ordering::SeqCst) != expected {
                tokio::task::yield_now().await;
            }
        };
        let reached = tokio::time::timeout(TIMEOUT, is_reached).await;
        reached.unwrap_or_else(|_| panic!("{expected} open connections, not {open:?}"));
    }

    /// Connections to hosts that serve one at a time, as far as is known, end with their exchange.
    #[tokio::test]
    async fn connection_to_unknown_host_is_closed() {
        let (pool, open) = (pool(), Arc::new(AtomicUsize::new(0)));
        let host = start_host(open.clone()).await;
        for _ in 0..3 {
            send(&pool, host).await;
            wait_for_open(&open, 0).await;
        }
        assert!(pool.hosts.lock().is_empty());
        send_two(&pool, host).await;
        send(&pool, host).await;
        wait_for_open(&open, 2).await;
    }

    /// The number of open connections is bounded for any number of hosts. The oldest are closed.
    #[tokio::test]
    async fn idle_connections_are_bounded() {
        let (pool, open) = (pool(), Arc::new(AtomicUsize::new(0)));
        pool.hosts.lock().max_idle = 3;
        for _ in 0..10 {
            send_two(&pool, start_host(open.clone()).await).await;
            assert!(pool.hosts.lock().count_idle() <= 3);
        }
        wait_for_open(&open, 3).await;
    }

    /// Idle connections are closed after a time, without another request.
    #[tokio::test]
    async fn idle_connections_expire() {
        let (pool, open) = (pool(), Arc::new(AtomicUsize::new(0)));
        let host = start_host(open.clone()).await;
        send_two(&pool, host).await;
        wait_for_open(&open, 2).await;
        pool.hosts.lock().idle_timeout = Duration::ZERO;
        wait_for_open(&open, 0).await;
        assert!(pool.hosts.lock().is_empty());
    }
}
