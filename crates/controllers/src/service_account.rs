//! The ServiceAccount `default` in every namespace.
//!
//! Source: kubernetes `pkg/controller/serviceaccount/serviceaccounts_controller.go`.

use api::key::{GroupResource, Key};
use client::Resource;
use client::informer::Delta;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use serde_json::json;

use crate::action::{Action, Notes};
use crate::shell::{Controller, Run};
use crate::views::Views;

const NAME: &str = "default";

pub struct Observed<'a> {
    pub namespace: &'a str,
    /// Whether the namespace exists and is not being deleted.
    pub is_active: bool,
    pub has_account: bool,
}

pub fn reconcile(observed: &Observed<'_>) -> Vec<Action> {
    if !observed.is_active || observed.has_account {
        return Vec::new();
    }
    let object = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": NAME, "namespace": observed.namespace},
    });
    let namespace = observed.namespace.to_owned();
    vec![Action::Create { of: Resource::of::<ServiceAccount>(), namespace, object, copies: 1, notes: Notes::none() }]
}

pub struct ServiceAccounts;

impl Controller for ServiceAccounts {
    fn name(&self) -> &'static str {
        "service-account-controller"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        vec![Resource::of::<Namespace>().resource, Resource::of::<ServiceAccount>().resource]
    }

    fn affected(&self, delta: &Delta, _: &Views) -> Vec<Key> {
        namespace_of(delta, NAME).into_iter().collect()
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let namespace = run.key.name();
        reconcile(&Observed {
            namespace,
            is_active: is_active(run),
            has_account: run.views.of::<ServiceAccount>().named(namespace, NAME).is_some(),
        })
    }
}

/// The namespace that changed, or the one in which the object `name` did.
pub fn namespace_of(delta: &Delta, name: &str) -> Option<Key> {
    let namespaces = Resource::of::<Namespace>().resource;
    if delta.key.group_resource() == namespaces {
        return Some(delta.key.clone());
    }
    (delta.key.name() == name).then(|| Key::new(&namespaces, "", delta.key.namespace()))
}

pub fn is_active(run: &Run<'_>) -> bool {
    run.views.of::<Namespace>().get(run.key).is_some_and(|namespace| !namespace.meta().is_deleting())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::show;
    use expect_test::{Expect, expect};

    fn check(is_active: bool, has_account: bool, expected: Expect) {
        expected.assert_eq(&show(&reconcile(&Observed { namespace: "web", is_active, has_account })));
    }

    #[test]
    fn creates_the_account_where_it_is_missing() {
        check(true, false, expect!["create 1 serviceaccounts default"]);
        check(true, true, expect![""]);
    }

    #[test]
    fn leaves_namespaces_alone_that_are_being_deleted() {
        check(false, false, expect![""]);
    }
}
