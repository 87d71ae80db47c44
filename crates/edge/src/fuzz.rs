//! Ways into this crate's private parsers, for the fuzz targets and the replay of their corpora.

use http::Request;

use crate::{headers, path};

/// The path that rules are matched against.
///
/// # Panics
/// When a path is let through that an application could take for another one.
pub fn normalized(text: &str) -> Option<String> {
    let normalized = path::normalized(text)?;
    assert!(normalized.starts_with('/') && !normalized.contains("//"), "{text:?} became {normalized:?}");
    assert!(!normalized.split('/').any(|element| matches!(element, "." | "..")), "{text:?} became {normalized:?}");
    Some(normalized)
}

/// The name of the host that a `Host` header means.
pub fn host(text: &str) -> Option<String> {
    let request = Request::builder().header(http::header::HOST, text).body(()).ok()?;
    headers::host(&request).map(headers::host_name)
}
