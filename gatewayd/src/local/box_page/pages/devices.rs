//! The box and its wearables.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};

use super::layout::{Page, ago, done, name_of, notice, problem, proof, signal};
use crate::desk::{DeskError, DeviceView};
use crate::hardware::HardwareId;
use crate::local::box_page::Front;
use crate::local::box_page::audit::Action;
use crate::local::box_page::form::escaped;
use crate::local::box_page::visit::{Attended, Form, Visit};
use crate::local::box_page::words::{self, Words, fill};
use crate::status::{Admission, Link, Snapshot};

const HOUR_US: i64 = 3_600_000_000;

pub(super) async fn home(State(front): State<Arc<Front>>, at: Attended) -> Markup {
    let visit = &at.visit;
    let words = visit.words();
    let now_us = front.clock.utc_us();
    let board = front.desk.board().now();
    let devices = front.desk.devices();
    let said = visit.query.text("forgotten");
    let title = words.device.home_title;
    Page { front: &front, visit, title, menu: "/", renews: true }.with(html! {
        @if !said.is_empty() { (done(&fill(words.device.forgotten, &[&said]))) }
        @if !board.alerts.is_empty() {
            section.alerts aria-labelledby="alerts" {
                h2 #alerts { (words.device.alerts) }
                ul { @for text in board.alerts.values() { li { (text) } } }
            }
        }
        (state(words, &board, now_us))
        h2 { (words.all.devices) }
        @if devices.is_empty() { p { (words.device.none) } }
        ul.devices {
            @for device in &devices { li { (card(words, device, &board, now_us)) } }
        }
        p { a.button href="/pair" { (words.all.pair) } }
    })
}

fn state(words: &Words, board: &Snapshot, now_us: i64) -> Markup {
    let buffer = &board.buffer;
    let away = (words.device.cloud_off, false);
    let cloud = if board.uplink.connected { (words.device.cloud_on, true) } else { away };
    let disk = match buffer.admission {
        Admission::Everything => (words.device.disk_fine, true),
        Admission::NoWaveforms => (words.device.disk_soon, false),
        Admission::EventsOnly => (words.device.disk_full, false),
    };
    let known = board.clock.unknown_since_us.is_none();
    let clock = (if known { words.device.clock_known } else { words.device.clock_unknown }, known);
    let waiting = waiting(words, buffer.frames + buffer.batches, buffer.oldest_us, now_us);
    html! {
        dl.tiles {
            @for (name, (value, fine)) in
                [(words.device.cloud, cloud), (words.device.disk, disk), (words.device.clock, clock)]
            {
                div.tile.trouble[!fine] { dt { (name) } dd { (value) } }
            }
            div.tile { dt { (words.device.waiting) } dd { (waiting) } }
        }
    }
}

/// How much waits for the cloud: in hours, since its oldest was received.
fn waiting(words: &Words, count: u64, oldest_us: i64, now_us: i64) -> String {
    if count == 0 || oldest_us == 0 {
        return words.device.waiting_none.to_owned();
    }
    match (now_us - oldest_us).max(0) / HOUR_US {
        0 => words.device.waiting_little.to_owned(),
        hours => fill(words.device.waiting_hours, &[&(hours + 1)]),
    }
}

fn card(words: &Words, device: &DeviceView, board: &Snapshot, now_us: i64) -> Markup {
    html! {
        a.device href=(path(&device.hardware, "")) {
            strong { (name_of(device)) }
            span.wearer { (wearer(words, device)) }
            span.link.on[device.link.connected()] { (link(words, device.link)) }
        }
        dl.facts {
            (fact(words.device.battery, &battery(words, device)))
            (fact(words.device.signal, &signal(words, device.rssi_dbm)))
            (fact(words.device.last_seen, &html! { (ago(words, device.last_frame_us, now_us)) }))
            (fact(words.device.on_wearable, &html! { (on_wearable(words, device, now_us)) }))
            (fact(words.device.buffered,
                &html! { (waiting(words, device.buffered_frames, board.buffer.oldest_us, now_us)) }))
        }
        @if device.stale { (problem(words.device.stale)) }
        @else if !device.trouble.is_empty() { (problem(&device.trouble)) }
    }
}

fn fact(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn wearer(words: &Words, device: &DeviceView) -> String {
    device.wearer.as_ref().map_or_else(|| words.device.nobody.to_owned(), |(_, name)| name.clone())
}

fn link(words: &Words, link: Link) -> &'static str {
    match link {
        Link::Away => words.device.link_away,
        Link::Pairing => words.device.link_pairing,
        Link::Connecting => words.device.link_connecting,
        Link::Draining => words.device.link_draining,
        Link::Live => words.device.link_live,
    }
}

fn battery(words: &Words, device: &DeviceView) -> Markup {
    match device.battery_percent {
        None => html! { (words.all.unknown) },
        Some(percent) => html! {
            meter min="0" max="100" low="20" high="50" optimum="100" value=(percent) aria-hidden="true" {}
            " " (percent) " %"
        },
    }
}

/// What is still on the wearable: to be fetched when it is here, unknown but for its time when it is away.
fn on_wearable(words: &Words, device: &DeviceView, now_us: i64) -> String {
    if device.link.connected() {
        match device.behind_frames {
            0 => words.device.waiting_none.to_owned(),
            frames => fill(words.device.on_wearable_frames, &[&frames]),
        }
    } else if device.last_frame_us == 0 {
        words.all.unknown.to_owned()
    } else {
        match (now_us - device.last_frame_us).max(0) / HOUR_US {
            0 => words.all.less_than_an_hour.to_owned(),
            hours => fill(words.all.hours, &[&hours]),
        }
    }
}

/// The address of a page about a device.
pub(super) fn path(hardware: &HardwareId, what: &str) -> String {
    if what.is_empty() { format!("/device/{hardware}") } else { format!("/device/{hardware}/{what}") }
}

/// A device by its address; the page that says there is none.
#[allow(clippy::result_large_err, reason = "the answer itself, on its way out")]
pub(super) fn find(front: &Front, visit: &Visit, of: &str) -> Result<DeviceView, Response> {
    let hardware = HardwareId::parse(of).ok();
    let found = hardware.and_then(|h| front.desk.devices().into_iter().find(|device| device.hardware == h));
    found.ok_or_else(|| {
        let words = visit.words();
        let page = notice(front, visit, words.all.missing_title, words.all.missing);
        (StatusCode::NOT_FOUND, page).into_response()
    })
}

pub(super) async fn show(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
) -> Result<Markup, Response> {
    let device = find(&front, &at.visit, &of)?;
    let words = at.visit.words();
    let said = match at.visit.query.text("said") {
        "identified" => words.device.identified,
        "taken" => words.device.taken,
        "withdrawn" => words.device.withdrawn,
        _ => "",
    };
    Ok(device_page(&front, &at.visit, &device, said, ""))
}

fn device_page(front: &Front, visit: &Visit, device: &DeviceView, said: &str, wrong: &str) -> Markup {
    let words = visit.words();
    let now_us = front.clock.utc_us();
    let oldest_us = front.desk.board().now().buffer.oldest_us;
    let waits = waiting(words, device.buffered_frames, oldest_us, now_us);
    let worn = match device.worn {
        Some(true) => words.all.yes,
        Some(false) => words.all.no,
        None => words.all.unknown,
    };
    let of = &device.hardware;
    // What was said stays until the person goes on.
    let renews = said.is_empty() && wrong.is_empty();
    Page { front, visit, title: name_of(device), menu: "/", renews }.with(html! {
        (problem(wrong))
        (done(said))
        @if device.stale { (problem(words.device.stale)) }
        @else if !device.trouble.is_empty() { (problem(&device.trouble)) }
        dl.facts.long {
            (fact(words.device.wearer, &html! { (wearer(words, device)) }))
            (fact(words.device.link, &html! { (link(words, device.link)) }))
            (fact(words.device.signal, &signal(words, device.rssi_dbm)))
            (fact(words.device.battery, &battery(words, device)))
            (fact(words.device.worn, &html! { (worn) }))
            (fact(words.device.last_seen, &html! { (ago(words, device.last_frame_us, now_us)) }))
            (fact(words.device.on_wearable, &html! { (on_wearable(words, device, now_us)) }))
            (fact(words.device.buffered, &html! { (waits) }))
            (fact(words.device.number, &html! { span.quiet { (of) } }))
            (fact(words.device.firmware, &html! { span.quiet { (device.firmware) } }))
        }
        h2 { (words.device.actions) }
        div.actions {
            @if device.wearer.is_some() {
                (go(&format!("/live/{of}"), words.device.live, ""))
            }
            form method="post" action=(path(of, "identify")) {
                (proof(front, visit))
                button.second type="submit" aria-describedby="identify-hint" { (words.device.identify) }
                p.hint #identify-hint { (words.device.identify_hint) }
            }
            @if device.wearer.is_some() {
                (go(&format!("/wearer/{of}"), words.device.change, words.device.give_hint))
                (go(&path(of, "take"), words.device.take, words.device.take_hint))
                (go(&path(of, "withdraw"), words.device.withdraw, words.device.withdraw_hint))
            } @else {
                (go(&format!("/wearer/{of}"), words.device.give, words.device.give_hint))
            }
            @if of.factory_id().is_some() && device.bonded {
                (go(&path(of, "intervals"), words.device.intervals, words.device.intervals_why))
            }
            (go(&path(of, "forget"), words.device.forget, words.device.forget_hint))
        }
    })
}

fn go(to: &str, name: &str, hint: &str) -> Markup {
    html! {
        div {
            a.button.second href=(to) { (name) }
            @if !hint.is_empty() { p.hint { (hint) } }
        }
    }
}

pub(super) async fn identify(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
    Form(_): Form,
) -> Result<Response, Response> {
    let device = find(&front, &at.visit, &of)?;
    let result = front.desk.identify(&at.person.actor(), &device.hardware).await;
    finish(&front, &at, &device, Action::Identify, result, "identified").await
}

/// Writes down what was done, and shows the device again.
async fn finish(
    front: &Front,
    at: &Attended,
    device: &DeviceView,
    action: Action,
    result: Result<(), DeskError>,
    said: &str,
) -> Result<Response, Response> {
    let failure = result.as_ref().err().map_or("", DeskError::code);
    front.did(&at.person.name, &at.visit, action, device.hardware.as_str(), failure).await;
    match result {
        Ok(()) => Ok(Redirect::to(&format!("{}?said={said}", path(&device.hardware, ""))).into_response()),
        Err(error) => {
            let wrong = words::refused(at.visit.language, &error);
            Err((StatusCode::CONFLICT, device_page(front, &at.visit, device, "", &wrong)).into_response())
        }
    }
}

struct Question<'a> {
    title: &'a str,
    text: &'a str,
    warning: &'a str,
    yes: &'a str,
    what: &'a str,
}

fn ask(front: &Front, visit: &Visit, device: &DeviceView, question: &Question<'_>) -> Markup {
    let words = visit.words();
    Page { front, visit, title: words.device.confirm_title, menu: "/", renews: false }.with(html! {
        p.lead { strong { (question.title) } ": " (name_of(device)) " · " (wearer(words, device)) }
        p { (question.text) }
        @if !question.warning.is_empty() { (problem(question.warning)) }
        form.row method="post" action=(path(&device.hardware, question.what)) {
            (proof(front, visit))
            a.button.second href=(path(&device.hardware, "")) { (words.all.cancel) }
            button.danger type="submit" { (question.yes) }
        }
    })
}

pub(super) async fn ask_take(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
) -> Result<Markup, Response> {
    let device = find(&front, &at.visit, &of)?;
    let words = &at.visit.words().device;
    let question = Question {
        title: words.take,
        text: words.take_hint,
        warning: "",
        yes: words.confirm_take,
        what: "take",
    };
    Ok(ask(&front, &at.visit, &device, &question))
}

pub(super) async fn take(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
    Form(_): Form,
) -> Result<Response, Response> {
    let device = find(&front, &at.visit, &of)?;
    let result = front.desk.unbind(&at.person.actor(), &device.hardware).await;
    finish(&front, &at, &device, Action::Unbind, result, "taken").await
}

pub(super) async fn ask_withdraw(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
) -> Result<Markup, Response> {
    let device = find(&front, &at.visit, &of)?;
    let words = &at.visit.words().device;
    let question = Question {
        title: words.withdraw,
        text: words.withdraw_hint,
        warning: "",
        yes: words.confirm_withdraw,
        what: "withdraw",
    };
    Ok(ask(&front, &at.visit, &device, &question))
}

pub(super) async fn withdraw(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
    Form(_): Form,
) -> Result<Response, Response> {
    let device = find(&front, &at.visit, &of)?;
    let Some((user, _)) = device.wearer else {
        return Ok(Redirect::to(&path(&device.hardware, "")).into_response());
    };
    let result = front.desk.withdraw_consent(&at.person.actor(), user).await;
    finish(&front, &at, &device, Action::Withdraw, result, "withdrawn").await
}

pub(super) async fn ask_forget(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
) -> Result<Markup, Response> {
    let device = find(&front, &at.visit, &of)?;
    let words = &at.visit.words().device;
    let empty = device.link.connected() && device.behind_frames == 0;
    let question = Question {
        title: words.forget,
        text: words.forget_hint,
        warning: if empty { "" } else { words.unsent },
        yes: words.confirm_forget,
        what: "forget",
    };
    Ok(ask(&front, &at.visit, &device, &question))
}

pub(super) async fn forget(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
    Form(_): Form,
) -> Result<Response, Response> {
    let device = find(&front, &at.visit, &of)?;
    let result = front.desk.forget(&at.person.actor(), &device.hardware).await;
    if result.is_err() {
        return finish(&front, &at, &device, Action::Forget, result, "").await;
    }
    front.did(&at.person.name, &at.visit, Action::Forget, device.hardware.as_str(), "").await;
    Ok(Redirect::to(&format!("/?forgotten={}", escaped(name_of(&device)))).into_response())
}
