//! Formats errors for log lines.

use std::error::Error;

/// Formats an error and its causes in one line. Some causes of the SDK have several lines.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors include the text of their cause.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layer(text: &'static str, source: Option<Layer>) -> Layer {
        Layer {
            text,
            source: source.map(Box::new),
        }
    }

    #[test]
    fn causes_are_joined_in_one_line() {
        let cause = layer("connection\n  refused", None);
        let repeated = layer("send: connection\n  refused", Some(cause));
        let error = layer("the table is unreachable", Some(repeated));
        assert_eq!(
            error_chain(&error),
            "the table is unreachable: send: connection refused"
        );
    }
}
