//! What the platform tells the radio while it runs. All of it is on one executor.

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_sync::channel::Channel;
use embassy_sync::signal::Signal;

/// Commands that wait. A person does not press a button more often.
const MAX_COMMANDS: usize = 8;

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The pairing button was pressed.
    PressButton,
    /// End the link, if there is one.
    DropLink,
}

/// See the module's text.
pub struct Controls {
    commands: Channel<NoopRawMutex, Command, MAX_COMMANDS>,
    outgoing: Signal<NoopRawMutex, ()>,
    room: Signal<NoopRawMutex, ()>,
}

impl Controls {
    /// Nothing is pressed.
    pub const fn new() -> Self {
        Self { commands: Channel::new(), outgoing: Signal::new(), room: Signal::new() }
    }

    /// Gives a command. One more than fit is dropped: the ones before it do the same.
    pub fn give(&self, command: Command) {
        let _ = self.commands.try_send(command);
    }

    /// The application may have something to send, or room for requests again. Call it after each step.
    pub fn ring(&self) {
        self.outgoing.signal(());
        self.room.signal(());
    }

    pub(crate) async fn command(&self) -> Command {
        self.commands.receive().await
    }

    pub(crate) async fn outgoing(&self) {
        self.outgoing.wait().await;
    }

    pub(crate) async fn room(&self) {
        self.room.wait().await;
    }

    pub(crate) fn made_room(&self) {
        self.room.signal(());
    }
}

impl Default for Controls {
    fn default() -> Self {
        Self::new()
    }
}
