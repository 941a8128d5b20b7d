//! The way to the cloud: certificates, and the broker.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use rumqttc::v5::mqttbytes::v5::{Connect, Packet};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Finding, fail, ok, skip, warn};
use crate::align::certificates::Judge;
use crate::align::validity::validity;
use crate::config::Config;
use crate::daemon::uplink_settings;
use crate::uplink::dial::{self, DialError};
use crate::uplink::line::{self, LineError};
use crate::uplink::{self, UplinkError};

/// How long each step to the broker may take: four of them, within what the doctor promises.
const STEP: Duration = Duration::from_secs(4);
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
            let advice = "enrol the box again, or run as root if it cannot be read";
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

/// Whether the broker is reached and welcomes us: name, connection, TLS by both certificates, CONNECT. Under a name of our
/// own: a second client of the daemon's name would put the daemon off.
pub async fn broker(config: &Config, clock: Arc<dyn Clock>) -> Finding {
    let settings = uplink::Settings { connect_timeout: STEP, ..uplink_settings(config) };
    let visit = async {
        let stream = dial::dial(&settings, &Judge::by_machine(clock)).await?;
        let line = line::greet(stream, greeting(&settings), STEP).await?;
        Ok::<_, UplinkError>(line.leave().await)
    };
    match visit.await {
        Ok(at) if settings.tls.is_some() => {
            ok("broker", format!("{at} proves who it is, and welcomes this gateway"))
        }
        Ok(at) => ok("broker", format!("{at} welcomes this gateway, without TLS")),
        Err(error) => fail("broker", error.to_string(), advice(&error)),
    }
}

fn greeting(settings: &uplink::Settings) -> Packet {
    let connect = Connect {
        keep_alive: 30,
        client_id: format!("{}-doctor-{:08x}", settings.gateway, rand::random::<u32>()),
        clean_start: true,
        properties: None,
    };
    Packet::Connect(connect, None, None)
}

fn advice(error: &UplinkError) -> &'static str {
    match error {
        UplinkError::Dial(DialError::NoAnswer { .. }) => {
            "a firewall may swallow it: outgoing TCP to this port has to be open"
        }
        UplinkError::Dial(DialError::Foreign { .. }) | UplinkError::Line(LineError::Foreign { .. }) => {
            "open a page in a browser on this network: it may want a login first; and check [uplink] host and port"
        }
        UplinkError::Dial(DialError::NoTls { .. }) => "check [uplink] port",
        UplinkError::Dial(DialError::Handshake { .. }) => {
            "look at the lines about certificates; if they are well, this box may not be enrolled there"
        }
        UplinkError::Dial(DialError::Tls(_)) => "enrol the box again",
        UplinkError::Dial(_) => "check the network (ip route, resolvectl query) and [uplink] host and port",
        UplinkError::Line(LineError::Old { .. }) => {
            "the broker has to speak MQTT 5 (Mosquitto 2 does); check [uplink] host and port"
        }
        UplinkError::Line(LineError::Refused { .. } | LineError::TurnedAway { .. }) => {
            "ask who runs the broker whether this gateway is enrolled there"
        }
        _ => "check [uplink] host and port; a firewall may let connections through and nothing else",
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use kinara_clock::SystemClock;
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

    /// Something that answers each greeting with this.
    fn stand_in(answer: &'static [u8]) -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut heard = [0; 512];
                let _ = stream.read(&mut heard);
                let _ = stream.write_all(answer);
                let _ = stream.read(&mut heard);
            }
        });
        port
    }

    #[tokio::test]
    async fn the_doctor_greets_the_broker_and_says_what_else_it_met() {
        for (answer, state, words) in [
            (&b"HTTP/1.1 302 Found\r\n\r\n"[..], "fail", "login page"),
            (&[0x20, 2, 0, 1][..], "fail", "no MQTT 5 broker"),
            (&[0x20, 3, 0, 0x87, 0][..], "fail", "enrolled"),
            (&[0x20, 3, 0, 0, 0][..], "ok", "welcomes this gateway"),
        ] {
            let text = format!(
                "gateway_id = \"0192d3a0-0000-7000-8000-000000000001\"\ndata_dir = \"/tmp\"\n\
                 [uplink]\nhost = \"127.0.0.1\"\nport = {}\ntls = false\n",
                stand_in(answer)
            );
            let config = Config::parse(Path::new("test.toml"), &text).unwrap();
            let found = broker(&config, Arc::new(SystemClock)).await;
            assert_eq!(found.state, state, "{}", found.text);
            assert!(found.text.contains(words), "{}", found.text);
            assert_eq!(found.advice.is_empty(), state == "ok");
        }
    }
}
