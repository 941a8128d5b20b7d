//! Plain HTTP of the harness's own: what a program would send, and what none would.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A request that is not answered by then is a failure of the server.
pub const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_ANSWER: u64 = 4 << 20;

/// Somebody who asks a server, from an address of their own: servers count by addresses, and all of 127/8 is here.
#[derive(Debug)]
pub struct Caller {
    from: SocketAddr,
    to: SocketAddr,
    runtime: tokio::runtime::Runtime,
}

impl Caller {
    /// Somebody at 127.0.0.`host`.
    pub fn new(host: u8, to: SocketAddr) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { from: SocketAddr::from(([127, 0, 0, host], 0)), to, runtime })
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let connecting = async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(self.from)?;
            tokio::time::timeout(PATIENCE, socket.connect(self.to)).await?
        };
        let stream = self.runtime.block_on(connecting)?.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Asks, and returns status and body. The connection is for this one request.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<(u16, Vec<u8>)> {
        exchange(self.connect()?, self.to, (method, path), headers, body)
    }

    /// Opens a connection, says half a request, and leaves it open.
    pub fn half_open(&self) -> std::io::Result<TcpStream> {
        let mut stream = self.connect()?;
        stream.write_all(b"POST /ingest HTTP/1.1\r\nhost: here\r\ncontent-le")?;
        Ok(stream)
    }
}

fn exchange(
    mut stream: TcpStream,
    address: SocketAddr,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<(u16, Vec<u8>)> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        let _ = write!(request, "{name}: {value}\r\n");
    }
    let _ = write!(request, "content-length: {}\r\n\r\n", body.len());
    stream.write_all(request.as_bytes())?;
    // A server may answer, and close, before it has read everything.
    let written = stream.write_all(body);
    let mut answer = Vec::new();
    let read = stream.take(LONGEST_ANSWER).read_to_end(&mut answer);
    match parse(&answer) {
        Some(answer) => Ok(answer),
        None => {
            Err(written.err().or(read.err()).unwrap_or_else(|| std::io::Error::other("not an HTTP answer")))
        }
    }
}

fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let body = &answer[end + 4..];
    let chunked = head.lines().any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    Some((status, if chunked { unchunk(body) } else { body.to_vec() }))
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = body.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let Some(chunk) = size.filter(|size| *size > 0).and_then(|size| body.get(end + 2..end + 2 + size))
        else {
            break;
        };
        out.extend_from_slice(chunk);
        body = body.get(end + 4 + chunk.len()..).unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whether_it_comes_in_one_piece_or_in_chunks() {
        let (status, body) = parse(b"HTTP/1.1 422 No\r\ncontent-length: 2\r\n\r\nno").unwrap();
        assert_eq!((status, body.as_slice()), (422, &b"no"[..]));
        let chunked =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap().1, b"abcde");
        assert!(parse(b"HTTP/1.1 200 OK\r\n").is_none());
    }
}
