//! How often a wearable measures.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use kinara_protocol::channel::{self, ChannelId};
use kinara_protocol::entry;
use maud::{Markup, html};

use super::devices::{find, path};
use super::layout::{Page, done, name_of, problem, proof};
use crate::desk::{DeskError, DeviceView, Setting};
use crate::local::box_page::Front;
use crate::local::box_page::audit::Action;
use crate::local::box_page::form::Fields;
use crate::local::box_page::visit::{Attended, Form, Visit};
use crate::local::box_page::words::{self, Words, fill};
use crate::local::number;
use crate::status::Measures;

pub(super) async fn show(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
) -> Result<Markup, Response> {
    let device = find(&front, &at.visit, &of)?;
    let words = at.visit.words();
    let said = if at.visit.query.text("said") == "set" { words.device.intervals_kept } else { "" };
    Ok(page(&front, &at.visit, &device, said, ""))
}

pub(super) async fn set(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
    Form(fields): Form,
) -> Result<Response, Response> {
    let device = find(&front, &at.visit, &of)?;
    let words = at.visit.words();
    let hardware = &device.hardware;
    let result = match changes(&front, &device, &fields) {
        None => {
            let page = page(&front, &at.visit, &device, "", words.device.intervals_number);
            return Err((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
        }
        Some(changes) => front.desk.set_intervals(&at.person.actor(), hardware, &changes).await,
    };
    let failure = result.as_ref().err().map_or("", DeskError::code);
    front.did(&at.person.name, &at.visit, Action::SetIntervals, hardware.as_str(), failure).await;
    match result {
        Ok(_) => Ok(Redirect::to(&format!("{}?said=set", path(hardware, "intervals"))).into_response()),
        Err(error) => {
            let wrong = words::refused(at.visit.language, &error);
            Err((StatusCode::CONFLICT, page(&front, &at.visit, &device, "", &wrong)).into_response())
        }
    }
}

/// What the form says of each channel, 0 where nothing is in it; `None` where one is no number of seconds.
fn changes(front: &Front, device: &DeviceView, fields: &Fields) -> Option<Vec<(ChannelId, u16)>> {
    let (settings, _) = front.desk.intervals(&device.hardware).unwrap_or_default();
    let one = |setting: &Setting| {
        let id = setting.bounds.channel;
        // An empty field is the reference plan's; a zero typed into it is a mistake.
        Some((id, interval(fields.text(&field(id)))?))
    };
    settings.iter().map(one).collect()
}

/// The seconds in a field, 0 where there is nothing to see in it.
fn interval(typed: &str) -> Option<u16> {
    if typed.chars().all(entry::is_blank) {
        return Some(0);
    }
    number(typed).and_then(|seconds| u16::try_from(seconds).ok()).filter(|seconds| *seconds > 0)
}

fn field(id: ChannelId) -> String {
    format!("channel-{}", id.0)
}

fn page(front: &Front, visit: &Visit, device: &DeviceView, said: &str, wrong: &str) -> Markup {
    let words = visit.words();
    let title = words.device.intervals;
    let intervals = front.desk.intervals(&device.hardware);
    Page { front, visit, title, menu: "/", renews: false }.with(html! {
        (problem(wrong))
        (done(said))
        p.lead { strong { (name_of(device)) } }
        @match intervals {
            Err(error) => (problem(&words::refused(visit.language, &error))),
            Ok((settings, measures)) => {
                p { (state(words, &settings, &measures)) }
                p { (words.device.intervals_hint) }
                form.card method="post" action=(path(&device.hardware, "intervals")) {
                    (proof(front, visit))
                    @for setting in &settings { (row(words, setting)) }
                    button type="submit" { (words.device.intervals_set) }
                }
            }
        }
        p { a.button.second href=(path(&device.hardware, "")) { (words.all.cancel) } }
    })
}

fn row(words: &Words, setting: &Setting) -> Markup {
    let (id, bounds) = (field(setting.bounds.channel), setting.bounds);
    let hint = format!("{id}-hint");
    html! {
        label for=(id) { (name(words, bounds.channel)) }
        p.hint id=(hint) { (fill(words.device.intervals_bounds, &[&bounds.least_s, &bounds.most_s])) }
        input id=(id) name=(id) inputmode="numeric" maxlength="4" autocomplete="off" value=[setting.seconds]
            aria-describedby=(hint);
    }
}

fn state(words: &Words, settings: &[Setting], measures: &Measures) -> String {
    match measures {
        Measures::SoSince(_) => words.device.intervals_in_force.to_owned(),
        Measures::Not(why) => fill(words.device.intervals_refused, &[why]),
        Measures::Waits if settings.iter().all(|setting| setting.seconds.is_none()) => {
            words.device.intervals_reference.to_owned()
        }
        Measures::Waits => words.device.intervals_wait.to_owned(),
    }
}

fn name(words: &Words, id: ChannelId) -> &'static str {
    match id {
        channel::HEART_RATE => words.pairing.heart_rate,
        channel::SKIN_TEMPERATURE => words.pairing.skin_temperature,
        channel::AMBIENT_TEMPERATURE => words.device.ambient_temperature,
        channel::EDA => words.pairing.eda,
        channel::SPO2 => words.pairing.spo2,
        channel::BATTERY => words.device.battery,
        other => channel::by_id(other).map_or("", |known| known.name),
    }
}

#[cfg(test)]
mod tests {
    use super::interval;

    #[test]
    fn what_cannot_be_seen_in_an_interval_makes_no_difference() {
        assert_eq!([interval(""), interval(" \u{200B}")], [Some(0); 2]);
        assert_eq!([interval("10"), interval("\u{200B}\u{967}\u{966} ")], [Some(10); 2]);
        assert_eq!([interval("0"), interval("-1"), interval("x"), interval("70000")], [None; 4]);
    }
}
