//! What the tests stand on: tables in a real engine, and a receiver that behaves as its URL says.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_sdk_dynamodb::types::{AttributeValue, TimeToLiveSpecification};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header::LOCATION},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use nano_webhooks::{
    clock::Clock,
    data_key::KeyBytes,
    delivery::{
        attempt::{Outcome, Request},
        schedule::Schedule,
    },
    dispatch::{Dispatcher, Gates},
    event::EventId,
    local::{dynamodb, engine::Engine},
    metrics::Metrics,
    queue::{Queue, Timer},
    random,
    store::{
        Store, Tables, tables,
        vault::{Vault, Wrapping},
    },
    transport::{Client, Guard, client::Limits, guard::Policy},
    webhook::{Account, EndpointUrl, EventType},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::timeout,
};

/// How long a condition may take to come true before the test has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The engine that tests are to use instead of the embedded one.
pub fn other_engine() -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "tests are told here which engine to use")]
    std::env::var("TEST_DYNAMODB_ENDPOINT").ok()
}

/// Tables of one's own in a real engine: the embedded one, or the one that `TEST_DYNAMODB_ENDPOINT` names.
pub struct World {
    pub client: aws_sdk_dynamodb::Client,
    pub endpoint: String,
    pub tables: Tables,
    /// The platform's table.
    pub jobs: String,
    pub store: Store,
    pub vault: Vault,
    pub queue: Queue,
    timers: Mutex<mpsc::Receiver<Timer>>,
    _engine: Option<Engine>,
}

impl World {
    pub async fn new() -> Self {
        let (engine, endpoint) = if let Some(endpoint) = other_engine() {
            (None, endpoint)
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let engine = Engine::start(listener, None).unwrap_or_else(|failed| panic!("{failed:?}"));
            (Some(engine), endpoint)
        };
        let unique = random::request_id();
        let tables = Tables { webhooks: format!("webhooks-{unique}"), deliveries: format!("deliveries-{unique}") };
        let jobs = format!("jobs-{unique}");
        let client = dynamodb(&endpoint);
        tables::create_missing(&client, &tables, &jobs).await.unwrap();
        // By the engine's clock, all that tests write by theirs has expired long ago.
        for table in [&tables.webhooks, &tables.deliveries] {
            let never =
                TimeToLiveSpecification::builder().attribute_name(tables::EXPIRES_AT).enabled(false).build().unwrap();
            client.update_time_to_live().table_name(table).time_to_live_specification(never).send().await.unwrap();
        }
        let vault = Vault::new(Wrapping::Local(KeyBytes::generate()));
        let store = Store::new(client.clone(), tables.clone(), vault.clone());
        let (sender, timers) = mpsc::channel(10_000);
        Self {
            client,
            endpoint,
            tables,
            jobs,
            store,
            vault,
            queue: Queue::Local(sender),
            timers: Mutex::new(timers),
            _engine: engine,
        }
    }

    /// A dispatcher whose clock is the machine's and whose targets may be anything.
    pub fn dispatcher(&self) -> Dispatcher {
        Dispatcher {
            store: self.store.clone(),
            direct: Client::new(Guard::new(Policy::Any, vec![]), Limits::DIRECT, None).unwrap(),
            queued: client(),
            queue: self.queue.clone(),
            gates: Gates::default(),
            clock: Clock::system(),
            schedule: Schedule::default(),
            retention: Duration::from_hours(24),
            disable_after: Duration::from_hours(120),
            metrics: Metrics::embedded(),
        }
    }

    /// The same tables through another client.
    pub fn store_through(&self, client: aws_sdk_dynamodb::Client) -> Store {
        Store::new(client, self.tables.clone(), self.vault.clone())
    }

    /// The timers that were set since the last look.
    pub fn timers(&self) -> Vec<Timer> {
        let mut timers = self.timers.lock().unwrap();
        std::iter::from_fn(|| timers.try_recv().ok()).collect()
    }

    /// Every item of a table.
    pub async fn items(&self, table: &str) -> Vec<std::collections::HashMap<String, AttributeValue>> {
        let scan = self.client.scan().table_name(table).consistent_read(true);
        scan.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await.unwrap()
    }

    /// The webhooks table's items whose partition key begins with `prefix`.
    pub async fn items_under(&self, prefix: &str) -> Vec<std::collections::HashMap<String, AttributeValue>> {
        let mut items = self.items(&self.tables.webhooks).await;
        items.retain(|item| item["PK"].as_s().unwrap().starts_with(prefix));
        items
    }
}

/// A client that may call anything.
pub fn client() -> Client {
    Client::new(Guard::new(Policy::Any, vec![]), Limits::QUEUED, None).unwrap()
}

/// Makes one attempt of an unsigned event.
pub async fn post(client: &Client, url: &str) -> Outcome {
    let request = Request {
        id: &EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
        event: EventType::JobCompleted,
        number: 1,
        at: Clock::system().now(),
        signatures: None,
        traceparent: None,
        version: "0",
    };
    client.attempt(&EndpointUrl::parse(url).unwrap(), request, "{}", Duration::from_secs(10)).await.1
}

pub fn account(name: &str) -> Account {
    Account::parse(name).unwrap()
}

/// A request that the receiver got.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Whether one of its Standard Webhooks signatures is that of `secret` (Standard Webhooks 1.0.0, "Verifying signatures").
    pub fn is_signed_by(&self, secret: &str) -> bool {
        let key = match secret.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).unwrap(),
            None => secret.as_bytes().to_vec(),
        };
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key);
        let signed = format!("{}.{}.{}", self.header("webhook-id"), self.header("webhook-timestamp"), self.body);
        let expected = format!("v1,{}", STANDARD.encode(aws_lc_rs::hmac::sign(&key, signed.as_bytes())));
        self.header("webhook-signature").split(' ').any(|signature| signature == expected)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A receiver. `/status/500/…` answers 500, `/redirect/…` redirects to `/redirected`, `/hang/…` never answers, `/drip/…`
/// never ends its body, `/large/…` answers 1 MiB, `/held/…` answers the first request when it is released and no other, anything
/// else 200.
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
        let receiver =
            Self { url, received: Arc::default(), count: watch::Sender::new(0), released: watch::Sender::new(false) };
        let router = Router::new().fallback(receive).with_state(receiver.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        receiver
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Begins anew.
    pub fn forget(&self) {
        self.received.lock().unwrap().clear();
        self.count.send_replace(0);
    }

    /// Has it answer what is held.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Waits until at least `n` requests came.
    pub async fn wait_for(&self, n: usize) -> Vec<Received> {
        let mut count = self.count.subscribe();
        let came = timeout(PATIENCE, count.wait_for(|count| *count >= n)).await.is_ok();
        assert!(came, "{n} requests were expected, {} came", self.received().len());
        self.received()
    }
}

async fn receive(State(receiver): State<Receiver>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let path = uri.path().to_owned();
    let body = String::from_utf8(body.to_vec()).unwrap();
    receiver.received.lock().unwrap().push(Received { path: path.clone(), headers, body });
    receiver.count.send_modify(|count| *count += 1);
    let is_first = *receiver.count.borrow() == 1;
    let mut parts = path.split('/').skip(1);
    match parts.next() {
        Some("status") => {
            let status = StatusCode::from_u16(parts.next().unwrap().parse().unwrap()).unwrap();
            (status, "as you asked").into_response()
        }
        Some("redirect") => (StatusCode::FOUND, [(LOCATION, receiver.url("/redirected"))]).into_response(),
        Some("held") if is_first => {
            receiver.released.subscribe().wait_for(|released| *released).await.unwrap();
            "ok".into_response()
        }
        Some("hang" | "held") => std::future::pending().await,
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
