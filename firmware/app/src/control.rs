//! The `control` requests and their replies.

use kinara_protocol::control::{
    Hello, MAX_ADMISSION_S, Op, Outcome, PROTOCOL_VERSION, Refusal, Reply, Request,
};
use kinara_protocol::frame::{SyncAnchor, Ticks};

use crate::app::{App, Effect};
use crate::delivery::MAX_WINDOW;
use crate::flash::Flash;
use crate::log::Witness;
use crate::ring::{Identity, RingError};
use crate::update::Ask;

/// The largest plausible UTC of a time sync, in µs: the year 2200.
const LAST_UTC_US: i64 = 7_258_118_400_000_000;

impl<F: Flash> App<F> {
    /// Answers one request. `None`: bytes that are no request have no id to answer to, and what concerns bonds the
    /// platform answers.
    pub(crate) fn answer(&mut self, bytes: &[u8], now: Ticks, witness: &mut impl Witness) -> Option<Reply> {
        let (id, outcome) = match Request::decode(bytes).ok()? {
            Err(id) => (id, Outcome::Refused(Refusal::UnknownOperation)),
            Ok(request) => {
                let outcome = self.perform(request, now, witness);
                (request.id, outcome.unwrap_or(Some(Outcome::Refused(Refusal::Storage)))?)
            }
        };
        Some(Reply { id, outcome })
    }

    fn perform(
        &mut self,
        request: Request,
        now: Ticks,
        witness: &mut impl Witness,
    ) -> Result<Option<Outcome>, RingError<F::Error>> {
        Ok(Some(match request.op {
            Op::Hello => Outcome::Hello(self.hello(now)?),
            Op::TimeProbe => Outcome::Time(now),
            Op::SetTime { ticks, utc_us, uncertainty_us } => {
                if ticks > now || !(0..LAST_UTC_US).contains(&utc_us) {
                    return Ok(Some(Outcome::Refused(Refusal::BadField)));
                }
                self.log.sync(&SyncAnchor { ticks, utc_us, uncertainty_us }, witness)?;
                Outcome::Ok
            }
            Op::Ack { epoch, seq } => {
                match self.delivery.acknowledge(&mut self.log, Identity { epoch, seq })? {
                    Ok(()) => Outcome::Ok,
                    Err(_) => Outcome::Refused(Refusal::NotInLog),
                }
            }
            Op::ResendFrom { epoch, seq } => {
                if self.delivery.resend(&mut self.log, Identity { epoch, seq })? {
                    Outcome::Ok
                } else {
                    Outcome::Refused(Refusal::NotInLog)
                }
            }
            Op::StartBacklog { window } => {
                if !(1..=MAX_WINDOW).contains(&window) {
                    return Ok(Some(Outcome::Refused(Refusal::BadField)));
                }
                self.delivery.start(&mut self.log, window);
                Outcome::Ok
            }
            Op::StreamOn => {
                self.delivery.set_stream(true);
                Outcome::Ok
            }
            Op::StreamOff => {
                self.delivery.set_stream(false);
                Outcome::Ok
            }
            Op::Identify => {
                self.effect(Effect::Identify);
                Outcome::Ok
            }
            Op::CloseFrame => {
                self.close_for_good(witness)?;
                Outcome::Ok
            }
            Op::HandOver => {
                self.close_for_good(witness)?;
                Outcome::Boundary { epoch: self.log.epoch(), next_seq: self.log.next_seq() }
            }
            Op::Format => {
                self.log.format(self.next_log_id)?;
                self.effect(Effect::Reset);
                Outcome::Ok
            }
            Op::SetPlan { ppg, acceleration } => {
                self.plan.ppg = ppg;
                self.plan.acceleration = acceleration;
                Outcome::Ok
            }
            Op::SetIntervals(intervals) => self.set_intervals(intervals, now, witness)?,
            Op::TellIntervals => Outcome::Intervals(self.plan.intervals),
            Op::Admit { lives_s, .. } if !(1..=MAX_ADMISSION_S).contains(&lives_s) => {
                Outcome::Refused(Refusal::BadField)
            }
            Op::Admit { secret, lives_s } => {
                return Ok(self.delegate(Effect::Admit { request: request.id, secret, lives_s }));
            }
            Op::Revoke { bond } => return Ok(self.delegate(Effect::Revoke { request: request.id, bond })),
            Op::UpdateStart { size, image } => return Ok(self.update(request.id, Ask::Start { size, image })),
            Op::UpdateData { offset, bytes } => {
                return Ok(self.update(request.id, Ask::Data { offset, bytes }));
            }
            Op::UpdateFinish => return Ok(self.update(request.id, Ask::Finish)),
            Op::OldestHeld => {
                let Identity { epoch, seq } = self.log.oldest_held()?;
                Outcome::OldestHeld { epoch, seq }
            }
            Op::WhyStarted { back } => match self.starts.get(usize::from(back)) {
                Some(start) => Outcome::Started(*start),
                None => Outcome::Refused(Refusal::NotInLog),
            },
        }))
    }

    fn close_for_good(&mut self, witness: &mut impl Witness) -> Result<(), RingError<F::Error>> {
        self.close_frames(witness)?;
        self.log.ring().persist_acknowledged()
    }

    fn update(&mut self, request: u16, ask: Ask) -> Option<Outcome> {
        self.delegate(Effect::Update { request, ask })
    }

    fn hello(&mut self, now: Ticks) -> Result<Hello, RingError<F::Error>> {
        let oldest = self.log.oldest()?;
        Ok(Hello {
            protocol: PROTOCOL_VERSION,
            factory_id: self.identity.factory_id,
            firmware: self.identity.firmware,
            epoch: self.log.epoch(),
            ticks: now,
            oldest: (oldest.epoch, oldest.seq),
            next_seq: self.log.next_seq(),
            stored_frames: self.log.unacknowledged(),
        })
    }
}
