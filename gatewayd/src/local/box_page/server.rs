//! The listener of the box's pages: TLS where there is a key, HTTP/1.1, and limits on everything that a stranger could hold
//! on to.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections at once.
const MOST_CONNECTIONS: usize = 64;
/// Connections of one address at once: a browser opens six.
const MOST_OF_ONE: usize = 12;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a request's head may take, and how long a connection may idle.
const HEAD: Duration = Duration::from_secs(15);
/// How long a connection lives: longer than any upload.
const LIFE: Duration = Duration::from_mins(10);
/// Bytes of a request's head, hyper's least.
const HEAD_BYTES: usize = 16 << 10;
/// Fields of a request's head.
const MOST_HEADERS: usize = 64;
/// The pause when the system has no more sockets.
const NO_SOCKETS: Duration = Duration::from_millis(200);
/// How long connections may take to end when the daemon stops.
const STOPPING: Duration = Duration::from_secs(2);

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub IpAddr);

/// Connections by address.
#[derive(Debug, Clone, Default)]
struct Counted(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address, as long as it lives.
struct Seat {
    counted: Counted,
    address: IpAddr,
}

impl Counted {
    fn seat(&self, address: IpAddr) -> Option<Seat> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= MOST_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Seat { counted: self.clone(), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.counted.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Answers until `stop`; without TLS where there is none.
pub(in crate::local) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    stop: CancellationToken,
) {
    let acceptor = tls.map(TlsAcceptor::from);
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let counted = Counted::default();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &room) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        // Beyond its share an address is closed at once: its browser tries again.
        let Some(seat) = counted.seat(peer.ip().to_canonical()) else { continue };
        let router = router.clone().layer(Extension(Peer(peer.ip().to_canonical())));
        let (acceptor, stop) = (acceptor.clone(), stop.clone());
        connections.spawn(async move {
            let _held = (permit, seat);
            if tokio::time::timeout(LIFE, connection(stream, acceptor, router, stop)).await.is_err() {
                tracing::debug!(%peer, "a connection lived too long");
            }
        });
    }
    let ended = tokio::time::timeout(STOPPING, async { while connections.join_next().await.is_some() {} });
    if ended.await.is_err() {
        connections.abort_all();
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, permit)),
        Err(error) => {
            tracing::warn!(%error, "a page could not take a connection");
            tokio::time::sleep(NO_SOCKETS).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    stop: CancellationToken,
) {
    let Some(acceptor) = acceptor else { return speak(stream, router, stop).await };
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        // A browser that does not trust the certificate yet ends it here, too.
        Ok(Err(error)) => return tracing::debug!(%error, "no TLS"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    speak(stream, router, stop).await;
}

async fn speak<S>(stream: S, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .max_headers(MOST_HEADERS);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection of a page ended");
                }
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_connections() {
        let counted = Counted::default();
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let mut seats: Vec<Seat> = (0..MOST_OF_ONE).map(|_| counted.seat(address(1)).unwrap()).collect();
        assert!(counted.seat(address(1)).is_none());
        assert!(counted.seat(address(2)).is_some());
        seats.pop();
        assert!(counted.seat(address(1)).is_some());
        seats.clear();
        assert!(counted.0.lock().unwrap().is_empty(), "what has ended is not kept");
    }
}
