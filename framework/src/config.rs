//! Settings of the REST API, and what may listen where.

#[cfg(test)]
mod tests;

use common::error::Context;
use common::{Error, Result};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// `[api]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address and port of the REST API.
    pub listen: String,
    /// PEM file with the server's certificate chain; with `tls_key` it turns TLS on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the server's private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// File with the bearer token that clients must send; its surrounding white space does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8080".into(), tls_cert: None, tls_key: None, token_file: None }
    }
}

impl Settings {
    /// Where to listen.
    pub fn address(&self) -> Result<SocketAddr, String> {
        self.listen.parse().map_err(|_| {
            format!("api.listen = '{}' is not an address and port, as in 127.0.0.1:8080", self.listen)
        })
    }

    /// Says which setting can't be right, by its key. Beyond loopback it takes TLS and a token,
    /// unless `insecure`.
    pub fn check(&self, insecure: bool) -> Result<(), String> {
        let address = self.address()?;
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => return Err("api.tls_cert is set, api.tls_key is missing".into()),
            (None, Some(_)) => return Err("api.tls_key is set, api.tls_cert is missing".into()),
            _ => {}
        }
        if address.ip().to_canonical().is_loopback() || insecure {
            return Ok(());
        }
        let mut missing = Vec::new();
        if self.tls_cert.is_none() {
            missing.push("api.tls_cert and api.tls_key");
        }
        if self.token_file.is_none() {
            missing.push("api.token_file");
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!(
            "api.listen = '{}' is reachable from other machines: set {}, or say --insecure",
            self.listen,
            missing.join(" and ")
        ))
    }

    /// Reads the token, if one is asked for.
    pub fn token(&self) -> Result<Option<Token>> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let what = format!("api.token_file '{}'", path.display());
        let text = std::fs::read_to_string(path).context(&what)?;
        Token::new(text.trim()).context(what).map(Some)
    }

    /// Reads the certificate and key, if TLS is asked for.
    pub fn tls(&self) -> Result<Option<Arc<ServerConfig>>> {
        let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(None) };
        let bad = |key: &str, path: &Path, e: &dyn fmt::Display| {
            Error::invalid(format!("{key} '{}': {e}", path.display()))
        };
        let chain = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| bad("api.tls_cert", cert, &e))?;
        if chain.is_empty() {
            return Err(bad("api.tls_cert", cert, &"there is no certificate in it"));
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad("api.tls_key", key, &e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::internal(format!("TLS: {e}")))?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|e| bad("api.tls_key", key, &e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Arc::new(config)))
    }
}

/// The bearer token that clients must send.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    const MIN: usize = 16;

    /// A token: 16 or more visible ASCII characters.
    pub fn new(text: &str) -> Result<Self> {
        if text.len() < Self::MIN || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::invalid(format!(
                "a token has {} or more visible ASCII characters and no space",
                Self::MIN
            )));
        }
        Ok(Self(text.into()))
    }

    /// Whether `given` is this token; takes the same time wherever they differ.
    pub fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}
