//! Ways into this crate's private parsers, for the fuzz targets and the replay of their corpora.

use crate::authn;
use crate::registry::list;

/// Whether a client's certificate names a user.
pub fn certificate(der: &[u8]) -> bool {
    authn::user_of_certificate(der).is_some()
}

/// Whether a continue token is one; what is read is written alike.
///
/// # Panics
/// When a token changes on its way.
pub fn continue_token(text: &str) -> bool {
    list::reread(text)
}
