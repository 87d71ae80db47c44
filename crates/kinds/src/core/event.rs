//! Event: something that happened to an object. Stored in the form of `v1`, served from `events.k8s.io` too.
//!
//! Source: kubernetes `pkg/registry/core/event/strategy.go`, `pkg/apis/events/v1/conversion.go`.

use std::time::Duration;

use api::field::{Error, Path};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Conversion, Kind, Strategy, Version};
use crate::place::Place;
use crate::strategy::same;
use crate::table;
use crate::value::{is_empty, number, remove, set, text};

/// How long events are kept, as upstream's `--event-ttl`.
const TTL: Duration = Duration::from_secs(3600);

pub fn kind() -> Kind {
    let mut kind = Kind {
        strategy: Strategy::none().validating(validate),
        columns: vec![
            Column::text("Last Seen", "How long ago it was seen last."),
            Column::text("Type", "Normal or Warning; new types may appear."),
            Column::text("Reason", "Why it happened, in one word."),
            Column::text("Object", "The object that it is about."),
            Column::text("Subobject", "The part of the object that it is about.").wide(),
            Column::text("Source", "The component that reported it.").wide(),
            Column::text("Message", "What happened, for people."),
            Column::text("First Seen", "How long ago it was seen first.").wide(),
            Column::text("Count", "How often it was seen.").wide(),
            Column::text("Name", "The name of the event.").wide(),
        ],
        row: Box::new(row),
        fields: Box::new(fields),
        // Upstream leaves the names of events alone, but for what the path forbids.
        name: api::validation::name_is_path_segment,
        create_on_update: true,
        ttl: Some(TTL),
        ..Kind::namespaced("", "v1", "Event", "events").short(&["ev"])
    };
    kind.versions.push(Version {
        group: "events.k8s.io".into(),
        version: "v1".into(),
        schema: "io.k8s.api.events.v1.Event".into(),
        convert: Some(Conversion { to_storage: Box::new(to_core), from_storage: Box::new(from_core) }),
        validate: Some(Box::new(validate_strictly)),
        name: Some(api::validation::name_is_dns_subdomain),
        rules_first: false,
    });
    kind.versions[0].rules_first = true;
    kind
}

/// The fields that differ, as (core name, `events.k8s.io` name).
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn to_core(event: &mut Value) {
    for (core, new) in RENAMED {
        if let Some(value) = remove(event, new) {
            set(event, core, value);
        }
    }
}

fn from_core(event: &mut Value) {
    for (core, new) in RENAMED {
        if let Some(value) = remove(event, core) {
            set(event, new, value);
        }
    }
}

fn validate(event: &Value, _old: Option<&Value>) -> Vec<Error> {
    validate_leniently(event, "reportingComponent")
}

/// The rules of `events.k8s.io`.
///
/// Source: kubernetes `pkg/apis/core/validation/events.go`, `ValidateEventCreate` and `ValidateEventUpdate`.
fn validate_strictly(event: &Value, old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(event);
    let mut errors = validate_leniently(event, "reportingController");
    let invalid = |field: &str, why: String| Error::invalid(&Path::new(field), "", why);
    if old.is_none_or(|old| !same(&event["series"], &old["series"])) && root.child("series").is_set() {
        let series = root.child("series");
        if series.child("count").number() < 2 {
            errors.push(invalid("series.count", "should be at least 2".to_owned()));
        }
        if !series.child("lastObservedTime").is_set() {
            errors.push(Error::required(&Path::new("series.lastObservedTime"), ""));
        }
    }
    let Some(old) = old else {
        if !root.child("eventTime").is_set() {
            errors.push(root.child("eventTime").required(""));
        }
        if !["Normal", "Warning"].contains(&root.child("type").text()) {
            errors.push(invalid("type", format!("has invalid value: {}", root.child("type").text())));
        }
        let source = ["component", "host"].iter().any(|field| !root.child("source").child(field).is_empty());
        for (field, is_set) in [
            ("firstTimestamp", root.child("firstTimestamp").is_set()),
            ("lastTimestamp", root.child("lastTimestamp").is_set()),
            ("count", root.child("count").number() != 0),
            ("source", source),
        ] {
            if is_set {
                errors.push(invalid(field, "needs to be unset".to_owned()));
            }
        }
        return errors;
    };
    for (field, name) in IMMUTABLE {
        if !same(&event[field], &old[field]) {
            errors.push(Error::invalid(&Path::new(name), event[field].clone(), "field is immutable"));
        }
    }
    errors
}

/// What an update through `events.k8s.io` may not change, and how errors name it.
const IMMUTABLE: [(&str, &str); 13] = [
    ("involvedObject", "involvedObject"),
    ("reason", "reason"),
    ("message", "message"),
    ("source", "source"),
    ("firstTimestamp", "firstTimestamp"),
    ("lastTimestamp", "lastTimestamp"),
    ("count", "count"),
    ("type", "type"),
    ("eventTime", "eventTime"),
    ("action", "action"),
    ("related", "related"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];

/// What holds for both groups; `reporting` is how errors name the one who reports.
///
/// Source: kubernetes `pkg/apis/core/validation/events.go`, `legacyValidateEvent`.
fn validate_leniently(event: &Value, reporting: &str) -> Vec<Error> {
    let root = Place::root(event);
    let namespace = text(&event["metadata"]["namespace"]);
    let about = root.child("involvedObject").child("namespace");
    let mut errors = Vec::new();
    let wrong = if !root.child("eventTime").is_set() {
        let expected: &[&str] = if about.is_empty() { &["", "default"] } else { &[about.text()] };
        !expected.contains(&namespace)
    } else {
        about.is_empty() && !matches!(namespace, "default" | "kube-system")
    };
    if wrong {
        errors.push(Error::invalid(&about.path, about.text(), "does not match event.namespace"));
    }
    if !root.child("eventTime").is_set() {
        return errors;
    }
    let component = Place::new(root.child("reportingComponent").value, Path::new(reporting));
    component.must_be_set(&mut errors);
    component.keep(names::is_qualified_name, &mut errors);
    for (field, limit) in [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)] {
        let place = root.child(field);
        if field != "message" {
            place.must_be_set(&mut errors);
        }
        if place.text().len() > limit {
            errors.push(Error::invalid(&place.path, "", format!("can have at most {limit} characters")));
        }
    }
    errors
}

fn row(event: &Value, now: Timestamp) -> Vec<Value> {
    let time_or = |field: &str, otherwise: Value| match table::moment(&event[field]) {
        Some(_) => table::since(&event[field], now),
        None => otherwise,
    };
    let first = time_or("firstTimestamp", table::since(&event["eventTime"], now));
    let series = &event["series"];
    let (last, count) = if series.is_null() {
        (time_or("lastTimestamp", first.clone()), number(&event["count"]).max(1))
    } else {
        (table::since(&series["lastObservedTime"], now), number(&series["count"]))
    };
    let about = &event["involvedObject"];
    let kind = text(&about["kind"]).to_lowercase();
    let object = match text(&about["name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        last,
        json!(text(&event["type"])),
        json!(text(&event["reason"])),
        json!(object),
        json!(text(&about["fieldPath"])),
        json!(source(event)),
        json!(text(&event["message"]).trim()),
        first,
        json!(count),
        json!(table::name(event)),
    ]
}

fn source(event: &Value) -> String {
    let either = |old: &Value, new: &Value| if is_empty(old) { text(new).to_owned() } else { text(old).to_owned() };
    let component = either(&event["source"]["component"], &event["reportingComponent"]);
    let instance = either(&event["source"]["host"], &event["reportingInstance"]);
    if instance.is_empty() { component } else { format!("{component}, {instance}") }
}

fn fields(event: &Value) -> Vec<(&'static str, String)> {
    let about = |field: &str| text(&event["involvedObject"][field]).to_owned();
    let own = |field: &str| text(&event[field]).to_owned();
    let component = text(&event["source"]["component"]);
    vec![
        ("involvedObject.kind", about("kind")),
        ("involvedObject.namespace", about("namespace")),
        ("involvedObject.name", about("name")),
        ("involvedObject.uid", about("uid")),
        ("involvedObject.apiVersion", about("apiVersion")),
        ("involvedObject.resourceVersion", about("resourceVersion")),
        ("involvedObject.fieldPath", about("fieldPath")),
        ("regarding.kind", about("kind")),
        ("regarding.namespace", about("namespace")),
        ("regarding.name", about("name")),
        ("regarding.uid", about("uid")),
        ("regarding.apiVersion", about("apiVersion")),
        ("regarding.resourceVersion", about("resourceVersion")),
        ("regarding.fieldPath", about("fieldPath")),
        ("reason", own("reason")),
        ("reportingComponent", own("reportingComponent")),
        ("reportingController", own("reportingComponent")),
        ("source", if component.is_empty() { own("reportingComponent") } else { component.to_owned() }),
        ("type", own("type")),
    ]
}
