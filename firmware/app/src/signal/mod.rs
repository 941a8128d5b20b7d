//! Raw counts of the sensors into samples of the channel registry: on the device, in fixed point, one sample at a time.
//!
//! The promises:
//!
//! * what is not good enough is not produced: a heart rate while the arm moves, a skin conductance while the range
//!   changes or nothing touches the electrodes. A missing sample shows as a gap, a wrong one would be believed;
//! * the same counts give the same samples on every processor: integers only, no rounding by hardware;
//! * memory is bounded by the types, and each sample costs a bounded number of steps.
//!
//! | sensor | module | from | to |
//! |---|---|---|---|
//! | MAX30102, 100 Hz | [`pulse`], [`rhythm`] | infrared counts | beats, `rr_interval`, `heart_rate` |
//! | electrodes on the SAADC, 4 Hz | [`skin`] | converter counts of a range | `eda` |
//! | two TMP117, 1 Hz | [`temperature`] | register | `skin_temperature`, `ambient_temperature` |
//! | LSM6DSO, 26 Hz | [`motion`] | acceleration | `activity_counts`, `steps`, how much the arm moves |
//! | all | [`wear`] | light, warmth, motion | whether it is worn |
//! | skin conductance, activity | [`hot_flash`] | samples | the sternal rule's word on the last minute |
//!
//! Nothing here has seen a real sensor of these: it was tested on recordings of people made with others, and on models.

pub mod hot_flash;
pub mod motion;
pub mod pulse;
pub mod rhythm;
pub mod skin;
pub mod temperature;
pub mod wear;

#[cfg(test)]
mod tests;
