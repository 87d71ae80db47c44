//! Responses: a status code, a body in the form that was accepted, and warnings.

use std::convert::Infallible;

use api::status::Status;
use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, VARY, WARNING,
};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

use super::negotiate::Format;
use super::takeover::{Events, Handing, Takeover, joined};

/// The body of every answer.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Below this size compressing costs more than it saves; upstream's threshold.
const COMPRESS_FROM: usize = 128 * 1024;

/// A body that is there already.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// An answer in JSON or YAML.
pub fn json(code: StatusCode, format: Format, bytes: Bytes) -> Response<Body> {
    let bytes = match format {
        Format::Json => bytes,
        Format::Pretty | Format::Yaml => reformatted(format, &bytes).unwrap_or(bytes),
    };
    let mut response = Response::new(full(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn reformatted(format: Format, bytes: &[u8]) -> Option<Bytes> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    match format {
        Format::Yaml => Some(api::yaml::to_string(&value).into()),
        Format::Pretty | Format::Json => {
            let mut text = serde_json::to_vec_pretty(&value).ok()?;
            text.push(b'\n');
            Some(text.into())
        }
    }
}

/// An answer made of a value.
pub fn value(code: StatusCode, format: Format, value: &Value) -> Response<Body> {
    json(code, format, serde_json::to_vec(value).expect("a value is always JSON").into())
}

/// An answer in plain text.
pub fn text(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    response
}

/// A refusal.
pub fn status(status: &Status) -> Response<Body> {
    failure(status, None)
}

/// A refusal; `fresh` is the continue token with which an expired list can go on.
pub fn failure(status: &Status, fresh: Option<&str>) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut body = serde_json::to_value(status).expect("a status is always JSON");
    if let Some(token) = fresh {
        body["metadata"]["continue"] = token.into();
    }
    let mut response = value(code, Format::Json, &body);
    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if seconds > 0 {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// A watch, sent as it comes; with `takeover` it takes its connection, and closes it behind itself.
pub fn watch(events: Events, takeover: Option<Takeover>) -> Response<Body> {
    let closes = takeover.is_some();
    let mut response = Response::new(match takeover {
        Some(takeover) => Handing::new(events, takeover).boxed_unsync(),
        None => StreamBody::new(events.map(|piece| Ok(Frame::data(joined(piece))))).boxed_unsync(),
    });
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if closes {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Compresses a large answer for a client that takes gzip.
pub fn compressed(request: &HeaderMap, bytes: Bytes) -> (Bytes, bool) {
    let header = request.get(http::header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wanted = header.split(',').any(|coding| coding.split(';').next().unwrap_or_default().trim() == "gzip");
    if !wanted || bytes.len() < COMPRESS_FROM {
        return (bytes, false);
    }
    use std::io::Write;
    // Upstream's level: the fastest.
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 4), flate2::Compression::fast());
    match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
        Ok(compressed) => (compressed.into(), true),
        Err(_) => (bytes, false),
    }
}

/// An answer that may be large.
pub fn large(request: &HeaderMap, format: Format, bytes: Bytes) -> Response<Body> {
    if format != Format::Json {
        return json(StatusCode::OK, format, bytes);
    }
    let (bytes, gzip) = compressed(request, bytes);
    let mut response = json(StatusCode::OK, format, bytes);
    if gzip {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

/// Adds `Warning` headers: `299 - "text"`, without what a header cannot hold.
pub fn warn(response: &mut Response<Body>, texts: &[String]) {
    for text in texts {
        let clean: String = text.chars().filter(|c| !c.is_control()).collect();
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(header) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(WARNING, header);
        }
    }
}
