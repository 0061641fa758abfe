//! What a receiver does: check the signatures of a request.

use axum::http::HeaderMap;

use crate::{clock::Instant, event::EventId, signing, webhook::Secret};

/// How old or how far ahead a timestamp may be, in seconds: as the Standard Webhooks libraries have it.
const TOLERANCE: u64 = 5 * 60;

/// Whether a signature holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It does.
    Holds,
    /// It does not.
    Wrong,
    /// There is none.
    Missing,
    /// It cannot be told, for there is no secret to check it with.
    Unchecked,
}

/// Both signatures of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdicts {
    /// `X-Nano-Signature`.
    pub nano: Verdict,
    /// `webhook-signature`.
    pub standard: Verdict,
    /// Whether the timestamp is within five minutes of now.
    pub fresh: bool,
}

/// Checks the signatures of a request that was received at `now`.
pub(super) fn verify(headers: &HeaderMap, body: &[u8], secret: Option<&Secret>, now: Instant) -> Verdicts {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let seconds = text("x-nano-timestamp").and_then(|seconds| seconds.parse::<i64>().ok());
    let at = seconds.map(|seconds| Instant::from_millis(seconds.saturating_mul(1000)));
    let id = text("webhook-id").and_then(EventId::parse);
    let expected = match (secret, at, id) {
        (Some(secret), Some(at), Some(id)) => signing::sign(std::slice::from_ref(secret), &id, at, body),
        _ => None,
    };
    let verdict = |given: Option<&str>, holds: &dyn Fn(&str) -> bool| match (given, secret) {
        (None, _) => Verdict::Missing,
        (Some(_), None) => Verdict::Unchecked,
        (Some(given), Some(_)) if holds(given) => Verdict::Holds,
        (Some(_), Some(_)) => Verdict::Wrong,
    };
    let expected = expected.as_ref();
    Verdicts {
        nano: verdict(text("x-nano-signature"), &|given| expected.is_some_and(|expected| equal(given, &expected.nano))),
        standard: verdict(text("webhook-signature"), &|given| {
            expected.is_some_and(|expected| given.split(' ').any(|one| equal(one, &expected.standard)))
        }),
        fresh: seconds.is_some_and(|seconds| now.seconds().abs_diff(seconds) <= TOLERANCE),
    }
}

/// Compares in constant time.
fn equal(given: &str, expected: &str) -> bool {
    subtle::ConstantTimeEq::ct_eq(given.as_bytes(), expected.as_bytes()).into()
}
