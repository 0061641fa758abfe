//! The URL of an endpoint.

use std::{fmt, sync::Arc};

use http::Uri;
use url::{Host, Url};

/// The URL that a webhook points to: `http` or `https`, kept as the owner wrote it.
///
/// The target policy decides separately whether it may be called. Clones share the URL.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointUrl(Arc<ParsedUrl>);

#[derive(PartialEq, Eq)]
struct ParsedUrl {
    original: String,
    url: Url,
    uri: Uri,
}

/// The text is not an endpoint's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointUrlError {
    /// The URL has more than [`EndpointUrl::MAX`] characters.
    #[error("expected at most 2048 characters")]
    TooLong,
    /// The URL has a character that parsers drop or change.
    #[error("expected a URL without spaces, backslashes, control and invisible characters")]
    Character,
    /// The scheme is neither `http` nor `https`.
    #[error("expected a URL that begins with `https://`")]
    Scheme,
    /// No host follows the scheme.
    #[error("expected a host directly after `://`")]
    MissingHost,
    /// The URL has a fragment.
    #[error("expected a URL without a fragment (`#`)")]
    Fragment,
    /// The URL has a user name or a password.
    #[error("expected a URL without user name or password")]
    UserInfo,
    /// The host or the port is invalid.
    #[error("expected a valid URL with a valid host name")]
    Invalid,
}

impl EndpointUrl {
    /// The longest URL, in characters.
    pub const MAX: usize = 2_048;

    /// Parses a URL.
    ///
    /// White space, backslashes, control characters, and missing or extra slashes are refused
    /// before a URL parser can drop or change them.
    pub fn parse(original: &str) -> Result<Self, EndpointUrlError> {
        if original.chars().count() > Self::MAX {
            return Err(EndpointUrlError::TooLong);
        }
        if original.chars().any(is_refused) {
            return Err(EndpointUrlError::Character);
        }
        let (scheme, rest) = original.split_once("://").ok_or(EndpointUrlError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(EndpointUrlError::Scheme);
        }
        if rest.is_empty() || rest.starts_with(['/', '?', '#', ':', '@']) {
            return Err(EndpointUrlError::MissingHost);
        }
        if rest.contains('#') {
            return Err(EndpointUrlError::Fragment);
        }
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(EndpointUrlError::UserInfo);
        }
        let url = Url::parse(original).map_err(|_| EndpointUrlError::Invalid)?;
        if !url.has_host() || url.port_or_known_default() == Some(0) {
            return Err(EndpointUrlError::Invalid);
        }
        let uri = Uri::try_from(url.as_str()).map_err(|_| EndpointUrlError::Invalid)?;
        Ok(Self(Arc::new(ParsedUrl {
            original: original.to_owned(),
            url,
            uri,
        })))
    }

    /// Whether the host is an address or a name that the DNS can hold: at most 253 characters, in
    /// labels of 1 to 63 (RFC 1035, section 2.3.4).
    pub fn has_resolvable_host(&self) -> bool {
        let Some(Host::Domain(name)) = self.0.url.host() else {
            return true;
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len()))
    }

    /// The URL as the owner wrote it.
    pub fn as_str(&self) -> &str {
        &self.0.original
    }

    /// The normalized URL.
    pub fn url(&self) -> &Url {
        &self.0.url
    }

    /// The normalized URL as the target of requests.
    pub fn uri(&self) -> &Uri {
        &self.0.uri
    }
}

fn is_refused(character: char) -> bool {
    character.is_control()
        || character.is_whitespace()
        || character == '\\'
        || is_invisible(character)
}

/// Characters that the mapping of host names drops (UTS #46, status "ignored").
const fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2060}'..='\u{2064}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{e0100}'..='\u{e01ef}'
    )
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointUrl({})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_text_is_kept() {
        for url in [
            "https://example.com",
            "https://example.com/hooks?x=1&y=a%20b",
            "HTTPS://Example.COM:8443/Hooks",
            "http://127.0.0.1:9000/ok",
            "https://[2001:db8::1]/x",
            "https://bücher.example/ü",
            "https://example.com/a@b",
        ] {
            assert_eq!(EndpointUrl::parse(url).unwrap().as_str(), url);
        }
    }

    #[test]
    fn names_that_cannot_resolve_are_found() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        for (host, expected) in [
            ("example.com", true),
            ("example.com.", true),
            ("internal", true),
            ("xn--bcher-kva.example", true),
            ("127.0.0.1", true),
            ("[::1]", true),
            (&format!("{label}.example"), true),
            (&longest, true),
            (&format!("{longest}."), true),
            ("a..example", false),
            (".example", false),
            ("example.com..", false),
            (&format!("a{label}.example"), false),
            (&format!("a{longest}"), false),
            // 50 characters as written, more than 63 in the DNS.
            (&format!("{}.example", "ü".repeat(50)), true),
            (&format!("{}.example", "üß水".repeat(17)), false),
        ] {
            let url = EndpointUrl::parse(&format!("https://{host}/")).unwrap();
            assert_eq!(url.has_resolvable_host(), expected, "{host}");
        }
    }

    /// URLs that a parser would silently change are refused.
    #[test]
    fn ambiguous_url_is_refused() {
        for url in [
            "",
            "example.com",
            "ftp://example.com",
            "https:example.com",
            "https:/example.com",
            "https://",
            "https:///example.com",
            "https://?x",
            "https://:80",
            "https://user@example.com",
            "https://user:pass@example.com/",
            "https://@example.com",
            "https://example.com/#fragment",
            "https://example.com#",
            " https://example.com",
            "https://exam ple.com",
            "https://example.com/\n",
            "https://exa\tmple.com",
            "https://example.com\\@evil.example",
            "https://example.com/\u{7f}",
            "https://example.com/\u{a0}",
            "https://exa\u{ad}mple.com",
            "https://example\u{200b}.com",
            "https://example.com\u{feff}",
            "https://example.com:0",
            "https://example.com:99999",
            "https://[::1",
            "https://256.1.1.1.1.999",
            "javascript://example.com/%0aalert(1)",
        ] {
            assert!(EndpointUrl::parse(url).is_err(), "{url:?}");
        }
        assert!(EndpointUrl::parse(&format!("https://example.com/{}", "a".repeat(2028))).is_ok());
        assert!(EndpointUrl::parse(&format!("https://example.com/{}", "a".repeat(2029))).is_err());
        // The limit counts characters, not bytes.
        assert!(EndpointUrl::parse(&format!("https://example.com/{}", "é".repeat(2028))).is_ok());
    }
}
