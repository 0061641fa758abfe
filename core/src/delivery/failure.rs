//! Why an attempt failed.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::tls_fault::TlsFault;

/// How far an attempt had come when its deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutStage {
    /// Resolving the name, connecting, or the TLS handshake.
    Connect,
    /// Sending the request or waiting for the response.
    AwaitingResponse,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The host name does not resolve.
    Dns,
    /// The name servers of the host do not answer, or report an error.
    NameServer,
    /// The connection failed or was closed before a response.
    Connect,
    /// The TLS handshake failed for this reason.
    Tls(TlsFault),
    /// The deadline passed at this stage.
    Timeout(TimeoutStage),
    /// This rule of the target policy blocks the address.
    Blocked(&'static str),
    /// The endpoint returned a redirect, which is not followed.
    Redirect(u16),
    /// The endpoint returned a status other than 2xx.
    Status(u16),
    /// The response is not valid HTTP.
    InvalidResponse,
    /// The response has this many bytes before its body or more, or too many headers.
    ResponseTooLarge(usize),
}

/// The kind of a [`Failure`], as it is stored and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// See [`Failure::Dns`] and [`Failure::NameServer`].
    Dns,
    /// See [`Failure::Connect`].
    Connect,
    /// See [`Failure::Tls`].
    Tls,
    /// See [`Failure::Timeout`].
    Timeout,
    /// See [`Failure::Blocked`].
    Blocked,
    /// See [`Failure::Redirect`].
    Redirect,
    /// See [`Failure::Status`].
    Status,
    /// See [`Failure::InvalidResponse`]. Version 0.1 stored it as `body`.
    #[serde(alias = "body")]
    InvalidResponse,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Blocked,
        Self::Redirect,
        Self::Status,
        Self::InvalidResponse,
    ];

    /// The name that the API shows and the tables store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Blocked => "blocked",
            Self::Redirect => "redirect",
            Self::Status => "status",
            Self::InvalidResponse => "invalid_response",
        }
    }
}

impl Failure {
    /// The kind of this failure.
    pub const fn kind(&self) -> FailureKind {
        match self {
            Self::Dns | Self::NameServer => FailureKind::Dns,
            Self::Connect => FailureKind::Connect,
            Self::Tls(_) => FailureKind::Tls,
            Self::Timeout(_) => FailureKind::Timeout,
            Self::Blocked(_) => FailureKind::Blocked,
            Self::Redirect(_) => FailureKind::Redirect,
            Self::Status(_) => FailureKind::Status,
            Self::InvalidResponse | Self::ResponseTooLarge(_) => FailureKind::InvalidResponse,
        }
    }
}

impl fmt::Display for Failure {
    /// Writes the cause and what the endpoint's owner can do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns => f.write_str(
                "The host name does not resolve. Check the URL and the DNS records of its host.",
            ),
            Self::NameServer => f.write_str(
                "The host name could not be resolved: its name servers do not answer, or report \
                 an error. Check the DNS of its domain.",
            ),
            Self::Connect => f.write_str(
                "The connection failed or was closed before a response. \
                 Check that the server is running and reachable on this port.",
            ),
            Self::Tls(fault) => fault.fmt(f),
            Self::Timeout(TimeoutStage::Connect) => f.write_str(
                "No connection within the deadline. Check that the server is reachable, and \
                 that its DNS and TLS respond quickly.",
            ),
            Self::Timeout(TimeoutStage::AwaitingResponse) => f.write_str(
                "Connected, but no response within the deadline. \
                 Return 2xx at once and process the event afterwards.",
            ),
            Self::Blocked(rule) => write!(
                f,
                "The target policy does not allow this target ({rule}). \
                 Use a public https address."
            ),
            Self::Redirect(status) => write!(
                f,
                "The endpoint returned a redirect ({status}), which is not followed. \
                 Register the final URL."
            ),
            Self::Status(status) => write!(
                f,
                "The endpoint returned status {status}. Return a 2xx status to accept the event."
            ),
            Self::InvalidResponse => {
                f.write_str("The response is not valid HTTP. Check the server's response.")
            }
            Self::ResponseTooLarge(limit) => write!(
                f,
                "The response has more than {limit} bytes before its body, or more than 1,024 \
                 headers. Send one short response."
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_stored_by_name() {
        for kind in FailureKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
