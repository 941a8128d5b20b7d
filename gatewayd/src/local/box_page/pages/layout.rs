//! What all pages have: head, menu, language, and small parts.

use axum::http::Uri;
use maud::{DOCTYPE, Markup, html};

use crate::desk::DeviceView;
use crate::local::box_page::Front;
use crate::local::box_page::visit::Visit;
use crate::local::box_page::words::{Language, Words, fill};

/// A page that renews itself does so this often, seconds.
pub(super) const RENEW_S: u32 = 2;

/// A whole page.
pub(in crate::local::box_page) struct Page<'a> {
    /// The box.
    pub front: &'a Front,
    /// Who asks.
    pub visit: &'a Visit,
    /// Its heading.
    pub title: &'a str,
    /// Which entry of the menu it belongs to: its path.
    pub menu: &'a str,
    /// What it shows changes by itself; not for pages with something to type.
    pub renews: bool,
}

impl Page<'_> {
    /// The page around its content.
    pub fn with(&self, body: Markup) -> Markup {
        let words = self.visit.words();
        let renew_s = self.renews.then_some(RENEW_S);
        html! {
            (DOCTYPE)
            html lang=(words.tag) {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (self.title) " · Kinara" }
                    link rel="stylesheet" href="/style.css";
                    script src="/box.js" defer {}
                    @if let Some(seconds) = renew_s {
                        @let again = format!("{seconds}; url={}", self.auto());
                        noscript { meta http-equiv="refresh" content=(again); }
                    }
                }
                body data-renew-s=[renew_s] {
                    a.skip href="#main" { (words.all.skip) }
                    header.top {
                        p.box-name { (self.front.settings.name) }
                        @if let Some(person) = &self.visit.person { p.who { (person.name) } }
                        (languages(self.front, self.visit))
                    }
                    @if self.visit.person.is_some() { (self.navigation(words)) }
                    main #main tabindex="-1" {
                        h1 { (self.title) }
                        (body)
                    }
                }
            }
        }
    }

    fn navigation(&self, words: &Words) -> Markup {
        let entries = [
            ("/", words.all.devices),
            ("/pair", words.all.pair),
            ("/staff", words.all.staff),
            ("/audit", words.all.audit),
            ("/help", words.all.help),
        ];
        html! {
            nav aria-label=(words.all.menu) {
                @for (path, name) in entries {
                    a href=(path) aria-current=[(path == self.menu).then_some("page")] { (name) }
                }
                form method="post" action="/logout" {
                    (proof(self.front, self.visit))
                    button.plain type="submit" { (words.all.log_out) }
                }
            }
        }
    }

    /// This page's address, said to be asked for by nobody.
    fn auto(&self) -> String {
        let path = self.visit.path.replace("?auto=1", "?").replace("&auto=1", "");
        let path = path.trim_end_matches('?');
        format!("{path}{}auto=1", if path.contains('?') { '&' } else { '?' })
    }
}

/// A page that says one thing.
pub(in crate::local::box_page) fn notice(front: &Front, visit: &Visit, title: &str, text: &str) -> Markup {
    Page { front, visit, title, menu: "", renews: false }.with(html! {
        p.lead { (text) }
        p { a.button href="/" { (visit.words().all.home) } }
    })
}

/// What proves that a form was made here for this visitor.
pub(in crate::local::box_page) fn proof(front: &Front, visit: &Visit) -> Markup {
    html! { input type="hidden" name="proof" value=(front.secret.form_proof(&visit.token)); }
}

fn languages(front: &Front, visit: &Visit) -> Markup {
    // A page that answers a form cannot be asked for again: from there one comes to the start.
    let known = visit.path.parse::<Uri>().is_ok_and(|uri| !uri.path().starts_with("/consent"));
    let back = if known { visit.path.as_str() } else { "/" };
    html! {
        form.languages method="post" action="/language" aria-label=(visit.words().all.language) {
            (proof(front, visit))
            input type="hidden" name="back" value=(back);
            @for language in Language::ALL {
                @let pressed = (language == visit.language).to_string();
                button.plain type="submit" name="to" value=(language.tag()) lang=(language.tag())
                    aria-pressed=(pressed) { (language.name()) }
            }
        }
    }
}

/// Something went wrong with what was typed; nothing when there is no text.
pub(super) fn problem(text: &str) -> Markup {
    html! { @if !text.is_empty() { p.problem role="alert" { (text) } } }
}

/// Something was done.
pub(super) fn done(text: &str) -> Markup {
    html! { @if !text.is_empty() { p.done role="status" { (text) } } }
}

/// Signal strength, as bars and a word.
pub(super) fn signal(words: &Words, rssi_dbm: Option<i16>) -> Markup {
    let Some(rssi_dbm) = rssi_dbm else { return html! { (words.all.unknown) } };
    let (bars, word) = match rssi_dbm {
        -64.. => (3, words.device.signal_strong),
        -79..=-65 => (2, words.device.signal_good),
        _ => (1, words.device.signal_weak),
    };
    html! {
        span.bars aria-hidden="true" {
            @for bar in 1..=3 { span.bar.on[bar <= bars] {} }
        }
        (word) " " span.quiet { "(" (rssi_dbm) " dBm)" }
    }
}

/// How long ago something was. Times are UTC microseconds; 0 is never.
pub(super) fn ago(words: &Words, then_us: i64, now_us: i64) -> String {
    if then_us == 0 {
        return words.all.never.to_owned();
    }
    match (now_us - then_us).max(0) / 1_000_000 {
        s @ 0..=119 => fill(words.all.seconds_ago, &[&s]),
        s @ 120..=7_199 => fill(words.all.minutes_ago, &[&(s / 60)]),
        s @ 7_200..=172_799 => fill(words.all.hours_ago, &[&(s / 3_600)]),
        s => fill(words.all.days_ago, &[&(s / 86_400)]),
    }
}

/// What a device is called: by the name that it advertises, else by its number.
pub(super) fn name_of(device: &DeviceView) -> &str {
    if device.name.is_empty() { device.hardware.as_str() } else { &device.name }
}
