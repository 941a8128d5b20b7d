//! What only the kernel's Bluetooth management interface knows: link RSSI and the kind of a new key.
