//! The ConfigMap `kube-root-ca.crt` in every namespace, by which pods know the API server.
//!
//! Source: kubernetes `pkg/controller/certificates/rootcacertpublisher/publisher.go`.

use api::key::{GroupResource, Key};
use client::informer::Delta;
use client::{BoxFuture, Resource};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use serde_json::json;
use tokio::sync::watch;

use crate::action::{Action, Notes};
use crate::service_account::{is_active, namespace_of};
use crate::shell::{Controller, Run};
use crate::views::Views;

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
/// The words are upstream's: tools compare them.
const DESCRIBED: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
    such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
    Kubernetes clusters.";

pub struct Observed<'a> {
    pub namespace: &'a str,
    pub is_active: bool,
    pub published: Option<ConfigMap>,
    /// PEM.
    pub root_ca: &'a str,
}

pub fn reconcile(observed: &Observed<'_>) -> Vec<Action> {
    if !observed.is_active {
        return Vec::new();
    }
    let of = Resource::of::<ConfigMap>();
    let Some(published) = &observed.published else {
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": observed.namespace, "annotations": {DESCRIPTION: DESCRIBED}},
            "data": {FILE: observed.root_ca},
        });
        let namespace = observed.namespace.to_owned();
        return vec![Action::Create { of, namespace, object, copies: 1, notes: Notes::none() }];
    };
    let annotations = published.metadata.annotations.as_ref();
    let described = annotations.and_then(|all| all.get(DESCRIPTION)).is_some_and(|text| !text.is_empty());
    let data = published.data.as_ref();
    let current =
        data.is_some_and(|data| data.len() == 1 && data.get(FILE).map(String::as_str) == Some(observed.root_ca));
    if current && described {
        return Vec::new();
    }
    let mut repaired = published.clone();
    repaired.data = Some([(FILE.to_owned(), observed.root_ca.to_owned())].into());
    repaired.metadata.annotations.get_or_insert_default().insert(DESCRIPTION.to_owned(), DESCRIBED.to_owned());
    vec![Action::Update { of, subresource: None, object: json!(repaired) }]
}

pub struct RootCas {
    /// PEM.
    pub root_ca: watch::Receiver<String>,
}

impl Controller for RootCas {
    fn name(&self) -> &'static str {
        "root-ca-cert-publisher"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        vec![Resource::of::<Namespace>().resource, Resource::of::<ConfigMap>().resource]
    }

    fn affected(&self, delta: &Delta, _: &Views) -> Vec<Key> {
        namespace_of(delta, NAME).into_iter().collect()
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let namespace = run.key.name();
        let published = Key::new(&Resource::of::<ConfigMap>().resource, namespace, NAME);
        reconcile(&Observed {
            namespace,
            is_active: is_active(run),
            published: run.views.get(&published),
            root_ca: &self.root_ca.borrow(),
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        let mut root_ca = self.root_ca.clone();
        // Before any key runs again: what is sent from here on is a change.
        root_ca.mark_unchanged();
        Box::pin(async move {
            if root_ca.changed().await.is_err() {
                // Nobody can renew it any more.
                std::future::pending::<()>().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{from_yaml, show};
    use expect_test::{Expect, expect};

    fn check(published: Option<&str>, expected: Expect) {
        let published = published.map(from_yaml);
        expected.assert_eq(&show(&reconcile(&Observed {
            namespace: "web",
            is_active: true,
            published,
            root_ca: "PEM",
        })));
    }

    #[test]
    fn publishes_the_certificate() {
        check(None, expect!["create 1 configmaps kube-root-ca.crt"]);
    }

    #[test]
    fn leaves_a_good_one_alone() {
        let good =
            "{metadata: {name: kube-root-ca.crt, annotations: {kubernetes.io/description: x}}, data: {ca.crt: PEM}}";
        check(Some(good), expect![""]);
    }

    #[test]
    fn repairs_what_somebody_changed() {
        let bad =
            "{metadata: {name: kube-root-ca.crt, annotations: {kubernetes.io/description: x}}, data: {ca.crt: old}}";
        check(Some(bad), expect!["update configmaps kube-root-ca.crt"]);
        let more = "{metadata: {name: kube-root-ca.crt, annotations: {kubernetes.io/description: x}}, data: {ca.crt: PEM, b: c}}";
        check(Some(more), expect!["update configmaps kube-root-ca.crt"]);
    }
}
