//! Numbers on the command line, as people write them.

use std::ops::RangeInclusive;

use crate::local::number;

/// A number within bounds, in the digits of any script.
pub fn within(bounds: RangeInclusive<u32>) -> impl Fn(&str) -> Result<u32, String> + Clone {
    move |text| {
        let number = number(text).filter(|number| bounds.contains(number));
        number.ok_or_else(|| format!("a whole number, {} to {}, is needed", bounds.start(), bounds.end()))
    }
}

/// The seconds of an interval.
pub fn seconds(text: &str) -> Result<u16, String> {
    let number = number(text).and_then(|number| u16::try_from(number).ok());
    number.ok_or_else(|| "a whole number of seconds is needed".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::ctl::Arguments;

    #[test]
    fn digits_of_any_script_are_numbers_on_the_command_line() {
        assert_eq!(within(3..=120)("\u{967}\u{966}"), Ok(10));
        assert_eq!(within(3..=120)(" 1\u{200B}0 "), Ok(10));
        assert_eq!(seconds("\u{967}\u{966}"), Ok(10));
        for wrong in ["2", "121", "", "\u{200B}", "-5", "ten", "99999999999"] {
            assert!(within(3..=120)(wrong).is_err(), "{wrong}");
        }
        let takes = |line: &[&str]| Arguments::try_parse_from([&["kinaractl"][..], line].concat()).is_ok();
        let ten = "\u{967}\u{966}";
        assert!(takes(&["plan", "kinara:1", "--channel", "heart_rate", "--seconds", ten]));
        assert!(takes(&["scan", "--seconds", ten]));
        assert!(takes(&["window", "open", "--seconds", ten]));
        assert!(takes(&["pair", "K-1", "--wait", ten]));
        assert!(takes(&["logs", "-n", ten]));
        assert!(!takes(&["scan", "--seconds", "\u{967}"]), "the bounds are the same");
    }
}
