//! OpenID Connect discovery: how others check service account tokens without asking this server about each.
//!
//! Sources: kubernetes `pkg/serviceaccount/openidmetadata.go`, `pkg/routes/openidmetadata.go`; OpenID Connect Discovery 1.0.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use serde_json::{Value, json};

use crate::hooks::Issuer;
use crate::http::reply::{self, Body};
use crate::server::Server;

pub const CONFIGURATION: &str = "/.well-known/openid-configuration";
pub const KEYS: &str = "/openid/v1/jwks";

/// Answers the two paths, or `None` for another, and where nobody issues tokens.
pub fn answer(server: &Server, path: &str) -> Option<Response<Body>> {
    let (media_type, document) = match path.trim_end_matches('/') {
        CONFIGURATION => ("application/json", configuration(&server.registry.tokens.issuer()?, &server.advertised)),
        KEYS => ("application/jwk-set+json", server.registry.tokens.issuer()?.keys),
        _ => return None,
    };
    let mut response = Response::new(reply::full(Bytes::from(document.to_string())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    // Keys do not change while the server runs.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    Some(response)
}

/// `advertised` is the `HOST:PORT` at which the keys can be had; the issuer's URL is a name that only pods can resolve.
fn configuration(issuer: &Issuer, advertised: &str) -> Value {
    let keys = issuer.keys["keys"].as_array().into_iter().flatten();
    let algorithms: BTreeSet<&str> = keys.filter_map(|key| key["alg"].as_str()).collect();
    json!({
        "issuer": issuer.url,
        "jwks_uri": format!("https://{advertised}{KEYS}"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    })
}
