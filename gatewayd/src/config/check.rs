//! What makes a configuration wrong, said so that it can be put right.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use kinara_protocol::entry::{self, BadName};
use kinara_protocol::label::LabelSecret;

use super::Config;
use crate::hardware::HardwareId;

/// The longest name of a box, in characters.
const LONGEST_NAME: usize = 64;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}; give the path of a file that this user may read with --config FILE")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not UTF-8.
    #[error("{path}, line {line}: this is {encoding}; save the file as UTF-8")]
    Encoding {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What it seems to be.
        encoding: &'static str,
    },
    /// Not TOML, an unknown field, or a value of another type.
    #[error("{path}, line {line}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What and, where it is known, which values are accepted.
        message: String,
    },
    /// A value outside of what is accepted.
    #[error("{path}, line {line}: {field} is {value}; accepted: {accepted}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The field with its section.
        field: String,
        /// What it is.
        value: String,
        /// What it may be.
        accepted: String,
    },
}

/// The text of a file. A byte order mark of UTF-8 is no part of it.
pub(super) fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, ConfigError> {
    let wrong = |line, encoding| ConfigError::Encoding { path: path.to_owned(), line, encoding };
    // Every other byte of a text in Latin letters is 0 there.
    let wide = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || bytes.contains(&0);
    if wide {
        return Err(wrong(1, "UTF-16, or no text at all"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].split(|byte| *byte == b'\n').count();
        wrong(line, "not UTF-8 (Latin-1 or Windows-1252, perhaps)")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

pub(super) fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text[..at].matches('\n').count() + 1;
    let key = text[at..].lines().next().and_then(|rest| rest.split('=').next()).unwrap_or_default().trim();
    let whole = text.lines().nth(line - 1).unwrap_or_default().trim();
    let place = if whole.is_empty() || key.is_empty() { String::new() } else { format!(" (in `{whole}`)") };
    ConfigError::Syntax { path: path.to_owned(), line, message: format!("{}{place}", error.message()) }
}

struct Checker<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Checker<'_> {
    /// The line of a field, at its `nth` appearance: in its section, or by its whole name with dots. The section's own
    /// line where the field is not given.
    fn line(&self, section: &str, key: &str, nth: usize) -> usize {
        let whole = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
        let (mut inside, mut seen, mut section_at) = (String::new(), 0, 1);
        for (index, line) in self.text.lines().enumerate() {
            let line = line.trim();
            if let Some(header) = line.strip_prefix('[') {
                inside = plain(header.trim_start_matches('[').split(']').next().unwrap_or_default());
                if inside == section && nth == 0 {
                    section_at = index + 1;
                }
                continue;
            }
            let Some((name, _)) = line.split_once('=').filter(|_| !line.starts_with('#')) else { continue };
            let name = plain(name);
            let named = if inside.is_empty() { name } else { format!("{inside}.{name}") };
            // `uplink = { host = … }` holds the field, too.
            if named == whole || (named == section && holds(line, key)) {
                if seen == nth {
                    return index + 1;
                }
                seen += 1;
            }
        }
        section_at
    }

    fn wrong(&self, section: &str, key: &str, nth: usize, value: String, accepted: &str) -> ConfigError {
        let field = if section.is_empty() { key.to_owned() } else { format!("[{section}] {key}") };
        ConfigError::Value {
            path: self.path.to_owned(),
            line: self.line(section, key, nth),
            field,
            value,
            accepted: accepted.to_owned(),
        }
    }

    fn range<T: PartialOrd + std::fmt::Display>(
        &self,
        section: &str,
        key: &str,
        value: T,
        (least, most): (T, T),
    ) -> Result<(), ConfigError> {
        if value >= least && value <= most {
            return Ok(());
        }
        Err(self.wrong(section, key, 0, value.to_string(), &format!("{least} to {most}")))
    }
}

/// A key or section without its blanks and quotes.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_whitespace() && !matches!(c, '"' | '\'')).collect()
}

/// Whether an inline table gives this key.
fn holds(line: &str, key: &str) -> bool {
    let inner = line.split_once('{').map_or("", |(_, inner)| inner);
    inner.split(',').any(|pair| pair.split_once('=').is_some_and(|(name, _)| plain(name) == key))
}

/// What makes a text no name or address of a host, and how to mend it.
fn host_trouble(host: &str) -> Option<String> {
    let bare = host.trim();
    if let Some((_, rest)) = bare.split_once("://") {
        let name = rest.split(['/', ':']).next().unwrap_or_default();
        return Some(format!(
            "a name or an address without a scheme, such as {name:?} (TLS is [uplink] tls)"
        ));
    }
    if host.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let name: String = host.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect();
        return Some(format!("a name or an address without blanks, such as {name:?}"));
    }
    let address = host.trim_start_matches('[').trim_end_matches(']');
    if address.parse::<std::net::Ipv6Addr>().is_ok() {
        return (address != host).then(|| format!("an IPv6 address without brackets: {address:?}"));
    }
    if let Some((name, port)) = host.rsplit_once(':') {
        return Some(if port.parse::<u16>().is_ok() {
            format!("a name or an address alone: host = {name:?} and port = {port}")
        } else {
            "a name or an address".to_owned()
        });
    }
    if let Some(at) = host.find(['/', '@', '?', '#', '\\']) {
        return Some(format!("a name or an address, without {:?}", &host[at..=at]));
    }
    None
}

/// The box's name as it is shown.
pub(super) fn name(config: &Config) -> Result<String, BadName> {
    entry::name(&config.name, LONGEST_NAME)
}

pub(super) fn check(path: &Path, text: &str, config: &Config) -> Result<(), ConfigError> {
    let checker = Checker { path, text };
    if name(config).is_err() {
        let accepted = "1 to 64 characters on one line, of which something can be seen";
        return Err(checker.wrong("", "name", 0, format!("{:?}", config.name), accepted));
    }
    let radio = &config.radio;
    checker.range("radio", "slots", radio.slots, (1, 1_000))?;
    checker.range("radio", "connecting", radio.connecting, (1, 100))?;
    checker.range("radio", "turn_s", radio.turn_s, (1.0, 86_400.0))?;
    checker.range("radio", "scan_every_ms", radio.scan_every_ms, (10, 60_000))?;
    checker.range("radio", "scan_timeout_ms", radio.scan_timeout_ms, (10, 60_000))?;
    checker.range("radio", "request_timeout_s", radio.request_timeout_s, (0.1, 600.0))?;
    checker.range("radio", "backoff_ms", radio.backoff_ms, (10, 60_000))?;
    checker.range("radio", "backoff_max_s", radio.backoff_max_s, (0.1, 3_600.0))?;
    checker.range("radio", "window", radio.window, (1, 100))?;
    checker.range("radio", "sync_probes", radio.sync_probes, (1, 100))?;
    checker.range("radio", "resync_min", radio.resync_min, (0.01, 1_440.0))?;
    checker.range("radio", "resend_after_ms", radio.resend_after_ms, (10, 60_000))?;
    checker.range("radio", "silence_s", radio.silence_s, (1.0, 600.0))?;
    bluez(&checker, config)?;
    let clock = &config.clock;
    checker.range("clock", "poll_ms", clock.poll_ms, (100, 600_000))?;
    checker.range("clock", "timedate_timeout_ms", clock.timedate_timeout_ms, (10, 60_000))?;
    if let Some(url) = &clock.https_url
        && !url.parse::<axum::http::Uri>().is_ok_and(|url| url.scheme_str() == Some("https"))
    {
        return Err(checker.wrong("clock", "https_url", 0, format!("{url:?}"), "https://…"));
    }
    checker.range("clock", "https_every_min", clock.https_every_min, (1.0, 1_440.0))?;
    checker.range("clock", "https_retry_s", clock.https_retry_s, (1.0, 3_600.0))?;
    checker.range("clock", "https_timeout_s", clock.https_timeout_s, (0.1, 600.0))?;
    checker.range("clock", "alert_after_h", clock.alert_after_h, (0.0, 8_760.0))?;
    checker.range("clock", "unstamped_wait_s", clock.unstamped_wait_s, (1.0, 1e7))?;
    let store = &config.store;
    checker.range("store", "group_commit_ms", store.group_commit_ms, (1, 10_000))?;
    checker.range("store", "group_commit_frames", store.group_commit_frames, (1, 100_000))?;
    checker.range("store", "wearable_commit_s", store.wearable_commit_s, (0.0, 5.0))?;
    checker.range("store", "soft_limit_mib", store.soft_limit_mib, (1, 1 << 20))?;
    if store.hard_limit_mib <= store.soft_limit_mib || store.hard_limit_mib > 1 << 20 {
        let accepted = format!("more than soft_limit_mib ({}), at most 1048576", store.soft_limit_mib);
        return Err(checker.wrong("store", "hard_limit_mib", 0, store.hard_limit_mib.to_string(), &accepted));
    }
    checker.range("store", "reserve_mib", store.reserve_mib, (1, 4_096))?;
    checker.range("store", "card_endurance_gb", store.card_endurance_gb, (1, 10_000_000))?;
    uplink(&checker, config)?;
    traces(&checker, config)?;
    checker.range("live", "every_ms", config.live.every_ms, (200, 60_000))?;
    checker.range("local", "idle_logout_min", config.local.idle_logout_min, (0.05, 720.0))?;
    checker.range("infer", "refractory_min", config.infer.refractory_min, (0.0, 1_440.0))?;
    checker.range("infer", "queue", config.infer.queue, (1, 1_000_000))?;
    wearables(&checker, config)
}

fn bluez(checker: &Checker<'_>, config: &Config) -> Result<(), ConfigError> {
    let radio = &config.radio;
    checker.range("radio", "weak_rssi_dbm", radio.weak_rssi_dbm, (-127, 0))?;
    checker.range("radio", "weak_after_s", radio.weak_after_s, (0.0, 3_600.0))?;
    checker.range("radio", "connect_tries", radio.connect_tries, (1, 10))?;
    checker.range("radio", "connect_retry_ms", radio.connect_retry_ms, (10, 60_000))?;
    for (key, seconds, most) in [
        ("dbus_timeout_s", radio.dbus_timeout_s, 120.0),
        ("connect_timeout_s", radio.connect_timeout_s, 120.0),
        ("resolve_timeout_s", radio.resolve_timeout_s, 120.0),
        ("disconnect_timeout_s", radio.disconnect_timeout_s, 60.0),
        ("pair_timeout_s", radio.pair_timeout_s, 300.0),
        ("key_timeout_s", radio.key_timeout_s, 60.0),
        ("scan_on_s", radio.scan_on_s, 600.0),
        ("near_s", radio.near_s, 86_400.0),
        ("deaf_s", radio.deaf_s, 86_400.0),
        ("reset_pause_s", radio.reset_pause_s, 86_400.0),
    ] {
        checker.range("radio", key, seconds, (0.5, most))?;
    }
    checker.range("radio", "scan_off_s", radio.scan_off_s, (0.0, 600.0))?;
    checker.range("radio", "slots_relearn_min", radio.slots_relearn_min, (0.1, 1_440.0))
}

fn uplink(checker: &Checker<'_>, config: &Config) -> Result<(), ConfigError> {
    let uplink = &config.uplink;
    if uplink.host.is_empty() {
        return Err(checker.wrong("uplink", "host", 0, "not given".to_owned(), "a name or an address"));
    }
    if let Some(accepted) = host_trouble(&uplink.host) {
        return Err(checker.wrong("uplink", "host", 0, format!("{:?}", uplink.host), &accepted));
    }
    let files = [("ca", &uplink.ca), ("cert", &uplink.cert), ("key", &uplink.key)];
    for (key, file) in files {
        if uplink.tls && file.is_none() {
            let accepted = "the path of a PEM file (or tls = false, on one machine only)";
            return Err(checker.wrong("uplink", key, 0, "not given".to_owned(), accepted));
        }
    }
    checker.range("uplink", "keep_alive_s", uplink.keep_alive_s, (5, 3_600))?;
    checker.range("uplink", "connect_timeout_s", uplink.connect_timeout_s, (0.1, 600.0))?;
    checker.range("uplink", "backoff_ms", uplink.backoff_ms, (10, 600_000))?;
    checker.range("uplink", "backoff_max_s", uplink.backoff_max_s, (0.01, 3_600.0))?;
    checker.range("uplink", "refused_max_s", uplink.refused_max_s, (0.01, 3_600.0))?;
    checker.range("uplink", "silence_s", uplink.silence_s, (0.5, 3_600.0))?;
    checker.range("uplink", "ack_timeout_s", uplink.ack_timeout_s, (0.1, 3_600.0))?;
    checker.range(
        "uplink",
        "ack_timeout_max_s",
        uplink.ack_timeout_max_s,
        (uplink.ack_timeout_s, 86_400.0),
    )?;
    checker.range("uplink", "window_batches", uplink.window_batches, (1, 16))?;
    checker.range("uplink", "window_kib", uplink.window_kib, (256, 4_096))?;
    checker.range("uplink", "seal_after_s", uplink.seal_after_s, (0.05, 3_600.0))?;
    checker.range("uplink", "seal_bytes", uplink.seal_bytes, (1_024, 262_144))?;
    checker.range("uplink", "full_bytes", uplink.full_bytes, (uplink.seal_bytes, 393_216))?;
    checker.range("uplink", "parked_pause_s", uplink.parked_pause_s, (1.0, 86_400.0))?;
    checker.range("uplink", "state_every_s", uplink.state_every_s, (1.0, 3_600.0))
}

fn wearables(checker: &Checker<'_>, config: &Config) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for (nth, wearable) in config.wearables.iter().enumerate() {
        let wrong = |key, value: &str, accepted| {
            Err(checker.wrong("wearable", key, nth, format!("{value:?}"), accepted))
        };
        let id = &wearable.hardware_id;
        match HardwareId::parse(id) {
            Ok(hardware) if hardware.factory_id().is_none() => {
                return wrong("hardware_id", id, "kinara:<16 hex digits>");
            }
            Ok(hardware) if !seen.insert(hardware.clone()) => {
                return wrong("hardware_id", id, "each wearable once");
            }
            Ok(_) => {}
            Err(_) => return wrong("hardware_id", id, "kinara:<16 hex digits>"),
        }
        if wearable.label_secret.parse::<LabelSecret>().is_err() {
            // The value is a secret, and stays out of logs.
            return wrong("label_secret", "…", "the 16 characters A-Z and 2-7 on the label");
        }
    }
    Ok(())
}

fn traces(checker: &Checker<'_>, config: &Config) -> Result<(), ConfigError> {
    let traces = &config.traces;
    if let Err(kinara_traces::Error::Address(address)) = traces.check() {
        return Err(checker.wrong(
            "traces",
            "otlp",
            0,
            format!("{address:?}"),
            "http://HOST:PORT or https://HOST:PORT",
        ));
    }
    checker.range("traces", "ratio", traces.ratio, (0.0, 1.0))?;
    checker.range("traces", "timeout_s", traces.timeout_s, (1, 600))?;
    checker.range("traces", "every_s", traces.every_s, (1, 600))?;
    checker.range("traces", "queue", traces.queue, (1, 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
gateway_id = "0198c0de-0000-7000-8000-000000000001"
data_dir = "/tmp/x"
[uplink]
host = "localhost"
tls = false
"#;

    fn error(text: &str) -> String {
        Config::parse(Path::new("gatewayd.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn a_few_fields_are_enough_and_the_rest_has_defaults() {
        let config = Config::parse(Path::new("x"), GOOD).unwrap();
        assert_eq!(config.uplink.port, 8883);
        assert_eq!(config.store.soft_limit_mib, 4_096);
        assert!((config.uplink.ack_timeout_s - 30.0).abs() < f64::EPSILON);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_line_and_what_is_known() {
        let text = error(&GOOD.replace("tls = false", "tls = false\n[radio]\nslotz = 3"));
        assert!(text.starts_with("gatewayd.toml, line 8:"), "{text}");
        assert!(text.contains("slotz") && text.contains("`slots`"), "{text}");
    }

    #[test]
    fn a_value_of_another_type_or_out_of_range_is_named_with_its_line_and_what_is_accepted() {
        let text = error(&GOOD.replace("tls = false", "tls = 3"));
        assert!(text.starts_with("gatewayd.toml, line 6:") && text.contains("boolean"), "{text}");
        let text = error(&format!("{GOOD}window_batches = 99\n"));
        assert_eq!(text, "gatewayd.toml, line 7: [uplink] window_batches is 99; accepted: 1 to 16");
        let text = error(&format!("{GOOD}[store]\nsoft_limit_mib = 9\nhard_limit_mib = 3\n"));
        assert!(text.contains("line 9: [store] hard_limit_mib is 3"), "{text}");
        let text = error(&format!("{GOOD}[radio]\ntransport = \"zigbee\"\n"));
        assert!(text.contains("line 8") && text.contains("virtual"), "{text}");
    }

    #[test]
    fn a_wearable_with_a_wrong_label_is_named_without_its_secret() {
        let text = error(&format!(
            "{GOOD}[[wearable]]\nhardware_id = \"kinara:0000000000000001\"\nlabel_secret = \"HUNTER2\"\n"
        ));
        assert!(text.contains("line 9") && !text.contains("HUNTER2"), "{text}");
    }

    #[test]
    fn tls_without_a_certificate_says_what_to_give() {
        let text = error(&GOOD.replace("tls = false", ""));
        assert!(text.contains("[uplink] ca") && text.contains("PEM"), "{text}");
    }

    #[test]
    fn the_example_in_the_repository_is_valid_and_shows_every_field() {
        let text = include_str!("../../gatewayd.example.toml");
        Config::parse(Path::new("gatewayd.example.toml"), text).unwrap();
        let sections = include_str!("sections.rs");
        let fields = sections.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("        ")?.split_once(": ")?;
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_').then_some(name)
        });
        let traces = ["otlp", "ratio", "headers", "ca", "timeout_s", "every_s", "queue"];
        for field in fields.chain(traces) {
            assert!(text.contains(&format!("{field} =")), "{field} is not in the example");
        }
    }

    const HEAD: &str = "gateway_id = \"0198a0c0-0000-7000-8000-00000000b0c5\"\ndata_dir = \"d\"\n";

    fn refused(text: &str) -> String {
        let bytes = [HEAD, text].concat();
        super::text(Path::new("f.toml"), bytes.as_bytes())
            .and_then(|text| Config::parse(Path::new("f.toml"), text))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_host_with_a_scheme_a_port_or_a_blank_is_refused_and_the_message_names_the_right_one() {
        for (host, mended) in [
            ("mqtts://broker.example.org:8883", "\"broker.example.org\""),
            ("mqtt://broker.example.org", "\"broker.example.org\""),
            ("broker.example.org:8883", "host = \"broker.example.org\" and port = 8883"),
            (" broker.example.org", "\"broker.example.org\""),
            ("broker.example.org\\t", "\"broker.example.org\""),
            ("broker example.org", "without blanks"),
            ("[::1]", "\"::1\""),
            ("[::1]:8883", "port = 8883"),
            ("broker.example.org/mqtt", "without \"/\""),
        ] {
            let told = refused(&format!("[uplink]\ntls = false\nhost = \"{host}\"\n"));
            assert!(told.contains("line 5: [uplink] host") && told.contains(mended), "{host}: {told}");
        }
        for host in ["broker.example.org", "10.0.0.7", "::1", "fe80::1", "broker", "xn--brker-kva.example"] {
            let text = format!("{HEAD}[uplink]\ntls = false\nhost = \"{host}\"\n");
            assert!(Config::parse(Path::new("f.toml"), &text).is_ok(), "{host}");
        }
    }

    #[test]
    fn the_line_is_right_behind_a_comment_with_dots_in_quotes_and_in_an_inline_table() {
        for (text, line) in [
            ("[uplink] # the clinic's broker\nhost = \"b\"\ntls = false\nwindow_batches = 99\n", 6),
            ("uplink.host = \"b\"\nuplink.tls = false\nuplink.window_batches = 99\n", 5),
            ("[ \"uplink\" ]\nhost = \"b\"\n# window_batches = 3\ntls = false\n\"window_batches\" = 99\n", 7),
            ("\nuplink = { host = \"b\", tls = false, window_batches = 99 }\n", 4),
            ("[live]\nevery_ms = 500\n[uplink]\nhost = \"b\"\n", 5),
        ] {
            let told = refused(text);
            assert!(told.contains(&format!("line {line}:")), "{text}: {told}");
        }
    }

    #[test]
    fn a_file_of_another_encoding_is_named_and_a_byte_order_mark_is_no_matter() {
        let path = Path::new("f.toml");
        let wide: Vec<u8> = HEAD.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for bytes in [[&[0xff, 0xfe], &wide[..]].concat(), wide] {
            let told = super::text(path, &bytes).unwrap_err().to_string();
            assert!(told.contains("UTF-16") && told.contains("save the file as UTF-8"), "{told}");
        }
        let told = super::text(path, b"a = 1\nname = \"Praxis M\xfcller\"\n").unwrap_err().to_string();
        assert!(told.contains("line 2") && told.contains("Latin-1"), "{told}");
        assert_eq!(super::text(path, "\u{feff}a".as_bytes()).unwrap(), "a");
    }

    #[test]
    fn the_name_of_a_box_is_counted_in_characters_and_something_of_it_can_be_seen() {
        let named = |name: &str| Config::parse(Path::new("x"), &format!("name = \"{name}\"{GOOD}"));
        let ward = "\u{928}".repeat(64);
        assert_eq!(named(&format!(" {ward}  ")).unwrap().name, ward);
        for name in ["", "   ", "\u{200B}", "a\\u001Bb", "a\\nb", &"n".repeat(65)] {
            let text = named(name).unwrap_err().to_string();
            assert!(text.contains("1 to 64 characters"), "{name:?}: {text}");
        }
    }
}
