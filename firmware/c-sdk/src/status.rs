//! What calls return.

/// 0 is good; everything else is negative, and the call has changed nothing.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// A pointer that has to point somewhere is null, or is not aligned.
    Null = -1,
    /// Not now: the handle was not initialised (or was shut down), or the link is not up.
    NotReady = -2,
    /// A time before one that was given earlier: times never go back.
    TimeWentBack = -3,
    /// An argument is none of those that the header lists, or a time of 2^48 ms or more.
    BadArgument = -4,
    /// The channel is not in the registry.
    UnknownChannel = -5,
    /// The channel has a sensor already.
    Taken = -6,
    /// `KINARA_MAX_SENSORS` are registered.
    Full = -7,
    /// Not as many values as a sample of the channel has.
    WrongCount = -8,
    /// The memory or the buffer has fewer bytes than the header says it needs.
    TooSmall = -9,
    /// The flash callbacks failed, or the flash has too few pages.
    Storage = -10,
    /// A request is longer than `KINARA_MAX_REQUEST` bytes.
    Overflow = -11,
    /// No room for one more reply: send what is outgoing with `kinara_step`, then call again.
    Busy = -12,
}

/// For `?` inside.
pub(crate) type Checked<T> = Result<T, Status>;

impl From<Checked<()>> for Status {
    fn from(checked: Checked<()>) -> Self {
        checked.err().unwrap_or(Self::Ok)
    }
}
