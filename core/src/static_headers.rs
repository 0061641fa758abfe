//! The static headers of a webhook: its owner chose them, and every request to the endpoint has
//! them.

use std::fmt::{self, Write};

use zeroize::Zeroizing;

/// Names that requests have already, or that control the connection (RFC 9110, sections 7.6.1 and
/// 10.1).
const RESERVED_NAMES: [&str; 11] = [
    "accept",
    "connection",
    "expect",
    "host",
    "keep-alive",
    "te",
    "traceparent",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];
/// The beginnings of such names.
const RESERVED_PREFIXES: [&str; 4] = ["content-", "proxy-", "webhook-", "x-nano-"];
/// The shortest part of a value that [`StaticHeaders::redact`] replaces, in bytes. It would replace
/// common words if it were shorter.
const MIN_REDACTED: usize = 8;

/// Static headers, sorted by name without regard to case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaticHeaders(Vec<StaticHeader>);

/// A header with its name as the owner wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticHeader {
    name: StaticHeaderName,
    value: StaticHeaderValue,
}

/// The name of a static header: a token (RFC 9110, section 5.6.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticHeaderName(String);

/// The value of a static header, which may be a secret. `Debug` hides it, and dropping it wipes its
/// memory.
#[derive(Clone, PartialEq, Eq)]
struct StaticHeaderValue(Zeroizing<String>);

/// The text is not the name of a header. The message shows nothing of the text, which may be a
/// whole header with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected header names of 1 to 64 letters, digits and characters of `!#$%&'*+-.^_`|~`")]
pub struct StaticHeaderNameError;

/// A header cannot be added. The message shows nothing of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StaticHeaderError {
    /// The service sets the header, or it controls the connection.
    #[error("expected another name: this header is set by the service or controls the connection")]
    Reserved,
    /// There is a header with this name, whatever its case.
    #[error("expected each name once, whatever its case")]
    Repeated,
    /// The value is empty, or has characters that are not allowed.
    #[error("expected a value of visible ASCII characters, with spaces and tabs only between them")]
    Value,
    /// There are [`StaticHeaders::MAX`] headers.
    #[error("expected at most 10 headers")]
    TooMany,
    /// All headers have more than [`StaticHeaders::MAX_BYTES`].
    #[error("expected at most 4096 bytes in the names and values of all headers")]
    TooLong,
}

impl StaticHeaderName {
    /// The longest name, in bytes. The log of each attempt has the names.
    pub const MAX: usize = 64;

    /// Parses a name.
    pub fn parse(text: String) -> Result<Self, StaticHeaderNameError> {
        if (1..=Self::MAX).contains(&text.len()) && text.bytes().all(is_token) {
            Ok(Self(text))
        } else {
            Err(StaticHeaderNameError)
        }
    }

    /// The name as the owner wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Some servers read `_` as `-`, so both are equal here.
    fn is_reserved(&self) -> bool {
        let name = self.0.to_ascii_lowercase().replace('_', "-");
        RESERVED_NAMES.contains(&name.as_str())
            || RESERVED_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix))
    }
}

const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Whether the text is a value that every server reads unchanged (RFC 9110, section 5.5).
fn is_value(text: &str) -> bool {
    let is_visible = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_graphic);
    let bytes = text.as_bytes();
    is_visible(bytes.first())
        && is_visible(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t'))
}

impl fmt::Debug for StaticHeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StaticHeaderValue(…)")
    }
}

impl StaticHeader {
    /// The name as the owner wrote it.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The value itself, for sending and storing.
    pub fn expose_value(&self) -> &str {
        &self.value.0
    }
}

impl StaticHeaders {
    /// No headers.
    pub const NONE: Self = Self(Vec::new());
    /// The most headers of a webhook.
    pub const MAX: usize = 10;
    /// The most bytes of all names and values.
    pub const MAX_BYTES: usize = 4_096;
    /// What the log shows instead of a value.
    pub const REDACTED: &'static str = "[redacted]";

    /// Adds a header.
    pub fn try_insert(
        &mut self,
        name: StaticHeaderName,
        value: String,
    ) -> Result<(), StaticHeaderError> {
        let value = StaticHeaderValue(Zeroizing::new(value));
        if name.is_reserved() {
            return Err(StaticHeaderError::Reserved);
        }
        if !is_value(&value.0) {
            return Err(StaticHeaderError::Value);
        }
        let Err(index) = self.find(name.as_str()) else {
            return Err(StaticHeaderError::Repeated);
        };
        if self.0.len() >= Self::MAX {
            return Err(StaticHeaderError::TooMany);
        }
        if self.len_bytes() + name.as_str().len() + value.0.len() > Self::MAX_BYTES {
            return Err(StaticHeaderError::TooLong);
        }
        self.0.insert(index, StaticHeader { name, value });
        Ok(())
    }

    /// The place of a header, or where it would be inserted.
    fn find(&self, name: &str) -> Result<usize, usize> {
        let name = name.to_ascii_lowercase();
        self.0
            .binary_search_by_key(&name, |header| header.name().to_ascii_lowercase())
    }

    fn len_bytes(&self) -> usize {
        let lengths = self
            .0
            .iter()
            .map(|header| header.name().len() + header.expose_value().len());
        lengths.sum()
    }

    /// Whether there are no headers.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The headers, sorted by name.
    pub fn as_slice(&self) -> &[StaticHeader] {
        &self.0
    }

    /// The names as the owner wrote them.
    pub fn names(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|header| header.name().to_owned())
            .collect()
    }

    /// Writes the headers for encrypting: a JSON list of pairs.
    pub fn to_json(&self) -> Zeroizing<String> {
        let pairs: Vec<_> = self
            .0
            .iter()
            .map(|header| (header.name(), header.expose_value()))
            .collect();
        Zeroizing::new(serde_json::to_string(&pairs).expect("pairs of strings are JSON"))
    }

    /// Reads what [`Self::to_json`] wrote; `None` if it is something else.
    pub fn from_json(json: &str) -> Option<Self> {
        let pairs: Vec<(String, String)> = serde_json::from_str(json).ok()?;
        let mut headers = Self::default();
        for (name, value) in pairs {
            let name = StaticHeaderName::parse(name).ok()?;
            headers.try_insert(name, value).ok()?;
        }
        Some(headers)
    }

    /// Replaces the values in a text, because some endpoints repeat what they receive. Also replaces
    /// the parts of a value between spaces, such as the token after `Bearer`, if they have eight
    /// bytes, and the forms of both in JSON and in URLs. The result is not longer than the text.
    pub fn redact(&self, text: &str) -> String {
        let mut parts = Zeroizing::new(Vec::new());
        for header in &self.0 {
            let value = header.expose_value();
            add_forms(&mut parts, value);
            for part in value.split([' ', '\t']) {
                if part.len() >= MIN_REDACTED {
                    add_forms(&mut parts, part);
                }
            }
        }
        // A part may begin with another one.
        parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
        let mut redacted = text.to_owned();
        for part in parts.iter() {
            redacted = redacted.replace(part.as_str(), Self::REDACTED);
            redact_end(&mut redacted, part);
        }
        redacted.truncate(redacted.floor_char_boundary(text.len()));
        redacted
    }
}

/// Adds a text, its forms in JSON, where some libraries escape more than others, and that in URLs.
fn add_forms(parts: &mut Vec<String>, text: &str) {
    let json = text.replace('\\', r"\\").replace('"', r#"\""#);
    parts.push(json.replace('/', r"\/"));
    let for_html = json.replace('&', r"\u0026").replace('<', r"\u003c");
    parts.push(for_html.replace('>', r"\u003e"));
    parts.push(json);
    parts.push(percent_encode(text));
    parts.push(text.to_owned());
}

/// Percent-encodes all but the unreserved characters of URLs (RFC 3986, section 2.3).
fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a string succeeds");
        }
    }
    encoded
}

/// Replaces the beginning of `part` at the end of the text, which may be cut off there.
fn redact_end(text: &mut String, part: &str) {
    for length in (MIN_REDACTED..part.len()).rev() {
        if text.ends_with(&part[..length]) {
            text.truncate(text.len() - length);
            text.push_str(StaticHeaders::REDACTED);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(
        headers: &mut StaticHeaders,
        name: &str,
        value: &str,
    ) -> Result<(), StaticHeaderError> {
        let name = StaticHeaderName::parse(name.to_owned()).unwrap();
        headers.try_insert(name, value.to_owned())
    }

    fn headers(pairs: &[(&str, &str)]) -> StaticHeaders {
        let mut headers = StaticHeaders::default();
        for (name, value) in pairs {
            insert(&mut headers, name, value).unwrap();
        }
        headers
    }

    #[test]
    fn malformed_name_is_refused() {
        let longest = "x".repeat(StaticHeaderName::MAX);
        for name in [
            "X-Api-Key",
            "authorization",
            "x",
            "0",
            "!#$%&'*+-.^_`|~",
            &longest,
        ] {
            let parsed = StaticHeaderName::parse(name.to_owned()).unwrap();
            assert_eq!(parsed.as_str(), name);
            assert!(http::HeaderName::try_from(name).is_ok(), "{name}");
        }
        for name in [
            "",
            " ",
            "X Key",
            " X-Key",
            "X-Key ",
            "X-Key:",
            ":authority",
            "X-Key\t",
            "X-Key\r\nY",
            "\n",
            "X\0Y",
            "Schlüssel",
            "X-Key: secret",
            "(x)",
            "a/b",
            "a\"b",
            "a,b",
            "a;b",
            "a=b",
            "a@b",
            "a[b]",
            "a{b}",
            "a\\b",
            "a<b>",
            "a?b",
            "\u{7f}",
            "\u{feff}x",
            "x\u{2028}",
            &"x".repeat(StaticHeaderName::MAX + 1),
        ] {
            let parsed = StaticHeaderName::parse(name.to_owned());
            assert_eq!(parsed, Err(StaticHeaderNameError), "{name:?}");
        }
    }

    #[test]
    fn reserved_name_is_refused() {
        for name in [
            "Host",
            "HOST",
            "content-type",
            "Content-Length",
            "content-encoding",
            "Content_Length",
            "Content-",
            "Connection",
            "Transfer-Encoding",
            "transfer_encoding",
            "TE",
            "te",
            "Upgrade",
            "User-Agent",
            "user_agent",
            "X-Nano-Signature",
            "x-nano-",
            "x-nano-anything",
            "X_Nano_Signature",
            "webhook-id",
            "Webhook-Signature",
            "webhook-",
            "traceparent",
            "TraceParent",
            "Trailer",
            "Keep-Alive",
            "Proxy-Authorization",
            "proxy-connection",
            "Expect",
            "Accept",
        ] {
            let refused = insert(&mut StaticHeaders::default(), name, "value");
            assert_eq!(refused, Err(StaticHeaderError::Reserved), "{name}");
        }
        for name in [
            "Authorization",
            "X-Api-Key",
            "Cookie",
            "x-nanometer",
            "webhook",
            "Hostname",
            "Content",
            "Accept-Language",
            "tracestate",
            "X-Host",
            "Tea",
            "X-Content-Type",
        ] {
            let added = insert(&mut StaticHeaders::default(), name, "value");
            assert_eq!(added, Ok(()), "{name}");
        }
    }

    #[test]
    fn malformed_value_is_refused() {
        for value in [
            "x",
            "Bearer abc",
            "a\tb",
            "a  b",
            "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
        ] {
            let added = insert(&mut StaticHeaders::default(), "X-Key", value);
            assert_eq!(added, Ok(()), "{value:?}");
            assert!(http::HeaderValue::try_from(value).is_ok(), "{value:?}");
        }
        for value in [
            "",
            " ",
            "\t",
            " x",
            "x ",
            "\tx",
            "x\t",
            "x\r",
            "x\n",
            "x\r\nHost: example.org",
            "a\nb",
            "a\0b",
            "a\u{7f}b",
            "a\u{1}b",
            "a\u{1b}[0m",
            "\u{e9}",
            "a\u{a0}b",
            "a\u{2028}b",
            "\u{feff}x",
        ] {
            let refused = insert(&mut StaticHeaders::default(), "X-Key", value);
            assert_eq!(refused, Err(StaticHeaderError::Value), "{value:?}");
        }
    }

    #[test]
    fn repeated_name_is_refused() {
        let mut headers = headers(&[("X-Api-Key", "1"), ("Authorization", "2")]);
        for name in ["X-Api-Key", "x-api-key", "X-API-KEY", "AUTHORIZATION"] {
            let refused = insert(&mut headers, name, "3");
            assert_eq!(refused, Err(StaticHeaderError::Repeated), "{name}");
        }
        assert_eq!(headers.names(), ["Authorization", "X-Api-Key"]);
    }

    #[test]
    fn number_and_size_are_limited() {
        let mut headers = StaticHeaders::default();
        for number in 0..StaticHeaders::MAX {
            insert(&mut headers, &format!("X-{number}"), "x").unwrap();
        }
        let refused = insert(&mut headers, "X-Other", "x");
        assert_eq!(refused, Err(StaticHeaderError::TooMany));

        let mut headers = StaticHeaders::default();
        insert(&mut headers, "X-1", &"x".repeat(4_000)).unwrap();
        let refused = insert(&mut headers, "X-2", &"x".repeat(91));
        assert_eq!(refused, Err(StaticHeaderError::TooLong));
        insert(&mut headers, "X-2", &"x".repeat(90)).unwrap();
        assert_eq!(headers.len_bytes(), StaticHeaders::MAX_BYTES);
    }

    /// Equal sets are equal whatever the order in which they were written.
    #[test]
    fn order_does_not_matter() {
        let pairs = [("b", "1"), ("A", "2"), ("C", "3")];
        let reversed = [pairs[2], pairs[1], pairs[0]];
        assert_eq!(headers(&pairs), headers(&reversed));
        assert_eq!(headers(&pairs).names(), ["A", "b", "C"]);
    }

    /// The stored form is fixed: tables have headers that earlier versions wrote.
    #[test]
    fn json_form_is_read() {
        let json = r#"[["Authorization","Bearer \"a\\b\""],["x-api-key","k"]]"#;
        let headers = headers(&[("x-api-key", "k"), ("Authorization", r#"Bearer "a\b""#)]);
        assert_eq!(*headers.to_json(), json);
        assert_eq!(StaticHeaders::from_json(json), Some(headers));
        for malformed in [
            "",
            "{}",
            r#"[["X-Key"]]"#,
            r#"[["X-Key","\n"]]"#,
            r#"[["",""]]"#,
        ] {
            assert_eq!(StaticHeaders::from_json(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn debug_hides_values() {
        let shown = format!("{:?}", headers(&[("X-Api-Key", "open sesame")]));
        assert!(
            shown.contains("X-Api-Key") && !shown.contains("sesame"),
            "{shown}"
        );
    }

    #[test]
    fn values_are_redacted_in_text() {
        let headers = headers(&[
            ("Authorization", "Bearer abcd/efgh+1234=="),
            ("X-Longer", "abcd/efgh+1234==5678"),
            ("X-Quoted", r#"pass"word\1"#),
            ("X-Short", "1234567"),
            ("X-Words", "a&b <c>"),
        ]);
        for (text, expected) in [
            ("", ""),
            ("nothing to see", "nothing to see"),
            ("got Bearer abcd/efgh+1234==!", "got [redacted]!"),
            ("abcd/efgh+1234==5678", "[redacted]"),
            ("abcd/efg", "[redacte"),
            (
                r#"{"auth":"Bearer abcd\/efgh+1234=="}"#,
                r#"{"auth":"[redacted]"}"#,
            ),
            (
                r#"{"x":"pass\"word\\1"} pass"word\1"#,
                r#"{"x":"[redacted]"} [redacted]"#,
            ),
            ("1234567 goes", "[redacted] g"),
            ("a&b <c> or %61", "[redacted] or "),
            (r"a\u0026b \u003cc\u003e", "[redacted]"),
            ("a%26b%20%3Cc%3E", "[redacted]"),
            ("a&b alone", "a&b alone"),
            ("é abcd/efgh+12", "é [redacted]"),
            ("é abcd/ef", "é abcd/ef"),
            ("cut off: abcd/efg", "cut off: [redacte"),
        ] {
            assert_eq!(headers.redact(text), expected, "{text}");
        }
    }
}
