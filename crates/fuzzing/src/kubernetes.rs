//! What the API's own grammar consists of.

use api::cidr::Cidr;
use api::key::{GroupResource, Key};
use api::object::Draft;
use api::patch::{Format, Patch};
use api::quantity::{Quantity, emitted};
use api::selector::Selector;
use api::selector::fields::FieldSelector;
use api::{json, names, yaml};
use bytes::Bytes;
use serde_json::Value;

use crate::{halves, text};

/// Patches of JSON may copy: what comes out is bounded all the same.
const LARGEST: usize = 64 << 20;

pub(crate) fn yaml(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    for document in yaml::parse_all(text).into_iter().flatten() {
        let written = serde_json::to_vec(&document.value).expect("a value is always JSON");
        assert!(json::parse(&written).is_ok(), "what YAML says can be said in JSON");
        yaml::locate(text, document.line, "spec.containers[0].image");
    }
}

pub(crate) fn json(bytes: &[u8]) {
    let Ok(parsed) = json::parse(bytes) else { return };
    let written = serde_json::to_vec(&parsed.value).expect("a value is always JSON");
    let again = json::parse(&written).expect("what is written is read");
    assert!(!again.repeats);
    assert_eq!(json::strict(bytes, json::Of::Anything).is_empty(), !parsed.repeats);
    if !has_fractions(&parsed.value) {
        assert_eq!(again.value, parsed.value);
    }
}

/// The last digit of a fraction may be lost.
fn has_fractions(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(list) => list.iter().any(has_fractions),
        Value::Object(map) => map.values().any(has_fractions),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

/// An object and a patch.
pub(crate) fn patch(bytes: &[u8]) {
    let (object, patch) = halves(bytes);
    let Ok(object) = json::parse(object) else { return };
    let pod = kinds::schema::get("io.k8s.api.core.v1.Pod");
    for format in [Format::Json, Format::Merge, Format::Strategic] {
        let Ok(patch) = Patch::parse(format, patch) else { continue };
        let Ok(patched) = patch.apply(object.value.clone(), pod) else { continue };
        assert!(patched.to_string().len() < LARGEST);
        if format == Format::Merge {
            assert_eq!(patch.apply(patched.clone(), pod), Ok(patched), "RFC 7386 has it that twice is once");
        }
    }
}

pub(crate) fn quantity(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(quantity) = text.parse::<Quantity>() else { return };
    let written = quantity.to_string();
    let again: Quantity = written.parse().expect("what is written is read");
    assert_eq!(again.to_string(), written, "the canonical form is one");
    let emitted: Quantity = emitted(text).expect("it was parsed").parse().expect("what is written is read");
    assert_eq!(emitted, quantity);
    quantity.value();
    quantity.millis();
}

pub(crate) fn label_selector(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(selector) = Selector::parse(text) else { return };
    let written = selector.to_string();
    let again = Selector::parse(&written).unwrap_or_else(|error| panic!("{written:?}: {error}"));
    assert_eq!(again.to_string(), written);
    for labels in [&[][..], &[("app", "web")], &[("app", "web"), ("tier", "7")]] {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(selector.matches(&labels), again.matches(&labels), "{written:?}");
    }
}

pub(crate) fn field_selector(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(selector) = FieldSelector::parse(text) else { return };
    let written = selector.to_string();
    let again = FieldSelector::parse(&written).unwrap_or_else(|error| panic!("{written:?}: {error}"));
    let sorted = |selector: &FieldSelector| {
        let mut all: Vec<String> = selector.requirements().iter().map(|one| format!("{one:?}")).collect();
        all.sort();
        all
    };
    assert_eq!(sorted(&again), sorted(&selector), "{written:?}");
}

pub(crate) fn names(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(ip) = names::parse_ip(text) {
        assert_eq!(names::parse_ip_sloppy(text), Some(ip));
        assert_eq!(names::parse_ip(&ip.to_string()), Ok(ip));
    }
    if let Ok(cidr) = text.parse::<Cidr>() {
        assert_eq!(cidr.to_string().parse(), Ok(cidr));
        assert!(cidr.contains(cidr.address()));
    }
    if names::is_dns1123_label(text).is_empty() {
        assert!(names::is_dns1123_subdomain(text).is_empty(), "a label is a subdomain");
    }
    for check in [
        names::is_qualified_name,
        names::is_label_value,
        names::is_domain_prefixed_path,
        names::is_env_var_name,
        names::is_config_map_key,
        names::is_http_header_name,
        names::is_percent,
        names::is_port_name,
        names::is_path_segment_name,
        names::is_cidr_for_legacy_field,
        names::is_wildcard_dns1123_subdomain,
    ] {
        check(text);
    }
}

pub(crate) fn object(bytes: &[u8]) {
    let key = Key::new(&GroupResource::new("", "pods"), "default", "web");
    let read = |draft: Draft| -> Value {
        serde_json::from_slice(&draft.commit(7).json()).expect("the revision is spliced in without damage")
    };
    if let Ok(draft) = Draft::from_bytes(key.clone(), 0, Bytes::copy_from_slice(bytes)) {
        read(draft);
    }
    let Ok(parsed) = json::parse(bytes) else { return };
    if let Ok(draft) = Draft::new(key, parsed.value) {
        assert_eq!(read(draft)["metadata"]["resourceVersion"], "7");
    }
}
