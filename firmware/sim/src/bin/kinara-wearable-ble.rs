//! `kinara-wearable-ble`: one simulated wearable on a real Bluetooth stack.

use std::process::ExitCode;

use kinara_sim::bluetooth;
use kinara_sim::program;

fn main() -> ExitCode {
    program::main("kinara-wearable-ble", bluetooth::run)
}
