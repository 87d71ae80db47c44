//! Ways into this crate's private parsers, for the fuzz targets and the replay of their corpora.

use crate::frame::{self, FILE_HEADER, Found, Header, Kind, Owner};
use crate::record;
use crate::seal::Keyring;

/// Reads a file of the log or a checkpoint, frame by frame, as recovery does.
///
/// # Panics
/// When a frame lies outside of the file, or reading does not come to an end.
pub fn file(bytes: &[u8]) {
    for kind in [Kind::Log, Kind::Checkpoint] {
        let Ok(header) = Header::decode(kind, bytes) else { continue };
        assert_eq!(Header::decode(kind, &header.encode()), Ok(header));
        frames(bytes, FILE_HEADER, header.owner(), header.sequence);
    }
    frames(bytes, 0, Owner(0), 0);
}

fn frames(bytes: &[u8], mut at: usize, owner: Owner, mut sequence: u64) {
    while let Found::Frame { payload, next } = frame::find(bytes, at, owner, sequence) {
        assert!(payload.end <= bytes.len() && next <= bytes.len() && next > at);
        records(&bytes[payload]);
        (at, sequence) = (next, sequence.wrapping_add(1));
    }
}

/// Reads what an intact frame of either kind holds.
///
/// # Panics
/// Never: the key is well formed.
pub fn records(payload: &[u8]) {
    let keys = Keyring::parse(&"07".repeat(32)).expect("32 bytes are a key");
    // What is refused is as good as what is taken: neither panics nor takes more memory than the payload has.
    drop(record::decode_entry(payload, &keys));
    drop(record::decode_run(payload, &keys));
}
