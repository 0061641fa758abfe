//! An endpoint that responds 200 at once and notes when each job arrived. `/hang` never responds.

use std::{
    collections::HashMap,
    future, mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Collected, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
};

use tokio::time::sleep;

use super::{http, process_stats};

/// How long [`Receiver::wait_for`] waits for the next request.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How much of a body is searched for the task id.
const MAX_SEARCHED: usize = 200;

/// The receiver.
#[derive(Clone)]
pub struct Receiver {
    /// Its URL.
    pub url: String,
    count: Arc<AtomicUsize>,
    arrivals: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Receiver {
    /// Starts a receiver on its own thread.
    pub fn start() -> Self {
        let mut receiver = Self {
            url: String::new(),
            count: Arc::default(),
            arrivals: Arc::default(),
        };
        receiver.url = http::start(receiver.clone(), Self::respond);
        receiver
    }

    /// The number of requests so far, without those to `/hang`.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until `count` requests arrived.
    ///
    /// # Panics
    /// If no request arrives for ten seconds.
    pub async fn wait_for(&self, count: usize) {
        let mut last_count = 0;
        let mut last_arrival = process_stats::now();
        while self.count() < count {
            if self.count() > last_count {
                last_count = self.count();
                last_arrival = process_stats::now();
            } else {
                assert!(
                    last_arrival.elapsed() <= MAX_PAUSE,
                    "{last_count} of {count} events arrived"
                );
            }
            sleep(Duration::from_micros(500)).await;
        }
    }

    /// Removes and returns the time of each job's first arrival, by task id.
    pub fn take_arrivals(&self) -> HashMap<String, Instant> {
        mem::take(&mut self.arrivals.lock().expect("the lock is not poisoned"))
    }

    async fn respond(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        if head.uri.path().starts_with("/hang") {
            future::pending::<()>().await;
        }
        let body = body
            .collect()
            .await
            .map(Collected::to_bytes)
            .unwrap_or_default();
        if let Some(task) = find_latency_task(&body) {
            let mut arrivals = self.arrivals.lock().expect("the lock is not poisoned");
            arrivals.entry(task).or_insert_with(process_stats::now);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        Response::new(Full::new(Bytes::from_static(b"ok")))
    }
}

/// The task id of an event whose latency is measured. These ids start with `lat`.
fn find_latency_task(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_SEARCHED)]);
    let (_, rest) = text.split_once("\"task_id\":\"lat")?;
    let (rest, _) = rest.split_once('"')?;
    Some(format!("lat{rest}"))
}
