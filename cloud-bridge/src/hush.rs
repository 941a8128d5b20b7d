//! How many lines of the log a sender can cause.
//!
//! The promise: of each kind of line that names a gateway or a clinic there are a few a minute of each of them, however much it
//! sends; how many were left out is said once a minute. What names nobody is said as it comes. What is remembered for this is
//! bounded, and forgotten each minute.

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How long the lines are counted together.
const WHILE: Duration = Duration::from_mins(1);
/// Lines of a kind and sender that are said meanwhile.
const LINES: u64 = 10;
/// Kinds and senders that are told apart; beyond them all senders of a kind of line count as one.
const SENDERS: usize = 10_000;
/// Kinds and senders of whom it is said each by itself how many lines were left out.
const TOLD: usize = 20;
/// The fields that name a sender.
const NAMES: [&str; 3] = ["gateway", "tenant", "clinic"];
/// Characters of a name, and of what a line says, that are remembered.
const REMEMBERED: usize = 80;

/// Leaves lines out. Every clone is the same one.
#[derive(Debug, Clone, Default)]
pub struct Hush(Arc<Mutex<Book>>);

type Book = HashMap<(Identifier, Option<String>), Kind>;

#[derive(Debug)]
struct Kind {
    /// What the first of them said.
    message: String,
    lines: u64,
}

impl Kind {
    fn left_out(&self) -> u64 {
        self.lines.saturating_sub(LINES)
    }
}

impl Hush {
    /// Says once a minute what was left out; for ever.
    pub async fn keep_telling(self) {
        loop {
            tokio::time::sleep(WHILE).await;
            self.tell();
        }
    }

    /// Says what was left out since the last time, and begins anew.
    pub fn tell(&self) {
        let book = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut left_out: Vec<_> = book.into_iter().filter(|(_, kind)| kind.left_out() > 0).collect();
        left_out.sort_by_key(|(_, kind)| std::cmp::Reverse(kind.left_out()));
        for ((_, of), kind) in left_out.iter().take(TOLD) {
            let (line, of) = (kind.message.as_str(), of.as_deref().unwrap_or("many"));
            tracing::warn!(line, of, left_out = kind.left_out(), "lines of the log were left out");
        }
        let others: u64 = left_out.iter().skip(TOLD).map(|(_, kind)| kind.left_out()).sum();
        if others > 0 {
            tracing::warn!(left_out = others, "more lines of the log were left out");
        }
    }

    /// Whether a line is said.
    fn has_room(&self, event: &Event<'_>) -> bool {
        let Some(sender) = Found::in_event(event, &NAMES) else { return true };
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let callsite = event.metadata().callsite();
        let mut key = (callsite, Some(sender));
        if book.len() >= SENDERS && !book.contains_key(&key) {
            key.1 = None;
        }
        let kind = book.entry(key).or_insert_with(|| Kind {
            message: Found::in_event(event, &["message"]).unwrap_or_default(),
            lines: 0,
        });
        kind.lines += 1;
        kind.lines <= LINES
    }
}

impl<S: Subscriber> Layer<S> for Hush {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.has_room(event)
    }
}

/// The first of some fields that an event has, as text, shortened.
struct Found<'a> {
    names: &'a [&'static str],
    text: Option<String>,
}

impl Found<'_> {
    fn in_event(event: &Event<'_>, names: &[&'static str]) -> Option<String> {
        let mut found = Found { names, text: None };
        event.record(&mut found);
        found.text
    }
}

impl Visit for Found<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.text.is_some() || !self.names.contains(&field.name()) {
            return;
        }
        let mut short = Short(String::new());
        // Cut short, it ends with an error, and what there is counts.
        let _ = write!(short, "{value:?}");
        self.text = Some(short.0);
    }
}

/// A text that takes no more than is remembered.
struct Short(String);

impl std::fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = REMEMBERED.saturating_sub(self.0.len());
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        if text.len() > room { Err(std::fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing_subscriber::fmt;
    use tracing_subscriber::layer::SubscriberExt as _;
    use uuid::Uuid;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn with(&self, words: &[&str]) -> usize {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
        }
    }

    /// Runs something with a log in which lines are left out.
    fn logged(what: impl FnOnce(&Hush)) -> Lines {
        let (hush, lines) = (Hush::default(), Lines::default());
        let writer = lines.clone();
        let layer = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(layer).with(hush.clone());
        tracing::subscriber::with_default(subscriber, || what(&hush));
        lines
    }

    fn result(gateway: u128) {
        let gateway = Uuid::from_u128(gateway);
        tracing::info!(%gateway, ok = false, "a command's result");
    }

    fn refusal(gateway: u128) {
        let gateway = Uuid::from_u128(gateway);
        tracing::warn!(%gateway, "a payload cannot be read");
    }

    #[test]
    fn a_gateway_that_floods_has_a_few_lines_a_minute_and_every_other_line_is_said() {
        let lines = logged(|_| {
            for _ in 0..5_000 {
                result(1);
            }
            (2..7).for_each(result);
            (0..4).for_each(|_| refusal(1));
            for attempt in 0..50 {
                tracing::info!(attempt, "a line that names nobody");
            }
        });
        let noisy = Uuid::from_u128(1).to_string();
        assert_eq!(lines.with(&["a command's result", &noisy]), LINES as usize);
        assert_eq!(lines.with(&["a command's result"]), LINES as usize + 5);
        assert_eq!(lines.with(&["a payload cannot be read", &noisy]), 4);
        assert_eq!(lines.with(&["a line that names nobody"]), 50);
    }

    #[test]
    fn what_was_left_out_is_counted_and_then_there_is_room_again() {
        let lines = logged(|hush| {
            for _ in 0..2 {
                (0..100).for_each(|_| result(1));
                result(2);
                hush.tell();
            }
            hush.tell();
        });
        let told = ["lines of the log were left out", "left_out=90", "a command's result"];
        assert_eq!(lines.with(&[&told[..], &[&Uuid::from_u128(1).to_string()]].concat()), 2);
        assert_eq!(lines.with(&["left out"]), 2, "nothing of who said little");
        assert_eq!(lines.with(&["INFO"]), 2 * (LINES as usize + 1));
    }

    #[test]
    fn what_is_remembered_is_bounded_however_many_send_and_is_forgotten() {
        let lines = logged(|hush| {
            for gateway in 0..SENDERS as u128 + 500 {
                result(gateway);
            }
            let book = hush.0.lock().unwrap();
            assert_eq!(book.len(), SENDERS + 1);
            drop(book);
            hush.tell();
            assert!(hush.0.lock().unwrap().capacity() == 0);
        });
        assert_eq!(lines.with(&["a command's result", "ok=false"]), SENDERS + LINES as usize);
        assert_eq!(lines.with(&["lines of the log were left out", "of=\"many\"", "left_out=490"]), 1);
    }
}
