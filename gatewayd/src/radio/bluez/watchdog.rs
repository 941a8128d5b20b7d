//! An adapter that hears nothing although wearables are near, or that makes no connection any more, is reset.
//!
//! Silence alone proves nothing: a clinic may be empty. But where a bonded wearable was heard or linked a moment ago,
//! no link stands, and not one advertisement of anybody has come for a while although discovery runs, the controller
//! has gone deaf more often than the wearables have all left. A reset costs a second; it is not repeated in a hurry.
//!
//! And where [`STUCK`] connections in a row to wearables that were heard end in bluetoothd's silence, with none between
//! them that came about, kernel and bluetoothd do not agree any more about who is linked. That was seen after bluetoothd
//! 5.82 had crashed with links up and was started again; it does not pass by itself.

use std::time::Duration;

use tokio::time::Instant;

use super::Settings;

/// How long a reset may look like an adapter that was switched off.
const RESETTING: Duration = Duration::from_mins(1);

/// So many connections without an answer, in a row. Each takes the time-out of a connection.
const STUCK: u32 = 6;

/// The watch over one adapter's hearing.
#[derive(Debug)]
pub struct Watchdog {
    deaf: Duration,
    pause: Duration,
    heard: Instant,
    reset: Option<Instant>,
}

impl Watchdog {
    /// An adapter that has just begun to listen.
    pub fn new(settings: &Settings) -> Self {
        Self { deaf: settings.deaf, pause: settings.reset_pause, heard: Instant::now(), reset: None }
    }

    /// Somebody was heard.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Whether to reset it, because of connections that came to nothing.
    pub fn is_stuck(&mut self, now: Instant, unanswered: u32) -> bool {
        let due = unanswered >= STUCK && self.may_reset(now);
        if due {
            tracing::warn!(unanswered, "the adapter makes no connection any more");
            self.reset = Some(now);
            self.heard = now;
        }
        due
    }

    fn may_reset(&self, now: Instant) -> bool {
        self.reset.is_none_or(|reset| now - reset >= self.pause)
    }

    /// Whether to reset it: `near` when a bonded wearable that has no link must be in range.
    pub fn look(&mut self, now: Instant, near: bool, links: usize, resting: bool) -> bool {
        if resting || links > 0 {
            // It cannot hear, or what it hears comes by its links.
            self.heard = now;
            return false;
        }
        let due = near && now - self.heard >= self.deaf && self.may_reset(now);
        if due {
            tracing::warn!(silent_s = (now - self.heard).as_secs(), "the adapter hears nothing");
            self.reset = Some(now);
            self.heard = now;
        }
        due
    }

    /// Whether an adapter that goes off is being reset by us.
    pub fn is_resetting(&self) -> bool {
        self.reset.is_some_and(|reset| reset.elapsed() < RESETTING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deaf() -> (Watchdog, Instant) {
        let settings = Settings {
            deaf: Duration::from_secs(45),
            reset_pause: Duration::from_mins(5),
            ..Settings::default()
        };
        (Watchdog::new(&settings), Instant::now())
    }

    #[test]
    fn silence_while_a_wearable_must_be_near_resets_the_adapter_once() {
        let (mut dog, start) = deaf();
        let at = |s| start + Duration::from_secs(s);
        assert!(!dog.look(at(44), true, 0, false));
        assert!(dog.look(at(46), true, 0, false));
        assert!(!dog.look(at(200), true, 0, false), "not again in a hurry");
        assert!(dog.look(at(400), true, 0, false));
    }

    #[test]
    fn connections_that_nobody_answers_reset_the_adapter_once() {
        let (mut dog, start) = deaf();
        let at = |s| start + Duration::from_secs(s);
        assert!(!dog.is_stuck(at(10), STUCK - 1));
        assert!(dog.is_stuck(at(20), STUCK));
        assert!(!dog.is_stuck(at(200), STUCK), "not again in a hurry");
        assert!(dog.is_stuck(at(400), STUCK));
    }

    #[test]
    fn an_empty_clinic_a_standing_link_and_a_rest_are_no_reason() {
        let (mut dog, start) = deaf();
        let late = start + Duration::from_secs(500);
        assert!(!dog.look(late, false, 0, false));
        assert!(!dog.look(late, true, 1, false));
        assert!(!dog.look(late + Duration::from_secs(30), true, 0, true));
        assert!(!dog.look(late + Duration::from_mins(1), true, 0, false));
        dog.heard(late + Duration::from_secs(70));
        assert!(!dog.look(late + Duration::from_secs(110), true, 0, false));
    }
}
