//! Whose account a caller has.

use std::path::Path;

/// The longest `/etc/passwd` that is looked through, bytes.
const LONGEST: u64 = 1 << 20;

/// The name of a user id, or `uid 1000` where the machine knows none.
pub fn name(uid: u32) -> String {
    name_in(Path::new("/etc/passwd"), uid).unwrap_or_else(|| format!("uid {uid}"))
}

fn name_in(passwd: &Path, uid: u32) -> Option<String> {
    if std::fs::metadata(passwd).ok()?.len() > LONGEST {
        return None;
    }
    let text = std::fs::read_to_string(passwd).ok()?;
    let mut lines = text.lines();
    lines.find_map(|line| {
        let mut fields = line.split(':');
        let (name, _password, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id.parse() == Ok(uid) && !name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_named_and_one_that_nobody_knows_is_numbered() {
        let dir = tempfile::tempdir().unwrap();
        let passwd = dir.path().join("passwd");
        std::fs::write(&passwd, "root:x:0:0::/root:/bin/sh\n# junk\nasha:x:1000:1000::/home/asha:/bin/sh\n")
            .unwrap();
        assert_eq!(name_in(&passwd, 1000).as_deref(), Some("asha"));
        assert_eq!(name_in(&passwd, 7), None);
        assert_eq!(name(0), "root");
        assert_eq!(name(4_000_000_000), "uid 4000000000");
    }
}
