//! A pod takes its overhead, node selector and tolerations from its RuntimeClass, which must exist.
//!
//! Source: kubernetes `plugin/pkg/admission/runtimeclass/admission.go`.

use api::key::{GroupResource, Key};
use api::status::Status;
use serde_json::{Value, json};

use crate::admit::{AdmissionAttributes, Operation, Plugin};
use crate::identity::BoxFuture;

const CLASSES: GroupResource = GroupResource::new("node.k8s.io", "runtimeclasses");

pub struct RuntimeClass;

impl RuntimeClass {
    fn applies(at: &AdmissionAttributes<'_>) -> bool {
        at.is("", "pods") && at.operation == Operation::Create
    }

    /// The pod's class, `None` for a pod without one.
    fn of_pod(at: &AdmissionAttributes<'_>, pod: &Value) -> Result<Option<Value>, Status> {
        let name = pod["spec"]["runtimeClassName"].as_str().unwrap_or_default();
        if name.is_empty() {
            return Ok(None);
        }
        match at.snapshot.get(&Key::new(&CLASSES, "", name)) {
            Some(class) => Ok(Some(class.value().clone())),
            None => Err(at.forbidden(Some(pod), format!("pod rejected: RuntimeClass {name:?} not found"))),
        }
    }

    fn merge(at: &AdmissionAttributes<'_>, pod: &mut Value) -> Result<(), Status> {
        let Some(class) = Self::of_pod(at, pod)? else { return Ok(()) };
        let mut spec = pod["spec"].clone();
        set_overhead(&mut spec, &class).map_err(|why| at.forbidden(Some(pod), why))?;
        set_scheduling(&mut spec, &class["scheduling"]).map_err(|why| at.forbidden(Some(pod), why))?;
        pod["spec"] = spec;
        Ok(())
    }

    fn check(at: &AdmissionAttributes<'_>, pod: &Value) -> Result<(), Status> {
        let class = Self::of_pod(at, pod)?.unwrap_or_default();
        let (expected, found) = (&class["overhead"]["podFixed"], &pod["spec"]["overhead"]);
        if expected == found {
            return Ok(());
        }
        Err(at.forbidden(Some(pod), if class["overhead"].is_null() { WITHOUT } else { DIFFERENT }))
    }
}

const DIFFERENT: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
const WITHOUT: &str = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

fn set_overhead(spec: &mut Value, class: &Value) -> Result<(), String> {
    let fixed = &class["overhead"]["podFixed"];
    if fixed.is_null() {
        return Ok(());
    }
    let given = &spec["overhead"];
    if given.as_object().is_some_and(|given| !given.is_empty()) && given != fixed {
        return Err(DIFFERENT.to_owned());
    }
    spec["overhead"] = fixed.clone();
    Ok(())
}

fn set_scheduling(spec: &mut Value, scheduling: &Value) -> Result<(), String> {
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let own = &spec["nodeSelector"][key];
        if !own.is_null() && own != value {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(own)
            ));
        }
        spec["nodeSelector"][key] = value.clone();
    }
    let class = scheduling["tolerations"].as_array().into_iter().flatten();
    let own = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let mut merged = own;
    for toleration in class {
        if !merged.contains(toleration) {
            merged.push(toleration.clone());
        }
    }
    if !merged.is_empty() {
        spec["tolerations"] = json!(merged);
    }
    Ok(())
}

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn admit<'a>(
        &'a self,
        at: &'a AdmissionAttributes<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let outcome = if Self::applies(at) { Self::merge(at, object) } else { Ok(()) };
        Box::pin(async { outcome })
    }

    fn validate<'a>(
        &'a self,
        at: &'a AdmissionAttributes<'a>,
        object: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let outcome = match object {
            Some(pod) if Self::applies(at) => Self::check(at, pod),
            Some(_) | None => Ok(()),
        };
        Box::pin(async { outcome })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_merged_into_the_pod() {
        let class = json!({"overhead": {"podFixed": {"cpu": "10m"}}, "scheduling": {
            "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "a"}, {"key": "b"}]}});
        let mut spec = json!({"nodeSelector": {"zone": "x"}, "tolerations": [{"key": "b"}]});
        set_overhead(&mut spec, &class).unwrap();
        set_scheduling(&mut spec, &class["scheduling"]).unwrap();
        assert_eq!(
            spec,
            json!({"overhead": {"cpu": "10m"}, "nodeSelector": {"zone": "x", "disk": "ssd"},
                "tolerations": [{"key": "b"}, {"key": "a"}]})
        );
        spec["nodeSelector"]["disk"] = json!("hdd");
        let error = set_scheduling(&mut spec, &class["scheduling"]).unwrap_err();
        assert_eq!(
            error,
            "conflict: runtimeClass.scheduling.nodeSelector[disk] = ssd; pod.spec.nodeSelector[disk] = hdd"
        );
        spec["overhead"] = json!({"cpu": "1"});
        assert_eq!(set_overhead(&mut spec, &class).unwrap_err(), DIFFERENT);
    }
}
