//! A received request as JSON.

use serde_json::{Map, Value, json};

use crate::{
    received_request::{PRINTED_HEADERS, ReceivedRequest},
    verify::{RotationRole, SignatureStatus, VerificationReport},
};

/// The request and the status of its signatures.
pub fn to_json(request: &ReceivedRequest, report: &VerificationReport) -> Value {
    json!({
        "method": request.method.as_str(),
        "uri": request.uri.to_string(),
        "headers": headers_to_json(request),
        "body": String::from_utf8_lossy(&request.body),
        "x_nano_signature": signature_to_json(report.nano),
        "webhook_signature": signature_to_json(report.standard),
        "rotated_secret": report.rotation.map(describe_role),
        "stale_by_seconds": report.stale_by,
    })
}

/// The headers that `listen` prints, each with its first value.
fn headers_to_json(request: &ReceivedRequest) -> Value {
    let mut headers = Map::new();
    for name in PRINTED_HEADERS {
        if let Some(value) = request.headers.get(name) {
            let value = String::from_utf8_lossy(value.as_bytes());
            headers.insert(name.to_owned(), value.into());
        }
    }
    Value::Object(headers)
}

fn signature_to_json(status: SignatureStatus) -> Value {
    match status {
        SignatureStatus::Valid => json!({ "status": "valid" }),
        SignatureStatus::Invalid(reason) => {
            json!({ "status": "invalid", "reason": reason.to_string() })
        }
        SignatureStatus::MadeByOlderSecret => json!({ "status": "made_by_older_secret" }),
        SignatureStatus::Missing => json!({ "status": "missing" }),
        SignatureStatus::NotChecked => json!({ "status": "not_checked" }),
    }
}

const fn describe_role(role: RotationRole) -> &'static str {
    match role {
        RotationRole::Oldest => "previous",
        RotationRole::Newer => "newer",
    }
}
