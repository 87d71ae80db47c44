//! A pod's priority is that of its class; one class at most is the default.
//!
//! Source: kubernetes `plugin/pkg/admission/priority/admission.go`.

use api::key::{GroupResource, Key};
use api::status::Status;
use serde_json::{Value, json};

use crate::admit::{AdmissionAttributes, Operation, Plugin};
use crate::identity::BoxFuture;

const CLASSES: GroupResource = GroupResource::new("scheduling.k8s.io", "priorityclasses");

pub struct Priority;

impl Priority {
    fn admit_pod(at: &AdmissionAttributes<'_>, pod: &mut Value) -> Result<(), Status> {
        let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
        let (name, value, policy) = if name.is_empty() {
            default_class(at).unwrap_or((String::new(), 0, "PreemptLowerPriority".to_owned()))
        } else {
            let Some(class) = at.snapshot.get(&Key::new(&CLASSES, "", &name)) else {
                return Err(at.forbidden(Some(pod), format!("no PriorityClass with name {name} was found")));
            };
            let (value, policy) = of_class(&class.outline());
            (name, value, policy)
        };
        if let Some(given) = pod["spec"]["priority"].as_i64().filter(|given| *given != value) {
            let why = format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            );
            return Err(at.forbidden(Some(pod), why));
        }
        let given_policy = pod["spec"]["preemptionPolicy"].as_str().unwrap_or(&policy);
        if given_policy != policy {
            let why = format!(
                "the string value of PreemptionPolicy ({given_policy}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            );
            return Err(at.forbidden(Some(pod), why));
        }
        if !name.is_empty() {
            pod["spec"]["priorityClassName"] = json!(name);
        }
        pod["spec"]["priority"] = json!(value);
        pod["spec"]["preemptionPolicy"] = json!(policy);
        Ok(())
    }

    fn check_class(at: &AdmissionAttributes<'_>, class: &Value) -> Result<(), Status> {
        if class["globalDefault"] != true {
            return Ok(());
        }
        let name = class["metadata"]["name"].as_str().unwrap_or_default();
        match default_class(at) {
            Some((other, ..)) if other != name => Err(at.forbidden(
                Some(class),
                format!("PriorityClass {other} is already marked as default. Only one default can exist"),
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// The lowest one that calls itself the default, as upstream picks when there are several.
fn default_class(at: &AdmissionAttributes<'_>) -> Option<(String, i64, String)> {
    let prefix = Key::resource_prefix(&CLASSES);
    let defaults =
        at.snapshot.range(&prefix, None).map(|object| object.outline()).filter(|class| class["globalDefault"] == true);
    defaults
        .map(|class| {
            let (value, policy) = of_class(&class);
            (class["metadata"]["name"].as_str().unwrap_or_default().to_owned(), value, policy)
        })
        .min_by_key(|(_, value, _)| *value)
}

fn of_class(class: &Value) -> (i64, String) {
    let policy = class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
    (class["value"].as_i64().unwrap_or(0), policy.to_owned())
}

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn admit<'a>(
        &'a self,
        at: &'a AdmissionAttributes<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let is_new_pod = at.is("", "pods") && at.operation == Operation::Create;
        let outcome = if is_new_pod { Self::admit_pod(at, object) } else { Ok(()) };
        Box::pin(async { outcome })
    }

    fn validate<'a>(
        &'a self,
        at: &'a AdmissionAttributes<'a>,
        object: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let outcome = match object {
            Some(class) if at.is("scheduling.k8s.io", "priorityclasses") => Self::check_class(at, class),
            Some(_) | None => Ok(()),
        };
        Box::pin(async { outcome })
    }
}
