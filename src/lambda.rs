//! Starts a Lambda function.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
};

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
