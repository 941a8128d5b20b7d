//! Gives the emulated processor its memory map.

use std::path::PathBuf;
use std::{env, fs, io};

/// QEMU's mps2-an386, cut to what an nRF52840 has.
const MEMORY: &str =
    "MEMORY {\n FLASH : ORIGIN = 0x00000000, LENGTH = 1024K\n RAM : ORIGIN = 0x20000000, LENGTH = 256K\n}\n";

fn main() -> io::Result<()> {
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "none") {
        let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
        fs::write(out.join("memory.x"), MEMORY)?;
        // The interrupts are named in the program.
        fs::write(out.join("device.x"), "")?;
        println!("cargo::rustc-link-search={}", out.display());
        println!("cargo::rustc-link-arg-bins=--nmagic");
        println!("cargo::rustc-link-arg-bins=-Tlink.x");
    }
    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}
