//! An HTTP receiver whose behavior depends on the path of the request.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header::LOCATION},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{net::TcpListener, sync::watch, time::timeout};

/// How long a test waits for a condition before it fails.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A request as the receiver got it.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Whether `secret` made one of the signatures (Standard Webhooks 1.0.0, "Verifying
    /// signatures").
    pub fn is_signed_by(&self, secret: &str) -> bool {
        let key = match secret.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).unwrap(),
            None => secret.as_bytes().to_vec(),
        };
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key);
        let signed = format!(
            "{}.{}.{}",
            self.header("webhook-id"),
            self.header("webhook-timestamp"),
            self.body
        );
        let expected = format!(
            "v1,{}",
            STANDARD.encode(aws_lc_rs::hmac::sign(&key, signed.as_bytes()))
        );
        self.header("webhook-signature")
            .split(' ')
            .any(|signature| signature == expected)
    }

    /// Whether `secret` made `X-Nano-Signature`, the only signature in that header.
    pub fn has_nano_signature_of(&self, secret: &str) -> bool {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
        let signed = format!("{}.{}", self.header("x-nano-timestamp"), self.body);
        let expected = hex::encode(aws_lc_rs::hmac::sign(&key, signed.as_bytes()));
        self.header("x-nano-signature") == format!("v1={expected}")
    }

    /// What some gateways return: the headers that they reject, as text and in JSON.
    fn echo(&self) -> String {
        let headers = [self.header("authorization"), self.header("x-api-key")];
        format!("{headers:?} {}", serde_json::json!(headers))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A receiver. The path decides its response:
///
/// - `/status/500/…`: status 500
/// - `/echo/500/…`: status 500, and the received headers `Authorization` and `X-Api-Key`
/// - `/redirect/…`: a redirect to `/redirected`
/// - `/hang/…`: no response
/// - `/drip/…`: a body that never ends
/// - `/large/…`: a body of 1 MiB
/// - `/dead/…`: no response until the release, then status 200
/// - `/cold/…`: status 200 to every request after the release, also to those that wait for it
/// - `/held/…`: a response to the first request after its release, none to later requests
/// - any other path: status 200
#[derive(Clone)]
pub struct Receiver {
    pub url: String,
    received: Arc<Mutex<Vec<Received>>>,
    count: watch::Sender<usize>,
    released: watch::Sender<bool>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let receiver = Self {
            url,
            received: Arc::default(),
            count: watch::Sender::new(0),
            released: watch::Sender::new(false),
        };
        let router = Router::new().fallback(receive).with_state(receiver.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        receiver
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Removes the requests received so far.
    pub fn clear(&self) {
        self.received.lock().unwrap().clear();
        self.count.send_replace(0);
    }

    /// Releases the response to the held request, wakes up the cold endpoints, and revives the dead
    /// endpoint.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// Lets the cold endpoints go back to sleep.
    pub fn cool_down(&self) {
        self.released.send_replace(false);
    }

    async fn respond_after_release(&self) -> Response {
        let mut released = self.released.subscribe();
        released.wait_for(|released| *released).await.unwrap();
        "ok".into_response()
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Waits until at least `n` requests have arrived.
    pub async fn wait_for(&self, n: usize) -> Vec<Received> {
        let mut count = self.count.subscribe();
        let came = timeout(TEST_TIMEOUT, count.wait_for(|count| *count >= n))
            .await
            .is_ok();
        assert!(
            came,
            "{n} requests were expected, {} came",
            self.received().len()
        );
        self.received()
    }
}

fn parse_status(part: Option<&str>) -> StatusCode {
    StatusCode::from_u16(part.unwrap().parse().unwrap()).unwrap()
}

async fn receive(
    State(receiver): State<Receiver>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let received = Received {
        path: path.clone(),
        headers,
        body,
    };
    let echo = received.echo();
    receiver.received.lock().unwrap().push(received);
    receiver.count.send_modify(|count| *count += 1);
    let is_first = *receiver.count.borrow() == 1;
    let mut parts = path.split('/').skip(1);
    match parts.next() {
        Some("status") => (parse_status(parts.next()), "as you asked").into_response(),
        Some("echo") => (parse_status(parts.next()), echo).into_response(),
        Some("redirect") => {
            (StatusCode::FOUND, [(LOCATION, receiver.url("/redirected"))]).into_response()
        }
        Some("held") if is_first => receiver.respond_after_release().await,
        Some("cold") => receiver.respond_after_release().await,
        Some("dead") if *receiver.released.borrow() => "ok".into_response(),
        Some("dead" | "hang" | "held") => std::future::pending().await,
        Some("drip") => {
            let drops = futures_util::stream::unfold((), async |()| {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b".")), ()))
            });
            axum::body::Body::from_stream(drops).into_response()
        }
        Some("large") => "x".repeat(1024 * 1024).into_response(),
        _ => "ok".into_response(),
    }
}
