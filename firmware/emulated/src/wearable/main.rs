//! A wearable that lives on QEMU's mps2-an386: the application, its acquisition and its radio, as on the board.
//!
//! It measures HeartPy's recording over and over, a warm skin and an arm at rest. Its HCI controller speaks H4 at the other
//! end of its first serial line. Words on its command line: factory id (16 hexadecimal digits), and the label's secret. It
//! tells the emulator's log what it measures before the application gets it, as the simulator's log has it, and once a
//! second how deep its stack has been:
//!
//! `P <epoch> <channel> <ticks> <value>` · `stack <bytes>` · `link` · `paired`
//!
//! Its flash is memory and its random numbers come from the host's clock: both are the emulator's, not the board's.

#![no_std]
#![no_main]

mod clock;
mod serial;
mod unit;

use embassy_executor::Spawner;
use kinara_emulated::machine;

#[embassy_executor::main]
async fn main(spawner: Spawner) {
    machine::paint();
    let parts = cortex_m::Peripherals::take().expect("taken once");
    clock::start(parts.SYST);
    serial::start();
    unit::run(spawner);
}
