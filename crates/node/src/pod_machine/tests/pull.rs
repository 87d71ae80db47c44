//! Images that do not come, and what else a start may lack.

use super::*;

#[test]
fn pulls_back_off() {
    let script = after_start(
        one(json!({})),
        &[],
        &["no-image a", "wait 2", "wait 8", "no-image a", "wait 2", "wait 18", "image a"],
        expect![[r#"
            no-image a
                Failed: Error: ErrImagePull
              = Pending a:ErrImagePull*0
            wait 2
                BackOff: Back-off pulling image "i"
                Failed: Error: ImagePullBackOff
              = Pending a:ImagePullBackOff*0
            wait 8
                pull a
              = Pending a:ImagePullBackOff*0
            no-image a
                Failed: Error: ErrImagePull
              = Pending a:ErrImagePull*0
            wait 2
                BackOff: Back-off pulling image "i"
                Failed: Error: ImagePullBackOff
              = Pending a:ImagePullBackOff*0
            wait 18
                pull a
              = Pending a:ImagePullBackOff*0
            image a
                run a/0
              = Pending a:ImagePullBackOff*0
        "#]],
    );
    assert_eq!(script.machine.slots[0].pull_error, "ErrImagePull: down");
}

/// The volume's image is named, and a back-off of its own begins with the container's.
#[test]
fn pulls_of_image_volumes_back_off() {
    let script = after_start(
        one(json!({})),
        &[],
        &["no-volume-image a", "wait 2", "wait 8", "no-volume-image a", "wait 20", "no-image a", "wait 10"],
        expect![[r#"
            no-volume-image a
                Failed: Error: ErrImagePull
              = Pending a:ErrImagePull*0
            wait 2
                BackOff: Back-off pulling image "tools"
                Failed: Error: ImagePullBackOff
              = Pending a:ImagePullBackOff*0
            wait 8
                pull a
              = Pending a:ImagePullBackOff*0
            no-volume-image a
                Failed: Error: ErrImagePull
              = Pending a:ErrImagePull*0
            wait 20
                pull a
              = Pending a:ErrImagePull*0
            no-image a
                Failed: Error: ErrImagePull
              = Pending a:ErrImagePull*0
            wait 10
                pull a
              = Pending a:ErrImagePull*0
        "#]],
    );
    assert_eq!(script.machine.slots[0].pull_error, "ErrImagePull: down");
}

/// The next attempt is at 20 seconds.
#[test]
fn an_image_that_comes_in_another_way_is_found() {
    after_start(
        one(json!({})),
        &["no-image a", "wait 2", "wait 8"],
        &["no-image a", "wait 9", "wait 1", "found a", "image a"],
        expect![[r#"
            no-image a
                Failed: Error: ErrImagePull
              = Pending a:ErrImagePull*0
            wait 9
                BackOff: Back-off pulling image "i"
                Failed: Error: ImagePullBackOff
              = Pending a:ImagePullBackOff*0
            wait 1
                look a -
              = Pending a:ImagePullBackOff*0
            found a
                pull a
              = Pending a:ImagePullBackOff*0
            image a
                run a/0
              = Pending a:ImagePullBackOff*0
        "#]],
    );
}

#[test]
fn a_missing_secret_is_tried_again() {
    let mut script = after_start(
        one(json!({})),
        &["image a"],
        &["no-start a", "wait 9"],
        expect![[r#"
            no-start a
                Failed: Error: secret "s" not found
              = Pending a:CreateContainerConfigError*0
            wait 9
              = Pending a:CreateContainerConfigError*0
        "#]],
    );
    let effects = script.machine.step(Event::SourcesChanged, script.now);
    assert_eq!(effects, [Effect::EnsureImage { container: "a".to_owned() }], "the Secret's arrival ends the wait");
}
