//! The Bluetooth controller: Nordic's, in a library.

use embassy_executor::Spawner;
use embassy_nrf::mode::Async;
use embassy_nrf::rng::Rng;
use nrf_sdc::mpsl::{self, MultiprotocolServiceLayer};
use nrf_sdc::{self as sdc, SoftdeviceController};
use static_cell::StaticCell;

use crate::board::Irqs;

/// Packets that wait on each side: a window of the backlog fills a connection event.
const PACKETS: u8 = 6;
/// Bytes of the longest one: data length extension.
const PACKET: u16 = 251;
/// What the controller needs for one link; [`sdc::Builder`] says how much that is, and building fails with less.
const MEMORY: usize = 8_192;

/// A crystal of 20 ppm, as the DK has it.
const CLOCK: mpsl::raw::mpsl_clock_lfclk_cfg_t = mpsl::raw::mpsl_clock_lfclk_cfg_t {
    source: mpsl::raw::MPSL_CLOCK_LF_SRC_XTAL as u8,
    rc_ctiv: 0,
    rc_temp_ctiv: 0,
    accuracy_ppm: 20,
    skip_wait_lfclk_started: mpsl::raw::MPSL_DEFAULT_SKIP_WAIT_LFCLK_STARTED != 0,
};

#[embassy_executor::task]
async fn service(layer: &'static MultiprotocolServiceLayer<'static>) -> ! {
    layer.run().await
}

/// Starts the layer below the controller, in whose time slots the processor's own flash is written.
pub fn start_layer(
    parts: mpsl::Peripherals<'static>,
    spawner: Spawner,
) -> &'static MultiprotocolServiceLayer<'static> {
    static SESSIONS: StaticCell<mpsl::SessionMem<1>> = StaticCell::new();
    static LAYER: StaticCell<MultiprotocolServiceLayer<'static>> = StaticCell::new();
    let sessions = SESSIONS.init(mpsl::SessionMem::new());
    // Not `expect`, here and below: that brings what prints an error into the image, and nobody reads it there.
    let Ok(layer) = MultiprotocolServiceLayer::with_timeslots(parts, Irqs, CLOCK, sessions) else {
        panic!("the clock is one that the chip has")
    };
    let layer = &*LAYER.init(layer);
    spawner.spawn(service(layer).expect("spawned once"));
    layer
}

/// Starts the controller.
pub fn start(
    parts: sdc::Peripherals<'static>,
    rng: &'static mut Rng<'static, Async>,
    layer: &'static MultiprotocolServiceLayer<'static>,
) -> SoftdeviceController<'static> {
    static MEMORY_OF: StaticCell<sdc::Mem<MEMORY>> = StaticCell::new();
    let Ok(controller) = build(parts, rng, layer, MEMORY_OF.init(sdc::Mem::new())) else {
        panic!("what is asked for fits into its memory")
    };
    controller
}

fn build(
    parts: sdc::Peripherals<'static>,
    rng: &'static mut Rng<'static, Async>,
    layer: &'static MultiprotocolServiceLayer<'static>,
    memory: &'static mut sdc::Mem<MEMORY>,
) -> Result<SoftdeviceController<'static>, sdc::Error> {
    sdc::Builder::new()?
        .support_adv()
        .support_peripheral()
        .support_dle_peripheral()
        .support_le_2m_phy()
        .support_phy_update_peripheral()
        .support_le_privacy()
        .peripheral_count(1)?
        .buffer_cfg(PACKET, PACKET, PACKETS, PACKETS)?
        .build(parts, rng, layer, memory)
}
