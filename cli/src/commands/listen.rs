//! `listen`: a receiver for development.

use std::{
    io::{self, ErrorKind, Write},
    net::SocketAddr,
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode};
use nano_webhooks::clock::Clock;
use nano_webhooks_core::secret::Secret;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    args::ListenArgs,
    http_server::{bind, shutdown_signal},
    json_line::print_json,
    received_request::ReceivedRequest,
    request_json,
};

#[derive(Clone)]
struct ListenState {
    secret: Option<Secret>,
    status: StatusCode,
    delay: Duration,
    clock: Clock,
    as_json: bool,
    /// Cancelled when stdout is closed.
    output_closed: CancellationToken,
}

/// Prints requests until Ctrl-C or SIGTERM, or until the reader of its output closes the pipe.
pub async fn run(args: ListenArgs) -> anyhow::Result<()> {
    let state = ListenState {
        secret: args.secret,
        status: StatusCode::from_u16(args.respond)?,
        delay: Duration::from_secs_f64(args.delay),
        clock: Clock::system(),
        as_json: args.json,
        output_closed: CancellationToken::new(),
    };
    let listener = bind(([127, 0, 0, 1], args.port).into(), "--port").await?;
    let address = listener.local_addr()?;
    print_ready(address, &state)?;
    let output_closed = state.output_closed.clone();
    let router = Router::new().fallback(receive).with_state(state);
    tokio::select! {
        result = axum::serve(listener, router).into_future() => Ok(result?),
        signal = shutdown_signal() => Ok(signal?),
        () = output_closed.cancelled() => Ok(()),
    }
}

fn print_ready(address: SocketAddr, state: &ListenState) -> io::Result<()> {
    let url = format!("http://{address}/");
    if state.as_json {
        return print_json(&json!({ "url": url }));
    }
    let signatures = match state.secret {
        Some(_) => "Signatures are verified.",
        None => "Signatures are not checked; pass the webhook's secret with --secret.",
    };
    writeln!(
        anstream::stdout(),
        "Listening on {url} and responding with {}. {signatures}",
        state.status
    )
}

async fn receive(State(state): State<ListenState>, request: ReceivedRequest) -> StatusCode {
    let report = request.verify(state.secret.as_ref(), state.clock.now());
    let printed = if state.as_json {
        print_json(&request_json::to_json(&request, &report))
    } else {
        write!(anstream::stdout(), "\n{}", request.format(&report))
    };
    if let Err(error) = printed
        && error.kind() == ErrorKind::BrokenPipe
    {
        state.output_closed.cancel();
    }
    tokio::time::sleep(state.delay).await;
    state.status
}
