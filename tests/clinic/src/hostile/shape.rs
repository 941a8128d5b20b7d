//! The envelopes' shapes, so that a mutation hits a field and not only a byte.

/// What a field holds.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// A number of up to ten bytes, folded or not.
    Number,
    /// Eight bytes.
    Eight,
    /// Four bytes.
    Four,
    /// Bytes or text.
    Bytes,
    /// A packed list of numbers.
    List,
    /// A message.
    Message(&'static [(u32, Shape)]),
}

use Shape::{Bytes, Eight, Four, List, Message, Number};

const NAME: &[(u32, Shape)] = &[(1, Bytes), (2, Eight), (3, Number)];
const SERIES: &[(u32, Shape)] =
    &[(1, Number), (2, Number), (3, Number), (4, List), (5, List), (6, List), (7, List), (8, List)];
const FIT: &[(u32, Shape)] = &[(1, Number), (2, Number), (3, Number), (4, Number), (5, Number), (6, Number)];
const DEVICE_FRAMES: &[(u32, Shape)] = &[
    (1, Bytes),
    (2, Eight),
    (3, List),
    (4, List),
    (5, List),
    (6, Bytes),
    (7, Message(SERIES)),
    (8, List),
    (9, Bytes),
    (10, Message(FIT)),
    (11, List),
];
const EVENT: &[(u32, Shape)] = &[
    (1, Bytes),
    (2, Bytes),
    (3, Bytes),
    (4, Eight),
    (5, Number),
    (6, Number),
    (7, Number),
    (8, Number),
    (9, Bytes),
    (10, Four),
    (11, Bytes),
    (12, Number),
];
const GAP: &[(u32, Shape)] = &[(1, Bytes), (2, Eight), (3, List), (4, Bytes), (5, Number), (6, Number)];
const ACTOR: &[(u32, Shape)] = &[(1, Bytes), (2, Bytes), (3, Bytes)];
const BOUNDARY: &[(u32, Shape)] = &[(1, Eight), (2, Number)];
const DECISION: &[(u32, Shape)] = &[
    (1, Bytes),
    (2, Number),
    (3, Number),
    (4, Message(ACTOR)),
    (10, Message(&[(1, Bytes), (2, Bytes)])),
    (11, Message(&[(1, Bytes), (2, Bytes), (3, Bytes), (4, Bytes), (5, Bytes), (6, Bytes)])),
    (12, Message(&[(1, Bytes)])),
    (13, Message(&[(1, Bytes), (2, Bytes), (3, Bytes), (4, Message(BOUNDARY)), (5, Bytes)])),
    (14, Message(&[(1, Bytes), (2, Message(BOUNDARY))])),
    (15, Message(&[(1, Bytes), (2, Bytes), (3, Bytes)])),
    (16, Message(&[(1, Bytes)])),
    (30, Bytes),
];
const LIVE_VALUE: &[(u32, Shape)] = &[(1, Number), (2, List), (3, Number), (4, Number), (5, Number)];
const DEVICE_STATE: &[(u32, Shape)] = &[
    (1, Bytes),
    (2, Number),
    (3, Number),
    (4, Number),
    (5, Number),
    (6, Number),
    (7, Number),
    (8, Number),
    (9, Bytes),
    (10, Bytes),
    (11, Eight),
    (12, Message(&[(1, Eight), (2, List)])),
];

/// `…/batch`, and the Protobuf form of `POST /ingest`.
pub const BATCH: &[(u32, Shape)] =
    &[(1, Number), (2, Message(NAME)), (3, Number), (4, Message(DEVICE_FRAMES))];
/// `…/event`.
pub const EVENT_BATCH: &[(u32, Shape)] = &[
    (1, Number),
    (2, Message(NAME)),
    (3, Number),
    (4, Message(EVENT)),
    (5, Message(GAP)),
    (6, Message(DECISION)),
];
/// `…/live`.
pub const LIVE: &[(u32, Shape)] =
    &[(1, Number), (2, Message(&[(1, Bytes), (2, Eight), (3, Message(LIVE_VALUE))]))];
/// `…/state`.
pub const STATE: &[(u32, Shape)] = &[
    (1, Number),
    (2, Number),
    (3, Bytes),
    (4, Eight),
    (5, Eight),
    (6, Eight),
    (7, Number),
    (8, Number),
    (9, Number),
    (10, Number),
    (11, Bytes),
    (12, Number),
    (13, Number),
    (14, Message(DEVICE_STATE)),
    (15, Eight),
    (16, Number),
    (17, Bytes),
    (18, Number),
    (19, Number),
    (20, Bytes),
    (21, Bytes),
    (22, Message(&[(1, Bytes), (2, Bytes), (3, Number), (4, Number)])),
];
/// `…/cmd/result`.
pub const COMMAND_RESULT: &[(u32, Shape)] = &[(1, Number), (2, Number), (3, Number), (4, Bytes)];
