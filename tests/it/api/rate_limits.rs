//! Rate limits of an account.

use std::time::Duration;

use axum::http::StatusCode;
use nano_webhooks::store::rate_limits::RateLimits;
use nano_webhooks_core::target_policy::TargetPolicy;

use crate::support::app::{TestApp, WEBHOOKS};

/// The rate limit is exact under concurrency, and `Retry-After` has the time until the next window.
#[tokio::test]
async fn rate_limit_is_exact() {
    let app = TestApp::with(
        TargetPolicy::Any,
        RateLimits {
            per_minute: Some(5),
            per_day: Some(8),
        },
        50,
    )
    .await;
    app.clock.advance(Duration::from_secs(20));
    assert_eq!(send_burst(&app).await, (5, "40".to_owned()));
    app.clock.advance(Duration::from_secs(40));
    // 2024-12-23T10:01:00Z: the day has three requests left and ends in 13 h 59 min.
    assert_eq!(
        send_burst(&app).await,
        (3, (13 * 3600 + 59 * 60).to_string())
    );
    app.clock.advance(Duration::from_hours(14));
    assert_eq!(send_burst(&app).await.0, 5);
}

/// Sends ten concurrent requests. Returns the number of successes, and `Retry-After` of a refusal.
async fn send_burst(app: &TestApp) -> (usize, String) {
    let responses = futures_util::future::join_all((0..10).map(|_| app.get(WEBHOOKS))).await;
    let refused: Vec<_> = responses
        .into_iter()
        .filter(|response| response.status != StatusCode::OK)
        .collect();
    for response in &refused {
        assert_eq!(
            response.error(),
            (429, "rate_limited", "Too many requests; try again later")
        );
    }
    let retry_after = refused[0].header("retry-after").to_owned();
    (10 - refused.len(), retry_after)
}
