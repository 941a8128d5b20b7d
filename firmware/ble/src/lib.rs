//! The wearable's radio.
#![no_std]
