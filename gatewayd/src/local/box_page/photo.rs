//! The label's code out of a photo of it.
//!
//! The promise: a picture can be anything (a photo of 12 megapixels, a file that claims to be one of 60,000
//! by 60,000, half a file), and the worst that it does is to be refused. What is decoded is bounded before it
//! is decoded, one picture at a time; nothing of it is kept.

use std::io::Cursor;

use image::{GrayImage, ImageFormat, ImageReader, Limits, imageops};
use kinara_protocol::label::LabelSecret;

/// Bytes of a picture, as uploaded.
pub(super) const MOST_BYTES: usize = 12 << 20;
/// Pixels along one side.
const LONGEST_SIDE: u32 = 10_000;
/// Pixels altogether.
const MOST_PIXELS: u64 = 32_000_000;
/// Memory for decoding: three bytes for each pixel, and what the decoder itself takes.
const MOST_MEMORY: u64 = 128 << 20;
/// A label fills a good part of the photo: more pixels than this along a side only take time. The second size
/// is for codes that are blurred.
const LOOKED_AT: [u32; 2] = [1_600, 800];
/// Characters of a code that is worth reading: a label's, with a word before it.
const LONGEST_TEXT: usize = 200;

/// Why a photo gives no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PhotoError {
    /// Neither JPEG nor PNG, or damaged.
    NotAPicture,
    /// Too many pixels.
    TooLarge,
    /// No QR code is to be seen.
    NoCode,
    /// There is one, and it is no label's.
    OtherCode,
}

/// Reads the code of the label in a picture. Takes up to a second or two: not for an async task.
pub(super) fn read_label(bytes: &[u8]) -> Result<LabelSecret, PhotoError> {
    let picture = decode(bytes)?;
    let mut other = false;
    for side in LOOKED_AT {
        let (width, height) = shrunk(picture.dimensions(), side);
        let small = imageops::thumbnail(&picture, width, height);
        let mut prepared =
            rqrr::PreparedImage::prepare_from_greyscale(width as usize, height as usize, |x, y| {
                small.get_pixel(x as u32, y as u32).0[0]
            });
        for grid in prepared.detect_grids() {
            let Ok((_, text)) = grid.decode() else { continue };
            match label_of(&text) {
                Some(secret) => return Ok(secret),
                None => other = true,
            }
        }
    }
    Err(if other { PhotoError::OtherCode } else { PhotoError::NoCode })
}

/// Reads a code as it is typed, or as it is in a QR code (alone, or behind a word and a colon): spaces,
/// hyphens and case do not matter, and 0, 1 and 8, which do not occur, are read as what they look like.
pub(super) fn label_of(text: &str) -> Option<LabelSecret> {
    if text.len() > LONGEST_TEXT {
        return None;
    }
    let code = text.trim().rsplit(':').next().unwrap_or_default();
    let code: String = code
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| match c {
            '0' => 'O',
            '1' => 'I',
            '8' => 'B',
            '–' | '—' => '-',
            c => c,
        })
        .collect();
    code.parse().ok()
}

fn decode(bytes: &[u8]) -> Result<GrayImage, PhotoError> {
    let reader = || {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
        matches!(reader.format(), Some(ImageFormat::Jpeg | ImageFormat::Png)).then_some(reader)
    };
    let (width, height) =
        reader().and_then(|reader| reader.into_dimensions().ok()).ok_or(PhotoError::NotAPicture)?;
    let pixels = u64::from(width) * u64::from(height);
    if width > LONGEST_SIDE || height > LONGEST_SIDE || pixels > MOST_PIXELS {
        return Err(PhotoError::TooLarge);
    }
    let mut reader = reader().ok_or(PhotoError::NotAPicture)?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(LONGEST_SIDE);
    limits.max_image_height = Some(LONGEST_SIDE);
    limits.max_alloc = Some(MOST_MEMORY);
    reader.limits(limits);
    match reader.decode() {
        Ok(picture) => Ok(picture.into_luma8()),
        Err(image::ImageError::Limits(_)) => Err(PhotoError::TooLarge),
        Err(_) => Err(PhotoError::NotAPicture),
    }
}

/// The size with the longer side at most `side`, never larger than it is, never nothing.
fn shrunk((width, height): (u32, u32), side: u32) -> (u32, u32) {
    let longer = width.max(height).max(1);
    if longer <= side {
        return (width.max(1), height.max(1));
    }
    let scale = |length: u32| ((u64::from(length) * u64::from(side) / u64::from(longer)) as u32).max(1);
    (scale(width), scale(height))
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, Luma};
    use proptest::prelude::*;

    use super::*;

    const CODE: &str = "ABCDEFGHIJKLMNOP";

    fn qr(text: &str, pixels: u32) -> GrayImage {
        let code = qrcode::QrCode::new(text).unwrap();
        let width = code.width() as u32;
        GrayImage::from_fn((width + 8) * pixels, (width + 8) * pixels, |x, y| {
            let (x, y) = ((x / pixels).wrapping_sub(4), (y / pixels).wrapping_sub(4));
            let dark = x < width && y < width && code[(x as usize, y as usize)] == qrcode::Color::Dark;
            Luma([if dark { 30 } else { 220 }])
        })
    }

    fn file(picture: GrayImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(picture).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn on_a_table(code: &GrayImage, (width, height): (u32, u32)) -> GrayImage {
        let mut table =
            GrayImage::from_fn(width, height, |x, y| Luma([120 + ((x / 40 + y / 40) % 2 * 30) as u8]));
        imageops::overlay(&mut table, code, i64::from(width / 3), i64::from(height / 4));
        table
    }

    #[test]
    fn a_photo_of_the_label_gives_its_code_in_either_format_and_at_any_size() {
        let secret: LabelSecret = CODE.parse().unwrap();
        for (picture, format) in [
            (qr(CODE, 6), ImageFormat::Png),
            (qr(CODE, 6), ImageFormat::Jpeg),
            (on_a_table(&qr(CODE, 30), (4_000, 3_000)), ImageFormat::Jpeg),
            (
                imageops::rotate90(&on_a_table(&qr(&format!("KINARA:{CODE}"), 12), (1_200, 900))),
                ImageFormat::Jpeg,
            ),
        ] {
            assert_eq!(read_label(&file(picture, format)), Ok(secret.clone()));
        }
    }

    #[test]
    fn a_picture_without_a_label_says_so() {
        let empty = file(GrayImage::from_pixel(300, 200, Luma([90])), ImageFormat::Png);
        assert_eq!(read_label(&empty), Err(PhotoError::NoCode));
        let other = file(qr("https://example.org", 5), ImageFormat::Png);
        assert_eq!(read_label(&other), Err(PhotoError::OtherCode));
        let tiny = file(GrayImage::from_pixel(1, 1, Luma([0])), ImageFormat::Png);
        assert_eq!(read_label(&tiny), Err(PhotoError::NoCode));
    }

    #[test]
    fn a_file_that_claims_huge_dimensions_is_refused_before_it_is_decoded() {
        let mut png = file(qr(CODE, 2), ImageFormat::Png);
        // Width and height in IHDR, and its checksum anew.
        png[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
        let crc = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(read_label(&png), Err(PhotoError::TooLarge));
        let mut jpeg = file(qr(CODE, 6), ImageFormat::Jpeg);
        let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
        let begun = std::time::Instant::now();
        assert_eq!(read_label(&jpeg), Err(PhotoError::TooLarge));
        assert!(begun.elapsed() < std::time::Duration::from_secs(2));
    }

    #[test]
    fn a_truncated_picture_is_refused_wherever_it_ends() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let whole = file(qr(CODE, 4), format);
            for length in (0..whole.len() - 64).step_by(97) {
                // Half a JPEG may hold the whole code; what matters is that it ends with an answer.
                let _ = read_label(&whole[..length]);
            }
            assert_eq!(read_label(&whole[..whole.len() / 20]), Err(PhotoError::NotAPicture));
        }
        for nothing in [&b""[..], b"GIF89a\x01\x00\x01\x00", b"<svg/>", &[0xff, 0xd8, 0xff]] {
            assert_eq!(read_label(nothing), Err(PhotoError::NotAPicture));
        }
    }

    #[test]
    fn a_code_may_be_typed_with_spaces_lower_case_and_look_alikes() {
        let secret: LabelSecret = "OIBA2345OIBA2345".parse().unwrap();
        for typed in ["OIBA2345OIBA2345", " 018a 2345-oiba – 2345 ", "kinara:oiba2345oiba2345"] {
            assert_eq!(label_of(typed), Some(secret.clone()), "{typed}");
        }
        for wrong in ["", "OIBA2345OIBA234", "OIBA2345OIBA23456", "OIBA2345OIBA234९", &"A".repeat(1_000)] {
            assert_eq!(label_of(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_damaged_picture_never_does_more_than_to_be_refused(
            jpeg: bool,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        ) {
            let mut bytes = file(qr(CODE, 3), if jpeg { ImageFormat::Jpeg } else { ImageFormat::Png });
            for (place, value) in damage {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            let _ = read_label(&bytes);
        }

        #[test]
        fn anything_typed_is_a_code_or_none(text in ".{0,300}") {
            if let Some(secret) = label_of(&text) {
                prop_assert_eq!(label_of(&secret.to_base32()), Some(secret));
            }
        }
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        })
    }
}
