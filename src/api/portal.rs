//! `GET /portal`: one HTML page that uses the public API with the key that the user enters.

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

/// Allows the page's own script and style by their hashes (CSP Level 3), and requests to its own
/// origin.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        csp_hash("script"),
        csp_hash("style"),
    );
    HeaderValue::try_from(policy).expect("the policy is printable ASCII")
});

/// The CSP hash of the page's only `script` or `style` element.
fn csp_hash(element: &str) -> String {
    let content = PAGE
        .split_once(&format!("<{element}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    let (text, _) = content.expect("the page has a script and a style");
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

/// Customer portal
#[utoipa::path(
    get,
    path = "/portal",
    operation_id = "getPortal",
    tag = "Service",
    security(),
    responses(
        (
            status = 200,
            description = "A web page to manage webhooks. It uses this API with the API key that \
                the user enters.",
            body = String,
            content_type = "text/html; charset=utf-8",
        ),
    ),
)]
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

    /// The content security policy names one script and one style, and no other origin.
    #[test]
    fn page_is_self_contained() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
        }
        for forbidden in [
            "https://",
            "http://",
            "src=",
            "@import",
            "javascript:",
            "innerHTML",
        ] {
            for line in PAGE.lines().filter(|line| line.contains(forbidden)) {
                let is_example = line.contains("example.com") || line.contains("w3.org");
                assert!(is_example, "{line}");
            }
        }
    }
}
