//! Commands from a test: one JSON object a line, each answered by one. Which there are: `firmware/README.md`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{SyncSender, sync_channel};

use kinara_protocol::status::Status;
use serde_json::{Value, json};

use crate::socket::{Slot, spawn};
use crate::wearable::{Wearable, WearableError};

/// The longest command line.
const MAX_COMMAND: u64 = 4_096;

/// Serves commands in threads for as long as the program runs. `ask` hands a command to the wearable, with the place
/// where its answer goes; `false`: the wearable is gone.
pub fn serve<A>(listener: UnixListener, ask: A) -> io::Result<()>
where
    A: Fn(Value, SyncSender<Value>) -> bool + Clone + Send + 'static,
{
    spawn("control", move || accept(&listener, &ask))
}

fn accept<A>(listener: &UnixListener, ask: &A)
where
    A: Fn(Value, SyncSender<Value>) -> bool + Clone + Send + 'static,
{
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Some(slot) = Slot::take(&open) else { continue };
        let Ok(stream) = stream else { continue };
        let ask = ask.clone();
        let _ = spawn("commands", move || {
            let _slot = slot;
            // The other end has gone away: so does this.
            let _ = answer_all(&stream, &ask);
        });
    }
}

fn answer_all(stream: &UnixStream, ask: &impl Fn(Value, SyncSender<Value>) -> bool) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    let (answers, answered) = sync_channel(1);
    loop {
        let mut line = String::new();
        if lines.by_ref().take(MAX_COMMAND).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str(&line) {
            Err(error) => json!({"ok": false, "error": format!("not a JSON object: {error}")}),
            Ok(command) => {
                if !ask(command, answers.clone()) {
                    return Ok(());
                }
                match answered.recv() {
                    Ok(answer) => answer,
                    Err(_) => return Ok(()),
                }
            }
        };
        let mut writing = stream;
        writing.write_all(format!("{answer}\n").as_bytes())?;
    }
}

/// A field that counts something; 1 without it.
pub fn number(command: &Value, key: &str) -> u64 {
    command.get(key).and_then(Value::as_u64).unwrap_or(1)
}

/// A field of seconds; 1 without it.
pub fn seconds(command: &Value) -> f64 {
    command.get("seconds").and_then(Value::as_f64).unwrap_or(1.0).clamp(0.0, 3_600.0)
}

/// Obeys what concerns the body and the sensors, whichever radio there is. `None`: it is no such command.
pub fn obey_about_body(
    wearable: &mut Wearable,
    command: &Value,
    utc_us: i64,
) -> Result<Option<Value>, WearableError> {
    match command.get("do").and_then(Value::as_str) {
        Some("stop") => {
            wearable.run_to(utc_us)?;
            wearable.stop()?;
            report(wearable, utc_us).map(Some)
        }
        Some("hot_flash") => {
            wearable.body().start_hot_flash();
            Ok(Some(json!({"ok": true})))
        }
        Some("wear") => {
            wearable.body().set_worn(command.get("on").and_then(Value::as_bool).unwrap_or(true));
            Ok(Some(json!({"ok": true})))
        }
        _ => Ok(None),
    }
}

/// How the wearable is. A radio adds what it knows.
pub fn report(wearable: &mut Wearable, utc_us: i64) -> Result<Value, WearableError> {
    let ticks = wearable.ticks(utc_us);
    let status: Status = wearable.app().status(ticks)?;
    Ok(json!({
        "ok": true,
        "factory_id": format!("{:016x}", wearable.factory_id()),
        "epoch": status.epoch.to_string(),
        "next_seq": status.next_seq,
        "oldest": {"epoch": status.oldest.0.to_string(), "seq": status.oldest.1},
        "unacknowledged": status.stored_frames,
        "worn": status.worn,
        "battery_percent": status.battery_percent,
        "firmware": wearable.firmware().map(|part| part.to_string()).join("."),
        "produced": wearable.produced(),
        "ticks": status.ticks.0,
        "utc_us": utc_us,
    }))
}
