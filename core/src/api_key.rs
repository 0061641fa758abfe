//! API keys: `sk-`, 32 characters of base62 randomness, and 6 of checksum.
//!
//! The checksum refuses a typo without a read, and lets secret scanners recognise a key.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

/// An API key. It shows nowhere and is wiped from memory when dropped; tables hold its SHA-256 alone.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Zeroizing<String>);

/// The text is not an API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `sk-`, 32 letters and digits, and their 6 characters of checksum")]
pub struct ApiKeyError;

impl ApiKey {
    const PREFIX: &'static str = "sk-";
    const ALPHABET: &'static [u8; 62] =
        b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const RANDOM: usize = 32;
    const CHECKSUM: usize = 6;
    /// How much of a key may be shown: the prefix and 8 of its 32 random characters.
    const SHOWN: usize = 11;

    /// Makes a key from random bytes: eight for each character, so that the remainder's bias is below 2^-58.
    pub fn from_random(random: &[u8; 8 * Self::RANDOM]) -> Self {
        let (words, _) = random.as_chunks::<8>();
        let mut random: String = words
            .iter()
            .map(|word| Self::base62_digit(u64::from_le_bytes(*word)))
            .collect();
        let checksum = Self::checksum(&random);
        let key = Self(Zeroizing::new(format!(
            "{}{random}{checksum}",
            Self::PREFIX
        )));
        random.zeroize();
        key
    }

    /// Reads a key; its checksum must hold.
    ///
    /// # Errors
    /// If it does not, or `text` has not the form of a key.
    pub fn parse(text: &str) -> Result<Self, ApiKeyError> {
        let rest = text.strip_prefix(Self::PREFIX).ok_or(ApiKeyError)?;
        if rest.len() != Self::RANDOM + Self::CHECKSUM
            || !rest.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            return Err(ApiKeyError);
        }
        let (random, checksum) = rest.split_at(Self::RANDOM);
        if Self::checksum(random) != checksum {
            return Err(ApiKeyError);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    fn base62_digit(number: u64) -> char {
        char::from(Self::ALPHABET[usize::try_from(number % 62).unwrap_or(0)])
    }

    /// The first 32 bits of the random part's SHA-256 in base62.
    fn checksum(random: &str) -> String {
        let hash = Sha256::digest(random);
        let mut rest = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        let mut checksum = ['0'; Self::CHECKSUM];
        for place in checksum.iter_mut().rev() {
            *place = Self::base62_digit(rest.into());
            rest /= 62;
        }
        checksum.iter().collect()
    }

    /// The key itself, for the one time that it is shown.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The part that may be shown.
    pub fn prefix(&self) -> &str {
        &self.0[..Self::SHOWN]
    }

    /// What the tables know the key by.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.expose()).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_is_read_back_and_no_two_are_alike() {
        let (a, b) = (
            ApiKey::from_random(&[1; 256]),
            ApiKey::from_random(&[2; 256]),
        );
        assert_eq!(ApiKey::parse(a.expose()), Ok(a.clone()));
        assert_eq!(a.expose().len(), 3 + 32 + 6);
        assert_ne!(a, b);
        assert!(a.expose().starts_with(a.prefix()) && a.prefix().len() == 11);
        assert_eq!(format!("{a:?}"), "ApiKey(…)");
    }

    #[test]
    fn a_typo_in_any_place_is_refused() {
        let key = ApiKey::from_random(&[7; 256]);
        for place in 0..key.expose().len() {
            let mut typo = key.expose().to_owned().into_bytes();
            typo[place] = if typo[place] == b'x' { b'y' } else { b'x' };
            assert_eq!(
                ApiKey::parse(std::str::from_utf8(&typo).unwrap()),
                Err(ApiKeyError),
                "{place}"
            );
        }
        for wrong in [
            "",
            "sk-",
            "sk-short",
            &format!("{}0", key.expose()),
            &key.expose()[..40],
        ] {
            assert_eq!(ApiKey::parse(wrong), Err(ApiKeyError), "{wrong}");
        }
    }
}
