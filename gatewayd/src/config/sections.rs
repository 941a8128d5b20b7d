//! The sections of the file, each field with its meaning and default.

use std::net::SocketAddr;
use std::path::PathBuf;

use kinara_inference::Maker;
use serde::Deserialize;

use crate::infer::LibraryDigest;

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

/// What carries GATT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Wearables as processes on Unix sockets in `air_dir`.
    Virtual,
    /// Bluetooth LE by BlueZ.
    Bluez,
}

/// A kind of sensor of another maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sensor {
    /// Heart Rate, 0x180D.
    HeartRate,
    /// Health Thermometer, 0x1809.
    HealthThermometer,
    /// Pulse Oximeter, 0x1822.
    PulseOximeter,
}

section! {
    /// `[radio]`
    Radio {
        /// `virtual` or `bluez`. Default `virtual`.
        transport: Transport = Transport::Virtual,
        /// The folder with the virtual wearables' sockets. Default `/run/kinara/air`.
        air_dir: PathBuf = PathBuf::from("/run/kinara/air"),
        /// Links that an adapter holds at once, 1 to 1000; over BlueZ lowered when the controller refuses. Default 64.
        slots: usize = 64,
        /// Connections made at once, 1 to 100. Default 8.
        connecting: usize = 8,
        /// How long a wearable keeps its link while others wait for one, seconds. Default 60.
        turn_s: f64 = 60.0,
        /// Pause between two scans, milliseconds. Default 300.
        scan_every_ms: u64 = 300,
        /// How long a virtual wearable may take to answer a scan, milliseconds. Default 1000.
        scan_timeout_ms: u64 = 1_000,
        /// How long pairing, connecting or any request may take, seconds. Default 10.
        request_timeout_s: f64 = 10.0,
        /// The first pause after a link was lost, milliseconds. Default 250.
        backoff_ms: u64 = 250,
        /// The longest pause, seconds. Default 20.
        backoff_max_s: f64 = 20.0,
        /// Frames on the way from one wearable, 1 to 100. Default 100.
        window: u8 = 100,
        /// Probes of one time sync, 1 to 100. Default 8.
        sync_probes: u32 = 8,
        /// Time between two syncs with a connected wearable, minutes. Default 10.
        resync_min: f64 = 10.0,
        /// How long a hole in a log may stand before it is asked for, milliseconds. Default 1000.
        resend_after_ms: u64 = 1_000,
        /// After this much silence a wearable is asked whether it lives, seconds. Default 15.
        silence_s: f64 = 15.0,
        /// A link this weak is given up so that a nearer gateway gets the wearable, dBm. Default -92.
        weak_rssi_dbm: i16 = -92,
        /// How long a link stays weak before that, seconds; 0 for never. Default 60.
        weak_after_s: f64 = 60.0,
        /// BlueZ: sensors of other makers that may be paired: `heart_rate`, `health_thermometer`, `pulse_oximeter`.
        /// Default none.
        sensors: Vec<Sensor> = Vec::new(),
        /// BlueZ: the socket of `kinara-linkd`. Default `/run/kinara/linkd.sock`.
        linkd_socket: PathBuf = PathBuf::from(kinara_linkd::client::SOCKET),
        /// BlueZ: a bond counts only when `kinara-linkd` says that its key is an authenticated one of LE Secure
        /// Connections. Default true.
        require_key_proof: bool = true,
        /// BlueZ: how long a call over D-Bus may take that has no limit of its own, seconds. Default 10.
        dbus_timeout_s: f64 = 10.0,
        /// BlueZ: how long one attempt to connect may take, seconds. Default 20.
        connect_timeout_s: f64 = 20.0,
        /// BlueZ: attempts to connect before others get their turn, 1 to 10. Default 3.
        connect_tries: u32 = 3,
        /// BlueZ: the pause between them, halved to one and a half times by chance, milliseconds. Default 500.
        connect_retry_ms: u64 = 500,
        /// BlueZ: how long the services of a connected device may take to appear, seconds. Default 15.
        resolve_timeout_s: f64 = 15.0,
        /// BlueZ: how long disconnecting may take, seconds. Default 5.
        disconnect_timeout_s: f64 = 5.0,
        /// BlueZ: how long a pairing may take, with the typing of a code, seconds. Default 60.
        pair_timeout_s: f64 = 60.0,
        /// BlueZ: how long the kernel's word about a new key may take, seconds. Default 3.
        key_timeout_s: f64 = 3.0,
        /// BlueZ: how long discovery runs at a time, seconds; from 10.24 on the kernel makes pauses. Default 9.
        scan_on_s: f64 = 9.0,
        /// BlueZ: how long it rests when no wearable is waited for, seconds. Default 6.
        scan_off_s: f64 = 6.0,
        /// BlueZ: a bonded wearable heard within this time must be near, seconds. Default 180.
        near_s: f64 = 180.0,
        /// BlueZ: silence after which an adapter with wearables near it is reset, seconds. Default 45.
        deaf_s: f64 = 45.0,
        /// BlueZ: the time between two such resets, seconds. Default 300.
        reset_pause_s: f64 = 300.0,
        /// BlueZ: after the controller refused a link one more is tried this much later, minutes. Default 10.
        slots_relearn_min: f64 = 10.0,
    }
}

/// `[[wearable]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wearable {
    /// `kinara:<16 hex digits>`. No default.
    pub hardware_id: String,
    /// The 16 characters on its label. No default.
    pub label_secret: String,
}

section! {
    /// `[clock]`
    Clock {
        /// Believe the machine's clock without proof, unless it shows a time before the program's build date or the
        /// last one known. Default false.
        trust_system: bool = false,
        /// How often the sources are asked, milliseconds. Default 2000.
        poll_ms: u64 = 2_000,
        /// How long timedate1 may take, milliseconds. Default 2000.
        timedate_timeout_ms: u64 = 2_000,
        /// A web server whose `Date` is believed like the bridge's time, `https://…`; for networks without NTP. Default:
        /// none, and nobody is asked.
        https_url: Option<String> = None,
        /// The authorities that its certificate may come from, PEM. Default: the system's.
        https_ca: PathBuf = PathBuf::from("/etc/ssl/certs/ca-certificates.crt"),
        /// How often it is asked, minutes. Default 30.
        https_every_min: f64 = 30.0,
        /// How long after a question without an answer it is asked again, seconds. Default 30.
        https_retry_s: f64 = 30.0,
        /// How long its answer may take, seconds. Default 10.
        https_timeout_s: f64 = 10.0,
        /// A person is told when the time has been unknown for this long, hours. Default 24.
        alert_after_h: f64 = 24.0,
        /// How long a frame waits for a time sync that may still come with the wearable's log, seconds. Default 3600.
        unstamped_wait_s: f64 = 3_600.0,
    }
}

section! {
    /// `[store]`
    StoreSection {
        /// Commit at the latest this long after the first write, milliseconds. Default 100; an SD card lives longer
        /// with 1000.
        group_commit_ms: u64 = 100,
        /// Commit as soon as this many frames wait. Default 100.
        group_commit_frames: usize = 100,
        /// Frames of a wearable that is caught up may wait so long for the commit, seconds, 0 to 5: the wearable keeps them
        /// until they are acknowledged, which is after it. Default 5.
        wearable_commit_s: f64 = 5.0,
        /// From here on no waveforms are taken and stored ones are dropped, MiB. Default 4096.
        soft_limit_mib: u64 = 4_096,
        /// From here on nothing but events is taken, MiB. Default 6144.
        hard_limit_mib: u64 = 6_144,
        /// Kept free for events, gap records and SQLite itself, MiB. Default 16.
        reserve_mib: u64 = 16,
        /// Check the whole database at start when it is not larger than this, MiB. Default 256.
        check_below_mib: u64 = 256,
        /// What the card bears before it wears out, GB written (1000 for each TBW of its data sheet): `status` tells how many
        /// years a new one lasts at the pace at which it is written to. Default 10000: a plain card of 32 GB, whose cells
        /// bear some 300 writes; industrial ones bear several times as much.
        card_endurance_gb: u64 = 10_000,
    }
}

section! {
    /// `[uplink]`
    Uplink {
        /// The broker's name or address. No default.
        host: String = String::new(),
        /// Its port. Default 8883.
        port: u16 = 8883,
        /// TLS; off only for benches on one machine. Default true.
        tls: bool = true,
        /// The authority that the broker's certificate must come from, PEM. No default with TLS.
        ca: Option<PathBuf> = None,
        /// This gateway's certificate, PEM. No default with TLS.
        cert: Option<PathBuf> = None,
        /// Its key, PEM. No default with TLS.
        key: Option<PathBuf> = None,
        /// MQTT keep-alive, seconds, at least 5: the broker takes this gateway for gone after one and a half times as
        /// long. Default 60.
        keep_alive_s: u64 = 60,
        /// A connection on which nothing moves is given up after this time, beyond what bytes on the way need, seconds.
        /// Default 30.
        silence_s: f64 = 30.0,
        /// How long each step to the broker may wait for its answer (TCP, TLS, greeting, subscription), seconds. Default 20.
        connect_timeout_s: f64 = 20.0,
        /// The longest of the first pauses after a lost connection, milliseconds. Default 2000.
        backoff_ms: u64 = 2_000,
        /// The longest pause while network or broker are away, seconds. Default 6.
        backoff_max_s: f64 = 6.0,
        /// The longest pause while the broker refuses this gateway, seconds. Default 60.
        refused_max_s: f64 = 60.0,
        /// How long the bridge has to acknowledge at first, seconds. Default 30.
        ack_timeout_s: f64 = 30.0,
        /// How long it has after several tries, seconds. Default 600.
        ack_timeout_max_s: f64 = 600.0,
        /// Batches on the way at once, 1 to 16. Default 16.
        window_batches: usize = 16,
        /// Bytes on the way at once, KiB. Default 4096.
        window_kib: usize = 4_096,
        /// Seal a batch this long after its first frame came, seconds. Default 5.
        seal_after_s: f64 = 5.0,
        /// Seal as soon as this many frame bytes wait. Default 65536.
        seal_bytes: u64 = 65_536,
        /// After an outage pack up to this many frame bytes into a batch, at most 393216. Default 262144.
        full_bytes: u64 = 262_144,
        /// Batches that the bridge could not read are tried again when another one subscribes, for it may be newer. The least
        /// time between two such tries, seconds. Default 600.
        parked_pause_s: f64 = 600.0,
        /// How often `state` is told when nothing changes, seconds. Default 15.
        state_every_s: f64 = 15.0,
    }
}

section! {
    /// `[live]`
    Live {
        /// Publish live values whether somebody watches or not. Default false.
        always: bool = false,
        /// Between two live messages, milliseconds, at least 200. Default 1000.
        every_ms: u64 = 1_000,
    }
}

section! {
    /// `[infer]`
    Infer {
        /// Look at frames at all. Default true.
        enabled: bool = true,
        /// The ONNX Runtime library; without it the rule runs alone. No default.
        onnxruntime: Option<PathBuf> = None,
        /// What the library's SHA-256 has to be, 64 hexadecimal digits; without it any library is loaded. No default.
        onnxruntime_sha256: Option<LibraryDigest> = None,
        /// The folder of the model package; without it the rule runs alone. No default.
        model: Option<PathBuf> = None,
        /// The public key of the package's maker, 64 hexadecimal digits; without it the signature is not looked at. No default.
        maker: Option<Maker> = None,
        /// No second hot flash of one producer within this time, minutes. Default 20.
        refractory_min: f64 = 20.0,
        /// Frames that may wait for inference. Default 4096.
        queue: usize = 4_096,
    }
}

section! {
    /// `[local]`
    Local {
        /// Where the status page, `/metrics` and `/healthz` listen; `data_dir/local.addr` tells the port when it is 0. Default 127.0.0.1:8080.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080)),
        /// Where the box's own page for the clinic's people listens (HTTPS, with logins); `data_dir/page.addr` tells
        /// the port when it is 0. Default 0.0.0.0:8443.
        page_listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 8443)),
        /// A login at the box's page ends after this time without use, minutes. Default 10.
        idle_logout_min: f64 = 10.0,
    }
}
