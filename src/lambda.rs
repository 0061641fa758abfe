//! Starts a Lambda function.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
};

use lambda_http::request::LambdaRequest;
use lambda_runtime::LambdaEvent;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::sync::Semaphore;

use crate::{
    config::{env_var, log_filter},
    telemetry::{LogFormat, init_tracing},
};

/// Starts logging and runs a function until Lambda ends it. An error that prevents the start is
/// logged.
pub async fn run_lambda<E: fmt::Display>(run: impl AsyncFnOnce() -> Result<(), E>) -> ExitCode {
    match log_filter(env_var, "info") {
        Ok(filter) => init_tracing(LogFormat::Json, filter),
        Err(error) => {
            // Logging has not started. Nothing can be done if stderr is closed as well.
            let _ = writeln!(io::stderr(), "{error}");
            return ExitCode::FAILURE;
        }
    }
    // Boxed, because the compiler limits how deeply futures are nested.
    match Box::pin(run()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "The function failed to start");
            ExitCode::FAILURE
        }
    }
}

/// The characters of a query string that a URI cannot contain. The percent sign is not among them,
/// so what is encoded keeps its meaning.
const NOT_IN_QUERY: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'`')
    .add(b'\\')
    .add(b'^')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Encodes the characters of a query string that a URI cannot contain. API Gateway passes them on,
/// and the conversion to a request would panic.
pub fn encode_query(mut event: LambdaEvent<LambdaRequest>) -> LambdaEvent<LambdaRequest> {
    if let LambdaRequest::ApiGatewayV2(request) = &mut event.payload
        && let Some(query) = &mut request.raw_query_string
    {
        *query = utf8_percent_encode(query, NOT_IN_QUERY).to_string();
    }
    event
}

/// Signals to an extension that the function has handled an invocation. Clones share the signal.
#[derive(Clone)]
pub struct InvocationSignal(Arc<Semaphore>);

impl Default for InvocationSignal {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

/// An invocation that is being handled. Dropping it signals its end, also if the handler fails.
pub struct RunningInvocation(Arc<Semaphore>);

impl InvocationSignal {
    /// Starts to handle an invocation.
    pub fn start(&self) -> RunningInvocation {
        RunningInvocation(self.0.clone())
    }

    /// Waits for the end of an invocation. Each end is returned once.
    pub async fn wait_for_end(&self) {
        let permit = self.0.acquire().await;
        permit.expect("the semaphore is never closed").forget();
    }
}

impl Drop for RunningInvocation {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use lambda_http::{Request, aws_lambda_events::apigw::ApiGatewayV2httpRequest};
    use lambda_runtime::Context;

    use super::*;

    fn query_after_conversion(query: &str) -> String {
        let mut gateway_request = ApiGatewayV2httpRequest::default();
        gateway_request.raw_query_string = Some(query.to_owned());
        let payload = LambdaRequest::ApiGatewayV2(gateway_request);
        let event = encode_query(LambdaEvent::new(payload, Context::default()));
        let request: Request = event.payload.into();
        request.uri().query().unwrap_or_default().to_owned()
    }

    /// Every character in a query is converted, and what is encoded stays as it is.
    #[test]
    fn any_query_is_converted() {
        for character in (0..=u8::MAX).map(char::from).chain(['日', '\u{2028}']) {
            let query = query_after_conversion(&format!("q=a{character}b"));
            assert!(
                query.starts_with("q=a") && query.ends_with('b'),
                "{character:?}: {query}"
            );
        }
        for query in ["status=a%20%22b", "%", "%zz", "&&==", "a=b&c=d+e"] {
            assert_eq!(query_after_conversion(query), query);
        }
        assert_eq!(query_after_conversion("q=<b> \"\0"), "q=%3Cb%3E%20%22%00");
    }
}
