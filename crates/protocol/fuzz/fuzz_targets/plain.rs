//! See `tests/decoders`.
#![no_main]

#[allow(dead_code)]
#[path = "../../tests/decoders/mod.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::decode_plain(bytes));
