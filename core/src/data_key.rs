//! Data keys, which encrypt secrets and static headers at rest with AES-256-GCM (NIST SP 800-38D).

use std::fmt;

use aws_lc_rs::aead::{self, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, UnboundKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    account_id::AccountId, secret::Secret, static_headers::StaticHeaders, webhook::WebhookId,
};

/// The length of a key, in bytes.
const LEN: usize = 32;

/// A random nonce. One key is safe for 2^32 of them (NIST SP 800-38D, section 8.3).
pub type Nonce = [u8; NONCE_LEN];

/// The ciphertext belongs to another key or another context, or it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("decryption failed: the key or the context differs, or the ciphertext was changed")]
pub struct DecryptError;

/// The bytes of a key. `Debug` hides them, and dropping them wipes their memory.
#[derive(Clone)]
pub struct KeyMaterial(Zeroizing<[u8; LEN]>);

impl KeyMaterial {
    /// Makes a key of random bytes.
    pub fn from_random(random: [u8; LEN]) -> Self {
        Self(Zeroizing::new(random))
    }

    /// Copies the bytes of a key and wipes the source; `None` unless there are 32 bytes.
    pub fn from_vec(mut bytes: Vec<u8>) -> Option<Self> {
        let array = bytes.as_slice().try_into();
        let key = array.ok().map(|array| Self(Zeroizing::new(array)));
        bytes.zeroize();
        key
    }

    /// Parses the hexadecimal form.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; LEN]);
        hex::decode_to_slice(text, bytes.as_mut_slice()).ok()?;
        Some(Self(bytes))
    }

    /// The hexadecimal form, for storing the key.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0.as_slice()))
    }

    /// Encrypts this key with another one. Decrypting it needs the same `associated_data`.
    pub fn wrap_with(&self, wrapping_key: &Self, associated_data: &str, nonce: Nonce) -> String {
        let aead = wrapping_key.aead();
        aead.encrypt(self.0.as_slice(), associated_data, nonce)
    }

    /// Decrypts a key that [`Self::wrap_with`] encrypted.
    pub fn unwrap_with(
        wrapping_key: &Self,
        wrapped: &str,
        associated_data: &str,
    ) -> Result<Self, DecryptError> {
        let bytes = wrapping_key.aead().decrypt(wrapped, associated_data)?;
        Self::from_vec(bytes).ok_or(DecryptError)
    }

    fn aead(&self) -> Aead {
        let key = UnboundKey::new(&AES_256_GCM, self.0.as_slice());
        Aead(LessSafeKey::new(
            key.expect("AES-256 takes a key of 32 bytes"),
        ))
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyMaterial(…)")
    }
}

/// A data key that is ready for use. Versions allow a new key while older ciphertexts stay
/// readable.
pub struct DataKey {
    version: u32,
    aead: Aead,
    fingerprint_key: Zeroizing<[u8; LEN]>,
}

impl DataKey {
    /// Prepares the key with this version.
    pub fn new(version: u32, key: &KeyMaterial) -> Self {
        // A key has one purpose: the fingerprints' key is derived from it (HKDF-Expand with one
        // block, RFC 5869, section 2.3).
        let fingerprint_key = hmac_sha256(key.0.as_slice(), b"nano-webhooks fingerprints\x01");
        Self {
            version,
            aead: key.aead(),
            fingerprint_key: Zeroizing::new(fingerprint_key),
        }
    }

    /// The version.
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Encrypts a secret for one webhook of one account.
    pub fn encrypt_secret(
        &self,
        account: &AccountId,
        webhook: WebhookId,
        secret: &Secret,
        nonce: Nonce,
    ) -> String {
        let associated_data = associated_data("secret", account, webhook);
        let secret = secret.expose().as_bytes();
        self.aead.encrypt(secret, &associated_data, nonce)
    }

    /// Decrypts a secret that was encrypted for this webhook.
    pub fn decrypt_secret(
        &self,
        account: &AccountId,
        webhook: WebhookId,
        ciphertext: &str,
    ) -> Result<Secret, DecryptError> {
        let associated_data = associated_data("secret", account, webhook);
        let secret = self.aead.decrypt(ciphertext, &associated_data)?;
        let secret = String::from_utf8(secret).map_err(|_| DecryptError)?;
        Secret::from_stored(secret).map_err(|_| DecryptError)
    }

    /// Encrypts the static headers of one webhook of one account.
    pub fn encrypt_headers(
        &self,
        account: &AccountId,
        webhook: WebhookId,
        headers: &StaticHeaders,
        nonce: Nonce,
    ) -> String {
        let associated_data = associated_data("headers", account, webhook);
        let json = headers.to_json();
        self.aead.encrypt(json.as_bytes(), &associated_data, nonce)
    }

    /// Decrypts static headers that were encrypted for this webhook.
    pub fn decrypt_headers(
        &self,
        account: &AccountId,
        webhook: WebhookId,
        ciphertext: &str,
    ) -> Result<StaticHeaders, DecryptError> {
        let associated_data = associated_data("headers", account, webhook);
        let json = Zeroizing::new(self.aead.decrypt(ciphertext, &associated_data)?);
        let json = std::str::from_utf8(&json).map_err(|_| DecryptError)?;
        StaticHeaders::from_json(json).ok_or(DecryptError)
    }

    /// A keyed hash of a hash. It identifies the hashed text and, without the key, cannot be
    /// compared with guesses.
    pub fn fingerprint(&self, sha256: &[u8; 32]) -> String {
        hex::encode(hmac_sha256(self.fingerprint_key.as_slice(), sha256))
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({}, …)", self.version)
    }
}

/// The purpose and the webhook that a ciphertext is bound to. An id has no colon, so two webhooks
/// never have the same text.
fn associated_data(purpose: &'static str, account: &AccountId, webhook: WebhookId) -> String {
    format!("{purpose}:{webhook}:{account}")
}

/// AES-256-GCM. A ciphertext is base64 of the nonce, the encrypted bytes and the tag.
struct Aead(LessSafeKey);

impl Aead {
    fn encrypt(&self, plaintext: &[u8], associated_data: &str, nonce: Nonce) -> String {
        let mut message = plaintext.to_vec();
        let aad = Aad::from(associated_data.as_bytes());
        self.0
            .seal_in_place_append_tag(aead::Nonce::assume_unique_for_key(nonce), aad, &mut message)
            .expect("secrets and headers are shorter than the limit of AES-GCM");
        STANDARD.encode([nonce.as_slice(), &message].concat())
    }

    fn decrypt(&self, ciphertext: &str, associated_data: &str) -> Result<Vec<u8>, DecryptError> {
        let bytes = STANDARD.decode(ciphertext).map_err(|_| DecryptError)?;
        let (nonce, message) = bytes.split_first_chunk().ok_or(DecryptError)?;
        let mut message = Zeroizing::new(message.to_vec());
        let aad = Aad::from(associated_data.as_bytes());
        let plaintext = self
            .0
            .open_in_place(
                aead::Nonce::assume_unique_for_key(*nonce),
                aad,
                &mut message,
            )
            .map_err(|_| DecryptError)?;
        Ok(plaintext.to_vec())
    }
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    hmac.update(message);
    hmac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: Nonce = [9; NONCE_LEN];

    fn secret() -> Secret {
        Secret::parse("open sesame".to_owned()).unwrap()
    }

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    fn webhook(number: u64) -> WebhookId {
        WebhookId::new(number).unwrap()
    }

    fn data_key(version: u32, byte: u8) -> DataKey {
        DataKey::new(version, &KeyMaterial::from_random([byte; LEN]))
    }

    /// A secret is decrypted for its own webhook and with its own key only.
    #[test]
    fn secret_is_bound_to_webhook_and_key() {
        let (acme, one) = (account("acme"), webhook(1));
        let key = data_key(1, 1);
        let ciphertext = key.encrypt_secret(&acme, one, &secret(), NONCE);
        assert_eq!(key.decrypt_secret(&acme, one, &ciphertext), Ok(secret()));
        assert_eq!(
            data_key(2, 1).decrypt_secret(&acme, one, &ciphertext),
            Ok(secret())
        );
        for (key, account, webhook) in [
            (data_key(1, 1), account("acme"), webhook(2)),
            (data_key(1, 1), account("acme2"), webhook(1)),
            (data_key(1, 2), account("acme"), webhook(1)),
        ] {
            let decrypted = key.decrypt_secret(&account, webhook, &ciphertext);
            assert_eq!(decrypted, Err(DecryptError));
        }
    }

    /// Secrets that earlier versions accepted and new webhooks may not have are decrypted.
    #[test]
    fn secret_of_earlier_version_is_decrypted() {
        let (acme, one) = (account("acme"), webhook(1));
        let key = data_key(1, 1);
        for text in [
            "whsec_bmFubw==",
            "with\ttab",
            "v1,whsec_bmFubw==",
            "        ",
        ] {
            assert!(Secret::parse(text.to_owned()).is_err(), "{text:?}");
            let stored = Secret::from_stored(text.to_owned()).unwrap();
            let ciphertext = key.encrypt_secret(&acme, one, &stored, NONCE);
            assert_eq!(
                key.decrypt_secret(&acme, one, &ciphertext),
                Ok(stored),
                "{text:?}"
            );
        }
    }

    /// Headers are decrypted for their own webhook only, and never as a secret, nor is a secret as
    /// headers.
    #[test]
    fn headers_are_bound_to_webhook_and_purpose() {
        let (acme, one) = (account("acme"), webhook(1));
        let key = data_key(1, 1);
        let headers = StaticHeaders::from_json(r#"[["X-Api-Key","open sesame"]]"#).unwrap();
        let ciphertext = key.encrypt_headers(&acme, one, &headers, NONCE);
        let decrypted = key.decrypt_headers(&acme, one, &ciphertext);
        assert_eq!(decrypted, Ok(headers.clone()));
        let other = key.decrypt_headers(&acme, webhook(2), &ciphertext);
        assert_eq!(other, Err(DecryptError));
        let other = data_key(1, 2).decrypt_headers(&acme, one, &ciphertext);
        assert_eq!(other, Err(DecryptError));
        let secret = Secret::parse(headers.to_json().to_string()).unwrap();
        let ciphertext_of_secret = key.encrypt_secret(&acme, one, &secret, NONCE);
        let as_headers = key.decrypt_headers(&acme, one, &ciphertext_of_secret);
        assert_eq!(as_headers, Err(DecryptError));
        let as_secret = key.decrypt_secret(&acme, one, &ciphertext);
        assert_eq!(as_secret, Err(DecryptError));
    }

    #[test]
    fn changed_ciphertext_is_refused() {
        let (acme, one) = (account("acme"), webhook(1));
        let key = data_key(1, 3);
        let ciphertext = key.encrypt_secret(&acme, one, &secret(), NONCE);
        let bytes = STANDARD.decode(ciphertext).unwrap();
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            let decrypted = key.decrypt_secret(&acme, one, &STANDARD.encode(changed));
            assert_eq!(decrypted, Err(DecryptError), "{index}");
        }
        let truncated = STANDARD.encode(&bytes[..bytes.len() - 1]);
        for malformed in ["", "!", "AAAA", &truncated] {
            let decrypted = key.decrypt_secret(&acme, one, malformed);
            assert_eq!(decrypted, Err(DecryptError), "{malformed}");
        }
    }

    /// Python's `cryptography` package wrote this ciphertext.
    #[test]
    fn ciphertext_of_another_library_is_read() {
        let ciphertext = "BwcHBwcHBwcHBwcH4oOPyi/d1NJ492FQZHAN7FKeOjonDFOE5bt6";
        let decrypted = data_key(1, 1).decrypt_secret(&account("acme"), webhook(1), ciphertext);
        assert_eq!(decrypted, Ok(secret()));
    }

    #[test]
    fn wrapped_key_is_bound_to_its_place() {
        let key = KeyMaterial::from_random([5; LEN]);
        let wrapping_key = KeyMaterial::from_random([6; LEN]);
        let wrapped = key.wrap_with(&wrapping_key, "1", NONCE);
        let unwrapped = KeyMaterial::unwrap_with(&wrapping_key, &wrapped, "1").unwrap();
        assert_eq!(unwrapped.to_hex(), key.to_hex());
        assert!(KeyMaterial::unwrap_with(&wrapping_key, &wrapped, "2").is_err());
        assert!(KeyMaterial::unwrap_with(&key, &wrapped, "1").is_err());
    }

    /// Fingerprints depend on the key and the hash, not on the version.
    #[test]
    fn fingerprint_depends_on_key() {
        let fingerprint = data_key(1, 7).fingerprint(&[1; 32]);
        assert_eq!(fingerprint, data_key(2, 7).fingerprint(&[1; 32]));
        assert_ne!(fingerprint, data_key(1, 7).fingerprint(&[2; 32]));
        assert_ne!(fingerprint, data_key(1, 8).fingerprint(&[1; 32]));
    }

    #[test]
    fn debug_hides_keys() {
        let key = KeyMaterial::from_random([7; LEN]);
        assert_eq!(format!("{key:?}"), "KeyMaterial(…)");
        assert_eq!(format!("{:?}", DataKey::new(3, &key)), "DataKey(3, …)");
    }

    #[test]
    fn hex_form_is_parsed() {
        let key = KeyMaterial::from_random([7; LEN]);
        let parsed = KeyMaterial::from_hex(&key.to_hex()).unwrap();
        assert_eq!(parsed.to_hex(), key.to_hex());
        for malformed in ["", "07", &"0".repeat(63), &"g".repeat(64)] {
            assert!(KeyMaterial::from_hex(malformed).is_none(), "{malformed}");
        }
    }
}
