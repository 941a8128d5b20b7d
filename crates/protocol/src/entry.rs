//! What people and their programs enter: digits, names, numbers, times.
//!
//! The promise: the same text means the same at every door, and what is refused is refused in words that say what to
//! write. Pure.

/// The zero of every block of ten decimal digits that there is (Unicode 16, general category Nd).
const ZEROS: &[u32] = &[
    0x0030, 0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66,
    0x0DE6, 0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50,
    0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0, 0x10D30,
    0x10D40, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x116D0,
    0x116DA, 0x11730, 0x118E0, 0x11950, 0x11BF0, 0x11C50, 0x11D50, 0x11DA0, 0x11F50, 0x16130, 0x16A60,
    0x16AC0, 0x16B50, 0x16D70, 0x1CCF0, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0,
    0x1E4F0, 0x1E5F1, 0x1E950, 0x1FBF0,
];

/// What a decimal digit of any script is worth.
pub fn digit(c: char) -> Option<u8> {
    let code = u32::from(c);
    let block = ZEROS.partition_point(|zero| *zero <= code).checked_sub(1)?;
    u8::try_from(code - ZEROS[block]).ok().filter(|digit| *digit < 10)
}

/// The text with the decimal digits of every script as 0 to 9.
pub fn plain_digits(text: &str) -> String {
    text.chars().map(|c| digit(c).map_or(c, |digit| char::from(b'0' + digit))).collect()
}

/// So many digits of any script, as 0 to 9. Spaces and what cannot be seen do not matter.
pub fn digits(text: &str, count: usize) -> Option<String> {
    let mut out = String::with_capacity(count);
    for c in text.chars().filter(|c| !is_blank(*c)) {
        if out.len() == count {
            return None;
        }
        out.push(char::from(b'0' + digit(c)?));
    }
    (out.len() == count).then_some(out)
}

/// The characters of a code that is written in letters and digits, as a label's: digits of any script as 0 to 9, letters, also
/// full-width ones, as capitals. Spaces, hyphens and what cannot be seen do not matter.
pub fn code_characters(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().filter(|c| !is_blank(*c) && !is_hyphen(*c)).map(|c| match digit(c) {
        Some(digit) => char::from(b'0' + digit),
        None => half_width(c).to_ascii_uppercase(),
    })
}

/// A letter of a keyboard for Chinese or Japanese as that of any other.
fn half_width(c: char) -> char {
    match u32::from(c) {
        code @ (0xFF21..=0xFF3A | 0xFF41..=0xFF5A) => char::from_u32(code - 0xFEE0).unwrap_or(c),
        _ => c,
    }
}

fn is_hyphen(c: char) -> bool {
    matches!(u32::from(c), 0x2D | 0x2010..=0x2015 | 0x2212 | 0xFE58 | 0xFE63 | 0xFF0D)
}

/// The digits of a passkey and of a PIN.
pub const CODE_DIGITS: usize = 6;

/// The six digits that a device shows.
pub fn passkey(text: &str) -> Option<u32> {
    digits(text, CODE_DIGITS)?.parse().ok()
}

/// Why a PIN is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPin {
    /// Not six digits.
    #[error("A PIN has six digits.")]
    NotSixDigits,
    /// Among the first that anybody would try.
    #[error("This PIN is among the first that anybody would try. Choose another.")]
    TooEasy,
}

/// A PIN that somebody types, as 0 to 9.
pub fn pin(text: &str) -> Result<String, BadPin> {
    digits(text, CODE_DIGITS).ok_or(BadPin::NotSixDigits)
}

/// A PIN that somebody chooses: not one that would be guessed first.
pub fn chosen_pin(text: &str) -> Result<String, BadPin> {
    let pin = pin(text)?;
    let steps: Vec<i16> =
        pin.as_bytes().windows(2).map(|pair| i16::from(pair[1]) - i16::from(pair[0])).collect();
    let straight = steps.iter().all(|step| *step == steps[0] && step.abs() <= 1);
    let repeated = pin[..2].repeat(3) == pin || pin[..3].repeat(2) == pin;
    if straight || repeated { Err(BadPin::TooEasy) } else { Ok(pin) }
}

/// Whether a character shows nothing: a space of any kind, or one that only steers others.
pub fn is_blank(c: char) -> bool {
    c.is_whitespace()
        || matches!(u32::from(c),
            0xAD | 0x34F | 0x61C | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F | 0x200B..=0x200F
            | 0x202A..=0x202E | 0x2060..=0x206F | 0x2800 | 0x3164 | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0
            | 0xFFF0..=0xFFFB | 0x1D173..=0x1D17A | 0xE0000..=0xE0FFF)
}

/// Whether a character does something to the line that it stands in: a control character, a line's end, or one that
/// turns the order of what follows.
pub fn is_control(c: char) -> bool {
    c.is_control() || matches!(u32::from(c), 0x2028..=0x202E | 0x2066..=0x2069)
}

/// The text without control characters, for a message that repeats what somebody sent.
pub fn without_controls(text: &str) -> String {
    text.chars().filter(|c| !is_control(*c)).collect()
}

/// Why a name is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Nothing of it can be seen.
    #[error("has no character that can be seen")]
    Blank,
    /// Longer than there is room for.
    #[error("has {is} characters, and may have {most}")]
    Long {
        /// As it is.
        is: usize,
        /// As it may be.
        most: usize,
    },
    /// A control character or a line's end.
    #[error("holds a line break or another control character")]
    Control,
}

/// The longest name, and number, of a wearer, in characters.
pub const LONGEST_NAME: usize = 255;

/// A name as it is shown: nothing blank around it, one space where there are several, something to see in it, at most
/// so many characters, one line.
pub fn name(text: &str, most: usize) -> Result<String, BadName> {
    let text = single_spaces(text.trim_matches(is_blank));
    let is = text.chars().count();
    if text.is_empty() {
        Err(BadName::Blank)
    } else if text.chars().any(is_control) {
        Err(BadName::Control)
    } else if is > most {
        Err(BadName::Long { is, most })
    } else {
        Ok(text)
    }
}

/// Runs of spaces as one; what ends a line or a column is left for [`is_control`].
fn single_spaces(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !c.is_whitespace() || is_control(c) {
            out.push(c);
        } else if !out.ends_with(' ') {
            out.push(' ');
        }
    }
    out
}

/// A number by which somebody is known, such as a clinic's own for a wearer: a [`name`] without what cannot be seen in
/// it, and its digits as 0 to 9. Two that look the same are the same.
pub fn reference(text: &str, most: usize) -> Result<String, BadName> {
    let seen: String = name(text, usize::MAX)?.chars().filter(|c| *c == ' ' || !is_blank(*c)).collect();
    name(&plain_digits(&seen), most)
}

/// The longest version of a text that people agree to, in characters.
pub const LONGEST_VERSION: usize = 50;

/// The version of a text that people agree to: a [`reference()`], so that a consent finds the text it was given to.
pub fn version(text: &str) -> Result<String, BadName> {
    reference(text, LONGEST_VERSION)
}

/// The longest e-mail address, in characters.
pub const LONGEST_EMAIL: usize = 255;

/// No e-mail address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not an e-mail address, such as nurse@clinic.example")]
pub struct BadEmail;

/// An e-mail address: one `@` with something before and behind it, and without what cannot be seen, of which much comes along when
/// it is pasted. Its capitals are left as they are, and make no difference to who looks for it.
pub fn email(text: &str) -> Result<String, BadEmail> {
    let seen: String = text.trim().chars().filter(|c| c.is_whitespace() || !is_blank(*c)).collect();
    let seen = seen.trim();
    let fits =
        seen.chars().count() <= LONGEST_EMAIL && !seen.chars().any(|c| c.is_whitespace() || is_control(c));
    match seen.split_once('@') {
        Some((who, host)) if fits && !who.is_empty() && !host.is_empty() && !host.contains('@') => {
            Ok(seen.to_owned())
        }
        _ => Err(BadEmail),
    }
}

/// A time of our years that is not counted in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{value} looks like {unit} since 1970; milliseconds are needed")]
pub struct OtherUnit {
    /// As it was given.
    pub value: i64,
    /// In what it seems to be counted.
    pub unit: &'static str,
}

/// From 2000 to 2100, in seconds since 1970: what a clock of our years shows.
const OUR_YEARS: std::ops::Range<i64> = 946_684_800..4_102_444_800;

/// Milliseconds since 1970, unless the number is a time of our years in another unit. As milliseconds such a number of
/// seconds would be a day of early 1970.
pub fn millis(value: i64) -> Result<i64, OtherUnit> {
    let in_unit = |unit| Err(OtherUnit { value, unit });
    match value {
        value if OUR_YEARS.contains(&value) => in_unit("seconds"),
        value if OUR_YEARS.contains(&(value / 1_000_000)) => in_unit("microseconds"),
        value if OUR_YEARS.contains(&(value / 1_000_000_000)) => in_unit("nanoseconds"),
        value => Ok(value),
    }
}

/// A time of day's offset that lost its `+` on the way: in an address a `+` that is not escaped is a space.
pub fn with_plus(time: &str) -> String {
    match time.rsplit_once(' ') {
        Some((before, offset)) if before.contains(':') && is_offset(offset) => format!("{before}+{offset}"),
        _ => time.to_owned(),
    }
}

fn is_offset(text: &str) -> bool {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    matches!(digits.len(), 2 | 4) && digits.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_of_every_keyboard_are_digits() {
        for typed in ["123456", "१२३४५६", "１２３４５６", "١٢٣٤٥٦", "১২৩৪৫৬", " १२३ 456\u{200b}"]
        {
            assert_eq!(passkey(typed), Some(123_456), "{typed}");
        }
        assert_eq!(passkey("000042"), Some(42));
        for wrong in ["", "12345", "1234567", "12345a", "१२३४५", "½23456", "²23456", "-12345", "123,456"]
        {
            assert_eq!(passkey(wrong), None, "{wrong}");
        }
        assert!(ZEROS.windows(2).all(|pair| pair[0] + 10 <= pair[1]));
        assert_eq!(
            (digit('9'), digit(':'), digit('/'), digit('९'), digit('॰')),
            (Some(9), None, None, Some(9), None)
        );
    }

    #[test]
    fn the_letters_and_digits_of_every_keyboard_make_a_code() {
        for typed in ["AB-27", " ab 27", "ＡＢ２７", "ａｂ－２７", "ab२७", "AB‑٢٧", "ab—২৭\u{200b}"]
        {
            assert_eq!(code_characters(typed).collect::<String>(), "AB27", "{typed}");
        }
        assert_eq!(code_characters("é½").collect::<String>(), "é½", "what is none stays what it is");
    }

    #[test]
    fn a_pin_that_anybody_would_try_first_is_not_chosen() {
        for easy in ["111111", "123456", "987654", "121212", "123123", "१२३४५६"] {
            assert_eq!(chosen_pin(easy), Err(BadPin::TooEasy), "{easy}");
        }
        assert_eq!(chosen_pin("12a456"), Err(BadPin::NotSixDigits));
        for good in ["407193", "112233", "890123", "२७४९१३"] {
            assert!(chosen_pin(good).is_ok(), "{good}");
        }
        assert_eq!(pin("२७४ ९१३").as_deref(), Ok("274913"));
    }

    #[test]
    fn a_name_has_something_to_see_and_nothing_that_steers_the_line() {
        assert_eq!(name("  अंजलि वर्मा\u{feff}", 20).as_deref(), Ok("अंजलि वर्मा"));
        // Persian and Hindi are written with joiners inside.
        assert_eq!(name("نازی\u{200c}نین", 20).as_deref(), Ok("نازی\u{200c}نین"));
        for blank in ["", "   ", "\u{200b}\u{200d}", "\u{2800}", "\u{3164}", "\n"] {
            assert_eq!(name(blank, 20), Err(BadName::Blank), "{blank:?}");
        }
        for control in ["a\0b", "a\nb", "a\u{1b}[1m", "a\u{2028}b", "a\u{202e}b"] {
            assert_eq!(name(control, 20), Err(BadName::Control), "{control:?}");
        }
        assert_eq!(name("अंजलि", 4), Err(BadName::Long { is: 5, most: 4 }));
    }

    #[test]
    fn two_numbers_that_look_the_same_are_the_same() {
        for typed in ["V 12", " V 12", "V\u{a0}12", "V  12\u{200b}", "V 1\u{200b}2", "V १२", "V １２"] {
            assert_eq!(reference(typed, 10).as_deref(), Ok("V 12"), "{typed:?}");
        }
        assert_eq!(reference("\u{200b}", 10), Err(BadName::Blank));
        assert_eq!(reference("v 12", 10).as_deref(), Ok("v 12"));
    }

    #[test]
    fn an_address_is_the_same_with_what_came_along_and_what_is_none_is_refused() {
        for typed in [
            "a.b@c.example",
            " a.b@c.example\n",
            "\u{feff}a.b@\u{200b}c.example",
            "\u{200b} a.b@c.example \u{200b}",
        ] {
            assert_eq!(email(typed).as_deref(), Ok("a.b@c.example"), "{typed:?}");
        }
        assert_eq!(email("A.B@C.example").as_deref(), Ok("A.B@C.example"));
        let long = format!("{}@c.example", "a".repeat(LONGEST_EMAIL));
        for wrong in [
            "",
            "@",
            " @",
            "a@",
            "@c",
            "\u{200b}@c",
            "a b@c",
            "a@b\nc",
            "a@b@c",
            "a\0@c",
            "a\u{202e}\u{1b}@c",
            &long,
        ] {
            assert_eq!(email(wrong), Err(BadEmail), "{wrong:?}");
        }
        assert_eq!(version(" २०२६-1\u{200b}").as_deref(), Ok("2026-1"));
        assert_eq!(version("a\nb"), Err(BadName::Control));
    }

    #[test]
    fn a_time_in_another_unit_is_named() {
        assert_eq!(millis(1_795_936_080_123), Ok(1_795_936_080_123));
        assert_eq!(millis(0), Ok(0));
        for (value, unit) in [
            (1_795_936_080, "seconds"),
            (1_795_936_080_123_000, "microseconds"),
            (1_795_936_080_123_000_000, "nanoseconds"),
        ] {
            assert!(millis(value).unwrap_err().to_string().contains(unit));
        }
    }

    #[test]
    fn a_plus_that_became_a_space_is_a_plus_again() {
        for (sent, meant) in [
            ("2026-11-28T12:00:00 05:30", "2026-11-28T12:00:00+05:30"),
            ("2026-11-28 12:00:00.5 0530", "2026-11-28 12:00:00.5+0530"),
            ("2026-11-28 12:00:00 00", "2026-11-28 12:00:00+00"),
            ("2026-11-28 12:00", "2026-11-28 12:00"),
            ("2026-11-28T12:00:00Z", "2026-11-28T12:00:00Z"),
            ("yesterday", "yesterday"),
        ] {
            assert_eq!(with_plus(sent), meant);
        }
    }
}
