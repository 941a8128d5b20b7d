//! `kinaractl`: talks to kinara-gatewayd on this box.

use std::process::ExitCode;

use clap::Parser;
use kinara_gatewayd::ctl;

fn main() -> ExitCode {
    ctl::run(ctl::Arguments::parse())
}
