//! What a boot finds in flash of the one before.

use kinara_protocol::frame::{Body, FrameRef, MAX_FRAME, PreviousBoot, Ticks};

use crate::flash::Flash;
use crate::ring::{Ring, RingError};

/// Pages looked at for the last tick of the previous boot. Its newest samples are in its newest frames; the pages
/// before are looked at because a frame of another class may have closed in between.
const RECENT_PAGES: u32 = 2;

/// The last tick of a frame's samples. An anchor has none: it goes to flash at once, while samples before it may still
/// be in memory, and those are lost with a reset.
fn last_sample(frame: &FrameRef<'_>) -> Option<Ticks> {
    match frame.body() {
        Ok(Body::Samples(samples)) => {
            samples.blocks().filter_map(|block| block.samples().last()).map(|sample| sample.ticks).max()
        }
        _ => None,
    }
}

/// The boot before this one, as far as the flash remembers it.
pub fn previous<F: Flash>(ring: &mut Ring<F>) -> Result<Option<PreviousBoot>, RingError<F::Error>> {
    let Some(newest) = ring.last() else { return Ok(None) };
    let mut last_ticks = Ticks(0);
    let mut at = ring.recent(RECENT_PAGES);
    while let Some(entry) = ring.entry_at(at)? {
        at = entry.end;
        if entry.id.epoch != newest.epoch {
            continue;
        }
        let mut bytes = [0; MAX_FRAME];
        if let Ok(frame) = FrameRef::parse(ring.read(&entry, &mut bytes)?) {
            last_ticks = last_ticks.max(last_sample(&frame).unwrap_or_default());
        }
    }
    Ok(Some(PreviousBoot {
        epoch: newest.epoch,
        next_seq: newest.seq + 1,
        last_ticks,
        last_sync: ring.last_sync().filter(|(boot, _)| *boot == newest.epoch.boot()).map(|(_, sync)| sync),
    }))
}
