//! Counts that end at a limit.

use std::fmt;

/// A count that is a lower bound if it ended at its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub value: usize,
    /// All items were counted.
    pub is_complete: bool,
}

impl Count {
    /// Formats the count with its noun, such as `at least 2 records`.
    pub fn with_noun(self, singular: &str, plural: &str) -> String {
        let noun = if self.value == 1 { singular } else { plural };
        format!("{self} {noun}")
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_complete {
            f.write_str("at least ")?;
        }
        write!(f, "{}", self.value)
    }
}
