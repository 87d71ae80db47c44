//! Rollouts, step by step.

use expect_test::{Expect, expect};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::*;
use crate::claim::controller_reference;
use crate::testing::{at, from_yaml, show};

fn deployment(replicas: i32, image: &str) -> Deployment {
    from_yaml(&format!(
        "{{metadata: {{name: web, namespace: web, uid: u-web, generation: 2}}, spec: {{replicas: {replicas}, \
         progressDeadlineSeconds: 600, revisionHistoryLimit: 10, selector: {{matchLabels: {{app: web}}}}, \
         strategy: {{type: RollingUpdate, rollingUpdate: {{maxSurge: 25%, maxUnavailable: 25%}}}}, \
         template: {{metadata: {{labels: {{app: web}}}}, spec: {{containers: [{{name: c, image: {image}}}]}}}}}}}}"
    ))
}

/// A ReplicaSet of `image` with `wanted` replicas of which `available` are; `age` orders them.
fn set(deployment: &Deployment, image: &str, revision: i64, wanted: i32, available: i32) -> ReplicaSet {
    let mut of_image = deployment.clone();
    of_image.spec.template.spec.get_or_insert_default().containers[0].image = Some(image.to_owned());
    let mut set = revision::new_set(&of_image, None, revision);
    set.metadata.name = Some(format!("web-{image}"));
    set.metadata.uid = Some(format!("u-{image}"));
    set.metadata.generation = Some(1);
    set.metadata.resource_version = Some("7".to_owned());
    set.metadata.creation_timestamp = Some(Time(at(revision)));
    set.metadata.owner_references = Some(vec![controller_reference(deployment)]);
    set.spec.replicas = Some(wanted);
    set.status = Some(from_yaml(&format!(
        "{{replicas: {wanted}, readyReplicas: {available}, availableReplicas: {available}, observedGeneration: 1}}"
    )));
    set
}

fn observed(deployment: Deployment, sets: Vec<ReplicaSet>) -> Observed {
    Observed { deployment, sets, running: Vec::new(), taken: Vec::new(), failure: None, now: at(100) }
}

/// The decisions but for status, and whether one is written.
fn check(observed: &Observed, expected: Expect) {
    let shown = show(&reconcile(observed));
    let brief = shown.lines().map(|line| if line.starts_with("status ") { "status" } else { line });
    expected.assert_eq(&brief.collect::<Vec<_>>().join("\n"));
}

fn conditions(observed: &Observed) -> String {
    let actions = reconcile(observed);
    let status = actions.iter().find_map(|action| match action {
        Action::Update { object, .. } => Some(object["status"]["conditions"].clone()),
        _ => None,
    });
    let status = status.unwrap_or_default();
    let line = |condition: &serde_json::Value| {
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        format!("{}={} {}: {}", text("type"), text("status"), text("reason"), text("message"))
    };
    status.as_array().into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn creates_the_first_replica_set_in_full_size() {
    let seen = observed(deployment(3, "one"), Vec::new());
    check(
        &seen,
        expect![[r#"
            create 1 replicasets.apps web-5758b7489d
            status"#]],
    );
    let Some(Action::Create { object, notes, .. }) = reconcile(&seen).into_iter().next() else { panic!("creates") };
    assert_eq!(object["spec"]["replicas"], 3);
    assert_eq!(object["metadata"]["annotations"][revision::REVISION], "1");
    assert_eq!(object["metadata"]["annotations"][revision::MAXIMUM], "4");
    let (_, note) = notes.success().expect("announces it");
    assert_eq!(
        (note.reason, note.message.as_str()),
        ("ScalingReplicaSet", "Scaled up replica set web-5758b7489d from 0 to 3")
    );
    expect![[r#"
        Progressing=True NewReplicaSetCreated: Created new replica set "web-5758b7489d"
        Available=False MinimumReplicasUnavailable: Deployment does not have minimum availability."#]]
    .assert_eq(&conditions(&seen));
}

#[test]
fn a_new_template_starts_with_the_surge() {
    let deployment = deployment(4, "two");
    let old = set(&deployment, "one", 1, 4, 4);
    let seen = observed(deployment, vec![old]);
    let Some(Action::Create { object, .. }) = reconcile(&seen).into_iter().next() else { panic!("creates") };
    assert_eq!(
        (&object["spec"]["replicas"], &object["metadata"]["annotations"][revision::REVISION]),
        (&1.into(), &"2".into())
    );
}

#[test]
fn old_pods_go_as_far_as_availability_allows() {
    let deployment = deployment(4, "two");
    let sets = vec![set(&deployment, "one", 1, 4, 4), set(&deployment, "two", 2, 1, 0)];
    check(
        &observed(deployment, sets),
        expect![[r#"
        patch replicasets.apps web-one {"metadata":{"resourceVersion":"7"},"spec":{"replicas":3}}
        status"#]],
    );
}

#[test]
fn the_new_set_grows_into_the_room() {
    let deployment = deployment(4, "two");
    let sets = vec![set(&deployment, "one", 1, 3, 3), set(&deployment, "two", 2, 1, 1)];
    check(
        &observed(deployment, sets),
        expect![[r#"
        patch replicasets.apps web-two {"metadata":{"resourceVersion":"7"},"spec":{"replicas":2}}
        status"#]],
    );
}

#[test]
fn unhealthy_old_pods_go_first() {
    let deployment = deployment(10, "two");
    // The new pods crash; the surge of 3 and the lack of 2 are used up, and one old pod broke.
    let sets = vec![set(&deployment, "one", 1, 8, 7), set(&deployment, "two", 2, 5, 5)];
    let seen = observed(deployment, sets);
    let mut rollout = Rollout::new(&seen.deployment, seen.sets.clone());
    assert!(rollout.scale_down_old());
    let sizes: Vec<i32> = rollout.sets().map(replicas_of).collect();
    assert_eq!(sizes, [3, 5], "one unhealthy, then down to the 8 that must be available");
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut deployment = deployment(1, "two");
    deployment.spec.strategy = Some(from_yaml("{type: Recreate}"));
    let old = set(&deployment, "one", 1, 1, 1);
    check(
        &observed(deployment.clone(), vec![old.clone()]),
        expect![[r#"
        patch replicasets.apps web-one {"metadata":{"resourceVersion":"7"},"spec":{"replicas":0}}
        status"#]],
    );
    let mut empty = old;
    empty.spec.replicas = Some(0);
    empty.status = Some(from_yaml("{replicas: 0, observedGeneration: 1}"));
    let mut seen = observed(deployment, vec![empty]);
    seen.running = vec!["u-one".to_owned()];
    check(&seen, expect!["status"]);
    seen.running.clear();
    check(
        &seen,
        expect![[r#"
            create 1 replicasets.apps web-5b85f5968d
            status"#]],
    );
}

#[test]
fn resizing_in_the_middle_of_a_rollout_is_proportional() {
    let before = deployment(10, "two");
    let sets = vec![set(&before, "one", 1, 8, 8), set(&before, "two", 2, 5, 5)];
    let after = deployment(15, "two");
    check(
        &observed(after, sets),
        expect![[r#"
        patch replicasets.apps web-one {"metadata":{"annotations":{"deployment.kubernetes.io/desired-replicas":"15","deployment.kubernetes.io/max-replicas":"19"},"resourceVersion":"7"},"spec":{"replicas":12}}
        patch replicasets.apps web-two {"metadata":{"annotations":{"deployment.kubernetes.io/desired-replicas":"15","deployment.kubernetes.io/max-replicas":"19"},"resourceVersion":"7"},"spec":{"replicas":7}}
        status"#]],
    );
}

#[test]
fn a_paused_deployment_rolls_nothing_out() {
    let mut deployment = deployment(1, "two");
    deployment.spec.paused = Some(true);
    let seen = observed(deployment.clone(), vec![set(&deployment, "one", 1, 1, 1)]);
    check(&seen, expect!["status"]);
    expect![[r#"
        Progressing=Unknown DeploymentPaused: Deployment is paused
        Available=True MinimumReplicasAvailable: Deployment has minimum availability."#]]
    .assert_eq(&conditions(&seen));
}

#[test]
fn rolling_back_gives_the_old_set_the_newest_revision() {
    let deployment = deployment(1, "one");
    let sets = vec![set(&deployment, "one", 1, 0, 0), set(&deployment, "two", 2, 1, 1)];
    check(
        &observed(deployment, sets),
        expect![[r#"
        patch replicasets.apps web-one {"metadata":{"annotations":{"deployment.kubernetes.io/revision":"3","deployment.kubernetes.io/revision-history":"1"},"resourceVersion":"7"},"spec":{"replicas":1}}
        status"#]],
    );
}

#[test]
fn history_beyond_the_limit_is_deleted_from_the_oldest() {
    let mut deployment = deployment(1, "three");
    deployment.spec.revision_history_limit = Some(1);
    deployment.metadata.annotations = Some([(revision::REVISION.to_owned(), "3".to_owned())].into());
    deployment.status =
        Some(from_yaml("{replicas: 1, updatedReplicas: 1, availableReplicas: 1, observedGeneration: 2}"));
    let sets =
        vec![set(&deployment, "one", 1, 0, 0), set(&deployment, "two", 2, 0, 0), set(&deployment, "three", 3, 1, 1)];
    check(
        &observed(deployment, sets),
        expect![[r#"
        delete replicasets.apps web-one
        status"#]],
    );
}

#[test]
fn a_rollout_without_progress_times_out_in_words() {
    let mut deployment = deployment(1, "one");
    let new = set(&deployment, "one", 1, 1, 0);
    deployment.status = Some(from_yaml(
        "{replicas: 1, updatedReplicas: 1, unavailableReplicas: 1, observedGeneration: 2, conditions: [\
         {type: Progressing, status: 'True', reason: ReplicaSetUpdated, lastUpdateTime: '2027-01-15T07:00:00Z'}]}",
    ));
    expect![[r#"
        Available=False MinimumReplicasUnavailable: Deployment does not have minimum availability.
        Progressing=False ProgressDeadlineExceeded: ReplicaSet "web-one" has timed out progressing."#]]
    .assert_eq(&conditions(&observed(deployment, vec![new])));
}

#[test]
fn a_finished_rollout_says_so_and_then_is_quiet() {
    let mut deployment = deployment(1, "one");
    let new = set(&deployment, "one", 1, 1, 1);
    let mut seen = observed(deployment.clone(), vec![new.clone()]);
    expect![[r#"
        Available=True MinimumReplicasAvailable: Deployment has minimum availability.
        Progressing=True NewReplicaSetAvailable: ReplicaSet "web-one" has successfully progressed."#]]
    .assert_eq(&conditions(&seen));
    let actions = reconcile(&seen);
    let Some(Action::Update { object, .. }) = actions.first() else { panic!("{actions:?}") };
    deployment.status = serde_json::from_value(object["status"].clone()).unwrap();
    deployment.metadata.annotations = Some([(revision::REVISION.to_owned(), "1".to_owned())].into());
    seen = observed(deployment, vec![new]);
    assert_eq!(reconcile(&seen), Vec::new());
}

#[test]
fn what_keeps_the_set_from_being_created_is_reported_first() {
    let mut seen = observed(deployment(1, "one"), Vec::new());
    seen.failure = Some("no quota".to_owned());
    check(
        &seen,
        expect![[r#"
            status
            create 1 replicasets.apps web-5758b7489d"#]],
    );
    assert!(conditions(&seen).contains(
        r#"Progressing=False ReplicaSetCreateError: Failed to create new replica set "web-5758b7489d": no quota"#
    ));
}

#[test]
fn a_hash_that_is_taken_is_counted_as_a_collision() {
    let mut seen = observed(deployment(1, "one"), Vec::new());
    seen.taken = vec!["web-5758b7489d".to_owned()];
    let actions = reconcile(&seen);
    let [Action::Update { object, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(object["status"]["collisionCount"], 1);
}

#[test]
fn surge_is_rounded_up_and_unavailability_down() {
    let mut deployment = deployment(1, "one");
    assert_eq!((limits::max_surge(&deployment), limits::max_unavailable(&deployment)), (1, 0));
    deployment.spec.replicas = Some(10);
    assert_eq!((limits::max_surge(&deployment), limits::max_unavailable(&deployment)), (3, 2));
    let rolling = deployment.spec.strategy.get_or_insert_default().rolling_update.get_or_insert_default();
    rolling.max_surge = Some(IntOrString::Int(0));
    rolling.max_unavailable = Some(IntOrString::String("1%".to_owned()));
    assert_eq!((limits::max_surge(&deployment), limits::max_unavailable(&deployment)), (0, 1));
}

#[test]
fn a_selector_of_everything_is_refused() {
    let mut deployment = deployment(1, "one");
    deployment.spec.selector = LabelSelector::default();
    check(
        &observed(deployment, Vec::new()),
        expect![[r#"
        event Deployment web Warning SelectingAll: This deployment is selecting all pods. A non-empty selector is required.
        status"#]],
    );
}

#[test]
fn names_of_replica_sets_stay_within_the_limit() {
    let mut deployment = deployment(1, "one");
    deployment.metadata = ObjectMeta { name: Some("a".repeat(253)), ..deployment.metadata };
    let name = revision::new_set(&deployment, None, 1).metadata.name.unwrap();
    assert_eq!(name.len(), 253);
}
