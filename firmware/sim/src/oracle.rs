//! The oracle's log: what was produced, written before the application sees it.
//!
//! Text, one line each, appended:
//! `P <epoch> <channel> <ticks> <value[,value…]> <true utc_us>` a sample;
//! `B <epoch> <true utc_us of tick 0>` a boot; `R <epoch> <true utc_us>` a reset by command;
//! `F <epoch> <seq> <first ticks> <last ticks>` a frame is in flash;
//! `A <epoch> <ticks>` that frame is a time sync;
//! `O <epoch> <first seq> <last seq>` the ring drops frames that nobody acknowledged.
//!
//! **Promise.** The `P` lines of a step are given to the kernel in one write before the application sees the first of
//! its samples, so whatever a killed program has produced is on record. The other lines may lag by a step.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use kinara_firmware_app::log::{StoredFrame, Witness};
use kinara_protocol::frame::{Epoch, Kind, Seq};

use crate::crystal::Crystal;
use crate::signals::Happening;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Oracle {
    file: Option<File>,
    pending: String,
    produced: u64,
}

impl Oracle {
    /// Appends to a file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file: Some(file), ..Self::default() })
    }

    /// Samples produced since the program started.
    pub fn produced(&self) -> u64 {
        self.produced
    }

    /// Records samples that the application is about to see.
    pub fn produce(&mut self, epoch: Epoch, crystal: &Crystal, happenings: &[Happening]) -> io::Result<()> {
        for happening in happenings {
            let Happening::Sample { channel, ticks, values, components } = happening else { continue };
            self.produced += 1;
            if self.file.is_none() {
                continue;
            }
            self.put(format_args!("P {epoch} {} {} {}", channel.0, ticks.0, values[0]));
            for value in &values[1..usize::from(*components)] {
                self.put(format_args!(",{value}"));
            }
            self.put(format_args!(" {}\n", crystal.utc_us_of(ticks.0)));
        }
        self.flush()
    }

    /// Records a boot.
    pub fn boot(&mut self, epoch: Epoch, utc_us: i64) {
        // Before the boot's first frames, which are pending already.
        if self.file.is_some() {
            self.pending.insert_str(0, &format!("B {epoch} {utc_us}\n"));
        }
    }

    /// Records a reset by command.
    pub fn reset(&mut self, epoch: Epoch, utc_us: i64) {
        self.put(format_args!("R {epoch} {utc_us}\n"));
    }

    /// Gives what is pending to the kernel, in one write.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(file) = &mut self.file
            && !self.pending.is_empty()
        {
            file.write_all(self.pending.as_bytes())?;
        }
        self.pending.clear();
        Ok(())
    }

    fn put(&mut self, line: std::fmt::Arguments<'_>) {
        if self.file.is_some() {
            self.pending.write_fmt(line).expect("a string takes everything");
        }
    }
}

impl Witness for Oracle {
    fn stored(&mut self, frame: &StoredFrame) {
        let StoredFrame { id, kind, first, last } = frame;
        self.put(format_args!("F {} {} {} {}\n", id.epoch, id.seq, first.0, last.0));
        if *kind == Kind::SyncAnchor {
            self.put(format_args!("A {} {}\n", id.epoch, first.0));
        }
    }

    fn lost(&mut self, epoch: Epoch, first: Seq, last: Seq) {
        self.put(format_args!("O {epoch} {first} {last}\n"));
    }
}
