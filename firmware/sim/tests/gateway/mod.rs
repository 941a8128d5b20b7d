//! The simplest gateway there is, and a wearable process to talk to.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kinara_protocol::control::{Hello, MAX_MESSAGE, Op, Outcome, Reply, Request};
use kinara_protocol::frame::{Body, FrameRef};
use kinara_protocol::label::LabelSecret;
use kinara_virtual_radio::{
    Advertisement, Bond, Characteristic, Decoder, FromWearable, Message, ToWearable, socket_path,
};
use serde_json::Value;

pub const SECRET: &str = "ABCDEFGHIJKLMNOP";
pub const FACTORY_ID: u64 = 0xa1;
const PATIENCE: Duration = Duration::from_secs(20);

/// A sample as the oracle's log names it: epoch, channel, ticks, values.
pub type Sample = (String, u16, u64, String);

/// A wearable process in a directory of its own.
pub struct Wearable {
    pub dir: tempfile::TempDir,
    child: Child,
    pub ready: Value,
}

impl Wearable {
    pub fn start(more: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), more)
    }

    fn start_in(dir: tempfile::TempDir, more: &[&str]) -> Self {
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut child = Command::new(env!("CARGO_BIN_EXE_kinara-wearable-sim"))
            .args([
                "--factory-id",
                "00000000000000a1",
                "--name",
                "K1",
                "--seed",
                "7",
                "--label-secret",
                SECRET,
            ])
            .args(["--air", &path("air"), "--state", &path("state"), "--log", &path("log")])
            .args(more)
            .env_remove("KINARA_CLOCK")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).expect("it says when it is ready");
        Self { dir, child, ready }
    }

    /// kill -9 and a new start.
    pub fn killed_and_started(mut self, more: &[&str]) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Self::start_in(self.take_dir(), more)
    }

    /// SIGTERM and a new start.
    pub fn ended_and_started(mut self, more: &[&str]) -> Self {
        let status = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
        assert!(self.child.wait().unwrap().success(), "SIGTERM ends it in order");
        Self::start_in(self.take_dir(), more)
    }

    fn take_dir(&mut self) -> tempfile::TempDir {
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    pub fn air(&self) -> PathBuf {
        self.dir.path().join("air")
    }

    pub fn command(&self, line: &str) -> Value {
        let mut stream =
            UnixStream::connect(socket_path(&self.air(), FACTORY_ID).with_extension("ctl")).unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["ok"], true, "{answer}");
        answer
    }

    /// What the oracle's log says was produced.
    pub fn produced(&self) -> BTreeSet<Sample> {
        self.log_lines("P")
            .into_iter()
            .map(|f| (f[0].clone(), f[1].parse().unwrap(), f[2].parse().unwrap(), f[3].clone()))
            .collect()
    }

    /// The fields of the log's lines of one kind.
    pub fn log_lines(&self, kind: &str) -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        text.lines()
            .map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .filter(|fields| fields[0] == kind)
            .map(|fields| fields[1..].to_vec())
            .collect()
    }
}

impl Drop for Wearable {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Gateway {
    stream: UnixStream,
    decoder: Decoder,
    next_id: u16,
    /// Frames by epoch and seq, wherever they came from.
    pub frames: BTreeMap<(u64, u32), Vec<u8>>,
    pub on_stream: Vec<(u64, u32)>,
    pub on_backlog: Vec<(u64, u32)>,
}

impl Gateway {
    pub fn open(air: &Path) -> Self {
        let stream = UnixStream::connect(socket_path(air, FACTORY_ID)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            decoder: Decoder::default(),
            next_id: 0,
            frames: BTreeMap::new(),
            on_stream: Vec::new(),
            on_backlog: Vec::new(),
        }
    }

    /// Takes what an earlier link brought.
    pub fn with_frames(mut self, earlier: Self) -> Self {
        self.frames = earlier.frames;
        self
    }

    pub fn say(&mut self, message: &ToWearable) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next message that is no notification; `None` when the link is gone.
    pub fn hear(&mut self) -> Option<FromWearable> {
        loop {
            match self.next(PATIENCE)? {
                FromWearable::Notify { characteristic, bytes } => self.notified(characteristic, bytes),
                other => return Some(other),
            }
        }
    }

    fn next(&mut self, patience: Duration) -> Option<FromWearable> {
        loop {
            if let Some(message) = self.decoder.next().unwrap() {
                return Some(message);
            }
            self.stream.set_read_timeout(Some(patience)).unwrap();
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(count @ 1..) => self.decoder.feed(&bytes[..count]),
                _ => return None,
            }
        }
    }

    /// Takes notifications for a while.
    pub fn listen(&mut self, duration: Duration) {
        let end = Instant::now() + duration;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if let Some(FromWearable::Notify { characteristic, bytes }) = self.next(left) {
                self.notified(characteristic, bytes);
            }
        }
    }

    fn notified(&mut self, characteristic: Characteristic, bytes: Vec<u8>) {
        if characteristic == Characteristic::Status {
            return;
        }
        let header = FrameRef::parse(&bytes).expect("a frame is whole").header();
        let id = (header.epoch.0, header.seq);
        match characteristic {
            Characteristic::Stream => self.on_stream.push(id),
            _ => self.on_backlog.push(id),
        }
        if let Some(before) = self.frames.insert(id, bytes.clone()) {
            assert_eq!(before, bytes, "one identity, one content");
        }
    }

    pub fn scan(&mut self, name: &str) -> Advertisement {
        self.say(&ToWearable::Scan { gateway: name.to_owned() });
        match self.hear() {
            Some(FromWearable::Advertisement(advertisement)) => advertisement,
            other => panic!("{other:?}"),
        }
    }

    pub fn pair(&mut self, name: &str) -> Bond {
        let advertisement = self.scan(name);
        assert!(advertisement.window_open && advertisement.connectable);
        self.say(&ToWearable::Connect { gateway: name.to_owned(), bond: None });
        assert!(matches!(self.hear(), Some(FromWearable::Connected { .. })));
        let secret: LabelSecret = SECRET.parse().unwrap();
        self.say(&ToWearable::Pair { passkey: secret.passkey(&advertisement.nonce) });
        match self.hear() {
            Some(FromWearable::Paired { bond }) => bond,
            other => panic!("{other:?}"),
        }
    }

    pub fn connect(&mut self, name: &str, bond: Bond) -> Result<(), String> {
        self.say(&ToWearable::Connect { gateway: name.to_owned(), bond: Some(bond) });
        match self.hear() {
            Some(FromWearable::Connected { .. }) => Ok(()),
            Some(FromWearable::Refused { reason }) => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    pub fn subscribe(&mut self, characteristic: Characteristic) {
        self.say(&ToWearable::Subscribe { characteristic, on: true });
        assert_eq!(self.hear(), Some(FromWearable::Subscribed));
    }

    pub fn request(&mut self, op: Op) -> Outcome {
        self.next_id += 1;
        let mut bytes = [0; MAX_MESSAGE];
        let bytes = Request { id: self.next_id, op }.encode(&mut bytes).to_vec();
        self.say(&ToWearable::Write { characteristic: Characteristic::Control, bytes });
        loop {
            match self.hear().expect("the link stands") {
                FromWearable::WriteDone => {}
                FromWearable::Indicate { characteristic: Characteristic::Control, bytes } => {
                    let reply = Reply::decode(&bytes).unwrap();
                    assert_eq!(reply.id, self.next_id);
                    return reply.outcome;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn hello(&mut self) -> Hello {
        match self.request(Op::Hello) {
            Outcome::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    /// The last frame that everything before has arrived of, from the oldest one on.
    pub fn contiguous(&self, hello: &Hello) -> Option<(u64, u32)> {
        let mut last = None;
        let mut expected = (hello.oldest.0.0, hello.oldest.1);
        for (&id, bytes) in self.frames.range(expected..) {
            let follows = match FrameRef::parse(bytes).unwrap().body().unwrap() {
                // A new epoch goes on where its anchor says that the one before ended.
                Body::BootAnchor(anchor) => {
                    id == expected || anchor.previous.is_some_and(|p| (p.epoch.0, p.next_seq) == expected)
                }
                _ => id == expected,
            };
            if !follows {
                break;
            }
            last = Some(id);
            expected = (id.0, id.1 + 1);
        }
        last
    }

    /// Drains the log until nothing is unacknowledged; asks again for what is missing.
    pub fn drain(&mut self) {
        let hello = self.hello();
        let end = Instant::now() + PATIENCE;
        let mut acknowledged = None;
        loop {
            assert!(Instant::now() < end, "the log drains");
            self.listen(Duration::from_millis(5));
            let contiguous = self.contiguous(&hello);
            if contiguous != acknowledged {
                acknowledged = contiguous;
                let (epoch, seq) = contiguous.unwrap();
                let epoch = kinara_protocol::frame::Epoch(epoch);
                assert_eq!(self.request(Op::Ack { epoch, seq }), Outcome::Ok);
                continue;
            }
            let now = self.hello();
            if now.stored_frames == 0 {
                return;
            }
            let hole = self.frames.keys().next_back() > acknowledged.as_ref();
            if hole && self.next(Duration::from_millis(200)).is_none() {
                let (epoch, seq) = now.oldest;
                assert_eq!(self.request(Op::ResendFrom { epoch, seq }), Outcome::Ok);
            }
        }
    }

    /// All samples of all frames.
    pub fn samples(&self) -> BTreeSet<Sample> {
        let mut samples = BTreeSet::new();
        for ((epoch, _), bytes) in &self.frames {
            let Body::Samples(body) = FrameRef::parse(bytes).unwrap().body().unwrap() else { continue };
            for block in body.blocks() {
                for sample in block.samples() {
                    let values: Vec<_> = sample.values().iter().map(i32::to_string).collect();
                    let key = (format!("{epoch:016x}"), block.channel().0, sample.ticks.0, values.join(","));
                    assert!(samples.insert(key), "no sample is in two frames");
                }
            }
        }
        samples
    }
}
