//! Certificates of listeners.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// Why a certificate cannot be used.
#[derive(Debug)]
pub(crate) struct TlsError {
    /// Whether the key is to blame.
    pub in_key: bool,
    /// What was found.
    pub message: String,
    /// What to do.
    pub help: &'static str,
}

/// TLS 1.2 and 1.3 with a certificate, ALPN `h2` and `http/1.1`.
///
/// # Errors
/// A file cannot be read, holds no certificate or key, or the two do not belong together.
pub(crate) fn server_config(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let read = |path: &Path, in_key| {
        std::fs::read(path).map_err(|e| TlsError {
            in_key,
            message: format!("cannot read {}: {e}", path.display()),
            help: "check the path and its permissions; a relative path starts at the configuration file's folder",
        })
    };
    let chain = CertificateDer::pem_slice_iter(&read(cert, false)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| TlsError {
            in_key: false,
            message: format!("{} is no PEM file: {e}", cert.display()),
            help: "expected blocks `-----BEGIN CERTIFICATE-----`",
        })?;
    if chain.is_empty() {
        return Err(TlsError {
            in_key: false,
            message: format!("{} holds no certificate", cert.display()),
            help: "expected blocks `-----BEGIN CERTIFICATE-----`",
        });
    }
    let secret = PrivateKeyDer::from_pem_slice(&read(key, true)?).map_err(|e| TlsError {
        in_key: true,
        message: format!("{} holds no private key: {e}", key.display()),
        help: "expected a block `-----BEGIN PRIVATE KEY-----`, not encrypted",
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, secret)
        })
        .map_err(|e| TlsError {
            in_key: true,
            message: format!("certificate and key cannot be used: {e}"),
            help: "the key must be the one that the first certificate was made for",
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
