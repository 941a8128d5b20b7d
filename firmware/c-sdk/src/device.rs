//! What stands behind a handle: the application, its sensors, and what the radio could not take yet.

use kinara_firmware_app::app::{App, DeviceIdentity, Effect, Recovered, Settings};
use kinara_firmware_app::framing::FrameAge;
use kinara_firmware_app::plan::Plan;
use kinara_firmware_app::signal::hot_flash::{Judgement, SternalRule};
use kinara_protocol::channel::{self, ACTIVITY_COUNTS, ChannelId, EDA};
use kinara_protocol::control::{MAX_MESSAGE, Outcome, Refusal};
use kinara_protocol::frame::{MAX_FRAME, ResetReason, TICKS_END, Ticks};
use kinara_protocol::gatt;
use kinara_protocol::status::STATUS_LEN;

use crate::config::{Asked, AskedKind, Characteristic, Config, FlashPort, Transport};
use crate::status::{Checked, Status};

/// The most sensors of a device.
pub const MAX_SENSORS: usize = 16;

/// Bytes that the radio did not take.
struct Waiting {
    characteristic: Characteristic,
    bytes: [u8; MAX_FRAME],
    length: usize,
}

/// See the module.
pub struct Device {
    app: App<FlashPort>,
    transport: Transport,
    sensors: [Option<ChannelId>; MAX_SENSORS],
    rule: SternalRule,
    waiting: Option<Waiting>,
    linked: bool,
    /// The latest time of a reading, and of a call.
    read_at: Ticks,
    now: Ticks,
}

impl Device {
    /// Starts: recovers what the flash holds. Inlined, so that 14 KiB are not moved once more over the stack.
    #[expect(clippy::inline_always, reason = "measured: a third of the stack that a start takes")]
    #[inline(always)]
    pub fn start(config: &Config) -> Checked<Self> {
        if !config.flash.is_whole() || config.transport.send.is_none() {
            return Err(Status::Null);
        }
        let reason = match config.reset_reason {
            0 => ResetReason::PowerOn,
            1 => ResetReason::Requested,
            2 => ResetReason::Watchdog,
            3 => ResetReason::BrownOut,
            4 => ResetReason::Fault,
            _ => return Err(Status::BadArgument),
        };
        let settings = Settings {
            identity: DeviceIdentity { factory_id: config.factory_id, firmware: config.firmware },
            plan: Plan::default(),
            frame_age: FrameAge::default(),
        };
        if config.now_ms >= TICKS_END {
            return Err(Status::BadArgument);
        }
        let now = Ticks(config.now_ms);
        let app = Recovered::boot(config.flash, settings, reason, config.entropy, now, &mut ()).map(App::new);
        Ok(Self {
            app: app.map_err(|_| Status::Storage)?,
            transport: config.transport,
            sensors: [None; MAX_SENSORS],
            rule: SternalRule::new(),
            waiting: None,
            linked: false,
            read_at: now,
            now,
        })
    }

    /// A sensor for a channel; its number.
    pub fn register(&mut self, channel: u16) -> Checked<u32> {
        let channel = ChannelId(channel);
        if channel::by_id(channel).is_none() {
            return Err(Status::UnknownChannel);
        }
        if self.sensors.contains(&Some(channel)) {
            return Err(Status::Taken);
        }
        let free = self.sensors.iter().position(Option::is_none).ok_or(Status::Full)?;
        self.sensors[free] = Some(channel);
        Ok(free as u32)
    }

    /// A sample of a sensor.
    pub fn push(&mut self, sensor: u32, ticks: Ticks, values: &[i32]) -> Checked<()> {
        let channel = self.sensors.get(sensor as usize).copied().flatten().ok_or(Status::BadArgument)?;
        let known = channel::by_id(channel).ok_or(Status::UnknownChannel)?;
        if values.len() != usize::from(known.components) {
            return Err(Status::WrongCount);
        }
        if ticks.0 >= TICKS_END {
            return Err(Status::BadArgument);
        }
        if ticks < self.read_at {
            return Err(Status::TimeWentBack);
        }
        self.app.sample(channel, ticks, values, &mut ()).map_err(|_| Status::Storage)?;
        self.read_at = ticks;
        match (channel, values) {
            (EDA, &[nanosiemens]) => self.rule.eda(ticks, nanosiemens),
            (ACTIVITY_COUNTS, &[counts]) => self.rule.activity(ticks, counts),
            _ => {}
        }
        Ok(())
    }

    /// Whether somebody wears it.
    pub fn worn(&mut self, now: Ticks, worn: bool) -> Checked<()> {
        self.pass(now)?;
        self.app.set_worn(worn, now, &mut ()).map_err(|_| Status::Storage)
    }

    /// What is due, and what the radio takes.
    pub fn step(&mut self, now: Ticks) -> Checked<()> {
        self.pass(now)?;
        let stepped = self.app.step(now, &mut ()).map_err(|_| Status::Storage);
        while let Some(effect) = self.app.take_effect() {
            self.ask(effect);
        }
        stepped?;
        self.send()
    }

    /// What the rule says of the last minute.
    pub fn predict(&mut self, now: Ticks) -> Checked<Judgement> {
        self.pass(now)?;
        Ok(self.rule.judge(now))
    }

    /// A bonded gateway has an encrypted link.
    pub fn link_up(&mut self) {
        self.waiting = None;
        self.linked = true;
        self.app.connected();
    }

    /// The link is gone.
    pub fn link_down(&mut self) -> Checked<()> {
        self.waiting = None;
        self.linked = false;
        self.app.disconnected().map_err(|_| Status::Storage)
    }

    /// Notifications are switched.
    pub fn subscribe(&mut self, characteristic: u32, on: bool) -> Checked<()> {
        let characteristic =
            gatt::Characteristic::ALL.get(characteristic as usize).ok_or(Status::BadArgument)?;
        self.must_be_linked()?;
        self.app.subscribe(*characteristic, on);
        Ok(())
    }

    /// The gateway wrote to `control`.
    pub fn request(&mut self, now: Ticks, bytes: &[u8]) -> Checked<()> {
        self.pass(now)?;
        self.must_be_linked()?;
        if bytes.len() > MAX_MESSAGE {
            return Err(Status::Overflow);
        }
        if !self.app.takes_requests() {
            return Err(Status::Busy);
        }
        self.app.write(bytes, now, &mut ());
        Ok(())
    }

    /// What `status` says when it is read.
    pub fn status(&mut self, now: Ticks) -> Checked<[u8; STATUS_LEN]> {
        self.pass(now)?;
        Ok(self.app.status(now).map_err(|_| Status::Storage)?.encode())
    }

    /// How a request about bonds ended.
    pub fn bond_reply(&mut self, request: u16, done: bool) -> Checked<()> {
        self.must_be_linked()?;
        self.app.reply(request, if done { Outcome::Ok } else { Outcome::Refused(Refusal::Storage) });
        Ok(())
    }

    /// Makes everything known survive.
    pub fn shut_down(&mut self) -> Checked<()> {
        self.app.shut_down(&mut ()).map_err(|_| Status::Storage)
    }

    fn must_be_linked(&self) -> Checked<()> {
        if self.linked { Ok(()) } else { Err(Status::NotReady) }
    }

    fn pass(&mut self, now: Ticks) -> Checked<()> {
        if now.0 >= TICKS_END {
            return Err(Status::BadArgument);
        }
        if now < self.now {
            return Err(Status::TimeWentBack);
        }
        self.now = now;
        Ok(())
    }

    fn send(&mut self) -> Checked<()> {
        loop {
            let waiting = match self.waiting.take() {
                Some(waiting) => waiting,
                None => match self.next()? {
                    Some(next) => next,
                    None => return Ok(()),
                },
            };
            let bytes = &waiting.bytes[..waiting.length];
            if self.transport.send(waiting.characteristic, bytes).is_err() {
                self.waiting = Some(waiting);
                return Ok(());
            }
        }
    }

    fn next(&mut self) -> Checked<Option<Waiting>> {
        let mut bytes = [0; MAX_FRAME];
        let next = self.app.outgoing(self.now, &mut bytes, &mut ()).map_err(|_| Status::Storage)?;
        Ok(next.map(|(characteristic, length)| Waiting {
            characteristic: characteristic.into(),
            bytes,
            length,
        }))
    }

    fn ask(&mut self, effect: Effect) {
        let nothing =
            Asked { kind: AskedKind::Identify, request: 0, lives_s: 0, secret: [0; 16], bond: [0; 6] };
        let (asked, request) = match effect {
            Effect::Identify => (nothing, None),
            Effect::Reset => (Asked { kind: AskedKind::Reset, ..nothing }, None),
            Effect::Admit { request, secret, lives_s } => {
                (Asked { kind: AskedKind::Admit, request, lives_s, secret, ..nothing }, Some(request))
            }
            Effect::Revoke { request, bond } => {
                (Asked { kind: AskedKind::Revoke, request, bond, ..nothing }, Some(request))
            }
            Effect::Update { request, .. } => {
                // A device of another maker is updated by its maker's own means.
                return self.app.reply(request, Outcome::Refused(Refusal::UnknownOperation));
            }
        };
        if !self.transport.ask(&asked)
            && let Some(request) = request
        {
            // Nobody to ask: the gateway is told that it was not done.
            self.app.reply(request, Outcome::Refused(Refusal::UnknownOperation));
        }
    }
}
