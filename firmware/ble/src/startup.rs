//! Knows when the host has ended its start-up.
//!
//! trouble-host 0.8.0 skips its first resolving list, without a word, when advertising was asked for before its start-up
//! has ended: the wearable would then advertise its identity address. The host tells nobody, but the controller
//! hears it: the last commands of a start-up are known. [`Watched`] stands between the two and listens.

use core::cell::Cell;

use bt_hci::cmd::le::{LeSetAddrResolutionEnable, LeSetResolvablePrivateAddrTimeout};
use bt_hci::cmd::{AsyncCmd, Cmd, Error, Opcode, SyncCmd};
use bt_hci::controller::{Controller, ControllerCmdAsync, ControllerCmdSync};
use bt_hci::{ControllerToHostPacket, data};
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_sync::signal::Signal;

/// Whether private addresses are on. It decides how a start-up ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privacy {
    /// The controller makes private addresses, from the identity's key.
    Controller,
    /// The identity address is on the air. For tests of other stacks only.
    Off,
}

/// One start-up.
pub struct Startup {
    privacy: Privacy,
    resolutions: Cell<u8>,
    ended: Signal<NoopRawMutex, ()>,
}

impl Startup {
    /// Before it begins.
    pub fn new(privacy: Privacy) -> Self {
        Self { privacy, resolutions: Cell::new(0), ended: Signal::new() }
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        self.ended.wait().await;
    }

    fn executed(&self, opcode: Opcode) {
        let ended = match self.privacy {
            // Address resolution is switched off, the list is written, and it is switched on again.
            Privacy::Controller if opcode == LeSetAddrResolutionEnable::OPCODE => {
                self.resolutions.set(self.resolutions.get().saturating_add(1));
                self.resolutions.get() == 2
            }
            Privacy::Off => opcode == LeSetResolvablePrivateAddrTimeout::OPCODE,
            Privacy::Controller => false,
        };
        if ended {
            self.ended.signal(());
        }
    }
}

/// A controller whose commands a [`Startup`] hears.
pub struct Watched<'a, C> {
    controller: C,
    startup: &'a Startup,
}

impl<'a, C> Watched<'a, C> {
    /// Listens to this controller.
    pub fn new(controller: C, startup: &'a Startup) -> Self {
        Self { controller, startup }
    }
}

impl<C: Controller> embedded_io::ErrorType for Watched<'_, C> {
    type Error = C::Error;
}

impl<C: Controller> Controller for Watched<'_, C> {
    type Buffer<'b> = C::Buffer<'b>;

    fn alloc_buf(&self) -> Result<Self::Buffer<'_>, Self::Error> {
        self.controller.alloc_buf()
    }

    async fn write_acl_data(&self, packet: &data::AclPacket<'_>) -> Result<(), Self::Error> {
        self.controller.write_acl_data(packet).await
    }

    async fn write_sync_data(&self, packet: &data::SyncPacket<'_>) -> Result<(), Self::Error> {
        self.controller.write_sync_data(packet).await
    }

    async fn write_iso_data(&self, packet: &data::IsoPacket<'_>) -> Result<(), Self::Error> {
        self.controller.write_iso_data(packet).await
    }

    async fn read<'b>(
        &self,
        buf: &'b mut Self::Buffer<'_>,
    ) -> Result<ControllerToHostPacket<'b>, Self::Error> {
        self.controller.read(buf).await
    }
}

impl<C: ControllerCmdSync<T>, T: SyncCmd> ControllerCmdSync<T> for Watched<'_, C> {
    async fn exec(&self, cmd: &T) -> Result<T::Return, Error<Self::Error>> {
        let done = self.controller.exec(cmd).await;
        self.startup.executed(T::OPCODE);
        done
    }
}

impl<C: ControllerCmdAsync<T>, T: AsyncCmd> ControllerCmdAsync<T> for Watched<'_, C> {
    async fn exec(&self, cmd: &T) -> Result<(), Error<Self::Error>> {
        self.controller.exec(cmd).await
    }
}
