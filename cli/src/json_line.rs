//! Results as JSON, one object for each line.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use serde::Serialize;

use crate::terminal::is_unsafe;

/// Prints an object as one line on stdout.
pub fn print_json(object: &impl Serialize) -> io::Result<()> {
    let line = format_json(object)? + "\n";
    io::stdout().write_all(line.as_bytes())
}

/// Formats an object without line breaks. Characters of foreign text that could control a terminal
/// are escaped as JSON allows, so a program reads the text as it is.
pub fn format_json(object: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(object)?;
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if is_unsafe(character) {
            // Every such character is one UTF-16 unit.
            write!(escaped, "\\u{:04x}", u32::from(character)).expect("a string takes any text");
        } else {
            escaped.push(character);
        }
    }
    Ok(escaped)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn escaped_text_is_unchanged_for_programs() {
        let object = json!({ "text": "\u{1b}[2J\u{7f}\u{9b}2J\u{202e}é\u{feff}🔑" });
        let line = format_json(&object).unwrap();
        let expected = r#"{"text":"\u001b[2J\u007f\u009b2J\u202eé\ufeff🔑"}"#;
        assert_eq!(line, expected);
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), object);
    }
}
