//! The id of a replay.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Identifies a replay: `rpl_` and 16 lowercase hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReplayId(String);

impl ReplayId {
    const PREFIX: &'static str = "rpl_";
    const DIGITS: usize = 16;

    /// Makes an id of random bytes.
    pub fn from_random(random: [u8; 8]) -> Self {
        Self(format!("{}{}", Self::PREFIX, hex::encode(random)))
    }

    /// Parses an id; `None` if `text` is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(Self::PREFIX)?;
        let is_valid = digits.len() == Self::DIGITS && digits.bytes().all(is_lowercase_hex);
        if is_valid {
            Some(Self(text.to_owned()))
        } else {
            None
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_lowercase_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_ids_are_parsed() {
        let id = ReplayId::from_random([0, 1, 2, 3, 4, 5, 0xfe, 0xff]);
        assert_eq!(id.as_str(), "rpl_000102030405feff");
        assert_eq!(ReplayId::parse(id.as_str()), Some(id));
        for malformed in [
            "",
            "rpl_",
            "rpl_000102030405fef",
            "rpl_000102030405FEFF",
            "evt_000102030405feff",
        ] {
            assert_eq!(ReplayId::parse(malformed), None, "{malformed}");
        }
    }
}
