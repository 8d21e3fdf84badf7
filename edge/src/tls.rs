//! Certificates of the server, the authorities of its clients, and the upgrade to TLS.

use common::error::Context;
use common::{Error, Result};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// The settings `tls_cert`, `tls_key` and `tls_client_ca` of a section.
pub type Files<'s> = (&'s Option<PathBuf>, &'s Option<PathBuf>, &'s Option<PathBuf>);

/// Reads the files that the configuration's `section` names, and makes what upgrades a connection; nothing
/// when TLS is off.
///
/// # Errors
/// Names the key and the file that does not do.
pub fn acceptor(section: &str, on: bool, (cert, key, client_ca): Files<'_>) -> Result<Option<TlsAcceptor>> {
    if !on {
        return Ok(None);
    }
    let (Some(cert), Some(key)) = (cert, key) else {
        return Err(Error::invalid(format!("{section}.tls needs {section}.tls_cert and {section}.tls_key")));
    };
    let chain = certificates(&format!("{section}.tls_cert"), cert)?;
    let key_bytes = read(&format!("{section}.tls_key"), key)?;
    let private = PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|e| {
        Error::invalid(format!("{section}.tls_key: no private key can be read from {}: {e}", key.display()))
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal(format!("TLS: {e}")))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&format!("{section}.tls_client_ca"), path)? {
                roots.add(certificate).map_err(|e| {
                    Error::invalid(format!(
                        "{section}.tls_client_ca: a certificate in {} is not usable: {e}",
                        path.display()
                    ))
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|e| Error::invalid(format!("{section}.tls_client_ca: {}: {e}", path.display())))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder.with_single_cert(chain, private).map_err(|e| {
        Error::invalid(format!(
            "{section}.tls_cert {} and {section}.tls_key {} do not go together: {e}",
            cert.display(),
            key.display()
        ))
    })?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).context(format!("{setting}: reading {}", path.display()))
}

fn certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(setting, path)?;
    let found = CertificateDer::pem_slice_iter(&bytes)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| Error::invalid(format!("{setting}: {} is not PEM: {e}", path.display())))?;
    if found.is_empty() {
        return Err(Error::invalid(format!("{setting}: {} holds no certificate", path.display())));
    }
    Ok(found)
}
