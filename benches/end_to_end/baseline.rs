//! The baseline: a loop of signed POSTs with reqwest, and nothing else. Costs of the service are
//! compared with it, because seconds differ from machine to machine.

use std::{future, time::Duration};

use futures_util::{StreamExt, stream};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{
    platform,
    process_stats::{self, Process},
};

/// How many requests are in flight.
const IN_FLIGHT: usize = 64;

/// The cost of the baseline.
pub struct Baseline {
    /// CPU time of a request.
    pub cpu: Duration,
    /// Requests per second.
    pub rate: f64,
}

/// Measures the baseline in another process.
pub fn measure(url: &str, requests: u32) -> Baseline {
    let (process, line) = Process::spawn_role(&["baseline", url, &requests.to_string()]);
    let duration = Duration::from_nanos(line.parse().expect("the baseline prints nanoseconds"));
    Baseline {
        cpu: process.cpu() / requests,
        rate: f64::from(requests) / duration.as_secs_f64(),
    }
}

/// The baseline's process: prints the duration of all requests in nanoseconds, and waits to be
/// killed.
pub async fn run(url: String, requests: u32) {
    let client = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    let payload = platform::payload(0);
    let started = process_stats::now();
    let posts = (0..requests)
        .map(|number| post_signed(client.clone(), url.clone(), payload.clone(), number));
    stream::iter(posts)
        .buffer_unordered(IN_FLIGHT)
        .collect::<Vec<()>>()
        .await;
    println!("{}", started.elapsed().as_nanos());
    future::pending::<()>().await;
}

async fn post_signed(client: reqwest::Client, url: String, payload: String, number: u32) {
    let timestamp = (process_stats::unix_millis() / 1000).to_string();
    let mut mac =
        Hmac::<Sha256>::new_from_slice(b"my-secret-key").expect("a key of any length is valid");
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(payload.as_bytes());
    let signature = format!("v1={}", hex::encode(mac.finalize().into_bytes()));
    let response = client
        .post(&url)
        .header("content-type", "application/json")
        .header("x-nano-timestamp", timestamp)
        .header("x-nano-signature", signature)
        .header("webhook-id", number.to_string())
        .body(payload)
        .send()
        .await
        .expect("the receiver responds");
    response
        .bytes()
        .await
        .expect("the receiver sends the whole response");
}
