//! From a name to a stream: lookup, TCP, TLS; each failure in words that say what to look at.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::meter::{Meter, Metered};
use super::{Settings, tls};
use crate::align::certificates::Judge;

/// So many bytes may wait in the kernel for their turn on the line. The rest waits here, where it is seen how fast it
/// goes, and where something that is urgent can overtake it.
const UNSENT: u32 = 4 * 1024;

/// What bytes go through.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug> Duplex for S {}

/// An open stream to the broker, and what counts its bytes.
pub struct Stream {
    /// The stream.
    pub duplex: Box<dyn Duplex>,
    /// Its bytes.
    pub meter: Meter,
    /// Who is at the other end, as the configuration names them.
    pub at: String,
    /// This machine's address at this end.
    pub from: Option<IpAddr>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("at", &self.at).finish_non_exhaustive()
    }
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error(
        "the name {host} cannot be looked up ({reason}); is there a network, and is [uplink] host right?"
    )]
    Lookup {
        /// The name.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// No connection.
    #[error("{at} cannot be reached: {source}")]
    Unreachable {
        /// Who.
        at: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody answered.
    #[error("{at} does not answer; is the network up, and does a firewall let this port through?")]
    NoAnswer {
        /// Who.
        at: String,
    },
    /// Something that is no broker answers.
    #[error("something else answers at {at}: {what}")]
    Foreign {
        /// Where.
        at: String,
        /// What it looks like.
        what: &'static str,
    },
    /// It took the connection and does not speak TLS.
    #[error("{at} is reached and does not begin TLS; is [uplink] port the broker's TLS port?")]
    NoTls {
        /// Who.
        at: String,
    },
    /// TLS failed.
    #[error("{at} is reached, but TLS fails: {source}")]
    Handshake {
        /// Who.
        at: String,
        /// Why.
        source: io::Error,
    },
    /// The name is none.
    #[error("{0} is no name of a server; correct [uplink] host")]
    Name(String),
    /// Our own certificates.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

impl DialError {
    /// Whether certificates are the reason. A handshake that merely ends is a broker behind something that is not down.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Handshake { source, .. } => source.kind() == io::ErrorKind::InvalidData,
            Self::Tls(_) => true,
            _ => false,
        }
    }
}

/// Opens a stream to the broker.
pub async fn dial(settings: &Settings, judge: &Judge) -> Result<Stream, DialError> {
    let at = format!("{}:{}", settings.host, settings.port);
    let within = settings.connect_timeout;
    // Before anything is sent: certificates that cannot be used are not the network's fault.
    let client = settings.tls.as_ref().map(|files| tls::client(files, judge)).transpose()?;
    let addresses = look_up(settings, within).await?;
    let stream = reach(&at, &addresses, within).await?;
    let from = stream.local_addr().ok().map(|address| address.ip());
    let meter = Meter::new(Instant::now());
    let stream = Metered::new(stream, meter.clone());
    let Some(client) = client else {
        return Ok(Stream { duplex: Box::new(stream), meter, at, from });
    };
    let name =
        ServerName::try_from(settings.host.clone()).map_err(|_| DialError::Name(settings.host.clone()))?;
    match timeout(within, TlsConnector::from(Arc::new(client)).connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(Stream { duplex: Box::new(stream), meter, at, from }),
        Ok(Err(source)) => Err(match meter.foreigner() {
            Some(what) => DialError::Foreign { at, what },
            None => DialError::Handshake { at, source },
        }),
        Err(_) => Err(DialError::NoTls { at }),
    }
}

async fn look_up(settings: &Settings, within: Duration) -> Result<Vec<SocketAddr>, DialError> {
    let failed = |reason: String| DialError::Lookup { host: settings.host.clone(), reason };
    match timeout(within, lookup_host((settings.host.as_str(), settings.port))).await {
        Ok(Ok(found)) => {
            let addresses: Vec<_> = found.collect();
            if addresses.is_empty() { Err(failed("it has no address".to_owned())) } else { Ok(addresses) }
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("the name server does not answer".to_owned())),
    }
}

/// The first of these addresses that answers; each has its share of the time.
async fn reach(at: &str, addresses: &[SocketAddr], within: Duration) -> Result<TcpStream, DialError> {
    let share = within / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut failed = DialError::NoAnswer { at: at.to_owned() };
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                prepare(&stream);
                return Ok(stream);
            }
            Ok(Err(source)) => failed = DialError::Unreachable { at: at.to_owned(), source },
            Err(_) => failed = DialError::NoAnswer { at: at.to_owned() },
        }
    }
    Err(failed)
}

fn prepare(stream: &TcpStream) {
    let set = stream.set_nodelay(true).and(SockRef::from(stream).set_tcp_notsent_lowat(UNSENT));
    if let Err(error) = set {
        tracing::warn!(%error, "the kernel does not let the connection be set up for slow lines");
    }
}
