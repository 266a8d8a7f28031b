//! The TLS settings of both ports, on ring.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::ca::{Ca, CaError, ServerCertificate};

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA failed.
    #[error("make the server's certificate")]
    Ca(#[from] CaError),
    /// rustls refused a key, a certificate or a version.
    #[error("set TLS up")]
    Rustls(#[from] rustls::Error),
    /// The verifier of client certificates could not be made.
    #[error("verify device certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// A PEM file could not be read.
    #[error("read {path}: {reason}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
}

/// The server's certificate, replaced while connections go on.
#[derive(Debug)]
pub(crate) struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    pub(crate) fn new(certificate: ServerCertificate) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(RwLock::new(certified(certificate)?))))
    }

    /// New handshakes get `certificate`.
    pub(crate) fn replace(&self, certificate: ServerCertificate) -> Result<(), TlsError> {
        let fresh = certified(certificate)?;
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh;
        Ok(())
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }
}

fn certified(certificate: ServerCertificate) -> Result<Arc<CertifiedKey>, TlsError> {
    let key = provider().key_provider.load_private_key(certificate.key)?;
    Ok(Arc::new(CertifiedKey::new(certificate.chain, key)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// For devices: TLS 1.3, a client certificate of the fleet's CA or none (enrolment has none).
pub(crate) fn device(ca: &Ca, current: Arc<Current>) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(current);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Without tickets every connection proves its certificate anew: a removed device stays out.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For operators with the fleet CA's certificate.
pub(crate) fn console(current: Arc<Current>) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(current);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A certificate chain and key from PEM files.
pub(crate) fn from_files(chain: &Path, key: &Path) -> Result<ServerCertificate, TlsError> {
    let fail = |path: &Path, e: rustls_pki_types::pem::Error| TlsError::Pem {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| fail(chain, e))?;
    if certificates.is_empty() {
        return Err(TlsError::Pem {
            path: chain.to_owned(),
            reason: "no certificate in it".to_owned(),
        });
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| fail(key, e))?;
    Ok(ServerCertificate { chain: certificates, key })
}
