//! The one program of the bed inside a machine: it carries Bluetooth packets between the kernel and the air on the
//! host ([`bridge`]), and does what the host asks for ([`hand`]).
//!
//! It needs nothing of the machine but the kernel: it runs under a bare init as well as under systemd.

mod bridge;
mod hand;
mod ports;

fn main() {
    for port in ["kinara.air", "kinara.air2"] {
        std::thread::Builder::new()
            .name("bridge".to_owned())
            .spawn(move || bridge::run(ports::open(port)))
            .expect("a thread can be started at boot");
    }
    hand::run(ports::open("kinara.hand"));
}
