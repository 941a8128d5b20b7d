//! Who wears a device, and that they agree.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use kinara_protocol::entry;
use maud::{Markup, PreEscaped, html};
use uuid::Uuid;

use super::devices::find;
use super::layout::{Page, done, name_of, problem, proof};
use crate::desk::{ConsentGiven, DeskError, DeviceView, Log, Wearer};
use crate::local::box_page::Front;
use crate::local::box_page::audit::Action;
use crate::local::box_page::form::Fields;
use crate::local::box_page::staff::{LONGEST_NAME, tidy_name};
use crate::local::box_page::visit::{Attended, Form, Visit};
use crate::local::box_page::words::{self, Language, Words, fill};
use crate::roster::{ConsentText, Roster, WearerEntry};

pub(super) async fn show(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
) -> Result<Markup, Response> {
    let device = find(&front, &at.visit, &of)?;
    Ok(wearer_page(&front, &at.visit, &device, ""))
}

fn step(words: &Words, number: u8) -> Markup {
    html! { p.step { (fill(words.pairing.step, &[&number])) } }
}

fn wearer_page(front: &Front, visit: &Visit, device: &DeviceView, wrong: &str) -> Markup {
    let words = visit.words();
    let wearers = front.desk.roster().borrow().wearers.clone();
    let said = if visit.query.text("paired").is_empty() {
        String::new()
    } else {
        fill(words.pairing.paired, &[&name_of(device)])
    };
    let action = format!("/wearer/{}", device.hardware);
    Page { front, visit, title: words.pairing.wearer_title, menu: "/pair", renews: false }.with(html! {
        (step(words, 4))
        (done(&said))
        (problem(wrong))
        form.card method="post" action=(action) {
            (proof(front, visit))
            label for="wearer" { (words.pairing.wearer_known) }
            @if wearers.is_empty() { p.hint { (words.pairing.wearer_none) } }
            @else {
                select #wearer name="wearer" required {
                    option value="" { (words.pairing.wearer_choose) }
                    @for one in &wearers { option value=(one.user) { (described(words, one)) } }
                }
                button type="submit" { (words.all.next) }
            }
        }
        p.or { (words.pairing.code_or) }
        form.card method="post" action=(action) {
            (proof(front, visit))
            h2 { (words.pairing.wearer_new) }
            label for="name" { (words.pairing.wearer_new_name) }
            p.hint #name-hint { (words.pairing.wearer_new_hint) }
            input #name name="name" required maxlength=(entry::LONGEST_NAME) autocomplete="off"
                aria-describedby="name-hint";
            button type="submit" { (words.all.next) }
        }
    })
}

fn described(words: &Words, one: &WearerEntry) -> String {
    let mut text = one.called();
    if one.provisional {
        text = format!("{text} · {}", words.pairing.provisional);
    }
    for hardware in &one.hardware {
        text = format!("{text} · {}", fill(words.pairing.wearer_has, &[hardware]));
    }
    text
}

/// Whom a form names, and as people are to read of them: somebody of the roster, or somebody new.
fn named(roster: &Roster, fields: &Fields) -> Option<(Wearer, String)> {
    if let Ok(user) = fields.text("wearer").parse::<Uuid>() {
        let entry = roster.wearers.iter().find(|entry| entry.user == user)?;
        return Some((Wearer::Known(user), entry.called()));
    }
    let name = entry::name(fields.text("name"), entry::LONGEST_NAME).ok()?;
    Some((Wearer::Provisional { display_name: name.clone() }, name))
}

pub(super) async fn chosen(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
    Form(fields): Form,
) -> Result<Response, Response> {
    let device = find(&front, &at.visit, &of)?;
    let roster = front.desk.roster().borrow().clone();
    let words = at.visit.words();
    let Some((wearer, name)) = named(&roster, &fields) else {
        let page = wearer_page(&front, &at.visit, &device, words.pairing.wearer_missing);
        return Err((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    };
    let asked = Asked { wearer: &wearer, name: &name, fields: &fields, by: &at.person.name, held: false };
    Ok(consent_page(&front, &at.visit, &device, &roster, &asked, "").into_response())
}

/// What the consent page is about.
struct Asked<'a> {
    wearer: &'a Wearer,
    name: &'a str,
    fields: &'a Fields,
    by: &'a str,
    /// The device holds readings of its former wearer.
    held: bool,
}

/// The text in the language that was chosen, else in the page's, else the first.
fn text_of<'a>(roster: &'a Roster, visit: &Visit, chosen: &str) -> Option<&'a ConsentText> {
    let texts = &roster.consent_texts;
    let by = |language: &str| texts.iter().find(|text| text.language == language);
    by(chosen).or_else(|| by(visit.language.tag())).or_else(|| by("en")).or_else(|| texts.first())
}

fn consent_page(
    front: &Front,
    visit: &Visit,
    device: &DeviceView,
    roster: &Roster,
    asked: &Asked<'_>,
    wrong: &str,
) -> Markup {
    let words = visit.words();
    let title = fill(words.pairing.consent_title, &[&asked.name]);
    let page = Page { front, visit, title: &title, menu: "/pair", renews: false };
    let Some(text) = text_of(roster, visit, asked.fields.text("consent_language")) else {
        return page.with(html! {
            (step(words, 5))
            (problem(words.pairing.consent_none))
            p { a.button href=(super::devices::path(&device.hardware, "")) { (words.all.back) } }
        });
    };
    let whom = whom(asked);
    let by = match asked.fields.text("asked_by") {
        "" => asked.by,
        typed => typed,
    };
    page.with(html! {
        (step(words, 5))
        (problem(wrong))
        p { (words.pairing.consent_read) }
        @if roster.consent_texts.len() > 1 {
            form.row method="post" action=(format!("/wearer/{}", device.hardware)) {
                (proof(front, visit)) (whom)
                @for other in &roster.consent_texts {
                    button.plain type="submit" name="consent_language" value=(other.language)
                        aria-pressed=(if other.language == text.language { "true" } else { "false" }) {
                        (name_of_language(&other.language))
                    }
                }
            }
        }
        div.consent lang=(text.language) tabindex="0" {
            @for line in text.text.lines().filter(|line| !line.trim().is_empty()) { p { (line) } }
        }
        p.quiet { (fill(words.pairing.consent_version, &[&text.version])) }
        form.card method="post" action=(format!("/consent/{}", device.hardware)) {
            (proof(front, visit)) (whom)
            input type="hidden" name="version" value=(text.version);
            input type="hidden" name="consent_language" value=(text.language);
            input type="hidden" name="sha256" value=(hex::encode(text.sha256()));
            label for="asked-by" { (words.pairing.consent_asked_by) }
            input #asked-by name="asked_by" required maxlength=(LONGEST_NAME) value=(by);
            label.tick {
                input #agrees type="checkbox" name="agrees" value="yes" required;
                (fill(words.pairing.consent_yes, &[&asked.name]))
            }
            @if asked.held {
                (problem(words.pairing.drain))
                label.tick { input type="checkbox" name="format" value="yes"; (words.pairing.format_confirm) }
            }
            button type="submit" {
                @if asked.held { (words.pairing.format_do) } @else { (words.pairing.consent_do) }
            }
        }
    })
}

fn name_of_language(tag: &str) -> &str {
    Language::of_tag(tag).map_or(tag, |language| language.name())
}

/// The wearer, as hidden fields.
fn whom(asked: &Asked<'_>) -> PreEscaped<String> {
    html! {
        @match asked.wearer {
            Wearer::Known(user) => input type="hidden" name="wearer" value=(user);,
            Wearer::Provisional { display_name } => input type="hidden" name="name" value=(display_name);,
        }
    }
}

pub(super) async fn agreed(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
    Form(fields): Form,
) -> Result<Response, Response> {
    let device = find(&front, &at.visit, &of)?;
    let roster = front.desk.roster().borrow().clone();
    let words = at.visit.words();
    let Some((wearer, name)) = named(&roster, &fields) else {
        let page = wearer_page(&front, &at.visit, &device, words.pairing.wearer_missing);
        return Err((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    };
    let again = |text: &str, held: bool| {
        let asked = Asked { wearer: &wearer, name: &name, fields: &fields, by: &at.person.name, held };
        let page = consent_page(&front, &at.visit, &device, &roster, &asked, text);
        (StatusCode::UNPROCESSABLE_ENTITY, page).into_response()
    };
    if fields.text("agrees") != "yes" {
        return Err(again(words.pairing.consent_unticked, false));
    }
    let Some(asked_by) = tidy_name(fields.text("asked_by")) else {
        return Err(again(words.pairing.consent_no_asker, false));
    };
    // What was shown, not what is in force by now: the desk knows whether that is the same.
    let sha256 = hex::decode(fields.text("sha256")).ok().and_then(|bytes| bytes.try_into().ok());
    let Some(text_sha256) = sha256 else {
        return Err(again(&words::refused(at.visit.language, &DeskError::OtherConsentText), false));
    };
    let consent = ConsentGiven {
        version: fields.text("version").to_owned(),
        language: fields.text("consent_language").to_owned(),
        text_sha256,
        asked_by,
    };
    let log = if fields.text("format") == "yes" { Log::Format } else { Log::Drain };
    let result = front.desk.bind(&at.person.actor(), &device.hardware, wearer.clone(), consent, log).await;
    let subject = match &result {
        Ok(user) => format!("{} → {user}", device.hardware),
        Err(_) => device.hardware.to_string(),
    };
    let failure = result.as_ref().err().map_or("", DeskError::code);
    front.did(&at.person.name, &at.visit, Action::Bind, &subject, failure).await;
    match result {
        Ok(_) => {
            let since_s = front.clock.boottime_us() / 1_000_000;
            Ok(Redirect::to(&format!("/live/{}?since={since_s}", device.hardware)).into_response())
        }
        Err(DeskError::NotDrained { .. }) => Err(again("", true)),
        Err(error) => Err(again(&words::refused(at.visit.language, &error), false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roster::tests::namesakes;

    #[test]
    fn who_is_asked_to_consent_is_told_from_a_wearer_of_the_same_name() {
        let roster = Roster { wearers: namesakes().to_vec(), ..Roster::default() };
        let asked = |entry: &WearerEntry| {
            let fields = Fields::query(&format!("wearer={}", entry.user));
            named(&roster, &fields).unwrap().1
        };
        let called: Vec<String> = roster.wearers.iter().map(asked).collect();
        assert_eq!(called, ["Anjali Verma (V1)", "Anjali Verma (V2)"]);
        assert_eq!(named(&roster, &Fields::query("name=Bela")).unwrap().1, "Bela");
    }
}
