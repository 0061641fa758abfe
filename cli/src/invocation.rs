//! How the user runs this binary again.

use nano_webhooks::config::env_var;

/// The start of a command line that runs this binary: through Cargo if Cargo runs it, else as it
/// was started.
pub fn command_prefix() -> String {
    // Cargo sets this variable for the programs that it runs.
    if let Ok(Some(_)) = env_var("CARGO") {
        return "cargo run --quiet --".to_owned();
    }
    match std::env::args_os().next() {
        Some(program) => program.to_string_lossy().into_owned(),
        None => "nano-webhooks".to_owned(),
    }
}
