//! What was sealed keeps its order: see [`crate::align::order`]. Kept in the transaction that seals.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use kinara_protocol::frame::{Epoch, Kind};
use rusqlite::{OptionalExtension, params};

use super::engine::Engine;
use super::seal::Picked;
use super::{StoreError, piece};
use crate::align::order::Order;

/// What of the picked epochs was sealed: by wearable, epoch and class.
pub(super) type Orders = BTreeMap<(i64, u64, i64), Order>;

impl Engine {
    /// Bends the fits of picked rows by what was sealed before them; gives what is sealed with them.
    pub(super) fn put_in_order(&self, picked: &mut [Picked]) -> Result<Orders, StoreError> {
        let mut orders = Orders::new();
        for row in picked {
            let Ok(frames) = piece::frames(&row.frames) else { continue };
            for (frame, (_, fit)) in frames.iter().zip(&mut row.fits) {
                let header = frame.header();
                let Some(class) = class(header.kind) else { continue };
                let key = (row.device, row.epoch.0, class);
                let order = match orders.entry(key) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => place.insert(self.order(key)?),
                };
                let (first, last) = (header.ticks.0, piece::last_ticks(frame));
                *fit = order.bend(*fit, first, last);
                order.sealed(fit, first, last);
            }
        }
        Ok(orders)
    }

    /// Keeps it, in the transaction that seals.
    pub(super) fn keep_orders(&self, orders: &Orders) -> Result<(), StoreError> {
        for ((device, epoch, class), order) in orders {
            self.db
                .prepare_cached(
                    "INSERT INTO sealed_lines (device, epoch, class, lines) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO UPDATE SET lines = ?4",
                )?
                .execute(params![device, piece::epoch_to_sql(Epoch(*epoch)), class, order.to_bytes()])?;
        }
        Ok(())
    }

    fn order(&self, (device, epoch, class): (i64, u64, i64)) -> Result<Order, StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT lines FROM sealed_lines WHERE device = ?1 AND epoch = ?2 AND class = ?3",
        )?;
        let epoch = piece::epoch_to_sql(Epoch(epoch));
        let lines: Option<Vec<u8>> = select
            .query_row(params![device, epoch, class], |row| Ok(row.get_ref(0)?.as_blob().map(<[u8]>::to_vec)))
            .optional()?
            .map(Result::unwrap_or_default);
        let Some(lines) = lines else { return Ok(Order::default()) };
        Ok(Order::from_bytes(&lines).unwrap_or_else(|| {
            tracing::warn!(device, "what was sealed of an epoch cannot be read; its order begins anew");
            Order::default()
        }))
    }
}

/// Frames of one class follow each other in their ticks; others have no samples.
fn class(kind: Kind) -> Option<i64> {
    match kind {
        Kind::Scalar => Some(0),
        Kind::Waveform => Some(1),
        _ => None,
    }
}
