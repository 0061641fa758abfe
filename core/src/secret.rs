//! The signing secret of a webhook.

use std::{fmt, ops::RangeInclusive};

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

/// A signing secret. `Debug` hides it, and dropping it wipes its memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// The text is not a secret. The message shows nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The length is not within [`Secret::LENGTH_RANGE`].
    #[error("expected 8 to 256 characters")]
    Length,
    /// The text after `whsec_` is not base64.
    #[error("expected base64 with padding after `whsec_`")]
    Base64,
    /// The key after `whsec_` is too short or too long.
    #[error("expected base64 of 24 to 64 bytes after `whsec_`")]
    KeyLength,
    /// The text is an entry of a list of secrets.
    #[error("expected a secret that begins with `whsec_`, without `v1,` before it")]
    VersionPrefix,
    /// The text has a control character.
    #[error("expected no control characters")]
    ControlCharacter,
    /// The text has only white space.
    #[error("expected more than white space")]
    Blank,
}

impl Secret {
    /// The prefix of a Standard Webhooks secret; base64 follows.
    pub const STANDARD_PREFIX: &'static str = "whsec_";
    /// The length in characters.
    pub const LENGTH_RANGE: RangeInclusive<usize> = 8..=256;
    /// The length of the key of a Standard Webhooks secret, in bytes (Standard Webhooks 1.0.0,
    /// "Signature scheme").
    pub const KEY_LENGTH_RANGE: RangeInclusive<usize> = 24..=64;

    /// Parses a new secret.
    pub fn parse(text: String) -> Result<Self, SecretError> {
        let secret = Self::from_stored(text)?;
        if secret.0.chars().any(char::is_control) {
            return Err(SecretError::ControlCharacter);
        }
        if secret.0.trim().is_empty() {
            return Err(SecretError::Blank);
        }
        if secret.0.starts_with("v1,whsec_") || secret.0.starts_with("v1a,whsec_") {
            return Err(SecretError::VersionPrefix);
        }
        match secret.decode_whsec() {
            Some(key) if !Self::KEY_LENGTH_RANGE.contains(&key.len()) => {
                Err(SecretError::KeyLength)
            }
            _ => Ok(secret),
        }
    }

    /// Parses a secret that was stored. Earlier versions accepted shorter keys, and secrets that
    /// [`Self::parse`] refuses.
    pub fn from_stored(text: String) -> Result<Self, SecretError> {
        let secret = Self(Zeroizing::new(text));
        if !Self::LENGTH_RANGE.contains(&secret.0.chars().count()) {
            return Err(SecretError::Length);
        }
        if secret.0.starts_with(Self::STANDARD_PREFIX) && secret.decode_whsec().is_none() {
            return Err(SecretError::Base64);
        }
        Ok(secret)
    }

    /// Makes a Standard Webhooks secret of 256 random bits. The standard asks for 192 to 512
    /// (Standard Webhooks 1.0.0, "Signature scheme").
    pub fn from_random(random: [u8; 32]) -> Self {
        let random = Zeroizing::new(random);
        let encoded = Zeroizing::new(STANDARD.encode(random.as_slice()));
        let prefix = Self::STANDARD_PREFIX;
        Self(Zeroizing::new(format!("{prefix}{}", *encoded)))
    }

    /// The secret itself, for signing and storing.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The key of the Standard Webhooks signature: the decoded bytes of a `whsec_…` secret, else
    /// the UTF-8 bytes.
    pub fn standard_webhooks_key(&self) -> Zeroizing<Vec<u8>> {
        match self.decode_whsec() {
            Some(key) => key,
            None => Zeroizing::new(self.0.as_bytes().to_vec()),
        }
    }

    fn decode_whsec(&self) -> Option<Zeroizing<Vec<u8>>> {
        let encoded = self.0.strip_prefix(Self::STANDARD_PREFIX)?;
        let key = Zeroizing::new(STANDARD.decode(encoded).ok()?);
        if key.is_empty() { None } else { Some(key) }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Secret, SecretError> {
        Secret::parse(text.to_owned())
    }

    /// A secret has 8 to 256 characters that can be typed, and base64 of a long key follows
    /// `whsec_`.
    #[test]
    fn malformed_secret_is_refused() {
        assert!(parse("1234567").is_err());
        assert!(parse("12345678").is_ok());
        assert!(parse(&"é".repeat(256)).is_ok());
        assert!(parse(&"é".repeat(257)).is_err());
        for wrong in [
            "whsec_!!",
            "whsec_abc",
            "whsec_YWJj=",
            "whsec_YW Jj",
            "whsec_\u{e9}\u{e9}",
            "v1,whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "a secret\n",
            "a\0secret",
            "         ",
            "\u{a0}\u{a0}\u{a0}\u{a0}\u{a0}\u{a0}\u{a0}\u{a0}",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        for (length, is_valid) in [(1, false), (23, false), (24, true), (64, true), (65, false)] {
            let text = format!("whsec_{}", STANDARD.encode(vec![7; length]));
            assert_eq!(parse(&text).is_ok(), is_valid, "{length}");
        }
        assert_eq!(
            *parse("my secret").unwrap().standard_webhooks_key(),
            *b"my secret"
        );
    }

    #[test]
    fn generated_secret_is_valid() {
        let (a, b) = (Secret::from_random([1; 32]), Secret::from_random([2; 32]));
        assert_eq!(Secret::parse(a.expose().to_owned()), Ok(a.clone()));
        assert_eq!(a.standard_webhooks_key().len(), 32);
        assert_ne!(a, b);
    }

    #[test]
    fn debug_hides_secret() {
        let secret = Secret::parse("open sesame".to_owned()).unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }

    /// What earlier versions accepted is still read.
    #[test]
    fn stored_secret_stays_valid() {
        for text in ["whsec_bmFubw==", "a secret\n", "         "] {
            assert!(parse(text).is_err(), "{text:?}");
            let stored = Secret::from_stored(text.to_owned()).unwrap();
            assert_eq!(stored.expose(), text);
        }
        let stored = Secret::from_stored("whsec_bmFubw==".to_owned()).unwrap();
        assert_eq!(*stored.standard_webhooks_key(), *b"nano");
    }
}
