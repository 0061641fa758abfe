//! Stands between the SDK and the engine, and makes one request go wrong in the way that a test asks for.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Request, Response, StatusCode},
};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies before the request is made.
    CrashBefore,
    /// The process dies after the request was carried out, before the response comes.
    CrashAfter,
    /// DynamoDB is at fault, in every try of the SDK.
    ServerError,
    /// DynamoDB refuses to do so much, in every try.
    Throttled,
    /// The request is carried out, and its response does not come; the SDK's next try goes through.
    ResponseLost,
    /// Nothing answers, in every try.
    Timeout,
    /// Of a batch of writes those to a hot partition, that of a webhook 2, are left undone, for so many requests.
    PartialBatch(usize),
    /// The creation of a webhook is carried out as if another request had made it, and refused as one that has met the other
    /// half-way: the counter is at its limit, and the idempotency record is not to be seen yet.
    ConcurrentCreate,
}

/// How many tries the SDK makes.
const TRIES: usize = 3;

/// What requests used: DynamoDB bills the units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ConsumedCapacity {
    pub requests: usize,
    pub read_units: f64,
    pub write_units: f64,
}

/// The request, asking what it uses.
fn asking_for_units(body: &Bytes) -> Bytes {
    let mut request: Value = serde_json::from_slice(body).unwrap();
    request["ReturnConsumedCapacity"] = "TOTAL".into();
    request.to_string().into()
}

/// The units that an response tells of, for one table or several.
fn capacity_units(body: &Bytes) -> f64 {
    let response: Value = serde_json::from_slice(body).unwrap_or_default();
    let of = |told: &Value| told["CapacityUnits"].as_f64().unwrap_or_default();
    match &response["ConsumedCapacity"] {
        Value::Array(tables) => tables.iter().map(of).sum(),
        table => of(table),
    }
}

/// The fault that waits for its request.
#[derive(Clone, Copy, Debug)]
struct PendingFault {
    operation: &'static str,
    /// How many such requests go through before.
    skip: usize,
    fault: Fault,
    /// How many tries it hits.
    hits: usize,
}

/// The proxy.
#[derive(Clone)]
pub struct Proxy {
    pub url: String,
    engine: String,
    client: Client<HttpConnector, Full<Bytes>>,
    armed: Arc<Mutex<Option<PendingFault>>>,
    counts: Arc<Mutex<BTreeMap<String, usize>>>,
    /// What the engine says that the requests used.
    used: Arc<Mutex<ConsumedCapacity>>,
    crashes: watch::Sender<usize>,
}

impl Proxy {
    pub async fn start(engine: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::builder(TokioExecutor::new()).build_http();
        let proxy = Self {
            url,
            engine,
            client,
            armed: Arc::default(),
            counts: Arc::default(),
            used: Arc::default(),
            crashes: watch::Sender::new(0),
        };
        tokio::spawn(
            axum::serve(
                listener,
                Router::new().fallback(pass).with_state(proxy.clone()),
            )
            .into_future(),
        );
        proxy
    }

    /// Lets the request to `operation` that comes after `skip` others go wrong.
    pub fn arm(&self, operation: &'static str, skip: usize, fault: Fault) {
        let hits = match fault {
            Fault::ServerError | Fault::Throttled | Fault::Timeout => TRIES,
            Fault::CrashBefore
            | Fault::CrashAfter
            | Fault::ResponseLost
            | Fault::ConcurrentCreate => 1,
            Fault::PartialBatch(requests) => requests,
        };
        *self.armed.lock().unwrap() = Some(PendingFault {
            operation,
            skip,
            fault,
            hits,
        });
    }

    /// How many requests were made, by operation.
    pub fn counts(&self) -> Vec<(String, usize)> {
        self.counts.lock().unwrap().clone().into_iter().collect()
    }

    /// What the requests since the last look used.
    pub fn take_used(&self) -> ConsumedCapacity {
        std::mem::take(&mut self.used.lock().unwrap())
    }

    /// Whether the fault is still to come; disarms it.
    pub fn disarm(&self) -> bool {
        self.armed.lock().unwrap().take().is_some()
    }

    /// Runs `work` until it ends, or until the process that does it dies: then there is no result.
    pub async fn until_crash<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut crashes = self.crashes.subscribe();
        crashes.mark_unchanged();
        tokio::select! {
            result = work => Some(result),
            _ = crashes.changed() => None,
        }
    }

    fn fault_of(&self, operation: &str) -> Option<Fault> {
        let mut slot = self.armed.lock().unwrap();
        let armed = slot.as_mut().filter(|armed| armed.operation == operation)?;
        if armed.skip > 0 {
            armed.skip -= 1;
            return None;
        }
        armed.hits -= 1;
        let (fault, spent) = (armed.fault, armed.hits == 0);
        if spent {
            *slot = None;
        }
        Some(fault)
    }

    async fn forward(&self, headers: &HeaderMap, body: Bytes) -> Response<Body> {
        let mut request = Request::post(&self.engine);
        for name in [
            "x-amz-target",
            "content-type",
            "authorization",
            "x-amz-date",
        ] {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value);
            }
        }
        let (target, body) = (
            headers["x-amz-target"].to_str().unwrap(),
            asking_for_units(&body),
        );
        let response = self
            .client
            .request(request.body(Full::new(body)).unwrap())
            .await
            .unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let units = capacity_units(&body);
        let mut used = self.used.lock().unwrap();
        used.requests += 1;
        let reads = ["GetItem", "BatchGetItem", "Query", "Scan"]
            .iter()
            .any(|read| target.ends_with(&format!(".{read}")));
        *(if reads {
            &mut used.read_units
        } else {
            &mut used.write_units
        }) += units;
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = head.status;
        // How the engine framed the body is between it and the proxy.
        if let Some(kind) = head.headers.get("content-type") {
            response.headers_mut().insert("content-type", kind.clone());
        }
        response
    }
}

async fn pass(State(proxy): State<Proxy>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let target = headers
        .get("x-amz-target")
        .map_or("", |target| target.to_str().unwrap());
    let operation = target.rsplit('.').next().unwrap();
    let refusal = |status, kind: &str| {
        let body = format!(
            r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{kind}","message":"as the test asks"}}"#
        );
        Response::builder()
            .status(status)
            .header("content-type", "application/x-amz-json-1.0")
            .body(Body::from(body))
            .unwrap()
    };
    *proxy
        .counts
        .lock()
        .unwrap()
        .entry(operation.to_owned())
        .or_default() += 1;
    match proxy.fault_of(operation) {
        None => proxy.forward(&headers, body).await,
        Some(Fault::CrashBefore) => {
            proxy.crashes.send_modify(|crashes| *crashes += 1);
            pending().await
        }
        Some(Fault::CrashAfter) => {
            // Read whole, so that the engine has carried it out.
            proxy
                .forward(&headers, body)
                .await
                .into_body()
                .collect()
                .await
                .unwrap();
            proxy.crashes.send_modify(|crashes| *crashes += 1);
            pending().await
        }
        Some(Fault::ServerError) => {
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError")
        }
        Some(Fault::Throttled) => refusal(StatusCode::BAD_REQUEST, "ThrottlingException"),
        Some(Fault::ResponseLost) => {
            proxy
                .forward(&headers, body)
                .await
                .into_body()
                .collect()
                .await
                .unwrap();
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError")
        }
        Some(Fault::Timeout) => pending().await,
        Some(Fault::ConcurrentCreate) => {
            proxy
                .forward(&headers, body)
                .await
                .into_body()
                .collect()
                .await
                .unwrap();
            let counter = json!({"last_id": {"N": "1"}, "webhooks": {"N": "50"}});
            let cancelled = json!({
                "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
                "message": "as the test asks",
                "CancellationReasons":
                    [{"Code": "ConditionalCheckFailed", "Item": counter}, {"Code": "None"}, {"Code": "TransactionConflict"}],
            });
            Response::builder()
                .status(StatusCode::BAD_REQUEST)
                .body(Body::from(cancelled.to_string()))
                .unwrap()
        }
        Some(Fault::PartialBatch(_)) => {
            let mut request: Value = serde_json::from_slice(&body).unwrap();
            let mut left = json!({});
            for (table, writes) in request["RequestItems"].as_object_mut().unwrap() {
                let is_hot = |write: &Value| {
                    write["PutRequest"]["Item"]["PK"]["S"]
                        .as_str()
                        .unwrap()
                        .ends_with("#2")
                };
                let (hot, others): (Vec<_>, Vec<_>) =
                    writes.as_array().unwrap().iter().cloned().partition(is_hot);
                left[table] = json!(hot);
                *writes = json!(others);
            }
            request["RequestItems"]
                .as_object_mut()
                .unwrap()
                .retain(|_, writes| !writes.as_array().unwrap().is_empty());
            if !request["RequestItems"].as_object().unwrap().is_empty() {
                proxy
                    .forward(&headers, request.to_string().into())
                    .await
                    .into_body()
                    .collect()
                    .await
                    .unwrap();
            }
            Response::new(Body::from(json!({ "UnprocessedItems": left }).to_string()))
        }
    }
}
