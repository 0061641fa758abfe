//! The TLS configuration of the client.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    pki_types::{CertificateDer, pem, pem::PemObject},
};

use super::tls_diagnosis::{DiagnosingVerifier, NoClientCertificate};

/// The file with extra certificate authorities cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: expected a file with PEM certificates")]
pub struct CaFileError {
    path: String,
    source: Option<pem::Error>,
}

/// Makes a configuration that trusts Mozilla's root certificates and those of `extra_ca`.
pub(super) fn tls_config(extra_ca: Option<&Path>) -> Result<ClientConfig, CaFileError> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(path) = extra_ca {
        add_certificates(&mut roots, path)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let verifier = DiagnosingVerifier::new(verifier.expect("there are root certificates"));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
        .dangerous()
        // It verifies as the default verifier does.
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(NoClientCertificate));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn add_certificates(roots: &mut RootCertStore, path: &Path) -> Result<(), CaFileError> {
    let certificates = read_certificates(path).map_err(|error| CaFileError {
        path: path.display().to_string(),
        source: Some(error),
    })?;
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(CaFileError {
            path: path.display().to_string(),
            source: None,
        });
    }
    Ok(())
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_file_iter(path)?.collect()
}
