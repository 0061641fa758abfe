//! The excerpt of a response body.

use http_body_util::BodyExt;
use hyper::body::Incoming;

/// How much of a response body is read, in bytes.
pub(super) const MAX_BODY_READ: usize = 16 * 1024;
/// How much of it is kept, in bytes.
pub(crate) const MAX_BODY_KEPT: usize = 1024;

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
/// byte that it replaces.
fn truncate_excerpt(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    text.truncate(text.floor_char_boundary(MAX_BODY_KEPT));
    text
}
