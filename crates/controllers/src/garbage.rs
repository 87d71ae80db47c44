//! Garbage collection: what all owners have left is deleted, and owners that are deleted in the foreground wait for it.
//!
//! Source: kubernetes `pkg/controller/garbagecollector/{garbagecollector,graph_builder,patch}.go`. Upstream keeps a graph
//! with guesses about owners it has not seen. One revision sequence over all resources makes that exact: when the view of
//! the owner's resource has reached the revision of the dependent and does not show the owner, the owner is gone.

use std::sync::Arc;

use api::key::{GroupResource, Key};
use api::meta::{Meta, OwnerReference};
use api::object::Object;
use client::events::reference;
use client::informer::Delta;
use client::{PatchType, Propagation, Resource};
use serde_json::{Value, json};

use crate::Served;
use crate::action::{Action, Deletion, Living, Note, Notes};
use crate::shell::{Controller, Run};
use crate::views::Views;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What the decision about one object rests on.
pub struct Observed {
    pub of: Served,
    pub object: Arc<Object>,
    pub owners: Vec<Owner>,
    /// The objects that name it as an owner, with their reference.
    pub dependents: Vec<Dependent>,
    /// Resources whose view is older than the object: dependents may be missing.
    pub lagging: Vec<Resource>,
}

/// One of the object's owner references, and what became of it.
#[derive(Clone, Debug)]
pub struct Owner {
    pub reference: OwnerReference,
    pub state: OwnerState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerState {
    Lives,
    /// It is being deleted in the foreground, and waits for its dependents.
    Waits,
    /// It does not exist; to be looked up once more before anything is deleted.
    Gone(Living),
    /// It exists in another namespace only.
    Elsewhere(Living),
    /// A cluster-scoped object cannot be owned by one in a namespace.
    Impossible,
    /// Its view is older than the dependent.
    NotSeen(Resource),
    /// This server has no such kind: somebody else may.
    Unknown,
}

pub struct Dependent {
    pub of: Served,
    pub object: Arc<Object>,
    pub blocks: bool,
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    let meta = observed.object.meta();
    let has = |finalizer: &str| meta.finalizers.iter().any(|name| name == finalizer);
    if meta.is_deleting() {
        let dependents_are_settled = if has(ORPHAN) {
            let mut actions: Vec<Action> =
                observed.dependents.iter().map(|dependent| orphan(dependent, meta)).collect();
            actions.extend(wait_or(observed, || remove_finalizer(observed, ORPHAN)));
            return actions;
        } else {
            has(FOREGROUND) && !observed.dependents.iter().any(|dependent| dependent.blocks)
        };
        if dependents_are_settled {
            return wait_or(observed, || remove_finalizer(observed, FOREGROUND));
        }
        return Vec::new();
    }
    let mut actions: Vec<Action> =
        observed.owners.iter().filter_map(|owner| invalid_namespace(observed, owner)).collect();
    let not_seen = observed.owners.iter().filter_map(|owner| match &owner.state {
        OwnerState::NotSeen(of) => Some(Action::Await { of: of.clone(), revision: observed.object.revision }),
        _ => None,
    });
    let not_seen: Vec<Action> = not_seen.collect();
    let is_unsure = observed
        .owners
        .iter()
        .any(|owner| matches!(owner.state, OwnerState::Unknown | OwnerState::Impossible | OwnerState::NotSeen(_)));
    actions.extend(not_seen);
    if observed.owners.is_empty() || is_unsure {
        return actions;
    }
    actions.extend(collect(observed));
    actions
}

/// Decides about an object whose owners are all accounted for.
fn collect(observed: &Observed) -> Vec<Action> {
    let (mut lives, mut waits, mut gone) = (false, Vec::new(), Vec::new());
    let mut absent = Vec::new();
    for owner in &observed.owners {
        match &owner.state {
            OwnerState::Lives => lives = true,
            OwnerState::Waits => waits.push(owner.reference.uid.clone()),
            OwnerState::Gone(living) | OwnerState::Elsewhere(living) => {
                gone.push(owner.reference.uid.clone());
                absent.push(living.clone());
            }
            OwnerState::Impossible | OwnerState::NotSeen(_) | OwnerState::Unknown => {}
        }
    }
    if lives {
        let leaving: Vec<String> = gone.into_iter().chain(waits).collect();
        return if leaving.is_empty() {
            Vec::new()
        } else {
            vec![forget_owners(&observed.of, &observed.object, &leaving)]
        };
    }
    let finalizers = &observed.object.meta().finalizers;
    let has = |finalizer: &str| finalizers.iter().any(|name| name == finalizer);
    let mut actions = Vec::new();
    let propagation = if !waits.is_empty() && !observed.dependents.is_empty() {
        let in_circle = observed.dependents.iter().any(|dependent| {
            let meta = dependent.object.meta();
            meta.is_deleting() && meta.finalizers.iter().any(|name| name == FOREGROUND)
        });
        if in_circle {
            actions.push(unblock(observed));
        }
        Propagation::Foreground
    } else if has(ORPHAN) {
        Propagation::Orphan
    } else if has(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    let meta = observed.object.meta();
    // A patch just before changes the revision; the uid remains as a precondition.
    let revision = actions.is_empty().then_some(observed.object.revision);
    actions.push(Action::Delete {
        of: observed.of.resource.clone(),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        how: Deletion { propagation: Some(propagation), revision, absent, ..Deletion::default() },
        notes: Notes::none(),
    });
    actions
}

fn wait_or(observed: &Observed, then: impl FnOnce() -> Action) -> Vec<Action> {
    if observed.lagging.is_empty() {
        return vec![then()];
    }
    let revision = observed.object.revision;
    observed.lagging.iter().map(|of| Action::Await { of: of.clone(), revision }).collect()
}

fn patch(of: &Served, object: &Object, kind: PatchType, patch: Value) -> Action {
    Action::Patch {
        of: of.resource.clone(),
        namespace: object.meta().namespace.clone(),
        name: object.meta().name.clone(),
        subresource: None,
        kind,
        patch,
        living: None,
        notes: Notes::none(),
    }
}

fn orphan(dependent: &Dependent, owner: &Meta) -> Action {
    forget_owners(&dependent.of, &dependent.object, std::slice::from_ref(&owner.uid))
}

fn forget_owners(of: &Served, object: &Object, uids: &[String]) -> Action {
    let gone: Vec<Value> = uids.iter().map(|uid| json!({"$patch": "delete", "uid": uid})).collect();
    let change = json!({"metadata": {"uid": object.meta().uid, "ownerReferences": gone}});
    patch(of, object, PatchType::Strategic, change)
}

/// Lets the owners of the object go before it, so that a circle of foreground deletions ends.
fn unblock(observed: &Observed) -> Action {
    let references = observed.owners.iter().map(|owner| &owner.reference);
    let blocking = references.filter(|reference| reference.block_owner_deletion == Some(true));
    let freed: Vec<Value> =
        blocking.map(|reference| json!({"uid": reference.uid, "blockOwnerDeletion": false})).collect();
    let change = json!({"metadata": {"uid": observed.object.meta().uid, "ownerReferences": freed}});
    patch(&observed.of, &observed.object, PatchType::Strategic, change)
}

fn remove_finalizer(observed: &Observed, finalizer: &str) -> Action {
    let kept: Vec<&String> = observed.object.meta().finalizers.iter().filter(|name| *name != finalizer).collect();
    let revision = observed.object.revision.to_string();
    let change = json!({"metadata": {"resourceVersion": revision, "finalizers": kept}});
    patch(&observed.of, &observed.object, PatchType::Merge, change)
}

fn invalid_namespace(observed: &Observed, owner: &Owner) -> Option<Action> {
    if !matches!(owner.state, OwnerState::Elsewhere(_) | OwnerState::Impossible) {
        return None;
    }
    let (meta, owner) = (observed.object.meta(), &owner.reference);
    let named = format!(
        "[{}/{}, namespace: {}, name: {}, uid: {}]",
        owner.api_version, owner.kind, meta.namespace, owner.name, owner.uid
    );
    let message = format!("ownerRef {named} does not exist in namespace {:?}", meta.namespace);
    let about = reference(&observed.of.api_version(), &observed.of.kind, meta);
    Some(Action::Event { about: Box::new(about), note: Note::warning("OwnerRefInvalidNamespace", message) })
}

/// Observes every object of every kind for the shell.
pub struct Garbage {
    served: Vec<Served>,
}

impl Garbage {
    /// Events are left out: they have no owners, and there are many.
    pub fn new(served: &[Served]) -> Self {
        let served =
            served.iter().filter(|served| served.is_deletable && &*served.resource.resource.resource != "events");
        Self { served: served.cloned().collect() }
    }

    fn of(&self, resource: &GroupResource) -> Option<&Served> {
        self.served.iter().find(|served| served.resource.resource == *resource)
    }

    fn of_owner(&self, owner: &OwnerReference) -> Option<&Served> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        self.served.iter().find(|served| served.kind == owner.kind && served.resource.resource.group == group)
    }

    fn owner_key(&self, owner: &OwnerReference, namespace: &str) -> Option<Key> {
        let of = self.of_owner(owner)?;
        let namespace = if of.is_namespaced { namespace } else { "" };
        Some(Key::new(&of.resource.resource, namespace, &owner.name))
    }

    fn owner_state(&self, reference: &OwnerReference, dependent: &Object, views: &Views) -> OwnerState {
        let Some(of) = self.of_owner(reference) else { return OwnerState::Unknown };
        let namespace = &dependent.meta().namespace;
        if of.is_namespaced && namespace.is_empty() {
            return OwnerState::Impossible;
        }
        let Some(view) = views.resource(&of.resource.resource) else { return OwnerState::Unknown };
        let namespace = if of.is_namespaced { namespace.as_str() } else { "" };
        let found = view.named(namespace, &reference.name).filter(|owner| owner.meta().uid == reference.uid);
        if let Some(owner) = found {
            let meta = owner.meta();
            let waits = meta.is_deleting() && meta.finalizers.iter().any(|name| name == FOREGROUND);
            return if waits { OwnerState::Waits } else { OwnerState::Lives };
        }
        if view.revision() < dependent.revision {
            return OwnerState::NotSeen(of.resource.clone());
        }
        let looked_for = Living {
            of: of.resource.clone(),
            namespace: namespace.to_owned(),
            name: reference.name.clone(),
            uid: reference.uid.clone(),
        };
        if view.iter().any(|object| object.meta().uid == reference.uid) {
            OwnerState::Elsewhere(looked_for)
        } else {
            OwnerState::Gone(looked_for)
        }
    }

    fn dependents(&self, uid: &str, views: &Views) -> Vec<Dependent> {
        let mut dependents = Vec::new();
        for of in &self.served {
            let Some(view) = views.resource(&of.resource.resource) else { continue };
            dependents.extend(view.owned_by(uid).map(|object| {
                let mut references = object.meta().owner_references.iter();
                let blocks = references.any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true));
                Dependent { of: of.clone(), object: object.clone(), blocks }
            }));
        }
        dependents
    }
}

impl Controller for Garbage {
    fn name(&self) -> &'static str {
        "garbage-collector-controller"
    }

    fn account(&self) -> &'static str {
        "generic-garbage-collector"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        self.served.iter().map(|served| served.resource.resource.clone()).collect()
    }

    fn affected(&self, delta: &Delta, views: &Views) -> Vec<Key> {
        let facts = |object: &Arc<Object>| {
            let meta = object.meta();
            (meta.uid.clone(), meta.is_deleting(), meta.owner_references.clone(), meta.finalizers.clone())
        };
        if delta.old.as_ref().map(facts) == delta.new.as_ref().map(facts) {
            return Vec::new();
        }
        let mut keys = Vec::new();
        for state in delta.states() {
            let meta = state.meta();
            let owners = meta.owner_references.iter();
            keys.extend(owners.filter_map(|owner| self.owner_key(owner, &meta.namespace)).filter(|key| {
                // Only an owner that waits is concerned by its dependents.
                let owner = views.resource(&key.group_resource()).and_then(|view| view.get(key));
                owner.is_some_and(|owner| owner.meta().is_deleting())
            }));
            let is_current = delta.new.as_ref().is_some_and(|new| new.meta().uid == meta.uid);
            if !is_current || meta.is_deleting() {
                keys.extend(self.dependents(&meta.uid, views).iter().map(|dependent| dependent.object.key().clone()));
            }
        }
        if delta.new.as_ref().is_some_and(|new| !new.meta().owner_references.is_empty() || new.meta().is_deleting()) {
            keys.push(delta.key.clone());
        }
        keys.sort();
        keys.dedup();
        keys
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let resource = run.key.group_resource();
        let Some(of) = self.of(&resource) else { return Vec::new() };
        let Some(object) = run.views.resource(&resource).and_then(|view| view.get(run.key)) else { return Vec::new() };
        let references = object.meta().owner_references.iter();
        let owners = references.map(|reference| Owner {
            reference: reference.clone(),
            state: self.owner_state(reference, object, run.views),
        });
        let lagging = self.served.iter().filter(|served| {
            let view = run.views.resource(&served.resource.resource);
            view.is_some_and(|view| view.revision() < object.revision)
        });
        reconcile(&Observed {
            of: of.clone(),
            object: object.clone(),
            owners: owners.collect(),
            dependents: self.dependents(&object.meta().uid, run.views),
            lagging: lagging.map(|served| served.resource.clone()).collect(),
        })
    }
}

#[cfg(test)]
mod tests;
