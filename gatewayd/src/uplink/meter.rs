//! What passes the socket, below TLS: the only place where it can be seen that a slow line is alive.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// As much of what the other side said first as tells what it is.
const FIRST: usize = 8;

#[derive(Debug, Clone)]
struct Moved {
    sent: u64,
    sent_at: Instant,
    received_at: Instant,
    first: Vec<u8>,
}

/// Counts the bytes of one connection. Those that went out count when the kernel took them, which it does (see
/// [`super::dial`]) only as fast as the line drains.
#[derive(Debug, Clone)]
pub struct Meter(Arc<Mutex<Moved>>);

impl Meter {
    /// Nothing has moved yet.
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Moved { sent: 0, sent_at: now, received_at: now, first: Vec::new() })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Moved) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes that have gone out.
    pub fn sent(&self) -> u64 {
        self.with(|moved| moved.sent)
    }

    /// How long nothing has moved, neither out nor in.
    pub fn quiet(&self, now: Instant) -> Duration {
        self.with(|moved| now.saturating_duration_since(moved.sent_at.max(moved.received_at)))
    }

    /// How long nothing has gone out.
    pub fn unsent(&self, now: Instant) -> Duration {
        self.with(|moved| now.saturating_duration_since(moved.sent_at))
    }

    /// How long nothing has come in.
    pub fn unheard(&self, now: Instant) -> Duration {
        self.with(|moved| now.saturating_duration_since(moved.received_at))
    }

    /// What answered, if it is something that people know.
    pub fn foreigner(&self) -> Option<&'static str> {
        self.with(|moved| foreigner(&moved.first))
    }

    fn went_out(&self, bytes: usize) {
        self.with(|moved| {
            moved.sent += bytes as u64;
            moved.sent_at = Instant::now();
        });
    }

    fn came_in(&self, bytes: &[u8]) {
        self.with(|moved| {
            moved.received_at = Instant::now();
            let room = FIRST.saturating_sub(moved.first.len());
            moved.first.extend(bytes.iter().take(room));
        });
    }
}

/// What says these words first, if it is something that people know.
pub fn foreigner(first: &[u8]) -> Option<&'static str> {
    let first = first[..first.len().min(FIRST)].to_ascii_uppercase();
    let known: [(&[u8], &str); 4] = [
        (b"HTTP/", "a web server, or the login page of the network"),
        (b"<", "a web page"),
        (b"SSH-", "an SSH server"),
        (b"220 ", "a mail or file server"),
    ];
    known.into_iter().find(|(start, _)| first.starts_with(start)).map(|(_, what)| what)
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub struct Metered<S> {
    stream: S,
    meter: Meter,
}

impl<S> Metered<S> {
    /// Counts what passes this stream.
    pub fn new(stream: S, meter: Meter) -> Self {
        Self { stream, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let came = &buffer.filled()[before..];
        if !came.is_empty() {
            self.meter.came_in(came);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count @ 1..)) = &polled {
            self.meter.went_out(*count);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_count_when_they_have_left_and_what_answers_is_known_by_its_first_words() {
        let (near, mut far) = tokio::io::duplex(8);
        let meter = Meter::new(Instant::now());
        let mut near = Metered::new(near, meter.clone());
        let writing = tokio::spawn(async move {
            near.write_all(b"twelve bytes").await.unwrap();
            near
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(meter.sent(), 8);
        let mut read = [0; 12];
        far.read_exact(&mut read).await.unwrap();
        let mut near = writing.await.unwrap();
        assert_eq!(meter.sent(), 12);
        assert_eq!(meter.foreigner(), None);
        far.write_all(b"http/1.1").await.unwrap();
        near.read_exact(&mut read[..8]).await.unwrap();
        assert_eq!(meter.foreigner(), Some("a web server, or the login page of the network"));
    }
}
