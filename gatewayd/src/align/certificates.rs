//! By which time certificates are judged: the machine's, but never one before the program's build date or the last time
//! this gateway was sure of. A box without a battery starts in 1970 and has to reach its servers all the same.

use std::sync::Arc;
use std::time::Duration;

use kinara_clock::Clock;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use super::source::BUILD_DATE_US;

/// See the module's text.
#[derive(Debug)]
pub struct NotBefore {
    /// The machine's clock.
    pub clock: Arc<dyn Clock>,
    /// The last time that was sure.
    pub floor_us: i64,
}

impl TimeProvider for NotBefore {
    fn current_time(&self) -> Option<UnixTime> {
        let now = self.clock.utc_us().max(self.floor_us).max(BUILD_DATE_US);
        Some(UnixTime::since_unix_epoch(Duration::from_micros(now.unsigned_abs())))
    }
}
