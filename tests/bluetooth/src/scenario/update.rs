//! New firmware over the air, from a rollout file on the box to the wearable that runs it.

use super::pairing::{new_wearable, pair_by_label};
use super::{Day, LINK};
use crate::bed::until;
use crate::package::DATA;
use crate::{BedError, Result};
use kinara_clinic::scenario::AWAY_FRAME_AGE_S;
use kinara_protocol::image::{Board, HEADER_LEN, Header};
use ring::signature::{Ed25519KeyPair, KeyPair};
use sha2::{Digest, Sha256};
use std::time::Instant;

/// The maker of the bed's images.
const MAKER: [u8; 32] = [7; 32];
/// So large that it takes a while: 20 KiB, a few hundred requests.
const PAYLOAD: usize = 20 << 10;

fn maker() -> Result<Ed25519KeyPair> {
    Ed25519KeyPair::from_seed_unchecked(&MAKER)
        .map_err(|error| BedError::Broken(format!("the bed's own key: {error}")))
}

fn image(version: [u8; 3], payload: &[u8]) -> Result<Vec<u8>> {
    let mut header = Header::of(Board::SIMULATOR, version, payload)
        .ok_or_else(|| BedError::Broken("the bed's own image is too large".to_owned()))?;
    let signature = maker()?.sign(&header.signed());
    header.signature.copy_from_slice(signature.as_ref());
    Ok([header.encode().as_slice(), payload].concat())
}

/// Puts an image and its rollout on the box.
fn roll_out(day: &Day, hardware: &str, name: &str, image: &[u8]) -> Result<()> {
    let hand = day.ward.hand(day.gateway)?;
    let folder = format!("{DATA}/update");
    hand.write(&format!("{folder}/{name}.hex"), &hex::encode(image), 0o644)?;
    hand.shell(&format!(
        "python3 -c \"open('{folder}/{name}','wb').write(bytes.fromhex(open('{folder}/{name}.hex').read()))\""
    ))?;
    hand.write(
        &format!("{folder}/rollout.toml"),
        &format!("image = \"{name}\"\ndevices = [\"{hardware}\"]\n"),
        0o644,
    )?;
    hand.shell(&format!("chown -R kinara:kinara {folder}")).map(|_| ())
}

/// Waits until the wearable runs this version, and writes its restart into the record.
fn runs(day: &mut Day, wearable: usize, version: &str) -> Result<()> {
    until(&format!("it runs {version}"), LINK, || Ok(day.ward.status(wearable)?["firmware"] == version))
        .map_err(|error| day.ward.with_log(day.gateway, error))?;
    day.ward.stage.allow_reset(wearable, AWAY_FRAME_AGE_S);
    Ok(())
}

/// Waits until the box knows that this image will not do.
fn is_given_up(day: &Day, image: &[u8]) -> Result<()> {
    let number = hex::encode(&Sha256::digest(image)[..16]);
    let hand = day.ward.hand(day.gateway)?;
    until("the box has given up on it", LINK, || {
        let tried = hand.read(&format!("{DATA}/update/tried.json")).unwrap_or_default();
        Ok(tried.contains(&format!("/{number}\":\"failed\"")))
    })
    .map_err(|error| day.ward.with_log(day.gateway, error))
}

pub fn new_firmware_comes_over_the_air(day: &mut Day) -> Result<()> {
    let key = hex::encode(maker()?.public_key().as_ref());
    let (wearable, name) = new_wearable(day, &["--maker", &key, "--healthy-s", "5"])?;
    pair_by_label(day, wearable, &name)?;
    let hardware = day.ward.stage.clinic.wearables[wearable].hardware_id.clone();

    let began = Instant::now();
    let good = image([0, 2, 0], &vec![0x5a; PAYLOAD])?;
    roll_out(day, &hardware, "good.kfw", &good)?;
    // Somewhere in the middle the link is lost.
    let hand = day.ward.hand(day.gateway)?;
    until("some of it is there", LINK, || {
        Ok(hand.log("gatewayd")?.contains(&format!("new firmware hardware={hardware} percent=")))
    })
    .map_err(|error| day.ward.with_log(day.gateway, error))?;
    day.ward.bed.air.cut(day.ward.on_air(wearable))?;
    runs(day, wearable, "0.2.0")?;
    day.note("updated_s", began.elapsed().as_secs_f64().round());
    day.all_flow(&[wearable], LINK)?;

    let hangs = image([0, 3, 0], b"hangs")?;
    roll_out(day, &hardware, "hangs.kfw", &hangs)?;
    runs(day, wearable, "0.3.0")?;
    runs(day, wearable, "0.2.0")?;
    day.all_flow(&[wearable], LINK)?;
    is_given_up(day, &hangs)?;
    // The wearable tells why it started again.
    let told = day.ward.hand(day.gateway)?.log("gatewayd")?;
    let restarted = |line: &str| {
        line.contains("restarted by itself") && line.contains(&hardware) && line.contains("reason=Watchdog")
    };
    day.must(told.lines().any(restarted), "the box does not know of the watchdog")?;

    let mut forged = image([0, 4, 0], &vec![0x5a; PAYLOAD])?;
    forged[HEADER_LEN - 1] ^= 1;
    roll_out(day, &hardware, "forged.kfw", &forged)?;
    is_given_up(day, &forged)?;
    day.must(day.ward.status(wearable)?["firmware"] == "0.2.0", "it took firmware that is not its maker's")?;
    day.all_flow(&[wearable], LINK).map(|_| ())
}
