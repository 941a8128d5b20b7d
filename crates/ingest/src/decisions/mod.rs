//! What people decided at a box, perhaps days ago and with no cloud at hand: wearers added, consents, assignments, bonds.
//!
//! The promise: a decision is in once, by its id, and only if the box that says so has signed it with the key that is
//! trusted for it. It is a transaction of its own: the line in the log and all that follows from it are committed
//! together, before the batch is acknowledged; one that cannot be carried out is put aside with its reason and stands in
//! nobody's way, and no decision is ever thrown away. It touches its own gateway's clinic and no other: an assignment
//! that would take a device from another clinic is refused, and the database's exclusion constraint has the last word on
//! intervals. It takes effect at its own time, however late it comes: frames that were refused for want of it are taken
//! after all, and what was stored under the wearer before moves to the new one ([`crate::upkeep`]).
//!
//! What may become possible later (the key is not known yet, a decision before it has not arrived, somebody is in the way, a clinic
//! has too many of something) is tried again.

mod assignment;
mod content;
mod records;

use kinara_protocol::envelope::Decision;
use kinara_store::Transaction;
use prost::Message as _;
use ring::signature::{ED25519, UnparsedPublicKey};
use uuid::Uuid;

use crate::boundary;
pub(crate) use crate::boundary::Refusal;
use crate::decisions::content::{Content, What};
use crate::error::Remedy;
use crate::quarantine::{self, Refused};
use crate::write::{Counts, Outcome, Writer};
use crate::{Error, timestamp};

/// A box whose clock may be off by more than this (a day) does not know what time it is.
const CLOCK_UNKNOWN_US: i64 = 86_400_000_000;

/// Reasons that may go away by themselves.
pub(crate) const MAY_PASS: [&str; 7] = [
    reason::NO_KEY,
    reason::OTHER_KEY,
    reason::UNKNOWN_WEARER,
    reason::UNKNOWN_CONSENT,
    reason::NOT_ASSIGNED,
    reason::BUSY,
    reason::TOO_MANY,
];

/// The words for reasons.
pub(crate) mod reason {
    pub use crate::boundary::reason::{NOT_ASSIGNED, TOO_MANY};

    /// The gateway has not said its key yet.
    pub const NO_KEY: &str = "no_key";
    /// Signed with a key that the gateway said, and that nobody has trusted yet.
    pub const OTHER_KEY: &str = "other_key";
    /// Signed with none of its keys.
    pub const SIGNATURE: &str = "signature";
    /// Not a decision that this program understands.
    pub const MALFORMED: &str = "malformed";
    /// A time that cannot be.
    pub const TIMESTAMP: &str = "timestamp";
    /// The clinic has no such wearer.
    pub const UNKNOWN_WEARER: &str = "unknown_wearer";
    /// The wearer has given no such consent.
    pub const UNKNOWN_CONSENT: &str = "unknown_consent";
    /// It contradicts what is there.
    pub const CONFLICT: &str = "conflict";
    /// It took longer than a statement may, or somebody was in its way each time.
    pub const BUSY: &str = "busy";
}

/// Why carrying out ended.
#[derive(Debug)]
enum Stop {
    Refused(Refusal),
    Failed(Error),
}

impl From<tokio_postgres::Error> for Stop {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<boundary::Stop> for Stop {
    fn from(stop: boundary::Stop) -> Self {
        match stop {
            boundary::Stop::Refused(refusal) => Self::Refused(refusal),
            boundary::Stop::Failed(error) => Self::Failed(error.into()),
        }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Whose word a decision is.
#[derive(Debug, Clone, Copy)]
struct Speaker {
    gateway: Uuid,
    tenant: Uuid,
    now: jiff::Timestamp,
}

/// What became of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Carried out.
    Applied,
    /// In already.
    Duplicate,
    /// Put aside.
    Refused(Refusal),
    /// About somebody who was erased: nothing of it is kept.
    Erased,
    /// The gateway is not enrolled: nothing of it is taken.
    Stranger,
}

impl Writer {
    /// Takes the decisions of an event batch, one after the other. `None`: all have an answer; else the batch's.
    pub(crate) async fn write_decisions(
        &self,
        gateway: Uuid,
        decisions: &[Decision],
        counts: &mut Counts,
    ) -> Result<Option<Outcome>, Error> {
        for decision in decisions {
            match self.decide(gateway, decision, false).await? {
                Verdict::Applied => counts.stored += 1,
                Verdict::Duplicate => counts.duplicate += 1,
                Verdict::Erased => counts.discarded += 1,
                Verdict::Refused(refusal) => {
                    tracing::warn!(%gateway, reason = refusal.reason, detail = refusal.detail, "a decision is put aside");
                    counts.quarantined += 1;
                }
                Verdict::Stranger => {
                    return Ok(Some(Outcome::RetryAfter {
                        seconds: self.limits.unknown_gateway_s,
                        reason: "this gateway is not enrolled".to_owned(),
                    }));
                }
            }
        }
        Ok(None)
    }

    /// Takes one decision. `again`: one that is in the log as refused is carried out if it now can be.
    pub(crate) async fn decide(
        &self,
        gateway: Uuid,
        decision: &Decision,
        again: bool,
    ) -> Result<Verdict, Error> {
        let mut left = self.limits.tries;
        loop {
            match self.decide_once(gateway, decision, again, None).await {
                Err(error) if error.remedy() != Remedy::Again => return Err(error),
                // One that is in the quarantine already waits there, under the reason that it has.
                Err(error) if again && (left <= 1 || error.is_timeout()) => return Err(error),
                Err(error) if left <= 1 || error.is_timeout() => {
                    // The batch behind it, its gateway and a writer would wait for it.
                    let refusal = Refusal::new(reason::BUSY, format!("it is tried again: {error}"));
                    return self.decide_once(gateway, decision, again, Some(refusal)).await;
                }
                Err(_) => left -= 1,
                Ok(verdict) => return Ok(verdict),
            }
        }
    }

    /// `refused`: it is put aside for this, and not carried out.
    async fn decide_once(
        &self,
        gateway: Uuid,
        decision: &Decision,
        again: bool,
        refused: Option<Refusal>,
    ) -> Result<Verdict, Error> {
        let now = timestamp(self.clock.utc_us());
        let mut client = self.pool.get().await?;
        let mut tx = client.transaction().await?;
        let Some(tenant) = tenant_of(&tx, gateway).await? else { return Ok(Verdict::Stranger) };
        let speaker = Speaker { gateway, tenant, now };
        if is_about_an_erased(&tx, decision).await? {
            return Ok(Verdict::Erased);
        }
        let understood = match self.understand(&tx, gateway, decision).await? {
            Ok(understood) => understood,
            Err(refusal) => {
                put_aside(&tx, speaker, decision, &refusal).await?;
                tx.commit().await?;
                return Ok(Verdict::Refused(refusal));
            }
        };
        let (mut content, key) = understood;
        if content.uncertainty_us > CLOCK_UNKNOWN_US {
            // A box that does not know what time it is: it was before now, and after what the box said before. A frame
            // that it names decides in any case.
            content.at_us = self.clock.utc_us();
        }
        if !log(&tx, speaker, decision, &content, &key, again).await? {
            return Ok(Verdict::Duplicate);
        }
        let refusal = match refused {
            Some(refusal) => Some(refusal),
            None => attempt(&mut tx, speaker, &content).await?,
        };
        settle(&tx, speaker, content.id, refusal.as_ref()).await?;
        let verdict = match refusal {
            Some(refusal) => {
                put_aside(&tx, speaker, decision, &refusal).await?;
                Verdict::Refused(refusal)
            }
            None => Verdict::Applied,
        };
        tx.commit().await?;
        Ok(verdict)
    }

    /// Reads a decision and checks who signed it: gives what it says and the key.
    async fn understand(
        &self,
        tx: &Transaction<'_>,
        gateway: Uuid,
        decision: &Decision,
    ) -> Result<Result<(Content, Vec<u8>), Refusal>, Error> {
        let key = match signer(tx, gateway, decision).await? {
            Ok(key) => key,
            Err(refusal) => return Ok(Err(refusal)),
        };
        Ok(content::read(decision, self.window()).map(|content| (content, key)))
    }
}

async fn tenant_of(tx: &Transaction<'_>, gateway: Uuid) -> Result<Option<Uuid>, Error> {
    let statement =
        tx.prepare_cached("SELECT tenant_id FROM gateways WHERE id = $1 AND retired_at IS NULL").await?;
    Ok(tx.query_opt(&statement, &[&gateway]).await?.map(|row| row.get(0)))
}

/// Whether the wearer that a decision names was erased, in whichever clinic. Such a decision names somebody and changes nothing.
async fn is_about_an_erased(tx: &Transaction<'_>, decision: &Decision) -> Result<bool, Error> {
    let Some(user) = content::named_user(decision) else { return Ok(false) };
    let statement = tx.prepare_cached("SELECT EXISTS (SELECT FROM tombstones WHERE user_id = $1)").await?;
    Ok(tx.query_one(&statement, &[&user]).await?.get(0))
}

/// The trusted key that signed a decision. A former key's signature is not taken: whoever has that key may not be the box.
async fn signer(
    tx: &Transaction<'_>,
    gateway: Uuid,
    decision: &Decision,
) -> Result<Result<Vec<u8>, Refusal>, Error> {
    let statement = tx
        .prepare_cached(
            "SELECT key, trusted_at IS NOT NULL FROM gateway_keys WHERE gateway_id = $1 AND ended_at IS NULL
             ORDER BY trusted_at NULLS LAST",
        )
        .await?;
    let signed = decision.signed_bytes(gateway);
    let mut known = false;
    for row in tx.query(&statement, &[&gateway]).await? {
        let (key, trusted): (Vec<u8>, bool) = (row.get(0), row.get(1));
        known = true;
        if UnparsedPublicKey::new(&ED25519, &key).verify(&signed, &decision.signature).is_err() {
            continue;
        }
        return Ok(if trusted {
            Ok(key)
        } else {
            let detail = "the gateway has a new signing key; an operator says whether it is to be trusted: \
                          admin gateway trust-key";
            Err(Refusal::new(reason::OTHER_KEY, detail))
        });
    }
    Ok(Err(if known {
        Refusal::new(reason::SIGNATURE, "signed with no key of this gateway")
    } else {
        Refusal::new(reason::NO_KEY, "the gateway has not said its signing key yet")
    }))
}

const LOG: &str = "
    INSERT INTO decisions (gateway_id, id, tenant_id, kind, at, uncertainty_us, actor_kind, actor_name, member_id,
      hardware_id, user_id, detail, payload, signature, key, received_at, settled_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $16) ON CONFLICT DO NOTHING";

/// Writes the line of the log. False: it is there, and is not to be carried out again.
async fn log(
    tx: &Transaction<'_>,
    speaker: Speaker,
    decision: &Decision,
    content: &Content,
    key: &[u8],
    again: bool,
) -> Result<bool, Error> {
    let unsigned = Decision { signature: Vec::new(), ..decision.clone() }.encode_to_vec();
    let statement = tx.prepare_cached(LOG).await?;
    let new = tx
        .execute(
            &statement,
            &[
                &speaker.gateway,
                &content.id,
                &speaker.tenant,
                &content.what.kind(),
                &timestamp(content.at_us),
                &content.uncertainty_us,
                &content.actor.kind,
                &content.actor.name,
                &content.actor.member,
                &content.what.hardware(),
                &content.what.user(),
                &content.what.detail(),
                &unsigned,
                &decision.signature,
                &key,
                &speaker.now,
            ],
        )
        .await?;
    if new > 0 {
        return Ok(true);
    }
    if !again {
        return Ok(false);
    }
    let statement = tx
        .prepare_cached(
            "SELECT refused IS NOT NULL FROM decisions WHERE gateway_id = $1 AND id = $2 FOR UPDATE",
        )
        .await?;
    Ok(tx.query_one(&statement, &[&speaker.gateway, &content.id]).await?.get(0))
}

async fn settle(
    tx: &Transaction<'_>,
    speaker: Speaker,
    id: Uuid,
    refusal: Option<&Refusal>,
) -> Result<(), Error> {
    let statement = tx
        .prepare_cached(
            "UPDATE decisions SET refused = $3, settled_at = $4 WHERE gateway_id = $1 AND id = $2",
        )
        .await?;
    let reason = refusal.map(|refusal| refusal.reason);
    tx.execute(&statement, &[&speaker.gateway, &id, &reason, &speaker.now]).await?;
    // Pages that show the clinic's devices look again.
    let payload = serde_json::json!({ "tenant": speaker.tenant, "gateway": speaker.gateway }).to_string();
    tx.execute("SELECT pg_notify('kinara_state', $1)", &[&payload]).await?;
    Ok(())
}

async fn put_aside(
    tx: &Transaction<'_>,
    speaker: Speaker,
    decision: &Decision,
    refusal: &Refusal,
) -> Result<(), Error> {
    let refused = Refused {
        what: "decision",
        tenant: Some(speaker.tenant),
        gateway: Some(speaker.gateway),
        hardware_id: content::named_hardware(decision),
        epoch: 0,
        seq: None,
        reason: refusal.reason,
        detail: refusal.detail.clone(),
        payload: decision.encode_to_vec(),
        fit: None,
    };
    quarantine::keep(tx, &[refused], speaker.now).await
}

/// A refusal, where the database's own refusal is one, too.
fn refusal_of(stop: Stop) -> Result<Refusal, Error> {
    match stop {
        Stop::Refused(refusal) => Ok(refusal),
        Stop::Failed(Error::Database(error)) => match error.code().map(tokio_postgres::error::SqlState::code)
        {
            Some("23P01") => Ok(Refusal::new(
                reason::CONFLICT,
                "another assignment of this device overlaps; end that one first, then take this again",
            )),
            Some(code) if code.starts_with("22") || code.starts_with("23") => {
                Ok(Refusal::new(reason::CONFLICT, kinara_store::explain(&error)))
            }
            _ => Err(error.into()),
        },
        Stop::Failed(error) => Err(error),
    }
}

/// Carries a decision out; what a refused one had begun is undone, and its line in the log stays.
async fn attempt(
    tx: &mut Transaction<'_>,
    speaker: Speaker,
    content: &Content,
) -> Result<Option<Refusal>, Error> {
    let attempt = tx.transaction().await?;
    match carry_out(&attempt, speaker, content).await {
        Ok(()) => {
            attempt.commit().await?;
            Ok(None)
        }
        Err(stop) => {
            attempt.rollback().await?;
            refusal_of(stop).map(Some)
        }
    }
}

async fn carry_out(tx: &Transaction<'_>, speaker: Speaker, content: &Content) -> Result<(), Stop> {
    match &content.what {
        What::WearerAdded { user, name } => records::wearer_added(tx, speaker, content, *user, name).await,
        What::ConsentRecorded(consent) => records::consent_recorded(tx, speaker, content, consent).await,
        What::ConsentWithdrawn { user } => records::consent_withdrawn(tx, speaker, content, *user).await,
        What::Assigned(order) => assignment::assigned(tx, speaker, content, order).await,
        What::Unassigned { hardware, to } => {
            assignment::unassigned(tx, speaker, content, hardware, *to).await
        }
        What::Paired { hardware, how, adapter } => {
            records::paired(tx, speaker, content, hardware, how, adapter).await
        }
        What::Forgotten { hardware } => records::forgotten(tx, speaker, content, hardware).await,
    }
}
