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
    let method = method(&near, wanted.just_works)?;
    let code = match &wanted.code {
        _ if method != "label" => String::new(),
        Some(code) => code.clone(),
        None => ask("The 16 characters on its label: ").await?,
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

/// The way in which a device can be paired.
fn method(near: &wire::Nearby, just_works: bool) -> Result<&'static str, CtlError> {
    let text = match (near.offer.as_str(), just_works) {
        ("sensor", true) => return Ok("just_works"),
        ("sensor", false) => {
            "This is a sensor of another maker: it cannot prove what it is. To pair it all the same, add --just-works."
        }
        (_, true) => "A wearable is paired with its code, never --just-works.",
        ("display", false) => return Ok("display"),
        ("introduction", false) => "This wearable has been introduced to a box and pairs by itself.",
        (_, false) => return Ok("label"),
    };
    Err(refused("other_code", text))
}

/// Waits until the device is heard.
async fn find(gateway: &GatewayProxy<'_>, wanted: &Pair) -> Result<wire::Nearby, CtlError> {
    let until = Instant::now() + Duration::from_secs(wanted.wait.into());
    loop {
        match chosen(gateway.nearby().await?, &wanted.device)? {
            Some(near) => return Ok(near),
            None if Instant::now() >= until => {
                let text = "It is not heard. Press its button, bring it near, and look at what is near: kinaractl scan";
                return Err(refused("not_near", text));
            }
            None => sleep(LOOK).await,
        }
    }
}

/// The device that is meant, if it is near: by key, or by a name that is not another's too.
fn chosen(mut nearby: Vec<wire::Nearby>, wanted: &str) -> Result<Option<wire::Nearby>, CtlError> {
    // A key names one device; another one may have been given that name.
    if let Some(place) = nearby.iter().position(|near| near.key.eq_ignore_ascii_case(wanted)) {
        return Ok(Some(nearby.swap_remove(place)));
    }
    nearby.retain(|near| near.name == wanted);
    if nearby.len() > 1 {
        let keys: Vec<&str> = nearby.iter().map(|near| near.key.as_str()).collect();
        let text = format!("Several devices have this name; choose one by its key: {}", keys.join(", "));
        return Err(refused("ambiguous", text));
    }
    Ok(nearby.pop())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn near(key: &str, name: &str, offer: &str) -> wire::Nearby {
        wire::Nearby {
            key: key.to_owned(),
            name: name.to_owned(),
            rssi_dbm: -50,
            offer: offer.to_owned(),
            sensor: (offer == "sensor").then(|| "heart_rate".to_owned()),
            seen_ms_ago: 10,
            adapter: "hci0".to_owned(),
        }
    }

    #[test]
    fn a_sensor_of_another_maker_is_paired_by_its_key_whatever_others_are_called() {
        // Two of one make, one without a name, and one that was given another one's key as its name.
        let all = [
            near("a1f3", "Pulse-1", "sensor"),
            near("b2f3", "Pulse-1", "sensor"),
            near("c3f3", "", "sensor"),
            near("d4f3", "B2F3", "label"),
        ];
        for key in ["a1f3", "B2F3", "c3f3"] {
            let found = chosen(all.to_vec(), key).unwrap().unwrap();
            assert!(found.key.eq_ignore_ascii_case(key), "{key}: {found:?}");
            assert_eq!(method(&found, true).unwrap(), "just_works");
            assert!(method(&found, false).is_err(), "nobody has said that it need not prove anything");
        }
        let CtlError::Refused { code, text } = chosen(all.to_vec(), "Pulse-1").unwrap_err() else { panic!() };
        assert_eq!((code.as_str(), text.ends_with("a1f3, b2f3")), ("ambiguous", true), "{text}");
        assert_eq!(chosen(all.to_vec(), "e5f3").unwrap(), None);
        assert_eq!(chosen(all[2..].to_vec(), "B2F3").unwrap().unwrap().key, "d4f3", "then it is a name");
    }
}
