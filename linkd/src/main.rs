//! `kinara-linkd`: what only the kernel's Bluetooth management interface knows. See the library.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use kinara_linkd::kernel::Kernel;
use kinara_linkd::{client, open_management_socket, server::Server};
use tokio::signal::unix::{SignalKind, signal};

/// Tells RSSI and the kind of new keys, and restarts an adapter, for programs in the socket's group.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen, when systemd does not pass a socket.
    #[arg(long, default_value = client::SOCKET)]
    socket: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // The journal stamps the time.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    let clock = kinara_clock::from_env().context("the clock")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let server = Server::listen(&arguments.socket)?;
        let kernel = Kernel::start(Box::new(open_management_socket), clock);
        notify_ready();
        tokio::select! {
            () = server.run(kernel) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

/// Tells systemd that the socket answers; elsewhere nobody listens, and that is fine.
fn notify_ready() {
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else { return };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let told = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    if let Err(error) = told {
        tracing::debug!(%error, "systemd does not listen");
    }
}
