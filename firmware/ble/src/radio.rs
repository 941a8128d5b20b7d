//! Advertises, and accepts one link at a time.
//!
//! Outside of all windows a wearable that has gateways listens to these alone: the controller takes links from the identities
//! on its accept list, and a stranger hears nothing but the advertisement. What the list cannot say is kept from the host.

use core::cell::{Cell, RefCell};
use core::convert::Infallible;
use core::pin::pin;

use bt_hci::cmd::le::{
    LeAddDeviceToFilterAcceptList, LeClearFilterAcceptList, LeReadLocalSupportedFeatures,
    LeSetScanResponseData,
};
use bt_hci::controller::ControllerCmdSync;
use embassy_futures::select::{Either, Either3, select, select3};
use embassy_time::{Duration, Instant, TimeoutError, Timer, with_timeout};
use kinara_protocol::advert::AdvertisingData;
use rand_core::{CryptoRng, RngCore};
use trouble_host::prelude::*;

use crate::controls::{Command, Controls};
use crate::link;
use crate::memory::{self, MAX_BONDS, Storage};
use crate::pairing::{Offering, Pairing};
use crate::service::{Nameplate, Server, Values};
use crate::startup::{Privacy, Startup, Watched};
use crate::{Happening, Wearable};

/// Advertising intervals in a window, and for [`EAGER`] after a link: a person or a gateway waits.
const EAGER_INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(150));
/// And at other times.
const PATIENT_INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(600));
/// How long a lost link is waited for at short intervals.
const EAGER: Duration = Duration::from_secs(60);
/// A controller that does not start or take an advertisement within this time takes nothing any more. A healthy one needs some
/// milliseconds, and the end of the command under way.
const CONTROLLER_PATIENCE: Duration = Duration::from_secs(30);
/// After an advertisement that the controller refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);

/// Bonds that the host holds: one more than ours while a pairing goes on, and one for its second entry of the same
/// gateway, by the address of the link, until the identity address is known.
const HOST_BONDS: usize = MAX_BONDS + 2;

/// What the host needs to be given: about 8 KiB that live as long as the controller.
pub type Resources = HostResources<DefaultPacketPool, 1, 1, 1, HOST_BONDS>;

/// A controller that this radio works on.
pub trait Capable:
    Controller
    + ControllerCmdSync<LeReadLocalSupportedFeatures>
    + ControllerCmdSync<LeClearFilterAcceptList>
    + ControllerCmdSync<LeAddDeviceToFilterAcceptList>
{
}

impl<C> Capable for C where
    C: Controller
        + ControllerCmdSync<LeReadLocalSupportedFeatures>
        + ControllerCmdSync<LeClearFilterAcceptList>
        + ControllerCmdSync<LeAddDeviceToFilterAcceptList>
{
}

/// How the radio is set up.
#[derive(Debug, Clone)]
pub struct Settings<'a> {
    /// What it is called.
    pub nameplate: Nameplate<'a>,
    /// Whether private addresses are on.
    pub privacy: Privacy,
    /// How long a private address serves, 1 s to 1 h. The standard recommends a quarter of an hour. One that changes
    /// between advertisement and connection costs its gateway a timeout.
    pub address_life: Duration,
}

/// What a radio works with: everything in it outlives a restart of the controller.
pub struct Radio<'a, W, S, R> {
    /// The application.
    pub wearable: &'a W,
    /// Windows and bonds.
    pub pairing: &'a RefCell<Pairing<S, R>>,
    /// The platform's commands.
    pub controls: &'a Controls,
    /// The set-up.
    pub settings: &'a Settings<'a>,
}

/// Runs until the controller fails, or answers nothing any more (`Error::Timeout`); the platform resets it and calls
/// again.
pub async fn run<C, W, S, R>(
    controller: C,
    resources: &mut Resources,
    radio: &Radio<'_, W, S, R>,
) -> Result<Infallible, BleHostError<C::Error>>
where
    C: Capable,
    W: Wearable,
    S: Storage,
    R: RngCore + CryptoRng,
{
    let startup = Startup::new(radio.settings.privacy);
    let stack = build(Watched::new(controller, &startup), resources, radio);
    mirror_bonds(&stack, &radio.pairing.borrow());
    let mut values = Values::new();
    let server = Server::new(&radio.settings.nameplate, &mut values);
    let mut runner = stack.runner();
    let running = pin!(runner.run());
    let living = pin!(async {
        if with_timeout(CONTROLLER_PATIENCE, startup.ended()).await.is_err() {
            return;
        }
        Life { stack: &stack, server: &server, radio, last_link: Cell::new(Instant::now()) }.live().await;
    });
    match select(running, living).await {
        Either::First(Ok(())) => Err(BleHostError::BleHost(Error::Other)),
        Either::First(Err(error)) => Err(error),
        Either::Second(()) => Err(BleHostError::BleHost(Error::Timeout)),
    }
}

/// Not inlined: what it is made of is not to lie on the stack for as long as the radio runs.
#[inline(never)]
fn build<'a, C, W, S, R>(
    controller: C,
    resources: &'a mut Resources,
    radio: &Radio<'_, W, S, R>,
) -> Stack<'a, C, DefaultPacketPool>
where
    C: Capable,
    S: Storage,
    R: RngCore + CryptoRng,
{
    let identity = radio.pairing.borrow().identity();
    let mut builder = trouble_host::new(controller, resources)
        .set_random_address(Address::random(reversed(identity.address)))
        .set_io_capabilities(IoCapabilities::DisplayOnly)
        .set_rpa_timeout(radio.settings.address_life);
    if radio.settings.privacy == Privacy::Controller
        && let Some(irk) = IdentityResolvingKey::from_le_bytes(identity.irk)
    {
        builder = builder.enable_privacy(irk);
    }
    builder.build()
}

/// Makes the host's bonds those that are stored: it takes up what pairs by any method, and drops nothing.
pub(crate) fn mirror_bonds<C: Controller, S: Storage, R: RngCore + CryptoRng>(
    stack: &Stack<'_, C, DefaultPacketPool>,
    pairing: &Pairing<S, R>,
) {
    let wanted: heapless::Vec<BondInformation, MAX_BONDS> = pairing.bonds().iter().map(to_host).collect();
    loop {
        let stray = stack.with_bond_information(|held| {
            held.iter().find(|bond| !wanted.contains(bond)).map(|bond| bond.identity)
        });
        let Some(identity) = stray else { break };
        // It was there a moment ago.
        let _ = stack.remove_bond_information(identity);
    }
    for bond in wanted {
        if !stack.with_bond_information(|held| held.contains(&bond)) {
            // Not `expect`, for the size of what prints an error.
            assert!(
                stack.add_bond_information(bond).is_ok(),
                "the host has room for all bonds that are stored"
            );
        }
    }
}

fn to_host(bond: &memory::Bond) -> BondInformation {
    let kind = if bond.peer.random { AddrKind::RANDOM } else { AddrKind::PUBLIC };
    let identity = Identity {
        addr: Address::new(kind, BdAddr::new(reversed(bond.peer.address))),
        irk: bond.irk.and_then(IdentityResolvingKey::from_le_bytes),
    };
    let ltk = LongTermKey::from_le_bytes(bond.ltk);
    BondInformation::new(identity, ltk, SecurityLevel::EncryptedAuthenticated, true)
}

pub(crate) fn from_host(bond: &BondInformation) -> memory::Bond {
    memory::Bond {
        peer: peer(bond.identity.addr),
        irk: bond.identity.irk.map(IdentityResolvingKey::to_le_bytes),
        ltk: bond.ltk.to_le_bytes(),
    }
}

pub(crate) fn peer(address: Address) -> memory::Peer {
    // The lowest bit tells random from public, whether the controller has resolved it or not.
    memory::Peer { random: address.kind.as_raw() & 1 == 1, address: reversed(address.addr.into_inner()) }
}

fn reversed(mut address: [u8; 6]) -> [u8; 6] {
    address.reverse();
    address
}

/// One life of the controller.
struct Life<'a, 's, 'r, 'v, C, W, S, R> {
    stack: &'a Stack<'s, C, DefaultPacketPool>,
    server: &'a Server<'v>,
    radio: &'a Radio<'r, W, S, R>,
    last_link: Cell<Instant>,
}

impl<C, W, S, R> Life<'_, '_, '_, '_, C, W, S, R>
where
    C: Capable,
    W: Wearable,
    S: Storage,
    R: RngCore + CryptoRng,
{
    /// Lives until the controller takes nothing any more.
    async fn live(&self) {
        loop {
            // Also what was revoked while nobody was connected.
            mirror_bonds(self.stack, &self.radio.pairing.borrow());
            let now = Instant::now();
            let offering = self.radio.pairing.borrow().offering(now);
            self.prepare_passkey(offering);
            let advertiser = match with_timeout(CONTROLLER_PATIENCE, self.advertise(offering, now)).await {
                Ok(Ok(advertiser)) => advertiser,
                Ok(Err(_)) => {
                    // The controller refused it: a link that is just ending has its slot.
                    Timer::after(REFUSED_PAUSE).await;
                    continue;
                }
                Err(TimeoutError) => return,
            };
            self.radio.wearable.happened(Happening::Advertises { in_window: offering.is_some() });
            let changed = self.changed(now);
            match select3(advertiser.accept(), self.radio.controls.command(), changed).await {
                Either3::First(Ok(connection)) => {
                    let served = link::serve(self.stack, self.server, self.radio, connection, offering).await;
                    if served.authenticated {
                        self.last_link.set(Instant::now());
                    }
                }
                Either3::First(Err(_)) | Either3::Third(()) | Either3::Second(Command::DropLink) => {}
                Either3::Second(Command::PressButton) => {
                    self.radio.pairing.borrow_mut().press_button(Instant::now());
                }
            }
        }
    }

    /// Outside of all windows, and for a link that was accepted in one that has closed, nobody knows the passkey.
    fn prepare_passkey(&self, offering: Option<Offering>) {
        let passkey = match offering {
            Some(offering) => offering.passkey,
            None => Some(self.radio.pairing.borrow_mut().unknowable_passkey()),
        };
        self.stack.set_passkey(passkey);
    }

    fn is_eager(&self, offering: Option<Offering>, now: Instant) -> bool {
        offering.is_some() || now < self.last_link.get() + EAGER
    }

    /// Waits until something else is to be advertised than at `now`.
    async fn changed(&self, now: Instant) {
        let window = self.radio.pairing.borrow().changes_at(now);
        let eager = Some(self.last_link.get() + EAGER).filter(|&end| now < end);
        match [window, eager].into_iter().flatten().min() {
            Some(at) => Timer::at(at).await,
            None => core::future::pending().await,
        }
    }

    /// Who may connect: in a window anybody, and where nobody has a bond; else the bonded gateways, by their identities.
    async fn choose_centrals(
        &self,
        offering: Option<Offering>,
    ) -> Result<AdvFilterPolicy, BleHostError<C::Error>> {
        let gateways: heapless::Vec<Address, MAX_BONDS> =
            self.radio.pairing.borrow().bonds().iter().map(|bond| to_host(bond).identity.addr).collect();
        if offering.is_some() || gateways.is_empty() {
            return Ok(AdvFilterPolicy::Unfiltered);
        }
        self.stack.peripheral().set_filter_accept_list(&gateways).await?;
        Ok(AdvFilterPolicy::FilterConn)
    }

    async fn advertise(
        &self,
        offering: Option<Offering>,
        now: Instant,
    ) -> Result<Advertiser<'_, C, DefaultPacketPool>, BleHostError<C::Error>> {
        let (shortest, longest) =
            if self.is_eager(offering, now) { EAGER_INTERVAL } else { PATIENT_INTERVAL };
        let parameters = AdvertisementParameters {
            interval_min: shortest,
            interval_max: longest,
            filter_policy: self.choose_centrals(offering).await?,
            ..AdvertisementParameters::default()
        };
        let (data, response) = match offering {
            Some(Offering { offer, .. }) => (
                AdvertisingData::in_window(self.radio.settings.nameplate.name),
                Some(AdvertisingData::scan_response(&offer)),
            ),
            None => (AdvertisingData::anonymous(), None),
        };
        if response.is_none() {
            // The host writes no empty scan response, and the controller would go on answering with the last one: what
            // a window has told would be told for ever.
            self.stack.command(LeSetScanResponseData::new(0, [0; 31])).await?;
        }
        let advertisement = Advertisement::ConnectableScannableUndirected {
            adv_data: data.as_bytes(),
            scan_data: response.as_ref().map_or(&[], AdvertisingData::as_bytes),
        };
        self.stack.peripheral().advertise(&parameters, advertisement).await
    }
}
