//! What is kept here of recordings of people, beside what was published.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use kinara_clinic::clinic::root;
use kinara_clinic::recordings::find;

fn kept(name: &str) -> String {
    std::fs::read_to_string(root().join("tests/recordings").join(name)).unwrap()
}

#[test]
fn intervals_and_accelerations_are_kept_as_they_were_published() {
    for (published, here) in [("biosppy_rri.txt", "biosppy/rri.txt"), ("biosppy_acc.txt", "biosppy/acc.txt")]
    {
        let Some(path) = find(published) else { continue };
        assert_eq!(std::fs::read_to_string(path).unwrap(), kept(here), "{here}");
    }
}

#[test]
fn the_pulse_that_is_kept_is_the_published_one_without_its_times() {
    let Some(path) = find("heartpy_ppg.csv") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let published: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split(',').nth(1)).collect();
    let kept = kept("heartpy/ppg.txt");
    let kept: Vec<&str> = kept.lines().filter(|line| !line.starts_with('#')).map(str::trim).collect();
    assert!(!published.is_empty() && published == kept, "{} and {} counts", published.len(), kept.len());
}
