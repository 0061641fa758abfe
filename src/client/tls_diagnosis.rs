//! Why a TLS handshake failed, from the errors of the TLS library and from what the server sent.

use std::{
    error::Error as StdError,
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nano_webhooks_core::delivery::tls_fault::TlsFault;
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, Error, OtherError, PeerIncompatible,
    SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use webpki::EndEntityCert;

tokio::task_local! {
    /// Whether the server of the current handshake asked for a client certificate. All handshakes
    /// share one configuration, because sessions are resumed only with the one that made them.
    static WANTS_CLIENT_CERTIFICATE: Arc<AtomicBool>;
}

/// Verifies certificates as the TLS library does, and says more about an unknown issuer.
#[derive(Debug)]
pub(super) struct DiagnosingVerifier {
    verifier: Arc<WebPkiServerVerifier>,
}

impl DiagnosingVerifier {
    pub(super) const fn new(verifier: Arc<WebPkiServerVerifier>) -> Self {
        Self { verifier }
    }
}

impl ServerCertVerifier for DiagnosingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                let fault = explain_unknown_issuer(end_entity, intermediates);
                let fault = OtherError(Arc::new(fault));
                Err(Error::InvalidCertificate(CertificateError::Other(fault)))
            }
            Err(Error::InvalidCertificate(CertificateError::Other(OtherError(error))))
                if is_authority(&*error) && is_self_issued(end_entity) =>
            {
                let fault = OtherError(Arc::new(TlsFault::SelfSigned));
                Err(Error::InvalidCertificate(CertificateError::Other(fault)))
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn explain_unknown_issuer(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> TlsFault {
    if is_self_issued(end_entity) {
        TlsFault::SelfSigned
    } else if intermediates.is_empty() {
        TlsFault::MissingIntermediate
    } else {
        TlsFault::UnknownIssuer
    }
}

fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    EndEntityCert::try_from(certificate)
        .is_ok_and(|certificate| certificate.issuer() == certificate.subject())
}

/// Whether the certificate was refused because it is an authority's, as those are that `openssl req
/// -x509` makes.
fn is_authority(error: &(dyn StdError + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// Has no client certificate, and notes that the server asked for one.
#[derive(Debug)]
pub(super) struct NoClientCertificate;

impl ResolvesClientCert for NoClientCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let _ = WANTS_CLIENT_CERTIFICATE.try_with(|wants| wants.store(true, Ordering::Relaxed));
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Runs a handshake and finds out why it fails.
pub(super) async fn diagnose_handshake<T>(
    handshake: impl Future<Output = io::Result<T>>,
) -> Result<T, TlsFault> {
    let wants_certificate = Arc::new(AtomicBool::new(false));
    let connected = WANTS_CLIENT_CERTIFICATE.scope(wants_certificate.clone(), handshake);
    connected
        .await
        .map_err(|error| explain_handshake(&error, wants_certificate.load(Ordering::Relaxed)))
}

fn explain_handshake(error: &io::Error, wants_certificate: bool) -> TlsFault {
    let fault = match find_tls_error(error) {
        Some(error) => explain_tls_error(error),
        None => TlsFault::Closed,
    };
    match fault {
        // TLS 1.2 has no alert of its own for this.
        TlsFault::NoCommonCipherSuite | TlsFault::Closed | TlsFault::Other if wants_certificate => {
            TlsFault::ClientCertificateWanted
        }
        fault => fault,
    }
}

/// Why a server ended a connection whose handshake had succeeded. With TLS 1.3, it checks the
/// client certificate after that.
pub(super) fn explain_alert(error: &(dyn StdError + 'static)) -> Option<TlsFault> {
    match find_tls_error(error.downcast_ref()?)? {
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            Some(TlsFault::ClientCertificateWanted)
        }
        _ => None,
    }
}

fn find_tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn explain_tls_error(error: &Error) -> TlsFault {
    match error {
        Error::InvalidCertificate(error) => explain_certificate(error),
        Error::AlertReceived(alert) => explain_received_alert(*alert),
        Error::PeerIncompatible(reason) => explain_incompatibility(reason),
        Error::InvalidMessage(_) => TlsFault::NotTls,
        _ => TlsFault::Other,
    }
}

fn explain_certificate(error: &CertificateError) -> TlsFault {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsFault::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TlsFault::NotYetValid
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            TlsFault::WrongName
        }
        // An authority with the name of a trusted one issued the certificate.
        CertificateError::BadSignature | CertificateError::UnknownIssuer => TlsFault::UnknownIssuer,
        CertificateError::Other(OtherError(error)) => match error.downcast_ref() {
            Some(fault) => *fault,
            None => TlsFault::Other,
        },
        _ => TlsFault::Other,
    }
}

const fn explain_received_alert(alert: AlertDescription) -> TlsFault {
    match alert {
        AlertDescription::ProtocolVersion => TlsFault::NoCommonVersion,
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            TlsFault::NoCommonCipherSuite
        }
        AlertDescription::CertificateRequired => TlsFault::ClientCertificateWanted,
        AlertDescription::NoApplicationProtocol => TlsFault::NoHttp1,
        _ => TlsFault::Other,
    }
}

const fn explain_incompatibility(reason: &PeerIncompatible) -> TlsFault {
    match reason {
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled => TlsFault::NoCommonVersion,
        PeerIncompatible::NoCipherSuitesInCommon
        | PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NoSignatureSchemesInCommon => TlsFault::NoCommonCipherSuite,
        _ => TlsFault::Other,
    }
}
