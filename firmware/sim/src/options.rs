//! The command lines.

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};
use kinara_firmware_app::plan::Plan;
use kinara_protocol::label::LabelSecret;

use crate::crystal::MAX_DRIFT_PPM;
use crate::pairing::Button;
use crate::wearable::MIN_RING_KIB;

/// A simulated Kinara wearable: the firmware's application over a simulated body, on a virtual radio.
///
/// It listens on AIR/FACTORY_ID.sock for gateways and on AIR/FACTORY_ID.ctl for commands, and prints one line of JSON when
/// it is ready. KINARA_CLOCK (origin_unix_us:rate) scales its time. SIGTERM ends it in order; killed, it starts again as
/// a wearable does after a reset.
#[derive(Debug, Parser)]
#[command(name = "kinara-wearable-sim", version)]
pub struct VirtualOptions {
    /// The wearable
    #[command(flatten)]
    pub wearable: WearableOptions,
    /// The directory of the virtual air
    #[arg(long, value_name = "DIR")]
    pub air: PathBuf,
    /// Who presses the pairing button
    #[arg(long, value_enum, default_value_t = Button::Pressed)]
    pub button: Button,
}

/// A simulated Kinara wearable on a real Bluetooth stack: the firmware's application and radio over a simulated body, on
/// an HCI controller.
///
/// The controller is spoken to by H4 over TCP, and looked for again whenever it goes away. It listens on CONTROL for
/// commands, and prints one line of JSON when it is ready. KINARA_CLOCK (origin_unix_us:rate) scales the body's time, not the radio's.
/// SIGTERM ends it in order; killed, it starts again as a wearable does after a reset.
#[derive(Debug, Parser)]
#[command(name = "kinara-wearable-ble", version)]
pub struct BluetoothOptions {
    /// The wearable
    #[command(flatten)]
    pub wearable: WearableOptions,
    /// The controller's H4 socket
    #[arg(long, value_name = "HOST:PORT")]
    pub h4: String,
    /// The socket for commands
    #[arg(long, value_name = "PATH")]
    pub control: PathBuf,
    /// Who presses the pairing button: "pressed" is somebody, while no gateway is bonded
    #[arg(long, value_enum, default_value_t = Button::Pressed)]
    pub button: Button,
    /// It has a display, which shows a random passkey (in the answer to "status", and on standard output), and no label
    #[arg(long)]
    pub display: bool,
    /// Who makes private addresses; "off" has the identity address on the air
    #[arg(long, value_enum, default_value_t = PrivacyName::Controller)]
    pub privacy: PrivacyName,
    /// How long a private address serves
    #[arg(long, value_name = "S", default_value_t = 900, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub address_life_s: u32,
    /// With a new state: the identity address, a static random one; drawn without
    #[arg(long, value_name = "ADDRESS", value_parser = identity_address)]
    pub address: Option<[u8; 6]>,
}

/// Who makes private addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrivacyName {
    /// The controller.
    Controller,
    /// Nobody.
    Off,
}

/// What every simulated wearable is told.
#[derive(Debug, Args)]
pub struct WearableOptions {
    /// The factory id, 16 hexadecimal digits
    #[arg(long, value_name = "HEX16", value_parser = factory_id)]
    pub factory_id: u64,
    /// The name it shows while its pairing window is open
    #[arg(long)]
    pub name: String,
    /// Everything random about the body, the sensors and the crystal comes from it
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The directory of its flash image and bonds
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// The label's 16 base32 characters
    #[arg(long, value_name = "BASE32")]
    pub label_secret: LabelSecret,
    /// Where everything produced is logged, for tests; nowhere without
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// A recording, or a directory of recordings, to play instead of the simulated signals
    #[arg(long, value_name = "PATH")]
    pub replay: Option<PathBuf>,
    /// With a new flash: the time it has measured before anybody connects (4h, 30m, 90s)
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration_us)]
    pub prefill: i64,
    /// Size of the flash
    #[arg(long, value_name = "KIB", default_value_t = 8192, value_parser = ring_kib)]
    pub ring_kib: u32,
    /// The crystal's drift; the seed's without
    #[arg(long, value_name = "PPM", allow_negative_numbers = true, value_parser = drift_ppm)]
    pub drift_ppm: Option<f64>,
    /// Mean time between hot flashes; none without
    #[arg(long, value_name = "TIME", value_parser = interval_us)]
    pub hot_flash_every: Option<i64>,
    /// Simulated seconds per second, from the program's start; not beside KINARA_CLOCK
    #[arg(long, value_name = "N", value_parser = speed)]
    pub speed: Option<f64>,
    /// What it measures
    #[arg(long, value_enum, default_value_t = PlanName::Reference)]
    pub plan: PlanName,
    /// How long samples may wait for a full frame while nobody watches
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub frame_age_offline_s: u32,
    /// The Ed25519 key of who may give it new firmware, 64 hexadecimal digits; nobody without
    #[arg(long, value_name = "HEX64", value_parser = maker)]
    pub maker: Option<[u8; 32]>,
    /// How long new firmware has to be healthy before it stays
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub healthy_s: u32,
    /// The wearer's local time, for day and night
    #[arg(long, value_name = "MIN", default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-840..=840))]
    pub utc_offset_min: i32,
}

/// The plans there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlanName {
    /// The reference plan: scalars only.
    Reference,
    /// And both waveforms, at 25 Hz.
    Waveforms,
}

impl PlanName {
    /// The plan of this name.
    pub fn plan(self) -> Plan {
        let waveforms = self == Self::Waveforms;
        Plan { ppg: waveforms, acceleration: waveforms, ..Plan::REFERENCE }
    }
}

fn maker(text: &str) -> Result<[u8; 32], String> {
    let key = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    key.ok_or_else(|| "a key has 64 hexadecimal digits".to_owned())
}

fn factory_id(text: &str) -> Result<u64, &'static str> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
        .ok_or("a factory id has 16 hexadecimal digits")
}

fn identity_address(text: &str) -> Result<[u8; 6], &'static str> {
    const WRONG: &str = "an identity address is static and random: C0:00:00:00:00:01 to FF:FF:FF:FF:FF:FE";
    let mut address = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut address {
        let part = parts.next().filter(|part| part.len() == 2).ok_or(WRONG)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| WRONG)?;
    }
    if parts.next().is_none() && address[0] >= 0xc0 { Ok(address) } else { Err(WRONG) }
}

fn duration_us(text: &str) -> Result<i64, &'static str> {
    const WRONG: &str = "a time is a number and h, m or s: 4h, 30m, 90s; at most 1000h";
    let (number, unit) = text.split_at(text.len() - usize::from(text.ends_with(['h', 'm', 's'])));
    let seconds = match unit {
        "h" => 3_600.0,
        "m" => 60.0,
        _ => 1.0,
    };
    let number: f64 = number.parse().map_err(|_| WRONG)?;
    let us = number * seconds * 1e6;
    if (0.0..=3.6e12).contains(&us) { Ok(us as i64) } else { Err(WRONG) }
}

fn interval_us(text: &str) -> Result<i64, &'static str> {
    duration_us(text).and_then(|us| {
        if us >= 1_000_000 { Ok(us) } else { Err("at least a second lies between two hot flashes") }
    })
}

fn ring_kib(text: &str) -> Result<u32, String> {
    let range = MIN_RING_KIB..=1_048_576;
    text.parse()
        .ok()
        .filter(|kib: &u32| range.contains(kib) && kib.is_multiple_of(4))
        .ok_or_else(|| format!("a multiple of 4 from {} to {}", range.start(), range.end()))
}

fn drift_ppm(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|ppm: &f64| ppm.abs() <= MAX_DRIFT_PPM)
        .ok_or_else(|| format!("a drift from -{MAX_DRIFT_PPM} to {MAX_DRIFT_PPM} ppm"))
}

fn speed(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|speed| (0.1..=10_000.0).contains(speed)).ok_or("a speed from 0.1 to 10000")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [&str; 11] = [
        "sim",
        "--factory-id",
        "00000000000000a1",
        "--name",
        "K1",
        "--air",
        "a",
        "--state",
        "s",
        "--label-secret",
        "ABCDEFGHIJKLMNOP",
    ];

    fn parse(more: &[&str]) -> Result<VirtualOptions, String> {
        VirtualOptions::try_parse_from(GOOD.iter().chain(more)).map_err(|error| error.to_string())
    }

    #[test]
    fn times_are_read_with_their_units() {
        let options = parse(&["--prefill", "4h", "--hot-flash-every", "5m"]).unwrap().wearable;
        assert_eq!((options.prefill, options.hot_flash_every), (14_400_000_000, Some(300_000_000)));
        assert_eq!(duration_us("90"), Ok(90_000_000));
        assert_eq!(duration_us("1.5h"), Ok(5_400_000_000));
    }

    #[test]
    fn an_identity_address_is_a_static_random_one() {
        assert_eq!(identity_address("C0:00:00:00:00:01"), Ok([0xc0, 0, 0, 0, 0, 1]));
        for wrong in ["40:00:00:00:00:01", "C0:00:00:00:00", "C0:00:00:00:00:01:02", "C0:0:00:00:00:01", ""] {
            assert!(identity_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_argument_is_named_with_what_it_may_be() {
        for (more, named) in [
            (&["--prefill", "soon"][..], "4h, 30m, 90s"),
            (&["--ring-kib", "10"], "multiple of 4"),
            (&["--drift-ppm", "-41"], "ppm"),
            (&["--speed", "0"], "speed"),
            (&["--plan", "all"], "waveforms"),
        ] {
            let error = parse(more).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
