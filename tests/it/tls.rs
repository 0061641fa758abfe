//! Outgoing HTTPS: the certificates that the client trusts.

use std::{io::Write, sync::Arc};

use nano_webhooks::client::{
    target_guard::TargetGuard,
    webhook_client::{Timeouts, WebhookClient},
};
use nano_webhooks_core::{
    delivery::{attempt::AttemptOutcome, failure::Failure},
    target_policy::TargetPolicy,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::support::client::{client, client_with_ca, post};

/// Serves 200 over TLS with a self-signed certificate for `localhost`. Returns its port and the
/// certificate as PEM.
async fn serve() -> (u16, String) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
        certified.signing_key.serialize_der(),
    ));
    let config = ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![certified.cert.der().clone()], key)
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else {
                    return;
                };
                loop {
                    let mut request = Vec::new();
                    while !request.ends_with(b"{}") {
                        if tls.read_buf(&mut request).await.is_ok_and(|read| read == 0) {
                            return;
                        }
                    }
                    let _ = tls
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await;
                }
            });
        }
    });
    (port, certified.cert.pem())
}

/// The operator's certificate authority is trusted, for the names of its certificates only.
#[tokio::test]
async fn extra_ca_is_trusted() {
    let (port, pem) = serve().await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(pem.as_bytes()).unwrap();
    let trusting = client_with_ca(file.path());
    let other = client();
    let named = format!("https://localhost:{port}/hook");
    let accepted = post(&trusting, &named).await;
    assert_eq!(
        (
            accepted.failure,
            accepted.status_code,
            accepted.body_excerpt.as_deref()
        ),
        (None, Some(200), Some("ok"))
    );
    assert_eq!(
        post(&other, &named).await.failure,
        Some(Failure::Tls),
        "no other authority signed the certificate"
    );
    let by_address = post(&trusting, &format!("https://127.0.0.1:{port}/hook")).await;
    assert_eq!(
        by_address.failure,
        Some(Failure::Tls),
        "the certificate is for another name"
    );
}

/// An attempt has the timings of its phases, and a reused connection has no connect phase.
#[tokio::test]
async fn reused_connection_has_no_connect_phase() {
    let (port, pem) = serve().await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(pem.as_bytes()).unwrap();
    let client = client_with_ca(file.path());
    let named = format!("https://localhost:{port}/hook");
    assert_eq!(present_phases(&post(&client, &named).await), [true; 5]);
    assert_eq!(
        present_phases(&post(&client, &named).await),
        [true, false, false, true, true]
    );
    let by_address = post(&client, &format!("https://127.0.0.1:{port}/hook")).await;
    assert_eq!(
        present_phases(&by_address),
        [false, true, true, false, false],
        "the handshake failed"
    );
    let unresolved = post(&client, "https://no-such-host.invalid/").await;
    assert_eq!(
        present_phases(&unresolved),
        [true, false, false, false, false]
    );
}

/// Whether the attempt has the timings of DNS, connect, TLS, wait and receive.
fn present_phases(outcome: &AttemptOutcome) -> [bool; 5] {
    let phases = outcome.timings;
    let all = [
        phases.dns,
        phases.connect,
        phases.tls,
        phases.wait,
        phases.receive,
    ];
    assert!(
        all.iter().flatten().sum::<u64>() <= u64::try_from(outcome.duration.as_micros()).unwrap(),
        "{outcome:?}"
    );
    all.map(|phase| phase.is_some())
}

/// A CA file without certificates is refused.
#[test]
fn ca_file_without_certificates_is_refused() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"no certificate").unwrap();
    assert!(
        WebhookClient::new(
            TargetGuard::new(TargetPolicy::Any, vec![]),
            Timeouts::QUEUED,
            Some(file.path())
        )
        .is_err()
    );
}
