//! Puts the memory map where the linker looks for it: the wearable's own, with the bootloader in its place.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let map = fs::read_to_string("../memory-nrf52840.x")?;
    // The linker script takes the program from FLASH to RAM.
    let map = map
        .replace("  FLASH            :", "  ACTIVE           :")
        .replace("  BOOTLOADER       :", "  FLASH            :");
    let map = map.replace("(FLASH)", "(ACTIVE)");
    fs::write(out.join("memory.x"), map)?;
    println!("cargo::rustc-link-search={}", out.display());
    println!("cargo::rerun-if-changed=../memory-nrf52840.x");
    println!("cargo::rustc-link-arg-bins=--nmagic");
    println!("cargo::rustc-link-arg-bins=-Tlink.x");
    Ok(())
}
