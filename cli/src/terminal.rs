//! Text for people at a terminal.

use std::{
    fmt,
    io::{self, Write},
};

use anstream::{AutoStream, ColorChoice};
use nano_webhooks::telemetry::LogColors;
use nano_webhooks_core::timestamp::Timestamp;

/// Whether the log on stderr has colors: on a terminal, unless the user has turned colors off, as
/// with `NO_COLOR`.
pub fn log_colors() -> LogColors {
    match AutoStream::choice(&io::stderr()) {
        ColorChoice::Never => LogColors::Off,
        _ => LogColors::On,
    }
}

/// Prints a remark for the user on stderr, where it does not mix with the result of the command.
/// The command goes on if stderr is closed.
pub fn print_remark(remark: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{remark}");
}

/// Whether a command ended because the reader of its output had closed the pipe.
///
/// Commands return the errors of their output as they are. A pipe that breaks in a client of the
/// tables is a cause of another error.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<io::Error>() {
        Some(error) => error.kind() == io::ErrorKind::BrokenPipe,
        None => false,
    }
}

/// Escapes the characters of foreign text that could control a terminal.
pub fn escape_for_terminal(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unsafe(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Whether a character is a control character, is invisible, or changes the writing direction.
pub fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{feff}'
        )
}

/// Formats a time with its distance from now, such as `2024-12-23T10:04:00Z (in 4 min)`.
pub fn format_relative(time: Timestamp, now: Timestamp) -> String {
    let (ahead, behind) = (
        time.saturating_duration_since(now),
        now.saturating_duration_since(time),
    );
    let seconds = ahead.max(behind).as_secs();
    let distance = match seconds {
        0 => return format!("{} (now)", time.to_rfc3339()),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    };
    if ahead > behind {
        format!("{} (in {distance})", time.to_rfc3339())
    } else {
        format!("{} ({distance} ago)", time.to_rfc3339())
    }
}

/// Formats a count with its noun, such as `1 record` or `2 records`.
pub fn pluralize(count: usize, singular: &str, plural: &str) -> String {
    let noun = if count == 1 { singular } else { plural };
    format!("{count} {noun}")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn only_own_output_is_closed_pipe() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_closed_pipe(&broken().into()));
        assert!(!is_closed_pipe(
            &io::Error::from(io::ErrorKind::NotFound).into()
        ));
        let of_client = io::Error::other(broken());
        let explained = Err::<(), _>(of_client).context("cannot reach DynamoDB");
        assert!(!is_closed_pipe(&explained.unwrap_err()));
    }

    #[test]
    fn unsafe_characters_are_escaped() {
        assert_eq!(
            escape_for_terminal("\u{1b}[2Jé\n\u{9b}\u{202e}"),
            r"\u{1b}[2Jé\n\u{9b}\u{202e}"
        );
    }

    #[test]
    fn relative_time_names_distance() {
        let now = Timestamp::from_millis(1_734_948_000_000);
        for (seconds, expected) in [
            (0, "2024-12-23T10:00:00Z (now)"),
            (59, "2024-12-23T10:00:59Z (in 59 s)"),
            (-1, "2024-12-23T09:59:59Z (1 s ago)"),
            (240, "2024-12-23T10:04:00Z (in 4 min)"),
            (-7_199, "2024-12-23T08:00:01Z (1 h ago)"),
            (172_800, "2024-12-25T10:00:00Z (in 2 days)"),
        ] {
            let time = Timestamp::from_millis(now.as_unix_millis() + seconds * 1000);
            assert_eq!(format_relative(time, now), expected);
        }
    }
}
