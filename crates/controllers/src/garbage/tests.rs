//! Owners and dependents in all states.

use api::object::Draft;
use expect_test::{Expect, expect};

use super::*;
use crate::testing::show;

fn pods() -> Served {
    Served {
        resource: Resource::new("", "v1", "pods"),
        kind: "Pod".to_owned(),
        is_namespaced: true,
        is_deletable: true,
    }
}

fn object(name: &str, marks: &str) -> Arc<Object> {
    let mut metadata = json!({"name": name, "namespace": "web", "uid": format!("u-{name}")});
    if marks.contains('~') {
        metadata["deletionTimestamp"] = json!("2027-01-15T08:00:00Z");
    }
    let finalizers: Vec<&str> = [('f', FOREGROUND), ('o', ORPHAN)]
        .into_iter()
        .filter(|(mark, _)| marks.contains(*mark))
        .map(|(_, name)| name)
        .collect();
    metadata["finalizers"] = json!(finalizers);
    let key = Key::new(&GroupResource::new("", "pods"), "web", name);
    Draft::new(key, json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata})).unwrap().commit(5)
}

/// Owners by one letter each: `l`ives, `w`aits, `g`one, `e`lsewhere, `i`mpossible, `n`ot seen, `u`nknown.
fn observed(marks: &str, owners: &str, dependents: &str) -> Observed {
    let owner = |letter: char| {
        let living =
            Living { of: pods().resource, namespace: "web".into(), name: "o".into(), uid: format!("u-{letter}") };
        let state = match letter {
            'l' => OwnerState::Lives,
            'w' => OwnerState::Waits,
            'g' => OwnerState::Gone(living),
            'e' => OwnerState::Elsewhere(living),
            'i' => OwnerState::Impossible,
            'n' => OwnerState::NotSeen(pods().resource),
            _ => OwnerState::Unknown,
        };
        let reference = OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: "o".into(),
            uid: format!("u-{letter}"),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        };
        Owner { reference, state }
    };
    let dependent =
        |word: &str| Dependent { of: pods(), object: object(&word[..1], &word[1..]), blocks: word.contains('b') };
    Observed {
        of: pods(),
        object: object("x", marks),
        owners: owners.chars().map(owner).collect(),
        dependents: dependents.split_whitespace().map(dependent).collect(),
        lagging: Vec::new(),
    }
}

fn check(observed: &Observed, expected: Expect) {
    expected.assert_eq(&show(&reconcile(observed)));
}

#[test]
fn what_has_a_living_owner_or_none_stays() {
    check(&observed("", "l", ""), expect![""]);
    check(&observed("", "", ""), expect![""]);
}

#[test]
fn what_all_owners_have_left_is_deleted() {
    check(&observed("", "g", ""), expect!["delete pods x Background"]);
    check(&observed("o", "g", ""), expect!["delete pods x Orphan"]);
}

#[test]
fn the_owner_is_looked_up_again_before_the_deletion() {
    let actions = reconcile(&observed("", "g", ""));
    let [Action::Delete { how, uid, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!((how.absent.len(), how.revision, uid.as_str()), (1, Some(5), "u-x"));
}

#[test]
fn references_to_gone_owners_are_removed_while_another_lives() {
    check(
        &observed("", "lgw", ""),
        expect![[
            r#"patch pods x {"metadata":{"ownerReferences":[{"$patch":"delete","uid":"u-g"},{"$patch":"delete","uid":"u-w"}],"uid":"u-x"}}"#
        ]],
    );
}

#[test]
fn dependents_of_a_waiting_owner_go_in_the_foreground_if_they_have_dependents() {
    check(&observed("", "w", ""), expect!["delete pods x Background"]);
    check(&observed("", "w", "d"), expect!["delete pods x Foreground"]);
}

#[test]
fn circles_are_broken() {
    check(
        &observed("", "w", "d~f"),
        expect![[r#"
            patch pods x {"metadata":{"ownerReferences":[{"blockOwnerDeletion":false,"uid":"u-w"}],"uid":"u-x"}}
            delete pods x Foreground"#]],
    );
}

#[test]
fn a_foreground_deletion_waits_for_what_blocks_it() {
    check(&observed("~f", "", "db e"), expect![""]);
    check(&observed("~f", "", "e"), expect![[r#"patch pods x {"metadata":{"finalizers":[],"resourceVersion":"5"}}"#]]);
}

#[test]
fn a_foreground_deletion_waits_for_views_that_may_miss_a_dependent() {
    let mut seen = observed("~f", "", "");
    seen.lagging = vec![pods().resource];
    check(&seen, expect!["await pods at 5"]);
}

#[test]
fn orphaning_frees_the_dependents_and_then_the_object() {
    check(
        &observed("~o", "", "d"),
        expect![[r#"
            patch pods d {"metadata":{"ownerReferences":[{"$patch":"delete","uid":"u-x"}],"uid":"u-d"}}
            patch pods x {"metadata":{"finalizers":[],"resourceVersion":"5"}}"#]],
    );
}

#[test]
fn an_owner_in_another_namespace_is_none_and_an_event_says_so() {
    check(
        &observed("", "e", ""),
        expect![[r#"
            event Pod x Warning OwnerRefInvalidNamespace: ownerRef [v1/Pod, namespace: web, name: o, uid: u-e] does not exist in namespace "web"
            delete pods x Background"#]],
    );
}

#[test]
fn nothing_is_deleted_on_doubt() {
    check(&observed("", "u", ""), expect![""]);
    check(&observed("", "gn", ""), expect!["await pods at 5"]);
    let actions = reconcile(&observed("", "i", ""));
    assert!(matches!(actions.as_slice(), [Action::Event { .. }]), "{actions:?}");
}
