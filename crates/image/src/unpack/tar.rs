//! A strict tar reader: what two tar programs could read differently is refused.
//!
//! ustar, POSIX pax and GNU long names; no sparse files, no multi-volume, no vendor types. Lenient readers are how layers
//! smuggle entries past scanners (CVE-2025-62518). Source: POSIX.1-2024 `pax`, GNU tar manual, Go's `archive/tar`.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// PATH_MAX of Linux, with its NUL.
const PATH_LIMIT: usize = 4096;
/// Directories in directories: each costs a descriptor when the tree is walked.
const DEPTH_LIMIT: usize = 256;
/// Of one pax header; a security label or a few capabilities need some hundred bytes.
const PAX_LIMIT: u64 = 1 << 20;
/// The largest size that eleven octal digits hold.
const OCTAL_SIZE_LIMIT: u64 = 0o77777777777;

/// One entry. Names are bytes, split at slashes, without `.` and never with `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub kind: Kind,
    /// Empty for the root itself.
    pub path: Vec<Vec<u8>>,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Of the content that [`Reader`] reads next; zero unless it is a file.
    pub size: u64,
    pub xattrs: Vec<(String, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<Vec<u8>>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("could not read the archive: {0}")]
    Io(io::Error),
    #[error("archive is damaged at byte {offset}: {what}")]
    Damaged { offset: u64, what: &'static str },
    #[error("archive is refused at byte {offset}: {what}")]
    Refused { offset: u64, what: String },
}

/// Reads entries; between two calls of [`Reader::next`] it is the reader of the entry's content.
pub(crate) struct Reader<R> {
    input: R,
    offset: u64,
    /// Content of the current entry not read yet, and the padding behind it.
    content: u64,
    padding: u64,
}

/// Extended headers in front of an entry.
#[derive(Default)]
struct Extended {
    pax: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(String, Vec<u8>)>,
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
}

struct Header([u8; BLOCK]);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Gnu,
}

impl<R: Read> Reader<R> {
    pub fn new(input: R) -> Reader<R> {
        Reader { input, offset: 0, content: 0, padding: 0 }
    }

    /// The next entry, or None at the end. Content of the last one that was not read is skipped.
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extended = Extended::default();
        let mut extended_seen = false;
        loop {
            self.skip_content()?;
            let at = self.offset;
            let Some(header) = self.header(extended_seen)? else { return Ok(None) };
            let refused = |what: String| TarError::Refused { offset: at, what };
            let (format, size) = header.check().map_err(refused)?;
            match header.0[156] {
                b'x' if format != Format::V7 => {
                    if extended.pax {
                        return Err(refused("two pax headers for one entry".to_owned()));
                    }
                    extended.pax = true;
                    let body = self.body(size, PAX_LIMIT)?;
                    extended.read_pax(&body).map_err(refused)?;
                }
                b'g' if format != Format::V7 => {
                    let body = self.body(size, PAX_LIMIT)?;
                    check_global(&body).map_err(refused)?;
                    continue; // it belongs to no entry
                }
                kind @ (b'L' | b'K') => {
                    let mut name = self.body(size, PATH_LIMIT as u64 + 1)?;
                    if name.last() == Some(&0) {
                        name.pop();
                    }
                    let slot = if kind == b'L' { &mut extended.gnu_path } else { &mut extended.gnu_link };
                    if slot.replace(name).is_some() {
                        return Err(refused("two GNU long names for one entry".to_owned()));
                    }
                }
                _ => return self.entry(&header, format, size, extended).map(Some).map_err(refused),
            }
            extended_seen = true;
        }
    }

    fn entry(&mut self, header: &Header, format: Format, size: u64, extended: Extended) -> Result<Entry, String> {
        let size = match extended.size {
            None => size,
            Some(pax) if pax == size => pax,
            Some(pax) if pax > OCTAL_SIZE_LIMIT && matches!(size, 0 | OCTAL_SIZE_LIMIT) => pax,
            Some(pax) => return Err(format!("pax and ustar disagree on the size: {pax} and {size}")),
        };
        let name = agreed(extended.path, extended.gnu_path, "path")?.unwrap_or_else(|| header.name(format));
        let link = agreed(extended.link, extended.gnu_link, "link")?.unwrap_or_else(|| header.text(157, 100).to_vec());
        let path = components(&name)?;
        let kind = match header.0[156] {
            b'0' | b'7' | 0 => Kind::File,
            b'1' => Kind::HardLink(components(&link)?),
            b'2' => Kind::Symlink(link_target(link)?),
            b'3' => Kind::CharDevice(header.device(329)?, header.device(337)?),
            b'4' => Kind::BlockDevice(header.device(329)?, header.device(337)?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err("sparse files are not supported".to_owned()),
            other => return Err(format!("entry type {:?} is not supported", char::from(other))),
        };
        if kind == Kind::File && name.ends_with(b"/") {
            return Err("a file's name ends with a slash".to_owned());
        }
        if path.is_empty() && kind != Kind::Directory {
            return Err("the root can only be a directory".to_owned());
        }
        if kind != Kind::File && size != 0 {
            return Err("an entry that is no file has content".to_owned());
        }
        (self.content, self.padding) = (size, size.next_multiple_of(BLOCK as u64) - size);
        let id = |pax: Option<u64>, at: usize| {
            let id = pax.map_or_else(|| number(&header.0[at..at + 8]), Ok)?;
            // The largest one means "no change" to chown.
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| format!("user or group {id} is out of range"))
        };
        let seconds = i64::try_from(number(&header.0[136..148])?).map_err(|_| "time is out of range".to_owned())?;
        Ok(Entry {
            kind,
            path,
            mode: (number(&header.0[100..108])? & 0o7777) as u32,
            uid: id(extended.uid, 108)?,
            gid: id(extended.gid, 116)?,
            mtime: extended.mtime.unwrap_or((seconds, 0)),
            size,
            xattrs: extended.xattrs,
        })
    }

    /// A header; None at the end of the archive, which must not cut off an entry.
    fn header(&mut self, inside_entry: bool) -> Result<Option<Header>, TarError> {
        let at = self.offset;
        let mut block = [0; BLOCK];
        let damaged = |what| Err(TarError::Damaged { offset: at, what });
        match self.fill(&mut block)? {
            0 if inside_entry => return damaged("it ends after an extended header"),
            0 => return Ok(None),
            BLOCK => {}
            _ => return damaged("it ends inside a header"),
        }
        if block.iter().any(|byte| *byte != 0) {
            return Ok(Some(Header(block)));
        }
        if inside_entry {
            return damaged("it ends after an extended header");
        }
        match self.fill(&mut block)? {
            0 => Ok(None),
            BLOCK if block.iter().all(|byte| *byte == 0) => Ok(None),
            _ => damaged("a lone zero block stands in the middle"),
        }
    }

    fn body(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, TarError> {
        if size > limit {
            return Err(TarError::Refused { offset: self.offset, what: format!("an extended header of {size} bytes") });
        }
        (self.content, self.padding) = (size, size.next_multiple_of(BLOCK as u64) - size);
        let mut body = vec![0; size as usize];
        let at = self.offset;
        match self.read(&mut body).map_err(TarError::Io)? as u64 == size {
            true => Ok(body),
            false => Err(TarError::Damaged { offset: at, what: "it ends inside an extended header" }),
        }
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let mut left = self.content + self.padding;
        (self.content, self.padding) = (0, 0);
        let mut sink = [0; 8192];
        while left > 0 {
            let want = left.min(sink.len() as u64) as usize;
            if self.fill(&mut sink[..want])? != want {
                return Err(TarError::Damaged { offset: self.offset, what: "it ends inside an entry" });
            }
            left -= want as u64;
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let got = read_full(&mut self.input, buffer).map_err(TarError::Io)?;
        self.offset += got as u64;
        Ok(got)
    }
}

/// The current entry's content: full buffers, except at its end.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.content.min(buffer.len() as u64) as usize;
        let got = read_full(&mut self.input, &mut buffer[..want])?;
        self.offset += got as u64;
        self.content -= got as u64;
        if got < want {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends inside an entry"));
        }
        Ok(got)
    }
}

fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

impl Header {
    /// Checks checksum and magic; returns the format and the size field.
    fn check(&self) -> Result<(Format, u64), String> {
        let sum: u64 = self
            .0
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
            .sum();
        if number(&self.0[148..156])? != sum {
            return Err("the header's checksum is wrong".to_owned());
        }
        let format = match &self.0[257..265] {
            b"ustar\x0000" => Format::Ustar,
            b"ustar  \0" => Format::Gnu,
            b"\0\0\0\0\0\0\0\0" => Format::V7,
            _ => return Err("the header's magic is unknown".to_owned()),
        };
        Ok((format, number(&self.0[124..136])?))
    }

    /// A field up to its first NUL.
    fn text(&self, at: usize, length: usize) -> &[u8] {
        let field = &self.0[at..at + length];
        field.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn name(&self, format: Format) -> Vec<u8> {
        let (prefix, name) = (self.text(345, 155), self.text(0, 100));
        // GNU keeps times where ustar keeps the prefix.
        match format == Format::Ustar && !prefix.is_empty() {
            true => [prefix, b"/", name].concat(),
            false => name.to_vec(),
        }
    }

    fn device(&self, at: usize) -> Result<u32, String> {
        u32::try_from(number(&self.0[at..at + 8])?).map_err(|_| "a device number is out of range".to_owned())
    }
}

/// Octal digits between spaces or NULs, or GNU's base 256.
fn number(field: &[u8]) -> Result<u64, String> {
    if field[0] & 0x80 != 0 {
        if field[0] != 0x80 {
            return Err("a number is negative or out of range".to_owned());
        }
        let (high, low) = field[1..].split_at(field.len() - 1 - 8usize.min(field.len() - 1));
        if high.iter().any(|byte| *byte != 0) {
            return Err("a number is out of range".to_owned());
        }
        return Ok(low.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)));
    }
    let text = field.trim_ascii_start();
    let digits = text.iter().take_while(|byte| matches!(byte, b'0'..=b'7')).count();
    if text[digits..].iter().any(|byte| !matches!(byte, 0 | b' ')) {
        return Err("a number has a character that is no octal digit".to_owned());
    }
    Ok(text[..digits].iter().fold(0, |value, byte| value << 3 | u64::from(byte - b'0')))
}

fn agreed(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>, what: &str) -> Result<Option<Vec<u8>>, String> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => Err(format!("pax and GNU headers disagree on the {what}")),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if path.is_empty() {
        return Err("an entry has no name".to_owned());
    }
    if path.len() >= PATH_LIMIT || path.contains(&0) {
        return Err("a name is too long or has a NUL byte".to_owned());
    }
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let mut parts = Vec::new();
    for name in names {
        if name == b".." {
            return Err(format!("{:?} climbs out with \"..\"", String::from_utf8_lossy(path)));
        }
        parts.push(name.to_vec());
    }
    match parts.len() > DEPTH_LIMIT {
        true => Err(format!("a name is more than {DEPTH_LIMIT} directories deep")),
        false => Ok(parts),
    }
}

fn link_target(target: Vec<u8>) -> Result<Vec<u8>, String> {
    match target.is_empty() || target.len() >= PATH_LIMIT || target.contains(&0) {
        true => Err("a symbolic link has no target, or one too long or with a NUL byte".to_owned()),
        false => Ok(target),
    }
}

impl Extended {
    fn read_pax(&mut self, body: &[u8]) -> Result<(), String> {
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).map_err(|_| "a pax value is not UTF-8".to_owned());
        let integer = |value: &[u8]| text(value)?.parse::<u64>().map_err(|_| "a pax number is not a number".to_owned());
        for record in Records(body) {
            let (key, value) = record?;
            let twice = match key.as_str() {
                "path" => self.path.replace(value.to_vec()).is_some(),
                "linkpath" => self.link.replace(value.to_vec()).is_some(),
                "size" => self.size.replace(integer(value)?).is_some(),
                "uid" => self.uid.replace(integer(value)?).is_some(),
                "gid" => self.gid.replace(integer(value)?).is_some(),
                "mtime" => self.mtime.replace(time(&text(value)?)?).is_some(),
                "atime" | "ctime" | "uname" | "gname" | "comment" => false,
                "hdrcharset" | "charset" => match value {
                    b"BINARY" | b"ISO-IR 10646 2000 UTF-8" => false,
                    _ => return Err("a pax header names a character set".to_owned()),
                },
                key => match key.strip_prefix("SCHILY.xattr.") {
                    Some(name) => {
                        let twice = self.xattrs.iter().any(|(other, _)| other == name);
                        self.xattrs.push((name.to_owned(), value.to_vec()));
                        twice
                    }
                    None if key.starts_with("GNU.sparse.") || key == "SCHILY.realsize" => {
                        return Err("sparse files are not supported".to_owned());
                    }
                    None if key.contains('.') => false, // a vendor's, meaningless to everyone else
                    None => return Err(format!("pax key {key:?} is unknown")),
                },
            };
            if twice {
                return Err(format!("pax key {key:?} stands twice"));
            }
        }
        Ok(())
    }
}

/// Global headers may comment, as `git archive` does; what would change the entries behind them is refused.
fn check_global(body: &[u8]) -> Result<(), String> {
    for record in Records(body) {
        let (key, _) = record?;
        if key != "comment" && (!key.contains('.') || key.starts_with("GNU.sparse.") || key.starts_with("SCHILY.")) {
            return Err(format!("pax key {key:?} stands in a global header"));
        }
    }
    Ok(())
}

/// `LENGTH KEY=VALUE\n` …
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(String, &'a [u8]), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split_record(self.0).ok_or_else(|| "a pax record is malformed".to_owned());
        match record {
            Ok((key, value, rest)) => {
                self.0 = rest;
                Some(Ok((key, value)))
            }
            Err(error) => {
                self.0 = &[];
                Some(Err(error))
            }
        }
    }
}

fn split_record(body: &[u8]) -> Option<(String, &[u8], &[u8])> {
    let space = body.iter().position(|byte| *byte == b' ')?;
    let digits = std::str::from_utf8(&body[..space]).ok()?;
    if digits.starts_with(['0', '+']) {
        return None;
    }
    let length: usize = digits.parse().ok()?;
    let record = body.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let key = std::str::from_utf8(&record[..equals]).ok().filter(|key| !key.is_empty() && !key.contains('\0'))?;
    Some((key.to_owned(), &record[equals + 1..], &body[length..]))
}

/// Decimal seconds with an optional fraction.
fn time(text: &str) -> Result<(i64, u32), String> {
    let wrong = || format!("pax time {text:?} is not a time");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let nanos: u32 = format!("{fraction:0<9.9}").parse().map_err(|_| wrong())?;
    match whole.starts_with('-') && nanos > 0 {
        true => Ok((seconds.checked_sub(1).ok_or_else(wrong)?, 1_000_000_000 - nanos)),
        false => Ok((seconds, nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_round_down() {
        assert_eq!(time("1.5"), Ok((1, 500_000_000)));
        assert_eq!(time("-1.25"), Ok((-2, 750_000_000)));
        assert_eq!(time("7.1234567899"), Ok((7, 123_456_789)));
        assert!(time("1.x").is_err() && time("").is_err() && time("1e9").is_err());
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"   644 \0"), Ok(0o644));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\x00"), Ok(256));
        assert_eq!(number(b"\x80\0\0\0\x00\0\0\0\0\0\x01\x00"), Ok(256));
        assert!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
        assert!(number(b"0o644\0\0\0").is_err());
        assert!(number(b"644\x00644").is_err());
    }

    #[test]
    fn no_bytes_panic() {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 33
        };
        for _ in 0..2000 {
            let archive = testkit::images::Layer::new()
                .pax(&[("path", b"abc"), ("size", b"3")])
                .file("x", 0o644, b"abc")
                .dir("d/", 0o755);
            let mut bytes = archive.finish();
            for _ in 0..3 {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }
            let mut reader = Reader::new(&bytes[..]);
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
