//! Free ports, chosen where the kernel does not choose them for outgoing connections.
//!
//! A part keeps its port over its restarts. A port from the kernel's ephemeral range (`bind` to port 0)
//! may be given to somebody's outgoing connection while the part is down; these are not.

use crate::{ClinicError, Result};
use rand::Rng;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

/// Below Linux's default ephemeral range (32768 to 60999) and above what distributions' services use.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port on 127.0.0.1 that is free now.
pub fn free() -> u16 {
    let mut rng = rand::rng();
    loop {
        let port = rng.random_range(RANGE);
        if is_free(IpAddr::V4(Ipv4Addr::LOCALHOST), port) {
            return port;
        }
    }
}

/// Whether nobody listens on this port.
pub fn is_free(address: IpAddr, port: u16) -> bool {
    TcpListener::bind(SocketAddr::new(address, port)).is_ok()
}

/// An error that names the option when one cannot listen there.
pub fn must_be_free(address: IpAddr, port: u16, option: &'static str) -> Result<()> {
    use std::io::ErrorKind;
    let why = match TcpListener::bind(SocketAddr::new(address, port)) {
        Ok(_) => return Ok(()),
        Err(error) => match error.kind() {
            ErrorKind::AddrInUse => "is taken by another program".to_owned(),
            ErrorKind::PermissionDenied => "is not for ordinary users".to_owned(),
            ErrorKind::AddrNotAvailable => "is not on this machine".to_owned(),
            _ => format!("cannot be listened on ({error})"),
        },
    };
    Err(ClinicError::Port { port, address, why, option })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_the_option_to_choose_another() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = must_be_free(Ipv4Addr::LOCALHOST.into(), port, "--port").unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
    }
}
