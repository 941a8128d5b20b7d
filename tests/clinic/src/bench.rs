//! `./kinara bench NAME`: what the product does on this machine, measured on its real parts.
//!
//! The load is the reference plan from the seeded simulator with its noise, never constants. Progress goes to standard
//! error; the result is one JSON object whose fields the bars name. How the figures come about is told in
//! `docs/measurements.md`.

mod card;
pub mod gateway;
pub mod ingest;
pub mod live;
pub mod load;
pub mod machine;
pub mod peers;
pub mod protocol;
mod publisher;
pub mod query;
pub mod scale;

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// For people's eyes: so many digits after the point as the size deserves.
pub fn rounded(value: f64) -> f64 {
    let digits = if value.abs() >= 1000.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        3
    };
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert!((median(vec![9.0, 1.0, 5.0]) - 5.0).abs() < 1e-9);
        assert!(median(vec![]).is_nan());
        assert!((rounded(12_345.678) - 12_346.0).abs() < 1e-9);
        assert!((rounded(2.345_67) - 2.346).abs() < 1e-9);
    }
}
