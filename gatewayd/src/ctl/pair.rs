//! Pairing from a shell: find the device, ask for its code or number, say how it went.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use kinara_protocol::entry;
use tokio::time::{Instant, sleep};

use super::Pair;
use super::client::{CtlError, GatewayProxy};
use crate::local::bus::wire;

/// How often the window is looked at.
const LOOK: Duration = Duration::from_millis(400);
/// A pairing window that is opened for one command.
const WINDOW_S: u32 = 120;

/// What is near after `seconds`. A window that was closed is closed again.
pub async fn scan(gateway: &GatewayProxy<'_>, seconds: u32) -> Result<Vec<wire::Nearby>, CtlError> {
    let opened = open(gateway, seconds + 5).await?;
    sleep(Duration::from_secs(seconds.into())).await;
    let nearby = gateway.nearby().await;
    if opened {
        gateway.close_window().await?;
    }
    Ok(nearby?)
}

/// Pairs; gives the device's id.
pub async fn pair(gateway: &GatewayProxy<'_>, wanted: &Pair) -> Result<String, CtlError> {
    let opened = open(gateway, WINDOW_S).await?;
    let done = converse(gateway, wanted).await;
    if done.is_err() && opened {
        // The first failure is what matters.
        let _ = gateway.close_window().await;
    }
    done
}

/// Opens the window unless it is open; tells whether it did.
async fn open(gateway: &GatewayProxy<'_>, seconds: u32) -> Result<bool, CtlError> {
    let state = gateway.window().await?.state;
    if matches!(state.as_str(), "open" | "pairing") {
        return Ok(false);
    }
    gateway.open_window(seconds).await?;
    Ok(true)
}

async fn converse(gateway: &GatewayProxy<'_>, wanted: &Pair) -> Result<String, CtlError> {
    let near = find(gateway, wanted).await?;
    let (method, code) = match (near.offer.as_str(), wanted.just_works) {
        ("sensor", true) => ("just_works", String::new()),
        ("sensor", false) => {
            let text = "This is a sensor of another maker: it cannot prove what it is. To pair it all the same, add \
                        --just-works.";
            return Err(refused("other_code", text));
        }
        (_, true) => {
            return Err(refused("other_code", "A wearable is paired with its code, never --just-works."));
        }
        ("display", false) => ("display", String::new()),
        ("introduction", false) => {
            return Err(refused(
                "other_code",
                "This wearable has been introduced to a box and pairs by itself.",
            ));
        }
        (_, false) => {
            let code = match &wanted.code {
                Some(code) => code.clone(),
                None => ask("The 16 characters on its label: ").await?,
            };
            ("label", code)
        }
    };
    let pairing = gateway.pair(&near.key, method, &code);
    tokio::pin!(pairing);
    let mut asked = false;
    loop {
        tokio::select! {
            done = &mut pairing => return Ok(done?),
            () = sleep(LOOK) => {}
        }
        if !asked && gateway.window().await?.wants_passkey {
            asked = true;
            // The pairing goes on (and may fail) while somebody types.
            tokio::select! {
                done = &mut pairing => return Ok(done?),
                typed = ask("The six digits that it shows: ") => {
                    let passkey = entry::passkey(&typed?).ok_or_else(|| refused("bad_argument", "The number has six digits."))?;
                    gateway.type_passkey(passkey).await?;
                }
            }
        }
    }
}

/// Waits until the device is heard: by key, or by a name that is not another's too.
async fn find(gateway: &GatewayProxy<'_>, wanted: &Pair) -> Result<wire::Nearby, CtlError> {
    let until = Instant::now() + Duration::from_secs(wanted.wait.into());
    loop {
        let mut nearby = gateway.nearby().await?;
        nearby.retain(|near| near.key.eq_ignore_ascii_case(&wanted.device) || near.name == wanted.device);
        // A key names one device; another one may have been given that name.
        if let Some(place) = nearby.iter().position(|near| near.key.eq_ignore_ascii_case(&wanted.device)) {
            return Ok(nearby.swap_remove(place));
        }
        match nearby.len() {
            0 if Instant::now() >= until => {
                let text = "It is not heard. Press its button, bring it near, and look at what is near: kinaractl scan";
                return Err(refused("not_near", text));
            }
            0 => sleep(LOOK).await,
            1 => return Ok(nearby.remove(0)),
            _ => {
                let keys: Vec<&str> = nearby.iter().map(|near| near.key.as_str()).collect();
                let text =
                    format!("Several devices have this name; choose one by its key: {}", keys.join(", "));
                return Err(refused("ambiguous", text));
            }
        }
    }
}

fn refused(code: &str, text: impl Into<String>) -> CtlError {
    CtlError::Refused { code: code.to_owned(), text: text.into() }
}

/// A line from standard input; a question is only shown to a person.
async fn ask(question: &'static str) -> Result<String, CtlError> {
    let answered = tokio::task::spawn_blocking(move || {
        if std::io::stdin().is_terminal() {
            let mut out = std::io::stderr();
            write!(out, "{question}")?;
            out.flush()?;
        }
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        Ok::<_, std::io::Error>(line.trim().to_owned())
    });
    match answered.await {
        Ok(Ok(line)) if !line.is_empty() => Ok(line),
        _ => Err(refused("bad_argument", "Nothing was typed.")),
    }
}
