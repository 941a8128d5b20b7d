//! Says which folder is embedded as the dashboard: `dashboard/dist` where it has been built, else a folder with one
//! page that says how to build it.

use std::path::{Path, PathBuf};

const FALLBACK: &str = include_str!("src/dashboard-absent.html");

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let dist = here.join("dashboard/dist");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/dashboard-absent.html");
    let embedded = if dist.join("index.html").is_file() {
        println!("cargo::rerun-if-changed=dashboard/dist");
        dist
    } else {
        // A path that is not there would make cargo build this crate again every time; the folder above it changes
        // when the dashboard is built.
        for watched in ["dashboard", "dashboard/package.json"] {
            if here.join(watched).exists() {
                println!("cargo::rerun-if-changed={watched}");
            }
        }
        fallback(&out)
    };
    println!("cargo::rustc-env=KINARA_DASHBOARD_DIST={}", embedded.display());
}

fn fallback(out: &Path) -> PathBuf {
    let folder = out.join("dashboard-absent");
    std::fs::create_dir_all(&folder).expect("OUT_DIR can be written");
    std::fs::write(folder.join("index.html"), FALLBACK).expect("OUT_DIR can be written");
    folder
}
