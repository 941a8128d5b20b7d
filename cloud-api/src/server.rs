//! Taking connections: a bounded number, each with limits on how slowly it may speak and listen, and a clean end.
//!
//! The promise: a connection holds one place from `accept` to its end, also after it became a WebSocket, and a client
//! that takes nothing of what is written to it loses that place.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tower::ServiceExt as _;

use crate::App;
use crate::auth::limit::network;
use crate::metrics::Metrics;
use crate::shares::Counted;

/// The longest request head.
const MAX_HEAD: usize = 32 * 1024;
/// After an error of `accept` (no file handles left), so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A connection's place among those that may be open. Requests carry it as an extension; whoever takes the connection
/// over keeps it as long as the connection.
#[derive(Debug, Clone)]
pub struct Place {
    _held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Place {
    fn new(permit: OwnedSemaphorePermit, metrics: Arc<Metrics>) -> Self {
        metrics.connections(1);
        Self { _held: Arc::new(Held { _permit: permit, metrics }) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.metrics.connections(-1);
    }
}

/// A stream whose writes fail when the other side takes nothing for so long.
#[derive(Debug)]
struct Impatient<S> {
    stream: S,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, waiting: None }
    }

    /// What a write came to; while it waits, the time runs.
    fn within<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.within(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // A TCP stream keeps nothing back: only writes can wait for the client.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Serves until the app is told to stop; then lets requests under way finish, for a while.
pub async fn serve(app: App, router: Router, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(app.config.limits.connections));
    let addresses = Arc::new(Counted::new(app.config.limits.connections_per_address));
    let graceful = GracefulShutdown::new();
    loop {
        let permit = tokio::select! {
            () = app.stop.cancelled() => break,
            permit = places.clone().acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            () = app.stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer): (TcpStream, SocketAddr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let own = app.proxies.trusts(peer.ip());
        let one = if own { None } else { addresses.one(network(peer.ip())) };
        if !own && one.is_none() {
            tracing::debug!(%peer, "this address has as many connections as one may have");
            continue;
        }
        let _ = stream.set_nodelay(true);
        let stream = Impatient::new(stream, Duration::from_secs(app.config.limits.write_timeout_s));
        let place = Place::new(permit, app.metrics.clone());
        let carried = place.clone();
        let service =
            router.clone().map_request(move |mut request: axum::http::Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(ConnectInfo::<SocketAddr>(peer));
                request.extensions_mut().insert(carried.clone());
                request.map(axum::body::Body::new)
            });
        let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(app.config.limits.header_timeout_s))
            .max_buf_size(MAX_HEAD);
        let connection = builder
            .serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service))
            .into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, %peer, "a connection ended early");
            }
            drop(place);
            drop(one);
        });
    }
    drop(listener);
    let wait = Duration::from_secs(app.config.limits.stop_timeout_s);
    if tokio::time::timeout(wait, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not end in time");
    }
}

/// Writes the bound address into a file, whole or not at all.
pub fn write_address(path: &Path, address: SocketAddr) -> std::io::Result<()> {
    let aside = path.with_extension("new");
    std::fs::write(&aside, format!("{address}\n"))?;
    std::fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let limit = Duration::from_secs(1);
        let (mut slow, ours) = tokio::io::duplex(1);
        let began = std::time::Instant::now();
        let writer = tokio::spawn(async move { Impatient::new(ours, limit).write_all(b"abcde").await });
        for _ in 0..5 {
            tokio::time::sleep(limit * 3 / 10).await;
            slow.read_u8().await.unwrap();
        }
        writer.await.unwrap().unwrap();
        assert!(began.elapsed() > limit);

        let (_deaf, ours) = tokio::io::duplex(1);
        let error = Impatient::new(ours, limit).write_all(b"abc").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
