//! API keys: `sk-`, 32 characters of base62 randomness, and 6 characters of checksum.
//!
//! The checksum rejects a typo without a read, and lets secret scanners recognize a key.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

/// An API key. `Debug` hides it, dropping it wipes its memory, and tables store its SHA-256 only.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Zeroizing<String>);

/// The text is not an API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `sk-` followed by 38 letters and digits with a valid checksum")]
pub struct ApiKeyError;

impl ApiKey {
    const PREFIX: &'static str = "sk-";
    const ALPHABET: &'static [u8; 62] =
        b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const RANDOM_LEN: usize = 32;
    const CHECKSUM_LEN: usize = 6;
    /// The length of the part that may be shown: the prefix and 8 of the 32 random characters.
    const DISPLAY_LEN: usize = 11;

    /// Makes a key of random bytes. Each character takes eight of them, which keeps the bias of the
    /// remainder below 2^-58.
    pub fn from_random(random: &[u8; 8 * Self::RANDOM_LEN]) -> Self {
        let (words, _) = random.as_chunks::<8>();
        let mut characters = String::with_capacity(Self::RANDOM_LEN);
        for word in words {
            characters.push(base62_digit(u64::from_le_bytes(*word)));
        }
        let checksum = checksum(&characters);
        let prefix = Self::PREFIX;
        let key = Self(Zeroizing::new(format!("{prefix}{characters}{checksum}")));
        characters.zeroize();
        key
    }

    /// Parses a key and verifies its checksum.
    pub fn parse(text: &str) -> Result<Self, ApiKeyError> {
        let rest = text.strip_prefix(Self::PREFIX).ok_or(ApiKeyError)?;
        let length = Self::RANDOM_LEN + Self::CHECKSUM_LEN;
        if rest.len() != length || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(ApiKeyError);
        }
        let (characters, expected) = rest.split_at(Self::RANDOM_LEN);
        if checksum(characters) != expected {
            return Err(ApiKeyError);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The key itself, which is shown once.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The part that may be shown.
    pub fn display_prefix(&self) -> &str {
        &self.0[..Self::DISPLAY_LEN]
    }

    /// The hash that tables store.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.expose()).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

fn base62_digit(number: u64) -> char {
    char::from(ApiKey::ALPHABET[usize::try_from(number % 62).unwrap_or(0)])
}

/// The first 32 bits of the SHA-256 of the random characters, in base62.
fn checksum(characters: &str) -> String {
    let hash = Sha256::digest(characters);
    let mut rest = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    let mut checksum = ['0'; ApiKey::CHECKSUM_LEN];
    for digit in checksum.iter_mut().rev() {
        *digit = base62_digit(rest.into());
        rest /= 62;
    }
    checksum.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_key_is_parsed() {
        let (a, b) = (
            ApiKey::from_random(&[1; 256]),
            ApiKey::from_random(&[2; 256]),
        );
        assert_eq!(ApiKey::parse(a.expose()), Ok(a.clone()));
        assert_eq!(a.expose().len(), 3 + 32 + 6);
        assert_ne!(a, b);
        assert!(a.expose().starts_with(a.display_prefix()) && a.display_prefix().len() == 11);
        assert_eq!(format!("{a:?}"), "ApiKey(…)");
    }

    #[test]
    fn typo_is_refused() {
        let key = ApiKey::from_random(&[7; 256]);
        for index in 0..key.expose().len() {
            let mut typo = key.expose().to_owned().into_bytes();
            typo[index] = if typo[index] == b'x' { b'y' } else { b'x' };
            assert_eq!(
                ApiKey::parse(std::str::from_utf8(&typo).unwrap()),
                Err(ApiKeyError),
                "{index}"
            );
        }
        for malformed in [
            "",
            "sk-",
            "sk-short",
            &format!("{}0", key.expose()),
            &key.expose()[..40],
        ] {
            assert_eq!(ApiKey::parse(malformed), Err(ApiKeyError), "{malformed}");
        }
    }
}
