//! The case of header names on the wire.
//!
//! Names are equal whatever their case, and the HTTP library holds them in lowercase. It writes
//! them in title case, such as `X-Api-Key`, unless the request has an extension with another
//! spelling. The type of that extension is private: only the library's parser makes it. So a parser
//! reads a response with the names, and requests get a copy of the response's extensions.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::{Extensions, Request};
use http_body_util::Empty;
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use nano_webhooks_core::static_headers::StaticHeaders;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// The names of the service that are not in title case.
const LOWERCASE_NAMES: [&str; 4] = [
    "traceparent",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];
/// The bytes that a connection in memory holds, more than of any request or response here.
const BUFFER: usize = 16 * 1024;

/// The most combinations of unusual names whose spelling is kept.
pub const MAX_KEPT: usize = 256;

/// Makes spellings, and keeps them. Clones share those that are kept.
#[derive(Clone, Default)]
pub(super) struct HeaderCase {
    kept: Arc<Mutex<HashMap<UnusualNames, Spelling>>>,
}

/// How header names are written. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Spelling(Arc<Extensions>);

impl Spelling {
    /// Sets how a request's header names are written.
    pub(super) fn apply<B>(&self, request: &mut Request<B>) {
        *request.extensions_mut() = Extensions::clone(&self.0);
    }
}

impl HeaderCase {
    /// The spelling of a request with these static headers.
    pub(super) async fn spell(&self, headers: &UnusualNames) -> Spelling {
        if let Some(spelling) = self.lock().get(headers) {
            return spelling.clone();
        }
        let mut names = LOWERCASE_NAMES.to_vec();
        names.extend(headers.0.iter().map(String::as_str));
        let spelling = Spelling(Arc::new(Box::pin(spell(&names)).await));
        if spelling.0.is_empty() {
            return spelling;
        }
        let mut kept = self.lock();
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(headers.clone(), spelling.clone());
        spelling
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UnusualNames, Spelling>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of static headers that are not in title case.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct UnusualNames(Vec<String>);

impl UnusualNames {
    pub(super) fn new(headers: &StaticHeaders) -> Self {
        let mut names = Vec::new();
        for header in headers.as_slice() {
            if !is_title_case(header.name()) {
                names.push(header.name().to_owned());
            }
        }
        Self(names)
    }
}

/// Whether exactly the first letter and those after a hyphen are uppercase.
fn is_title_case(name: &str) -> bool {
    let mut is_first = true;
    for byte in name.bytes() {
        let is_expected = if is_first {
            !byte.is_ascii_lowercase()
        } else {
            !byte.is_ascii_uppercase()
        };
        if !is_expected {
            return false;
        }
        is_first = byte == b'-';
    }
    true
}

/// The extensions of requests whose names are written as given. If the library does not make them,
/// names are in title case, which means the same.
async fn spell(names: &[&str]) -> Extensions {
    let mut response = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n".to_owned();
    for name in names {
        write!(response, "{name}: x\r\n").expect("writing to a string succeeds");
    }
    response.push_str("\r\n");
    let (client, server) = duplex(BUFFER);
    let (extensions, ()) = tokio::join!(receive(client), respond(server, &response));
    extensions.unwrap_or_default()
}

/// Sends a request, and returns the extensions of its response.
async fn receive(stream: DuplexStream) -> hyper::Result<Extensions> {
    let (mut sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .handshake(TokioIo::new(stream))
        .await?;
    let request = Request::new(Empty::<Bytes>::new());
    let exchange = async move { sender.send_request(request).await };
    let (response, _) = tokio::join!(exchange, connection);
    Ok(response?.into_parts().0.extensions)
}

/// Responds to a request and closes the connection.
async fn respond(mut stream: DuplexStream, response: &str) {
    // An error ends the exchange on the other side too.
    if stream.read(&mut [0; 64]).await.is_ok() {
        let _ = stream.write_all(response.as_bytes()).await;
    }
}

#[cfg(test)]
mod tests {
    use nano_webhooks_core::static_headers::StaticHeaderName;

    use super::*;

    #[test]
    fn title_case_is_found() {
        for name in ["X-Api-Key", "Authorization", "X-1-A", "-X", "!-X", "A_b"] {
            assert!(is_title_case(name), "{name}");
        }
        for name in ["x-api-key", "X-API-Key", "X-Api-key", "cookie", "A_B", "x"] {
            assert!(!is_title_case(name), "{name}");
        }
    }

    /// Ten names of the greatest length fit into the connection in memory.
    #[tokio::test]
    async fn longest_names_are_spelled() {
        let mut headers = StaticHeaders::default();
        for number in 0..StaticHeaders::MAX {
            let name = format!("{}{number}", "x".repeat(StaticHeaderName::MAX - 1));
            let name = StaticHeaderName::parse(name).unwrap();
            headers.try_insert(name, "v".to_owned()).unwrap();
        }
        let case = HeaderCase::default();
        let common = case.spell(&UnusualNames::default()).await;
        assert!(!common.0.is_empty());
        let own = case.spell(&UnusualNames::new(&headers)).await;
        assert!(!own.0.is_empty());
        assert_eq!(case.lock().len(), 2);
    }

    #[tokio::test]
    async fn kept_spellings_are_bounded() {
        let case = HeaderCase::default();
        for number in 0..=MAX_KEPT {
            let names = UnusualNames(vec![format!("x-{number}")]);
            assert!(!case.spell(&names).await.0.is_empty());
        }
        assert_eq!(case.lock().len(), 1);
    }
}
