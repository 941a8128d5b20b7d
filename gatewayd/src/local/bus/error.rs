//! What went wrong, as a D-Bus error whose name is for programs and whose text says what to do.

use zbus::message::{Header, Message};
use zbus::names::ErrorName;

use crate::desk::DeskError;

/// What names begin with.
pub const PREFIX: &str = "org.kinara.Gateway1.Error.";

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct BusError {
    name: String,
    text: String,
}

impl BusError {
    /// An error of this kind (`snake_case`) that says `text`.
    pub fn new(code: &str, text: impl Into<String>) -> Self {
        Self { name: format!("{PREFIX}{}", camel(code)), text: text.into() }
    }

    /// An argument that cannot be used.
    pub fn argument(text: impl Into<String>) -> Self {
        Self::new("bad_argument", text)
    }
}

impl From<DeskError> for BusError {
    fn from(error: DeskError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl zbus::DBusError for BusError {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name())?.build(&(&self.text,))
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::from_str_unchecked(&self.name)
    }

    fn description(&self) -> Option<&str> {
        Some(&self.text)
    }
}

/// `wrong_code` as `WrongCode`.
fn camel(code: &str) -> String {
    let parts = code.split('_').filter(|part| !part.is_empty());
    parts.map(|part| part[..1].to_ascii_uppercase() + &part[1..]).collect()
}

/// `WrongCode` as `wrong_code`, for whoever prints codes.
pub fn snake(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use zbus::DBusError;

    use super::*;
    use crate::radio::window::Why;

    #[test]
    fn every_refusal_of_the_desk_has_a_name_that_the_bus_takes_and_says_what_to_do() {
        for error in [
            DeskError::NotOpen,
            DeskError::Pairing(Why::WrongCode),
            DeskError::Pairing(Why::Radio("x".to_owned())),
            DeskError::NotDrained { frames: 3 },
        ] {
            let (code, text) = (error.code(), error.to_string());
            let on_bus = BusError::from(error);
            assert!(ErrorName::try_from(on_bus.name().to_string()).is_ok(), "{code}");
            assert_eq!(snake(on_bus.name().strip_prefix(PREFIX).unwrap()), code);
            assert_eq!(on_bus.description(), Some(text.as_str()));
        }
    }
}
