//! Staff, audit and help.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use uuid::Uuid;

use super::door::{chosen_verifier, new_pin, pin_input, staff_problem};
use super::layout::{Page, done, problem, proof};
use crate::local::box_page::audit::{Action, Entry};
use crate::local::box_page::form::escaped;
use crate::local::box_page::staff::{LONGEST_NAME, Person};
use crate::local::box_page::visit::{Attended, Form, Visit};
use crate::local::box_page::words::{Words, fill};
use crate::local::box_page::{Front, PinRefused, lock};

pub(super) async fn show_staff(State(front): State<Arc<Front>>, at: Attended) -> Markup {
    let name = at.visit.query.text("name");
    let said = match at.visit.query.text("said") {
        "added" => fill(at.visit.words().door.staff_added, &[&name]),
        "removed" => fill(at.visit.words().door.staff_removed, &[&name]),
        _ => String::new(),
    };
    staff_page(&front, &at, &said, "")
}

fn staff_page(front: &Front, at: &Attended, said: &str, wrong: &str) -> Markup {
    let visit = &at.visit;
    let words = visit.words();
    let people = front.people();
    Page { front, visit, title: words.door.staff_title, menu: "/staff", renews: false }.with(html! {
        (problem(wrong))
        (done(said))
        p { (words.door.staff_intro) }
        ul.people { @for person in &people { li { (row(front, at, person)) } } }
        h2 { (words.door.staff_add) }
        form.card method="post" action="/staff/add" {
            (proof(front, visit))
            label for="name" { (words.door.staff_name) }
            input #name name="name" required maxlength=(LONGEST_NAME) autocomplete="off";
            (new_pin(words, words.door.staff_pin))
            label for="own" { (words.door.staff_own_pin) }
            (pin_input("own", "own", "current-password"))
            button type="submit" { (words.door.staff_add_do) }
        }
        h2 { (words.door.staff_pin_title) }
        @if at.person.member.is_some() { p { (words.door.staff_pin_cloud) } }
        @else {
            form.card method="post" action="/staff/pin" {
                (proof(front, visit))
                label for="old" { (words.door.staff_old_pin) }
                (pin_input("old", "own", "current-password"))
                label for="new" { (words.door.staff_new_pin) }
                (pin_input("new", "pin", "new-password"))
                label for="new-again" { (words.door.pin_again) }
                (pin_input("new-again", "pin_again", "new-password"))
                button type="submit" { (words.door.staff_pin_do) }
            }
        }
    })
}

fn row(front: &Front, at: &Attended, person: &Person) -> Markup {
    let words = at.visit.words();
    let own = person.id == at.person.id;
    let origin = if person.member.is_some() { words.door.staff_cloud } else { words.door.staff_here };
    let field = format!("own-{}", person.id);
    html! {
        strong { (person.name) } " "
        span.quiet { (origin) @if own { " · " (words.door.staff_you) } }
        @if person.member.is_none() && !own {
            details {
                summary { (fill(words.door.staff_remove, &[&person.name])) }
                form.card method="post" action="/staff/remove" {
                    (proof(front, &at.visit))
                    input type="hidden" name="who" value=(person.id);
                    label for=(field) { (words.door.staff_own_pin) }
                    (pin_input(&field, "own", "current-password"))
                    button.danger type="submit" { (fill(words.door.staff_remove, &[&person.name])) }
                }
            }
        }
    }
}

/// The person's own PIN once more, before something that a colleague could do at a page left open.
async fn confirmed(front: &Front, at: &Attended, typed: &str, action: Action) -> Result<(), Response> {
    let words = at.visit.words();
    let client = at.visit.client(front, at.person.id);
    let (status, text) = match front.check_pin(at.person.id, typed, client).await {
        Ok(()) => return Ok(()),
        Err(PinRefused::Wrong) => {
            front.failed(&at.person.name, &at.visit, action, "wrong PIN").await;
            (StatusCode::UNPROCESSABLE_ENTITY, words.door.login_wrong.to_owned())
        }
        Err(PinRefused::Locked { wait_s }) => {
            (StatusCode::TOO_MANY_REQUESTS, fill(words.door.login_locked, &[&wait_s]))
        }
        Err(PinRefused::Busy) => (StatusCode::SERVICE_UNAVAILABLE, words.all.busy.to_owned()),
    };
    Err((status, staff_page(front, at, "", &text)).into_response())
}

fn said(what: &str, name: &str) -> Response {
    Redirect::to(&format!("/staff?said={what}&name={}", escaped(name))).into_response()
}

pub(super) async fn add(
    State(front): State<Arc<Front>>,
    at: Attended,
    Form(fields): Form,
) -> Result<Response, Response> {
    let words = at.visit.words();
    let again =
        |text: &str| (StatusCode::UNPROCESSABLE_ENTITY, staff_page(&front, &at, "", text)).into_response();
    confirmed(&front, &at, fields.text("own"), Action::AddStaff).await?;
    let verifier =
        chosen_verifier(words, fields.text("pin"), fields.text("pin_again")).await.map_err(again)?;
    let added = lock(&front.staff).add(fields.text("name"), verifier);
    match added {
        Ok(person) => {
            front.did(&at.person.name, &at.visit, Action::AddStaff, &person.name, "").await;
            Ok(said("added", &person.name))
        }
        Err(error) => {
            let failure = error.to_string();
            front.did(&at.person.name, &at.visit, Action::AddStaff, fields.text("name"), &failure).await;
            Err(again(staff_problem(words, &error)))
        }
    }
}

pub(super) async fn remove(
    State(front): State<Arc<Front>>,
    at: Attended,
    Form(fields): Form,
) -> Result<Response, Response> {
    let words = at.visit.words();
    confirmed(&front, &at, fields.text("own"), Action::RemoveStaff).await?;
    let id = fields.text("who").parse().unwrap_or(Uuid::nil());
    let roster = front.desk.roster().borrow().clone();
    let removed = lock(&front.staff).remove(&roster, id);
    match removed {
        Ok(name) => {
            front.did(&at.person.name, &at.visit, Action::RemoveStaff, &name, "").await;
            Ok(said("removed", &name))
        }
        Err(error) => {
            front.did(&at.person.name, &at.visit, Action::RemoveStaff, "", &error.to_string()).await;
            let text = staff_problem(words, &error);
            Err((StatusCode::UNPROCESSABLE_ENTITY, staff_page(&front, &at, "", text)).into_response())
        }
    }
}

pub(super) async fn change_pin(
    State(front): State<Arc<Front>>,
    at: Attended,
    Form(fields): Form,
) -> Result<Response, Response> {
    let words = at.visit.words();
    let again =
        |text: &str| (StatusCode::UNPROCESSABLE_ENTITY, staff_page(&front, &at, "", text)).into_response();
    confirmed(&front, &at, fields.text("own"), Action::ChangePin).await?;
    let verifier =
        chosen_verifier(words, fields.text("pin"), fields.text("pin_again")).await.map_err(again)?;
    let changed = lock(&front.staff).set_pin(at.person.id, verifier);
    let failure = changed.as_ref().err().map(ToString::to_string).unwrap_or_default();
    front.did(&at.person.name, &at.visit, Action::ChangePin, "", &failure).await;
    match changed {
        // Every login with the former PIN has ended with it, this one too.
        Ok(()) => Ok(Redirect::to("/login?said=pin").into_response()),
        Err(error) => Err(again(staff_problem(words, &error))),
    }
}

pub(super) async fn show_audit(State(front): State<Arc<Front>>, at: Attended) -> Markup {
    let visit = &at.visit;
    let words = visit.words();
    let entries = front.audit.newest();
    Page { front: &front, visit, title: words.door.audit_title, menu: "/audit", renews: false }.with(html! {
        @if entries.is_empty() { p { (words.door.audit_none) } }
        @else {
            p { (fill(words.door.audit_intro, &[&entries.len()])) }
            div.scroll tabindex="0" {
                table {
                    thead {
                        tr {
                            th scope="col" { (words.door.audit_when) }
                            th scope="col" { (words.door.audit_who) }
                            th scope="col" { (words.door.audit_what) }
                            th scope="col" { (words.door.audit_result) }
                        }
                    }
                    tbody { @for entry in &entries { (line(words, entry)) } }
                }
            }
        }
    })
}

fn line(words: &Words, entry: &Entry) -> Markup {
    let at = jiff::Timestamp::from_microsecond(entry.utc_us)
        .map(|at| at.strftime("%Y-%m-%d %H:%M:%S").to_string())
        .unwrap_or_default();
    html! {
        tr {
            td { (at) }
            td { (entry.who) span.quiet.under { (fill(words.door.audit_from, &[&entry.from])) } }
            td { (action(words, entry.action)) span.quiet.under { (entry.subject) } }
            td {
                @if entry.failure.is_empty() { (words.door.audit_done) }
                @else { span.bad { (entry.failure) } }
            }
        }
    }
}

fn action(words: &Words, action: Action) -> &'static str {
    let door = &words.door;
    match action {
        Action::SetUp => door.did_set_up,
        Action::LogIn => door.did_log_in,
        Action::LogOut => door.did_log_out,
        Action::OpenWindow => door.did_open_window,
        Action::CloseWindow => door.did_close_window,
        Action::Pair => door.did_pair,
        Action::Bind => door.did_bind,
        Action::Unbind => door.did_unbind,
        Action::Withdraw => door.did_withdraw,
        Action::Forget => door.did_forget,
        Action::Identify => door.did_identify,
        Action::SetIntervals => door.did_set_intervals,
        Action::AddStaff => door.did_add_staff,
        Action::RemoveStaff => door.did_remove_staff,
        Action::ChangePin => door.did_change_pin,
        Action::ResetClock => door.did_reset_clock,
    }
}

/// Without a login too: it says nothing of anybody, and how somebody without a PIN gets one.
pub(super) async fn show_help(State(front): State<Arc<Front>>, visit: Visit) -> Markup {
    let words = visit.words();
    let door = &words.door;
    let answers = [
        (door.help_pair_q, door.help_pair_a),
        (door.help_away_q, door.help_away_a),
        (door.help_cloud_q, door.help_cloud_a),
        (door.help_stale_q, door.help_stale_a),
        (door.help_pin_q, door.help_pin_a),
    ];
    Page { front: &front, visit: &visit, title: door.help_title, menu: "/help", renews: false }.with(html! {
        @for (question, answer) in answers {
            h2 { (question) }
            p { (answer) }
        }
        p.quiet { (door.help_fingerprint) }
        p.fingerprint { code { (front.identity.fingerprint) } }
    })
}
