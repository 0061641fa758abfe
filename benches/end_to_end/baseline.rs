//! The baseline: a loop of signed POSTs with reqwest, and nothing else. Costs of the service are
//! compared with it, because seconds differ from machine to machine.

use std::{env, time::Duration};

use futures_util::{StreamExt, stream};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::process_stats::{self, Process};

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
pub fn measure(url: &str, requests: usize) -> Baseline {
    let (process, line) = Process::spawn_role(&["baseline", url, &requests.to_string()]);
    let took = Duration::from_nanos(line.parse().expect("it says how long it took"));
    let requests = u32::try_from(requests).expect("there are not that many");
    Baseline {
        cpu: process.cpu() / requests,
        rate: f64::from(requests) / took.as_secs_f64(),
    }
}

/// The baseline's process: prints how long the requests took, and waits to be killed.
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
            let response = request.send().await.expect("the receiver responds");
            response
                .bytes()
                .await
                .expect("the receiver sends the whole response");
        }
    };
    stream::iter((0..requests).map(send))
        .buffer_unordered(IN_FLIGHT)
        .collect::<Vec<()>>()
        .await;
    println!("{}", before.elapsed().as_nanos());
    std::future::pending::<()>().await;
}
