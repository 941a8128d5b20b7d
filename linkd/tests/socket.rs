//! Client and server over a real Unix socket, with a kernel that a socket pair stands for.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram as Datagram;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::ManualClock;
use kinara_linkd::client::{Client, LinkdError};
use kinara_linkd::kernel::Kernel;
use kinara_linkd::packet::AddressKind;
use kinara_linkd::protocol::Problem;
use kinara_linkd::server::Server;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixDatagram, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(5);

/// Serves on `path`; gives the kernel's ends of the sockets that are opened.
fn serve(path: &Path) -> (JoinHandle<()>, mpsc::UnboundedReceiver<UnixDatagram>) {
    let (opened, sockets) = mpsc::unbounded_channel();
    let open = move || {
        let (ours, theirs) = Datagram::pair()?;
        for end in [&ours, &theirs] {
            end.set_nonblocking(true)?;
        }
        opened.send(UnixDatagram::from_std(ours)?).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(OwnedFd::from(theirs))
    };
    let server = Server::listen(path).unwrap();
    let kernel = Kernel::start(Box::new(open), Arc::new(ManualClock::new(0, 42)));
    (tokio::spawn(server.run(kernel)), sockets)
}

/// Answers what the kernel is asked: version, no adapters, and -61 dBm for whoever it is.
async fn play(socket: &UnixDatagram) -> io::Result<()> {
    let mut asked = [0; 64];
    loop {
        let length = socket.recv(&mut asked).await?;
        let opcode = asked[0];
        let mut body = vec![opcode, 0, 0];
        match opcode {
            1 => body.extend([1, 23, 0]),
            3 => body.extend([1, 0, 0, 0]),
            0x31 => {
                body.extend(&asked[6..length]);
                body.extend([195, 0, 0]);
            }
            _ => return Ok(()),
        }
        let mut packet = vec![1, 0, asked[2], asked[3], body.len() as u8, 0];
        packet.extend(body);
        socket.send(&packet).await?;
    }
}

fn new_key(last: u8, kind: u8) -> Vec<u8> {
    let mut packet = vec![0x0a, 0, 0, 0, 37, 0, 1, last, 0x55, 0x44, 0x33, 0x22, 0xc1, 2, kind, 1, 16];
    packet.extend([0; 26]);
    packet
}

#[tokio::test]
async fn the_client_learns_rssi_and_which_adapters_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("linkd.sock");
    let (_server, mut sockets) = serve(&path);
    let socket = sockets.recv().await.unwrap();
    tokio::spawn(async move { play(&socket).await });
    let client = Client::new(&path);
    assert_eq!(client.rssi("hci0", "C1:22:33:44:55:66", AddressKind::Random).await.unwrap(), Some(-61));
    assert_eq!(client.status().await.unwrap(), ("1.23".to_owned(), vec!["hci0".to_owned()]));
    let bad = client.rssi("eth0", "C1:22:33:44:55:66", AddressKind::Random).await.unwrap_err();
    assert_eq!(bad.problem(), Some(Problem::BadRequest));
}

#[tokio::test]
async fn a_watch_tells_the_key_of_the_peer_asked_for_and_the_weaker_one_of_two() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("linkd.sock");
    let (_server, mut sockets) = serve(&path);
    let socket = Arc::new(sockets.recv().await.unwrap());
    let played = socket.clone();
    tokio::spawn(async move { play(&played).await });
    let client = Client::new(&path);
    let mut watch = client.watch_keys().await.unwrap();
    socket.send(&new_key(0x01, 3)).await.unwrap();
    socket.send(&new_key(0x66, 3)).await.unwrap();
    let key = watch.key_of("hci0", "c1:22:33:44:55:66", PATIENCE).await.unwrap();
    assert!(key.is_good() && key.at_boot_us == 42);
    for kind in [1, 3] {
        socket.send(&new_key(0x66, kind)).await.unwrap();
    }
    let key = watch.key_of("hci0", "C1:22:33:44:55:66", PATIENCE).await.unwrap();
    assert!(!key.secure_connections, "legacy pairing stays legacy pairing");
    let none = watch.key_of("hci0", "C1:22:33:44:55:66", Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(none, LinkdError::NoKey { .. }));
}

#[tokio::test]
async fn a_watch_ends_with_an_error_when_the_socket_to_the_kernel_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("linkd.sock");
    let (_server, mut sockets) = serve(&path);
    let socket = sockets.recv().await.unwrap();
    let playing = tokio::spawn(async move { play(&socket).await });
    let client = Client::new(&path);
    let mut watch = client.watch_keys().await.unwrap();
    playing.abort();
    // The next question finds the socket broken.
    let _ = playing.await;
    client.status().await.unwrap_err();
    let ended = watch.key_of("hci0", "C1:22:33:44:55:66", PATIENCE).await.unwrap_err();
    assert_eq!(ended.problem(), Some(Problem::Interrupted));
}

#[tokio::test]
async fn the_client_finds_a_helper_that_was_restarted_and_says_what_to_do_about_one_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("linkd.sock");
    let client = Client::with_patience(&path, PATIENCE);
    let away = client.status().await.unwrap_err();
    assert!(away.to_string().contains("systemctl start kinara-linkd"), "{away}");
    assert!(client.watch_keys().await.is_err(), "nothing can be proven without it");
    for _life in 0..2 {
        let (server, mut sockets) = serve(&path);
        let socket = sockets.recv().await.unwrap();
        let playing = tokio::spawn(async move { play(&socket).await });
        client.status().await.unwrap();
        client.status().await.unwrap();
        server.abort();
        playing.abort();
    }
}

#[tokio::test]
async fn a_kernel_without_bluetooth_is_said_to_be_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("linkd.sock");
    let server = Server::listen(&path).unwrap();
    let open = || Err(io::Error::other("Address family not supported by protocol"));
    let kernel = Kernel::start(Box::new(open), Arc::new(ManualClock::default()));
    tokio::spawn(server.run(kernel));
    let error = Client::new(&path).watch_keys().await.unwrap_err();
    assert_eq!(error.problem(), Some(Problem::Unavailable));
    assert!(error.to_string().contains("modprobe bluetooth"), "{error}");
}

#[tokio::test]
async fn the_socket_belongs_to_its_group_alone_and_takes_no_line_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("linkd.sock");
    let (_server, _sockets) = serve(&path);
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o660);
    assert_eq!(meta.uid(), std::fs::metadata("/proc/self").unwrap().uid());
    let mut stream = BufReader::new(UnixStream::connect(&path).await.unwrap());
    stream.write_all(&[b'x'; 4096]).await.unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert!(line.contains("bad_request"), "{line}");
    line.clear();
    assert_eq!(stream.read_line(&mut line).await.unwrap_or(0), 0, "and closes");
}
