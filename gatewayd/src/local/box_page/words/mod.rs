//! What the page says, in English and Hindi.
//!
//! Each text stands once, in both languages side by side; one that lacks a language does not compile. `{}` is
//! filled by [`fill`], in the same order in every language.

mod device;
mod door;
mod everywhere;
mod pairing;
mod why;

pub(super) use why::{advice, happened, refused};

/// Makes a table of texts with a field each, and the two tables of that kind.
macro_rules! words {
    ($(#[$doc:meta])* $table:ident { $($name:ident: $english:literal / $hindi:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(in crate::local::box_page) struct $table {
            $(#[doc = $english] pub $name: &'static str,)*
        }

        impl $table {
            pub(super) const ENGLISH: Self = Self { $($name: $english,)* };
            pub(super) const HINDI: Self = Self { $($name: $hindi,)* };
            #[cfg(test)]
            pub(super) const PAIRS: &[[&str; 2]] = &[$([$english, $hindi],)*];
        }
    };
}
pub(super) use words;

use device::Device;
use door::Door;
use everywhere::Everywhere;
use pairing::Pairing;

/// A language of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    /// English.
    English,
    /// Hindi.
    Hindi,
}

/// All texts of a language.
#[derive(Debug)]
pub(super) struct Words {
    /// Its tag.
    pub tag: &'static str,
    /// On every page.
    pub all: Everywhere,
    /// Set-up, login, staff, audit.
    pub door: Door,
    /// Devices and the box.
    pub device: Device,
    /// Pairing.
    pub pairing: Pairing,
}

static ENGLISH: Words = Words {
    tag: "en",
    all: Everywhere::ENGLISH,
    door: Door::ENGLISH,
    device: Device::ENGLISH,
    pairing: Pairing::ENGLISH,
};

static HINDI: Words = Words {
    tag: "hi",
    all: Everywhere::HINDI,
    door: Door::HINDI,
    device: Device::HINDI,
    pairing: Pairing::HINDI,
};

impl Language {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::English, Self::Hindi];

    /// Its texts.
    pub fn words(self) -> &'static Words {
        match self {
            Self::English => &ENGLISH,
            Self::Hindi => &HINDI,
        }
    }

    /// Its tag.
    pub fn tag(self) -> &'static str {
        self.words().tag
    }

    /// Its name in itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::English => "English",
            Self::Hindi => "हिन्दी",
        }
    }

    /// The language of a tag (`hi`, `hi-IN`).
    pub fn of_tag(tag: &str) -> Option<Self> {
        let primary = tag.trim().split('-').next()?;
        Self::ALL.into_iter().find(|language| language.tag().eq_ignore_ascii_case(primary))
    }

    /// The one that `Accept-Language` likes best; English when it likes neither.
    pub fn preferred(header: &str) -> Self {
        let mut best = (Self::English, 0.0);
        for item in header.split(',').take(20) {
            let (tag, weight) = item.split_once(';').unwrap_or((item, "q=1"));
            let weight = weight.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).unwrap_or(0.0);
            if let Some(language) = Self::of_tag(tag)
                && weight > best.1
            {
                best = (language, weight);
            }
        }
        best.0
    }
}

/// A text with each `{}` replaced by the next value.
pub(super) fn fill(text: &str, values: &[&dyn std::fmt::Display]) -> String {
    let mut filled = String::with_capacity(text.len() + 16);
    let mut values = values.iter();
    let mut pieces = text.split("{}");
    filled.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        if let Some(value) = values.next() {
            filled.push_str(&value.to_string());
        }
        filled.push_str(piece);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_there_in_both_languages_with_the_same_values_and_hindi_is_hindi() {
        let tables = [Everywhere::PAIRS, Door::PAIRS, Device::PAIRS, Pairing::PAIRS];
        for [english, hindi] in tables.into_iter().flatten() {
            assert!(!english.is_empty() && !hindi.is_empty(), "{english}");
            assert_eq!(english.matches("{}").count(), hindi.matches("{}").count(), "{english}");
            let devanagari = hindi.chars().any(|c| ('\u{900}'..='\u{97f}').contains(&c));
            assert!(devanagari || hindi == english && english.len() < 20, "{hindi} is not translated");
            assert!(!english.chars().any(|c| ('\u{900}'..='\u{97f}').contains(&c)), "{english}");
        }
    }

    #[test]
    fn the_language_is_the_one_that_the_browser_likes_best() {
        for (header, language) in [
            ("hi-IN,hi;q=0.9,en;q=0.8", Language::Hindi),
            ("en-GB,en;q=0.9,hi;q=0.8", Language::English),
            ("de,hi;q=0.3", Language::Hindi),
            ("mr, ta;q=0.5", Language::English),
            ("", Language::English),
            ("hi;q=nonsense", Language::English),
        ] {
            assert_eq!(Language::preferred(header), language, "{header}");
        }
    }

    #[test]
    fn values_stand_where_they_belong() {
        assert_eq!(fill("{} of {}.", &[&1, &"two"]), "1 of two.");
        assert_eq!(fill("{}", &[]), "");
    }
}
