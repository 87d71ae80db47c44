//! Namespaces that are being deleted: everything in them goes first, pods before all else.
//!
//! Source: kubernetes `pkg/controller/namespace/deletion/{namespaced_resources_deleter,status_condition_utils}.go`.

use std::collections::BTreeMap;

use api::key::{GroupResource, Key};
use client::informer::Delta;
use client::{Propagation, Resource};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::Served;
use crate::action::{Action, Deletion, Notes};
use crate::shell::{Controller, Run};
use crate::views::Views;

/// The finalizer in a namespace's specification that stands for its content.
const FINALIZER: &str = "kubernetes";

/// What the decision about one namespace rests on.
pub struct Observed {
    pub namespace: Namespace,
    pub content: Vec<Item>,
    /// The resources whose view does not yet show the deletion of the namespace: objects may be missing from `content`.
    pub lagging: Vec<Resource>,
    pub revision: u64,
    /// Why something could not be deleted the last time.
    pub failure: Option<String>,
    pub now: Timestamp,
}

/// One object in the namespace.
#[derive(Clone, Debug)]
pub struct Item {
    pub of: Resource,
    pub name: String,
    pub uid: String,
    pub is_deleting: bool,
    pub finalizers: Vec<String>,
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    let namespace = &observed.namespace;
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
    if namespace.metadata.deletion_timestamp.is_none() || !finalizers.iter().any(|name| name == FINALIZER) {
        return Vec::new();
    }
    let pods = observed.content.iter().filter(|item| &*item.of.resource.resource == "pods");
    let pods: Vec<&Item> = pods.collect();
    let has_pods = !pods.is_empty();
    let doomed = if has_pods { pods } else { observed.content.iter().collect() };
    let mut actions: Vec<Action> =
        doomed.iter().filter(|item| !item.is_deleting).map(|item| delete(namespace, item)).collect();
    if observed.content.is_empty() && observed.lagging.is_empty() {
        actions.push(finalize(namespace, finalizers));
        return actions;
    }
    let remaining: Vec<&Item> = doomed.into_iter().filter(|item| item.is_deleting && !has_pods).collect();
    let report = report(observed, &remaining);
    // What failed before may fail again, and must be reported.
    if observed.failure.is_some() {
        actions.splice(0..0, report);
    } else {
        actions.extend(report);
    }
    let revision = observed.revision;
    actions.extend(observed.lagging.iter().map(|of| Action::Await { of: of.clone(), revision }));
    actions
}

fn delete(namespace: &Namespace, item: &Item) -> Action {
    Action::Delete {
        of: item.of.clone(),
        namespace: namespace.metadata.name.clone().unwrap_or_default(),
        name: item.name.clone(),
        uid: item.uid.clone(),
        how: Deletion { propagation: Some(Propagation::Background), ..Deletion::default() },
        notes: Notes::none(),
    }
}

fn finalize(namespace: &Namespace, finalizers: Vec<String>) -> Action {
    let mut object = json!(namespace);
    object["spec"]["finalizers"] = finalizers.into_iter().filter(|name| name != FINALIZER).collect();
    Action::Update { of: Resource::of::<Namespace>(), subresource: Some("finalize"), object }
}

/// Writes the phase and the conditions if they are not what they should be.
fn report(observed: &Observed, remaining: &[&Item]) -> Option<Action> {
    let before = observed.namespace.status.clone().unwrap_or_default();
    let mut conditions = before.conditions.clone().unwrap_or_default();
    for wanted in conditions_for(observed, remaining) {
        match conditions.iter_mut().find(|condition| condition.type_ == wanted.type_) {
            None => conditions.push(wanted),
            Some(current) => {
                let since = if current.status == wanted.status { current.last_transition_time.clone() } else { None };
                let since = since.or_else(|| wanted.last_transition_time.clone());
                *current = NamespaceCondition { last_transition_time: since, ..wanted };
            }
        }
    }
    let mut status = before.clone();
    status.phase = Some("Terminating".to_owned());
    status.conditions = Some(conditions);
    let object = json!(Namespace { status: Some(status.clone()), ..observed.namespace.clone() });
    let update = Action::Update { of: Resource::of::<Namespace>(), subresource: Some("status"), object };
    (status != before).then_some(update)
}

fn conditions_for(observed: &Observed, remaining: &[&Item]) -> Vec<NamespaceCondition> {
    let mut by_resource: BTreeMap<String, usize> = BTreeMap::new();
    let mut by_finalizer: BTreeMap<&str, usize> = BTreeMap::new();
    for item in remaining {
        let resource = &item.of.resource;
        *by_resource.entry(format!("{}.{}", resource.resource, resource.group)).or_default() += 1;
        for finalizer in &item.finalizers {
            *by_finalizer.entry(finalizer).or_default() += 1;
        }
    }
    let resources = by_resource.iter().map(|(resource, count)| format!("{resource} has {count} resource instances"));
    let finalizers = by_finalizer.iter().map(|(name, count)| format!("{name} in {count} resource instances"));
    let listed =
        |prefix: &str, parts: Vec<String>| (!parts.is_empty()).then(|| format!("{prefix}: {}", parts.join(", ")));
    let failure = observed.failure.as_ref();
    let failure = failure.map(|error| format!("Failed to delete all resource types, 1 remaining: {error}"));
    let condition = |kind: &str, bad: Option<(&str, String)>, good: (&str, &str)| {
        let status = if bad.is_some() { "True" } else { "False" };
        let (reason, message) = bad.unwrap_or_else(|| (good.0, good.1.to_owned()));
        NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(observed.now)),
        }
    };
    vec![
        condition(
            "NamespaceDeletionDiscoveryFailure",
            None,
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        condition(
            "NamespaceDeletionContentFailure",
            failure.map(|message| ("ContentDeletionFailed", message)),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        condition(
            "NamespaceContentRemaining",
            listed("Some resources are remaining", resources.collect()).map(|message| ("SomeResourcesRemain", message)),
            ("ContentRemoved", "All content successfully removed"),
        ),
        condition(
            "NamespaceFinalizersRemaining",
            listed("Some content in the namespace has finalizers remaining", finalizers.collect())
                .map(|message| ("SomeFinalizersRemain", message)),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ]
}

/// Observes namespaces and everything in them for the shell.
pub struct Namespaces {
    /// Every namespaced resource that can be deleted.
    pub resources: Vec<Resource>,
}

impl Namespaces {
    pub fn new(served: &[Served]) -> Self {
        let deletable = served.iter().filter(|served| served.is_namespaced && served.is_deletable);
        Self { resources: deletable.map(|served| served.resource.clone()).collect() }
    }
}

impl Controller for Namespaces {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        let namespaces = Resource::of::<Namespace>().resource;
        self.resources.iter().map(|resource| resource.resource.clone()).chain([namespaces]).collect()
    }

    fn affected(&self, delta: &Delta, views: &Views) -> Vec<Key> {
        let namespaces = Resource::of::<Namespace>().resource;
        let key = if delta.key.group_resource() == namespaces {
            delta.key.clone()
        } else {
            Key::new(&namespaces, "", delta.key.namespace())
        };
        let is_deleting = views.of::<Namespace>().get(&key).is_some_and(|namespace| namespace.meta().is_deleting());
        if is_deleting { vec![key] } else { Vec::new() }
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let Some(object) = run.views.of::<Namespace>().get(run.key) else { return Vec::new() };
        let (revision, is_deleting) = (object.revision, object.meta().is_deleting());
        let Some(namespace) = run.views.get::<Namespace>(run.key).filter(|_| is_deleting) else { return Vec::new() };
        let (mut content, mut lagging) = (Vec::new(), Vec::new());
        for of in &self.resources {
            let Some(view) = run.views.resource(&of.resource) else { continue };
            if view.revision() < revision {
                lagging.push(of.clone());
            }
            content.extend(view.in_namespace(run.key.name()).map(|object| {
                let meta = object.meta();
                Item {
                    of: of.clone(),
                    name: meta.name.clone(),
                    uid: meta.uid.clone(),
                    is_deleting: meta.is_deleting(),
                    finalizers: meta.finalizers.clone(),
                }
            }));
        }
        let failure = run.failure.map(str::to_owned);
        reconcile(&Observed { namespace, content, lagging, revision, failure, now: run.now })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, from_yaml, show};
    use expect_test::{Expect, expect};

    /// The content is one word per object: `resource/name`, `~` when it is being deleted, `:finalizer`.
    fn observed(content: &str) -> Observed {
        let item = |word: &str| {
            let (word, finalizer) = word.split_once(':').unwrap_or((word, ""));
            let (resource, name) = word.split_once('/').unwrap();
            Item {
                of: Resource { resource: GroupResource::owned("", resource), version: "v1" },
                name: name.trim_end_matches('~').to_owned(),
                uid: format!("u-{name}"),
                is_deleting: name.ends_with('~'),
                finalizers: finalizer.split_whitespace().map(str::to_owned).collect(),
            }
        };
        Observed {
            namespace: from_yaml(
                "{metadata: {name: web, deletionTimestamp: '2027-01-15T08:00:00Z'}, spec: {finalizers: [kubernetes]}, \
                 status: {phase: Terminating}}",
            ),
            content: content.split_whitespace().map(item).collect(),
            lagging: Vec::new(),
            revision: 9,
            failure: None,
            now: at(0),
        }
    }

    /// The decisions, with the conditions that are true in place of the whole status.
    fn check(observed: &Observed, expected: Expect) {
        let brief = |action: &Action| match action {
            Action::Update { object, subresource: Some("status"), .. } => {
                let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let bad = conditions.iter().filter(|condition| condition["status"] == "True");
                let bad: Vec<&str> = bad.filter_map(|condition| condition["message"].as_str()).collect();
                format!("status {bad:?}")
            }
            other => show(std::slice::from_ref(other)),
        };
        expected.assert_eq(&reconcile(observed).iter().map(brief).collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn pods_go_before_everything_else() {
        check(
            &observed("configmaps/a pods/b pods/c~"),
            expect![[r#"
                delete pods b Background
                status []"#]],
        );
    }

    #[test]
    fn then_everything_goes() {
        check(
            &observed("configmaps/a secrets/b"),
            expect![[r#"
                delete configmaps a Background
                delete secrets b Background
                status []"#]],
        );
    }

    #[test]
    fn what_does_not_go_is_named() {
        check(
            &observed("configmaps/a~:x/y configmaps/b~"),
            expect![[
                r#"status ["Some resources are remaining: configmaps. has 2 resource instances", "Some content in the namespace has finalizers remaining: x/y in 1 resource instances"]"#
            ]],
        );
    }

    #[test]
    fn an_empty_namespace_is_finalized() {
        check(&observed(""), expect!["update namespaces web finalize"]);
    }

    #[test]
    fn nothing_is_final_before_every_view_shows_the_deletion() {
        let mut seen = observed("");
        seen.lagging = vec![Resource::new("", "v1", "configmaps")];
        check(
            &seen,
            expect![[r#"
                status []
                await configmaps at 9"#]],
        );
    }

    #[test]
    fn a_namespace_that_lives_is_left_alone() {
        let mut seen = observed("pods/a");
        seen.namespace.metadata.deletion_timestamp = None;
        check(&seen, expect![""]);
    }
}
