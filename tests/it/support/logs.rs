//! The warnings and errors that a test logs.

use std::{
    cell::RefCell,
    io::{self, Write},
    sync::Once,
};

use serde_json::Value;
use tracing::Level;
use tracing_subscriber::fmt;

thread_local! {
    /// The log lines of this thread since the start of the capture.
    static CAPTURED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

struct CapturedLines;

impl Write for CapturedLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        CAPTURED.with_borrow_mut(|captured| {
            if let Some(lines) = captured {
                lines.extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes capturing possible. `tracing` remembers for each log line whether anyone wants it, so this
/// is called before the first one.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        fmt()
            .json()
            .flatten_event(true)
            .with_max_level(Level::WARN)
            .with_writer(|| CapturedLines)
            .init();
    });
}

/// Starts to capture the log lines of this thread, which is the only one of the test's runtime.
pub fn capture() {
    CAPTURED.set(Some(Vec::new()));
}

/// The captured lines whose message starts with `message`.
pub fn captured(message: &str) -> Vec<Value> {
    let lines = CAPTURED.with_borrow(|captured| captured.clone().unwrap());
    let lines = String::from_utf8(lines).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| line["message"].as_str().unwrap().starts_with(message))
        .collect()
}
