//! The way to the collector. The exporter has a thread of its own, so its client may block.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::Error;

/// The most of an answer that is read: a collector says little.
const ANSWER: u64 = 64 * 1024;

/// A client that blocks.
#[derive(Debug)]
pub struct Client(Agent);

impl Client {
    /// With the authorities of this file, where TLS is spoken.
    pub fn new(timeout: Duration, ca: Option<&PathBuf>) -> Result<Self, Error> {
        let mut tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        if let Some(path) = ca {
            tls = tls.root_certs(roots(path)?);
        }
        let agent = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(tls.build())
            .build();
        Ok(Self(agent.into()))
    }
}

fn roots(path: &PathBuf) -> Result<RootCerts, Error> {
    let wrong = |source| Error::Ca { path: path.clone(), source };
    let pem = std::fs::read(path).map_err(wrong)?;
    let all: Vec<Certificate<'static>> = CertificateDer::pem_slice_iter(&pem)
        .map(|der| der.map(|der| Certificate::from_der(&der).to_owned()))
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(std::io::Error::other(error)))?;
    if all.is_empty() {
        return Err(wrong(std::io::Error::other("no certificate in it")));
    }
    Ok(RootCerts::from(all))
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let answer = self.0.run(Request::from_parts(head, body.as_ref()))?;
        let (head, mut body) = answer.into_parts();
        let said = body.with_config().limit(ANSWER).read_to_vec()?;
        Ok(Response::from_parts(head, Bytes::from(said)))
    }
}
