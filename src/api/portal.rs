//! `GET /portal`: a page for people, one file that uses the API as anyone can. It is the same for everybody and holds nothing;
//! the key is typed into it.

use std::sync::LazyLock;

use axum::{
    http::{
        HeaderName, HeaderValue,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("portal.html");

/// Nothing but the page's own script and style, known by their hashes (CSP Level 3), and requests to where it came from.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'",
        csp_hash("script"),
        csp_hash("style"),
    );
    HeaderValue::try_from(policy).expect("a policy is printable ASCII")
});

/// The hash of the page's one element of this name.
fn csp_hash(element: &str) -> String {
    let inside = PAGE
        .split_once(&format!("<{element}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    let (text, _) = inside.expect("the page has a script and a style");
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

/// A page for people
#[utoipa::path(get, path = "/portal", operation_id = "getPortal", tag = "Service", security(),
    responses((status = 200, description = "A page that uses this API with the key that is typed into it.", body = String,
        content_type = "text/html; charset=utf-8")))]
pub(super) async fn serve_portal() -> Response {
    const HEADERS: [(HeaderName, &str); 4] = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (HEADERS, [(CONTENT_SECURITY_POLICY, POLICY.clone())], PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_and_names_no_other_host() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
        }
        for foreign in [
            "https://",
            "http://",
            "src=",
            "@import",
            "javascript:",
            "innerHTML",
        ] {
            let lines: Vec<_> = PAGE.lines().filter(|line| line.contains(foreign)).collect();
            assert!(
                lines
                    .iter()
                    .all(|line| line.contains("example.com") || line.contains("w3.org")),
                "{lines:?}"
            );
        }
    }
}
