//! The id of an account.

use std::fmt;

/// The platform's id of a customer, who owns jobs and webhooks: 1 to 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(String);

/// The text is not an account id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an account id of 1 to 256 bytes")]
pub struct AccountIdError;

impl AccountId {
    /// The longest id, in bytes. Ids are part of table keys, which DynamoDB limits to 1,024 bytes.
    pub const MAX: usize = 256;

    /// Parses an id.
    pub fn parse(text: &str) -> Result<Self, AccountIdError> {
        if text.is_empty() || text.len() > Self::MAX {
            return Err(AccountIdError);
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_limited() {
        assert_eq!(AccountId::parse(""), Err(AccountIdError));
        assert_eq!(AccountId::parse(&"a".repeat(257)), Err(AccountIdError));
        let longest = "é".repeat(128);
        assert_eq!(AccountId::parse(&longest).unwrap().as_str(), longest);
    }
}
