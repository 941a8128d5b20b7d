//! By which time the certificates of servers are judged.
//!
//! The promise: a box whose clock is wrong reaches its servers all the same, and one whose clock is right takes no
//! certificate that has ended. While the time is known, it decides. While it is not, a certificate counts if there is a
//! moment, at or after the former floor, at which its whole chain counts: what ended before that is refused, what begins
//! later is not. Chain and name are always rustls's to judge, and a certificate that counts only in this way is told of.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kinara_clock::Clock;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::sync::watch;

use super::floor::Floor;
use super::source::{Known, shown};
use super::validity::{Validity, validity};
use crate::status::{Board, ClockSource};

/// The subject of what is said of certificates whose dates could not be judged.
pub const ALERT: &str = "certificate_dates";
/// The longest chain whose dates are looked through.
const LONGEST_CHAIN: usize = 8;

/// What this box knows of the time when it meets a server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Judge {
    clock: Arc<dyn Clock>,
    known: watch::Receiver<Option<Known>>,
    floor: watch::Receiver<Floor>,
    board: Board,
    met: Arc<Mutex<Option<Validity>>>,
}

impl Judge {
    /// For one kind of server.
    pub fn new(
        clock: Arc<dyn Clock>,
        known: watch::Receiver<Option<Known>>,
        floor: watch::Receiver<Floor>,
        board: Board,
    ) -> Self {
        Self { clock, known, floor, board, met: Arc::default() }
    }

    /// By the machine's clock alone, for who looks at a server from outside the daemon.
    pub fn by_machine(clock: Arc<dyn Clock>) -> Self {
        let boot = clock.boottime_us();
        let known = Known {
            utc_minus_boot_us: clock.utc_us() - boot,
            uncertainty_us: 0,
            source: ClockSource::Kernel,
            at_boot_us: boot,
        };
        let (known, floor) = (watch::channel(Some(known)).1, watch::channel(Floor::new(boot)).1);
        Self::new(clock, known, floor, Board::new(crate::status::Snapshot::default()))
    }

    /// When the certificate of the server that was met last counts.
    pub fn met(&self) -> Option<Validity> {
        *self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that judges servers by these authorities.
    pub fn verifier(
        &self,
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, Error> {
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Arc::new(Verifier { chains, judge: self.clone() }))
    }

    /// The time, if somebody else than the unproven machine says it.
    fn sure_us(&self) -> Option<i64> {
        let known = (*self.known.borrow()).filter(|known| known.source != ClockSource::TrustSystem)?;
        Some(known.utc_us(self.clock.boottime_us()))
    }

    fn dates<T>(&self, verify: impl Fn(i64) -> Result<T, Error>) -> Result<(T, bool), Error> {
        if let Some(now_us) = self.sure_us() {
            return verify(now_us).map(|verified| (verified, true));
        }
        let floor = *self.floor.borrow();
        if let Ok(verified) = verify(self.clock.utc_us().max(floor.at_us)) {
            return Ok((verified, true));
        }
        first_moment(floor.former_us, verify).map(|verified| (verified, false))
    }
}

/// The outcome at the first moment from `from_us` on at which all of the chain has begun.
fn first_moment<T>(from_us: i64, verify: impl Fn(i64) -> Result<T, Error>) -> Result<T, Error> {
    let mut at_us = from_us;
    for _ in 0..LONGEST_CHAIN {
        match verify(at_us) {
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) => {
                let begins_us =
                    i64::try_from(not_before.as_secs()).unwrap_or(i64::MAX).saturating_mul(1_000_000);
                if begins_us <= at_us {
                    break;
                }
                at_us = begins_us;
            }
            other => return other,
        }
    }
    verify(at_us)
}

#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    judge: Judge,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |us: i64| {
            let at = UnixTime::since_unix_epoch(Duration::from_micros(us.max(0).unsigned_abs()));
            self.chains.verify_server_cert(certificate, between, name, ocsp, at)
        };
        let (verified, by_time) = self.judge.dates(verify)?;
        let dates = validity(certificate);
        let text = (!by_time).then(|| said(&name.to_str(), dates));
        if let Some(text) = &text {
            tracing::warn!(text, "a certificate is taken by its chain and name");
        }
        self.judge.board.alert(ALERT, text);
        *self.judge.met.lock().unwrap_or_else(PoisonError::into_inner) = dates;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

fn said(name: &str, dates: Option<Validity>) -> String {
    let dates = dates.map_or_else(String::new, |dates| {
        format!(
            " (from {} until {})",
            shown(dates.from.as_microsecond()),
            shown(dates.until.as_microsecond())
        )
    });
    format!(
        "The time is not known: the certificate of {name}{dates} was taken by its chain and name. Look at the box's \
         clock: kinaractl clock"
    )
}
