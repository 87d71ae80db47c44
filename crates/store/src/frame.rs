//! Frames: the unit that is written, synced and checked as a whole, and the header that every file begins with.
//!
//! A frame is `header payload end padding`, aligned to 32 bytes so that its header never crosses a sector. The header names the
//! file that it belongs to and its place in the sequence: a block that was swapped or repeated does not fit. A frame is
//! written only after the one before it is durable, so of a crash at most the last frame is incomplete, and what is missing of
//! it is whole sectors or everything behind some byte. Damage of any other form is not a crash's work.

use std::ops::Range;

use crate::seal::KeyId;

/// The format that this build writes, and the only one it reads.
pub const VERSION: u32 = 1;

const ALIGN: usize = 32;
const SECTOR: usize = 512;
const FRAME_MAGIC: [u8; 4] = *b"crF\x01";
/// Ends each frame; no byte of it is zero, so that one which is missing can be told.
const END: [u8; 8] = *b"\x01crFend\n";

const FILE_MAGIC: [u8; 8] = *b"coracle\n";
/// The length of a file's header; the first frame follows.
pub(crate) const FILE_HEADER: usize = 96;

/// Whom a frame belongs to: a random number for each store, mixed with the file's kind and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Log,
    Checkpoint,
}

impl Kind {
    fn code(self) -> u32 {
        match self {
            Self::Log => 1,
            Self::Checkpoint => 2,
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Log => "log-",
            Self::Checkpoint => "checkpoint-",
        }
    }

    pub fn file_name(self, number: u64) -> String {
        format!("{}{number:016x}", self.prefix())
    }

    pub fn parse_name(self, name: &str) -> Option<u64> {
        let digits = name.strip_prefix(self.prefix()).filter(|digits| digits.len() == 16)?;
        u64::from_str_radix(digits, 16).ok()
    }
}

/// What a file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: Kind,
    /// Random, the same in all files of a store.
    pub store: u64,
    /// A segment's number; of a checkpoint, the first segment that is not part of it.
    pub number: u64,
    /// The sequence number of the first frame.
    pub sequence: u64,
    /// The store's revision before the first frame, or at the checkpoint.
    pub revision: u64,
    /// The last revision that may have been issued when the file was begun.
    pub reserved: u64,
    /// The key that was sealed with.
    pub key: KeyId,
}

/// Why a file's header was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    Foreign,
    Version(u32),
    Damaged,
}

impl Header {
    pub fn owner(&self) -> Owner {
        Owner(self.store ^ (self.number << 2 | u64::from(self.kind.code())))
    }

    pub fn encode(&self) -> [u8; FILE_HEADER] {
        let mut out = Vec::with_capacity(FILE_HEADER);
        out.extend_from_slice(&FILE_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.kind.code().to_le_bytes());
        for field in [self.store, self.number, self.sequence, self.revision, self.reserved] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.key.0);
        out.resize(FILE_HEADER - 4, 0);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.try_into().expect("it was filled to this length")
    }

    pub fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, BadHeader> {
        let bytes: &[u8; FILE_HEADER] = bytes.first_chunk().ok_or(BadHeader::Damaged)?;
        if bytes[..8] != FILE_MAGIC {
            return Err(BadHeader::Foreign);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(BadHeader::Version(version));
        }
        let (body, crc) = bytes.split_at(FILE_HEADER - 4);
        if u32_at(crc, 0) != crc32c::crc32c(body) || u32_at(bytes, 12) != kind.code() {
            return Err(BadHeader::Damaged);
        }
        Ok(Self {
            kind,
            store: u64_at(bytes, 16),
            number: u64_at(bytes, 24),
            sequence: u64_at(bytes, 32),
            revision: u64_at(bytes, 40),
            reserved: u64_at(bytes, 48),
            key: KeyId(*bytes[56..].first_chunk().expect("the header is longer")),
        })
    }
}

/// The space that a frame takes.
pub(crate) fn frame_len(payload: usize) -> usize {
    (FRAME_HEADER + payload + END.len()).next_multiple_of(ALIGN)
}

/// A frame under construction: the payload is appended to what this returns.
pub(crate) fn begin() -> Vec<u8> {
    vec![0; FRAME_HEADER]
}

/// Completes a frame whose payload is all there.
pub(crate) fn finish(frame: &mut Vec<u8>, owner: Owner, sequence: u64) {
    let payload = &frame[FRAME_HEADER..];
    let len = u32::try_from(payload.len()).expect("a group of writers is bounded far below 4 GiB");
    let mut header = [0; FRAME_HEADER];
    header[..4].copy_from_slice(&FRAME_MAGIC);
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..24].copy_from_slice(&owner.0.to_le_bytes());
    header[24..28].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    let crc = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    frame[..FRAME_HEADER].copy_from_slice(&header);
    frame.extend_from_slice(&END);
    frame.resize(frame.len().next_multiple_of(ALIGN), 0);
}

/// What is found where a frame may begin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Frame {
        payload: Range<usize>,
        next: usize,
    },
    /// Only zeros, or nothing, until the end of the file.
    End,
    /// What a crash leaves of a frame that was not yet durable.
    Torn,
    /// Something that no crash leaves behind.
    Damaged(&'static str),
}

/// Looks for frame `sequence` at offset `at`, a multiple of 32, of a whole file.
pub(crate) fn find(file: &[u8], at: usize, owner: Owner, sequence: u64) -> Found {
    let rest = &file[at..];
    if is_zero(rest) {
        return Found::End;
    }
    let torn = || if follows(rest, owner, sequence) { Found::Damaged("later frames follow it") } else { Found::Torn };
    let Some(header) = rest.first_chunk::<FRAME_HEADER>() else { return Found::Torn };
    if is_zero(header) {
        return torn();
    }
    let Some((len, crc)) = frame_header(header) else {
        let cut = is_zero(&rest[FRAME_HEADER..]);
        return if cut { Found::Torn } else { Found::Damaged("the frame's header does not match its checksum") };
    };
    if u64_at(header, 16) != owner.0 || u64_at(header, 8) != sequence {
        return Found::Damaged("the frame belongs elsewhere");
    }
    let Some(body) = rest.get(FRAME_HEADER..FRAME_HEADER + len + END.len()) else {
        return Found::Damaged("the frame is longer than its file");
    };
    let payload = at + FRAME_HEADER..at + FRAME_HEADER + len;
    if crc32c::crc32c(&body[..len]) == crc {
        return Found::Frame { payload, next: (at + frame_len(len)).min(file.len()) };
    }
    let first_sector = payload.start.next_multiple_of(SECTOR) - payload.start;
    let sectors = body.get(first_sector..).unwrap_or_default();
    let cut = is_zero(&file[payload.end + END.len() - 1..]);
    if cut || sectors.chunks(SECTOR).any(is_zero) {
        return torn();
    }
    Found::Damaged("the frame does not match its checksum")
}

/// The length of a frame's header, which a reader without the whole file needs first.
pub(crate) const FRAME_HEADER: usize = ALIGN;

/// What is known of a frame from its header.
pub(crate) struct Expected {
    pub payload: usize,
    crc: u32,
}

impl Expected {
    pub fn matches(&self, payload: &[u8]) -> bool {
        crc32c::crc32c(payload) == self.crc
    }
}

/// Takes the header of frame `sequence`, in a file where every frame must be whole.
pub(crate) fn expect(header: &[u8; FRAME_HEADER], owner: Owner, sequence: u64) -> Result<Expected, &'static str> {
    let (payload, crc) = frame_header(header).ok_or("the frame's header does not match its checksum")?;
    let place = u64_at(header, 16) == owner.0 && u64_at(header, 8) == sequence;
    if place { Ok(Expected { payload, crc }) } else { Err("the frame belongs elsewhere") }
}

/// Length and checksum of the payload, if this is an intact header.
fn frame_header(header: &[u8; FRAME_HEADER]) -> Option<(usize, u32)> {
    let intact = header[..4] == FRAME_MAGIC && u32_at(header, 28) == crc32c::crc32c(&header[..28]);
    intact.then(|| (u32_at(header, 4) as usize, u32_at(header, 24)))
}

/// Whether a later frame of the same file stands anywhere behind the one that begins `rest`.
fn follows(rest: &[u8], owner: Owner, sequence: u64) -> bool {
    let mut candidates = rest.chunks_exact(ALIGN).skip(1).filter_map(|chunk| chunk.first_chunk::<FRAME_HEADER>());
    candidates.any(|header| {
        header[..4] == FRAME_MAGIC
            && frame_header(header).is_some()
            && u64_at(header, 16) == owner.0
            && u64_at(header, 8) > sequence
    })
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<8>();
    words.iter().all(|word| *word == [0; 8]) && tail.iter().all(|byte| *byte == 0)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the caller knows the length"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the caller knows the length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner(0x1234_5678_9abc_def0);

    fn frame(sequence: u64, payload: &[u8]) -> Vec<u8> {
        let mut frame = begin();
        frame.extend_from_slice(payload);
        finish(&mut frame, OWNER, sequence);
        frame
    }

    /// A file with one frame of about three sectors and room behind it.
    fn file() -> (Vec<u8>, usize) {
        let mut file = frame(7, &b"0123456789abcdef".repeat(90));
        let len = file.len();
        file.resize(4096, 0);
        (file, len)
    }

    #[test]
    fn a_frame_is_found_as_written() {
        let (file, len) = file();
        let found = find(&file, 0, OWNER, 7);
        assert_eq!(found, Found::Frame { payload: FRAME_HEADER..FRAME_HEADER + 1440, next: len });
        assert_eq!(find(&file, len, OWNER, 8), Found::End);
    }

    #[test]
    fn a_frame_cut_at_any_byte_is_torn_or_whole() {
        let (file, len) = file();
        for at in 1..len {
            let mut cut = file.clone();
            cut[at..].fill(0);
            let found = find(&cut, 0, OWNER, 7);
            assert!(matches!(found, Found::Torn | Found::Frame { .. }), "cut at {at}: {found:?}");
            assert_eq!(matches!(found, Found::Frame { .. }), at >= FRAME_HEADER + 1440, "cut at {at}");
        }
    }

    #[test]
    fn a_frame_that_misses_any_sectors_is_torn() {
        let (file, len) = file();
        let sectors = len.div_ceil(SECTOR);
        for missing in 1..1_u32 << sectors {
            let mut partial = file.clone();
            for sector in (0..sectors).filter(|sector| missing & 1 << sector != 0) {
                partial[sector * SECTOR..((sector + 1) * SECTOR).min(len)].fill(0);
            }
            let found = find(&partial, 0, OWNER, 7);
            assert!(matches!(found, Found::Torn | Found::End), "without sectors {missing:b}: {found:?}");
        }
    }

    #[test]
    fn a_flipped_byte_never_passes_for_a_torn_frame() {
        let (file, len) = file();
        for at in 0..len {
            for flip in [0x01, 0x80, 0xff, file[at]] {
                let mut bad = file.clone();
                bad[at] ^= flip;
                let found = find(&bad, 0, OWNER, 7);
                let harmless = at >= FRAME_HEADER + 1440 || bad[at] == file[at];
                assert_eq!(matches!(found, Found::Frame { .. }), harmless, "byte {at}: {found:?}");
                assert!(harmless || matches!(found, Found::Damaged(_)), "byte {at}: {found:?}");
            }
        }
    }

    #[test]
    fn a_frame_of_another_place_is_refused() {
        let (file, _) = file();
        assert!(matches!(find(&file, 0, OWNER, 8), Found::Damaged(_)));
        assert!(matches!(find(&file, 0, Owner(1), 7), Found::Damaged(_)));
    }

    #[test]
    fn a_missing_sector_before_a_later_frame_is_damage() {
        let (mut file, len) = file();
        let later = frame(8, b"x");
        file[len..len + later.len()].copy_from_slice(&later);
        file[SECTOR..2 * SECTOR].fill(0);
        assert_eq!(find(&file, 0, OWNER, 7), Found::Damaged("later frames follow it"));
    }

    #[test]
    fn a_header_of_another_version_is_told_from_a_damaged_one() {
        let header = Header {
            kind: Kind::Log,
            store: 1,
            number: 2,
            sequence: 3,
            revision: 4,
            reserved: 5,
            key: KeyId(*b"12345678"),
        };
        let good = header.encode();
        assert_eq!(Header::decode(Kind::Log, &good), Ok(header));
        for at in 0..FILE_HEADER {
            let mut bad = good;
            bad[at] ^= 0x40;
            let expected = match at {
                0..8 => BadHeader::Foreign,
                8..12 => BadHeader::Version(u32_at(&bad, 8)),
                _ => BadHeader::Damaged,
            };
            assert_eq!(Header::decode(Kind::Log, &bad), Err(expected));
        }
    }
}
