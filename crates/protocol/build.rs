//! Generates the envelope types from the `.proto` files, which are the reference. Only the `std` feature needs them.

fn main() -> std::io::Result<()> {
    if std::env::var_os("CARGO_FEATURE_STD").is_none() {
        return Ok(());
    }
    let files =
        ["proto/kinara/v1/batch.proto", "proto/kinara/v1/uplink.proto", "proto/kinara/v1/downlink.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    prost_build::Config::new().compile_protos(&files, &["proto"])
}
