//! Whether a sensor answers. Nothing waits for one: it is absent until it answers, tried again with growing pauses, and
//! what is to be told of it becomes a device event.

use kinara_protocol::frame::Ticks;

/// A sensor that is silent for so long is told of; a single answer that was lost is not.
const TOLD_AFTER_MS: u32 = 10_000;
/// One that has answered for so long is well again. One that comes and goes is neither told of at each turn nor set up
/// at each turn.
const WELL_AFTER_MS: u32 = 10_000;
/// Between two tries.
const FIRST_PAUSE_MS: u64 = 1_000;
/// How often it doubles: up to a minute.
const DOUBLED: u8 = 6;

/// What is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It is silent.
    Silent,
    /// It answers again.
    Answers,
}

/// See the module.
#[derive(Debug)]
pub struct Presence {
    is_set_up: bool,
    /// The first silence since it was well. Half of the ticks is enough for seconds, and memory is short.
    trouble_since: Option<u32>,
    /// The first answer since it was silent, likewise.
    answers_since: Option<u32>,
    try_at: Ticks,
    /// How often the pause between two tries has doubled.
    doubled: u8,
    told_silent: bool,
}

impl Presence {
    /// Of a sensor that nobody has asked yet.
    pub const fn new() -> Self {
        Self {
            is_set_up: false,
            trouble_since: None,
            answers_since: None,
            try_at: Ticks(0),
            doubled: 0,
            told_silent: false,
        }
    }

    /// Whether it answered the last time. If not, it is to be set up before it is asked.
    pub fn is_set_up(&self) -> bool {
        self.is_set_up
    }

    /// Whether it is to be asked now.
    pub fn is_due(&self, now: Ticks) -> bool {
        self.is_set_up || now >= self.try_at
    }

    /// It was asked now.
    pub fn asked(&mut self, now: Ticks, has_answered: bool) -> Option<News> {
        self.is_set_up = has_answered;
        if has_answered { self.has_answered(now) } else { self.was_silent(now) }
    }

    fn has_answered(&mut self, now: Ticks) -> Option<News> {
        let since = *self.answers_since.get_or_insert(now.0 as u32);
        let answers_ms = (now.0 as u32).wrapping_sub(since);
        // One that misses an answer now and then is asked again soon.
        if answers_ms >= FIRST_PAUSE_MS as u32 {
            self.doubled = 0;
        }
        if answers_ms < WELL_AFTER_MS {
            return None;
        }
        self.trouble_since = None;
        core::mem::take(&mut self.told_silent).then_some(News::Answers)
    }

    fn was_silent(&mut self, now: Ticks) -> Option<News> {
        self.answers_since = None;
        self.try_at = Ticks(now.0 + (FIRST_PAUSE_MS << self.doubled));
        self.doubled = (self.doubled + 1).min(DOUBLED);
        let since = *self.trouble_since.get_or_insert(now.0 as u32);
        let tells = !self.told_silent && (now.0 as u32).wrapping_sub(since) >= TOLD_AFTER_MS;
        self.told_silent |= tells;
        tells.then_some(News::Silent)
    }
}

impl Default for Presence {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const TURN_MS: u64 = 250;

    /// Turns a sensor's wearable for so many seconds; how often it was asked while it was silent, and what was told when.
    fn live(seconds: u64, answers: impl Fn(u64) -> bool) -> (usize, Vec<(u64, News)>) {
        let (mut presence, mut tries, mut told) = (Presence::new(), 0, Vec::new());
        for now in (0..seconds * 1_000).step_by(TURN_MS as usize) {
            if !presence.is_due(Ticks(now)) {
                continue;
            }
            tries += usize::from(!answers(now));
            told.extend(presence.asked(Ticks(now), answers(now)).map(|news| (now / 1_000, news)));
        }
        (tries, told)
    }

    #[test]
    fn a_sensor_that_never_answers_is_told_of_once_and_asked_about_once_a_minute() {
        let (tries, told) = live(24 * 3_600, |_| false);
        assert!(matches!(told[..], [(10..20, News::Silent)]), "{told:?}");
        assert!((1_300..1_400).contains(&tries), "{tries}");
    }

    #[test]
    fn a_sensor_that_comes_back_is_used_and_told_of() {
        let (_, told) = live(600, |now| now > 120_000);
        let [(10..20, News::Silent), (130..200, News::Answers)] = told[..] else { panic!("{told:?}") };
        let mut presence = Presence::new();
        presence.asked(Ticks(0), false);
        assert!(!presence.is_due(Ticks(999)) && presence.is_due(Ticks(1_000)));
        presence.asked(Ticks(1_000), true);
        assert!(presence.is_set_up() && presence.is_due(Ticks(1_250)), "its readings are taken at once");
    }

    #[test]
    fn an_answer_that_was_lost_is_not_told_and_a_sensor_that_comes_and_goes_is_told_of_seldom() {
        let (_, told) = live(3_600, |now| now % 60_000 != 0);
        assert_eq!(told, []);
        let (_, told) = live(3_600, |now| now % 7_000 < 5_000);
        assert!(told.len() <= 1, "{told:?}");
    }
}
