//! What a form sends: a few short texts, and at most one file.
//!
//! Bodies are bounded before they get here; this reads them whole, allocates by what is there and not by what
//! is claimed, and never panics.

/// Fields of a form.
const MOST_FIELDS: usize = 20;
/// Bytes of a field's name.
const LONGEST_NAME: usize = 64;

/// The fields in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, Vec<u8>)>);

impl Fields {
    /// Reads a body by its content type; `None` when it is no form.
    pub fn read(content_type: &str, body: &[u8]) -> Option<Self> {
        let mut parts = content_type.split(';').map(str::trim);
        match parts.next()?.to_ascii_lowercase().as_str() {
            "application/x-www-form-urlencoded" => Self::urlencoded(body),
            "multipart/form-data" => {
                let boundary = parts.find_map(|part| parameter(part, "boundary"))?;
                Self::multipart(body, boundary)
            }
            _ => None,
        }
    }

    /// Reads the query of an address.
    pub fn query(query: &str) -> Self {
        Self::urlencoded(query.as_bytes()).unwrap_or_default()
    }

    /// A text; empty when it is missing or no UTF-8.
    pub fn text(&self, name: &str) -> &str {
        self.bytes(name).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default().trim()
    }

    /// A file's content.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, bytes)| bytes.as_slice())
    }

    fn urlencoded(body: &[u8]) -> Option<Self> {
        let mut fields = Vec::new();
        for pair in body.split(|b| *b == b'&').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.iter().position(|b| *b == b'=') {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, &[][..]),
            };
            fields.push((String::from_utf8(decoded(name)).ok()?, decoded(value)));
        }
        Self::bounded(fields)
    }

    /// RFC 7578, of it what browsers send.
    fn multipart(body: &[u8], boundary: &str) -> Option<Self> {
        if boundary.is_empty() || boundary.len() > 70 {
            return None;
        }
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        let mut rest = body.strip_prefix(&delimiter[2..])?;
        let mut fields = Vec::new();
        loop {
            if rest.starts_with(b"--") {
                return Self::bounded(fields);
            }
            if fields.len() > MOST_FIELDS {
                return None;
            }
            let part = rest.strip_prefix(b"\r\n")?;
            let head_ends = find(part, b"\r\n\r\n")?;
            let head = std::str::from_utf8(&part[..head_ends]).ok()?;
            // From the blank line's own line break on: an empty value has the delimiter right behind it.
            let content = &part[head_ends + 2..];
            let ends = find(content, &delimiter)?;
            fields.push((name_of(head)?, content.get(2..ends).unwrap_or_default().to_vec()));
            rest = &content[ends + delimiter.len()..];
        }
    }

    fn bounded(fields: Vec<(String, Vec<u8>)>) -> Option<Self> {
        let good = fields.len() <= MOST_FIELDS && fields.iter().all(|(name, _)| name.len() <= LONGEST_NAME);
        good.then_some(Self(fields))
    }
}

fn name_of(head: &str) -> Option<String> {
    let disposition = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    disposition.split(';').find_map(|part| parameter(part.trim(), "name")).map(str::to_owned)
}

fn parameter<'a>(part: &'a str, wanted: &str) -> Option<&'a str> {
    let (name, value) = part.split_once('=')?;
    name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().trim_matches('"'))
}

/// A text as a value in an address.
pub(super) fn escaped(text: &str) -> String {
    text.bytes().flat_map(|byte| ['%', hex_digit(byte >> 4), hex_digit(byte & 15)]).collect()
}

fn hex_digit(value: u8) -> char {
    char::from_digit(u32::from(value), 16).unwrap_or('0')
}

fn decoded(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => match tail {
                [high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    bytes.push(digit(*high) << 4 | digit(*low));
                    rest = after;
                }
                _ => bytes.push(b'%'),
            },
            other => bytes.push(*other),
        }
    }
    bytes
}

fn digit(hex: u8) -> u8 {
    (hex as char).to_digit(16).map_or(0, |digit| digit as u8)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = haystack.get(from..)?.iter().position(|b| *b == first) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn upload(boundary: &str, fields: &[(&str, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, value) in fields {
            body.extend_from_slice(
                format!(
                    "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"x;y\"\r\n\
                         Content-Type: image/png\r\n\r\n"
                )
                .as_bytes(),
            );
            body.extend_from_slice(value);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        body
    }

    #[test]
    fn a_form_gives_its_texts_in_any_script() {
        let fields = Fields::read(
            "application/x-www-form-urlencoded; charset=utf-8",
            "name=%E0%A4%B0%E0%A4%B5%E0%A4%BF+K&pin=274913&empty=&lone&odd=100%&pin=2".as_bytes(),
        )
        .unwrap();
        assert_eq!(fields.text("name"), "रवि K");
        assert_eq!((fields.text("pin"), fields.text("odd")), ("274913", "100%"));
        assert_eq!((fields.text("empty"), fields.text("lone"), fields.text("missing")), ("", "", ""));
    }

    #[test]
    fn an_upload_gives_its_file_to_the_byte_even_when_it_looks_like_a_boundary() {
        let file = b"\r\n--\r\n--B\r\n\x00\xff--BB";
        let body = upload("BBB", &[("proof", b"ab"), ("photo", file), ("none", b"")]);
        let fields = Fields::read("multipart/form-data; boundary=\"BBB\"", &body).unwrap();
        assert_eq!(fields.bytes("photo").unwrap(), file);
        assert_eq!((fields.text("proof"), fields.bytes("none")), ("ab", Some(&[][..])));
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let whole = upload("B", &[("a", b"1")]);
        for length in 0..whole.len() - 4 {
            assert_eq!(Fields::read("multipart/form-data; boundary=B", &whole[..length]), None, "{length}");
        }
        assert_eq!(Fields::read("multipart/form-data", &whole), None);
        assert_eq!(Fields::read("application/json", b"{}"), None);
        let many = "a=1&".repeat(MOST_FIELDS + 1);
        assert_eq!(Fields::read("application/x-www-form-urlencoded", many.as_bytes()), None);
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(
            multipart: bool,
            body in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let kinds = ["application/x-www-form-urlencoded", "multipart/form-data; boundary=b"];
            let kind = kinds[usize::from(multipart)];
            let _ = Fields::read(kind, &body);
        }

        #[test]
        fn a_damaged_upload_is_read_or_refused(
            place in any::<prop::sample::Index>(), value: u8, length in any::<prop::sample::Index>(),
        ) {
            let mut body = upload("b", &[("one", b"1"), ("photo", b"\r\n--bx")]);
            let place = place.index(body.len());
            body[place] = value;
            let length = length.index(body.len());
            let _ = Fields::read("multipart/form-data; boundary=b", &body[..length]);
        }

        #[test]
        fn a_file_comes_back_as_it_was(file in prop::collection::vec(any::<u8>(), 0..300)) {
            let body = upload("0123456789abcdef", &[("photo", &file)]);
            let fields = Fields::read("multipart/form-data; boundary=0123456789abcdef", &body).unwrap();
            prop_assert_eq!(fields.bytes("photo").unwrap(), &file[..]);
        }

        #[test]
        fn a_text_comes_back_as_it_was(text in "\\PC{0,60}") {
            let fields = Fields::query(&format!("t={}", escaped(&text)));
            prop_assert_eq!(fields.text("t"), text.trim());
        }
    }
}
