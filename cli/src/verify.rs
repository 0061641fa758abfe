//! Verifies the signatures of a received request, and says why one is invalid.

use std::fmt;

use axum::http::HeaderMap;
use nano_webhooks_core::{event::EventId, secret::Secret, signing, timestamp::Timestamp};
use serde::de::IgnoredAny;

/// How far a timestamp may be from now, in seconds, as in the Standard Webhooks libraries.
const TIMESTAMP_TOLERANCE: u64 = 5 * 60;

/// The result of verifying one signature header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureStatus {
    Valid,
    Invalid(Reason),
    /// The secret was rotated: an older secret of the webhook makes this signature until it
    /// expires.
    MadeByOlderSecret,
    /// The request has no such header.
    Missing,
    /// There is no secret to check it with.
    NotChecked,
}

/// Why a signature is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The header does not have the expected format.
    Malformed,
    /// Another header that the signature covers is missing or malformed.
    MissingInput,
    /// The signature is valid for the body without the white space that was added to it.
    Reformatted,
    /// The body is not compact JSON, which every sent body is.
    BodyChanged,
    /// The other signature is valid, so this one or a header that only this one covers was changed.
    HeaderChanged,
    /// Nothing else is known to be wrong.
    WrongSecretOrBody,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => {
                "the header is malformed, expected `v1=` and 64 hexadecimal digits, or `v1,` and \
                 base64"
            }
            Self::MissingInput => {
                "a header that it covers is missing or malformed (its timestamp, or webhook-id)"
            }
            Self::Reformatted => {
                "the body was reformatted in transit (it is valid without white space); verify \
                 the bytes as received"
            }
            Self::BodyChanged => "the body was changed in transit; sent bodies are compact JSON",
            Self::HeaderChanged => {
                "the header, its timestamp or its id was changed in transit; the other signature \
                 is valid"
            }
            Self::WrongSecretOrBody => {
                "it was created with another secret, \
                 or the body or timestamp was changed in transit"
            }
        })
    }
}

/// What the secret is during the grace time of a rotation, when several secrets sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationRole {
    /// The oldest active secret, which makes `X-Nano-Signature`.
    Oldest,
    /// A newer one. It makes one of the signatures in `webhook-signature`.
    Newer,
}

/// The result of verifying a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerificationReport {
    /// `X-Nano-Signature`.
    pub nano: SignatureStatus,
    /// `webhook-signature`.
    pub standard: SignatureStatus,
    /// `None` if only one secret signed, or if the secret made no signature.
    pub rotation: Option<RotationRole>,
    /// The age of the timestamp in seconds if it exceeds five minutes; negative for a time in the
    /// future.
    pub stale_by: Option<i64>,
}

impl VerificationReport {
    /// Both signatures are valid and the timestamp is recent.
    pub fn is_valid(&self) -> bool {
        self.nano == SignatureStatus::Valid
            && self.standard == SignatureStatus::Valid
            && self.stale_by.is_none()
    }
}

/// Verifies a request that was received at `now`.
pub fn verify(
    headers: &HeaderMap,
    body: &[u8],
    secret: Option<&Secret>,
    now: Timestamp,
) -> VerificationReport {
    let request = SignedRequest::parse(headers);
    let stale_by = match request.nano_timestamp {
        Some(timestamp) => stale_by(timestamp, now),
        None => None,
    };
    let Some(secret) = secret else {
        return VerificationReport {
            nano: status_without_secret(request.nano_signature),
            standard: status_without_secret(request.standard_signature),
            rotation: None,
            stale_by,
        };
    };
    let minified_body = minify_json(body);
    let body_is_compact =
        minified_body == body && serde_json::from_slice::<IgnoredAny>(body).is_ok();
    let nano_match = request.match_nano(secret, body);
    let standard_match = request.match_standard(secret, body);
    let rotation = request.rotation_role(secret, body);
    let nano = classify(&Evidence {
        format: nano_format(request.nano_signature),
        original_body: nano_match,
        minified_body: request.match_nano(secret, &minified_body),
        body_is_compact,
        other_signature: standard_match,
        status_if_other_is_valid: match rotation {
            Some(RotationRole::Newer) => SignatureStatus::MadeByOlderSecret,
            Some(RotationRole::Oldest) | None => SignatureStatus::Invalid(Reason::HeaderChanged),
        },
    });
    let standard = classify(&Evidence {
        format: standard_format(request.standard_signature),
        original_body: standard_match,
        minified_body: request.match_standard(secret, &minified_body),
        body_is_compact,
        other_signature: nano_match,
        status_if_other_is_valid: SignatureStatus::Invalid(Reason::HeaderChanged),
    });
    VerificationReport {
        nano,
        standard,
        rotation,
        stale_by,
    }
}

/// The format of a signature header.
#[derive(Clone, Copy)]
enum HeaderFormat {
    Missing,
    Malformed,
    Valid,
}

/// The comparison of a signature with the expected one.
#[derive(Clone, Copy)]
enum Match {
    Equal,
    Different,
    /// The expected signature cannot be computed.
    MissingInput,
}

/// What is known of one signature.
struct Evidence {
    format: HeaderFormat,
    original_body: Match,
    /// The comparison over the body without white space.
    minified_body: Match,
    body_is_compact: bool,
    other_signature: Match,
    status_if_other_is_valid: SignatureStatus,
}

fn classify(evidence: &Evidence) -> SignatureStatus {
    match evidence.format {
        HeaderFormat::Missing => return SignatureStatus::Missing,
        HeaderFormat::Malformed => return SignatureStatus::Invalid(Reason::Malformed),
        HeaderFormat::Valid => {}
    }
    let reason = match (evidence.original_body, evidence.minified_body) {
        (Match::Equal, _) => return SignatureStatus::Valid,
        (Match::MissingInput, _) => Reason::MissingInput,
        (Match::Different, Match::Equal) => Reason::Reformatted,
        (Match::Different, _) if !evidence.body_is_compact => Reason::BodyChanged,
        (Match::Different, _) => match evidence.other_signature {
            Match::Equal => return evidence.status_if_other_is_valid,
            Match::Different | Match::MissingInput => Reason::WrongSecretOrBody,
        },
    };
    SignatureStatus::Invalid(reason)
}

fn status_without_secret(signature: Option<&str>) -> SignatureStatus {
    match signature {
        Some(_) => SignatureStatus::NotChecked,
        None => SignatureStatus::Missing,
    }
}

fn stale_by(timestamp: i64, now: Timestamp) -> Option<i64> {
    let age = now.as_unix_seconds().saturating_sub(timestamp);
    if age.unsigned_abs() > TIMESTAMP_TOLERANCE {
        Some(age)
    } else {
        None
    }
}

/// The parts of a request that signatures cover. Malformed parts are `None`.
struct SignedRequest<'a> {
    nano_signature: Option<&'a str>,
    nano_timestamp: Option<i64>,
    standard_signature: Option<&'a str>,
    standard_timestamp: Option<i64>,
    event_id: Option<EventId>,
}

impl<'a> SignedRequest<'a> {
    fn parse(headers: &'a HeaderMap) -> Self {
        Self {
            nano_signature: header_str(headers, "x-nano-signature"),
            nano_timestamp: parse_timestamp(headers, "x-nano-timestamp"),
            standard_signature: header_str(headers, "webhook-signature"),
            standard_timestamp: parse_timestamp(headers, "webhook-timestamp"),
            event_id: header_str(headers, "webhook-id").and_then(EventId::parse),
        }
    }

    /// Checks `X-Nano-Signature`, which covers the timestamp and the body.
    fn match_nano(&self, secret: &Secret, body: &[u8]) -> Match {
        let (Some(signature), Some(timestamp)) = (self.nano_signature, self.nano_timestamp) else {
            return Match::MissingInput;
        };
        // The signature does not cover the id.
        let dummy_id = EventId::min_at(Timestamp::from_millis(0));
        let expected = sign(secret, &dummy_id, timestamp, body).nano;
        to_match(constant_time_eq(signature, &expected))
    }

    /// Checks `webhook-signature`, which covers the id, the timestamp and the body. One of its
    /// signatures must match.
    fn match_standard(&self, secret: &Secret, body: &[u8]) -> Match {
        match self.compare_standard(secret, body) {
            Some(matches) => to_match(matches.contains(&true)),
            None => Match::MissingInput,
        }
    }

    /// Which of the active secrets the given one is. Signatures are in the order of their secrets,
    /// the newest first.
    fn rotation_role(&self, secret: &Secret, body: &[u8]) -> Option<RotationRole> {
        match self.compare_standard(secret, body)?.as_slice() {
            [] | [_] => None,
            [.., true] => Some(RotationRole::Oldest),
            [newer @ .., false] if newer.contains(&true) => Some(RotationRole::Newer),
            [.., false] => None,
        }
    }

    /// Compares each signature of `webhook-signature` with that of `secret`; `None` if a header
    /// that they cover is missing or malformed.
    fn compare_standard(&self, secret: &Secret, body: &[u8]) -> Option<Vec<bool>> {
        let signatures = self.standard_signature?;
        let timestamp = self.standard_timestamp?;
        let expected = sign(secret, self.event_id.as_ref()?, timestamp, body).standard;
        let matches = signatures
            .split(' ')
            .map(|signature| constant_time_eq(signature, &expected));
        Some(matches.collect())
    }
}

fn header_str<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn parse_timestamp(headers: &HeaderMap, name: &str) -> Option<i64> {
    header_str(headers, name)?.parse().ok()
}

fn sign(secret: &Secret, event_id: &EventId, timestamp: i64, body: &[u8]) -> signing::Signatures {
    let timestamp = Timestamp::from_millis(timestamp.saturating_mul(1000));
    signing::sign(std::slice::from_ref(secret), event_id, timestamp, body)
        .expect("there is a secret")
}

const fn to_match(is_equal: bool) -> Match {
    if is_equal {
        Match::Equal
    } else {
        Match::Different
    }
}

fn nano_format(signature: Option<&str>) -> HeaderFormat {
    match signature.map(|signature| signature.strip_prefix("v1=")) {
        None => HeaderFormat::Missing,
        Some(Some(digits)) if digits.len() == 64 => HeaderFormat::Valid,
        Some(_) => HeaderFormat::Malformed,
    }
}

fn standard_format(signatures: Option<&str>) -> HeaderFormat {
    let Some(signatures) = signatures else {
        return HeaderFormat::Missing;
    };
    if signatures
        .split(' ')
        .any(|signature| signature.starts_with("v1,"))
    {
        HeaderFormat::Valid
    } else {
        HeaderFormat::Malformed
    }
}

/// Removes the white space between the tokens of a JSON text.
fn minify_json(json: &[u8]) -> Vec<u8> {
    let mut minified = Vec::with_capacity(json.len());
    let mut in_string = false;
    let mut escaped = false;
    for &byte in json {
        if in_string || !byte.is_ascii_whitespace() {
            minified.push(byte);
        }
        if in_string && !escaped && byte == b'\\' {
            escaped = true;
            continue;
        }
        in_string ^= byte == b'"' && !escaped;
        escaped = false;
    }
    minified
}

fn constant_time_eq(left: &str, right: &str) -> bool {
    subtle::ConstantTimeEq::ct_eq(left.as_bytes(), right.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_734_948_000_000);
    const BODY: &str = r#"{"event":"job.completed","data":{"text":"a \" b\\"}}"#;

    fn secret(text: &str) -> Secret {
        Secret::parse(text.to_owned()).unwrap()
    }

    /// The headers of a request that is signed with these secrets.
    fn signed_headers(secrets: &[&str]) -> HeaderMap {
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

    fn changed_header(name: &'static str, value: Option<&str>) -> HeaderMap {
        let mut headers = signed_headers(&["my-secret-key"]);
        headers.remove(name);
        if let Some(value) = value {
            headers.insert(name, value.parse().unwrap());
        }
        headers
    }

    /// Verifies with `my-secret-key` and returns why each signature is invalid, or `None`.
    fn reasons(headers: &HeaderMap, body: &str) -> [Option<Reason>; 2] {
        let report = verify(
            headers,
            body.as_bytes(),
            Some(&secret("my-secret-key")),
            NOW,
        );
        [report.nano, report.standard].map(|status| match status {
            SignatureStatus::Valid => None,
            SignatureStatus::Invalid(reason) => Some(reason),
            other => panic!("{other:?}"),
        })
    }

    const fn same_status(status: SignatureStatus) -> VerificationReport {
        VerificationReport {
            nano: status,
            standard: status,
            rotation: None,
            stale_by: None,
        }
    }

    #[test]
    fn unchanged_request_is_valid() {
        let headers = signed_headers(&["my-secret-key"]);
        let key = secret("my-secret-key");
        let report = verify(&headers, BODY.as_bytes(), Some(&key), NOW);
        assert_eq!(report, same_status(SignatureStatus::Valid));
        assert!(report.is_valid());
    }

    #[test]
    fn signature_without_secret_is_not_checked() {
        let report = verify(
            &signed_headers(&["my-secret-key"]),
            BODY.as_bytes(),
            None,
            NOW,
        );
        assert_eq!(report, same_status(SignatureStatus::NotChecked));
    }

    #[test]
    fn request_without_headers_lacks_signatures() {
        let key = secret("my-secret-key");
        let report = verify(&HeaderMap::new(), BODY.as_bytes(), Some(&key), NOW);
        assert_eq!(report, same_status(SignatureStatus::Missing));
    }

    /// More than five minutes in either direction is stale.
    #[test]
    fn old_or_future_timestamp_is_stale() {
        for (late_by, expected) in [
            (0, None),
            (300, None),
            (-300, None),
            (301, Some(301)),
            (-3600, Some(-3600)),
        ] {
            let now = Timestamp::from_millis(NOW.as_unix_millis() + late_by * 1000);
            let headers = signed_headers(&["my-secret-key"]);
            assert_eq!(
                verify(&headers, BODY.as_bytes(), None, now).stale_by,
                expected
            );
        }
    }

    #[test]
    fn reason_names_wrong_secret() {
        assert_eq!(
            reasons(&signed_headers(&["another-secret"]), BODY),
            [Some(Reason::WrongSecretOrBody); 2]
        );
    }

    /// During the grace time of a rotation, the oldest secret makes `X-Nano-Signature`.
    #[test]
    fn rotation_explains_which_secret_signed() {
        use SignatureStatus::{Invalid, MadeByOlderSecret, Valid};
        let wrong = Invalid(Reason::WrongSecretOrBody);
        for (secrets, nano, standard, rotation) in [
            (&["my-secret-key"][..], Valid, Valid, None),
            (
                &["a-new-secret", "my-secret-key"],
                Valid,
                Valid,
                Some(RotationRole::Oldest),
            ),
            (
                &["my-secret-key", "an-old-secret"],
                MadeByOlderSecret,
                Valid,
                Some(RotationRole::Newer),
            ),
            (
                &["a-new-secret", "my-secret-key", "an-old-secret"],
                MadeByOlderSecret,
                Valid,
                Some(RotationRole::Newer),
            ),
            (&["a-new-secret", "an-old-secret"], wrong, wrong, None),
        ] {
            let headers = signed_headers(secrets);
            let key = secret("my-secret-key");
            let report = verify(&headers, BODY.as_bytes(), Some(&key), NOW);
            let expected = VerificationReport {
                nano,
                standard,
                rotation,
                stale_by: None,
            };
            assert_eq!(report, expected, "{secrets:?}");
        }
    }

    #[test]
    fn reason_names_change_of_body() {
        let headers = signed_headers(&["my-secret-key"]);
        for (body, reason) in [
            (format!("{BODY}\n"), Reason::Reformatted),
            (BODY.replace(":{", ": {\r\n  "), Reason::Reformatted),
            (
                BODY.replace("a ", "b ").replace(":{", ": {"),
                Reason::BodyChanged,
            ),
            (BODY.replace('}', ""), Reason::BodyChanged),
            (String::new(), Reason::BodyChanged),
            (BODY.replace("a ", "b "), Reason::WrongSecretOrBody),
        ] {
            assert_eq!(reasons(&headers, &body), [Some(reason); 2], "{body}");
        }
    }

    #[test]
    fn reason_names_change_of_header() {
        let other_id = EventId::max_at(NOW);
        for (name, value, expected) in [
            (
                "webhook-id",
                Some(other_id.as_str()),
                [None, Some(Reason::HeaderChanged)],
            ),
            ("webhook-id", None, [None, Some(Reason::MissingInput)]),
            (
                "x-nano-timestamp",
                Some("1"),
                [Some(Reason::HeaderChanged), None],
            ),
            (
                "x-nano-timestamp",
                Some("now"),
                [Some(Reason::MissingInput), None],
            ),
            (
                "x-nano-signature",
                Some("v1=zz"),
                [Some(Reason::Malformed), None],
            ),
            (
                "webhook-signature",
                Some("v2,zz"),
                [None, Some(Reason::Malformed)],
            ),
        ] {
            assert_eq!(
                reasons(&changed_header(name, value), BODY),
                expected,
                "{name} {value:?}"
            );
        }
    }
}
