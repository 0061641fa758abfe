//! What a receiver does: check the signatures of a request, and say why one does not hold.

use std::fmt;

use axum::http::HeaderMap;
use serde::de::IgnoredAny;

use nano_webhooks_core::{event::EventId, secret::Secret, signing, timestamp::Timestamp};

/// How old or how far ahead a timestamp may be, in seconds: as the Standard Webhooks libraries have it.
const TOLERANCE: u64 = 5 * 60;

/// Whether a signature holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignatureStatus {
    /// It does.
    Holds,
    /// It does not.
    Wrong(Reason),
    /// There is none.
    Missing,
    /// It cannot be told, for there is no secret to check it with.
    Unchecked,
}

/// Why a signature does not hold, as far as the request tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The header has not the form that it should have.
    Malformed,
    /// A header that is signed with it is missing or malformed.
    Incomplete,
    /// It holds over the body without the white space that was added on the way.
    Reformatted,
    /// The body is not one that is ever sent.
    Changed,
    /// The secret signs the other header only: a newer one has taken its place, and it is in its grace time.
    Older,
    /// The other signature holds: a header that only this one covers was changed.
    HeaderChanged,
    /// Nothing else is wrong.
    OtherSecret,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the header is malformed: `v1=` and 64 hex digits, or `v1,` and base64, are expected",
            Self::Incomplete => "a header that is signed with it is missing or malformed: its timestamp, or webhook-id",
            Self::Reformatted => {
                "the body was written anew on its way (it holds without the white space): verify the bytes as they came"
            }
            Self::Changed => "the body was changed on its way: it is not compact JSON as it is always sent",
            Self::Older => {
                "this secret was rotated and is in its grace time: X-Nano-Signature is the newer secret's alone"
            }
            Self::HeaderChanged => "webhook-id or webhook-timestamp was changed on its way: the other signature holds",
            Self::OtherSecret => "it was made with another secret, or the body or timestamp was changed on its way",
        })
    }
}

/// Both signatures of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdicts {
    /// `X-Nano-Signature`.
    pub nano: SignatureStatus,
    /// `webhook-signature`.
    pub standard: SignatureStatus,
    /// How many seconds the timestamp lies behind now, if that is more than five minutes; less than nothing: ahead. `None` if
    /// it is recent.
    pub stale_by: Option<i64>,
}

/// Checks the signatures of a request that was received at `now`.
pub(super) fn verify(
    headers: &HeaderMap,
    body: &[u8],
    secret: Option<&Secret>,
    now: Timestamp,
) -> Verdicts {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let seconds = |name| text(name).and_then(|seconds| seconds.parse::<i64>().ok());
    let timestamp = seconds("x-nano-timestamp");
    let age = now
        .as_unix_seconds()
        .saturating_sub(timestamp.unwrap_or_default());
    let stale_by = timestamp
        .is_some_and(|_| age.unsigned_abs() > TOLERANCE)
        .then_some(age);
    let (nano, standard) = (text("x-nano-signature"), text("webhook-signature"));
    let Some(secret) = secret else {
        let verdict = |given: Option<&str>| {
            if given.is_some() {
                SignatureStatus::Unchecked
            } else {
                SignatureStatus::Missing
            }
        };
        return Verdicts {
            nano: verdict(nano),
            standard: verdict(standard),
            stale_by,
        };
    };
    // The id is not part of what the product's own signature signs.
    let any = EventId::min_at(now);
    let id = text("webhook-id").and_then(EventId::parse);
    let sign = |seconds: i64, id: &EventId, body: &[u8]| {
        let at = Timestamp::from_millis(seconds.saturating_mul(1000));
        signing::sign(std::slice::from_ref(secret), id, at, body).expect("there is a secret")
    };
    let nano_holds =
        |body: &[u8]| Some(constant_time_eq(nano?, &sign(timestamp?, &any, body).nano));
    let standard_holds = |body: &[u8]| {
        let expected = sign(seconds("webhook-timestamp")?, id.as_ref()?, body).standard;
        Some(
            standard?
                .split(' ')
                .any(|one| constant_time_eq(one, &expected)),
        )
    };
    let (nano_now, standard_now) = (nano_holds(body), standard_holds(body));
    let compact = minify_json(body);
    let verdict = |given: Option<&str>,
                   is_formed: bool,
                   holds: Option<bool>,
                   reformatted: Option<bool>,
                   other: Reason| {
        SignatureStatus::Wrong(match (given, holds) {
            (None, _) => return SignatureStatus::Missing,
            (_, Some(true)) => return SignatureStatus::Holds,
            _ if !is_formed => Reason::Malformed,
            (_, None) => Reason::Incomplete,
            _ if reformatted == Some(true) => Reason::Reformatted,
            _ if compact != body || serde_json::from_slice::<IgnoredAny>(body).is_err() => {
                Reason::Changed
            }
            _ => other,
        })
    };
    let is_nano = nano
        .and_then(|given| given.strip_prefix("v1="))
        .is_some_and(|hex| hex.len() == 64);
    let is_standard =
        standard.is_some_and(|given| given.split(' ').any(|one| one.starts_with("v1,")));
    let other = |holds: Option<bool>, why: Reason| {
        if holds == Some(true) {
            why
        } else {
            Reason::OtherSecret
        }
    };
    Verdicts {
        nano: verdict(
            nano,
            is_nano,
            nano_now,
            nano_holds(&compact),
            other(standard_now, Reason::Older),
        ),
        standard: verdict(
            standard,
            is_standard,
            standard_now,
            standard_holds(&compact),
            other(nano_now, Reason::HeaderChanged),
        ),
        stale_by,
    }
}

/// JSON without the white space between its tokens.
fn minify_json(json: &[u8]) -> Vec<u8> {
    let (mut out, mut in_string, mut escaped) = (Vec::with_capacity(json.len()), false, false);
    for &byte in json {
        if in_string || !byte.is_ascii_whitespace() {
            out.push(byte);
        }
        if in_string && !escaped && byte == b'\\' {
            escaped = true;
            continue;
        }
        in_string ^= byte == b'"' && !escaped;
        escaped = false;
    }
    out
}

/// Compares in constant time.
fn constant_time_eq(given: &str, expected: &str) -> bool {
    subtle::ConstantTimeEq::ct_eq(given.as_bytes(), expected.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_734_948_000_000);
    const BODY: &str = r#"{"event":"job.completed","data":{"text":"a \" b\\"}}"#;

    fn secret(text: &str) -> Secret {
        Secret::parse(text.to_owned()).unwrap()
    }

    /// A request as it is sent, signed with these secrets.
    fn sent(secrets: &[&str]) -> HeaderMap {
        let secrets: Vec<_> = secrets.iter().map(|text| secret(text)).collect();
        let id = EventId::min_at(NOW);
        let signatures = signing::sign(&secrets, &id, NOW, BODY.as_bytes()).unwrap();
        let timestamp = NOW.as_unix_seconds().to_string();
        [
            ("x-nano-timestamp", timestamp.as_str()),
            ("x-nano-signature", &signatures.nano),
            ("webhook-id", id.as_str()),
            ("webhook-timestamp", &timestamp),
            ("webhook-signature", &signatures.standard),
        ]
        .into_iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect()
    }

    #[test]
    fn both_signatures_hold_as_they_were_sent_and_without_a_secret_nobody_can_tell() {
        let headers = sent(&["my-secret-key"]);
        let key = secret("my-secret-key");
        let holds = Verdicts {
            nano: SignatureStatus::Holds,
            standard: SignatureStatus::Holds,
            stale_by: None,
        };
        assert_eq!(verify(&headers, BODY.as_bytes(), Some(&key), NOW), holds);
        let unchecked = Verdicts {
            nano: SignatureStatus::Unchecked,
            standard: SignatureStatus::Unchecked,
            stale_by: None,
        };
        assert_eq!(verify(&headers, BODY.as_bytes(), None, NOW), unchecked);
        let missing = Verdicts {
            nano: SignatureStatus::Missing,
            standard: SignatureStatus::Missing,
            stale_by: None,
        };
        assert_eq!(
            verify(&HeaderMap::new(), BODY.as_bytes(), Some(&key), NOW),
            missing
        );
    }

    #[test]
    fn a_timestamp_is_stale_after_five_minutes_and_so_is_one_from_the_future() {
        let stale_by = |late: i64| {
            let now = Timestamp::from_millis(NOW.as_unix_millis() + late * 1000);
            verify(&sent(&["my-secret-key"]), BODY.as_bytes(), None, now).stale_by
        };
        assert_eq!([stale_by(0), stale_by(300), stale_by(-300)], [None; 3]);
        assert_eq!([stale_by(301), stale_by(-3600)], [Some(301), Some(-3600)]);
    }

    #[test]
    fn each_reason_is_told_from_the_others() {
        let key = secret("my-secret-key");
        let reasons = |headers: &HeaderMap, body: &str| {
            let verdicts = verify(headers, body.as_bytes(), Some(&key), NOW);
            [verdicts.nano, verdicts.standard].map(|verdict| match verdict {
                SignatureStatus::Wrong(reason) => Some(reason),
                SignatureStatus::Holds => None,
                other => panic!("{other:?}"),
            })
        };
        let all = |reason| [Some(reason); 2];
        let own = sent(&["my-secret-key"]);
        assert_eq!(
            reasons(&sent(&["another-secret"]), BODY),
            all(Reason::OtherSecret)
        );
        assert_eq!(
            reasons(&sent(&["the-new-secret", "my-secret-key"]), BODY),
            [Some(Reason::Older), None]
        );
        for pretty in [format!("{BODY}\n"), BODY.replace(":{", ": {\r\n  ")] {
            assert_eq!(reasons(&own, &pretty), all(Reason::Reformatted), "{pretty}");
        }
        for changed in [
            BODY.replace("a ", "b ").replace(":{", ": {"),
            BODY.replace('}', ""),
            String::new(),
        ] {
            assert_eq!(reasons(&own, &changed), all(Reason::Changed), "{changed}");
        }
        assert_eq!(
            reasons(&own, &BODY.replace("a ", "b ")),
            all(Reason::OtherSecret),
            "who can tell"
        );

        let with = |name: &'static str, value: Option<&str>| {
            let mut headers = own.clone();
            headers.remove(name);
            if let Some(value) = value {
                headers.insert(name, value.parse().unwrap());
            }
            headers
        };
        let other_id = EventId::max_at(NOW);
        assert_eq!(
            reasons(&with("webhook-id", Some(other_id.as_str())), BODY),
            [None, Some(Reason::HeaderChanged)]
        );
        assert_eq!(
            reasons(&with("webhook-id", None), BODY),
            [None, Some(Reason::Incomplete)]
        );
        assert_eq!(
            reasons(&with("x-nano-timestamp", Some("now")), BODY),
            [Some(Reason::Incomplete), None]
        );
        assert_eq!(
            reasons(&with("x-nano-signature", Some("v1=zz")), BODY),
            [Some(Reason::Malformed), None]
        );
        assert_eq!(
            reasons(&with("webhook-signature", Some("v2,zz")), BODY),
            [None, Some(Reason::Malformed)]
        );
    }
}
