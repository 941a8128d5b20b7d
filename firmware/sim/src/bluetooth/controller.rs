//! An HCI controller that is spoken to by H4 over TCP.

use std::io;

use bt_hci::controller::ExternalController;
use bt_hci_serial::SerialTransport;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embedded_io_adapters::tokio_1::FromTokio;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Commands under way.
const SLOTS: usize = 8;

/// See the module's text.
pub type H4 = ExternalController<
    SerialTransport<NoopRawMutex, FromTokio<OwnedReadHalf>, FromTokio<OwnedWriteHalf>>,
    SLOTS,
>;

/// Connects to one.
pub async fn connect(address: &str) -> io::Result<H4> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    Ok(ExternalController::new(SerialTransport::new(FromTokio::new(read), FromTokio::new(write))))
}
