//! Each event as one journal entry with fields that can be asked for: `journalctl HARDWARE=kinara:…`.
//!
//! The promise: a field of an event (`hardware`, `adapter`, `error`) is a journal field of the same name in capitals,
//! never one that journald or systemd gives a meaning of its own; MESSAGE reads like a line of any log, with the fields at
//! its end; and an entry has a bounded size, whatever is logged.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Fields of one event that become journal fields.
const MOST_FIELDS: usize = 24;
/// Bytes of one field's value, and of the message with all of them.
const LONGEST_VALUE: usize = 4096;
/// Bytes of a field's name, as journald has it.
const LONGEST_NAME: usize = 64;
/// Names with a meaning of their own: ours get a prefix.
const TAKEN: [&str; 10] = [
    "MESSAGE",
    "MESSAGE_ID",
    "PRIORITY",
    "CODE_FILE",
    "CODE_LINE",
    "CODE_FUNC",
    "ERRNO",
    "UNIT",
    "DOCUMENTATION",
    "TID",
];

/// Takes finished entries: `NAME=value` each.
type Send = fn(&[&str]);

/// Writes events to the journal.
pub struct Journal {
    send: Send,
}

impl Journal {
    /// The journal of this machine.
    pub fn of_systemd() -> Self {
        Self {
            send: |fields| {
                // A journal that does not take it: there is nobody left to tell.
                let _ = systemd::journal::send(fields);
            },
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        let fields = entry.finish(*event.metadata().level(), event.metadata().target());
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        (self.send)(&fields);
    }
}

#[derive(Default)]
struct Entry {
    message: String,
    fields: Vec<(String, String)>,
}

impl Entry {
    fn finish(self, level: Level, target: &str) -> Vec<String> {
        let mut message = self.message;
        for (name, value) in &self.fields {
            // Writing to a String cannot fail.
            let _ = write!(
                message,
                "{}{}={value}",
                if message.is_empty() { "" } else { " " },
                name.to_lowercase()
            );
        }
        shorten(&mut message, LONGEST_VALUE);
        let mut entry = vec![
            format!("PRIORITY={}", priority(level)),
            format!("MESSAGE={message}"),
            format!("TARGET={target}"),
            "SYSLOG_IDENTIFIER=kinara-gatewayd".to_owned(),
        ];
        entry.extend(self.fields.into_iter().map(|(name, value)| format!("{name}={value}")));
        entry
    }

    fn put(&mut self, field: &Field, mut value: String) {
        shorten(&mut value, LONGEST_VALUE);
        if field.name() == "message" {
            self.message = value;
        } else if self.fields.len() < MOST_FIELDS {
            self.fields.push((journal_name(field.name()), value));
        }
    }
}

impl Visit for Entry {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string());
    }
}

/// Syslog's levels.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Capitals, digits and underscores, no underscore or digit in front, and none of the names that are taken.
fn journal_name(name: &str) -> String {
    let mut out: String = name
        .bytes()
        .take(LONGEST_NAME - 2)
        .map(|b| if b.is_ascii_alphanumeric() { b.to_ascii_uppercase() as char } else { '_' })
        .collect();
    let first = out.as_bytes().first();
    if first.is_none_or(|b| !b.is_ascii_uppercase()) || TAKEN.contains(&out.as_str()) {
        out.insert_str(0, "K_");
    }
    out
}

fn shorten(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    thread_local! {
        static SENT: RefCell<Vec<Vec<String>>> = const { RefCell::new(Vec::new()) };
    }

    fn sent(log: impl FnOnce()) -> Vec<Vec<String>> {
        let keep = |fields: &[&str]| {
            SENT.with_borrow_mut(|sent| sent.push(fields.iter().map(ToString::to_string).collect()));
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Journal { send: keep }), log);
        SENT.take()
    }

    #[test]
    fn an_entry_can_be_found_by_the_fields_of_its_event_and_reads_like_a_line() {
        let hardware = crate::hardware::HardwareId::kinara(0xab);
        let entries = sent(|| tracing::warn!(%hardware, adapter = "hci0", tries = 3, "link ended"));
        let [entry] = entries.as_slice() else { panic!("one entry") };
        for field in ["PRIORITY=4", "HARDWARE=kinara:00000000000000ab", "ADAPTER=hci0", "TRIES=3"] {
            assert!(entry.iter().any(|sent| sent == field), "{field} in {entry:?}");
        }
        let line = "MESSAGE=link ended hardware=kinara:00000000000000ab adapter=hci0 tries=3";
        assert!(entry.iter().any(|sent| sent == line), "{entry:?}");
    }

    #[test]
    fn no_field_takes_a_name_that_means_something_else() {
        assert_eq!(journal_name("priority"), "K_PRIORITY");
        assert_eq!(journal_name("_pid"), "K__PID");
        assert_eq!(journal_name("2nd"), "K_2ND");
        assert_eq!(journal_name("retry_in"), "RETRY_IN");
        assert_eq!(journal_name("a.b"), "A_B");
        assert!(journal_name(&"x".repeat(200)).len() <= LONGEST_NAME);
    }

    #[test]
    fn an_entry_has_a_bounded_size() {
        let long = "ä".repeat(LONGEST_VALUE);
        let entries = sent(|| tracing::info!(long, "x"));
        assert!(entries[0].iter().all(|field| field.len() <= LONGEST_VALUE + LONGEST_NAME));
    }
}
