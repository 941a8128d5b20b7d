//! The live signal: that readings of this wearer arrive.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use kinara_protocol::channel::{self, ChannelId};
use maud::{Markup, html};

use super::devices::find;
use super::layout::{Page, name_of, problem, signal};
use crate::local::box_page::Front;
use crate::local::box_page::visit::Attended;
use crate::local::box_page::words::{Words, fill};

/// A value is shown while frames are younger than this, microseconds.
const FRESH_US: i64 = 15_000_000;
/// After this time without a value something is wrong, seconds.
const LATE_S: i64 = 60;

pub(super) async fn show(
    State(front): State<Arc<Front>>,
    at: Attended,
    Path(of): Path<String>,
) -> Result<Markup, Response> {
    let visit = &at.visit;
    let words = visit.words();
    let device = find(&front, visit, &of)?;
    let board = front.desk.board().now();
    let now_us = front.clock.utc_us();
    let latest = board.devices.get(&device.hardware).map(|known| known.latest.clone()).unwrap_or_default();
    let fresh = device.link.connected() && now_us - device.last_frame_us < FRESH_US;
    let values: Vec<(ChannelId, i32)> = channels(words)
        .iter()
        .filter_map(|(id, _)| Some((*id, *latest.get(&id.0).filter(|_| fresh)?)))
        .collect();
    let waited_s = visit
        .query
        .text("since")
        .parse::<i64>()
        .ok()
        .map(|since_s| (front.clock.boottime_us() / 1_000_000 - since_s).clamp(0, 3_600));
    let who = device.wearer.as_ref().map(|(_, name)| name.as_str()).unwrap_or_default();
    Ok(Page { front: &front, visit, title: words.pairing.live_title, menu: "/pair", renews: true }.with(
        html! {
            p.lead { strong { (who) } " · " (name_of(&device)) " · " (signal(words, device.rssi_dbm)) }
            @if values.is_empty() {
                p.waiting role="status" { (words.pairing.live_wait) }
                @if let Some(waited_s) = waited_s {
                    @if waited_s < LATE_S { p.hint { (fill(words.pairing.live_waited, &[&waited_s])) } }
                    @else { (problem(words.pairing.live_late)) }
                }
            } @else {
                p.done role="status" { (words.pairing.live_on) }
            }
            dl.values {
                @for (id, name) in channels(words) {
                    div.value {
                        dt { (name) }
                        dd data-channel=(id.0) {
                            @match values.iter().find(|(known, _)| *known == id) {
                                Some((_, count)) => (shown(id, *count)),
                                None => span.quiet { "–" },
                            }
                        }
                    }
                }
            }
            p { a.button href="/" { (words.pairing.done) } }
        },
    ))
}

fn channels(words: &Words) -> [(ChannelId, &'static str); 4] {
    [
        (channel::HEART_RATE, words.pairing.heart_rate),
        (channel::SKIN_TEMPERATURE, words.pairing.skin_temperature),
        (channel::EDA, words.pairing.eda),
        (channel::SPO2, words.pairing.spo2),
    ]
}

fn shown(id: ChannelId, count: i32) -> Markup {
    let Some(channel) = channel::by_id(id) else { return html! {} };
    let decimals = if channel.step < 0.05 { 2 } else { 1 };
    html! { (format!("{:.decimals$}", channel.value(count))) " " span.quiet { (channel.unit) } }
}
