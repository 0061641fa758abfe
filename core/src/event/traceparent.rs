//! W3C Trace Context of a job.

/// The longest value that is accepted. Version 00 has 55 characters; later versions may be longer.
const MAX_LENGTH: usize = 256;

/// A `traceparent` header (W3C Trace Context, section 3.2), which is passed on unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traceparent(String);

impl Traceparent {
    /// Parses a value; `None` if it breaks the rules of the standard and must be ignored.
    ///
    /// A later version must start with the fields of version 00 and may add others.
    pub fn parse(text: &str) -> Option<Self> {
        if is_valid(text) {
            Some(Self(text.to_owned()))
        } else {
            None
        }
    }

    /// The value of the header.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_valid(text: &str) -> bool {
    if text.len() > MAX_LENGTH || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return false;
    }
    let fields: Vec<&str> = text.split('-').collect();
    let [version, trace_id, parent_id, flags, rest @ ..] = fields.as_slice() else {
        return false;
    };
    is_hex(version, 2)
        && *version != "ff"
        && is_id(trace_id, 32)
        && is_id(parent_id, 16)
        && is_hex(flags, 2)
        && (*version != "00" || rest.is_empty())
}

fn is_hex(field: &str, length: usize) -> bool {
    field.len() == length
        && field
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// An id must not consist of zeros.
fn is_id(field: &str, length: usize) -> bool {
    is_hex(field, length) && field.bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_values_are_parsed() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for valid in [
            good,
            &good.replacen("00", "01", 1),
            &(good.replacen("00", "cc", 1) + "-what-comes"),
        ] {
            assert_eq!(Traceparent::parse(valid).unwrap().as_str(), valid);
        }
        for malformed in [
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
            assert_eq!(Traceparent::parse(malformed), None, "{malformed}");
        }
    }
}
