//! The signatures of an attempt: `X-Nano-Signature` and Standard Webhooks 1.0.0.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::{event::EventId, secret::Secret, timestamp::Timestamp};

/// The signature headers of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signatures {
    /// `X-Nano-Signature`: `v1=` and lowercase hex over `{timestamp}.{body}`, by the oldest active
    /// secret.
    pub nano: String,
    /// `webhook-signature`: for each active secret `v1,` and base64 over
    /// `{id}.{timestamp}.{body}`, separated by spaces (Standard Webhooks 1.0.0, "Signature
    /// scheme").
    pub standard: String,
}

/// Signs a body with the active secrets of a webhook, newest first; `None` without a secret.
///
/// `X-Nano-Signature` has room for one signature. The oldest active secret makes it, so a secret
/// signs until it expires, and receivers have the grace time to add the next one.
pub fn sign(
    secrets: &[Secret],
    id: &EventId,
    timestamp: Timestamp,
    body: &[u8],
) -> Option<Signatures> {
    let oldest_secret = secrets.last()?;
    let seconds = timestamp.as_unix_seconds().to_string();
    let nano_parts = [seconds.as_bytes(), b".", body];
    let nano = hmac_sha256(oldest_secret.expose().as_bytes(), &nano_parts);
    let standard_parts = [id.as_str().as_bytes(), b".", seconds.as_bytes(), b".", body];
    let mut standard = Vec::with_capacity(secrets.len());
    for secret in secrets {
        let signature = hmac_sha256(&secret.standard_webhooks_key(), &standard_parts);
        standard.push(format!("v1,{}", STANDARD.encode(signature)));
    }
    Some(Signatures {
        nano: format!("v1={}", hex::encode(nano)),
        standard: standard.join(" "),
    })
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        hmac.update(part);
    }
    hmac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::parse(text.to_owned()).unwrap()
    }

    fn id() -> EventId {
        EventId::parse("evt_01JFS8TX800000000000000000").unwrap()
    }

    /// The vectors were computed with Python's `hmac` module.
    #[test]
    fn signatures_match_vectors() {
        let at = Timestamp::from_millis(1_734_948_000_999);
        let body = br#"{"event":"job.completed"}"#;
        let signed = sign(&[secret("my-secret-key")], &id(), at, body).unwrap();
        assert_eq!(
            signed.nano,
            "v1=bb3c09b09964484c058571b49772a88f776e3c65c0d47d7bc0ffbb10bbc669ec"
        );
        assert_eq!(
            signed.standard,
            "v1,oCGlJkVeiYjHTfvffnVqX6oHbJyHlQLE8Up11DVGMVA="
        );

        let whsec = [secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")];
        let signed = sign(&whsec, &id(), at, body).unwrap();
        assert_eq!(
            signed.nano,
            "v1=8563f46f149ee592fb2a4be4cd57b16f348154ba0fc58d64062e938a13dd79b8"
        );
        assert_eq!(
            signed.standard,
            "v1,f3TfwCAxZH4QFxR9fTnSyGrQUaD+cy90QBq1lijR1Us="
        );
    }

    /// After rotations the oldest secret makes the only `X-Nano-Signature`, and every secret makes
    /// one of `webhook-signature`, the newest first.
    #[test]
    fn oldest_active_secret_signs_nano() {
        let at = Timestamp::from_millis(1_734_948_000_000);
        let secrets = [
            "the-newest-secret",
            "the-second-secret",
            "the-oldest-secret",
        ]
        .map(secret);
        let sign_with = |secrets: &[Secret]| sign(secrets, &id(), at, b"{}").unwrap();
        let single = [0, 1, 2].map(|index| sign_with(&secrets[index..=index]));
        let standard = single.each_ref().map(|signed| signed.standard.as_str());
        let signed = sign_with(&secrets);
        assert_eq!(signed.nano, single[2].nano);
        assert_eq!(signed.standard, standard.join(" "));
        assert_eq!(sign_with(&secrets[..2]).nano, single[1].nano);
    }

    /// The official Standard Webhooks library makes the same signature for every active secret.
    #[test]
    fn signatures_match_official_library() {
        let whsec = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let body = br#"{"event":"job.completed"}"#;
        let timestamp = Timestamp::from_millis(1_734_948_000_000);
        let secrets = [secret("another secret"), secret(whsec)];
        let signed = sign(&secrets, &id(), timestamp, body).unwrap();
        let libraries = [
            standardwebhooks::Webhook::from_bytes(b"another secret".to_vec()).unwrap(),
            standardwebhooks::Webhook::new(whsec).unwrap(),
        ];
        let expected = libraries.map(|library| {
            library
                .sign(id().as_str(), timestamp.as_unix_seconds(), body)
                .unwrap()
        });
        assert_eq!(signed.standard, expected.join(" "));
    }

    #[test]
    fn no_secret_gives_no_signature() {
        assert_eq!(sign(&[], &id(), Timestamp::from_millis(0), b"{}"), None);
    }
}
