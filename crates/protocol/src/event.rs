//! The kinds of events there are.

/// One kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventKind {
    /// Its name in the database and the API.
    pub name: &'static str,
    /// Whether its producers say how sure they are.
    pub has_confidence: bool,
}

/// A hot flash, as a rule or a model finds it in what was measured.
pub const HOT_FLASH: EventKind = EventKind { name: "hot_flash", has_confidence: true };
/// A wearable's battery is low, as the wearable itself says: once on the way down to each of its steps.
pub const BATTERY_LOW: EventKind = EventKind { name: "battery_low", has_confidence: false };

/// Every kind that somebody produces.
pub const REGISTRY: &[EventKind] = &[HOT_FLASH, BATTERY_LOW];

/// The registry's entry of a name.
pub fn by_name(name: &str) -> Option<&'static EventKind> {
    REGISTRY.iter().find(|kind| kind.name == name)
}
