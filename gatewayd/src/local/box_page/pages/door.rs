//! Set-up, login, logout, language.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use rand::RngCore;
use uuid::Uuid;

use super::layout::{Page, done, problem, proof};
use crate::local::box_page::audit::Action;
use crate::local::box_page::lockout::Client;
use crate::local::box_page::pin::{BadPin, Pin};
use crate::local::box_page::session::Token;
use crate::local::box_page::staff::{LONGEST_NAME, Person, StaffError, tidy_name};
use crate::local::box_page::visit::{self, Form, Visit};
use crate::local::box_page::words::{Language, Words, fill};
use crate::local::box_page::{Front, PinRefused, lock};

/// The person of whom nobody knows yet: whoever sets up, or a login with no such person.
const NOBODY: Uuid = Uuid::nil();

pub(super) async fn show_setup(State(front): State<Arc<Front>>, visit: Visit) -> Response {
    if front.set_up() {
        return Redirect::to("/login").into_response();
    }
    // The code may be gone, when everybody of the staff is.
    if let Err(error) = lock(&front.setup).code(&mut rand::rng()) {
        tracing::error!(%error, "no set-up code could be made; check the disk");
    }
    setup_page(&front, &visit, "", "").into_response()
}

pub(super) async fn set_up(State(front): State<Arc<Front>>, visit: Visit, Form(fields): Form) -> Response {
    if front.set_up() {
        return Redirect::to("/login").into_response();
    }
    let words = visit.words();
    let name = fields.text("name").to_owned();
    let again = |text: &str| {
        (StatusCode::UNPROCESSABLE_ENTITY, setup_page(&front, &visit, &name, text)).into_response()
    };
    let client = Client::stranger(visit.peer);
    if let Err(locked) = lock(&front.lockout).begin(NOBODY, client, front.clock.boottime_us()) {
        return again(&fill(words.door.login_locked, &[&locked.wait_s]));
    }
    if !lock(&front.setup).is(fields.text("code")) {
        // Nobody is known yet: the name is whatever was typed.
        front.failed("?", &visit, Action::SetUp, "wrong set-up code").await;
        return again(words.door.setup_wrong_code);
    }
    lock(&front.lockout).succeeded(NOBODY, client);
    if tidy_name(&name).is_none() {
        return again(words.door.name_bad);
    }
    let verifier = match chosen_verifier(words, fields.text("pin"), fields.text("pin_again")).await {
        Ok(verifier) => verifier,
        Err(text) => return again(text),
    };
    // Two who know the code at once: the code is spent under the same lock that it is checked under.
    let added = {
        let mut setup = lock(&front.setup);
        if !setup.is(fields.text("code")) {
            return again(words.door.setup_wrong_code);
        }
        let added = lock(&front.staff).add(&name, verifier);
        if added.is_ok()
            && let Err(error) = setup.spent()
        {
            tracing::warn!(%error, "the set-up code's file could not be removed; the code works no more");
        }
        added
    };
    match added {
        Ok(person) => {
            front.did(&person.name, &visit, Action::SetUp, "", "").await;
            welcome(&front, &visit, person)
        }
        Err(error) => again(staff_problem(words, &error)),
    }
}

fn setup_page(front: &Front, visit: &Visit, name: &str, wrong: &str) -> Markup {
    let words = visit.words();
    let title = words.door.setup_title;
    Page { front, visit, title, menu: "", renews: false }.with(html! {
        (problem(wrong))
        p { (words.door.setup_fingerprint) }
        p.fingerprint { code { (front.identity.fingerprint) } }
        form.card method="post" action="/setup" {
            (proof(front, visit))
            label for="code" { (words.door.setup_code) }
            p.hint #code-hint { (words.door.setup_code_hint) }
            input.code #code name="code" required autocomplete="off" autocapitalize="characters"
                spellcheck="false" maxlength="20" aria-describedby="code-hint";
            label for="name" { (words.door.setup_name) }
            input #name name="name" required autocomplete="name" maxlength=(LONGEST_NAME) value=(name);
            (new_pin(words, words.door.setup_pin))
            button type="submit" { (words.door.setup_done) }
        }
    })
}

/// The fields for a new PIN.
pub(super) fn new_pin(words: &Words, label: &str) -> Markup {
    html! {
        label for="pin" { (label) }
        (pin_input("pin", "pin", "new-password"))
        label for="pin-again" { (words.door.pin_again) }
        (pin_input("pin-again", "pin_again", "new-password"))
    }
}

/// A field for a PIN, with the keyboard of digits.
pub(super) fn pin_input(id: &str, name: &str, autocomplete: &str) -> Markup {
    html! {
        input.pin id=(id) name=(name) type="password" inputmode="numeric" required minlength="6" maxlength="8"
            autocomplete=(autocomplete);
    }
}

/// The verifier of a PIN that somebody has chosen.
pub(super) async fn chosen_verifier(
    words: &'static Words,
    typed: &str,
    again: &str,
) -> Result<String, &'static str> {
    let pin = Pin::choose(typed).map_err(|bad| match bad {
        BadPin::NotSixDigits => words.door.pin_not_six,
        BadPin::TooEasy => words.door.pin_too_easy,
    })?;
    if Pin::parse(again).as_ref() != Ok(&pin) {
        return Err(words.door.pins_differ);
    }
    let made = tokio::task::spawn_blocking(move || pin.verifier(&mut rand::rng())).await;
    made.ok().and_then(Result::ok).ok_or(words.all.busy)
}

/// Why somebody is not added, changed or removed, for people.
pub(super) fn staff_problem(words: &'static Words, error: &StaffError) -> &'static str {
    match error {
        StaffError::BadName => words.door.name_bad,
        StaffError::SameName => words.door.name_taken,
        StaffError::Unknown => words.door.staff_unknown,
        StaffError::Last => words.door.staff_last,
        StaffError::Full => words.door.staff_full,
        StaffError::File(error) => {
            tracing::error!(%error, "staff.json could not be written");
            words.all.not_kept
        }
    }
}

pub(super) async fn show_login(State(front): State<Arc<Front>>, visit: Visit) -> Response {
    if !front.set_up() {
        return Redirect::to("/setup").into_response();
    }
    if visit.person.is_some() {
        return Redirect::to("/").into_response();
    }
    login_page(&front, &visit, None, "").into_response()
}

pub(super) async fn log_in(State(front): State<Arc<Front>>, visit: Visit, Form(fields): Form) -> Response {
    let words = visit.words();
    let id = fields.text("who").parse().unwrap_or(NOBODY);
    let person = front.person(id);
    let again = |status, text: &str| (status, login_page(&front, &visit, Some(id), text)).into_response();
    match front.check_pin(id, fields.text("pin"), visit.client(&front, id)).await {
        Ok(()) => {}
        Err(PinRefused::Wrong) => {
            if let Some(person) = &person {
                front.failed(&person.name, &visit, Action::LogIn, "wrong PIN").await;
            }
            return again(StatusCode::UNPROCESSABLE_ENTITY, words.door.login_wrong);
        }
        Err(PinRefused::Locked { wait_s }) => {
            // Not in the audit: whoever tries on without end would push everything else out of it.
            return again(StatusCode::TOO_MANY_REQUESTS, &fill(words.door.login_locked, &[&wait_s]));
        }
        Err(PinRefused::Busy) => return again(StatusCode::SERVICE_UNAVAILABLE, words.all.busy),
    }
    let Some(person) = person else { return again(StatusCode::UNPROCESSABLE_ENTITY, words.door.login_wrong) };
    front.did(&person.name, &visit, Action::LogIn, "", "").await;
    welcome(&front, &visit, person)
}

/// Logs somebody in, with a token that nobody has seen before.
fn welcome(front: &Front, visit: &Visit, person: Person) -> Response {
    let mut random = rand::rng();
    let token = Token::draw(&mut random);
    let number = match visit.client(front, person.id) {
        Client::Known(number) => number,
        Client::Stranger(_) => {
            let mut number = [0; 16];
            random.fill_bytes(&mut number);
            number
        }
    };
    let browser = front.secret.known_browser(person.id, number);
    let mut sessions = lock(&front.sessions);
    sessions.log_out(&visit.token);
    sessions.log_in(&token, person, front.clock.boottime_us());
    let mut response = Redirect::to("/").into_response();
    response.headers_mut().append(header::SET_COOKIE, visit::token_cookie(&token));
    response.headers_mut().append(header::SET_COOKIE, visit::browser_cookie(&browser));
    response
}

fn login_page(front: &Front, visit: &Visit, chosen: Option<Uuid>, wrong: &str) -> Markup {
    let words = visit.words();
    let people = front.people();
    let said = match visit.query.text("said") {
        "pin" => words.door.staff_pin_changed,
        _ => "",
    };
    let ended = if visit.query.text("ended").is_empty() { "" } else { words.door.login_ended };
    Page { front, visit, title: words.door.login_title, menu: "", renews: false }.with(html! {
        (problem(wrong))
        (done(said))
        @if wrong.is_empty() && !ended.is_empty() { p { (ended) } }
        form.card method="post" action="/login" {
            (proof(front, visit))
            label for="who" { (words.door.login_who) }
            select #who name="who" required {
                option value="" selected[chosen.is_none()] { (words.door.login_choose) }
                @for person in &people {
                    @let mine = chosen == Some(person.id) || people.len() == 1;
                    option value=(person.id) selected[mine] { (person.name) }
                }
            }
            label for="pin" { (words.door.pin) }
            p.hint #pin-hint { (words.door.pin_hint) }
            (pin_input("pin", "pin", "current-password"))
            button type="submit" { (words.door.log_in) }
        }
    })
}

pub(super) async fn log_out(State(front): State<Arc<Front>>, visit: Visit, Form(_): Form) -> Response {
    if let Some(person) = &visit.person {
        lock(&front.sessions).log_out(&visit.token);
        front.did(&person.name, &visit, Action::LogOut, "", "").await;
    }
    let mut response = Redirect::to("/login").into_response();
    response.headers_mut().append(header::SET_COOKIE, visit::token_cookie(&Token::draw(&mut rand::rng())));
    response
}

pub(super) async fn choose_language(Form(fields): Form) -> Response {
    let mut response = Redirect::to(own_path(fields.text("back"))).into_response();
    if let Some(language) = Language::of_tag(fields.text("to")) {
        response.headers_mut().append(header::SET_COOKIE, visit::language_cookie(language));
    }
    response
}

/// A path of this page, or the start: a form must not lead elsewhere.
fn own_path(path: &str) -> &str {
    let good = path.starts_with('/')
        && !path.starts_with("//")
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if good { path } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_language_never_leads_to_another_site() {
        for bad in ["//evil.example", "https://evil.example", "/\\evil.example", "", "x", "/a b", "/\r\nX: y"]
        {
            assert_eq!(own_path(bad), "/", "{bad:?}");
        }
        assert_eq!(own_path("/device/kinara:00?auto=1"), "/device/kinara:00?auto=1");
    }
}
