//! The key and certificate of the box's page.
//!
//! The promise: the key is drawn on the box, at its first start, and never leaves it (mode 0600); it stays
//! the same over restarts, so that a browser which was told once to trust it goes on doing so. Nobody else
//! vouches for it: whoever sets the box up compares the fingerprint that the browser shows with the one that
//! the box prints.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use super::keep;
use crate::files;

const KEY_FILE: &str = "page.key";
const CERTIFICATE_FILE: &str = "page.crt";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{path}: {source}; check that data_dir may be written, or remove the file to have it made anew")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in a file is no key or certificate.
    #[error("{path} is not what it should be ({why}); remove page.key and page.crt to have them made anew")]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// No key could be drawn.
    #[error("no key could be made for the box's page: {0}")]
    Made(String),
}

impl TlsError {
    /// Whether the files, and not the machine or who they belong to, are why there is no certificate.
    fn is_the_files(&self) -> bool {
        match self {
            Self::File { source, .. } => files::is_the_files(source),
            Self::Content { .. } => true,
            Self::Made(_) => false,
        }
    }
}

/// What the page proves itself with.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// For the listener.
    pub config: Arc<ServerConfig>,
    /// SHA-256 of the certificate as browsers show it: pairs of capital hexadecimal digits with colons.
    pub fingerprint: String,
}

impl Identity {
    /// Reads key and certificate, or makes them.
    pub fn open(data_dir: &Path, name: &str) -> Result<Self, TlsError> {
        let (key_path, path) = (data_dir.join(KEY_FILE), data_dir.join(CERTIFICATE_FILE));
        for path in [&key_path, &path] {
            // As after a power cut: of no bytes, or of as many as there were, all of them 0. The fingerprint changes;
            // without a key there is no page at all.
            if std::fs::read(path).is_ok_and(|content| content.iter().all(|byte| *byte == 0)) {
                let aside = |source| TlsError::File { path: path.clone(), source };
                files::set_aside(path, &"there is nothing in it").map_err(aside)?;
            }
        }
        if !key_path.exists() || !path.exists() {
            make(&key_path, &path, name)?;
        }
        match read_pair(&key_path, &path) {
            Err(error) if error.is_the_files() => {
                // A bad sector, half a file, a key of another certificate: likewise.
                set_pair_aside([&key_path, &path], &error)?;
                make(&key_path, &path, name)?;
                read_pair(&key_path, &path)
            }
            read => read,
        }
    }
}

fn read_pair(key_path: &Path, path: &Path) -> Result<Identity, TlsError> {
    let content = |path: &Path, why: &dyn std::fmt::Display| TlsError::Content {
        path: path.to_owned(),
        why: why.to_string(),
    };
    let certificate = CertificateDer::from_pem_slice(&read(path)?).map_err(|e| content(path, &e))?;
    let key = PrivateKeyDer::from_pem_slice(&read(key_path)?).map_err(|e| content(key_path, &e))?;
    let fingerprint = fingerprint(&certificate);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Made(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .map_err(|error| content(key_path, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Identity { config: Arc::new(config), fingerprint })
}

/// Moves both out of the way, each under its own name: one of them may be whole.
fn set_pair_aside(paths: [&Path; 2], error: &TlsError) -> Result<(), TlsError> {
    for path in paths {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".broken");
        std::fs::rename(path, aside).map_err(|source| TlsError::File { path: path.to_owned(), source })?;
    }
    tracing::error!(%error, "the key and certificate of the box's page were set aside and are made anew");
    Ok(())
}

fn make(key_path: &Path, path: &Path, name: &str) -> Result<(), TlsError> {
    let failed = |error: rcgen::Error| TlsError::Made(error.to_string());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    // rcgen's own dates, 1975 to 4096: a box has no clock at its first start, and trust here is by
    // fingerprint.
    let names = vec!["kinara.local".to_owned(), "localhost".to_owned()];
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Kinara box {name}"));
    let certificate = params.self_signed(&key).map_err(failed)?;
    // The certificate last: with it the pair counts as whole.
    for (path, pem) in [(key_path, key.serialize_pem()), (path, certificate.pem())] {
        keep::private(path, pem.as_bytes())
            .map_err(|source| TlsError::File { path: path.to_owned(), source })?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = Sha256::digest(certificate.as_ref());
    digest.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_the_owners_alone_and_the_fingerprint_stays_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path(), "ward").unwrap();
        assert_eq!(first.fingerprint.len(), 32 * 3 - 1);
        let mode = std::fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Identity::open(dir.path(), "ward").unwrap().fingerprint, first.fingerprint);
    }

    #[test]
    fn two_boxes_have_different_keys() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let fingerprint = |dir: &tempfile::TempDir| Identity::open(dir.path(), "x").unwrap().fingerprint;
        assert_ne!(fingerprint(&one), fingerprint(&other));
    }

    #[test]
    fn a_key_or_certificate_of_zero_bytes_is_made_anew_and_set_aside() {
        for (file, content) in
            [(KEY_FILE, 0), (CERTIFICATE_FILE, 0), (KEY_FILE, 241), (CERTIFICATE_FILE, 600)]
        {
            let dir = tempfile::tempdir().unwrap();
            let before = Identity::open(dir.path(), "ward").unwrap().fingerprint;
            std::fs::write(dir.path().join(file), vec![0; content]).unwrap();
            assert_ne!(Identity::open(dir.path(), "ward").unwrap().fingerprint, before);
            assert_eq!(files::broken(dir.path()).unwrap(), ["page.broken"]);
        }
    }

    #[test]
    fn a_pair_that_cannot_be_read_or_does_not_go_together_is_made_anew_and_both_are_kept() {
        let other = tempfile::tempdir().unwrap();
        Identity::open(other.path(), "ward").unwrap();
        let of_another = std::fs::read(other.path().join(KEY_FILE)).unwrap();
        for file in [KEY_FILE, CERTIFICATE_FILE] {
            for content in [Some(&b"nothing"[..]), Some(&of_another[..90]), None] {
                is_made_anew(file, content);
            }
        }
        is_made_anew(KEY_FILE, Some(of_another.as_slice()));
    }

    /// Without content it is what no read gives anything of.
    fn is_made_anew(file: &str, content: Option<&[u8]>) {
        let dir = tempfile::tempdir().unwrap();
        let before = Identity::open(dir.path(), "ward").unwrap().fingerprint;
        let path = dir.path().join(file);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
        }
        let after = Identity::open(dir.path(), "ward").unwrap().fingerprint;
        assert_ne!(after, before, "{file}");
        assert_eq!(files::broken(dir.path()).unwrap(), ["page.crt.broken", "page.key.broken"]);
        assert_eq!(Identity::open(dir.path(), "ward").unwrap().fingerprint, after);
    }

    #[test]
    fn what_belongs_to_somebody_else_is_one_clear_line_and_stays() {
        let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = TlsError::File { path: KEY_FILE.into(), source };
        assert!(!error.is_the_files());
        let text = error.to_string();
        assert!(text.contains("page.key") && text.contains("remove"), "{text}");
    }
}
