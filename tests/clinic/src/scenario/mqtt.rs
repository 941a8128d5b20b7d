//! MQTT clients of the harness itself.

use std::path::Path;
use std::time::Duration;

use rumqttc::v5::{AsyncClient, EventLoop, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};

use crate::authority::Identity;
use crate::{ClinicError, Result};

/// A client with this certificate, not yet connected: that begins when its event loop is first polled.
pub fn connect(name: &str, port: u16, identity: &Identity) -> Result<(AsyncClient, EventLoop)> {
    let read = |path: &Path| std::fs::read(path).map_err(ClinicError::file(path));
    let mut options = MqttOptions::new(name, "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(10));
    options.set_clean_start(true);
    options.set_max_packet_size(Some(1 << 20));
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Simple {
        ca: read(&identity.ca)?,
        alpn: None,
        client_auth: Some((read(&identity.cert)?, read(&identity.key)?)),
    }));
    Ok(AsyncClient::new(options, 200))
}
