//! The baseline: a bare loop of signed POSTs with a common HTTP client, and nothing else. What the service costs is told as a
//! multiple of it, since seconds differ from machine to machine.

use std::{env, time::Duration};

use futures_util::{StreamExt, stream};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::process_stats::{self, Process};

/// How many requests are in flight.
const IN_FLIGHT: usize = 64;

/// What the baseline costs: CPU and time for each request.
pub struct Baseline {
    /// CPU of a request.
    pub cpu: Duration,
    /// Requests a second.
    pub rate: f64,
}

/// Measures it in a process of its own.
pub fn measure(url: &str, requests: usize) -> Baseline {
    let (process, line) = Process::role(&["baseline", url, &requests.to_string()]);
    let took = Duration::from_nanos(line.parse().expect("it says how long it took"));
    let requests = u32::try_from(requests).expect("there are not that many");
    Baseline {
        cpu: process.cpu() / requests,
        rate: f64::from(requests) / took.as_secs_f64(),
    }
}

/// The process: says how long it took, and waits to be ended.
pub async fn run(mut arguments: env::Args) {
    let url = arguments.next().expect("the receiver's URL");
    let requests: usize = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .expect("how many requests");
    let client = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    let body = super::platform::body(0);
    let before = process_stats::now();
    let send = |n: usize| {
        let (client, url, body) = (client.clone(), url.clone(), body.clone());
        async move {
            let timestamp = (process_stats::unix_millis() / 1000).to_string();
            let mut mac =
                Hmac::<Sha256>::new_from_slice(b"my-secret-key").expect("any length will do");
            mac.update(timestamp.as_bytes());
            mac.update(b".");
            mac.update(body.as_bytes());
            let signature = format!("v1={}", hex::encode(mac.finalize().into_bytes()));
            let request = client.post(&url).header("content-type", "application/json");
            let request = request
                .header("x-nano-timestamp", timestamp)
                .header("x-nano-signature", signature);
            let request = request.header("webhook-id", n.to_string()).body(body);
            let answer = request.send().await.expect("the receiver answers");
            answer.bytes().await.expect("the receiver answers whole");
        }
    };
    stream::iter((0..requests).map(send))
        .buffer_unordered(IN_FLIGHT)
        .collect::<Vec<()>>()
        .await;
    println!("{}", before.elapsed().as_nanos());
    std::future::pending::<()>().await;
}
