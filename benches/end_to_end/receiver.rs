//! An endpoint that responds 200 at once and notes when each job arrived. `/hang` never responds.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
};

use super::{http, process_stats};

/// The receiver.
#[derive(Clone)]
pub struct Receiver {
    /// Where it listens.
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

    /// Waits for `count` requests; `false` if none arrived for ten seconds.
    pub async fn wait_for(&self, count: usize) -> bool {
        let (mut seen, mut since) = (0, process_stats::now());
        while self.count() < count {
            if self.count() > seen {
                (seen, since) = (self.count(), process_stats::now());
            } else if since.elapsed() > Duration::from_secs(10) {
                return false;
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        true
    }

    /// Takes the times of each job's first arrival, by task id.
    pub fn take_arrivals(&self) -> HashMap<String, Instant> {
        std::mem::take(&mut self.arrivals.lock().expect("the lock is not poisoned"))
    }

    async fn respond(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        if head.uri.path().starts_with("/hang") {
            std::future::pending::<()>().await;
        }
        let body = body
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
        // Arrivals of the baseline are not noted.
        let task = text
            .split_once("\"task_id\":\"lat")
            .and_then(|(_, rest)| rest.split_once('"'));
        if let Some((task, _)) = task {
            let mut arrivals = self.arrivals.lock().expect("the lock is not poisoned");
            arrivals
                .entry(format!("lat{task}"))
                .or_insert_with(process_stats::now);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        Response::new(Full::new(Bytes::from_static(b"ok")))
    }
}
