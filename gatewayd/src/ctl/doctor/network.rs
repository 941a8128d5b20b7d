//! The way to the cloud: certificates, and the broker.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Finding, LOOKING, fail, ok, skip, warn};
use crate::align::certificates::Judge;
use crate::align::validity::validity;
use crate::config::Config;
use crate::daemon::uplink_settings;
use crate::uplink::{TlsFiles, tls};

/// A certificate that ends this soon is told of.
const SOON: Duration = Duration::from_hours(30 * 24);

/// From when until when our certificate and the authority's count.
pub fn certificates(config: &Config, clock: &dyn Clock) -> Vec<Finding> {
    let Some(files) = uplink_settings(config).tls else {
        return vec![skip("certificate", "the configuration has no TLS")];
    };
    [("authority", &files.ca), ("certificate", &files.cert)]
        .map(|(check, path)| dates(check, path, clock.utc_us()))
        .into()
}

fn dates(check: &str, path: &Path, now_us: i64) -> Finding {
    let shown = path.display();
    let der = match CertificateDer::from_pem_file(path) {
        Ok(der) => der,
        Err(error) => {
            let advice = "enrol the box again, or run as root or in group kinara if it cannot be read";
            return fail(check, format!("{shown} cannot be read: {error}"), advice);
        }
    };
    let Some(counts) = validity(&der) else {
        return fail(check, format!("{shown} is no certificate"), "enrol the box again");
    };
    let (from, until) = (counts.from.as_microsecond(), counts.until.as_microsecond());
    let text = format!("{shown} counts from {} until {}", counts.from, counts.until);
    if now_us > until {
        return fail(check, text, "it has ended; enrol the box again");
    }
    if now_us < from {
        return fail(check, text, "it does not count yet: is the clock right?");
    }
    if until - now_us < i64::try_from(SOON.as_micros()).unwrap_or(i64::MAX) {
        return warn(check, text, "it ends soon; enrol the box again before it does");
    }
    ok(check, text)
}

/// Whether the broker is reached: name, connection, TLS by both certificates. MQTT itself is the daemon's to speak: a second
/// client of the same name would put it off.
pub async fn broker(config: &Config, clock: Arc<dyn Clock>) -> Finding {
    let settings = uplink_settings(config);
    let at = format!("{}:{}", settings.host, settings.port);
    let stream = match timeout(LOOKING, TcpStream::connect((settings.host.as_str(), settings.port))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let advice = "check the network (ip route, resolvectl query) and [uplink] host and port";
            return fail("broker", format!("{at} cannot be reached: {error}"), advice);
        }
        Err(_) => {
            let advice = "a firewall may swallow it: outgoing TCP to this port has to be open";
            return fail("broker", format!("{at} does not answer"), advice);
        }
    };
    match settings.tls {
        Some(files) => handshake(&at, &settings.host, &files, stream, clock).await,
        None => ok("broker", format!("{at} is reached, without TLS")),
    }
}

async fn handshake(
    at: &str,
    host: &str,
    files: &TlsFiles,
    stream: TcpStream,
    clock: Arc<dyn Clock>,
) -> Finding {
    let advice = "look at the lines about certificates; if they are well, this box may not be enrolled there";
    let client = match tls::client(files, &Judge::by_machine(clock)) {
        Ok(client) => client,
        Err(error) => return fail("broker", error.to_string(), "enrol the box again"),
    };
    let Ok(name) = ServerName::try_from(host.to_owned()) else {
        return fail("broker", format!("{host} is no name of a server"), "correct [uplink] host");
    };
    match timeout(LOOKING, TlsConnector::from(Arc::new(client)).connect(name, stream)).await {
        Ok(Ok(_)) => ok("broker", format!("{at} is reached, and proves who it is")),
        Ok(Err(error)) => fail("broker", format!("{at} is reached, but TLS fails: {error}"), advice),
        Err(_) => fail("broker", format!("{at} is reached, but does not speak TLS"), "check [uplink] port"),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn a_certificate_is_judged_by_its_dates_and_one_that_ends_soon_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box.pem");
        let mut params = CertificateParams::new(vec!["box".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 12, 31);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        std::fs::write(&path, made.pem()).unwrap();
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_microsecond();
        for (now, state) in [
            ("2025-12-31T00:00:00Z", "fail"),
            ("2026-06-01T00:00:00Z", "ok"),
            ("2026-12-10T00:00:00Z", "warn"),
            ("2027-01-01T00:00:00Z", "fail"),
        ] {
            assert_eq!(dates("certificate", &path, at(now)).state, state, "{now}");
        }
        std::fs::write(&path, "nonsense").unwrap();
        assert_eq!(dates("certificate", &path, 0).state, "fail");
    }
}
