//! The time of an HTTPS server, by the `Date` of its answer: for networks that let nothing but the web through.
//!
//! A `Date` has whole seconds, and was written at some moment of the round trip: it is off by half of that and a second
//! at most. The server's certificate is judged by what is known of the time ([`super::certificates`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::Uri;
use axum::http::uri::Scheme;
use kinara_clock::Clock;
use rand::Rng as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::certificates::Judge;
use super::source::ToldTime;
use crate::status::Board;

/// The subject of what is wrong with [clock] https_url or https_ca.
const ALERT: &str = "web_time";
/// The longest head of an answer.
const MAX_HEAD: usize = 16 * 1024;

/// Which server is asked, and when.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `https://…`; only its `Date` is of interest.
    pub url: Uri,
    /// The authorities that its certificate may come from, PEM.
    pub ca: PathBuf,
    /// Between two questions that were answered.
    pub every: Duration,
    /// After a question that was not.
    pub retry: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// Why there is no time.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// The authorities cannot be read.
    #[error("{path}: {reason}; give a PEM file in [clock] https_ca")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It is no `https://` with a host.
    #[error("{0} is no https address; mend [clock] https_url")]
    Address(Uri),
    /// rustls has no such configuration.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The network, or TLS over it.
    #[error("not reached: {0}")]
    Io(#[from] std::io::Error),
    /// Too slow.
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    /// There was an answer, without a time.
    #[error("no Date in the answer")]
    NoDate,
}

/// Asks a server, now and then, for as long as somebody listens. What is wrong with its settings or files is an alert, and is
/// looked at again: readings do not wait for it.
pub async fn run(
    settings: Settings,
    clock: Arc<dyn Clock>,
    judge: Judge,
    board: Board,
    told: watch::Sender<Option<ToldTime>>,
) {
    loop {
        let asked = match Server::new(settings.clone(), clock.clone(), judge.clone()) {
            Ok(server) => {
                board.alert(ALERT, None);
                server.ask().await
            }
            Err(error) => {
                board.alert(ALERT, Some(error.to_string()));
                Err(error)
            }
        };
        let pause = match asked {
            Ok(time) => {
                told.send_replace(Some(time));
                settings.every
            }
            Err(error) => {
                tracing::warn!(url = %settings.url, %error, "the time was not told by the web");
                settings.retry
            }
        };
        let jitter = rand::rng().random_range(0.75..1.25);
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
            () = told.closed() => return,
        }
    }
}

/// A server that can be asked.
pub struct Server {
    settings: Settings,
    name: ServerName<'static>,
    connector: TlsConnector,
    clock: Arc<dyn Clock>,
    judge: Judge,
}

impl Server {
    /// Reads the authorities. Nothing is asked yet.
    pub fn new(settings: Settings, clock: Arc<dyn Clock>, judge: Judge) -> Result<Self, HttpsError> {
        let address = || HttpsError::Address(settings.url.clone());
        if settings.url.scheme() != Some(&Scheme::HTTPS) {
            return Err(address());
        }
        let host = settings.url.host().ok_or_else(address)?.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|_| address())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = judge.verifier(authorities(&settings.ca)?, provider.clone())?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self { settings, name, connector: TlsConnector::from(Arc::new(config)), clock, judge })
    }

    /// Asks once.
    pub async fn ask(&self) -> Result<ToldTime, HttpsError> {
        let limit = self.settings.timeout;
        tokio::time::timeout(limit, self.exchange()).await.map_err(|_| HttpsError::Timeout(limit))?
    }

    async fn exchange(&self) -> Result<ToldTime, HttpsError> {
        let url = &self.settings.url;
        let host = url.host().unwrap_or_default();
        let tcp = TcpStream::connect((host.trim_matches(['[', ']']), url.port_u16().unwrap_or(443))).await?;
        let mut stream = self.connector.connect(self.name.clone(), tcp).await?;
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let request = format!(
            "HEAD {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kinara-gatewayd\r\nConnection: close\r\n\r\n"
        );
        // Only this round trip counts: the handshake's lie before it.
        let asked_boot_us = self.clock.boottime_us();
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MAX_HEAD {
            if stream.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        let answered_boot_us = self.clock.boottime_us();
        let utc_us = date(&String::from_utf8_lossy(&head)).ok_or(HttpsError::NoDate)?;
        Ok(ToldTime { asked_boot_us, answered_boot_us, utc_us, proof: self.judge.met() })
    }
}

/// The `Date` of an answer's head.
fn date(head: &str) -> Option<i64> {
    let mut lines = head.split("\r\n");
    let _status = lines.next().filter(|status| status.starts_with("HTTP/1."))?;
    let text = lines
        .map_while(|line| line.split_once(':'))
        .find_map(|(name, value)| name.eq_ignore_ascii_case("date").then(|| value.trim()))?;
    Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_microsecond())
}

fn authorities(path: &Path) -> Result<RootCertStore, HttpsError> {
    let wrong = |reason: String| HttpsError::Authorities { path: path.to_owned(), reason };
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?.collect();
    let mut roots = RootCertStore::empty();
    // A system's bundle may hold one that rustls does not know how to read; the others do.
    let (taken, _) = roots.add_parsable_certificates(certificates.map_err(|error| wrong(error.to_string()))?);
    if taken == 0 { Err(wrong("no certificate in it".to_owned())) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::super::certificates;
    use super::super::floor::Floor;
    use super::super::source::Known;
    use super::*;
    use crate::status::ClockSource;
    use kinara_clock::ManualClock;
    use tokio::io::AsyncBufReadExt as _;
    use tokio::io::BufReader;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    /// 2026-11-23T00:00:00Z.
    const NOW_US: i64 = 1_795_392_000_000_000;
    const YEAR_US: i64 = 365 * 86_400_000_000;

    /// That of a box whose clock shows `shown_us`, which knows the time if `known`, and was once sure of `floor_us`.
    fn server(settings: Settings, shown_us: i64, known: bool, floor_us: i64) -> (Server, Board) {
        let clock = Arc::new(ManualClock::new(shown_us, 77));
        let sure = Known {
            utc_minus_boot_us: shown_us - 77,
            uncertainty_us: 0,
            source: ClockSource::Timedate,
            at_boot_us: 77,
        };
        let floor = Floor::kept([floor_us, floor_us, 0], None, 77);
        let board = Board::new(crate::status::Snapshot::default());
        let (known, floor) = (watch::channel(known.then_some(sure)).1, watch::channel(floor).1);
        let judge = Judge::new(clock.clone(), known, floor, board.clone());
        (Server::new(settings, clock, judge).unwrap(), board)
    }

    /// A server on this machine that answers with this head, and what its clients have to trust. Its certificate is
    /// good for a year from a month ago.
    async fn serve(head: &'static str) -> (Settings, tempfile::TempDir) {
        serve_from(head, (2026, 2027)).await
    }

    async fn serve_from(head: &'static str, (from, until): (i32, i32)) -> (Settings, tempfile::TempDir) {
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (parameters.not_before, parameters.not_after) =
            (rcgen::date_time_ymd(from, 10, 23), rcgen::date_time_ymd(until, 10, 23));
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, certificate.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port()).parse().unwrap();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                // One that does not like our certificate goes.
                let Ok(stream) = acceptor.accept(tcp).await else { continue };
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    stream.read_line(&mut line).await.unwrap();
                }
                stream.get_mut().write_all(head.as_bytes()).await.unwrap();
                let _ = stream.get_mut().shutdown().await;
            }
        });
        let timeout = Duration::from_secs(10);
        (Settings { url, ca, every: timeout, retry: timeout, timeout }, dir)
    }

    const GOOD: &str = "HTTP/1.1 301 Moved\r\nServer: x\r\ndate: Mon, 23 Nov 2026 00:00:00 GMT\r\n\r\n";

    #[tokio::test]
    async fn a_box_that_starts_in_1970_with_a_certificate_newer_than_its_floor_is_told_the_time_and_says_so()
    {
        let (settings, _dir) = serve(GOOD).await;
        // The certificate is good from 2026-10-23; the second box was never sure of anything later than its program.
        let (sure, board) = server(settings.clone(), 0, false, NOW_US - 1_000_000);
        let told = sure.ask().await.unwrap();
        assert_eq!((told.asked_boot_us, told.answered_boot_us, told.utc_us), (77, 77, NOW_US));
        assert!(told.proof.unwrap().from.as_microsecond() < NOW_US);
        assert!(board.now().alerts.is_empty());
        let (settings, _dir) = serve_from(GOOD, (2029, 2030)).await;
        let (behind, board) = server(settings, 0, false, 0);
        assert!(behind.ask().await.is_ok());
        assert!(
            board.now().alerts[certificates::ALERT].contains("from 2029-10-23"),
            "{:?}",
            board.now().alerts
        );
    }

    #[tokio::test]
    async fn a_box_that_believes_it_is_2099_reaches_its_servers_while_the_time_is_not_known() {
        let (settings, _dir) = serve(GOOD).await;
        let (server, board) = server(settings, 4_070_908_800_000_000, false, NOW_US);
        assert!(server.ask().await.is_ok());
        assert!(board.now().alerts.contains_key(certificates::ALERT));
    }

    #[tokio::test]
    async fn a_certificate_that_ended_before_the_time_that_is_known_or_before_the_former_floor_is_refused() {
        let (settings, _dir) = serve(GOOD).await;
        for (shown_us, known) in [(NOW_US + 2 * YEAR_US, true), (0, false)] {
            let (server, _) = server(settings.clone(), shown_us, known, NOW_US + 2 * YEAR_US);
            let error = server.ask().await.unwrap_err();
            assert!(matches!(error, HttpsError::Io(_)) && error.to_string().contains("expired"), "{error}");
        }
        // One that has not begun is refused by a box that knows the time.
        let (settings, _dir) = serve_from(GOOD, (2029, 2030)).await;
        assert!(server(settings, NOW_US, true, 0).0.ask().await.is_err());
    }

    #[tokio::test]
    async fn a_server_of_another_authority_or_name_is_refused_whatever_the_time() {
        let (settings, _dir) = serve(GOOD).await;
        let (other, _other_dir) = serve(GOOD).await;
        let stranger = Settings { ca: other.ca, ..settings.clone() };
        assert!(server(stranger, 0, false, 0).0.ask().await.is_err());
        let port = settings.url.port_u16().unwrap();
        let renamed = Settings { url: format!("https://127.0.0.1:{port}/").parse().unwrap(), ..settings };
        assert!(server(renamed, 0, false, 0).0.ask().await.is_err());
    }

    #[tokio::test]
    async fn an_answer_without_a_date_and_an_address_without_tls_are_no_source() {
        let (settings, _dir) =
            serve("HTTP/1.1 200 OK\r\nServer: x\r\n\r\nDate: Mon, 23 Nov 2026 00:00:00 GMT\r\n").await;
        let plain = Settings { url: "http://localhost/".parse().unwrap(), ..settings.clone() };
        let (asked, _) = server(settings, NOW_US, true, 0);
        assert!(matches!(asked.ask().await, Err(HttpsError::NoDate)));
        let refused = Server::new(plain, asked.clock.clone(), asked.judge.clone());
        assert!(matches!(refused, Err(HttpsError::Address(_))));
    }
}
