//! The header is what the source says.

use std::path::Path;

/// Set, the header is written anew instead of compared.
const WRITE: &str = "KINARA_WRITE_HEADER";

#[test]
fn the_header_is_made_from_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let sources = ["status", "config", "api"].map(|name| root.join("src").join(name).with_extension("rs"));
    let builder =
        sources.iter().fold(cbindgen::Builder::new().with_config(config), cbindgen::Builder::with_src);
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let path = root.join("include/kinara.h");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let made = String::from_utf8(made).unwrap();
    assert_eq!(kept, made, "run the test with {WRITE}=1 and commit the header");
}
