//! The virtual radio: wearables are processes that listen on Unix sockets in a folder, the "air".

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kinara_protocol::gatt::Characteristic;
use kinara_virtual_radio::{Decoder, FromWearable, Message, ToWearable, factory_id_of};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::{
    Adapter, AdapterId, Agreement, Bond, Connection, Link, LinkEvent, Offer, Radio, RadioError,
    SensorConnection, Sighting,
};
use crate::hardware::HardwareId;

/// Notifications that may wait for the session; more than a wearable's window.
const EVENTS: usize = 1024;

/// How the virtual radio behaves.
#[derive(Debug, Clone)]
pub struct VirtualRadio {
    /// The folder with the wearables' sockets.
    pub air_dir: PathBuf,
    /// This gateway's name; being in range is by name.
    pub name: String,
    /// Links that it holds at once.
    pub slots: usize,
    /// Pause between two scans.
    pub scan_every: Duration,
    /// How long one wearable may take to answer a scan.
    pub scan_timeout: Duration,
    /// How long any answer on a link may take.
    pub timeout: Duration,
}

impl VirtualRadio {
    /// Its adapter's address: the same for the same name.
    fn address(&self) -> [u8; 6] {
        let mut address = [0; 6];
        address.copy_from_slice(&Sha256::digest(self.name.as_bytes())[..6]);
        // A static random address (Core 1.3.2.1 of volume 6, part B).
        address[0] |= 0xc0;
        address
    }

    fn sockets(&self) -> Vec<(u64, PathBuf)> {
        let Ok(entries) = std::fs::read_dir(&self.air_dir) else { return Vec::new() };
        entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                Some((factory_id_of(&path)?, path))
            })
            .collect()
    }

    async fn look(self, path: PathBuf) -> Option<Sighting> {
        let answer = async {
            let (mut socket, mut inbox) = open(&path).await?;
            send(&mut socket, &ToWearable::Scan { gateway: self.name.clone() }).await?;
            inbox.next().await
        };
        let answer = tokio::time::timeout(self.scan_timeout, answer).await.ok()?.ok()?;
        let FromWearable::Advertisement(seen) = answer else { return None };
        Some(Sighting {
            address: path.to_string_lossy().into_owned(),
            hardware: Some(HardwareId::kinara(seen.factory_id)),
            name: seen.name,
            rssi_dbm: i16::from(seen.rssi_dbm),
            offer: seen.window_open.then(|| Offer::Label { nonce: seen.nonce.to_vec() }),
            connectable: seen.connectable,
        })
    }

    async fn open_link(
        &self,
        sighting: &Sighting,
        bond: Option<[u8; 16]>,
    ) -> Result<(OwnedWriteHalf, Inbox), RadioError> {
        let (mut socket, mut inbox) = open(&PathBuf::from(&sighting.address)).await?;
        send(&mut socket, &ToWearable::Connect { gateway: self.name.clone(), bond }).await?;
        match inbox.next().await? {
            FromWearable::Connected { .. } => Ok((socket, inbox)),
            FromWearable::Refused { reason } => Err(connection_refused(reason)),
            other => Err(RadioError::Nonsense(format!("{other:?} to a connection"))),
        }
    }

    async fn limited<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, RadioError>> + Send,
    ) -> Result<T, RadioError> {
        tokio::time::timeout(self.timeout, work).await.unwrap_or(Err(RadioError::Timeout(what)))
    }
}

impl Radio for VirtualRadio {
    fn adapters(&self) -> BoxFuture<'_, Result<Vec<Adapter>, RadioError>> {
        let address = self.address();
        let adapter =
            Adapter { id: AdapterId("virtual0".to_owned()), address, powered: true, slots: self.slots };
        Box::pin(async { Ok(vec![adapter]) })
    }

    fn scan<'a>(&'a self, _: &'a AdapterId) -> BoxFuture<'a, Result<mpsc::Receiver<Sighting>, RadioError>> {
        let (sender, receiver) = mpsc::channel(64);
        let radio = self.clone();
        tokio::spawn(async move {
            while !sender.is_closed() {
                let mut looks = JoinSet::new();
                for (_, path) in radio.sockets() {
                    looks.spawn(radio.clone().look(path));
                }
                while let Some(seen) = looks.join_next().await {
                    if let Ok(Some(sighting)) = seen
                        && sender.send(sighting).await.is_err()
                    {
                        return;
                    }
                }
                tokio::time::sleep(radio.scan_every).await;
            }
        });
        Box::pin(async { Ok(receiver) })
    }

    fn pairable<'a>(&'a self, _: &'a AdapterId, _: bool) -> BoxFuture<'a, Result<(), RadioError>> {
        // Nothing here takes a pairing that was not asked for.
        Box::pin(async { Ok(()) })
    }

    fn pair<'a>(
        &'a self,
        _: &'a AdapterId,
        sighting: &'a Sighting,
        agreement: Agreement,
    ) -> BoxFuture<'a, Result<Bond, RadioError>> {
        Box::pin(async move {
            let Agreement::Passkey(passkey) = agreement else {
                return Err(RadioError::NotAuthenticated("a wearable pairs with a passkey only".to_owned()));
            };
            let (mut socket, mut inbox) = self.limited("connecting", self.open_link(sighting, None)).await?;
            // A person may have to look it up, so the limit is theirs.
            let Some(passkey) = passkey().await else { return Err(RadioError::WindowClosed) };
            self.limited("pairing", async move {
                send(&mut socket, &ToWearable::Pair { passkey }).await?;
                match inbox.next().await? {
                    FromWearable::Paired { bond } => {
                        send(&mut socket, &ToWearable::Disconnect).await?;
                        Ok(Bond(bond.to_vec()))
                    }
                    FromWearable::Refused { reason } => Err(pairing_refused(reason)),
                    other => Err(RadioError::Nonsense(format!("{other:?} to a pairing"))),
                }
            })
            .await
        })
    }

    fn connect<'a>(
        &'a self,
        _: &'a AdapterId,
        sighting: &'a Sighting,
        bond: &'a Bond,
    ) -> BoxFuture<'a, Result<Connection, RadioError>> {
        Box::pin(self.limited("connecting", async move {
            let bond =
                bond.0.as_slice().try_into().map_err(|_| RadioError::Refused("no such bond".to_owned()))?;
            let (socket, inbox) = self.open_link(sighting, Some(bond)).await?;
            let (events, receiver) = mpsc::channel(EVENTS);
            let (replies, answers) = mpsc::channel(8);
            let reader = tokio::spawn(read(inbox, events, replies)).abort_handle();
            let rssi = sighting.rssi_dbm;
            let link = VirtualLink { socket, answers, timeout: self.timeout, rssi, reader };
            Ok(Connection { link: Box::new(link), events: receiver })
        }))
    }

    fn connect_sensor<'a>(
        &'a self,
        _: &'a AdapterId,
        _: &'a Sighting,
        _: &'a Bond,
    ) -> BoxFuture<'a, Result<SensorConnection, RadioError>> {
        Box::pin(async { Err(RadioError::Refused("there are no sensors on the virtual air".to_owned())) })
    }

    fn forget<'a>(&'a self, _: &'a AdapterId, _: &'a Bond) -> BoxFuture<'a, Result<(), RadioError>> {
        // The key is in the bond itself: with it gone, nothing is left.
        Box::pin(async { Ok(()) })
    }
}

/// How a wearable begins to say that it has a link already.
const LINKED: &str = "linked to ";

/// The wearable's words (`firmware/sim`) as what a person can do about them.
fn connection_refused(reason: String) -> RadioError {
    match reason.as_str() {
        "this bond is not known here; pair again" => RadioError::StaleBond,
        "the pairing window is closed" => RadioError::WindowClosed,
        _ if reason.starts_with(LINKED) => RadioError::Busy(reason),
        _ => RadioError::Refused(reason),
    }
}

/// The same for pairings.
fn pairing_refused(reason: String) -> RadioError {
    match reason.as_str() {
        "the passkey is wrong, or the pairing window is closed" => RadioError::WrongCode,
        "the pairing window is closed" => RadioError::WindowClosed,
        _ if reason.starts_with(LINKED) => RadioError::Busy(reason),
        _ => RadioError::Refused(reason),
    }
}

struct VirtualLink {
    socket: OwnedWriteHalf,
    answers: mpsc::Receiver<FromWearable>,
    timeout: Duration,
    rssi: i16,
    reader: AbortHandle,
}

impl Drop for VirtualLink {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl VirtualLink {
    async fn ask(&mut self, what: &'static str, message: &ToWearable) -> Result<FromWearable, RadioError> {
        let work = async {
            send(&mut self.socket, message).await?;
            self.answers.recv().await.ok_or_else(|| RadioError::Gone("closed".to_owned()))
        };
        match tokio::time::timeout(self.timeout, work).await {
            Ok(Ok(FromWearable::Refused { reason })) => Err(RadioError::Refused(reason)),
            Ok(answer) => answer,
            // A late answer would be taken for that of the next request: this link is over.
            Err(_) => Err(RadioError::Timeout(what)),
        }
    }
}

impl Link for VirtualLink {
    fn write_control<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<(), RadioError>> {
        let message = ToWearable::Write {
            characteristic: kinara_virtual_radio::Characteristic::Control,
            bytes: bytes.to_vec(),
        };
        Box::pin(async move {
            match self.ask("write", &message).await? {
                FromWearable::WriteDone => Ok(()),
                other => Err(RadioError::Nonsense(format!("{other:?} to a write"))),
            }
        })
    }

    fn subscribe(&mut self, characteristic: Characteristic) -> BoxFuture<'_, Result<(), RadioError>> {
        let message = ToWearable::Subscribe { characteristic: to_virtual(characteristic), on: true };
        Box::pin(async move {
            match self.ask("subscribe", &message).await? {
                FromWearable::Subscribed => Ok(()),
                other => Err(RadioError::Nonsense(format!("{other:?} to a subscription"))),
            }
        })
    }

    fn read_status(&mut self) -> BoxFuture<'_, Result<Bytes, RadioError>> {
        Box::pin(async move {
            match self.ask("read", &ToWearable::ReadStatus).await? {
                FromWearable::Status { bytes } => Ok(bytes.into()),
                other => Err(RadioError::Nonsense(format!("{other:?} to a read"))),
            }
        })
    }

    fn rssi_dbm(&mut self) -> BoxFuture<'_, Option<i16>> {
        Box::pin(async { Some(self.rssi) })
    }

    fn disconnect(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Err(error) = send(&mut self.socket, &ToWearable::Disconnect).await {
                tracing::debug!(%error, "it had gone already");
            }
        })
    }
}

struct Inbox {
    socket: tokio::net::unix::OwnedReadHalf,
    decoder: Decoder,
}

impl Inbox {
    async fn next(&mut self) -> Result<FromWearable, RadioError> {
        let mut buffer = [0; 4096];
        loop {
            match self.decoder.next() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(error) => return Err(RadioError::Nonsense(error.to_string())),
            }
            match self.socket.read(&mut buffer).await {
                Ok(0) => return Err(RadioError::Gone("the wearable closed it".to_owned())),
                Ok(count) => self.decoder.feed(&buffer[..count]),
                Err(error) => return Err(RadioError::Gone(error.to_string())),
            }
        }
    }
}

async fn read(mut inbox: Inbox, events: mpsc::Sender<LinkEvent>, replies: mpsc::Sender<FromWearable>) {
    loop {
        let gone = match inbox.next().await {
            Ok(
                FromWearable::Notify { characteristic, bytes }
                | FromWearable::Indicate { characteristic, bytes },
            ) => {
                let event = LinkEvent { characteristic: from_virtual(characteristic), bytes: bytes.into() };
                events.send(event).await.is_err()
            }
            Ok(reply) => replies.send(reply).await.is_err(),
            Err(error) => {
                tracing::debug!(%error, "a virtual link ended");
                true
            }
        };
        if gone {
            return;
        }
    }
}

async fn open(path: &std::path::Path) -> Result<(OwnedWriteHalf, Inbox), RadioError> {
    let socket = UnixStream::connect(path).await.map_err(|error| RadioError::Gone(error.to_string()))?;
    let (reader, writer) = socket.into_split();
    Ok((writer, Inbox { socket: reader, decoder: Decoder::default() }))
}

async fn send(socket: &mut OwnedWriteHalf, message: &ToWearable) -> Result<(), RadioError> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    socket.write_all(&bytes).await.map_err(|error| RadioError::Gone(error.to_string()))
}

fn to_virtual(characteristic: Characteristic) -> kinara_virtual_radio::Characteristic {
    use kinara_virtual_radio::Characteristic as V;
    match characteristic {
        Characteristic::Stream => V::Stream,
        Characteristic::Backlog => V::Backlog,
        Characteristic::Control => V::Control,
        Characteristic::Status => V::Status,
    }
}

fn from_virtual(characteristic: kinara_virtual_radio::Characteristic) -> Characteristic {
    use kinara_virtual_radio::Characteristic as V;
    match characteristic {
        V::Stream => Characteristic::Stream,
        V::Backlog => Characteristic::Backlog,
        V::Control => Characteristic::Control,
        V::Status => Characteristic::Status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wearable_that_is_busy_has_not_forgotten_us() {
        for answer in [connection_refused, pairing_refused] {
            assert!(matches!(answer("linked to ward".to_owned()), RadioError::Busy(_)));
            assert!(matches!(answer("no such word".to_owned()), RadioError::Refused(_)));
        }
        let forgotten = connection_refused("this bond is not known here; pair again".to_owned());
        assert_eq!(forgotten, RadioError::StaleBond);
    }
}
