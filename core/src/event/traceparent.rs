//! Trace context that a job brings along, passed on as it came.

use serde::Deserialize;

/// The longest that is passed on: a later version may be longer than the 55 characters of today's.
const MAX_LENGTH: usize = 256;

/// A `traceparent` of W3C Trace Context: the trace that a job belongs to. It is handed on unchanged, as the standard
/// asks of those who take no part in the trace themselves.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Traceparent(String);

impl Traceparent {
    /// Reads one; `None` if `text` breaks the rules of section 3.2 of the standard, by which it is to be ignored. A later version
    /// begins as today's does, and may go on.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |part: &str, length| {
            part.len() == length
                && part
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let id = |part: &str, length| hex(part, length) && part.bytes().any(|b| b != b'0');
        let mut parts = text.split('-');
        let version = parts
            .next()
            .filter(|version| hex(version, 2) && *version != "ff");
        let known = version.is_some()
            && parts.next().is_some_and(|trace| id(trace, 32))
            && parts.next().is_some_and(|parent| id(parent, 16))
            && parts.next().is_some_and(|flags| hex(flags, 2))
            && (version != Some("00") || parts.next().is_none())
            && text.len() <= MAX_LENGTH
            && text.bytes().all(|b| b.is_ascii_graphic());
        known.then(|| Self(text.to_owned()))
    }

    /// The header's value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_standard_allows_is_passed_on() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for good in [
            good,
            &good.replacen("00", "01", 1),
            &(good.replacen("00", "cc", 1) + "-what-comes"),
        ] {
            assert_eq!(Traceparent::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-\u{e9}",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nx: y",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Traceparent::parse(bad), None, "{bad}");
        }
    }
}
