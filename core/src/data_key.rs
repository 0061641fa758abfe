//! Data keys: what secrets are sealed with at rest, AES-256-GCM (NIST SP 800-38D).

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use crate::{account_id::AccountId, secret::Secret, webhook::WebhookId};

/// The length of a key, in bytes.
const LEN: usize = 32;

/// What is sealed cannot be opened: another key, another place, or changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be opened with this key in this place")]
pub struct DecryptError;

/// The bytes of a key. They show nowhere and are wiped from memory when dropped.
#[derive(Clone)]
pub struct KeyMaterial(Zeroizing<[u8; LEN]>);

impl KeyMaterial {
    /// Makes a key of random bytes.
    pub fn from_random(random: [u8; LEN]) -> Self {
        Self(Zeroizing::new(random))
    }

    /// Takes the bytes of a key, and wipes what they were taken from; `None` unless there are 32.
    pub fn from_vec(mut bytes: Vec<u8>) -> Option<Self> {
        let taken = bytes
            .as_slice()
            .try_into()
            .ok()
            .map(|bytes| Self(Zeroizing::new(bytes)));
        bytes.zeroize();
        taken
    }

    /// From its hexadecimal form.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; LEN]);
        hex::decode_to_slice(text, bytes.as_mut_slice())
            .ok()
            .map(|()| Self(bytes))
    }

    /// Its hexadecimal form, for the one place where it is kept.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0.as_slice()))
    }

    /// This key under another one; `place` is what it must be opened for.
    pub fn wrap_with(&self, other: &Self, place: &str) -> String {
        other.aead().encrypt(self.0.as_slice(), place)
    }

    /// The key that was sealed under `other` for this place.
    ///
    /// # Errors
    /// If it was sealed otherwise.
    pub fn unwrap_with(other: &Self, sealed: &str, place: &str) -> Result<Self, DecryptError> {
        Self::from_vec(other.aead().decrypt(sealed, place)?).ok_or(DecryptError)
    }

    fn aead(&self) -> Aead {
        Aead(
            RandomizedNonceKey::new(&AES_256_GCM, self.0.as_slice())
                .expect("AES-256 takes a key of 32 bytes"),
        )
    }
}

/// A data key, ready for use. Each has a version, so that a new one can be started while what an older one sealed is still
/// readable.
pub struct DataKey {
    version: u32,
    aead: Aead,
    fingerprints: Zeroizing<[u8; LEN]>,
}

impl DataKey {
    /// The key of this version.
    pub fn new(version: u32, key: &KeyMaterial) -> Self {
        // One key for one purpose: that of the fingerprints is derived (one block of HKDF-Expand, RFC 5869, section 2.3).
        let fingerprints = mac(key.0.as_slice(), b"nano-webhooks fingerprints\x01");
        Self {
            version,
            aead: key.aead(),
            fingerprints: Zeroizing::new(fingerprints),
        }
    }

    /// Its version.
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Seals a secret for one webhook of one account: for any other it does not open.
    pub fn encrypt(&self, account: &AccountId, webhook: WebhookId, secret: &Secret) -> String {
        self.aead
            .encrypt(secret.expose().as_bytes(), &place(account, webhook))
    }

    /// Opens what was sealed for this webhook.
    ///
    /// # Errors
    /// If it was sealed for another or with another key.
    pub fn decrypt(
        &self,
        account: &AccountId,
        webhook: WebhookId,
        sealed: &str,
    ) -> Result<Secret, DecryptError> {
        let opened = String::from_utf8(self.aead.decrypt(sealed, &place(account, webhook))?)
            .map_err(|_| DecryptError)?;
        Secret::parse(opened).map_err(|_| DecryptError)
    }

    /// A text by which what was hashed is known again, and from which nobody without the key can try out what it was.
    pub fn fingerprint(&self, sha256: &[u8; 32]) -> String {
        hex::encode(mac(self.fingerprints.as_slice(), sha256))
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({}, …)", self.version)
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyBytes(…)")
    }
}

/// What a secret is bound to. An id has no colon, so no two webhooks share a place.
fn place(account: &AccountId, webhook: WebhookId) -> String {
    format!("secret:{webhook}:{account}")
}

/// AES-256-GCM with a random nonce for each use: safe for 2^32 uses of one key (NIST SP 800-38D, section 8.3). What is
/// sealed is base64 of the nonce, then the ciphertext with its tag.
struct Aead(RandomizedNonceKey);

impl Aead {
    fn encrypt(&self, open: &[u8], place: &str) -> String {
        let mut text = open.to_vec();
        let nonce = self
            .0
            .seal_in_place_append_tag(Aad::from(place.as_bytes()), &mut text);
        let nonce = nonce.expect("a secret is shorter than what AES-GCM takes");
        STANDARD.encode([nonce.as_ref().as_slice(), &text].concat())
    }

    fn decrypt(&self, sealed: &str, place: &str) -> Result<Vec<u8>, DecryptError> {
        let bytes = STANDARD.decode(sealed).map_err(|_| DecryptError)?;
        let (nonce, text) = bytes.split_at_checked(NONCE_LEN).ok_or(DecryptError)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| DecryptError)?;
        let mut text = Zeroizing::new(text.to_vec());
        let open = self
            .0
            .open_in_place(nonce, Aad::from(place.as_bytes()), &mut text)
            .map_err(|_| DecryptError)?;
        Ok(open.to_vec())
    }
}

fn mac(key: &[u8], of: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(of);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> Secret {
        Secret::parse("open sesame".to_owned()).unwrap()
    }

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    fn webhook(number: u64) -> WebhookId {
        WebhookId::new(number).unwrap()
    }

    #[test]
    fn a_secret_opens_for_its_own_webhook_alone_and_with_its_own_key_alone() {
        let bytes = KeyMaterial::from_random([1; LEN]);
        let key = DataKey::new(1, &bytes);
        let sealed = key.encrypt(&account("acme"), webhook(1), &secret());
        assert_eq!(
            key.decrypt(&account("acme"), webhook(1), &sealed),
            Ok(secret())
        );
        assert_eq!(
            DataKey::new(2, &bytes).decrypt(&account("acme"), webhook(1), &sealed),
            Ok(secret())
        );
        assert_eq!(
            key.decrypt(&account("acme"), webhook(2), &sealed),
            Err(DecryptError)
        );
        assert_eq!(
            key.decrypt(&account("acme2"), webhook(1), &sealed),
            Err(DecryptError)
        );
        assert_eq!(
            DataKey::new(1, &KeyMaterial::from_random([2; LEN])).decrypt(
                &account("acme"),
                webhook(1),
                &sealed
            ),
            Err(DecryptError)
        );
    }

    #[test]
    fn what_was_changed_in_any_place_does_not_open() {
        let key = DataKey::new(1, &KeyMaterial::from_random([3; LEN]));
        let sealed = STANDARD
            .decode(key.encrypt(&account("acme"), webhook(1), &secret()))
            .unwrap();
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert_eq!(
                key.decrypt(&account("acme"), webhook(1), &STANDARD.encode(changed)),
                Err(DecryptError),
                "{place}"
            );
        }
        for wrong in [
            "",
            "!",
            "AAAA",
            &STANDARD.encode(&sealed[..sealed.len() - 1]),
        ] {
            assert_eq!(
                key.decrypt(&account("acme"), webhook(1), wrong),
                Err(DecryptError),
                "{wrong}"
            );
        }
    }

    #[test]
    fn the_same_secret_is_sealed_differently_each_time() {
        let key = DataKey::new(1, &KeyMaterial::from_random([4; LEN]));
        let seal = || key.encrypt(&account("acme"), webhook(1), &secret());
        assert_ne!(seal(), seal());
    }

    #[test]
    fn a_key_is_sealed_under_another_for_one_place() {
        let (key, other) = (
            KeyMaterial::from_random([5; LEN]),
            KeyMaterial::from_random([6; LEN]),
        );
        let sealed = key.wrap_with(&other, "1");
        assert_eq!(
            KeyMaterial::unwrap_with(&other, &sealed, "1")
                .unwrap()
                .to_hex(),
            key.to_hex()
        );
        assert!(KeyMaterial::unwrap_with(&other, &sealed, "2").is_err());
        assert!(KeyMaterial::unwrap_with(&key, &sealed, "1").is_err());
    }

    #[test]
    fn fingerprints_agree_for_one_key_alone_and_keys_show_nowhere() {
        let bytes = KeyMaterial::from_random([7; LEN]);
        let key = DataKey::new(1, &bytes);
        assert_eq!(
            key.fingerprint(&[1; 32]),
            DataKey::new(2, &bytes).fingerprint(&[1; 32])
        );
        assert_ne!(key.fingerprint(&[1; 32]), key.fingerprint(&[2; 32]));
        assert_ne!(
            key.fingerprint(&[1; 32]),
            DataKey::new(1, &KeyMaterial::from_random([8; LEN])).fingerprint(&[1; 32])
        );
        assert_eq!(format!("{key:?} {bytes:?}"), "DataKey(1, …) KeyBytes(…)");
    }

    #[test]
    fn a_key_is_read_back_from_its_hexadecimal_form() {
        let key = KeyMaterial::from_random([9; LEN]);
        assert_eq!(
            KeyMaterial::from_hex(&key.to_hex()).unwrap().to_hex(),
            key.to_hex()
        );
        assert!(
            KeyMaterial::from_hex("00").is_none() && KeyMaterial::from_vec(vec![0; 31]).is_none()
        );
    }
}
