//! What people see and do.

mod devices;
mod door;
mod intervals;
pub(super) mod layout;
mod live;
pub(super) mod pairing;
mod people;
mod wearer;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use super::Front;
use super::visit::{self, Visit};

/// Every address of the page.
pub(super) fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/", get(devices::home))
        .route("/setup", get(door::show_setup).post(door::set_up))
        .route("/login", get(door::show_login).post(door::log_in))
        .route("/logout", post(door::log_out))
        .route("/language", post(door::choose_language))
        .route("/device/{of}", get(devices::show))
        .route("/device/{of}/identify", post(devices::identify))
        .route("/device/{of}/take", get(devices::ask_take).post(devices::take))
        .route("/device/{of}/withdraw", get(devices::ask_withdraw).post(devices::withdraw))
        .route("/device/{of}/forget", get(devices::ask_forget).post(devices::forget))
        .route("/device/{of}/intervals", get(intervals::show).post(intervals::set))
        .route("/pair", get(pairing::show))
        .route("/pair/open", post(pairing::open))
        .route("/pair/close", post(pairing::close))
        .route("/pair/code", get(pairing::show_code))
        .route("/pair/label", post(pairing::typed))
        .route("/pair/photo", post(pairing::photo))
        .route("/pair/display", post(pairing::display))
        .route("/pair/sensor", post(pairing::sensor))
        .route("/pair/passkey", post(pairing::passkey))
        .route("/wearer/{of}", get(wearer::show).post(wearer::chosen))
        .route("/consent/{of}", post(wearer::agreed))
        .route("/live/{of}", get(live::show))
        .route("/audit", get(people::show_audit))
        .route("/staff", get(people::show_staff))
        .route("/staff/add", post(people::add))
        .route("/staff/remove", post(people::remove))
        .route("/staff/pin", post(people::change_pin))
        .route("/help", get(people::show_help))
        .route("/style.css", get(style))
        .route("/box.js", get(script))
        .fallback(missing)
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(front.clone(), visit::attend))
        .with_state(front)
}

async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("../style.css")).into_response()
}

async fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("../box.js")).into_response()
}

async fn missing(State(front): State<Arc<Front>>, visit: Visit) -> Response {
    let words = visit.words();
    (StatusCode::NOT_FOUND, layout::notice(&front, &visit, words.all.missing_title, words.all.missing))
        .into_response()
}
