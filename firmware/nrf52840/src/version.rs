//! Which firmware this is.

/// This firmware: major, minor, patch, of the package.
pub const VERSION: [u8; 3] = [
    part(env!("CARGO_PKG_VERSION_MAJOR")),
    part(env!("CARGO_PKG_VERSION_MINOR")),
    part(env!("CARGO_PKG_VERSION_PATCH")),
];
/// As text.
pub const VERSION_TEXT: &str = env!("CARGO_PKG_VERSION");
const fn part(text: &str) -> u8 {
    let bytes = text.as_bytes();
    let (mut at, mut value) = (0, 0);
    while at < bytes.len() {
        value = value * 10 + (bytes[at] - b'0');
        at += 1;
    }
    value
}
