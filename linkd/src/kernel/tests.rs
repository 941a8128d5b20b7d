//! Against a socket whose other end plays the kernel, packet by packet; the real kernel is asked in the test bed.

use std::os::unix::net::UnixDatagram as Datagram;

use kinara_clock::ManualClock;
use tokio::net::UnixDatagram;

use super::*;

const PEER: Address = Address([0xc1, 0x22, 0x33, 0x44, 0x55, 0x66]);

/// A kernel handle, and the sockets that it opens, one after the other.
fn kernel() -> (Kernel, mpsc::UnboundedReceiver<UnixDatagram>) {
    let (opened, sockets) = mpsc::unbounded_channel();
    let open = move || {
        let (ours, theirs) = Datagram::pair()?;
        for end in [&ours, &theirs] {
            end.set_nonblocking(true)?;
        }
        opened.send(UnixDatagram::from_std(ours)?).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(OwnedFd::from(theirs))
    };
    (Kernel::start(Box::new(open), Arc::new(ManualClock::new(0, 77))), sockets)
}

async fn command(socket: &UnixDatagram) -> Vec<u8> {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).await.unwrap();
    buffer[..length].to_vec()
}

fn event(code: u16, adapter: u16, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    for word in [code, adapter, body.len() as u16] {
        packet.extend(word.to_le_bytes());
    }
    packet.extend(body);
    packet
}

/// Command Complete of Get Connection Information.
fn rssi_of(address: [u8; 6], status: u8, rssi: i8) -> Vec<u8> {
    let mut body = vec![0x31, 0, status];
    body.extend(address.iter().rev());
    body.extend([2, rssi.cast_unsigned(), 0, 0]);
    event(1, 0, &body)
}

#[tokio::test]
async fn two_links_asked_about_at_once_get_their_own_answers_in_any_order() {
    let (kernel, mut sockets) = kernel();
    let socket = sockets.recv().await.unwrap();
    let other = Address([9; 6]);
    let (a, b, ()) = tokio::join!(
        kernel.rssi("hci0", PEER, AddressKind::Random),
        kernel.rssi("hci0", other, AddressKind::Random),
        async {
            command(&socket).await;
            command(&socket).await;
            // Advertisements come in between.
            socket.send(&event(0x12, 0, &[0; 40])).await.unwrap();
            socket.send(&rssi_of(other.0, 0, -80)).await.unwrap();
            socket.send(&rssi_of(PEER.0, 0, -61)).await.unwrap();
        }
    );
    assert_eq!((a.unwrap(), b.unwrap()), (Some(-61), Some(-80)));
}

#[tokio::test]
async fn a_link_that_is_gone_is_said_to_be() {
    let (kernel, mut sockets) = kernel();
    let socket = sockets.recv().await.unwrap();
    let (answer, ()) = tokio::join!(kernel.rssi("hci0", PEER, AddressKind::Random), async {
        command(&socket).await;
        socket.send(&rssi_of(PEER.0, 2, 127)).await.unwrap();
    });
    assert_eq!(answer.unwrap_err().problem, Problem::NotConnected);
}

#[tokio::test]
async fn an_adapter_that_went_off_is_asked_to_come_on_until_it_does() {
    let (kernel, mut sockets) = kernel();
    let socket = sockets.recv().await.unwrap();
    let settings = |on: u8| event(1, 0, &[5, 0, 0, on, 0, 0, 0]);
    let (answer, ()) = tokio::join!(kernel.reset("hci0"), async {
        assert_eq!(command(&socket).await, Command::SetPowered(false).encode(0));
        socket.send(&settings(0)).await.unwrap();
        assert_eq!(command(&socket).await, Command::SetPowered(true).encode(0));
        socket.send(&event(2, 0, &[5, 0, 0x0a])).await.unwrap();
        assert_eq!(command(&socket).await, Command::SetPowered(true).encode(0));
        socket.send(&settings(1)).await.unwrap();
    });
    answer.unwrap();
}

#[tokio::test]
async fn a_kernel_that_does_not_answer_is_waited_for_no_longer_than_its_time() {
    let (kernel, mut sockets) = kernel();
    let _socket = sockets.recv().await.unwrap();
    let answer = kernel.rssi("hci0", PEER, AddressKind::Random).await;
    assert_eq!(answer.unwrap_err().problem, Problem::Timeout);
}

#[tokio::test]
async fn a_new_key_is_told_with_its_time_and_a_broken_socket_is_told_too() {
    let (kernel, mut sockets) = kernel();
    let mut watch = kernel.watch();
    let socket = sockets.recv().await.unwrap();
    let mut body = vec![1];
    body.extend(PEER.0.iter().rev());
    body.extend([2, 3, 1, 16]);
    body.extend([0; 26]);
    socket.send(&event(0x0a, 0, &body)).await.unwrap();
    let Told::Key(key) = watch.recv().await.unwrap() else { panic!("a key was to come") };
    assert!(key.is_good());
    assert_eq!((key.address.as_str(), key.at_boot_us), ("C1:22:33:44:55:66", 77));
    drop(socket);
    // The next command finds nobody there.
    kernel.status().await.unwrap_err();
    assert_eq!(watch.recv().await.unwrap(), Told::Break);
    sockets.recv().await.expect("the socket is opened again");
}

#[tokio::test]
async fn only_names_of_adapters_are_taken_for_adapters() {
    for bad in ["", "hci", "hci-1", "hci65535", "hci99999999", "eth0", "hci+1"] {
        assert_eq!(index(bad).unwrap_err().problem, Problem::BadRequest, "{bad}");
    }
    assert_eq!(index("hci12").unwrap(), 12);
}
