//! Why it started: what the chip remembers, and the last starts and faults, in memory that outlives a reset. (A loss of
//! power ends that memory, sooner or later; the boot anchors in flash have the reasons of all starts.)
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::panic::PanicInfo;

use embassy_nrf::pac::POWER;
use embassy_nrf::pac::power::regs::Resetreas;
use embassy_nrf::pac::power::vals::Threshold;
use kinara_firmware_app::app::MAX_STARTS;
use kinara_firmware_app::restarts;
use kinara_protocol::control::{PLACE_FILE, Place, Start};
use kinara_protocol::frame::{ResetReason, checksum};

/// The lowest that a cell's regulator is to give.
const SAGS_BELOW: Threshold = Threshold::V21;
const MAGIC: u32 = u32::from_le_bytes(*b"FLT3");
/// Reason, whether there is a place, line, length of the file's name, the name.
const ENTRY: usize = 1 + 1 + 4 + 1 + PLACE_FILE;
/// The fault that ended the last program comes after the starts.
const FAULT: usize = MAX_STARTS;

/// Plain bytes: any are a value.
#[repr(C)]
struct Kept {
    magic: u32,
    sum: u32,
    /// Faults in a row.
    faults: u32,
    entries: [[u8; ENTRY]; MAX_STARTS + 1],
}

struct Memory(UnsafeCell<MaybeUninit<Kept>>);

// SAFETY: it is written with interrupts off by a program that has failed, and by the next one at its start.
unsafe impl Sync for Memory {}

// Not touched by the start-up code.
#[unsafe(link_section = ".uninit.kept")]
static KEPT: Memory = Memory(UnsafeCell::new(MaybeUninit::uninit()));

/// No start: there is no such reason.
const NONE: u8 = 0xff;

impl Kept {
    const EMPTY: Self = Self { magic: MAGIC, sum: 0, faults: 0, entries: [[NONE; ENTRY]; MAX_STARTS + 1] };

    fn load() -> Self {
        // SAFETY: any bytes are a value, and nobody else uses it.
        let kept = unsafe { KEPT.0.get().cast::<Self>().read_volatile() };
        if kept.magic == MAGIC && kept.sum == kept.checksum() { kept } else { Self::EMPTY }
    }

    fn save(mut self) {
        self.sum = self.checksum();
        // SAFETY: as above.
        unsafe { KEPT.0.get().cast::<Self>().write_volatile(self) };
    }

    fn checksum(&self) -> u32 {
        checksum(self.entries.as_flattened()) ^ self.faults
    }

    fn start(&self, entry: usize) -> Option<Start> {
        let [reason, has_place, l0, l1, l2, l3, length, file @ ..] = &self.entries[entry];
        let file = file.get(..usize::from(*length))?;
        let place = (*has_place == 1).then(|| Place::new(file, u32::from_le_bytes([*l0, *l1, *l2, *l3])));
        (*reason != NONE).then_some(Start { reason: ResetReason::from_byte(*reason), place })
    }

    fn put(&mut self, entry: usize, start: &Start) {
        let bytes = &mut self.entries[entry];
        *bytes = [0; ENTRY];
        bytes[0] = start.reason.to_byte();
        if let Some(place) = &start.place {
            let file = place.file();
            bytes[1] = 1;
            bytes[2..6].copy_from_slice(&place.line.to_le_bytes());
            bytes[6] = file.len() as u8;
            bytes[7..][..file.len()].copy_from_slice(file);
        }
    }
}

/// Notes this start; why it is one, and how many faults in a row there are with it. Called once: the next call would count
/// another start.
pub fn count_start() -> (ResetReason, u32) {
    let mut kept = Kept::load();
    let by_the_chip = by_the_chip();
    let this = match kept.start(FAULT) {
        // A supply that recovered, and a reset of another kind later.
        Some(Start { reason: ResetReason::BrownOut, .. }) if by_the_chip != ResetReason::PowerOn => None,
        noted => noted,
    };
    let this = this.unwrap_or(Start { reason: by_the_chip, place: None });
    kept.entries.copy_within(..MAX_STARTS - 1, 1);
    kept.put(0, &this);
    kept.entries[FAULT] = [NONE; ENTRY];
    kept.faults = restarts::counted(kept.faults, this.reason);
    let faults = kept.faults;
    kept.save();
    watch_supply();
    (this.reason, faults)
}

/// The last starts, this one first.
pub fn starts() -> heapless::Vec<Start, MAX_STARTS> {
    let kept = Kept::load();
    (0..MAX_STARTS).map_while(|entry| kept.start(entry)).collect()
}

/// It has done all its work for long enough: the faults before this start are forgotten.
pub fn is_healthy() {
    let mut kept = Kept::load();
    kept.faults = 0;
    kept.save();
}

/// Has the chip watch its supply from now on.
fn watch_supply() {
    POWER.events_pofwarn().write_value(0);
    POWER.pofcon().write(|watch| {
        watch.set_threshold(SAGS_BELOW);
        watch.set_pof(true);
    });
}

/// Whether the supply has sagged: then whatever comes next, should it be a loss of power, was a brown-out. To be called often:
/// the chip has no reset reason for it, and its interrupt is the controller's.
pub fn look_at_supply() {
    if POWER.events_pofwarn().read() == 0 {
        return;
    }
    POWER.events_pofwarn().write_value(0);
    let mut kept = Kept::load();
    kept.put(FAULT, &Start { reason: ResetReason::BrownOut, place: None });
    kept.save();
}

/// Forgets it.
fn by_the_chip() -> ResetReason {
    let reasons = POWER.resetreas().read();
    // A bit is cleared by a one.
    POWER.resetreas().write_value(Resetreas(u32::MAX));
    if reasons.lockup() {
        ResetReason::Fault
    } else if reasons.dog() {
        ResetReason::Watchdog
    } else if reasons.sreq() {
        ResetReason::Requested
    } else {
        // Power, the reset pin, or the end of System OFF.
        ResetReason::PowerOn
    }
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    cortex_m::interrupt::disable();
    let place = info.location().map(|place| Place::new(place.file().as_bytes(), place.line()));
    let mut kept = Kept::load();
    kept.put(FAULT, &Start { reason: ResetReason::Fault, place });
    kept.save();
    cortex_m::peripheral::SCB::sys_reset()
}

#[cortex_m_rt::exception]
unsafe fn HardFault(_: &cortex_m_rt::ExceptionFrame) -> ! {
    panic!("hard fault")
}
