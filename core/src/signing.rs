//! Signatures: the product's own `X-Nano-Signature` and Standard Webhooks 1.0.0, side by side in every attempt.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::{event::EventId, timestamp::Timestamp, webhook::Secret};

/// The signatures of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signatures {
    /// `X-Nano-Signature`: `v1=` and lower-case hex over `{timestamp}.{body}`, by the newest secret alone.
    pub nano: String,
    /// `webhook-signature`: for each live secret `v1,` and base64 over `{id}.{timestamp}.{body}`, separated by spaces
    /// (Standard Webhooks 1.0.0, "Signature scheme").
    pub standard: String,
}

/// Signs a body with a webhook's live secrets, the newest first. Without a secret there is nothing to sign with.
pub fn sign(secrets: &[Secret], id: &EventId, at: Timestamp, body: &[u8]) -> Option<Signatures> {
    let newest = secrets.first()?;
    let timestamp = at.as_unix_seconds().to_string();
    let timestamp = timestamp.as_bytes();
    let nano = mac(newest.expose().as_bytes(), &[timestamp, b".", body]);
    let standard: Vec<_> = secrets
        .iter()
        .map(|secret| {
            let parts = [id.as_str().as_bytes(), b".", timestamp, b".", body];
            format!(
                "v1,{}",
                STANDARD.encode(mac(&secret.standard_webhooks_key(), &parts))
            )
        })
        .collect();
    Some(Signatures {
        nano: format!("v1={}", hex::encode(nano)),
        standard: standard.join(" "),
    })
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
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

    /// Computed with Python's `hmac` module.
    #[test]
    fn both_signatures_agree_with_vectors_computed_elsewhere() {
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

        let rotated = [
            secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            secret("my-secret-key"),
        ];
        let signed = sign(&rotated, &id(), at, body).unwrap();
        assert_eq!(
            signed.nano,
            "v1=8563f46f149ee592fb2a4be4cd57b16f348154ba0fc58d64062e938a13dd79b8"
        );
        assert_eq!(
            signed.standard,
            "v1,f3TfwCAxZH4QFxR9fTnSyGrQUaD+cy90QBq1lijR1Us= v1,oCGlJkVeiYjHTfvffnVqX6oHbJyHlQLE8Up11DVGMVA="
        );
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
    fn without_a_secret_there_is_no_signature() {
        assert_eq!(sign(&[], &id(), Timestamp::from_millis(0), b"{}"), None);
    }
}
