//! One link, from connection to disconnection.
//!
//! A stranger that gets past the accept list is turned away at once outside of all windows, and anybody who has not become
//! an authenticated gateway within [`PATIENCE`] or [`BONDED_PATIENCE`]. While a label window is open, a bonded gateway that
//! comes back is turned away until its end: a person stands there who wants to pair another one, and there is one link.
//!
//! What the application has to send goes out as fast as the host's queue takes it, replies beside frames: a reply waits
//! for its confirmation, and frames do not wait for that.

use core::cell::Cell;
use core::convert::Infallible;

use embassy_futures::select::{Either4, select, select4};
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_sync::channel::Channel;
use embassy_sync::signal::Signal;
use embassy_time::{Duration, Instant, Timer};
use kinara_protocol::control::{Outcome, Refusal};
use kinara_protocol::frame::MAX_FRAME;
use kinara_protocol::gatt;
use rand_core::{CryptoRng, RngCore};
use trouble_host::prelude::*;

use crate::controls::Command;
use crate::memory::{Peer, Storage};
use crate::pairing::{NotKept, Offering};
use crate::radio::{Capable, Radio, from_host, mirror_bonds, peer};
use crate::service::{MessageValue, Server};
use crate::{BondRequest, Happening, Wearable};

/// How long a link may stay without being authenticated, in a window: a person types a display's passkey.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// And outside of all windows, where a gateway has its bond at hand.
pub const BONDED_PATIENCE: Duration = Duration::from_secs(30);
/// Connection parameters asked for: the interval is one that several links of one gateway can share, and the
/// supervision timeout one that survives a body between the two.
const PARAMETERS: RequestedConnParams = RequestedConnParams {
    min_connection_interval: Duration::from_millis(30),
    max_connection_interval: Duration::from_millis(50),
    max_latency: 0,
    min_event_length: Duration::from_millis(0),
    max_event_length: Duration::from_millis(0),
    supervision_timeout: Duration::from_secs(9),
};
/// Replies that wait for the confirmation of the one before. With so many, the next request waits, not the next frame.
const MAX_REPLIES: usize = 8;
/// How long to wait for a packet of the host's pool.
const POOL_PAUSE: Duration = Duration::from_millis(5);
/// How often the standard services' values are looked at, and how often a temperature is told.
const VITALS_EVERY: Duration = Duration::from_secs(1);
const TEMPERATURE_EVERY: Duration = Duration::from_secs(15);
/// A link that was ended from here is given up after so long, whether the controller has said so or not.
const FAREWELL: Duration = Duration::from_secs(5);

type Gatt<'s, 'v> = GattConnection<'s, 'v, DefaultPacketPool>;

/// How a link went.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// Whether it was a gateway's.
    pub authenticated: bool,
}

/// How a link ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The controller says that it is gone.
    Gone,
    /// It shall be ended from here.
    TurnAway,
}

/// Serves a link to its end.
pub async fn serve<C, W, S, R>(
    stack: &Stack<'_, C, DefaultPacketPool>,
    server: &Server<'_>,
    radio: &Radio<'_, W, S, R>,
    connection: Connection<'_, DefaultPacketPool>,
    offering: Option<Offering>,
) -> Served
where
    C: Capable,
    W: Wearable,
    S: Storage,
    R: RngCore + CryptoRng,
{
    radio.wearable.happened(Happening::Connected(peer(connection.peer_identity().addr)));
    let welcome = offering.is_some() || connection.is_bonded_peer();
    let bondable = connection.set_bondable(offering.is_some());
    // An error here and there says that it is gone already.
    let Ok(gatt) = connection.with_attribute_server(&server.attributes) else {
        return Served { authenticated: false };
    };
    let link = Link {
        stack,
        server,
        radio,
        gatt: &gatt,
        offering,
        gateway: Cell::new(None),
        attempting: Cell::new(false),
        leaving: Cell::new(None),
        authenticated: Signal::new(),
        left: Signal::new(),
        replies: Channel::new(),
    };
    let end = if welcome && bondable.is_ok() { link.live().await } else { End::TurnAway };
    let authenticated = link.gateway.get().is_some();
    // Before the farewell: it takes a while, and a passkey that was used up is used up now.
    drop(link);
    if end == End::TurnAway {
        radio.wearable.happened(Happening::TurnedAway);
        farewell(&gatt).await;
    }
    radio.wearable.happened(Happening::Disconnected);
    Served { authenticated }
}

/// Ends a link and waits for the controller's word, so that its slot is free for the next one.
async fn farewell(gatt: &Gatt<'_, '_>) {
    gatt.raw().disconnect();
    let gone = async { while !matches!(gatt.next().await, GattConnectionEvent::Disconnected { .. }) {} };
    select(gone, Timer::after(FAREWELL)).await;
}

/// A link. However it ends, also with the controller in the middle of it, dropping it does what an end entails.
struct Link<'a, 's, 'r, 'c, 'v, C, W, S, R>
where
    W: Wearable,
    S: Storage,
    R: RngCore + CryptoRng,
{
    stack: &'a Stack<'s, C, DefaultPacketPool>,
    server: &'a Server<'v>,
    radio: &'a Radio<'r, W, S, R>,
    gatt: &'a Gatt<'c, 'a>,
    /// What was offered for this link's attempt.
    offering: Option<Offering>,
    /// The gateway, once the link is authenticated.
    gateway: Cell<Option<Peer>>,
    /// A passkey of ours is in use.
    attempting: Cell<bool>,
    /// The request whose reply is the last word on this link: it revoked its own bond.
    leaving: Cell<Option<u16>>,
    authenticated: Signal<NoopRawMutex, ()>,
    left: Signal<NoopRawMutex, ()>,
    replies: Channel<NoopRawMutex, MessageValue, MAX_REPLIES>,
}

impl<C, W, S, R> Link<'_, '_, '_, '_, '_, C, W, S, R>
where
    C: Capable,
    W: Wearable,
    S: Storage,
    R: RngCore + CryptoRng,
{
    async fn live(&self) -> End {
        let talking =
            select4(self.sending(), self.replying(), self.tuning(), self.minding_the_standard_services());
        match select4(self.listening(), talking, self.dismissed(), self.commanded()).await {
            Either4::First(end) => end,
            Either4::Second(never) => match never {
                Either4::First(never)
                | Either4::Second(never)
                | Either4::Third(never)
                | Either4::Fourth(never) => match never {},
            },
            Either4::Third(()) | Either4::Fourth(()) => End::TurnAway,
        }
    }

    /// Waits for a reason to end the link from here: nobody has paired, or its bond is gone.
    async fn dismissed(&self) {
        let patience = async {
            Timer::after(if self.offering.is_some() { PATIENCE } else { BONDED_PATIENCE }).await;
            if self.gateway.get().is_some() {
                core::future::pending::<()>().await;
            }
        };
        select(patience, self.left.wait()).await;
    }

    /// Waits for a command that ends the link. A button that is pressed in the middle of an attempt changes nothing:
    /// somebody is impatient.
    async fn commanded(&self) {
        loop {
            match self.radio.controls.command().await {
                Command::DropLink => return,
                Command::PressButton if self.attempting.get() => {}
                Command::PressButton => {
                    return self.radio.pairing.borrow_mut().press_button(Instant::now());
                }
            }
        }
    }

    async fn listening(&self) -> End {
        loop {
            let end = match self.gatt.next().await {
                GattConnectionEvent::Disconnected { .. } => Some(End::Gone),
                GattConnectionEvent::Gatt { event } => {
                    self.request(event).await;
                    None
                }
                event => self.security(event),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    fn security(&self, event: GattConnectionEvent<'_, '_, DefaultPacketPool>) -> Option<End> {
        match event {
            GattConnectionEvent::PassKeyDisplay(passkey) => {
                // From here on a bit of the passkey may be known, whatever comes of it.
                self.attempting.set(true);
                let now_offered = self.radio.pairing.borrow().offering(Instant::now());
                if self.offering.is_none() || self.offering != now_offered {
                    return Some(End::TurnAway);
                }
                if self.radio.pairing.borrow().has_display() {
                    self.radio.wearable.show_passkey(Some(passkey.value()));
                }
                None
            }
            GattConnectionEvent::BondLost if self.offering.is_some() => None,
            GattConnectionEvent::PairingComplete { security_level, bond } => {
                self.paired(security_level, bond.as_ref())
            }
            GattConnectionEvent::Encrypted { security_level, bond: Some(bond) } => {
                let known = from_host(&bond).peer;
                let pairing = self.radio.pairing.borrow();
                let counts = security_level.authenticated() && pairing.knows(known);
                if !counts || pairing.label_window_is_open(Instant::now()) {
                    return Some(End::TurnAway);
                }
                drop(pairing);
                self.welcome(known);
                None
            }
            GattConnectionEvent::PairingFailed(_)
            | GattConnectionEvent::BondLost
            | GattConnectionEvent::PassKeyConfirm(_)
            | GattConnectionEvent::PassKeyInput
            | GattConnectionEvent::OobRequest => Some(End::TurnAway),
            _ => None,
        }
    }

    /// The other side has paired: by the passkey that was offered, or in a way that does not count.
    fn paired(&self, level: SecurityLevel, bond: Option<&BondInformation>) -> Option<End> {
        let (Some(offering), Some(bond), true) =
            (self.offering, bond, level.authenticated() && self.attempting.get())
        else {
            return Some(End::TurnAway);
        };
        self.attempting.set(false);
        self.hide_passkey();
        let bond = from_host(bond);
        let kept = self.radio.pairing.borrow_mut().paired(bond, offering.offer, Instant::now());
        if kept.is_err() {
            self.radio.wearable.happened(Happening::NotStored);
            return Some(End::TurnAway);
        }
        mirror_bonds(self.stack, &self.radio.pairing.borrow());
        self.radio.wearable.happened(Happening::Paired(bond.peer));
        self.welcome(bond.peer);
        None
    }

    fn hide_passkey(&self) {
        if self.radio.pairing.borrow().has_display() {
            self.radio.wearable.show_passkey(None);
        }
    }

    fn welcome(&self, gateway: Peer) {
        self.gateway.set(Some(gateway));
        self.radio.pairing.borrow_mut().connected(gateway);
        self.radio.wearable.connected(gateway);
        self.authenticated.signal(());
        self.radio.controls.ring();
    }

    /// An ATT request. The table has checked what it may do.
    async fn request(&self, event: GattEvent<'_, '_, DefaultPacketPool>) {
        let reply = match event {
            GattEvent::Write(event) if event.handle() == self.server.control.handle => {
                self.control(event).await
            }
            GattEvent::Write(event) => {
                let switched = self.server.switched_by(event.handle());
                let on = event.with_data(|_, value| value.first().is_some_and(|flags| flags & 3 != 0));
                let reply = event.accept();
                if let Some(characteristic) = switched {
                    self.radio.wearable.subscribe(characteristic, on);
                    self.radio.controls.ring();
                }
                reply
            }
            GattEvent::Read(event) => {
                self.refresh(event.handle());
                event.accept()
            }
            event => event.accept(),
        };
        if let Ok(reply) = reply {
            reply.send().await;
        }
    }

    /// A request of ours. An attribute protocol that is done says nothing to Kinara; the reply does.
    async fn control<'e>(
        &self,
        event: WriteEvent<'e, '_, DefaultPacketPool>,
    ) -> Result<Reply<'e, DefaultPacketPool>, Error> {
        let Some(request) = event.with_data(|_, bytes| MessageValue::from_slice(bytes).ok()) else {
            return event.reject(AttErrorCode::INVALID_ATTRIBUTE_VALUE_LENGTH);
        };
        while self.replies.is_full() || !self.radio.wearable.takes_requests() {
            self.radio.controls.room().await;
        }
        self.radio.wearable.write(&request);
        while let Some(request) = self.radio.wearable.take_bond_request() {
            self.about_bonds(request);
        }
        self.radio.controls.ring();
        event.accept_unprocessed()
    }

    fn about_bonds(&self, request: BondRequest) {
        let now = Instant::now();
        let (request, outcome) = match request {
            BondRequest::Admit { request, secret, lives_s } => {
                let admitted = self.radio.pairing.borrow_mut().admit(secret, lives_s, now);
                let outcome = match admitted {
                    Ok(()) => Outcome::Ok,
                    Err(NotKept::OutOfSlots) => Outcome::Refused(Refusal::OutOfSlots),
                    Err(NotKept::Storage(_)) => Outcome::Refused(Refusal::Storage),
                };
                (request, outcome)
            }
            BondRequest::Revoke { request, bond } => {
                let revoked = self.radio.pairing.borrow_mut().revoke(bond, now);
                if revoked.is_ok() && self.gateway.get().is_some_and(|gateway| gateway.address == bond) {
                    self.leaving.set(Some(request));
                }
                mirror_bonds(self.stack, &self.radio.pairing.borrow());
                (request, revoked.map_or(Outcome::Refused(Refusal::Storage), |()| Outcome::Ok))
            }
        };
        self.radio.wearable.reply(request, outcome);
    }

    /// Puts the present value into the table before it is read.
    fn refresh(&self, handle: u16) {
        if handle != self.server.status.handle && handle != self.server.battery.handle {
            return;
        }
        // Flash that cannot be read leaves the last value; the application will say so.
        if let Some(status) = self.radio.wearable.status() {
            let status_set = self.gatt.set(&self.server.status, &status.encode());
            let battery_set = self.gatt.set(&self.server.battery, &status.battery_percent.unwrap_or(0));
            debug_assert!(status_set.is_ok() && battery_set.is_ok(), "both are of this table");
        }
    }

    async fn sending(&self) -> Infallible {
        let mut bytes = [0; MAX_FRAME];
        loop {
            self.radio.controls.outgoing().await;
            while let Some((characteristic, len)) = self.radio.wearable.outgoing(&mut bytes) {
                self.send(characteristic, &bytes[..len]).await;
            }
            self.radio.controls.made_room();
        }
    }

    async fn send(&self, characteristic: gatt::Characteristic, bytes: &[u8]) {
        match characteristic {
            gatt::Characteristic::Control => {
                let reply = MessageValue::from_slice(bytes).expect("a reply is at most MAX_MESSAGE long");
                // There is room: a request is not taken without it.
                self.replies.send(reply).await;
                self.radio.controls.made_room();
            }
            gatt::Characteristic::Stream => notify(&self.server.stream, self.gatt, bytes).await,
            gatt::Characteristic::Backlog => notify(&self.server.backlog, self.gatt, bytes).await,
            gatt::Characteristic::Status => notify(&self.server.status, self.gatt, bytes).await,
        }
    }

    async fn replying(&self) -> Infallible {
        loop {
            let reply = self.replies.receive().await;
            while let Err(Error::OutOfMemory) =
                self.server.control.indicate_raw(self.gatt, &reply, false).await
            {
                Timer::after(POOL_PAUSE).await;
            }
            self.radio.controls.made_room();
            let id = reply.first_chunk().map(|id| u16::from_le_bytes(*id));
            if id.is_some() && id == self.leaving.get() {
                self.left.signal(());
            }
        }
    }

    /// Asks for the connection parameters, once the link is authenticated: before, the central has other things to do.
    async fn tuning(&self) -> Infallible {
        self.authenticated.wait().await;
        // A central may refuse: it has reasons of its own.
        let _ = self.gatt.raw().update_connection_params(self.stack, &PARAMETERS).await;
        core::future::pending().await
    }

    /// Battery, Heart Rate, Health Thermometer. The host sends nothing of what nobody has subscribed to.
    async fn minding_the_standard_services(&self) -> Infallible {
        let (mut told, mut indicated) = (None, None);
        loop {
            Timer::after(VITALS_EVERY).await;
            if self.gateway.get().is_none() {
                continue;
            }
            let vitals = self.radio.wearable.vitals();
            if let Some((bytes, length)) = vitals.heart_rate_measurement() {
                notify(&self.server.heart_rate, self.gatt, &bytes[..length]).await;
            }
            let now = Instant::now();
            if indicated.is_none_or(|last| now >= last + TEMPERATURE_EVERY)
                && let Some(bytes) = vitals.temperature_measurement()
            {
                indicated = Some(now);
                // Its confirmation is waited for nowhere: the next one comes soon.
                let _ = self.server.temperature.indicate_raw(self.gatt, &bytes, false).await;
            }
            let level = self.radio.wearable.status().and_then(|status| status.battery_percent);
            if level != told {
                told = level;
                notify(&self.server.battery, self.gatt, &[level.unwrap_or(0)]).await;
            }
        }
    }
}

impl<C, W, S, R> Drop for Link<'_, '_, '_, '_, '_, C, W, S, R>
where
    W: Wearable,
    S: Storage,
    R: RngCore + CryptoRng,
{
    fn drop(&mut self) {
        let now = Instant::now();
        let mut pairing = self.radio.pairing.borrow_mut();
        if self.attempting.get() {
            pairing.attempt_failed(now);
            if pairing.has_display() {
                self.radio.wearable.show_passkey(None);
            }
            self.radio.wearable.happened(Happening::AttemptFailed);
        }
        if self.gateway.get().is_some() {
            pairing.disconnected(now);
            self.radio.wearable.disconnected();
        }
    }
}

/// Sends a notification, if the other side wants it. It waits for room in the host's queue and pool: a frame that was
/// taken from the application and not sent would be missed until the link ends.
async fn notify<T: AsGatt>(characteristic: &Characteristic<T>, gatt: &Gatt<'_, '_>, value: &[u8]) {
    while let Err(Error::OutOfMemory) = characteristic.notify_raw(gatt, value, false).await {
        Timer::after(POOL_PAUSE).await;
    }
    // Any other error is the link's end, which the connection tells as well.
}
