//! What clients of the API server send, and what our own client is told.

use std::sync::{Arc, LazyLock};

use api::key::GroupResource;
use api::status::Status;
use client::request;
use http::{HeaderMap, HeaderValue, Method};
use jiff::Timestamp;
use kinds::kind::Kind;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::Value;
use server::admit::Warnings;
use server::authn::token::Tokens;
use server::http::body::{self, Expected, FieldValidation};
use server::http::{negotiate, protobuf};
use server::path::{Attributes, Query};
use server::pki::Validity;
use server::registry::list::When;
use store::memory::Memory;

use crate::{halves, text};

/// A header and a query.
pub(crate) fn accept(bytes: &[u8]) {
    let (header, query) = halves(bytes);
    let (Ok(value), Some(query)) = (HeaderValue::from_bytes(header), text(query)) else { return };
    if let Ok(header) = value.to_str() {
        for range in negotiate::ranges(header) {
            range.target();
        }
    }
    let headers = HeaderMap::from_iter([(http::header::ACCEPT, value.clone()), (http::header::CONTENT_TYPE, value)]);
    let query = Query::parse(query);
    // Refusals are as good as answers.
    drop(negotiate::negotiate(&headers, &query, negotiate::Offer::Tables));
    negotiate::is_pretty(&headers, &query);
    negotiate::content_type(&headers);
}

/// A method, a path and a query.
pub(crate) fn path(bytes: &[u8]) {
    let (method, rest) = halves(bytes);
    let (path, query) = halves(rest);
    let (Ok(method), Some(path), Some(query)) = (Method::from_bytes(method), text(path), text(query)) else { return };
    let query = Query::parse(query);
    Attributes::parse(&method, path, &query);
    for watch in [false, true] {
        drop(When::parse(&query, watch));
    }
    drop(FieldValidation::parse(&query, "CreateOptions"));
}

pub(crate) fn continue_token(bytes: &[u8]) {
    if let Some(text) = text(bytes) {
        server::fuzz::continue_token(text);
    }
}

const POD: &str = "io.k8s.api.core.v1.Pod";

fn conformed(media_type: &str, bytes: &[u8]) -> Result<Value, Status> {
    let schema = kinds::schema::get(POD);
    let parsed = body::parse(media_type, bytes, schema)?;
    let expected = Expected { api_version: "v1".into(), kind: "Pod", schema };
    body::conform(parsed, expected, FieldValidation::Warn, &Warnings::default())
}

/// A media type and a body.
pub(crate) fn body(bytes: &[u8]) {
    let (media_type, bytes) = halves(bytes);
    let Some(media_type) = text(media_type) else { return };
    if let Ok(value) = conformed(media_type, bytes) {
        assert!(value.is_object());
    }
}

/// Everything that is done with a Pod before it is stored; the second part is the one that it replaces.
pub(crate) fn pod(bytes: &[u8]) {
    static PODS: LazyLock<Kind> =
        LazyLock::new(|| kinds::registry().into_iter().find(|kind| kind.names.kind == "Pod").expect("there are pods"));
    let (new, old) = halves(bytes);
    let Ok(mut pod) = conformed("application/json", new) else { return };
    let old = conformed("application/json", old).ok();
    let strategy = &PODS.strategy;
    (strategy.default)(&mut pod);
    (strategy.prepare)(&mut pod, old.as_ref());
    (strategy.validate)(&pod, old.as_ref());
    (strategy.warnings)(&pod, old.as_ref());
    (PODS.row)(&pod, Timestamp::UNIX_EPOCH);
    (PODS.fields)(&pod);
}

/// An object behind its magic number.
pub(crate) fn protobuf(bytes: &[u8]) {
    let body = [b"k8s\0", bytes].concat();
    for of in [POD, "io.k8s.api.apps.v1.Deployment", "io.k8s.api.core.v1.Secret"] {
        let of = kinds::schema::get(of).expect("it is built in");
        if let Ok(value) = protobuf::decode(&body, of) {
            assert!(value.is_object());
        }
    }
}

pub(crate) fn token(bytes: &[u8]) {
    static TOKENS: LazyLock<Tokens> = LazyLock::new(|| {
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("a key");
        let clock: client::Clock = Arc::new(|| Timestamp::UNIX_EPOCH);
        Tokens::new(key.as_ref(), "https://kubernetes.default.svc", Memory::new(), clock).expect("a key")
    });
    let Some(text) = text(bytes) else { return };
    assert!(TOKENS.authenticate(text, &[]).is_err(), "the key was never used");
}

pub(crate) fn certificate(bytes: &[u8]) {
    server::fuzz::certificate(bytes);
    if let Some(pem) = text(bytes) {
        drop(Validity::of_pem(pem));
    }
}

pub(crate) fn watch_line(bytes: &[u8]) {
    let pods = GroupResource::new("", "pods");
    drop(request::page(&pods, bytes));
    drop(request::Known::default().read(&pods, bytes));
}
