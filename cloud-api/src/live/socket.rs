//! One client's WebSocket.
//!
//! The promise: nothing is said before a good token came, as the first message and in time; nothing after the token's
//! end, unless the client sent the next one of the same member before; and a client that reads slowly or not at all
//! costs a bounded amount of memory, for a bounded time.

use std::collections::HashMap;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message as Frame, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use tokio::time::Instant;
use uuid::Uuid;

use super::hub::Seat;
use super::message::{Hello, LiveReading, Message};
use crate::App;
use crate::access::{Action, Member, Resource, authorize};
use crate::problem::Problem;
use crate::resources::{devices, gateways, readings};
use crate::server::Place;

/// The longest message that a client has to send.
const MAX_MESSAGE: usize = 8 * 1024;
/// What may wait in the WebSocket's own buffer, beyond one message.
const WRITE_BUFFER: usize = 256 * 1024;

/// Close codes, beside the standard ones.
mod close {
    pub const STOPPING: u16 = 1001;
    pub const TROUBLE: u16 = 1011;
    pub const UNAUTHENTICATED: u16 = 4401;
    pub const FORBIDDEN: u16 = 4403;
    pub const NO_TOKEN: u16 = 4408;
    pub const TOO_MANY: u16 = 4429;
}

/// Why a session ended.
enum End {
    /// The client is gone, or takes nothing.
    Gone,
    /// Say so and close.
    Close(u16, String),
}

impl End {
    fn problem(code: u16, problem: &Problem) -> Self {
        Self::Close(code, problem.detail().to_owned())
    }
}

/// Live values. Send `{"token": "…"}` first.
#[utoipa::path(get, path = "/api/v1/live", tag = "live",
    responses((status = 101, description = "A WebSocket. The first message is `{\"token\": \"<access token>\"}`; \
        then the server sends `ready`, `live`, `stored`, `event`, `gateway` and `device` messages.")),
    security(()))]
pub async fn open(
    State(app): State<App>,
    place: Option<Extension<Place>>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(|rejection| {
        Problem::new(rejection.status(), "websocket-needed", format!("This is a WebSocket: {rejection}."))
    })?;
    Ok(upgrade
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .max_write_buffer_size(WRITE_BUFFER * 4)
        .write_buffer_size(0)
        .on_upgrade(async move |socket| {
            // A WebSocket is one of the connections that are counted until it ends.
            let _place = place;
            serve(app, socket).await;
        }))
}

async fn serve(app: App, mut socket: WebSocket) {
    let end = match session(&app, &mut socket).await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    if let End::Close(code, reason) = end {
        // A close frame holds 123 bytes of text.
        let reason: String = reason.chars().take(60).collect();
        let frame = Frame::Close(Some(CloseFrame { code, reason: reason.into() }));
        let silence = Duration::from_secs(1);
        if let Ok(Ok(())) = tokio::time::timeout(silence, socket.send(frame)).await {
            // Until the client has answered, so that the frame is not lost with the connection.
            let _ =
                tokio::time::timeout(silence, async { while let Some(Ok(_)) = socket.recv().await {} }).await;
        }
    }
}

enum Never {}

async fn session(app: &App, socket: &mut WebSocket) -> Result<Never, End> {
    let config = &app.config.live;
    let mut member = first_message(app, socket).await?;
    let too_many = || End::Close(close::TOO_MANY, "Too many pages of this clinic are open.".into());
    let seat = app.hub.enter(member.tenant).ok_or_else(too_many)?;
    say(app, socket, &Message::Ready { expires_in: remaining(app, &member).as_secs() as i64 }).await?;
    for message in
        snapshot(app, &member, &seat).await.map_err(|problem| End::problem(close::TROUBLE, &problem))?
    {
        say(app, socket, &message).await?;
    }

    let mut pings = tokio::time::interval(Duration::from_secs(config.ping_s));
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let silence = Duration::from_secs(config.silence_s);
    let mut heard = Instant::now();
    let mut token_ends = Instant::now() + remaining(app, &member);
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return Err(End::Close(close::STOPPING, "The server stops.".into())),
            () = tokio::time::sleep_until(token_ends) => {
                return Err(End::Close(close::UNAUTHENTICATED, "The token is over.".into()));
            }
            () = seat.outbox.filled() => {
                for message in seat.outbox.take() {
                    say(app, socket, &message).await?;
                }
            }
            _ = pings.tick() => {
                if heard.elapsed() > silence {
                    return Err(End::Gone);
                }
                member = still(app, member).await?;
                send(app, socket, Frame::Ping(axum::body::Bytes::new())).await?;
            }
            frame = socket.recv() => {
                let Some(Ok(frame)) = frame else { return Err(End::Gone) };
                heard = Instant::now();
                match frame {
                    Frame::Text(text) => {
                        let next = read_hello(app, text.as_str()).await?;
                        if (next.id, next.tenant) != (member.id, member.tenant) {
                            return Err(End::Close(close::UNAUTHENTICATED, "The token is another member's.".into()));
                        }
                        member = next;
                        token_ends = Instant::now() + remaining(app, &member);
                    }
                    Frame::Close(_) => return Err(End::Gone),
                    Frame::Ping(_) | Frame::Pong(_) | Frame::Binary(_) => {}
                }
            }
        }
    }
}

/// How long a token is still good, on the machine's timers.
fn remaining(app: &App, member: &Member) -> Duration {
    let us = (member.expires_us - app.clock.utc_us()).max(0) as f64 / app.clock.rate();
    Duration::from_micros(us as u64)
}

async fn first_message(app: &App, socket: &mut WebSocket) -> Result<Member, End> {
    let wait = Duration::from_secs(app.config.live.token_timeout_s);
    let text = tokio::time::timeout(wait, async {
        loop {
            match socket.recv().await {
                Some(Ok(Frame::Text(text))) => return Ok(text),
                Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => {}
                Some(Ok(Frame::Binary(_))) => {
                    return Err(End::Close(close::UNAUTHENTICATED, "Send {\"token\": …} as text.".into()));
                }
                Some(Ok(Frame::Close(_)) | Err(_)) | None => return Err(End::Gone),
            }
        }
    })
    .await
    .map_err(|_| End::Close(close::NO_TOKEN, "No token came.".into()))??;
    read_hello(app, text.as_str()).await
}

/// The member as they are now. While the database is away the token is believed, until its end.
async fn still(app: &App, member: Member) -> Result<Member, End> {
    let member = match app.standings.of(&app.database, member.clone()).await {
        Err(problem) if !problem.status().is_server_error() => {
            return Err(End::problem(close::UNAUTHENTICATED, &problem));
        }
        now => now.unwrap_or(member),
    };
    authorize(&member, Action::Read, Resource::Readings)
        .map_err(|problem| End::problem(close::FORBIDDEN, &problem))?;
    Ok(member)
}

async fn read_hello(app: &App, text: &str) -> Result<Member, End> {
    let hello: Hello = serde_json::from_str(text)
        .map_err(|_| End::Close(close::UNAUTHENTICATED, "Send {\"token\": \"<access token>\"}.".into()))?;
    let member =
        app.tokens.read(&hello.token).map_err(|problem| End::problem(close::UNAUTHENTICATED, &problem))?;
    still(app, member).await
}

async fn say(app: &App, socket: &mut WebSocket, message: &Message) -> Result<(), End> {
    let text = serde_json::to_string(message).map_err(|_| End::Gone)?;
    send(app, socket, Frame::Text(text.into())).await
}

async fn send(app: &App, socket: &mut WebSocket, frame: Frame) -> Result<(), End> {
    let silence = Duration::from_secs(app.config.live.silence_s);
    match tokio::time::timeout(silence, socket.send(frame)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(End::Gone),
    }
}

/// All there is to see now: newest values, stored or not, each gateway and each device.
async fn snapshot(app: &App, member: &Member, seat: &Seat) -> Result<Vec<Message>, Problem> {
    let (stored, gateways, devices) = {
        let _turn = app.turns.take(member.tenant, Some(member.id)).await?;
        let mut connection = app.database.connection().await?;
        let transaction = connection.tenant(member.tenant).await?;
        (
            readings::newest(&transaction, None).await?,
            gateways::all(&transaction).await?,
            devices::all(&transaction).await?,
        )
    };
    for gateway in gateways {
        seat.outbox.gateway(gateway);
    }
    for device in devices {
        seat.outbox.device(device);
    }
    let mut newest: HashMap<(Uuid, String), (Uuid, LiveReading)> = stored
        .into_iter()
        .map(|latest| {
            let reading = LiveReading {
                reading_type: latest.reading_type,
                value: latest.value,
                unit: latest.unit,
                time_ms: latest.time_ms,
                key: latest.key,
                stored: true,
            };
            ((latest.user_id, reading.reading_type.clone()), (latest.device_id, reading))
        })
        .collect();
    for live in app.hub.newest(member.tenant) {
        let key = (live.user, live.reading.reading_type.clone());
        if newest.get(&key).is_none_or(|(_, old)| old.time_ms < live.reading.time_ms) {
            newest.insert(key, (live.device, live.reading));
        }
    }
    let mut devices: HashMap<(Uuid, Uuid), Vec<LiveReading>> = HashMap::new();
    for ((user, _), (device, reading)) in newest {
        devices.entry((user, device)).or_default().push(reading);
    }
    Ok(devices
        .into_iter()
        .map(|((user_id, device_id), readings)| Message::Live { user_id, device_id, readings })
        .collect())
}
