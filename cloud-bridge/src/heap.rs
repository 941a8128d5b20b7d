//! What the allocator keeps of what was freed.
//!
//! The promise: what a message took while it was read goes back to the system when it is freed, and not to a heap that keeps it
//! for the next one. The C library's allocator on Linux (glibc) learns otherwise: the first freed block of some megabytes makes it
//! keep blocks of that size, up to 32 MiB, on heaps of which only the top is ever given back, and threads have heaps of their own. It
//! is told its thresholds before the program begins, by its environment: telling it later would be a call that is not safe.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What glibc is told: blocks of this and more are the system's own, and free memory of this much at a heap's end goes back.
pub const SETTINGS: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "131072"), ("MALLOC_TRIM_THRESHOLD_", "131072")];

/// Says that this was done: a C library that leaves its own words out for a program with privileges would have it done without end.
const DONE: &str = "KINARA_HEAP_SETTLED";

/// Begins the program again with these settings, once, where the allocator is glibc's and nobody has told it otherwise. Comes
/// back where there is nothing to do, or it cannot be done: then memory is kept for longer, and all else is the same.
pub fn settle() {
    let is_glibc = cfg!(all(target_os = "linux", target_env = "gnu"));
    let is_told = SETTINGS.iter().any(|(name, _)| std::env::var_os(name).is_some())
        || ["GLIBC_TUNABLES", DONE].iter().any(|name| std::env::var_os(name).is_some());
    if !is_glibc || is_told {
        return;
    }
    let mut arguments = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) else { return };
    // Comes back only where it fails.
    let _ = Command::new(program).arg0(name).args(arguments).envs(SETTINGS).env(DONE, "1").exec();
}
