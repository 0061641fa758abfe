//! A webhook request as `listen` and `demo` receive and print it.

use std::{fmt::Write, time::Duration};

use anstyle::{AnsiColor, Style};
use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{HeaderMap, Method, Uri},
};
use nano_webhooks_core::{secret::Secret, timestamp::Timestamp};

use crate::{
    terminal::escape_for_terminal,
    verify::{RotationRole, SignatureStatus, VerificationReport, verify},
};

/// The headers that are printed, in this order.
pub const PRINTED_HEADERS: [&str; 9] = [
    "User-Agent",
    "X-Nano-Event",
    "X-Nano-Attempt",
    "X-Nano-Timestamp",
    "X-Nano-Signature",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "Content-Type",
];

pub struct ReceivedRequest {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl<S: Send + Sync> FromRequest<S> for ReceivedRequest {
    type Rejection = BytesRejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, BytesRejection> {
        let method = request.method().clone();
        let uri = request.uri().clone();
        let headers = request.headers().clone();
        let body = Bytes::from_request(request, state).await?;
        Ok(Self {
            method,
            uri,
            headers,
            body,
        })
    }
}

impl ReceivedRequest {
    pub fn verify(&self, secret: Option<&Secret>, now: Timestamp) -> VerificationReport {
        verify(&self.headers, &self.body, secret, now)
    }

    /// Formats the request and the status of its signatures for a terminal. What could control the
    /// terminal is escaped, because others have written the request.
    pub fn format(&self, report: &VerificationReport) -> String {
        let mut text = String::new();
        self.write(&mut text, report)
            .expect("writing to a string succeeds");
        text
    }

    fn write(&self, out: &mut impl Write, report: &VerificationReport) -> std::fmt::Result {
        let bold = Style::new().bold();
        let dimmed = Style::new().dimmed();
        let method = escape_for_terminal(self.method.as_str());
        let uri = escape_for_terminal(&self.uri.to_string());
        writeln!(out, "  {bold}{method} {uri}{bold:#}")?;
        for name in PRINTED_HEADERS {
            for value in self.headers.get_all(name) {
                let value = escape_for_terminal(value.to_str().unwrap_or("(not text)"));
                writeln!(out, "  {dimmed}{name}:{dimmed:#} {value}")?;
            }
        }
        let body = escape_for_terminal(&String::from_utf8_lossy(&self.body));
        writeln!(out, "\n  {body}\n")?;
        let is_signed =
            report.nano != SignatureStatus::Missing || report.standard != SignatureStatus::Missing;
        write_status(out, "X-Nano-Signature", report.nano, is_signed)?;
        write_status(out, "webhook-signature", report.standard, is_signed)?;
        if let Some(role) = report.rotation {
            write_rotation(out, role)?;
        }
        match report.stale_by {
            Some(seconds) => write_stale_timestamp(out, seconds),
            None => Ok(()),
        }
    }
}

/// Writes the status of one signature. `is_signed` is whether the request has any signature.
fn write_status(
    out: &mut impl Write,
    header: &str,
    status: SignatureStatus,
    is_signed: bool,
) -> std::fmt::Result {
    let (color, line) = match status {
        SignatureStatus::Valid => (AnsiColor::Green, format!("✓ {header} valid")),
        SignatureStatus::MadeByOlderSecret => (
            AnsiColor::Yellow,
            format!(
                "– {header} made by an older secret of this webhook, which signs it until \
                 the grace time of the rotation ends"
            ),
        ),
        SignatureStatus::Invalid(reason) => {
            (AnsiColor::Red, format!("✗ {header} invalid: {reason}"))
        }
        SignatureStatus::Missing if is_signed => (
            AnsiColor::Red,
            format!("✗ {header} missing: it was removed in transit"),
        ),
        SignatureStatus::Missing => (
            AnsiColor::Yellow,
            format!("– {header} missing: the webhook has no secret"),
        ),
        SignatureStatus::NotChecked => (
            AnsiColor::Yellow,
            format!("– {header} not checked: pass the secret with --secret"),
        ),
    };
    let style = color.on_default();
    writeln!(out, "  {style}{line}{style:#}")
}

fn write_rotation(out: &mut impl Write, role: RotationRole) -> std::fmt::Result {
    let explanation = match role {
        RotationRole::Oldest => {
            "this is the previous one; add the new secret before the grace time ends, and accept \
             both until then"
        }
        RotationRole::Newer => {
            "this is a newer one; accept the previous secret too until the grace time ends"
        }
    };
    let style = AnsiColor::Yellow.on_default();
    writeln!(
        out,
        "  {style}– the secret was rotated: {explanation}{style:#}"
    )
}

fn write_stale_timestamp(out: &mut impl Write, stale_by: i64) -> std::fmt::Result {
    let distance = humantime::format_duration(Duration::from_secs(stale_by.unsigned_abs()));
    let explanation = if stale_by < 0 {
        "in the future: a clock is wrong, or the timestamp is not in seconds"
    } else {
        "old: the request is a copy of an earlier one, or a clock is wrong"
    };
    let style = AnsiColor::Red.on_default();
    writeln!(
        out,
        "  {style}✗ the timestamp is {distance} {explanation} (at most five minutes are \
         allowed){style:#}"
    )
}
