//! The status page: one HTML document, made here, without a script.

use std::fmt::Write;

use crate::hardware::HardwareId;
use crate::status::{Admission, Device, Link, Snapshot};

/// The page's style sheet.
pub(super) const STYLE: &str = include_str!("style.css");

/// The page of a snapshot. `now_us` is UTC.
pub(super) fn render(now: &Snapshot, now_us: i64) -> String {
    let mut page = String::with_capacity(8 << 10);
    let name = escaped(if now.gateway_name.is_empty() { "Gateway" } else { &now.gateway_name });
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"5\"><link rel=\"stylesheet\" href=\"/style.css\">\
         <title>{name} · Kinara gateway</title></head><body><header><h1>{name}</h1>\
         <p>Kinara gateway {version} · {id} · up {up}</p></header><main>",
        version = escaped(&now.version),
        id = escaped(&now.gateway_id),
        up = span((now_us - now.started_us) / 1_000_000),
    );
    alerts(&mut page, now);
    tiles(&mut page, now, now_us);
    devices(&mut page, now, now_us);
    page.push_str(
        "</main><footer><p><a href=\"/healthz\">healthz</a> · <a href=\"/metrics\">metrics</a></p></footer>",
    );
    page.push_str("</body></html>");
    page
}

fn alerts(page: &mut String, now: &Snapshot) {
    if now.alerts.is_empty() {
        return;
    }
    page.push_str(
        "<section aria-labelledby=\"alerts\"><h2 id=\"alerts\">Look at this</h2><ul class=\"alerts\">",
    );
    for (subject, text) in &now.alerts {
        let _ = write!(page, "<li><strong>{}</strong> {}</li>", escaped(subject), escaped(text));
    }
    page.push_str("</ul></section>");
}

fn tiles(page: &mut String, now: &Snapshot, now_us: i64) {
    let buffer = &now.buffer;
    page.push_str("<section class=\"tiles\" aria-label=\"Gateway\">");
    let cloud = if now.uplink.connected { "connected" } else { "away" };
    let mut detail = format!("last acknowledgement {}", ago(now.uplink.last_ack_us, now_us));
    if !now.uplink.connected && !now.uplink.trouble.is_empty() {
        detail.clone_from(&now.uplink.trouble);
    }
    tile(page, "Cloud", cloud, now.uplink.connected, &detail);
    let waiting = format!("{} frames, {} batches", buffer.frames, buffer.batches);
    let detail = format!(
        "{} on disk · {} events · oldest {}{}",
        bytes(buffer.bytes),
        buffer.events,
        ago(buffer.oldest_us, now_us),
        if buffer.parked > 0 { format!(" · {} parked", buffer.parked) } else { String::new() },
    );
    tile(page, "Buffered", &waiting, buffer.parked == 0, &detail);
    let (disk, fine) = match buffer.admission {
        Admission::Everything => ("room for everything", true),
        Admission::NoWaveforms => ("nearly full: no waveforms", false),
        Admission::EventsOnly => ("full: events only", false),
    };
    tile(page, "Disk", disk, fine, &format!("{} free", bytes(buffer.disk_free_bytes)));
    let known = now.clock.unknown_since_us.is_none();
    let detail = if known {
        format!("{} · within {} ms", now.clock.source.as_str(), now.clock.uncertainty_us.div_ceil(1000))
    } else {
        "frames wait unstamped".to_owned()
    };
    tile(page, "Clock", if known { "known" } else { "not known yet" }, known, &detail);
    page.push_str("</section>");
}

fn tile(page: &mut String, title: &str, value: &str, fine: bool, detail: &str) {
    let class = if fine { "tile" } else { "tile trouble" };
    let (value, detail) = (escaped(value), escaped(detail));
    let _ = write!(
        page,
        "<div class=\"{class}\"><h2>{title}</h2><p class=\"value\">{value}</p><p>{detail}</p></div>"
    );
}

fn devices(page: &mut String, now: &Snapshot, now_us: i64) {
    page.push_str("<section aria-labelledby=\"devices\"><h2 id=\"devices\">Wearables</h2>");
    if now.devices.is_empty() {
        page.push_str("<p>No wearable is configured or seen yet.</p></section>");
        return;
    }
    page.push_str(
        "<div class=\"scroll\"><table><thead><tr><th scope=\"col\">Wearable</th><th scope=\"col\">Link</th>\
         <th scope=\"col\">Battery</th><th scope=\"col\">Worn</th><th scope=\"col\">Last seen</th>\
         <th scope=\"col\">Still on it</th><th scope=\"col\">Buffered here</th></tr></thead><tbody>",
    );
    for (hardware, device) in &now.devices {
        row(page, hardware, device, now_us);
    }
    page.push_str("</tbody></table></div></section>");
}

fn row(page: &mut String, hardware: &HardwareId, device: &Device, now_us: i64) {
    let name = if device.name.is_empty() { hardware.as_str() } else { &device.name };
    let link = match (device.link, device.rssi_dbm) {
        (Link::Away, _) | (_, None) => device.link.as_str().to_owned(),
        (link, Some(rssi)) => format!("{} ({rssi} dBm)", link.as_str()),
    };
    let battery = device.battery_percent.map_or_else(|| "–".to_owned(), |b| format!("{b} %"));
    let worn = match device.worn {
        Some(true) => "yes",
        Some(false) => "no",
        None => "–",
    };
    let class = if device.link.connected() { "on" } else { "off" };
    let _ = write!(
        page,
        "<tr><th scope=\"row\">{}<span class=\"id\">{} {}</span></th><td class=\"{class}\">{}",
        escaped(name),
        escaped(hardware.as_str()),
        escaped(&device.firmware),
        escaped(&link),
    );
    let problem = device.problem();
    if !problem.is_empty() {
        let _ = write!(page, "<span class=\"problem\">{}</span>", escaped(&problem));
    }
    let _ = write!(
        page,
        "</td><td>{battery}</td><td>{worn}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        ago(device.last_frame_us, now_us),
        device.behind_frames,
        device.buffered_frames,
    );
}

/// Text that cannot become markup.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

fn ago(then_us: i64, now_us: i64) -> String {
    if then_us == 0 { "never".to_owned() } else { format!("{} ago", span((now_us - then_us) / 1_000_000)) }
}

fn span(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s @ 7200..=172_799 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} days", s / 86_400),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..=9_999 => format!("{count} B"),
        10_000..=9_999_999 => format!("{} KiB", count >> 10),
        10_000_000..=9_999_999_999 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}
