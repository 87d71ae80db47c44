//! LimitRange: what the containers and pods of a namespace may ask for, and what they get where they ask for nothing.
//!
//! Source: kubernetes `pkg/registry/core/limitrange/strategy.go`, `pkg/apis/core/v1/defaults.go`,
//! `pkg/apis/core/validation/validation.go` (`ValidateLimitRange`).

use std::collections::BTreeSet;

use api::field::Error;
use api::names;
use api::quantity::Quantity;
use serde_json::Value;

use crate::core::pod_support::refusal;
use crate::core::pod_validation::{is_extended, resource_name};
use crate::kind::{Kind, Strategy};
use crate::place::Place;
use crate::value::{default, is_empty, items_mut, object, remove, set, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare).validating(validate),
        create_on_update: true,
        ..Kind::namespaced("", "v1", "LimitRange", "limitranges").short(&["limits"])
    }
}

/// Of containers the greatest amount stands for the limit, the limit for the request, and the least for the request.
fn fill(range: &mut Value) {
    let Some(spec) = range.get_mut("spec") else { return };
    for limit in items_mut(spec.get_mut("limits")).filter(|limit| text(&limit["type"]) == "Container") {
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let amounts = limit[from].as_object().cloned().unwrap_or_default();
            let Some(list) = object(limit, to) else { continue };
            amounts.into_iter().for_each(|(name, amount)| default(list, &name, amount));
            if is_empty(list) {
                remove(limit, to);
            }
        }
    }
}

/// Without a name it gets one that nobody else has: its uid.
fn prepare(range: &mut Value, _old: Option<&Value>) {
    let Some(metadata) = range.get_mut("metadata").filter(|metadata| is_empty(&metadata["name"])) else { return };
    if let Some(uid) = metadata.get("uid").cloned() {
        set(metadata, "name", uid);
    }
}

const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

fn validate(range: &Value, _old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for limit in Place::root(range).child("spec").child("limits").items() {
        let kind = limit.child("type");
        let messages = names::is_qualified_name(kind.text());
        let standard = ["Pod", "Container", "PersistentVolumeClaim"].contains(&kind.text());
        if messages.is_empty() && !kind.text().contains('/') && !standard {
            errors.push(Error::invalid(&kind.path, kind.text(), "must be a standard limit type or fully qualified"));
        }
        kind.keep(names::is_qualified_name, &mut errors);
        if !seen.insert(kind.text()) {
            errors.push(kind.duplicate());
        }
        if standard && kind.is("PersistentVolumeClaim") {
            errors.push(refusal(&kind, "persistent volumes are not built"));
        }
        let mut resources = BTreeSet::new();
        for field in LISTS {
            let list = limit.child(field);
            if kind.is("Pod") && field.starts_with("default") {
                // What pods cannot have is not looked at any further.
                if !list.is_empty() {
                    errors.push(list.forbidden("may not be specified when `type` is 'Pod'"));
                }
                continue;
            }
            for (name, amount) in list.entries() {
                let mut found = Vec::new();
                if !kind.is("PersistentVolumeClaim") {
                    resource_name(name, &amount, &mut found);
                }
                // What is known of containers' resources holds for them alone.
                let is_of_container = ["Pod", "Container"].contains(&kind.text());
                found.retain(|error| is_of_container || error.detail != "must be a standard resource for containers");
                errors.extend(found);
                resources.insert(name);
            }
        }
        resources.into_iter().for_each(|name| relations(&limit, name, &mut errors));
    }
    errors
}

/// How the amounts of one resource stand to each other.
fn relations(limit: &Place<'_>, name: &str, errors: &mut Vec<Error>) {
    let amount =
        |list: &str| Quantity::from_json(&limit.value[list][name]).ok().filter(|_| !limit.value[list][name].is_null());
    let (min, max, fallback, request) = (amount("min"), amount("max"), amount("default"), amount("defaultRequest"));
    let mut at_most =
        |less: Option<Quantity>, more: Option<Quantity>, list: &str, shown: Option<Quantity>, words: [&str; 2]| {
            if let (Some(less), Some(more), Some(shown)) = (less, more, shown)
                && less > more
            {
                let detail = format!("{} value {less} is greater than {} value {more}", words[0], words[1]);
                errors.push(Error::invalid(&limit.path.child(list).key(name), shown.to_string(), detail));
            }
        };
    at_most(min, max, "min", min, ["min", "max"]);
    at_most(min, request, "defaultRequest", request, ["min", "default request"]);
    at_most(request, max, "defaultRequest", request, ["default request", "max"]);
    at_most(request, fallback, "defaultRequest", request, ["default request", "default limit"]);
    at_most(min, fallback, "default", min, ["min", "default"]);
    at_most(fallback, max, "default", max, ["default", "max"]);
    if let Some(ratio) = amount("maxLimitRequestRatio") {
        let path = limit.path.child("maxLimitRequestRatio").key(name);
        if ratio.millis() < 1000 {
            errors.push(Error::invalid(&path, ratio.to_string(), format!("ratio {ratio} is less than 1")));
        }
        if let (Some(min), Some(max)) = (min, max) {
            let greatest = max.millis() as f64 / min.millis() as f64;
            if ratio.millis() as f64 / 1000.0 > greatest {
                let detail = format!("ratio {ratio} is greater than max/min = {greatest:.6}");
                errors.push(Error::invalid(&path, ratio.to_string(), detail));
            }
        }
    }
    if let (Some(fallback), Some(request)) = (fallback, request)
        && is_extended(name)
        && fallback != request
    {
        let detail = format!("default value {fallback} must equal to defaultRequest value {request} in {name}");
        errors.push(Error::invalid(&limit.path.child("defaultRequest").key(name), request.to_string(), detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_greatest_amount_stands_for_what_is_not_said() {
        let mut range =
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
        fill(&mut range);
        let limit = &range["spec"]["limits"][0];
        assert_eq!(limit["default"], json!({"cpu": "2"}));
        assert_eq!(limit["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
    }

    #[test]
    fn amounts_must_not_contradict_each_other() {
        let range = json!({"spec": {"limits": [
            {"type": "Container", "min": {"cpu": "3"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"memory": "500m"}},
            {"type": "Pod", "default": {"cpu": "1"}},
            {"type": "Pod"},
        ]}});
        let errors: Vec<String> = validate(&range, None).iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than max value 2",
                "spec.limits[0].maxLimitRequestRatio[memory]: Invalid value: \"500m\": ratio 500m is less than 1",
                "spec.limits[1].default: Forbidden: may not be specified when `type` is 'Pod'",
                "spec.limits[2].type: Duplicate value: \"Pod\"",
            ]
        );
    }
}
