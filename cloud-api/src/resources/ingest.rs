//! Readings from a clinic's own programs.
//!
//! The promise: what is answered 202 is on disk, and the bridge writes it the way it writes what gateways bring: to the
//! wearer whose device it was, once, with consent, or it says why not. A request may be sent again as often as its sender
//! likes: its readings have names of their own, or it has an Idempotency-Key, which counts for 30 days.
//!
//! Bounds: a body's size as sent and unpacked; how many are read at once; and of each clinic how much may wait.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use kinara_ingest::items::{self, Form};
use kinara_protocol::frame::Epoch;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tower_http::decompression::RequestDecompressionLayer;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::App;
use crate::auth::key::ApiClient;
use crate::problem::{Path, Problem};

/// Requests that are being read, by clinic: who sends slowly stands in its own way alone.
#[derive(Debug, Default)]
pub struct Places(Mutex<HashMap<Uuid, usize>>);

impl Places {
    /// A place for a clinic's request, if there is one.
    pub fn take(&self, tenant: Uuid, of_clinic: usize, in_all: usize) -> Option<Place<'_>> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&tenant).copied().unwrap_or(0);
        if own >= of_clinic || taken.values().sum::<usize>() >= in_all {
            return None;
        }
        taken.insert(tenant, own + 1);
        Some(Place { places: self, tenant })
    }
}

/// A place that is given back when it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    places: &'a Places,
    tenant: Uuid,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.tenant);
            }
        }
    }
}

/// Takes gzip and zstd off a body.
pub(crate) fn unpacking() -> RequestDecompressionLayer {
    RequestDecompressionLayer::new()
}

/// The longest Idempotency-Key.
const KEY_MAX: usize = 255;

/// A reading, as it is sent; this is for the description alone: bodies are read one by one in `kinara-ingest`.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes")]
pub struct Reading {
    /// The device's hardware id, such as `bt:C0:FF:EE:00:00:01`. It must be assigned to a wearer of this clinic.
    source: String,
    /// With `seq` the reading's own name within its source: a number of 64 bits, or 16 hexadecimal digits. Left out where
    /// the request has an Idempotency-Key.
    epoch: Option<String>,
    /// Counts from 0 in each epoch.
    seq: Option<u32>,
    /// RFC 3339 with an offset, or milliseconds since 1970.
    time: String,
    /// `heart_rate`, `skin_temperature`, ….
    #[schema(rename = "type")]
    kind: String,
    /// A number; three for `acceleration`.
    value: f64,
    /// The type's own if left out. °F and K become °C, m/s² become g, s become ms.
    unit: Option<String>,
    /// How far `time` may be from the truth; 1000 if left out.
    uncertainty_ms: Option<u64>,
}

/// What became of a request.
#[derive(Debug, Serialize, ToSchema)]
pub struct Receipt {
    /// By which it can be asked for.
    pub receipt: Uuid,
    /// `accepted`: on disk, not yet written. `done`: see `outcome`.
    pub status: &'static str,
    /// Readings in the request.
    pub items: i32,
    /// Of these, refused at once.
    pub refused: i32,
    /// The first thousand of those: `index` from 0, `field`, `detail`.
    #[schema(value_type = Vec<Object>)]
    pub errors: Value,
    /// Once it is done: how many were `stored`, were `duplicate`s, were put aside (`quarantined`, and which are `aside`, with
    /// the reason), were `discarded` for want of consent, or `expired`.
    #[schema(value_type = Option<Object>)]
    pub outcome: Option<Value>,
}

fn form(headers: &HeaderMap) -> Result<Form, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/json" => Ok(Form::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Form::JsonLines),
        "application/x-protobuf" | "application/protobuf" => Ok(Form::Protobuf),
        _ => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "Send application/json, application/x-ndjson or application/x-protobuf.",
        )),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().unwrap_or_default().trim();
    if key.is_empty() || key.len() > KEY_MAX {
        return Err(Problem::bad_request("An Idempotency-Key has 1 to 255 printable ASCII characters."));
    }
    Ok(Some(key.to_owned()))
}

/// Takes readings.
#[utoipa::path(post, path = "/ingest", tag = "ingest", request_body(content = Vec<Reading>,
        description = "A JSON array of readings, or an object with one as `readings`; a reading a line \
                       (application/x-ndjson); or a batch as gateways seal it (application/x-protobuf). gzip and zstd are taken."),
    params(("Idempotency-Key" = Option<String>, Header, description = "Names the request for 30 days")),
    responses(
        (status = 202, description = "On disk; GET /ingest/{receipt} says what became of it", body = Receipt),
        (status = 400, description = "No request, or nothing that names its readings", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "More than 5 MB", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "No reading can be taken, or the key was used for another body", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too much of this clinic waits", body = Problem, content_type = "application/problem+json")),
    security(("api_key" = ["ingest"])))]
pub async fn take(State(app): State<App>, client: ApiClient, request: Request) -> Result<Response, Problem> {
    let form = form(request.headers())?;
    let key = idempotency_key(request.headers())?;
    // Before the body is read: a request of many megabytes is held in memory from here on.
    let limits = &app.config.ingest;
    let Some(_place) = app.ingest_places.take(client.tenant, limits.at_once_of_clinic, limits.at_once) else {
        return Err(Problem::too_many(
            "Other requests with readings are being read. Try again in a moment.",
            1,
        ));
    };
    let most = app.config.ingest.unpacked_bytes;
    let body =
        axum::body::to_bytes(request.into_body(), most).await.map_err(|error| unreadable(&error, most))?;
    let drawn = key.is_some().then(|| Epoch(rand::random()));
    let read = tokio::task::spawn_blocking(move || {
        let digest: [u8; 32] = Sha256::digest(&body).into();
        let request = items::read(&body, form, drawn)?;
        let payload = items::pack(&request.batches);
        Ok::<_, items::Unreadable>((digest, request, payload))
    });
    let (digest, request, payload) = read
        .await
        .map_err(|error| Problem::internal(&error))?
        .map_err(|error| Problem::bad_request(sentence(&error)))?;
    if request.batches.is_empty() {
        let first = request.told.first().map_or_else(String::new, |one| {
            format!(" The first, {}: {} ({}).", one.index, one.detail, one.field)
        });
        return Err(Problem::invalid(format!("None of the {} readings can be taken.{first}", request.items)));
    }

    let told = serde_json::json!(request.told);
    let (items, refused) = (request.items as i32, request.refused as i32);
    let _turn = app.turns.take(client.tenant, None).await?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant_write(client.tenant).await?;
    // Asked before there is a limit: what was accepted once is accepted, however much waits.
    if let Some(receipt) = sent_before(&transaction, key.as_deref(), &digest).await? {
        return Ok(accepted(&receipt));
    }
    let waiting = transaction
        .row(
            "SELECT count(*), coalesce(sum(length(payload)), 0)::int8 FROM ingest_requests WHERE finished_at IS NULL AND NOT given_up",
            &[],
        )
        .await?;
    if let Some(row) = waiting {
        let (requests, bytes): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let limits = &app.config.ingest;
        if requests >= limits.waiting_requests || bytes >= limits.waiting_bytes {
            return Err(Problem::too_many("Too much of yours waits to be written. Try again later.", 10));
        }
    }
    let id = Uuid::now_v7();
    let new = transaction
        .run(
            "INSERT INTO ingest_requests (id, tenant_id, api_key_id, idempotency_key, digest, items, refused, told, payload)
             VALUES ($1, (select current_tenant()), $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
            &[&id, &client.key, &key, &digest.as_slice(), &items, &refused, &told, &payload],
        )
        .await?;
    if new == 0 {
        let receipt = sent_before(&transaction, key.as_deref(), &digest).await?;
        let ended = || Problem::conflict("Another request of this key ended just now. Try again.");
        return Ok(accepted(&receipt.ok_or_else(ended)?));
    }
    transaction.commit().await?;
    let receipt = Receipt { receipt: id, status: "accepted", items, refused, errors: told, outcome: None };
    Ok(accepted(&receipt))
}

/// The receipt of a request that came before under the same key, if it was the same.
async fn sent_before(
    transaction: &crate::database::TenantTransaction<'_>,
    key: Option<&str>,
    digest: &[u8],
) -> Result<Option<Receipt>, Problem> {
    let Some(key) = key else { return Ok(None) };
    let row =
        transaction.row("SELECT id, digest FROM ingest_requests WHERE idempotency_key = $1", &[&key]).await?;
    let Some(row) = row else { return Ok(None) };
    if row.try_get::<_, &[u8]>(1)? != digest {
        return Err(Problem::invalid("This Idempotency-Key was used for another body. Draw a new one."));
    }
    find(transaction, row.try_get(0)?).await.map(Some)
}

/// Too large, as sent or unpacked; or not what its Content-Encoding says.
fn unreadable(error: &(dyn std::error::Error + 'static), most: usize) -> Problem {
    let mut cause = Some(error);
    while let Some(one) = cause {
        if one.is::<LengthLimitError>() {
            return Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                format!("A body has at most {most} bytes, unpacked; send it in parts."),
            );
        }
        cause = one.source();
    }
    Problem::bad_request(format!("The body cannot be read: {error}."))
}

fn accepted(receipt: &Receipt) -> Response {
    let location = format!("/ingest/{}", receipt.receipt);
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(receipt)).into_response()
}

fn sentence(error: &items::Unreadable) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}

/// What became of a request.
#[utoipa::path(get, path = "/ingest/{id}", tag = "ingest", params(("id" = Uuid, Path, description = "The receipt")),
    responses(
        (status = 200, body = Receipt),
        (status = 404, description = "No such request of this clinic in the last 30 days", body = Problem, content_type = "application/problem+json")),
    security(("api_key" = ["ingest"])))]
pub async fn receipt(
    State(app): State<App>,
    client: ApiClient,
    Path(id): Path<Uuid>,
) -> Result<Json<Receipt>, Problem> {
    let _turn = app.turns.take(client.tenant, None).await?;
    let mut connection = app.database.connection().await?;
    let transaction = connection.tenant(client.tenant).await?;
    Ok(Json(find(&transaction, id).await?))
}

async fn find(transaction: &crate::database::TenantTransaction<'_>, id: Uuid) -> Result<Receipt, Problem> {
    let row = transaction
        .row(
            "SELECT finished_at IS NOT NULL, items, refused, told, outcome FROM ingest_requests WHERE id = $1",
            &[&id],
        )
        .await?
        .ok_or_else(|| Problem::not_found("request"))?;
    let done: bool = row.try_get(0)?;
    Ok(Receipt {
        receipt: id,
        status: if done { "done" } else { "accepted" },
        items: row.try_get(1)?,
        refused: row.try_get(2)?,
        errors: row.try_get(3)?,
        outcome: row.try_get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clinic_that_sends_slowly_leaves_a_place_for_the_others() {
        let (places, slow, other) = (Places::default(), Uuid::from_u128(1), Uuid::from_u128(2));
        let held = [places.take(slow, 2, 3), places.take(slow, 2, 3)];
        assert!(held.iter().all(Option::is_some) && places.take(slow, 2, 3).is_none());
        let others = places.take(other, 2, 3);
        assert!(others.is_some() && places.take(other, 2, 3).is_none());
        drop(held);
        assert!(places.take(slow, 2, 3).is_some());
    }
}
