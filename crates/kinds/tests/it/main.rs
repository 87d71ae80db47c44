//! Manifests through the whole of a kind's strategy: defaults, preparation, validation, warnings.

use expect_test::Expect;
use kinds::kind::{Action, Kind, Strategy};
use serde_json::Value;

mod apps;
mod core;
mod examples;
mod network;
mod nonsense;
mod pod;
mod pod_parts;
mod pod_update;
mod rbac;
mod reviews;
mod tables;
mod upstream;

fn yaml(text: &str) -> Value {
    api::yaml::parse(text).expect("tests write YAML")
}

/// The kind that an object names.
fn kind_of(object: &Value) -> Kind {
    let (group, _) =
        object["apiVersion"].as_str().expect("an object has a version").rsplit_once('/').unwrap_or(("", ""));
    let name = object["kind"].as_str().expect("an object has a kind");
    let mut kinds = kinds::registry().into_iter();
    kinds.find(|kind| kind.names.kind == name && kind.versions[0].group == group).expect("a kind that is served")
}

/// What a request leaves behind: errors, one a line, or the object.
fn run(strategy: &Strategy, mut object: Value, old: Option<&Value>) -> Result<Value, String> {
    (strategy.default)(&mut object);
    (strategy.prepare)(&mut object, old);
    let errors = (strategy.validate)(&object, old);
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    if lines.is_empty() { Ok(object) } else { Err(lines.join("\n")) }
}

/// The object that creating a manifest makes.
fn created(object: Value) -> Value {
    run(&kind_of(&object).strategy, object, None).expect("a manifest without errors")
}

fn status_strategy(kind: &Kind) -> &Strategy {
    strategy_of(kind, "status")
}

/// The strategy of a sub-resource that has its own.
fn strategy_of<'a>(kind: &'a Kind, name: &str) -> &'a Strategy {
    let mut own = kind.subresources.iter().filter(|sub| sub.name == name).filter_map(|sub| match &sub.action {
        Action::Own(strategy) => Some(strategy),
        _ => None,
    });
    own.next().expect("the kind has this sub-resource")
}

fn errors(result: Result<Value, String>) -> String {
    result.err().unwrap_or_else(|| "no errors".to_owned())
}

/// The errors of creating a manifest.
fn check(manifest: &str, expect: Expect) {
    let object = yaml(manifest);
    expect.assert_eq(&errors(run(&kind_of(&object).strategy, object, None)));
}

/// The errors of replacing what one manifest made by another.
fn check_update(old: &str, new: &str, expect: Expect) {
    let old = created(yaml(old));
    expect.assert_eq(&errors(run(&kind_of(&old).strategy, yaml(new), Some(&old))));
}

/// The warnings that creating a manifest gives.
fn check_warnings(manifest: &str, expect: Expect) {
    let object = created(yaml(manifest));
    expect.assert_eq(&(kind_of(&object).strategy.warnings)(&object, None).join("\n"));
}

/// One part of what a manifest becomes, as YAML.
fn check_part(manifest: &str, pointer: &str, expect: Expect) {
    let object = created(yaml(manifest));
    let part = object.pointer(pointer).unwrap_or(&Value::Null);
    expect.assert_eq(&api::yaml::to_string(part));
}

/// Puts `patch` over `base`: objects are merged, everything else replaced.
fn merge(base: &mut Value, patch: Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, patch) => *base = patch,
    }
}
