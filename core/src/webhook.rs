//! A webhook: an account's subscription of an endpoint to events. Every part is parsed once and never half-valid.

use std::{fmt, num::NonZeroU64, ops::RangeInclusive};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Uri;
use url::Url;
use zeroize::Zeroizing;

/// Who owns jobs and webhooks: the platform's own name for a customer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(String);

impl AccountId {
    /// The longest account name, in bytes: it is part of table keys, which DynamoDB bounds.
    pub const MAX: usize = 256;

    /// Takes a name of 1 to [`AccountId::MAX`] bytes.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn parse(name: &str) -> Result<Self, &'static str> {
        if name.is_empty() || name.len() > Self::MAX {
            return Err("expected an account name of 1 to 256 bytes");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A webhook's number within its account: counted from 1, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WebhookId(NonZeroU64);

impl WebhookId {
    /// The largest id: table keys give it ten digits, so that they sort by number.
    pub const MAX: u64 = 9_999_999_999;

    /// From a number; `None` unless it is 1 to 9,999,999,999.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number)
            .filter(|n| n.get() <= Self::MAX)
            .map(Self)
    }

    /// From its decimal form, without sign or leading zeros.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Self::new(text.parse().ok()?)?;
        (id.to_string() == text).then_some(id)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for WebhookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What can be subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventType {
    /// `job.completed`
    JobCompleted,
    /// `job.failed`
    JobFailed,
    /// `webhook.disabled`: one of the account's webhooks was disabled.
    WebhookDisabled,
}

impl EventType {
    /// Every event type.
    pub const ALL: [Self; 3] = [Self::JobCompleted, Self::JobFailed, Self::WebhookDisabled];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JobCompleted => "job.completed",
            Self::JobFailed => "job.failed",
            Self::WebhookDisabled => "webhook.disabled",
        }
    }

    /// The event type with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == name)
    }
}

/// The events that a webhook subscribes to: at least one, each once, in the order they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventTypes(Vec<EventType>);

impl EventTypes {
    /// Takes the names as a caller gave them.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut events = Vec::new();
        for name in names {
            let event = EventType::parse(name).ok_or_else(|| {
                let known = EventType::ALL.map(EventType::as_str).join("`, `");
                let given: String = name.chars().take(64).collect();
                format!("unknown event `{given}`, expected some of `{known}`")
            })?;
            if events.contains(&event) {
                return Err(format!(
                    "`{name}` is listed twice, expected each event once"
                ));
            }
            events.push(event);
        }
        if events.is_empty() {
            return Err("expected at least one event".to_owned());
        }
        Ok(Self(events))
    }

    /// Whether `event` is among them.
    pub fn contains(&self, event: EventType) -> bool {
        self.0.contains(&event)
    }

    /// Their names, in the order they were given.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|event| event.as_str())
    }
}

/// The address that callbacks go to: an `http` or `https` URL, kept as it was given.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointUrl {
    original: String,
    url: Url,
    uri: Uri,
}

impl EndpointUrl {
    /// The longest URL, in characters.
    pub const MAX: usize = 2_048;

    /// Reads a URL. What a URL parser would silently drop or bend (white space, backslashes, control characters,
    /// missing or extra slashes) is refused before any parser sees it.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn parse(original: &str) -> Result<Self, &'static str> {
        if original.chars().count() > Self::MAX {
            return Err("expected at most 2048 characters");
        }
        if original
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || c == '\\' || is_invisible(c))
        {
            return Err(
                "expected a URL without spaces, backslashes, control and invisible characters",
            );
        }
        let (scheme, rest) = original
            .split_once("://")
            .ok_or("expected a URL that begins with `https://`")?;
        if !["http", "https"]
            .iter()
            .any(|known| scheme.eq_ignore_ascii_case(known))
        {
            return Err("expected a URL that begins with `https://`");
        }
        if rest.is_empty() || rest.starts_with(['/', '?', '#', ':', '@']) {
            return Err("expected a host directly after `://`");
        }
        if rest.contains('#') {
            return Err("expected a URL without a fragment (`#`)");
        }
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err("expected a URL without user name or password");
        }
        let url =
            Url::parse(original).map_err(|_| "expected a valid URL with a valid host name")?;
        let sendable = url.has_host() && url.port_or_known_default() != Some(0);
        match Uri::try_from(url.as_str()) {
            Ok(uri) if sendable => Ok(Self {
                original: original.to_owned(),
                url,
                uri,
            }),
            _ => Err("expected a valid URL with a valid host name"),
        }
    }

    /// The URL as it was given.
    pub fn as_str(&self) -> &str {
        &self.original
    }

    /// The URL in the normal form that requests are sent to.
    pub const fn url(&self) -> &Url {
        &self.url
    }

    /// The same as the request's target.
    pub const fn uri(&self) -> &Uri {
        &self.uri
    }
}

/// Characters that the mapping of host names drops (UTS #46, status "ignored").
const fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{e0100}'..='\u{e01ef}'
    )
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointUrl({})", self.original)
    }
}

/// A signing secret. It shows nowhere and is wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// What a Standard Webhooks secret begins with; base64 follows.
    pub const STANDARD_PREFIX: &'static str = "whsec_";
    /// How many characters it has.
    pub const LENGTH_RANGE: RangeInclusive<usize> = 8..=256;

    /// Takes 8 to 256 characters; one that begins with `whsec_` must go on in base64.
    ///
    /// # Errors
    /// A sentence that says what is expected, and nothing of what was given.
    pub fn parse(text: String) -> Result<Self, &'static str> {
        let secret = Self(Zeroizing::new(text));
        if !Self::LENGTH_RANGE.contains(&secret.0.chars().count()) {
            return Err("expected 8 to 256 characters");
        }
        if secret.0.starts_with(Self::STANDARD_PREFIX) && secret.decode_whsec().is_none() {
            return Err("expected base64 with padding after `whsec_`");
        }
        Ok(secret)
    }

    /// A new one, as Standard Webhooks has them: 256 random bits, where 192 to 512 are asked for (Standard Webhooks 1.0.0,
    /// "Signature scheme").
    pub fn from_random(random: [u8; 32]) -> Self {
        let bytes = Zeroizing::new(random);
        Self(Zeroizing::new(format!(
            "{}{}",
            Self::STANDARD_PREFIX,
            STANDARD.encode(bytes.as_slice())
        )))
    }

    /// The secret itself, for signing and storing.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The key of the Standard Webhooks signature: the decoded bytes of a `whsec_…` secret, else its UTF-8 bytes.
    pub fn standard_webhooks_key(&self) -> Zeroizing<Vec<u8>> {
        self.decode_whsec()
            .unwrap_or_else(|| Zeroizing::new(self.0.as_bytes().to_vec()))
    }

    fn decode_whsec(&self) -> Option<Zeroizing<Vec<u8>>> {
        let encoded = self.0.strip_prefix(Self::STANDARD_PREFIX)?;
        let bytes = Zeroizing::new(STANDARD.decode(encoded).ok()?);
        (!bytes.is_empty()).then_some(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Whether a webhook receives events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookStatus {
    /// It does.
    Active,
    /// It does not, until it is enabled again.
    Disabled,
}

impl WebhookStatus {
    /// Every status.
    pub const ALL: [Self; 2] = [Self::Active, Self::Disabled];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
        }
    }

    /// The status with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }
}

/// A webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Its number within the account.
    pub id: WebhookId,
    /// Where callbacks go.
    pub url: EndpointUrl,
    /// What it subscribes to.
    pub events: EventTypes,
    /// Whether it receives events.
    pub status: WebhookStatus,
}

impl Webhook {
    /// Whether an event of this type is to be delivered to it.
    pub fn accepts(&self, event: EventType) -> bool {
        self.status == WebhookStatus::Active && self.events.contains(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_kept_as_it_was_given() {
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
    fn a_url_that_a_parser_would_bend_is_refused() {
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

    #[test]
    fn a_secret_has_8_to_256_characters_and_whsec_goes_on_in_base64() {
        let parse = |text: &str| Secret::parse(text.to_owned());
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
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            *parse("whsec_bmFubw==").unwrap().standard_webhooks_key(),
            *b"nano"
        );
        assert_eq!(
            *parse("my secret").unwrap().standard_webhooks_key(),
            *b"my secret"
        );
    }

    #[test]
    fn a_generated_secret_is_one_of_standard_webhooks_and_no_two_are_alike() {
        let (a, b) = (Secret::from_random([1; 32]), Secret::from_random([2; 32]));
        assert_eq!(Secret::parse(a.expose().to_owned()), Ok(a.clone()));
        assert_eq!(a.standard_webhooks_key().len(), 32);
        assert_ne!(a, b);
    }

    #[test]
    fn a_secret_shows_nowhere() {
        let secret = Secret::parse("open sesame".to_owned()).unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }

    #[test]
    fn events_are_known_distinct_and_at_least_one() {
        assert!(EventTypes::parse([]).is_err());
        assert!(EventTypes::parse(["job.completed", "job.completed"]).is_err());
        assert!(
            EventTypes::parse(["job.done"])
                .unwrap_err()
                .contains("`job.done`")
        );
        let events = EventTypes::parse(["job.failed", "job.completed"]).unwrap();
        assert_eq!(
            events.names().collect::<Vec<_>>(),
            ["job.failed", "job.completed"]
        );
        assert!(
            events.contains(EventType::JobFailed) && !events.contains(EventType::WebhookDisabled)
        );
    }

    #[test]
    fn an_id_is_a_positive_integer_without_sign_or_leading_zeros() {
        assert_eq!(WebhookId::parse("1").map(WebhookId::get), Some(1));
        for wrong in [
            "",
            "0",
            "-1",
            "+1",
            "01",
            "1.0",
            "a",
            "10000000000",
            "99999999999999999999",
        ] {
            assert_eq!(WebhookId::parse(wrong), None, "{wrong}");
        }
    }
}
