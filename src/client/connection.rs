//! One HTTP/1.1 connection to a host.

use std::{error::Error as StdError, pin::Pin, time::Duration};

use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use nano_webhooks_core::delivery::failure::Failure;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    byte_meter::{ByteMeter, MAX_BYTES_BEFORE_HEADERS, MeteredStream, TooManyBytes},
    tls_diagnosis::explain_alert,
};

/// The most headers of a response.
pub(super) const MAX_RESPONSE_HEADERS: usize = 1_024;

/// How long a connection may take to become idle after the response. It takes no time, unless the
/// host has not read the request.
const READY_TIMEOUT: Duration = Duration::from_millis(20);

/// Reads and writes what the connection sends and receives.
type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A connection that serves one exchange after the other. Dropping it closes it.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    meter: ByteMeter,
    /// The meter below TLS.
    raw_meter: ByteMeter,
    /// Starts with the first request.
    driver: Option<Driver>,
}

/// An exchange ended without a response.
pub(super) struct SendError {
    pub failure: Failure,
    /// Whether the connection ended before it returned anything.
    pub is_without_response: bool,
}

impl Connection {
    /// Speaks HTTP over a stream. `raw_meter` counts its bytes below TLS.
    pub(super) async fn new<S>(stream: S, raw_meter: ByteMeter) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let meter = ByteMeter::default();
        let stream = TokioIo::new(MeteredStream::new(stream, meter.clone()));
        let handshake = http1::Builder::new()
            .max_buf_size(MAX_BYTES_BEFORE_HEADERS)
            .max_headers(MAX_RESPONSE_HEADERS)
            .title_case_headers(true)
            // As browsers and curl do.
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .handshake(stream);
        let (sender, driver) = handshake.await.map_err(|error| classify_error(&error))?;
        Ok(Self {
            sender,
            meter,
            raw_meter,
            driver: Some(Box::pin(driver)),
        })
    }

    /// Sends a request in origin form, and returns the response when its header section has been
    /// received.
    pub(super) async fn send(
        &mut self,
        request: http::Request<Full<Bytes>>,
    ) -> Result<http::Response<Incoming>, SendError> {
        self.meter.start_exchange();
        self.raw_meter.start_raw_exchange();
        let response = self.sender.send_request(request);
        // The request is queued before anything is read, so it gets the error of a connection that
        // the host ends at once.
        if let Some(driver) = self.driver.take() {
            tokio::spawn(driver);
        }
        match response.await {
            Ok(response) => {
                self.meter.start_body();
                Ok(response)
            }
            Err(error) => Err(SendError {
                failure: classify_error(&error),
                is_without_response: self.meter.has_read_nothing(),
            }),
        }
    }

    /// Whether the host has closed the connection, as far as is known.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Waits until the connection can take another request, after a body has been read to its end.
    /// False if it ends instead, or still writes the last request.
    pub(super) async fn becomes_idle(&mut self) -> bool {
        let ready = tokio::time::timeout(READY_TIMEOUT, self.sender.ready());
        matches!(ready.await, Ok(Ok(())))
    }
}

/// Finds the cause in the chain of the library's error.
fn classify_error(error: &hyper::Error) -> Failure {
    if error.is_parse_too_large() {
        return Failure::ResponseTooLarge(MAX_BYTES_BEFORE_HEADERS);
    }
    if error.is_parse() {
        return Failure::InvalidResponse;
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(fault) = explain_alert(cause) {
            return Failure::Tls(fault);
        }
        if is_too_many_bytes(cause) {
            return Failure::ResponseTooLarge(MAX_BYTES_BEFORE_HEADERS);
        }
        source = cause.source();
    }
    Failure::Connect
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
        sync::oneshot,
    };

    use super::*;
    use crate::client::response_body::{MAX_BODY_READ, read_excerpt};

    /// Bytes that a stream holds before they are read.
    const BUFFER: usize = 1024;
    const REQUEST_BODY: usize = 64 * 1024;

    fn request(body: usize) -> http::Request<Full<Bytes>> {
        let request = http::Request::post("/").header("host", "hooks.example.com");
        request.body(Full::from(vec![b'x'; body])).unwrap()
    }

    /// Sends the beginning of a response within the request. Reads the rest, but for the length of
    /// the headers, when the client has received it.
    async fn respond_early(
        stream: &mut DuplexStream,
        start: &[u8],
        is_received: oneshot::Receiver<()>,
    ) {
        stream.read_exact(&mut [0; 2 * BUFFER]).await.unwrap();
        stream.write_all(start).await.unwrap();
        is_received.await.unwrap();
        let mut rest = vec![0; REQUEST_BODY - 2 * BUFFER];
        stream.read_exact(&mut rest).await.unwrap();
    }

    /// A response that begins before the request is written has no more bytes of body than others.
    #[tokio::test]
    async fn body_of_early_response_is_bounded() {
        let (stream, mut host) = duplex(BUFFER);
        let (received, is_received) = oneshot::channel();
        let host = tokio::spawn(async move {
            let start = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            respond_early(&mut host, start, is_received).await;
            let (mut request, mut response) = split(host);
            tokio::spawn(async move { request.read_to_end(&mut Vec::new()).await });
            let mut sent = 0;
            while response.write_all(b"0").await.is_ok() {
                sent += 1;
            }
            sent
        });
        let mut connection = Connection::new(stream, ByteMeter::default()).await.unwrap();
        let Ok(response) = connection.send(request(REQUEST_BODY)).await else {
            panic!("no response")
        };
        received.send(()).unwrap();
        assert!(!read_excerpt(response.into_body(), &mut None).await);
        let sent = host.await.unwrap();
        assert!(
            (MAX_BODY_READ..=MAX_BODY_READ + BUFFER).contains(&sent),
            "{sent}"
        );
    }

    /// After an early response, the connection serves another exchange, and its end is noticed.
    #[tokio::test]
    async fn connection_with_early_response_is_reused() {
        let (stream, mut host) = duplex(BUFFER);
        let (received, is_received) = oneshot::channel();
        let host = tokio::spawn(async move {
            let start = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
            respond_early(&mut host, start, is_received).await;
            host.write_all(b"ok").await.unwrap();
            // The last bytes of the first request, and the beginning of the second one.
            while host.read_u8().await.unwrap() != b'P' {}
        });
        let mut connection = Connection::new(stream, ByteMeter::default()).await.unwrap();
        let Ok(response) = connection.send(request(REQUEST_BODY)).await else {
            panic!("no response")
        };
        received.send(()).unwrap();
        assert!(read_excerpt(response.into_body(), &mut None).await);
        assert!(connection.becomes_idle().await);
        let Err(error) = connection.send(request(0)).await else {
            panic!("the host closed the connection")
        };
        host.await.unwrap();
        assert!(error.is_without_response);
        assert_eq!(error.failure, Failure::Connect);
    }
}
