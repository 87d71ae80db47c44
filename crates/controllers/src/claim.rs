//! Which objects a controller owns, adopts and lets go, by its selector and their controller references.
//!
//! Source: kubernetes `pkg/controller/controller_ref_manager.go`.

use api::selector::Selector;
use client::typed::Typed;
use client::{PatchType, Resource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use crate::action::{Action, Living, Notes};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Owned and selected.
    Keep,
    /// Selected, and nobody's.
    Adopt,
    /// Owned, but not selected any more.
    Release,
    Ignore,
}

/// Decides about one object in the owner's namespace.
pub fn claim(owner: &ObjectMeta, selector: &Selector, object: &ObjectMeta) -> Claim {
    let selected = selector.matches(object.labels.as_ref().unwrap_or(&Default::default()));
    let owner_lives = owner.deletion_timestamp.is_none();
    match controller_of(object) {
        Some(controller) if Some(&controller.uid) != owner.uid.as_ref() => Claim::Ignore,
        Some(_) if selected => Claim::Keep,
        Some(_) if owner_lives => Claim::Release,
        None if owner_lives && selected && object.deletion_timestamp.is_none() => Claim::Adopt,
        Some(_) | None => Claim::Ignore,
    }
}

/// Keeps the objects that are claimed, and says what must be patched for it.
pub fn claim_all<O: Typed, K: Typed>(owner: &O, selector: &Selector, objects: Vec<K>) -> (Vec<K>, Vec<Action>) {
    let mut actions = Vec::new();
    let mut claimed = Vec::new();
    for object in objects {
        match claim(owner.metadata(), selector, object.metadata()) {
            Claim::Keep => claimed.push(object),
            Claim::Adopt => {
                actions.push(adopt(owner, &object));
                claimed.push(object);
            }
            Claim::Release => actions.push(release(owner, &object)),
            Claim::Ignore => {}
        }
    }
    (claimed, actions)
}

pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

pub fn is_controlled_by(meta: &ObjectMeta, owner: &ObjectMeta) -> bool {
    controller_of(meta).is_some_and(|controller| Some(&controller.uid) == owner.uid.as_ref())
}

/// The reference by which an object names its controller.
pub fn controller_reference<O: Typed>(owner: &O) -> OwnerReference {
    let meta = owner.metadata();
    OwnerReference {
        api_version: O::API_VERSION.to_owned(),
        kind: O::KIND.to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Parses an object's selector; one that is invalid selects nothing.
pub fn selector(of: &LabelSelector) -> Selector {
    let parsed = serde_json::to_value(of).ok().and_then(|value| Selector::from_json(&value).ok());
    parsed.unwrap_or_else(Selector::nothing)
}

fn adopt<O: Typed, K: Typed>(owner: &O, object: &K) -> Action {
    let meta = owner.metadata();
    let living = Living {
        of: Resource::of::<O>(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
    };
    patch_owners(object, json!([controller_reference(owner)]), Some(living))
}

fn release<O: Typed, K: Typed>(owner: &O, object: &K) -> Action {
    patch_owners(object, json!([{"$patch": "delete", "uid": owner.metadata().uid}]), None)
}

/// The uid in the patch is a precondition: it cannot be changed.
fn patch_owners<K: Typed>(object: &K, owners: Value, living: Option<Living>) -> Action {
    let meta = object.metadata();
    Action::Patch {
        of: Resource::of::<K>(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        subresource: None,
        kind: PatchType::Strategic,
        patch: json!({"metadata": {"uid": meta.uid, "ownerReferences": owners}}),
        living,
        notes: Notes::none(),
    }
}
