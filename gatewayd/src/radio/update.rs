//! New firmware for wearables, over the air.
//!
//! **Promise.** Readings come first: an image is sent only to a wearable whose log has been drained, to one wearable at a
//! time, one request at a time between its frames. What a wearable has of an image is not sent again. An image that a
//! wearable refused, or that did not prove itself on it, is not sent to it again until the rollout is changed. The box judges
//! no signature: the wearable does, with the key of its maker.
//!
//! A rollout is a folder `update` in the data folder: `rollout.toml` names the image, a file beside it, and may name the
//! devices. It is looked at all the time; a file that is put there takes effect within [`LOOK`].
//!
//! ```toml
//! image = "wearable-0.2.0.kfw"
//! devices = ["kinara:00000000000000a1"]  # all without
//! ```

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use kinara_protocol::control::{Chunk, Op, Outcome, UPDATE_CHUNK};
use kinara_protocol::image::{HEADER_LEN, Header};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::RadioError;
use super::links::Links;
use crate::files;
use crate::hardware::HardwareId;
use crate::status::{Board, Link};

/// How often the rollout and the wearables are looked at.
pub const LOOK: Duration = Duration::from_secs(5);
/// How long one request may take: erasing a page is part of it.
const REQUEST: Duration = Duration::from_secs(10);
/// The largest image, and the largest rollout file.
const MAX_IMAGE: u64 = 4 << 20;
const MAX_ROLLOUT: u64 = 64 << 10;
/// What still runs the old firmware so long after it took the new one has gone back to it.
const RESTART: Duration = Duration::from_secs(30);
/// How often progress is told, percent.
const TELL_EVERY: u64 = 10;

/// Why there is no rollout, though there is a file.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// A file cannot be read.
    #[error("{0}")]
    File(PathBuf, #[source] io::Error),
    /// It is not a rollout.
    #[error("{0} is no rollout")]
    Toml(PathBuf, #[source] toml::de::Error),
    /// It names something outside of its folder.
    #[error("{0:?} is not the name of a file beside the rollout")]
    Name(String),
    /// It names a device that cannot be one.
    #[error("{0:?} is no device")]
    Device(String),
    /// The image is none.
    #[error("{0} is no whole firmware image")]
    Image(PathBuf),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    image: String,
    devices: Option<Vec<String>>,
}

/// What is to be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// The image.
    pub image: Arc<Vec<u8>>,
    /// Its number: the first 16 bytes of its SHA-256.
    pub number: [u8; 16],
    /// Its version.
    pub version: [u8; 3],
    /// Whom it is for; everybody without.
    pub devices: Option<Vec<HardwareId>>,
}

impl Rollout {
    /// Reads the folder; none without a rollout file.
    pub fn read(folder: &Path) -> Result<Option<Self>, RolloutError> {
        let path = folder.join("rollout.toml");
        let text = match bounded(&path, MAX_ROLLOUT) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RolloutError::File(path, error)),
        };
        let file: File = toml::from_str(&text).map_err(|error| RolloutError::Toml(path, error))?;
        if Path::new(&file.image).file_name().is_none_or(|name| name != file.image.as_str()) {
            return Err(RolloutError::Name(file.image));
        }
        let path = folder.join(&file.image);
        let image = bounded(&path, MAX_IMAGE).map_err(|error| RolloutError::File(path.clone(), error))?;
        let header = Header::decode(&image)
            .filter(|header| image.len() - HEADER_LEN == header.payload as usize)
            .filter(|header| Sha256::digest(&image[HEADER_LEN..]).as_slice() == header.digest);
        let Some(header) = header else { return Err(RolloutError::Image(path)) };
        let devices =
            file.devices.map(|names| names.into_iter().map(device).collect::<Result<_, _>>()).transpose()?;
        let digest: [u8; 32] = Sha256::digest(&image).into();
        let mut number = [0; 16];
        number.copy_from_slice(&digest[..16]);
        Ok(Some(Self { image: Arc::new(image), number, version: header.version, devices }))
    }

    /// Whether a wearable with this firmware is meant.
    pub fn is_for(&self, hardware: &HardwareId, firmware: &str) -> bool {
        self.devices.as_ref().is_none_or(|devices| devices.contains(hardware))
            && version(firmware).is_some_and(|runs| runs < self.version)
    }
}

fn device(name: String) -> Result<HardwareId, RolloutError> {
    HardwareId::parse(&name).map_err(|_| RolloutError::Device(name))
}

fn bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > most {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("it has more than {most} bytes")));
    }
    std::fs::read(path)
}

fn version(text: &str) -> Option<[u8; 3]> {
    let parts: Vec<u8> = text.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    parts.try_into().ok()
}

/// How it stands with one wearable and one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tried {
    /// It took it, and restarts.
    Installs,
    /// It does not take it, or went back.
    Failed,
}

/// What was tried, by hardware and image; kept in a file, so that a restart of the daemon tries nothing again.
#[derive(Debug)]
struct Memory {
    path: PathBuf,
    tried: BTreeMap<String, Tried>,
    /// Since when a wearable has been installing, as far as this run of the daemon knows.
    since: BTreeMap<HardwareId, Instant>,
}

impl Memory {
    fn open(folder: &Path) -> Self {
        let path = folder.join("tried.json");
        // One that cannot be read costs a wearable another try, not more.
        let tried = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { path, tried: tried.unwrap_or_default(), since: BTreeMap::new() }
    }

    fn key(hardware: &HardwareId, rollout: &Rollout) -> String {
        format!("{hardware}/{}", hex::encode(rollout.number))
    }

    fn of(&self, hardware: &HardwareId, rollout: &Rollout) -> Option<Tried> {
        self.tried.get(&Self::key(hardware, rollout)).cloned()
    }

    /// Whether it has had time to restart with what it installs.
    fn has_had_time(&mut self, hardware: &HardwareId) -> bool {
        self.since.entry(hardware.clone()).or_insert_with(Instant::now).elapsed() > RESTART
    }

    fn note(&mut self, hardware: &HardwareId, rollout: &Rollout, how: Tried) {
        self.since.insert(hardware.clone(), Instant::now());
        // Only the image that is rolled out matters.
        let image = hex::encode(rollout.number);
        self.tried.retain(|key, _| key.ends_with(&image));
        self.tried.insert(Self::key(hardware, rollout), how);
        let kept = serde_json::to_vec(&self.tried)
            .map_err(io::Error::from)
            .and_then(|text| files::write_uncopied(&self.path, &text));
        if let Err(error) = kept {
            tracing::warn!(%error, "what was tried is not kept; after a restart it may be tried again");
        }
    }
}

/// Looks after updates until it is stopped.
pub async fn run(data_dir: PathBuf, board: Board, links: Links, stop: CancellationToken) {
    let folder = data_dir.join("update");
    let mut memory = Memory::open(&folder);
    let mut seen: Option<(SystemTime, Option<Rollout>)> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let Ok(changed) = std::fs::metadata(folder.join("rollout.toml")).and_then(|file| file.modified())
        else {
            seen = None;
            continue;
        };
        if seen.as_ref().is_none_or(|(at, _)| *at != changed) {
            let rollout = Rollout::read(&folder);
            let trouble = rollout.as_ref().err().map(|error| format!("firmware rollout: {}", told(error)));
            if let Some(trouble) = &trouble {
                tracing::error!(trouble, "no firmware is rolled out");
            }
            board.alert("update", trouble);
            seen = Some((changed, rollout.unwrap_or_default()));
        }
        let Some((_, Some(rollout))) = &seen else { continue };
        tokio::select! {
            () = stop.cancelled() => return,
            () = serve(rollout, &mut memory, &board, &links) => {}
        }
    }
}

/// An error with what is behind it.
fn told(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Sends to one wearable after the other what it lacks.
async fn serve(rollout: &Rollout, memory: &mut Memory, board: &Board, links: &Links) {
    for (hardware, device) in board.now().devices {
        let runs = version(&device.firmware);
        match memory.of(&hardware, rollout) {
            Some(Tried::Installs)
                if runs != Some(rollout.version)
                    && device.link == Link::Live
                    && memory.has_had_time(&hardware) =>
            {
                tracing::warn!(%hardware, firmware = device.firmware, "new firmware did not prove itself; it went back");
                memory.note(&hardware, rollout, Tried::Failed);
                continue;
            }
            Some(_) => continue,
            None => {}
        }
        if device.link != Link::Live || !rollout.is_for(&hardware, &device.firmware) {
            continue;
        }
        tracing::info!(%hardware, from = device.firmware, to = ?rollout.version, "new firmware is sent");
        let ask = |op| -> BoxFuture<'_, _> { Box::pin(links.ask(&hardware, op, REQUEST)) };
        match send(rollout, ask, |percent| tracing::info!(%hardware, percent, "new firmware")).await {
            Ok(Outcome::Ok) => {
                tracing::info!(%hardware, "new firmware is there and verified; the wearable restarts with it");
                memory.note(&hardware, rollout, Tried::Installs);
            }
            Ok(outcome) => {
                tracing::error!(%hardware, ?outcome, "the wearable does not take the new firmware");
                memory.note(&hardware, rollout, Tried::Failed);
            }
            Err(error) => {
                tracing::info!(%hardware, %error, "the new firmware is not whole there yet; going on when it is back");
            }
        }
    }
}

/// Sends an image from where it is wanted on. The wearable's last word.
async fn send<'a>(
    rollout: &Rollout,
    mut ask: impl FnMut(Op) -> BoxFuture<'a, Result<Outcome, RadioError>>,
    mut tell: impl FnMut(u64),
) -> Result<Outcome, RadioError> {
    let image = &rollout.image;
    let size = image.len() as u32;
    let mut outcome = ask(Op::UpdateStart { size, image: rollout.number }).await?;
    let mut told = 0;
    let mut before = None;
    while let Outcome::UpdateAt(at) = outcome {
        let Some(rest) = image.get(at as usize..) else {
            return Err(RadioError::Nonsense(format!("it wants byte {at} of {size}")));
        };
        if before.replace(at).is_some_and(|before| before >= at) {
            return Err(RadioError::Nonsense(format!("it does not get beyond byte {at}")));
        }
        let percent = u64::from(at) * 100 / u64::from(size);
        if percent >= told + TELL_EVERY {
            told = percent;
            tell(percent);
        }
        let bytes = &rest[..rest.len().min(UPDATE_CHUNK)];
        outcome = match Chunk::new(bytes) {
            Some(bytes) => ask(Op::UpdateData { offset: at, bytes }).await?,
            None => return ask(Op::UpdateFinish).await,
        };
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    const HARDWARE: &str = "kinara:00000000000000a1";

    fn image(version: [u8; 3], payload: &[u8]) -> Vec<u8> {
        let header = Header::of(kinara_protocol::image::Board::SIMULATOR, version, payload).unwrap();
        [header.encode().as_slice(), payload].concat()
    }

    fn folder(rollout: &str, image: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("rollout.toml"), rollout).unwrap();
        std::fs::write(folder.path().join("w.kfw"), image).unwrap();
        folder
    }

    fn hardware() -> HardwareId {
        HardwareId::parse(HARDWARE).unwrap()
    }

    #[test]
    fn a_rollout_is_for_older_firmware_of_those_it_names() {
        let folder =
            folder(&format!("image = \"w.kfw\"\ndevices = [\"{HARDWARE}\"]"), &image([0, 2, 0], &[1; 300]));
        let rollout = Rollout::read(folder.path()).unwrap().unwrap();
        assert!(rollout.is_for(&hardware(), "0.1.9"));
        assert!(!rollout.is_for(&hardware(), "0.2.0") && !rollout.is_for(&hardware(), ""));
        let other = HardwareId::parse("kinara:00000000000000a2").unwrap();
        assert!(!rollout.is_for(&other, "0.1.0"));
    }

    #[test]
    fn a_rollout_that_cannot_be_right_is_none_and_says_why() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Rollout::read(empty.path()).unwrap(), None);
        let mut cut = image([0, 2, 0], &[1; 300]);
        cut.pop();
        let whole = image([0, 2, 0], &[1; 300]);
        for (rollout, image, why) in [
            ("image = \"w.kfw\"", &cut, "no whole firmware image"),
            ("image = \"../w.kfw\"", &whole, "not the name of a file"),
            ("image = \"x.kfw\"", &whole, "x.kfw"),
            ("image = \"w.kfw\"\ndevices = [\"kinara:a1\"]", &whole, "no device"),
            ("images = 1", &whole, "no rollout"),
        ] {
            let error = Rollout::read(folder(rollout, image).path()).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn what_was_tried_outlives_a_restart_and_another_image_is_tried_anew() {
        let folder = folder("image = \"w.kfw\"", &image([0, 2, 0], &[1; 300]));
        let rollout = Rollout::read(folder.path()).unwrap().unwrap();
        Memory::open(folder.path()).note(&hardware(), &rollout, Tried::Failed);
        let memory = Memory::open(folder.path());
        assert_eq!(memory.of(&hardware(), &rollout), Some(Tried::Failed));
        let next = Rollout { number: [9; 16], ..rollout };
        assert_eq!(memory.of(&hardware(), &next), None);
    }

    /// A wearable that keeps what it gets, and whose link is lost after so many requests.
    struct Far {
        kept: Vec<u8>,
        requests: usize,
    }

    impl Far {
        fn answer(&mut self, op: Op) -> Result<Outcome, RadioError> {
            self.requests = self.requests.checked_sub(1).ok_or(RadioError::Timeout("reply"))?;
            match op {
                Op::UpdateData { offset, bytes } if offset as usize == self.kept.len() => {
                    self.kept.extend(bytes.as_bytes());
                }
                Op::UpdateFinish => return Ok(Outcome::Ok),
                _ => {}
            }
            Ok(Outcome::UpdateAt(self.kept.len() as u32))
        }
    }

    #[tokio::test]
    async fn an_image_goes_on_where_the_link_was_lost() {
        let folder = folder("image = \"w.kfw\"", &image([0, 2, 0], &[7; 5_000]));
        let rollout = Rollout::read(folder.path()).unwrap().unwrap();
        let mut far = Far { kept: Vec::new(), requests: 12 };
        assert!(send(&rollout, |op| Box::pin(ready(far.answer(op))), |_| {}).await.is_err());
        assert_eq!(far.kept.len(), 11 * UPDATE_CHUNK);
        far.requests = 1_000;
        let mut told = Vec::new();
        let outcome =
            send(&rollout, |op| Box::pin(ready(far.answer(op))), |percent| told.push(percent)).await.unwrap();
        assert_eq!(outcome, Outcome::Ok);
        assert_eq!(far.kept, *rollout.image);
        assert!(1_000 - far.requests < 20, "what was there was not sent again");
        assert!(told.windows(2).all(|pair| pair[0] < pair[1]) && told.len() >= 5, "{told:?}");
    }

    #[tokio::test]
    async fn a_wearable_that_stands_still_or_asks_for_nonsense_ends_it() {
        let folder = folder("image = \"w.kfw\"", &image([0, 2, 0], &[7; 500]));
        let rollout = Rollout::read(folder.path()).unwrap().unwrap();
        for at in [0, 10_000] {
            let sent = send(&rollout, |_| Box::pin(ready(Ok(Outcome::UpdateAt(at)))), |_| {}).await;
            assert!(matches!(sent, Err(RadioError::Nonsense(_))), "{sent:?}");
        }
    }
}
