//! How fast the card that holds the data is written to, and how long it lasts at that.
//!
//! The promise: what is told was counted, over the time that is told with it. Where the kernel counts the sectors that are
//! written to the device below the file system, that is what counts, whoever wrote them: all of it wears the card. Where it
//! does not (an overlay, a file system without a device), the daemon's own writes are counted, and that is said. Until it
//! was watched for long enough nothing is known.

use std::collections::VecDeque;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::status::Board;

/// How often it is counted.
const COUNT_EVERY: Duration = Duration::from_mins(5);
/// What is counted lies no further back, microseconds (a week), so that a box that was moved tells of where it is now.
const WATCHED_MOST_US: i64 = 7 * DAY_US;
/// Counts that are kept: one each so often, microseconds.
const KEPT_EVERY_US: i64 = HOUR_US;
/// Over less than this nothing is said, microseconds (an hour): the minutes after a start are no measure.
const WATCHED_LEAST_US: i64 = HOUR_US;
const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;
const DAYS_IN_A_YEAR: f64 = 365.25;
/// Bytes in a sector, as the kernel counts them.
const SECTOR: u64 = 512;

/// Who counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Counter {
    /// Nobody can.
    #[default]
    Nobody,
    /// The kernel, of the block device below the file system; the whole card where that is a partition.
    Device,
    /// The kernel, of this daemon alone.
    Daemon,
}

impl Counter {
    /// A word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Device => "device",
            Self::Daemon => "daemon",
        }
    }
}

/// What is known of the card.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Card {
    /// What it bears, bytes written: the configuration says so.
    pub endurance_bytes: u64,
    /// By whom it was counted.
    pub counter: Counter,
    /// For how long it was watched, seconds.
    pub watched_s: u64,
    /// Bytes written a day at that pace; none before it was watched for long enough.
    pub bytes_per_day: Option<u64>,
}

impl Card {
    /// How many years a new card lasts at this pace; none before that is known. Of a card that nobody writes to: for ever, which
    /// is a number that no card reaches.
    pub fn years(&self) -> Option<f64> {
        let per_day = self.bytes_per_day?.max(1);
        Some(self.endurance_bytes as f64 / per_day as f64 / DAYS_IN_A_YEAR)
    }
}

/// Counts until `stop`.
pub async fn run(data_dir: PathBuf, endurance_bytes: u64, board: Board, stop: CancellationToken) {
    let source = Source::of(&data_dir);
    let mut watch = Watch::new(endurance_bytes, source.counter());
    let began = Instant::now();
    loop {
        let since_us = i64::try_from(began.elapsed().as_micros()).unwrap_or(i64::MAX);
        let card = watch.take(since_us, source.written());
        board.update(|snapshot| {
            snapshot.card = card;
            // It goes along with whatever else is told.
            false
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(COUNT_EVERY) => {}
        }
    }
}

/// Where bytes written are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// The kernel's statistics of a block device.
    Device(PathBuf),
    /// This process's.
    Process(PathBuf),
}

impl Source {
    /// That of the device below a folder: the whole card, where the file system is on a part of one.
    fn of(folder: &Path) -> Self {
        Self::in_sysfs(Path::new("/sys/dev/block"), folder)
            .unwrap_or_else(|| Self::Process(PathBuf::from("/proc/self/io")))
    }

    fn in_sysfs(devices: &Path, folder: &Path) -> Option<Self> {
        let number = std::fs::metadata(folder).ok()?.st_dev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        Self::of_device(&devices.join(format!("{major}:{minor}")))
    }

    fn of_device(link: &Path) -> Option<Self> {
        let device = std::fs::canonicalize(link).ok()?;
        let whole = match device.parent() {
            Some(whole) if device.join("partition").exists() => whole.to_owned(),
            _ => device,
        };
        let stat = whole.join("stat");
        sectors_written(&std::fs::read_to_string(&stat).ok()?)?;
        Some(Self::Device(stat))
    }

    fn counter(&self) -> Counter {
        match self {
            Self::Device(_) => Counter::Device,
            Self::Process(_) if self.written().is_some() => Counter::Daemon,
            Self::Process(_) => Counter::Nobody,
        }
    }

    /// Bytes written so far.
    fn written(&self) -> Option<u64> {
        match self {
            Self::Device(stat) => sectors_written(&std::fs::read_to_string(stat).ok()?)?.checked_mul(SECTOR),
            Self::Process(io) => write_bytes(&std::fs::read_to_string(io).ok()?),
        }
    }
}

/// The seventh number of a block device's `stat` (`Documentation/block/stat.rst`).
fn sectors_written(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(6)?.parse().ok()
}

/// What a process had the kernel send to its disks, less what was taken back before it was sent.
fn write_bytes(io: &str) -> Option<u64> {
    let number = |name: &str| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Some(number("write_bytes: ")?.saturating_sub(number("cancelled_write_bytes: ").unwrap_or(0)))
}

/// Counts of the last week.
#[derive(Debug)]
struct Watch {
    endurance_bytes: u64,
    counter: Counter,
    /// When, and how much; the oldest is what is compared with.
    counts: VecDeque<(i64, u64)>,
}

impl Watch {
    fn new(endurance_bytes: u64, counter: Counter) -> Self {
        Self { endurance_bytes, counter, counts: VecDeque::new() }
    }

    fn take(&mut self, now_us: i64, written: Option<u64>) -> Card {
        let nothing =
            Card { endurance_bytes: self.endurance_bytes, counter: self.counter, ..Card::default() };
        let Some(written) = written else { return nothing };
        // A card that was changed, or a counter that went round: from here on anew.
        if self.counts.back().is_some_and(|(at, before)| *at > now_us || *before > written) {
            self.counts.clear();
        }
        while self.counts.len() > 1 && self.counts[1].0 <= now_us - WATCHED_MOST_US {
            self.counts.pop_front();
        }
        let (since_us, before) = self.counts.front().copied().unwrap_or((now_us, written));
        if self.counts.back().is_none_or(|(at, _)| now_us - at >= KEPT_EVERY_US) {
            self.counts.push_back((now_us, written));
        }
        let watched_us = now_us - since_us;
        let per_day = (written - before) as f64 * DAY_US as f64 / watched_us.max(1) as f64;
        Card {
            watched_s: (watched_us / 1_000_000).unsigned_abs(),
            bytes_per_day: (watched_us >= WATCHED_LEAST_US).then_some(per_day.round() as u64),
            ..nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    #[test]
    fn the_years_of_a_card_are_its_endurance_over_what_is_written_and_unknown_at_first() {
        let mut watch = Watch::new(10_000 * GB, Counter::Device);
        for minute in 0..60 {
            let card = watch.take(minute * 60_000_000, Some(77 * GB + minute as u64 * GB / 1_440));
            assert_eq!((card.bytes_per_day, card.years()), (None, None), "after {minute} minutes");
            assert_eq!(card.watched_s, minute as u64 * 60);
        }
        // A gigabyte a day.
        let card = watch.take(HOUR_US, Some(77 * GB + GB / 24));
        assert!(card.bytes_per_day.is_some_and(|bytes| bytes.abs_diff(GB) < 1_000), "{card:?}");
        assert!(card.years().is_some_and(|years| (years - 27.38).abs() < 0.01), "{card:?}");
    }

    #[test]
    fn what_was_written_more_than_a_week_ago_counts_no_more_and_little_is_remembered() {
        let mut watch = Watch::new(GB, Counter::Device);
        let mut written = 0;
        let mut card = Card::default();
        for minute in 0..(30 * 1_440) {
            // A gigabyte a minute while it was set up, then a byte.
            written += if minute < 1_440 { GB } else { 1 };
            card = watch.take(minute * 60_000_000, Some(written));
            assert!(watch.counts.len() <= 7 * 24 + 2);
        }
        assert_eq!(card.bytes_per_day, Some(1_440));
        assert!((7 * 86_400..=7 * 86_400 + 3_600).contains(&card.watched_s), "{}", card.watched_s);
    }

    #[test]
    fn a_card_that_was_changed_is_watched_anew_and_one_that_nobody_counts_is_unknown() {
        let mut watch = Watch::new(GB, Counter::Device);
        watch.take(0, Some(500));
        assert!(watch.take(2 * HOUR_US, Some(700)).bytes_per_day.is_some());
        assert_eq!(watch.take(3 * HOUR_US, Some(10)).bytes_per_day, None);
        assert!(watch.take(5 * HOUR_US, Some(10)).years().is_some_and(|years| years > 1e6), "nobody writes");
        let mut blind = Watch::new(GB, Counter::Nobody);
        blind.take(0, None);
        assert_eq!(blind.take(9 * HOUR_US, None).years(), None);
    }

    #[test]
    fn the_sectors_of_the_whole_card_count_where_the_data_is_on_a_part_of_it() {
        let sys = tempfile::tempdir().unwrap();
        let card = sys.path().join("mmcblk0");
        let part = card.join("mmcblk0p2");
        std::fs::create_dir_all(&part).unwrap();
        std::fs::write(part.join("partition"), "2").unwrap();
        std::fs::write(part.join("stat"), "1 1 1 1 1 1 11 1 1 1 1").unwrap();
        std::fs::write(card.join("stat"), "    9    9    9    9    9    9   4711    9 0 1 1 0").unwrap();
        let source = Source::of_device(&part).unwrap();
        assert_eq!((source.counter(), source.written()), (Counter::Device, Some(4_711 * 512)));
        assert_eq!(Source::of_device(&card).unwrap(), source);
        assert_eq!(Source::of_device(&sys.path().join("0:41")), None, "a file system without a device");
        let io = "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 96\n";
        assert_eq!(write_bytes(io), Some(4_000));
        assert_eq!(Source::Process(sys.path().join("io")).counter(), Counter::Nobody);
    }
}
