//! Why a TLS handshake failed.

use std::fmt;

/// Why a TLS handshake failed. The text is a sentence for the endpoint's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// The certificate has expired.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// The certificate is for other host names.
    WrongName,
    /// The certificate is signed by its own key.
    SelfSigned,
    /// The server sent its certificate alone, and no known authority issued it.
    MissingIntermediate,
    /// The authority that issued the certificate is unknown.
    UnknownIssuer,
    /// The server supports neither TLS 1.2 nor TLS 1.3.
    NoCommonVersion,
    /// The server supports none of the offered cipher suites or key exchange groups.
    NoCommonCipherSuite,
    /// The server requires a client certificate.
    ClientCertificateWanted,
    /// The server does not speak HTTP/1.1.
    NoHttp1,
    /// The server does not speak TLS on this port.
    NotTls,
    /// The server closed the connection.
    Closed,
    /// Something else.
    Other,
}

impl TlsFault {
    /// Every fault.
    pub const ALL: [Self; 13] = [
        Self::Expired,
        Self::NotYetValid,
        Self::WrongName,
        Self::SelfSigned,
        Self::MissingIntermediate,
        Self::UnknownIssuer,
        Self::NoCommonVersion,
        Self::NoCommonCipherSuite,
        Self::ClientCertificateWanted,
        Self::NoHttp1,
        Self::NotTls,
        Self::Closed,
        Self::Other,
    ];
}

impl std::error::Error for TlsFault {}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "The TLS certificate has expired. Renew it.",
            Self::NotYetValid => {
                "The TLS certificate is not valid yet. Check its start date and the clock of the \
                 machine that issued it."
            }
            Self::WrongName => {
                "The TLS certificate is for other host names. Use one that names the host of the \
                 URL."
            }
            Self::SelfSigned => {
                "The TLS certificate is self-signed. Use one of a trusted certificate authority."
            }
            Self::MissingIntermediate => {
                "The server sends its TLS certificate without the intermediate certificate of its \
                 issuer. Configure the full chain; if it is full, the certificate authority is \
                 not trusted."
            }
            Self::UnknownIssuer => {
                "The TLS certificate was issued by an authority that is not trusted. Use one of a \
                 trusted certificate authority."
            }
            Self::NoCommonVersion => {
                "The server supports neither TLS 1.2 nor TLS 1.3. Enable one of these versions."
            }
            Self::NoCommonCipherSuite => {
                "The server shares no TLS cipher suite or no key exchange group. Enable a suite of \
                 TLS 1.3, or ECDHE with AES-GCM or ChaCha20-Poly1305 of TLS 1.2, and one of the \
                 groups X25519, P-256 and P-384, and use an RSA key or an ECDSA key on P-256 \
                 or P-384."
            }
            Self::ClientCertificateWanted => {
                "The server requires a client certificate, and none is sent. Accept requests \
                 without one, and verify their signature instead."
            }
            Self::NoHttp1 => "The server does not accept HTTP/1.1 over TLS. Enable it.",
            Self::NotTls => {
                "The server does not speak TLS on this port. Check the port and the scheme of the \
                 URL."
            }
            Self::Closed => {
                "The server closed the connection during the TLS handshake. Check its TLS \
                 configuration for the host of the URL."
            }
            Self::Other => "The TLS handshake failed. Check the TLS configuration of the server.",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_fault_has_own_sentence() {
        let sentences: HashSet<_> = TlsFault::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(sentences.len(), TlsFault::ALL.len());
    }
}
