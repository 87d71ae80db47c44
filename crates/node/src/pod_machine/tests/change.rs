//! Containers that make way for others of a changed definition, and what is kept of those that have ended.

use super::*;

/// The pod stays Ready, unless it takes longer.
#[test]
fn a_container_is_replaced_unseen() {
    after_start(
        one(json!({})),
        &["image a", "start a"],
        &["new-image j", "exit a 143", "image a", "start a", "new-image k", "exit a 143", "wait 1", "image a"],
        expect![[r#"
            new-image j
                Killing: Container a definition changed, will be restarted
                unprobe a Readiness
                signal a Stop
              = Running a:running*0sr
            exit a 143
                pull a
              = Running a:running*0sr
            image a
                run a/1
              = Running a:running*0sr
            start a
              = Running a:running<143*1sr
            new-image k
                Killing: Container a definition changed, will be restarted
                unprobe a Readiness
                signal a Stop
              = Running a:running<143*1sr
            exit a 143
                pull a
              = Running a:running<143*1sr
            wait 1
              = Running a:exit143<143*1
            image a
                run a/2
              = Running a:exit143<143*1
        "#]],
    );
}

#[test]
fn a_container_whose_successor_does_not_come_is_gone() {
    after_start(
        one(json!({})),
        &["image a", "start a"],
        &["new-image j", "exit a 143", "no-image a", "new-image k", "image a"],
        expect![[r#"
            new-image j
                Killing: Container a definition changed, will be restarted
                unprobe a Readiness
                signal a Stop
              = Running a:running*0sr
            exit a 143
                pull a
              = Running a:running*0sr
            no-image a
                Failed: Error: ErrImagePull
              = Running a:ErrImagePull<143*0
            new-image k
                pull a
              = Running a:ErrImagePull<143*0
            image a
                run a/1
              = Running a:ErrImagePull<143*0
        "#]],
    );
}

#[test]
fn an_image_that_comes_too_late_is_not_started() {
    after_start(
        one(json!({})),
        &[],
        &["new-image j", "image a i", "no-image a i", "new-image i", "no-image a j", "image a", "start a"],
        expect![[r#"
            new-image j
                pull a
              = Pending a:ContainerCreating*0
            image a i
              = Pending a:ContainerCreating*0
            no-image a i
              = Pending a:ContainerCreating*0
            new-image i
                pull a
              = Pending a:ContainerCreating*0
            no-image a j
              = Pending a:ContainerCreating*0
            image a
                run a/0
              = Pending a:ContainerCreating*0
            start a
              = Running a:running*0sr
        "#]],
    );
}

/// Whatever the pod's policy: it did not end by itself.
#[test]
fn a_container_of_an_image_that_changed_while_it_started_is_replaced() {
    let mut spec = one(json!({}));
    spec["restartPolicy"] = json!("Never");
    let mut script = after_start(
        spec,
        &["image a"],
        &["new-image j", "start a i"],
        expect![[r#"
            new-image j
              = Pending a:ContainerCreating*0
            start a i
                Killing: Container a definition changed, will be restarted
                unprobe a Readiness
                signal a Stop
              = Running a:running*0sr
        "#]],
    );
    let shown = |script: &mut Script| {
        let status = script.machine.status(&[], script.now);
        status.container_statuses.unwrap()[0].image.clone()
    };
    assert_eq!(shown(&mut script), "i", "the status tells what runs");
    script.out.clear();
    for line in ["exit a 143", "image a", "start a"] {
        script.run(line);
    }
    expect![[r#"
        exit a 143
            pull a
          = Running a:running*0sr
        image a
            run a/1
          = Running a:running*0sr
        start a
          = Running a:running<143*1sr
    "#]]
    .assert_eq(&script.out);
    assert_eq!(shown(&mut script), "j");
}

#[test]
fn a_start_that_failed_with_another_image_is_not_waited_for() {
    after_start(
        one(json!({})),
        &["image a"],
        &["new-image j", "no-start a i"],
        expect![[r#"
            new-image j
              = Pending a:ContainerCreating*0
            no-start a i
                Failed: Error: secret "s" not found
                pull a
              = Pending a:ContainerCreating*0
        "#]],
    );
}

#[test]
fn an_image_that_changed_while_nobody_watched_is_run() {
    let script = adopt_from("h", None, true);
    expect![[r#"
        wait 0
            MountVolumes
          = Running a:running*2sr
        volumes
            probe a Readiness
            Killing: Container a definition changed, will be restarted
            unprobe a Readiness
            signal a Stop
          = Running a:running*2sr
    "#]]
    .assert_eq(&script.out);
}

/// Whoever comes after a main that dies now finds in the shim how the container ended.
#[test]
fn nothing_goes_before_the_api_knows_the_end() {
    let removes = |effects: &[Effect]| effects.contains(&Effect::RemoveSandbox);
    for last in [Event::EndTold, Event::Removed] {
        let mut spec = one(json!({}));
        spec["restartPolicy"] = json!("Never");
        let mut script = after_start(spec, &["image a", "start a", "exit a 7"], &[], expect![""]);
        for line in ["delete 1", "wait 600"] {
            let event = script.event(&line.split(' ').collect::<Vec<_>>());
            assert!(!removes(&script.machine.step(event, script.now)), "{line}");
        }
        let status = script.machine.status(&[], script.now);
        assert_eq!(status.phase.as_deref(), Some("Failed"));
        assert!(removes(&script.machine.step(last, script.now)));
    }
}
