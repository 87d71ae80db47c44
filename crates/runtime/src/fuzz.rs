//! Ways into this crate's private parsers, for the fuzz targets and the replay of their corpora.

use crate::seccomp;
use crate::shim::protocol::{Message, Request};

/// Reads a packet of the socket between main and a shim, as either side.
///
/// # Panics
/// When a message that was read is not read again after it was written.
pub fn shim_packet(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let written = serde_json::to_vec(&request).expect("a request is always JSON");
        serde_json::from_slice::<Request>(&written).expect("what is written is read");
    }
    if let Ok(message) = serde_json::from_slice::<Message>(bytes) {
        // A time before 1970 is read and cannot be written.
        if let Ok(written) = serde_json::to_vec(&message) {
            serde_json::from_slice::<Message>(&written).expect("what is written is read");
        }
    }
}

/// Reads a Localhost profile.
pub fn seccomp_profile(bytes: &[u8]) -> bool {
    seccomp::profile::parse_profile(bytes, &["CAP_CHOWN".to_owned()]).is_ok()
}
