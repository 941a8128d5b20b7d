//! TLS to PostgreSQL, as the URL's `sslmode` says it, in libpq's words.
//!
//! - `disable`: never. `prefer` (without a word: this): where the server has it, whoever it is.
//! - `require`: always, whoever the server is: nobody listens, but somebody may stand in between.
//! - `verify-ca`: and its certificate is signed by `sslrootcert`; `verify-full`: and it is for the host of the URL.
//!
//! `sslrootcert` names a PEM file; left out, the system's own bundle.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

/// Where Debian and its kin keep the authorities that the system trusts.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What is wrong with a URL's words on TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not one of libpq's words, or one that makes no sense here.
    #[error("sslmode is {0:?}; it may be disable, prefer, require, verify-ca or verify-full")]
    Mode(String),
    /// The authorities cannot be read.
    #[error("sslrootcert {path}: {text}")]
    Roots {
        /// Which file.
        path: PathBuf,
        /// Why.
        text: String,
    },
    /// Rustls refuses them.
    #[error("TLS to the database: {0}")]
    Rustls(String),
}

/// How much a connection asks of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Authority,
    AuthorityAndName,
}

/// Makes connections as a URL wants them.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    explicit: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("explicit", &self.explicit).finish_non_exhaustive()
    }
}

impl Tls {
    /// Takes the words on TLS out of a URL: gives what is left, in words that the driver knows, and how to connect.
    pub fn of(url: &str) -> Result<(String, Self), TlsError> {
        let (rest, mode, roots) = words(url);
        let (driver, asked) = match mode.as_deref() {
            None => (None, Asked::Nothing),
            Some("disable") => (Some("disable"), Asked::Nothing),
            Some("allow" | "prefer") => (Some("prefer"), Asked::Nothing),
            // As libpq has it: with an authority at hand it is asked.
            Some("require") if roots.is_some() => (Some("require"), Asked::Authority),
            Some("require") => (Some("require"), Asked::Nothing),
            Some("verify-ca") => (Some("require"), Asked::Authority),
            Some("verify-full") => (Some("require"), Asked::AuthorityAndName),
            Some(other) => return Err(TlsError::Mode(other.to_owned())),
        };
        let url = match driver {
            Some(driver) if rest.contains('?') => format!("{rest}&sslmode={driver}"),
            Some(driver) => format!("{rest}?sslmode={driver}"),
            None => rest,
        };
        let config = Arc::new(config(asked, roots.as_deref())?);
        Ok((url, Self { config, explicit: matches!(driver, Some("require")) }))
    }

    /// Whether the URL wants every connection encrypted.
    pub fn is_required(&self) -> bool {
        self.explicit
    }
}

/// The URL without `sslmode` and `sslrootcert`, and those.
fn words(url: &str) -> (String, Option<String>, Option<PathBuf>) {
    let Some((front, query)) = url.split_once('?') else { return (url.to_owned(), None, None) };
    let (mut mode, mut roots, mut rest) = (None, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value.to_owned()),
            Some(("sslrootcert", value)) => roots = Some(PathBuf::from(unescaped(value))),
            _ => rest.push(pair),
        }
    }
    let rest = if rest.is_empty() { front.to_owned() } else { format!("{front}?{}", rest.join("&")) };
    (rest, mode, roots.filter(|path| path != Path::new("system")))
}

/// A path in a URL may have its slashes escaped.
fn unescaped(value: &str) -> String {
    value.replace("%2F", "/").replace("%2f", "/").replace("%20", " ")
}

fn config(asked: Asked, roots: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Rustls(error.to_string()))?;
    let authority = match asked {
        Asked::Nothing => None,
        Asked::Authority | Asked::AuthorityAndName => {
            let roots = Arc::new(read_roots(roots.unwrap_or(Path::new(SYSTEM_ROOTS)))?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
            Some(verifier.map_err(|error| TlsError::Rustls(error.to_string()))?)
        }
    };
    let verifier = Arc::new(Verifier { authority, name: asked == Asked::AuthorityAndName, provider });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let wrong = |text: String| TlsError::Roots { path: path.to_owned(), text };
    let mut store = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        store.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if store.is_empty() { Err(wrong("holds no certificate".to_owned())) } else { Ok(store) }
}

/// Asks as much of a server as the mode says. Signatures of the handshake are checked in every mode.
#[derive(Debug)]
struct Verifier {
    authority: Option<Arc<WebPkiServerVerifier>>,
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        match authority.verify_server_cert(server, between, name, ocsp, now) {
            // The name is looked at last: all else was right.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Tls {
    type Stream = Stream<S>;
    type TlsConnect = Connect;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Connect> {
        // A socket in a directory has no name; the driver does not ask for TLS there.
        let name = ServerName::try_from(host.to_owned()).or_else(|_| ServerName::try_from("localhost"));
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Connect { config: Arc::clone(&self.config), name: name.to_owned() })
    }
}

/// One connection to be.
#[derive(Debug)]
pub struct Connect {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Connect {
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let connector = tokio_rustls::TlsConnector::from(self.config);
            connector.connect(self.name, stream).await.map(|stream| Stream(Box::new(stream)))
        })
    }
}

/// An encrypted connection.
#[derive(Debug)]
pub struct Stream<S>(Box<tokio_rustls::client::TlsStream<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_on_tls_are_taken_out_of_a_url_and_the_rest_stays() {
        for (url, left) in [
            ("postgres://a@h/d", "postgres://a@h/d"),
            ("postgres://a@h/d?sslmode=disable", "postgres://a@h/d?sslmode=disable"),
            (
                "postgres://a@h/d?sslmode=require&keepalives=1",
                "postgres://a@h/d?keepalives=1&sslmode=require",
            ),
        ] {
            assert_eq!(Tls::of(url).unwrap().0, left);
        }
        assert!(matches!(Tls::of("postgres://h/d?sslmode=yes"), Err(TlsError::Mode(_))));
        let missing = Tls::of("postgres://h/d?sslmode=verify-full&sslrootcert=/nowhere/ca.pem");
        assert!(matches!(missing, Err(TlsError::Roots { .. })));
    }
}
