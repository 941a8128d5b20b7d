//! How much memory decoded messages take, and how much they may by the limits. A vector that grew has room for twice what
//! is in it at most.

use kinara_protocol::envelope::{
    AdapterState, Batch, Decision, DeviceFrames, DeviceState, Event, EventBatch, Fit, Gap, Live, LiveDevice,
    LiveValue, Series, State,
};
use kinara_protocol::limits::{
    ADAPTERS, ALL_LIVE_VALUES, ALL_SERIES, DEVICES, EVENTS, FRAMES, MAX_OPENED, MAX_OPENED_SMALL, NOTES,
    NUMBERS, RANGE_NUMBERS, STATE_DEVICES, VALUES,
};

const fn of<T>(items: usize) -> usize {
    // A small vector starts with room for four.
    2 * (items + 4) * size_of::<T>()
}

/// Texts are copied: no longer than the message itself.
const fn texts(opened: usize) -> usize {
    2 * opened
}

pub const MOST_OF_BATCH: usize = texts(MAX_OPENED)
    + of::<DeviceFrames>(DEVICES)
    + of::<Series>(ALL_SERIES)
    + of::<i64>(FRAMES)
    + of::<Vec<u8>>(FRAMES)
    + of::<Fit>(FRAMES)
    + of::<u32>(NUMBERS)
    + of::<i32>(VALUES)
    + (DEVICES + ALL_SERIES) * 64 * 8;
pub const MOST_OF_EVENTS: usize = texts(MAX_OPENED)
    + of::<Event>(EVENTS)
    + of::<Gap>(EVENTS)
    + of::<Decision>(EVENTS)
    + of::<u32>(RANGE_NUMBERS)
    + EVENTS * 64;
pub const MOST_OF_STATE: usize = texts(MAX_OPENED_SMALL)
    + of::<DeviceState>(STATE_DEVICES)
    + of::<AdapterState>(ADAPTERS)
    + of::<String>(NOTES)
    + of::<u32>(RANGE_NUMBERS)
    + STATE_DEVICES * 64;
pub const MOST_OF_LIVE: usize = texts(MAX_OPENED_SMALL)
    + of::<LiveDevice>(STATE_DEVICES)
    + of::<LiveValue>(ALL_LIVE_VALUES)
    + ALL_LIVE_VALUES * 8 * 4
    + STATE_DEVICES * 4 * size_of::<LiveValue>();

fn vec<T>(items: &Vec<T>) -> usize {
    items.capacity() * size_of::<T>()
}

fn all<T>(items: &Vec<T>, each: impl Fn(&T) -> usize) -> usize {
    vec(items) + items.iter().map(each).sum::<usize>()
}

pub fn batch(batch: &Batch) -> usize {
    all(&batch.devices, |device| {
        device.hardware_id.capacity()
            + vec(&device.seq_ranges)
            + vec(&device.kinds)
            + vec(&device.ticks)
            + vec(&device.crcs)
            + vec(&device.block_order)
            + vec(&device.fits)
            + vec(&device.fit_of)
            + all(&device.other_frames, Vec::capacity)
            + all(&device.series, |series| {
                vec(&series.counts)
                    + vec(&series.offsets)
                    + vec(&series.intervals)
                    + vec(&series.tick_deltas)
                    + vec(&series.values)
            })
    })
}

pub fn events(batch: &EventBatch) -> usize {
    all(&batch.events, |event| event.hardware_id.capacity() + event.data_json.capacity())
        + all(&batch.gaps, |gap| gap.hardware_id.capacity() + vec(&gap.seq_ranges))
        + all(&batch.decisions, |decision| decision.id.capacity() + decision.signature.capacity())
}

pub fn state(state: &State) -> usize {
    all(&state.notes, String::capacity)
        + all(&state.adapters, |adapter| adapter.name.capacity() + adapter.address.capacity())
        + all(&state.devices, |device| {
            device.hardware_id.capacity()
                + device.problem.capacity()
                + device.delivered.as_ref().map_or(0, |delivered| vec(&delivered.seq_ranges))
        })
}

pub fn live(live: &Live) -> usize {
    all(&live.devices, |device| {
        device.hardware_id.capacity() + all(&device.values, |value| vec(&value.value))
    })
}
