//! Collectors that are away, and such as are spoken to by TLS.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kinara_traces::{BatchId, Settings, Span, Traces};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use uuid::Uuid;

fn open(settings: &Settings) -> Traces {
    Traces::open(settings, "test", "0", "one".to_owned()).unwrap().unwrap()
}

fn tell(traces: &Traces, sequence: u64) {
    let id = BatchId::of(Uuid::from_u128(1), 2, sequence, false);
    assert!(traces.follows(&id));
    traces.batch(&id, Span::inside("batch", 1_000_000, 2_000_000));
}

#[test]
fn a_collector_that_is_away_holds_nobody_up() {
    // Bound and not listened to by anybody who answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [silent.local_addr().unwrap().to_string(), "127.0.0.1:1".to_owned()] {
        let settings = Settings {
            otlp: Some(format!("http://{address}")),
            queue: 16,
            timeout_s: 1,
            ..Settings::default()
        };
        let traces = open(&settings);
        let began = Instant::now();
        for sequence in 0..100_000 {
            tell(&traces, sequence);
        }
        traces.close(Duration::from_secs(2));
        assert!(began.elapsed() < Duration::from_secs(8), "{address}: {:?}", began.elapsed());
    }
}

struct Authority {
    dir: tempfile::TempDir,
    server: Arc<rustls::ServerConfig>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(dir.path().join("ca.pem"), made.cert.pem()).unwrap();
        let certificate = CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
        let server =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)
                .unwrap();
        Self { dir, server: Arc::new(server) }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

/// What the first request says before its body; nothing where there is no handshake.
fn first_request(listener: &TcpListener, config: Arc<rustls::ServerConfig>) -> Option<String> {
    let (stream, _) = listener.accept().unwrap();
    let mut tls = rustls::StreamOwned::new(rustls::ServerConnection::new(config).unwrap(), stream);
    let mut said = Vec::new();
    let mut buffer = [0; 1024];
    while !said.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = tls.read(&mut buffer).ok()?;
        said.extend_from_slice(&buffer[..length]);
    }
    tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    tls.flush().unwrap();
    Some(String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_collector_is_known_by_its_authority_and_by_no_other() {
    let (right, wrong) = (Authority::new(), Authority::new());
    for (ca, reached) in [(right.ca(), true), (wrong.ca(), false)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = right.server.clone();
        let collector = std::thread::spawn(move || first_request(&listener, config));
        let otlp = Some(format!("https://localhost:{port}/some/path/"));
        let traces = open(&Settings { otlp, ca, timeout_s: 3, ..Settings::default() });
        tell(&traces, 0);
        traces.close(Duration::from_secs(5));
        let said = collector.join().unwrap();
        assert_eq!(said.is_some(), reached, "{said:?}");
        assert!(said.is_none_or(|said| said.starts_with("POST /some/path/v1/traces HTTP/1.1\r\n")));
    }
}

#[test]
fn a_file_without_authorities_is_told_at_the_start() {
    let otlp = Some("https://localhost:4318".to_owned());
    let settings = Settings { otlp, ca: PathBuf::from("/dev/null"), ..Settings::default() };
    let error = Traces::open(&settings, "test", "0", String::new()).unwrap_err();
    assert!(error.to_string().contains("/dev/null"), "{error}");
}
