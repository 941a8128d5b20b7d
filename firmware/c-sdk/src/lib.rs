//! Kinara for makers of other devices: the wearable's own application behind a C interface.
//!
//! A device that uses it keeps the promises of a Kinara wearable: readings become frames in flash, numbered without a
//! hole, kept until the gateway says that they are stored, and named when they had to be given up. It brings its own
//! clock, flash, sensors and Bluetooth stack; everything of them comes in by arguments and callbacks. Nothing is
//! allocated: the caller gives the memory, once, to [`kinara_init`](api::kinara_init).
//!
//! - [`api`]: the functions, in the order in which they are used. `include/kinara.h` is made from them.
//! - [`status`]: what they return.
//! - [`config`]: what a device tells of itself, and its callbacks.
//! - [`device`]: what stands behind a handle.
//!
//! **Calls.** A device has one thread, or a lock of its own: no two calls at once on one handle, and none from within
//! a callback. Interrupts put their samples into a queue of the device's. Bad calls (a null pointer, a call before
//! `kinara_init`, a time that goes back, too much of something) return a [`Status`](status::Status) and change nothing.
//!
//! **Panics.** There is none that a caller could cause; should one happen, the library calls `abort()`, which a C
//! library or the device brings.
//!
//! **Why `unsafe`.** A C caller's pointers cannot be checked by the compiler. It is confined to `api` (pointers to
//! references, once per call, after checks for null and alignment) and `config` (calls of callbacks); all else is safe.

#![cfg_attr(target_os = "none", no_std)]

pub mod api;
pub mod config;
pub mod device;
pub mod status;

#[cfg(target_os = "none")]
#[allow(unsafe_code)]
mod panic {
    unsafe extern "C" {
        fn abort() -> !;
    }

    #[panic_handler]
    fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
        // SAFETY: abort takes nothing and does not return.
        unsafe { abort() }
    }
}
