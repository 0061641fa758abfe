//! A proxy between the SDK and the engine, which injects one fault and counts requests.

use std::{
    collections::{BTreeMap, HashMap},
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

/// The fault of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies before the request is made.
    CrashBefore,
    /// The process dies after the request was executed, before the response arrives.
    CrashAfter,
    /// DynamoDB returns a server error to every try of the SDK.
    ServerError,
    /// DynamoDB throttles every try of the SDK.
    Throttled,
    /// DynamoDB throttles every request from now on.
    ThrottledAlways,
    /// The request is executed, and its response is lost. The SDK's next try succeeds.
    ResponseLost,
    /// No try of the SDK gets a response.
    Timeout,
    /// A batch leaves the writes to the hot partition of webhook 2 unprocessed, in this many
    /// requests.
    PartialBatch(usize),
    /// A webhook is created as if by a concurrent request, and this request is rejected: the
    /// counter is at its limit, and the idempotency record is not visible yet.
    ConcurrentCreate,
}

/// The number of tries that the SDK makes.
const TRIES: usize = 3;

/// The number of requests, and the units that DynamoDB bills.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ConsumedCapacity {
    pub requests: usize,
    pub read_units: f64,
    pub write_units: f64,
}

/// The request with the option that returns its consumed capacity.
fn asking_for_units(body: &Bytes) -> Bytes {
    let mut request: Value = serde_json::from_slice(body).unwrap();
    request["ReturnConsumedCapacity"] = "TOTAL".into();
    request.to_string().into()
}

/// The consumed units in a response, for one table or several.
fn capacity_units(body: &Bytes) -> f64 {
    let response: Value = serde_json::from_slice(body).unwrap_or_default();
    let units = |capacity: &Value| capacity["CapacityUnits"].as_f64().unwrap_or_default();
    match &response["ConsumedCapacity"] {
        Value::Array(tables) => tables.iter().map(units).sum(),
        table => units(table),
    }
}

/// A fault whose request has not been made.
#[derive(Clone, Copy, Debug)]
struct PendingFault {
    operation: &'static str,
    /// Only requests whose body contains this text have the fault.
    body: &'static str,
    /// The number of such requests that succeed before the fault.
    skip: usize,
    fault: Fault,
    /// The number of tries that the fault hits.
    hits: usize,
}

/// Forwards requests to the engine and injects faults.
#[derive(Clone)]
pub struct Proxy {
    pub url: String,
    engine: String,
    client: Client<HttpConnector, Full<Bytes>>,
    armed: Arc<Mutex<Option<PendingFault>>>,
    counts: Arc<Mutex<BTreeMap<String, usize>>>,
    /// The consumed capacity that the engine reported.
    used: Arc<Mutex<ConsumedCapacity>>,
    crashes: watch::Sender<usize>,
    /// What happens to updates of items in these partitions.
    partitions: Arc<Mutex<Vec<(String, PartitionFault)>>>,
    /// The latest response to a query of each shard of the due index, while the index lags.
    lagging_due_index: Arc<Mutex<Option<HashMap<String, Bytes>>>>,
}

/// What happens to updates of items in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionFault {
    /// DynamoDB throttles them.
    Throttled,
    /// Their conditions fail, because another process has changed the items.
    Changed,
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
            partitions: Arc::default(),
            lagging_due_index: Arc::default(),
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

    /// Injects the fault into the request of `operation` that follows `skip` others.
    pub fn arm(&self, operation: &'static str, skip: usize, fault: Fault) {
        self.arm_matching(operation, "", skip, fault);
    }

    /// Does the same for requests whose body contains a text.
    pub fn arm_matching(
        &self,
        operation: &'static str,
        body: &'static str,
        skip: usize,
        fault: Fault,
    ) {
        let hits = match fault {
            Fault::ServerError | Fault::Throttled | Fault::Timeout => TRIES,
            Fault::CrashBefore
            | Fault::CrashAfter
            | Fault::ResponseLost
            | Fault::ConcurrentCreate => 1,
            Fault::PartialBatch(requests) => requests,
            Fault::ThrottledAlways => usize::MAX,
        };
        *self.armed.lock().unwrap() = Some(PendingFault {
            operation,
            body,
            skip,
            fault,
            hits,
        });
    }

    /// Injects a fault into all updates and transactions of items in these partitions, until the
    /// next call.
    pub fn set_partition_fault(&self, partitions: &[&str], fault: PartitionFault) {
        let partitions = partitions.iter();
        *self.partitions.lock().unwrap() = partitions
            .map(|partition| (format!(r#""{partition}""#), fault))
            .collect();
    }

    /// While the due index lags, a query of a shard returns what the previous one should have.
    pub fn set_due_index_lags(&self, lags: bool) {
        let mut lagging = self.lagging_due_index.lock().unwrap();
        if lags != lagging.is_some() {
            *lagging = lags.then(HashMap::new);
        }
    }

    fn partition_fault(&self, operation: &str, body: &Bytes) -> Option<PartitionFault> {
        if !matches!(operation, "UpdateItem" | "TransactWriteItems") {
            return None;
        }
        let partitions = self.partitions.lock().unwrap();
        let hit = partitions.iter().find(|(text, _)| contains(body, text));
        hit.map(|(_, fault)| *fault)
    }

    /// The earlier response to a query of the due index, if the index lags.
    async fn delay_response(&self, body: &Bytes, response: Response<Body>) -> Response<Body> {
        let request: Value = serde_json::from_slice(body).unwrap();
        if request["IndexName"] != "due" || self.lagging_due_index.lock().unwrap().is_none() {
            return response;
        }
        let shard = request["ExpressionAttributeValues"][":shard"]["S"].as_str();
        let current = response.into_body().collect().await.unwrap().to_bytes();
        let mut lagging = self.lagging_due_index.lock().unwrap();
        let earlier = lagging
            .as_mut()
            .and_then(|shards| shards.insert(shard.unwrap().to_owned(), current));
        Response::new(match earlier {
            Some(earlier) => Body::from(earlier),
            None => Body::from(json!({ "Items": [], "Count": 0 }).to_string()),
        })
    }

    /// The number of requests of each operation.
    pub fn counts(&self) -> Vec<(String, usize)> {
        self.counts.lock().unwrap().clone().into_iter().collect()
    }

    /// The consumed capacity since the last call.
    pub fn take_used(&self) -> ConsumedCapacity {
        std::mem::take(&mut self.used.lock().unwrap())
    }

    /// Removes the fault, and returns whether it had not occurred.
    pub fn disarm(&self) -> bool {
        self.armed.lock().unwrap().take().is_some()
    }

    /// Runs `work` until it ends. Returns `None` if the process dies before.
    pub async fn until_crash<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut crashes = self.crashes.subscribe();
        crashes.mark_unchanged();
        tokio::select! {
            result = work => Some(result),
            _ = crashes.changed() => None,
        }
    }

    fn take_fault(&self, operation: &str, body: &Bytes) -> Option<Fault> {
        let mut slot = self.armed.lock().unwrap();
        let armed = slot.as_mut()?;
        if armed.operation != operation || !contains(body, armed.body) {
            return None;
        }
        if armed.skip > 0 {
            armed.skip -= 1;
            return None;
        }
        armed.hits -= 1;
        let fault = armed.fault;
        if armed.hits == 0 {
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
        let target = headers["x-amz-target"].to_str().unwrap();
        let body = asking_for_units(&body);
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
        // The framing of the body applies only between the engine and the proxy.
        if let Some(kind) = head.headers.get("content-type") {
            response.headers_mut().insert("content-type", kind.clone());
        }
        response
    }
}

impl Proxy {
    /// Forwards the request, and drops the response when it has ended.
    async fn execute(&self, headers: &HeaderMap, body: Bytes) {
        let response = self.forward(headers, body).await;
        response.into_body().collect().await.unwrap();
    }

    /// Forwards the writes of a batch that are not to the hot partition.
    async fn write_partially(&self, headers: &HeaderMap, body: &Bytes) -> Response<Body> {
        let mut request: Value = serde_json::from_slice(body).unwrap();
        let mut unprocessed = json!({});
        let tables = request["RequestItems"].as_object_mut().unwrap();
        for (table, writes) in &mut *tables {
            let (hot, others): (Vec<_>, Vec<_>) =
                writes.as_array().unwrap().iter().cloned().partition(is_hot);
            unprocessed[table] = json!(hot);
            *writes = json!(others);
        }
        tables.retain(|_, writes| !writes.as_array().unwrap().is_empty());
        if !tables.is_empty() {
            self.execute(headers, request.to_string().into()).await;
        }
        let body = json!({ "UnprocessedItems": unprocessed }).to_string();
        Response::new(Body::from(body))
    }
}

fn contains(body: &Bytes, text: &str) -> bool {
    std::str::from_utf8(body).unwrap().contains(text)
}

async fn pass(State(proxy): State<Proxy>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let target = headers
        .get("x-amz-target")
        .map_or("", |target| target.to_str().unwrap());
    let operation = target.rsplit('.').next().unwrap();
    *proxy
        .counts
        .lock()
        .unwrap()
        .entry(operation.to_owned())
        .or_default() += 1;
    match proxy.partition_fault(operation, &body) {
        None => {}
        Some(PartitionFault::Throttled) => {
            return refusal(
                StatusCode::BAD_REQUEST,
                "ProvisionedThroughputExceededException",
            );
        }
        Some(PartitionFault::Changed) => {
            return refusal(StatusCode::BAD_REQUEST, "ConditionalCheckFailedException");
        }
    }
    match proxy.take_fault(operation, &body) {
        None if operation == "Query" => {
            let response = proxy.forward(&headers, body.clone()).await;
            proxy.delay_response(&body, response).await
        }
        None => proxy.forward(&headers, body).await,
        Some(Fault::CrashBefore) => {
            proxy.crashes.send_modify(|crashes| *crashes += 1);
            pending().await
        }
        Some(Fault::CrashAfter) => {
            proxy.execute(&headers, body).await;
            proxy.crashes.send_modify(|crashes| *crashes += 1);
            pending().await
        }
        Some(Fault::ServerError) => {
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError")
        }
        Some(Fault::Throttled | Fault::ThrottledAlways) => {
            refusal(StatusCode::BAD_REQUEST, "ThrottlingException")
        }
        Some(Fault::ResponseLost) => {
            proxy.execute(&headers, body).await;
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError")
        }
        Some(Fault::Timeout) => pending().await,
        Some(Fault::ConcurrentCreate) => {
            proxy.execute(&headers, body).await;
            account_at_limit()
        }
        Some(Fault::PartialBatch(_)) => proxy.write_partially(&headers, &body).await,
    }
}

fn refusal(status: StatusCode, kind: &str) -> Response<Body> {
    let body = format!(
        r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{kind}","message":"injected fault"}}"#
    );
    Response::builder()
        .status(status)
        .header("content-type", "application/x-amz-json-1.0")
        .body(Body::from(body))
        .unwrap()
}

/// Cancels the transaction that creates a webhook, because the account has 50 webhooks.
fn account_at_limit() -> Response<Body> {
    let counter = json!({"last_id": {"N": "1"}, "webhooks": {"N": "50"}});
    let cancelled = json!({
        "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        "message": "injected fault",
        "CancellationReasons": [
            {"Code": "ConditionalCheckFailed", "Item": counter},
            {"Code": "None"},
            {"Code": "TransactionConflict"},
        ],
    });
    Response::builder()
        .status(StatusCode::BAD_REQUEST)
        .body(Body::from(cancelled.to_string()))
        .unwrap()
}

/// Whether the write is to the partition of webhook 2.
fn is_hot(write: &Value) -> bool {
    let partition = write["PutRequest"]["Item"]["PK"]["S"].as_str();
    partition.unwrap().ends_with("#2")
}
