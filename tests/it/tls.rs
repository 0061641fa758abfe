//! Outgoing HTTPS: the certificates that the client trusts, and why a handshake fails.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use nano_webhooks::client::{
    target_guard::TargetGuard,
    webhook_client::{Timeouts, WebhookClient},
};
use nano_webhooks_core::{
    delivery::{attempt::AttemptOutcome, failure::Failure, tls_fault::TlsFault},
    target_policy::TargetPolicy,
};
use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ConfigBuilder, HandshakeKind, ServerConfig, WantsVerifier,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{
    client::{client, client_with_ca, post, post_two},
    wire::Wire,
};

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
        Some(Failure::Tls(TlsFault::SelfSigned)),
        "no other authority signed the certificate"
    );
    let by_address = post(&trusting, &format!("https://127.0.0.1:{port}/hook")).await;
    assert_eq!(
        by_address.failure,
        Some(Failure::Tls(TlsFault::WrongName)),
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
    for first in post_two(&client, &named).await {
        assert_eq!(present_phases(&first), [true; 5]);
    }
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

/// docs/RECEIVING.md names the cipher suites and key exchange groups that are offered, and no
/// others.
#[test]
fn receiving_page_names_offers() {
    let page = include_str!("../../docs/RECEIVING.md");
    let suites = rustls::crypto::aws_lc_rs::DEFAULT_CIPHER_SUITES.iter();
    let groups = rustls::crypto::aws_lc_rs::DEFAULT_KX_GROUPS.iter();
    let mut offered: Vec<_> = suites.map(|suite| format!("{:?}", suite.suite())).collect();
    offered.extend(groups.map(|group| format!("{:?}", group.name())));
    offered.sort();
    let (_, section) = page.split_once("## TLS").unwrap();
    let quoted = section.split('`').skip(1).step_by(2);
    let mut named: Vec<_> = quoted.map(str::to_owned).collect();
    named.sort();
    assert_eq!(named, offered);
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

/// A certificate authority, and certificates of `localhost` that it or an intermediate issued.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

/// A certificate chain and its key.
type Identity = (Vec<CertificateDer<'static>>, KeyPair);

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority_params(name);
        let certificate = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        Self {
            issuer,
            certificate,
        }
    }

    fn intermediate(&self) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority_params("intermediate");
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let issuer = Issuer::new(params, key);
        Self {
            issuer,
            certificate,
        }
    }

    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.der().clone()], key)
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn server_builder() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
}

fn server(identity: Identity) -> ServerConfig {
    let (chain, key) = identity;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    server_builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

/// A server that requires a client certificate, with one version of TLS.
fn demanding_server(
    authority: &Authority,
    version: &'static rustls::SupportedProtocolVersion,
) -> ServerConfig {
    let (chain, key) = authority.issue(|_| {});
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    );
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap()
}

/// Why an attempt to a server with this configuration fails. The client trusts the authority.
async fn fault_of(authority: &Authority, config: ServerConfig) -> Option<Failure> {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let wire = Wire::start(move |tcp, _| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut tls) = acceptor.accept(tcp).await {
                let _ = tls.read(&mut [0; 1024]).await;
                let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                let _ = tls.write_all(response).await;
            }
        }
    });
    attempt_over_tls(authority, wire.await.port).await
}

async fn attempt_over_tls(authority: &Authority, port: u16) -> Option<Failure> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(authority.certificate.pem().as_bytes())
        .unwrap();
    let client = client_with_ca(file.path());
    let url = format!("https://localhost:{port}/hook");
    post(&client, &url).await.failure
}

/// Each fault of a certificate has its own failure.
#[tokio::test]
async fn certificate_faults_are_named() {
    let authority = Authority::new("authority");
    let intermediate = authority.intermediate();
    let with_chain = {
        let (mut chain, key) = intermediate.issue(|_| {});
        chain.push(intermediate.certificate.der().clone());
        (chain, key)
    };
    let unknown_chain = {
        let unknown = Authority::new("unknown").intermediate();
        let (mut chain, key) = unknown.issue(|_| {});
        chain.push(unknown.certificate.der().clone());
        (chain, key)
    };
    let same_name = Authority::new("authority").issue(|_| {});
    let self_signed = {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (vec![certified.cert.der().clone()], certified.signing_key)
    };
    let expired = authority.issue(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let early = authority.issue(|params| params.not_before = rcgen::date_time_ymd(2999, 1, 1));
    let wrong_name = authority.issue(|params| {
        *params = CertificateParams::new(["other.example".to_owned()]).unwrap();
    });
    // As `openssl req -x509` makes it.
    let self_signed_authority = {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        (vec![params.self_signed(&key).unwrap().der().clone()], key)
    };
    for (identity, expected) in [
        (authority.issue(|_| {}), None),
        (self_signed_authority, Some(TlsFault::SelfSigned)),
        (with_chain, None),
        (expired, Some(TlsFault::Expired)),
        (early, Some(TlsFault::NotYetValid)),
        (wrong_name, Some(TlsFault::WrongName)),
        (self_signed, Some(TlsFault::SelfSigned)),
        (
            intermediate.issue(|_| {}),
            Some(TlsFault::MissingIntermediate),
        ),
        (unknown_chain, Some(TlsFault::UnknownIssuer)),
        (same_name, Some(TlsFault::UnknownIssuer)),
    ] {
        let failure = fault_of(&authority, server(identity)).await;
        assert_eq!(failure, expected.map(Failure::Tls));
    }
}

/// A server that requires a client certificate is named as that, whichever version it speaks.
#[tokio::test]
async fn wanted_client_certificate_is_named() {
    let authority = Authority::new("authority");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = demanding_server(&authority, version);
        let failure = fault_of(&authority, config).await;
        let expected = Failure::Tls(TlsFault::ClientCertificateWanted);
        assert_eq!(failure, Some(expected), "{version:?}");
    }
}

/// A server that speaks only HTTP/2 gets a sentence that says what to enable.
#[tokio::test]
async fn http2_only_server_is_named() {
    let authority = Authority::new("authority");
    let mut config = server(authority.issue(|_| {}));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let failure = fault_of(&authority, config).await.unwrap();
    assert_eq!(failure, Failure::Tls(TlsFault::NoHttp1));
    assert!(failure.to_string().contains("HTTP/1.1"), "{failure}");
}

/// Alerts of a server, and a server that ends the connection or does not speak TLS.
#[tokio::test]
async fn handshake_faults_are_named() {
    let authority = Authority::new("authority");
    for (reply, expected) in [
        (
            &b"\x15\x03\x03\x00\x02\x02\x46"[..],
            TlsFault::NoCommonVersion,
        ),
        (
            b"\x15\x03\x03\x00\x02\x02\x28",
            TlsFault::NoCommonCipherSuite,
        ),
        (b"\x15\x03\x03\x00\x02\x02\x78", TlsFault::NoHttp1),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", TlsFault::NotTls),
        (b"", TlsFault::Closed),
    ] {
        let wire = Wire::start(move |mut tcp, _| async move {
            let _ = tcp.read(&mut [0; 4096]).await;
            let _ = tcp.write_all(reply).await;
            let _ = tcp.shutdown().await;
        });
        let failure = attempt_over_tls(&authority, wire.await.port).await;
        assert_eq!(failure, Some(Failure::Tls(expected)));
    }
}

/// A second connection resumes the TLS session of the first.
#[tokio::test]
async fn sessions_are_resumed() {
    let authority = Authority::new("authority");
    let acceptor = TlsAcceptor::from(Arc::new(server(authority.issue(|_| {}))));
    let kinds = Arc::new(Mutex::new(Vec::new()));
    let seen = kinds.clone();
    let wire = Wire::start(move |tcp, _| {
        let (acceptor, seen) = (acceptor.clone(), seen.clone());
        async move {
            let mut tls = acceptor.accept(tcp).await.unwrap();
            seen.lock().unwrap().push(tls.get_ref().1.handshake_kind());
            let _ = tls.read(&mut [0; 1024]).await;
            let response = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            let _ = tls.write_all(response).await;
            let _ = tls.shutdown().await;
        }
    })
    .await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(authority.certificate.pem().as_bytes())
        .unwrap();
    let client = client_with_ca(file.path());
    let url = format!("https://localhost:{}/hook", wire.port);
    for _ in 0..2 {
        assert_eq!(post(&client, &url).await.failure, None);
    }
    assert_eq!(
        *kinds.lock().unwrap(),
        [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)]
    );
}
