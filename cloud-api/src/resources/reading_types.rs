//! What can be measured: the registry, for programs that ask for bounds or draw a scale.

use axum::Json;
use kinara_protocol::channel;
use serde::Serialize;
use utoipa::ToSchema;

use super::Items;

/// A type of reading.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadingType {
    /// Its name.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The lowest value that a body can have.
    pub min: f64,
    /// The highest.
    pub max: f64,
    /// Seconds that one reading covers, by the plan that wearables begin with.
    pub interval_s: u16,
    /// Whether means of minutes are kept of it: what an alert's rule needs.
    pub minute_means: bool,
}

/// All types of readings.
#[utoipa::path(get, path = "/api/v1/reading-types", tag = "readings", responses((status = 200, body = Items<ReadingType>)))]
pub async fn list() -> Json<Items<ReadingType>> {
    let items = channel::REGISTRY.iter().map(|channel| ReadingType {
        name: channel.name,
        unit: channel.unit,
        min: channel.range.0,
        max: channel.range.1,
        interval_s: channel.interval_s,
        minute_means: channel.has_minute_means(),
    });
    Json(Items { items: items.collect() })
}
