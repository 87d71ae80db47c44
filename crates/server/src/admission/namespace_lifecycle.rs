//! Objects are created only in namespaces that exist and stay; three namespaces cannot be deleted.
//!
//! Source: apiserver `pkg/admission/plugin/namespace/lifecycle/admission.go`.

use api::key::{GroupResource, Key};
use api::status::{Cause, Status};
use serde_json::Value;

use crate::admit::{AdmissionAttributes, Operation, Plugin};
use crate::identity::BoxFuture;

const NAMESPACES: GroupResource = GroupResource::new("", "namespaces");
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

impl NamespaceLifecycle {
    fn check(at: &AdmissionAttributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        if *at.resource() == NAMESPACES {
            if at.operation == Operation::Delete && IMMORTAL.contains(&at.name) {
                return Err(Status::forbidden(at.resource(), at.name, "this namespace may not be deleted"));
            }
            return Ok(());
        }
        let asks_for_access = at.resource().group == "authorization.k8s.io";
        if at.namespace.is_empty() || at.operation != Operation::Create || asks_for_access {
            return Ok(());
        }
        let namespace = at.snapshot.get(&Key::new(&NAMESPACES, "", at.namespace));
        let namespace = namespace.ok_or_else(|| Status::not_found(&NAMESPACES, at.namespace))?;
        if !namespace.meta().is_deleting() && namespace.outline()["status"]["phase"] != "Terminating" {
            return Ok(());
        }
        let name = at.namespace;
        let why = format!("unable to create new content in namespace {name} because it is being terminated");
        let mut status = at.forbidden(object, why);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {name} is being terminated"),
                field: "metadata.namespace".to_owned(),
            });
        }
        Err(status)
    }
}

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn admit<'a>(
        &'a self,
        at: &'a AdmissionAttributes<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move { Self::check(at, Some(object)) })
    }

    fn validate<'a>(
        &'a self,
        at: &'a AdmissionAttributes<'a>,
        object: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move { Self::check(at, object) })
    }
}
