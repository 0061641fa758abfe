//! A stand-in for KMS that answers, refuses or hangs.

use std::sync::{Arc, Mutex};

use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use nano_webhooks::store::data_keys::{ENCRYPTION_CONTEXT_KEY, KeyProvider};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, time::timeout};

use super::receiver::TEST_TIMEOUT;

const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555";
/// 32 bytes in base64: every data key.
const DATA_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KmsBehavior {
    Answers,
    Refuses,
    /// Requests for the data key of this version get no response.
    HangsFor(u32),
}

/// KMS with one key.
#[derive(Clone)]
pub struct FakeKms {
    url: String,
    behavior: Arc<Mutex<KmsBehavior>>,
    /// The number of requests to unwrap a data key.
    decrypts: watch::Sender<usize>,
}

impl FakeKms {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kms = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            behavior: Arc::new(Mutex::new(KmsBehavior::Answers)),
            decrypts: watch::Sender::new(0),
        };
        let router = Router::new().fallback(respond).with_state(kms.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        kms
    }

    pub fn provider(&self) -> KeyProvider {
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("eu-west-1"))
            .credentials_provider(Credentials::new("any", "any", None, None, "test"))
            .endpoint_url(&self.url)
            .build();
        KeyProvider::Kms {
            client: aws_sdk_kms::Client::from_conf(config),
            key_id: KEY.to_owned(),
        }
    }

    pub fn set(&self, behavior: KmsBehavior) {
        *self.behavior.lock().unwrap() = behavior;
    }

    pub fn decrypts(&self) -> usize {
        *self.decrypts.borrow()
    }

    pub async fn wait_for_decrypts(&self, count: usize) {
        let mut decrypts = self.decrypts.subscribe();
        let waited = timeout(TEST_TIMEOUT, decrypts.wait_for(|seen| *seen >= count)).await;
        assert!(waited.is_ok(), "{} of {count} requests", self.decrypts());
    }
}

async fn respond(State(kms): State<FakeKms>, headers: HeaderMap, body: String) -> Response {
    let body: Value = serde_json::from_str(&body).unwrap();
    let version = body["EncryptionContext"][ENCRYPTION_CONTEXT_KEY].as_str();
    let version = version.unwrap().parse::<u32>().unwrap();
    let target = headers["x-amz-target"].to_str().unwrap();
    if target == "TrentService.Decrypt" {
        kms.decrypts.send_modify(|count| *count += 1);
    }
    let behavior = *kms.behavior.lock().unwrap();
    match behavior {
        KmsBehavior::Refuses => {
            let error = json!({"__type": "DisabledException", "message": "the key is disabled"});
            (StatusCode::BAD_REQUEST, Json(error)).into_response()
        }
        KmsBehavior::HangsFor(hanging) if version == hanging => std::future::pending().await,
        KmsBehavior::Answers | KmsBehavior::HangsFor(_) => {
            let response =
                json!({"KeyId": KEY, "Plaintext": DATA_KEY, "CiphertextBlob": "d3JhcHBlZA=="});
            Json(response).into_response()
        }
    }
}
