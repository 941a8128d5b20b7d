//! The Bluetooth test bed.
