//! Answers for people, and for programs.

use serde::Serialize;

use crate::align::source::shown;
use crate::local::bus::wire;
use crate::roster;

/// Prints an answer: as JSON, or as `text` has it.
pub fn result<T: Serialize>(json: bool, answer: &T, text: impl FnOnce(&T) -> String) {
    if json {
        match serde_json::to_string(answer) {
            Ok(line) => println!("{line}"),
            Err(error) => eprintln!("kinaractl: cannot print this as JSON: {error}"),
        }
    } else {
        println!("{}", text(answer).trim_end());
    }
}

/// `kinaractl clock`
pub fn clock(clock: &wire::Clock) -> String {
    let known = if clock.known {
        let confirmed = if clock.confirmed { "confirmed" } else { "not confirmed yet" };
        format!("by {}, ± {:.1} ms, {confirmed}", clock.source, clock.uncertainty_us as f64 / 1e3)
    } else {
        "not known; readings wait for it".to_owned()
    };
    let mut lines = vec![
        format!("time     {known}"),
        format!("machine  {}", shown(clock.machine_us)),
        format!("floor    {}; nothing before it is believed", shown(clock.floor_us)),
        format!(
            "former   {}; certificates count from here while the time is not known",
            shown(clock.former_floor_us)
        ),
        format!("ceiling  {}; one source alone is not believed after it", shown(clock.ceiling_us)),
    ];
    lines.extend(clock.words.iter().map(|word| {
        format!(
            "source   {} says {} ± {:.1} ms{}",
            word.source,
            shown(word.utc_us),
            word.uncertainty_us as f64 / 1e3,
            if word.believed { "" } else { "; not believed" }
        )
    }));
    if !clock.trouble.is_empty() {
        lines.push(format!("! {}", clock.trouble));
    }
    lines.join("\n")
}

/// `kinaractl status`
pub fn status(status: &wire::Status) -> String {
    let cloud = if status.cloud_connected {
        "reached".to_owned()
    } else {
        format!("not reached: {}", or(&status.cloud_trouble, "not tried yet"))
    };
    let clock = if status.clock_source == "unknown" {
        "not known; readings wait for it".to_owned()
    } else {
        format!("by {}, ± {:.1} ms", status.clock_source, status.clock_uncertainty_us as f64 / 1e3)
    };
    let mut lines = vec![
        format!("{} ({}), version {}", status.gateway_name, status.gateway_id, status.version),
        format!("clinic   {}", or(&status.clinic_name, "not known yet")),
        format!("devices  {} of {} connected", status.connected, status.devices),
        format!(
            "kept     {} frames, {} batches, {} events; {:.1} MiB, {:.1} GiB free{}",
            status.frames,
            status.batches,
            status.events,
            mib(status.bytes),
            mib(status.disk_free_bytes) / 1024.0,
            match status.admission.as_str() {
                "no_waveforms" => "; no waveforms are taken",
                "events_only" => "; only events are taken",
                _ => "",
            }
        ),
        format!("card     {}", card(&status.card)),
        format!("cloud    {cloud}"),
        format!("clock    {clock}"),
        format!("window   {}", status.window),
    ];
    lines.extend(status.adapters.iter().map(|adapter| {
        let state = if adapter.powered {
            format!("{} of {} links", adapter.links, adapter.slots)
        } else {
            "off".to_owned()
        };
        format!("radio    {} {}, {state}", adapter.name, adapter.address)
    }));
    lines.extend(status.alerts.iter().map(|alert| format!("! {}: {}", alert.subject, alert.text)));
    lines.join("\n")
}

/// How long a card lasts. What is not known yet is said to be so.
fn card(card: &wire::Card) -> String {
    let (Some(bytes), Some(years)) = (card.bytes_per_day, card.years) else {
        return if card.counted_by == "nobody" {
            "not known: nobody counts what is written here".to_owned()
        } else {
            format!("not known yet: watched for {} min, it takes an hour", card.watched_s / 60)
        };
    };
    let years = if years < 100.0 { format!("{years:.1} years") } else { "more than 100 years".to_owned() };
    let whose = if card.counted_by == "daemon" { " by this daemon alone" } else { "" };
    format!(
        "{:.2} GB a day written{whose}, over {:.1} h; a new one that bears {} GB lasts {years}",
        bytes as f64 / 1e9,
        card.watched_s as f64 / 3_600.0,
        card.endurance_gb
    )
}

/// `kinaractl parked`
pub fn parked(parked: &[wire::Parked]) -> String {
    if parked.is_empty() {
        return "The cloud could read everything.".to_owned();
    }
    let line = |batch: &wire::Parked| {
        format!(
            "{} {:016x}/{}: {} frames, {:.1} KiB: {}",
            batch.kind,
            batch.buffer,
            batch.sequence,
            batch.frames,
            batch.bytes as f64 / 1024.0,
            batch.reason
        )
    };
    parked.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `kinaractl devices`
pub fn devices(devices: &[wire::Device]) -> String {
    if devices.is_empty() {
        return "No devices. Pair one: kinaractl scan, then kinaractl pair NAME".to_owned();
    }
    let rows = devices.iter().map(|device| {
        vec![
            device.hardware.clone(),
            or(&device.name, "-").to_owned(),
            if device.stale { "stale: forget and pair again".to_owned() } else { device.link.clone() },
            device.wearer_name.clone().unwrap_or_else(|| "-".to_owned()),
            maybe(device.battery_percent, " %"),
            maybe(device.rssi_dbm, " dBm"),
            device.behind_frames.to_string(),
            device.trouble.clone(),
        ]
    });
    table(&["DEVICE", "NAME", "LINK", "WEARER", "BATTERY", "SIGNAL", "BEHIND", ""], rows)
}

/// `kinaractl scan`
pub fn nearby(nearby: &[wire::Nearby]) -> String {
    if nearby.is_empty() {
        return "Nothing near can be paired. Press the wearable's button and scan again.".to_owned();
    }
    let rows = nearby.iter().map(|near| {
        vec![
            near.key.clone(),
            or(&near.name, "-").to_owned(),
            format!("{} dBm", near.rssi_dbm),
            match near.offer.as_str() {
                "label" => "by the code on its label".to_owned(),
                "display" => "by the number it shows".to_owned(),
                "introduction" => "by itself (introduced)".to_owned(),
                _ => format!("{} sensor: --just-works", near.sensor.as_deref().unwrap_or("other")),
            },
        ]
    });
    table(&["KEY", "NAME", "SIGNAL", "PAIRS"], rows)
}

/// `kinaractl wearers`
pub fn wearers(wearers: &[wire::Wearer], texts: &[wire::ConsentText]) -> String {
    let rows = wearers.iter().map(|wearer| {
        vec![
            wearer.user.clone(),
            roster::called(&wearer.display_name, &wearer.external_id),
            if wearer.hardware.is_empty() { "-".to_owned() } else { wearer.hardware.join(" ") },
            wearer.consent_version.clone().unwrap_or_else(|| "none".to_owned()),
            if wearer.provisional { "not confirmed yet" } else { "" }.to_owned(),
        ]
    });
    let mut parts = vec![table(&["WEARER", "NAME", "DEVICE", "CONSENT", ""], rows)];
    parts.extend(
        texts
            .iter()
            .map(|text| format!("Consent text {}, {}:\n{}\n", text.version, text.language, text.text)),
    );
    parts.join("\n")
}

/// `kinaractl window`
pub fn window(window: &wire::Window) -> String {
    match window.state.as_str() {
        "open" => {
            let wrong = if window.wrong_codes == 0 {
                String::new()
            } else {
                format!(", {} of 3 wrong codes", window.wrong_codes)
            };
            format!("open for another {} s{wrong}", window.seconds_left.unwrap_or_default())
        }
        "pairing" if window.wants_passkey => {
            "pairing; the device shows a number that has to be typed".to_owned()
        }
        "paired" => format!("paired {}", window.hardware.as_deref().unwrap_or_default()),
        state => match &window.why {
            Some(why) => format!("{state}: {} {}", why.text, why.advice),
            None => state.to_owned(),
        },
    }
}

/// `kinaractl doctor`
pub fn findings(findings: &[wire::Finding]) -> String {
    let mut lines = Vec::new();
    for found in findings {
        let mark = match found.state.as_str() {
            "ok" => "ok  ",
            "warn" => "WARN",
            "fail" => "FAIL",
            _ => "-   ",
        };
        lines.push(format!("{mark} {:<12} {}", found.check, found.text));
        if !found.advice.is_empty() {
            lines.push(format!("                  → {}", found.advice));
        }
    }
    lines.join("\n")
}

/// Columns as wide as they need to be.
pub fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines = vec![head.iter().map(ToString::to_string).collect::<Vec<_>>()];
    lines.extend(rows);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

fn maybe<T: ToString>(value: Option<T>, unit: &str) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string() + unit)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roster::tests::namesakes;

    #[test]
    fn two_wearers_of_one_name_are_told_apart_in_the_list_of_wearers() {
        let shown = wearers(&namesakes().each_ref().map(wire::Wearer::from), &[]);
        assert!(shown.contains("Anjali Verma (V1)") && shown.contains("Anjali Verma (V2)"), "{shown}");
    }

    #[test]
    fn the_years_of_a_card_are_told_once_they_are_known_and_with_what_they_rest_on() {
        let mut known = wire::Card {
            endurance_gb: 10_000,
            counted_by: "device".to_owned(),
            watched_s: 9_000,
            bytes_per_day: Some(1_250_000_000),
            years: Some(21.9),
        };
        assert_eq!(
            card(&known),
            "1.25 GB a day written, over 2.5 h; a new one that bears 10000 GB lasts 21.9 years"
        );
        known.counted_by = "daemon".to_owned();
        assert!(card(&known).contains("by this daemon alone"));
        (known.bytes_per_day, known.years, known.watched_s) = (None, None, 600);
        assert_eq!(card(&known), "not known yet: watched for 10 min, it takes an hour");
        known.counted_by = "nobody".to_owned();
        assert!(card(&known).starts_with("not known: nobody counts"));
    }

    #[test]
    fn a_table_lines_up_and_a_finding_says_what_to_do() {
        let near = wire::Nearby {
            key: "1".to_owned(),
            name: "K-3F2A".to_owned(),
            rssi_dbm: -48,
            offer: "label".to_owned(),
            sensor: None,
            seen_ms_ago: 10,
            adapter: "hci0".to_owned(),
        };
        let shown = nearby(&[near]);
        assert_eq!(shown, "KEY  NAME    SIGNAL   PAIRS\n1    K-3F2A  -48 dBm  by the code on its label\n");
        let found = wire::Finding {
            check: "clock".to_owned(),
            state: "fail".to_owned(),
            text: "not in step".to_owned(),
            advice: "connect the box".to_owned(),
        };
        assert!(findings(&[found]).starts_with("FAIL clock        not in step\n"));
    }
}
