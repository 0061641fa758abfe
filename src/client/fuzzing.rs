//! Exchanges over any stream, for the fuzz targets. Compiled only with `--cfg fuzzing`.

use http_body_util::Full;
use hyper::body::Bytes;
use nano_webhooks_core::delivery::failure::Failure;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    byte_meter::{ByteMeter, MAX_BYTES_BEFORE_HEADERS},
    connection::Connection,
    response_body::{MAX_BODY_READ, read_excerpt},
};

/// The most bytes that an exchange reads, but for what its last read returns.
pub const MAX_READ: usize = MAX_BYTES_BEFORE_HEADERS + MAX_BODY_READ;

/// What an exchange got: a status code or a failure.
#[derive(Debug)]
pub struct Exchange {
    /// The status code of the final response.
    pub outcome: Result<u16, Failure>,
    /// The beginning of its body.
    pub body_excerpt: Option<String>,
}

/// Makes exchanges over a stream until its connection cannot be reused.
pub async fn exchange_over<S>(stream: S, max_exchanges: usize) -> Vec<Exchange>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection = Connection::new(stream, ByteMeter::default()).await;
    let mut connection = connection.expect("there is no handshake");
    let mut exchanges = Vec::new();
    while exchanges.len() < max_exchanges {
        let request = http::Request::post("/").header("host", "hooks.example.com");
        let request = request.body(Full::from(Bytes::from_static(b"{}")));
        let mut body_excerpt = None;
        let (outcome, is_complete) = match connection.send(request.expect("a request")).await {
            Ok(response) => {
                let status = response.status().as_u16();
                let body = response.into_body();
                (Ok(status), read_excerpt(body, &mut body_excerpt).await)
            }
            Err(error) => (Err(error.failure), false),
        };
        exchanges.push(Exchange {
            outcome,
            body_excerpt,
        });
        if !is_complete || !connection.becomes_idle().await {
            break;
        }
    }
    exchanges
}
