//! Mutual TLS 1.3 with rustls and ring.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::TlsFiles;
use crate::align::certificates::Judge;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("{path}: {reason}; give a PEM file in [uplink] {field}")]
    File {
        /// The field of the configuration.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// rustls refuses what is in them.
    #[error("the certificates in [uplink] do not fit together: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The client's side of mutual TLS.
pub fn client(files: &TlsFiles, judge: &Judge) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", &files.ca)? {
        roots.add(certificate)?;
    }
    let chain = certificates("cert", &files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| bad("key", &files.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(judge.verifier(roots, provider)?)
        .with_client_auth_cert(chain, key)?;
    Ok(config)
}

fn certificates(field: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| bad(field, path, &error))?.collect();
    let all = all.map_err(|error| bad(field, path, &error))?;
    if all.is_empty() {
        return Err(TlsError::File {
            field,
            path: path.to_owned(),
            reason: "no certificate in it".to_owned(),
        });
    }
    Ok(all)
}

fn bad(field: &'static str, path: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    TlsError::File { field, path: path.to_owned(), reason: error.to_string() }
}
