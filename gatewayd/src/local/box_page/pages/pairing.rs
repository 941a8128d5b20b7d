//! The pairing wizard up to the paired device: open the window, choose what is near, show that one holds it.
//!
//! A pairing runs in a task of its own and what became of it waits for the person who began it ([`Attempt`]):
//! the browser asks again and again, and may go away meanwhile.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use kinara_protocol::entry;
use maud::{Markup, html};

use super::layout::{Page, problem, proof, signal};
use crate::desk::{Code, DeskError, Nearby, Why, Window};
use crate::hardware::HardwareId;
use crate::local::box_page::audit::Action;
use crate::local::box_page::form::escaped;
use crate::local::box_page::photo::{PhotoError, label_of, read_label};
use crate::local::box_page::visit::{Attended, Form, PhotoForm, Visit};
use crate::local::box_page::words::{self, Words, fill};
use crate::local::box_page::{Front, lock};
use crate::radio::Offer;

/// How long the window is opened for: as long as the wearable's own.
const WINDOW: Duration = Duration::from_mins(2);
/// How long a photo waits for another person's.
const QUEUE_FOR_PHOTO: Duration = Duration::from_secs(20);

/// A pairing that a person has begun.
#[derive(Debug, Clone)]
pub(in crate::local::box_page) struct Attempt {
    name: String,
    outcome: Outcome,
}

#[derive(Debug, Clone)]
enum Outcome {
    Running,
    Paired(HardwareId),
    Failed(Arc<DeskError>),
}

pub(super) async fn show(State(front): State<Arc<Front>>, at: Attended) -> Response {
    let visit = &at.visit;
    let attempt = {
        let mut attempts = lock(&front.attempts);
        let leave = !visit.query.text("again").is_empty();
        let over = |attempt: &Attempt| !matches!(attempt.outcome, Outcome::Running);
        if leave && attempts.get(&at.person.id).is_some_and(over) {
            attempts.remove(&at.person.id);
        }
        attempts.get(&at.person.id).cloned()
    };
    let window = front.desk.window().borrow().clone();
    match attempt {
        Some(Attempt { name, outcome: Outcome::Running }) => {
            if matches!(window, Window::Pairing { wants_passkey: true, .. }) {
                return passkey_page(&front, visit, &name, "").into_response();
            }
            working(&front, visit, &name).into_response()
        }
        Some(Attempt { outcome: Outcome::Paired(hardware), .. }) => {
            lock(&front.attempts).remove(&at.person.id);
            Redirect::to(&format!("/wearer/{hardware}?paired=1")).into_response()
        }
        Some(Attempt { name, outcome: Outcome::Failed(error) }) => {
            // The third wrong code is one that closed the window: that is what matters now.
            let closed = match (&*error, window) {
                (DeskError::Pairing(Why::WrongCode), Window::Closed { why: Some(why) }) => {
                    Some(DeskError::Pairing(why))
                }
                _ => None,
            };
            failed(&front, visit, &name, closed.as_ref().unwrap_or(&error)).into_response()
        }
        None => match window {
            Window::Open { until_boot_us, nearby, wrong_codes } => {
                let left_s = (until_boot_us - front.clock.boottime_us()).max(0) / 1_000_000;
                nearby_page(&front, visit, left_s, &nearby, wrong_codes).into_response()
            }
            Window::Pairing { .. } => working(&front, visit, "").into_response(),
            Window::Closed { why } => begin(&front, visit, why.as_ref()).into_response(),
            // The window is open; what is near is shown again in a moment.
            Window::Failed { .. } => listening(&front, visit).into_response(),
            Window::Paired { .. } => begin(&front, visit, None).into_response(),
        },
    }
}

fn step(words: &Words, number: u8) -> Markup {
    html! { p.step { (fill(words.pairing.step, &[&number])) } }
}

fn begin(front: &Front, visit: &Visit, why: Option<&Why>) -> Markup {
    let words = visit.words();
    Page { front, visit, title: words.pairing.title, menu: "/pair", renews: false }.with(html! {
        (step(words, 1))
        @if let Some(why) = why { (failure(visit, why)) }
        p.lead { (words.pairing.begin) }
        form method="post" action="/pair/open" {
            (proof(front, visit))
            button type="submit" { (words.pairing.begin_window) }
        }
        p.hint { (words.pairing.begin_window_hint) }
    })
}

fn failure(visit: &Visit, why: &Why) -> Markup {
    html! {
        div.problem role="alert" {
            strong { (words::happened(visit.language, why)) }
            " " (words::advice(visit.language, why))
        }
    }
}

fn nearby_page(front: &Front, visit: &Visit, left_s: i64, nearby: &[Nearby], wrong_codes: u8) -> Markup {
    let words = visit.words();
    Page { front, visit, title: words.pairing.title, menu: "/pair", renews: true }.with(html! {
        (step(words, 2))
        p.lead { (words.pairing.begin_button) }
        @if wrong_codes > 0 { (problem(&fill(words.pairing.wrong_codes, &[&wrong_codes]))) }
        h2 { (words.pairing.nearby) }
        @if nearby.is_empty() { p.waiting role="status" { (words.pairing.nearby_none) } }
        ul.nearby { @for one in nearby { li { (near(words, one)) } } }
        p.hint role="timer" { (fill(words.pairing.closes_in, &[&left_s])) }
        form method="post" action="/pair/close" {
            (proof(front, visit))
            button.second type="submit" { (words.pairing.close) }
        }
    })
}

fn listening(front: &Front, visit: &Visit) -> Markup {
    let words = visit.words();
    Page { front, visit, title: words.pairing.title, menu: "/pair", renews: true }.with(html! {
        (step(words, 2))
        p.lead { (words.pairing.begin_button) }
        p.waiting role="status" { (words.pairing.nearby_none) }
        form method="post" action="/pair/close" {
            (proof(front, visit))
            button.second type="submit" { (words.pairing.close) }
        }
    })
}

fn near(words: &Words, one: &Nearby) -> Markup {
    let kind = match &one.offer {
        Offer::Label { .. } => "",
        Offer::Display => words.pairing.has_display,
        Offer::Sensor(_) => words.pairing.sensor,
        Offer::Introduction { .. } => words.pairing.introduced,
    };
    let inner = html! {
        strong { (one.name) }
        @if !kind.is_empty() { span.quiet { (kind) } }
        span.strength { (signal(words, Some(one.rssi_dbm))) }
    };
    let introduced = matches!(one.offer, Offer::Introduction { .. });
    html! {
        @if introduced { div.near { (inner) } }
        @else { a.near id=(format!("near-{}", one.key)) href=(code_path(&one.key)) { (inner) } }
    }
}

fn code_path(key: &str) -> String {
    format!("/pair/code?key={}", escaped(key))
}

pub(super) async fn open(State(front): State<Arc<Front>>, at: Attended, Form(_): Form) -> Response {
    lock(&front.attempts).remove(&at.person.id);
    let result = front.desk.open_window(&at.person.actor(), WINDOW);
    let failure = result.as_ref().err().map_or("", DeskError::code);
    front.did(&at.person.name, &at.visit, Action::OpenWindow, "", failure).await;
    match result {
        Ok(()) => Redirect::to("/pair").into_response(),
        Err(error) => (StatusCode::CONFLICT, failed(&front, &at.visit, "", &error)).into_response(),
    }
}

pub(super) async fn close(State(front): State<Arc<Front>>, at: Attended, Form(_): Form) -> Response {
    front.desk.close_window(&at.person.actor());
    front.did(&at.person.name, &at.visit, Action::CloseWindow, "", "").await;
    Redirect::to("/").into_response()
}

pub(super) async fn show_code(State(front): State<Arc<Front>>, at: Attended) -> Response {
    code_page(&front, &at.visit, at.visit.query.text("key"), "")
}

fn find(front: &Front, key: &str) -> Option<Nearby> {
    match &*front.desk.window().borrow() {
        Window::Open { nearby, .. } => nearby.iter().find(|one| one.key == key).cloned(),
        _ => None,
    }
}

fn code_page(front: &Front, visit: &Visit, key: &str, wrong: &str) -> Response {
    let words = visit.words();
    let Some(chosen) = find(front, key) else {
        let text = html! {
            (step(words, 3))
            (problem(words.pairing.gone))
            p { a.button href="/pair?again=1" { (words.all.back) } }
        };
        let page = Page { front, visit, title: words.pairing.title, menu: "/pair", renews: false };
        return (StatusCode::CONFLICT, page.with(text)).into_response();
    };
    let ways = match &chosen.offer {
        Offer::Display => by_display(front, visit, &chosen),
        Offer::Sensor(_) => by_name(front, visit, &chosen),
        Offer::Label { .. } | Offer::Introduction { .. } => by_label(front, visit, &chosen),
    };
    let title = fill(words.pairing.code_title, &[&chosen.name]);
    let page = Page { front, visit, title: &title, menu: "/pair", renews: false }.with(html! {
        (step(words, 3))
        (problem(wrong))
        (ways)
        p { a href="/pair" { (words.all.back) } }
    });
    let status = if wrong.is_empty() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    (status, page).into_response()
}

fn by_label(front: &Front, visit: &Visit, chosen: &Nearby) -> Markup {
    let words = visit.words();
    html! {
        form.card method="post" action="/pair/photo" enctype="multipart/form-data" {
            (proof(front, visit))
            input type="hidden" name="key" value=(chosen.key);
            label for="photo" { (words.pairing.code_photo) }
            p.hint #photo-hint { (words.pairing.code_photo_hint) }
            input #photo name="photo" type="file" accept="image/jpeg,image/png" capture="environment" required
                aria-describedby="photo-hint";
            button type="submit" { (words.pairing.code_photo_do) }
        }
        p.or { (words.pairing.code_or) }
        form.card method="post" action="/pair/label" {
            (proof(front, visit))
            input type="hidden" name="key" value=(chosen.key);
            label for="code" { (words.pairing.code_type) }
            p.hint #code-hint { (words.pairing.code_type_hint) }
            input.code #code name="code" required autocomplete="off" autocapitalize="characters"
                spellcheck="false" maxlength="40" aria-describedby="code-hint";
            button type="submit" { (words.pairing.code_type_do) }
        }
    }
}

fn by_display(front: &Front, visit: &Visit, chosen: &Nearby) -> Markup {
    let words = visit.words();
    html! {
        p { (words.pairing.display_intro) }
        form method="post" action="/pair/display" {
            (proof(front, visit))
            input type="hidden" name="key" value=(chosen.key);
            button type="submit" { (words.pairing.display_do) }
        }
    }
}

/// A sensor of another maker: by its own number if it shows one, else on the person's word.
fn by_name(front: &Front, visit: &Visit, chosen: &Nearby) -> Markup {
    let words = visit.words();
    html! {
        p { (words.pairing.sensor_display) }
        (by_display(front, visit, chosen))
        p.or { (words.pairing.code_or) }
        p { (words.pairing.sensor_intro) }
        form.card method="post" action="/pair/sensor" {
            (proof(front, visit))
            input type="hidden" name="key" value=(chosen.key);
            label.tick {
                input type="checkbox" name="hold" value="yes" required;
                (fill(words.pairing.sensor_confirm, &[&chosen.name]))
            }
            button type="submit" { (words.pairing.sensor_do) }
        }
    }
}

pub(super) async fn typed(State(front): State<Arc<Front>>, at: Attended, Form(fields): Form) -> Response {
    let key = fields.text("key");
    match label_of(fields.text("code")) {
        Some(secret) => start(&front, &at, key, Code::Label(secret)),
        None => code_page(&front, &at.visit, key, at.visit.words().pairing.label_bad),
    }
}

pub(super) async fn photo(
    State(front): State<Arc<Front>>,
    at: Attended,
    PhotoForm(fields): PhotoForm,
) -> Response {
    let words = at.visit.words();
    let key = fields.text("key");
    let picture = fields.bytes("photo").unwrap_or_default().to_vec();
    let queue = front.one_photo.clone().acquire_owned();
    let Ok(Ok(one)) = tokio::time::timeout(QUEUE_FOR_PHOTO, queue).await else {
        return code_page(&front, &at.visit, key, words.all.busy);
    };
    let read = tokio::task::spawn_blocking(move || {
        // Held as long as the work lasts, whether somebody still waits for it or not.
        let _one = one;
        read_label(&picture)
    });
    // A decoder that panics has met a picture that is none.
    match read.await.unwrap_or(Err(PhotoError::NotAPicture)) {
        Ok(secret) => start(&front, &at, key, Code::Label(secret)),
        Err(error) => {
            let text = match error {
                PhotoError::NotAPicture => words.pairing.photo_bad,
                PhotoError::TooLarge => words.pairing.photo_large,
                PhotoError::NoCode => words.pairing.photo_none,
                PhotoError::OtherCode => words.pairing.photo_other,
            };
            code_page(&front, &at.visit, key, text)
        }
    }
}

pub(super) async fn display(State(front): State<Arc<Front>>, at: Attended, Form(fields): Form) -> Response {
    start(&front, &at, fields.text("key"), Code::Display)
}

pub(super) async fn sensor(State(front): State<Arc<Front>>, at: Attended, Form(fields): Form) -> Response {
    let key = fields.text("key");
    if fields.text("hold") != "yes" {
        return code_page(&front, &at.visit, key, at.visit.words().pairing.sensor_unticked);
    }
    start(&front, &at, key, Code::JustWorks)
}

/// Begins to pair; the page shows what becomes of it.
fn start(front: &Arc<Front>, at: &Attended, key: &str, code: Code) -> Response {
    let Some(chosen) = find(front, key) else { return code_page(front, &at.visit, key, "") };
    let (person, visit, name) = (at.person.clone(), at.visit.clone(), chosen.name);
    lock(&front.attempts).insert(person.id, Attempt { name: name.clone(), outcome: Outcome::Running });
    let front = front.clone();
    tokio::spawn(async move {
        let result = front.desk.pair(&person.actor(), &chosen.key, code).await;
        let subject =
            result.as_ref().map_or_else(|_| name.clone(), |hardware| format!("{name} ({hardware})"));
        let failure = result.as_ref().err().map_or("", DeskError::code);
        front.did(&person.name, &visit, Action::Pair, &subject, failure).await;
        let outcome = match result {
            Ok(hardware) => Outcome::Paired(hardware),
            Err(error) => Outcome::Failed(Arc::new(error)),
        };
        lock(&front.attempts).insert(person.id, Attempt { name, outcome });
    });
    Redirect::to("/pair").into_response()
}

fn working(front: &Front, visit: &Visit, name: &str) -> Markup {
    let words = visit.words();
    let title = if name.is_empty() { words.pairing.title } else { name };
    Page { front, visit, title, menu: "/pair", renews: true }.with(html! {
        (step(words, 3))
        p.waiting role="status" { (words.pairing.working) }
        p { (words.pairing.keep_near) }
        form method="post" action="/pair/close" {
            (proof(front, visit))
            button.second type="submit" { (words.all.cancel) }
        }
    })
}

fn passkey_page(front: &Front, visit: &Visit, name: &str, wrong: &str) -> Markup {
    let words = visit.words();
    Page { front, visit, title: name, menu: "/pair", renews: false }.with(html! {
        (step(words, 3))
        (problem(wrong))
        form.card method="post" action="/pair/passkey" {
            (proof(front, visit))
            label for="passkey" { (words.pairing.display_type) }
            input.pin #passkey name="passkey" inputmode="numeric" required minlength="6" maxlength="8"
                autocomplete="off" autofocus;
            button type="submit" { (words.all.next) }
        }
    })
}

pub(super) async fn passkey(State(front): State<Arc<Front>>, at: Attended, Form(fields): Form) -> Response {
    let words = at.visit.words();
    let Some(number) = entry::passkey(fields.text("passkey")) else {
        let page = passkey_page(&front, &at.visit, words.pairing.title, words.pairing.display_bad);
        return (StatusCode::UNPROCESSABLE_ENTITY, page).into_response();
    };
    match front.desk.type_passkey(&at.person.actor(), number) {
        Ok(()) => Redirect::to("/pair").into_response(),
        Err(error) => (StatusCode::CONFLICT, failed(&front, &at.visit, "", &error)).into_response(),
    }
}

/// Why it is not paired, and what to do.
fn failed(front: &Front, visit: &Visit, name: &str, error: &DeskError) -> Markup {
    let words = visit.words();
    let (what, todo) = match error {
        DeskError::Pairing(why) => {
            (words::happened(visit.language, why), words::advice(visit.language, why).to_owned())
        }
        other => (words::refused(visit.language, other), String::new()),
    };
    // With the label in hand and the window open the list is one step away; else everything begins anew.
    let stale = matches!(error, DeskError::Pairing(Why::StaleBond));
    Page { front, visit, title: words.pairing.failed, menu: "/pair", renews: false }.with(html! {
        @if !name.is_empty() { p.lead { (name) } }
        p.problem role="alert" { (what) }
        @if !todo.is_empty() {
            h2 { (words.pairing.what_to_do) }
            p { (todo) }
        }
        @if stale { p { a.button href="/" { (words.pairing.forget_again) } } }
        @else { p { a.button href="/pair?again=1" { (words.pairing.again) } } }
    })
}
