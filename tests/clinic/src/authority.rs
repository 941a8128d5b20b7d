//! A development certificate authority: it signs for one clinic on one machine, and nobody else knows it.
//!
//! Its key is made on first use and kept in the clinic's folder, readable by its owner only. A certificate
//! that is there already is used again, so that a second demo finds its gateways enrolled.

use crate::folders::{make, write, write_secret};
use crate::{ClinicError, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use std::path::{Path, PathBuf};

/// Files of a certificate: what a program's configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// Its own certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The authority.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Opens the authority in this folder, or makes one.
    pub fn open(folder: &Path) -> Result<Self> {
        make(folder, 0o755)?;
        let (key_file, cert_file) = (folder.join("ca.key"), folder.join("ca.pem"));
        let params = authority_params()?;
        let key = if key_file.exists() && cert_file.exists() {
            let pem = std::fs::read_to_string(&key_file).map_err(ClinicError::file(&key_file))?;
            KeyPair::from_pem(&pem)?
        } else {
            let key = KeyPair::generate()?;
            write_secret(&key_file, &key.serialize_pem())?;
            write(&cert_file, &params.self_signed(&key)?.pem())?;
            key
        };
        Ok(Self { folder: folder.to_path_buf(), issuer: Issuer::new(params, key) })
    }

    /// The folder with `ca.pem` and all that was issued.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A server's certificate for these names and addresses.
    pub fn server(&self, name: &str, hosts: &[&str]) -> Result<Identity> {
        self.issue(name, name, hosts, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's certificate: `common_name` is who it is to the broker, `file` how its files are called.
    pub fn client(&self, file: &str, common_name: &str) -> Result<Identity> {
        self.issue(file, common_name, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Writes a list of revoked certificates (their serial numbers) of this number, which ends with a year, and gives its file.
    pub fn revocations(&self, file: &str, number: u64, revoked: &[&[u8]], last_year: i32) -> Result<PathBuf> {
        let this_update = date_time_ymd(2020, 1, 1);
        let revoked_certs = revoked
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial),
                revocation_time: this_update,
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let params = CertificateRevocationListParams {
            this_update,
            next_update: date_time_ymd(last_year, 12, 31),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.folder.join(format!("{file}.pem"));
        write(&path, &params.signed_by(&self.issuer)?.pem()?)?;
        Ok(path)
    }

    fn issue(
        &self,
        file: &str,
        common_name: &str,
        hosts: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        let identity = Identity {
            ca: self.folder.join("ca.pem"),
            cert: self.folder.join(format!("{file}.pem")),
            key: self.folder.join(format!("{file}.key")),
        };
        if identity.cert.exists() && identity.key.exists() {
            return Ok(identity);
        }
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        valid_for_long(&mut params);
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        write_secret(&identity.key, &key.serialize_pem())?;
        write(&identity.cert, &cert.pem())?;
        Ok(identity)
    }
}

/// Wide enough for the scenarios whose clocks start elsewhere; it is for development only.
fn valid_for_long(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2045, 1, 1);
}

fn authority_params() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Kinara development authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for_long(&mut params);
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opening_issues_under_the_same_authority() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open(dir.path()).unwrap();
        let broker = first.server("broker", &["localhost", "127.0.0.1"]).unwrap();
        let ca = std::fs::read_to_string(&broker.ca).unwrap();
        let again = Authority::open(dir.path()).unwrap();
        assert_eq!(again.server("broker", &["localhost"]).unwrap(), broker);
        again.client("bridge", "bridge").unwrap();
        assert_eq!(std::fs::read_to_string(&broker.ca).unwrap(), ca);
        let verified = std::process::Command::new("openssl")
            .args(["verify", "-CAfile"])
            .args([&broker.ca, &broker.cert, &dir.path().join("bridge.pem")])
            .output();
        if let Ok(output) = verified {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
