//! `bind`: a receiver to develop against.

use std::{fmt::Write as _, io::Write as _, time::Duration};

use anstyle::{AnsiColor, Style};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
};

use super::{
    args::{CliError, ListenArgs},
    serve::{bind, shutdown_signal},
    verify::{SignatureStatus, Verdicts, verify},
};
use nano_webhooks::clock::Clock;
use nano_webhooks_core::secret::Secret;

/// The headers that are printed, in this order.
const PRINTED_HEADERS: [&str; 9] = [
    "user-agent",
    "x-nano-event",
    "x-nano-attempt",
    "x-nano-timestamp",
    "x-nano-signature",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "content-type",
];

#[derive(Clone)]
struct ListenState {
    secret: Option<Secret>,
    status: StatusCode,
    delay: Duration,
}

/// Receives until it is told to stop.
pub(super) async fn run(args: ListenArgs) -> Result<(), CliError> {
    let secret = args
        .secret
        .map(Secret::parse)
        .transpose()
        .map_err(|error| CliError(format!("--secret: {error}")))?;
    let signed = if secret.is_some() {
        "and verify their signatures"
    } else {
        "(--secret verifies their signatures)"
    };
    let status = StatusCode::from_u16(args.respond)?;
    let receiver = ListenState {
        secret,
        status,
        delay: Duration::from_secs_f64(args.delay),
    };
    let listener = bind(([127, 0, 0, 1], args.port).into()).await?;
    let address = listener.local_addr()?;
    writeln!(
        anstream::stdout(),
        "Listening on http://{address}/ to show requests {signed}, answering {status}."
    )?;
    let server = axum::serve(
        listener,
        Router::new().fallback(receive).with_state(receiver),
    );
    tokio::select! {
        ended = server.into_future() => Ok(ended?),
        signal = shutdown_signal() => signal,
    }
}

async fn receive(
    State(receiver): State<ListenState>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let verdicts = verify(
        &headers,
        &body,
        receiver.secret.as_ref(),
        Clock::system().now(),
    );
    let text = format!(
        "\n{}",
        format_request(&method, &uri, &headers, &body, verdicts)
    );
    // A closed terminal is no reason to stop receiving.
    let _ = write!(anstream::stdout(), "{text}");
    tokio::time::sleep(receiver.delay).await;
    receiver.status
}

/// A request as it is shown to a person.
pub(super) fn format_request(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
    verdicts: Verdicts,
) -> String {
    let mut out = String::new();
    let dim = Style::new().dimmed();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "  {}{method} {uri}{:#}",
        Style::new().bold(),
        Style::new().bold()
    );
    for name in PRINTED_HEADERS {
        for value in headers.get_all(name) {
            let _ = writeln!(
                out,
                "  {dim}{name}:{dim:#} {}",
                value.to_str().unwrap_or("(not text)")
            );
        }
    }
    let _ = writeln!(out, "\n  {}\n", String::from_utf8_lossy(body));
    let signed =
        verdicts.nano != SignatureStatus::Missing || verdicts.standard != SignatureStatus::Missing;
    for (name, verdict) in [
        ("X-Nano-Signature", verdicts.nano),
        ("webhook-signature", verdicts.standard),
    ] {
        let (color, mark, says) = match verdict {
            SignatureStatus::Holds => (AnsiColor::Green, "✓", "holds".to_owned()),
            SignatureStatus::Wrong(reason) => {
                (AnsiColor::Red, "✗", format!("does not hold: {reason}"))
            }
            SignatureStatus::Missing if signed => (
                AnsiColor::Red,
                "✗",
                "is missing: it was removed on its way".to_owned(),
            ),
            SignatureStatus::Missing => (
                AnsiColor::Yellow,
                "–",
                "is missing: the webhook has no secret".to_owned(),
            ),
            SignatureStatus::Unchecked => (
                AnsiColor::Yellow,
                "–",
                "was not checked: no --secret was given".to_owned(),
            ),
        };
        let style = color.on_default();
        let _ = writeln!(out, "  {style}{mark} {name} {says}{style:#}");
    }
    if let Some(by) = verdicts.stale_by {
        let style = AnsiColor::Red.on_default();
        let age = humantime::format_duration(Duration::from_secs(by.unsigned_abs()));
        let why = if by < 0 {
            "ahead of this machine's clock: one of the clocks is wrong, or it is not in seconds"
        } else {
            "old: it is a repeat of an earlier request, or a clock is wrong"
        };
        let _ = writeln!(
            out,
            "  {style}✗ the timestamp is {age} {why} (five minutes are allowed){style:#}"
        );
    }
    out
}
