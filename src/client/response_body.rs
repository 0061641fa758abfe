//! The excerpt of a response body.

use http_body_util::BodyExt;
use hyper::body::Incoming;

/// How much of a response body is read, in bytes.
pub(super) const MAX_BODY_READ: usize = 16 * 1024;
/// How much of it is kept, in bytes.
pub(crate) const MAX_BODY_KEPT: usize = 1024;
/// How much of it is kept as JSON, which is how attempts are stored, in bytes.
const MAX_KEPT_AS_JSON: usize = 2 * MAX_BODY_KEPT;

/// Reads up to [`MAX_BODY_READ`] bytes and keeps the beginning in `excerpt`. The rest is left
/// unread, and so is what follows an error. True if the body was read to its end.
///
/// Updates `excerpt` with every frame, because the deadline may cancel this function.
pub(super) async fn read_excerpt(mut body: Incoming, excerpt: &mut Option<String>) -> bool {
    let mut read = 0;
    let mut kept = Vec::new();
    while read < MAX_BODY_READ {
        let frame = match body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return false,
            None => return true,
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        read += data.len();
        let room = MAX_BODY_KEPT - kept.len();
        let chunk = &data[..data.len().min(room)];
        if !chunk.is_empty() {
            kept.extend_from_slice(chunk);
            *excerpt = Some(truncate_excerpt(&kept));
        }
    }
    false
}

/// Decodes the bytes and truncates the text, because a replacement character is longer than the
/// byte that it replaces, and JSON writes a control character with six bytes.
fn truncate_excerpt(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    let mut json_length = 0;
    let mut end = 0;
    for character in text.chars() {
        json_length += length_in_json(character);
        let next = end + character.len_utf8();
        if next > MAX_BODY_KEPT || json_length > MAX_KEPT_AS_JSON {
            break;
        }
        end = next;
    }
    text.truncate(end);
    text
}

const fn length_in_json(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\x08' | '\x0c' => 2,
        '\0'..' ' => 6,
        _ => character.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpt_is_limited_as_text_and_as_json() {
        let text = "a\tb \u{1b}[1m \u{fc}";
        assert_eq!(truncate_excerpt(text.as_bytes()), text);
        for (byte, expected) in [
            (b'x', MAX_BODY_KEPT),
            (b'\n', MAX_BODY_KEPT),
            (b'"', MAX_BODY_KEPT),
            (0x08, MAX_BODY_KEPT),
            (0x7f, MAX_BODY_KEPT),
            (0, 341),
            (0x1b, 341),
            (0xff, MAX_BODY_KEPT - 1),
        ] {
            let excerpt = truncate_excerpt(&[byte; MAX_BODY_KEPT]);
            assert_eq!(excerpt.len(), expected, "{byte}");
            let json = serde_json::to_string(&excerpt).unwrap();
            assert!(json.len() <= MAX_KEPT_AS_JSON + 2, "{byte}");
        }
    }
}
