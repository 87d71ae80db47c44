//! From start to exit.

use runtime::error::Error;
use runtime::plan::{ContainerPlan, Event};

use crate::bed::Bed;

async fn check(script: &str, code: i32, output: &str) {
    let mut bed = Bed::new();
    let plan = bed.plan(script);
    let (exit, log) = bed.run(plan).await;
    assert_eq!((exit.exit_code, log.as_str()), (code, output));
    assert!(exit.started_at.unwrap() <= exit.finished_at);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_and_its_exit_is_known() {
    check("echo hello; echo world; exit 3", 3, "hello\nworld\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn success_is_zero() {
    check("true", 0, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_arrive() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let plan = bed.plan("trap 'echo got it; exit 7' TERM; echo ready; while :; do sleep 0.01; done");
    let id = plan.id.clone();
    bed.start("p", plan).await.unwrap();
    bed.wait_for_log("p", "ready").await;
    bed.runtime.signal("p", &id, 15).await.unwrap();
    assert_eq!(bed.exit().await.exit_code, 7);
    assert_eq!(bed.log("p"), "ready\ngot it\n");
    bed.runtime.signal("p", &id, 15).await.expect("a container that has ended is no error");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_container_kills_all_of_it() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let plan = bed.plan("sleep 600 & setsid sleep 600 & echo ready; sleep 600");
    let id = plan.id.clone();
    bed.start("p", plan).await.unwrap();
    bed.wait_for_log("p", "ready").await;
    bed.runtime.kill_container("p", &id).await.unwrap();
    let exit = bed.exit().await;
    assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, Some(9), false));
    assert_eq!(bed.runtime.container_stats("p", &id).unwrap().pids, 0);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_come_and_go() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    for code in [1, 2, 3] {
        let plan = bed.plan(&format!("exit {code}"));
        let id = plan.id.clone();
        let (exit, _) = bed.run_in("p", plan).await;
        assert_eq!(exit.exit_code, code);
        bed.runtime.remove_container("p", &id).await.unwrap();
        bed.runtime.remove_container("p", &id).await.expect("removing twice is no error");
    }
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_container_can_be_removed() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let plan = bed.plan("sleep 600");
    let id = plan.id.clone();
    bed.start("p", plan).await.unwrap();
    bed.runtime.remove_container("p", &id).await.unwrap();
    assert_eq!(bed.exit().await.exit_code, 137);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_is_used_once() {
    let bed = Bed::new();
    bed.pod("p").await;
    let error = bed.runtime.create_pod(bed.pod_plan("p")).await.unwrap_err();
    assert_eq!(error.to_string(), "uid: pod p exists already");
    let plan = bed.plan("sleep 600");
    let id = plan.id.clone();
    bed.start("p", plan.clone()).await.unwrap();
    assert!(matches!(bed.runtime.create_container("p", plan).await, Err(Error::Plan { .. })));
    assert!(bed.runtime.start_container("p", &id).await.is_err());
    assert!(matches!(bed.runtime.create_container("q", bed.plan("")).await, Err(Error::UnknownPod(_))));
    bed.finish().await;
}

async fn start_error(change: impl FnOnce(&Bed, &mut ContainerPlan)) -> String {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("");
    change(&bed, &mut plan);
    let error = bed.start("p", plan).await.unwrap_err();
    assert!(matches!(error, Error::Start { .. }), "{error:?}");
    assert!(bed.events.try_recv().is_err(), "a container that did not start has no exit event");
    bed.finish().await;
    error.to_string()
}

fn set_args(plan: &mut ContainerPlan, args: &[&str]) {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    plan.spec.process_mut().as_mut().unwrap().set_args(Some(args));
}

#[tokio::test(flavor = "multi_thread")]
async fn start_errors_are_those_of_runc() {
    let of = |args: &'static [&'static str]| start_error(move |_, plan| set_args(plan, args));
    assert_eq!(of(&["nothing"]).await, r#"exec: "nothing": executable file not found in $PATH"#);
    assert_eq!(of(&["/nothing"]).await, r#"exec: "/nothing": stat /nothing: no such file or directory"#);
    assert_eq!(of(&["/etc/passwd"]).await, r#"exec: "/etc/passwd": permission denied"#);
    assert_eq!(of(&["/etc"]).await, r#"exec: "/etc": is a directory"#);
    let garbage = start_error(|bed, plan| {
        use std::os::unix::fs::PermissionsExt;
        let file = bed.directory.join("layer/garbage");
        std::fs::write(&file, "no program").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        set_args(plan, &["/garbage"]);
    });
    assert_eq!(garbage.await, "exec /garbage: exec format error");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_working_directory_is_a_start_error() {
    let error = start_error(|_, plan| {
        plan.spec.process_mut().as_mut().unwrap().set_cwd("/etc/passwd".into());
    });
    assert_eq!(error.await, r#"chdir to cwd ("/etc/passwd") set in config.json failed: not a directory"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_supported_is_refused_by_name() {
    let bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("true");
    plan.spec.process_mut().as_mut().unwrap().set_apparmor_profile(Some("x".to_owned()));
    let error = bed.runtime.create_container("p", plan).await.unwrap_err();
    assert_eq!(error.to_string(), "process.apparmorProfile: is not supported");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_working_directory_is_made_and_home_is_set() {
    let mut bed = Bed::new();
    let mut plan = bed.plan("pwd; echo $HOME; umask; ulimit -n");
    let process = plan.spec.process_mut().as_mut().unwrap();
    process.set_cwd("/srv/app".into());
    let limit = oci_spec::runtime::PosixRlimitBuilder::default()
        .typ(oci_spec::runtime::PosixRlimitType::RlimitNofile)
        .soft(100u64)
        .hard(200u64)
        .build()
        .unwrap();
    process.set_rlimits(Some(vec![limit]));
    let (exit, log) = bed.run(plan).await;
    assert_eq!((exit.exit_code, log.as_str()), (0, "/srv/app\n/root\n0022\n100\n"));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_pod_ends_its_containers() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    bed.start("p", bed.plan("sleep 600")).await.unwrap();
    bed.runtime.remove_pod("p").await.unwrap();
    bed.runtime.remove_pod("p").await.expect("removing twice is no error");
    assert!(matches!(bed.event().await, Event::ContainerExited { .. }));
    assert!(bed.events.try_recv().is_err(), "the shim of a removed pod did not die");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_did_not_start_is_remembered_as_128() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("");
    set_args(&mut plan, &["nothing"]);
    bed.start("p", plan).await.unwrap_err();
    let mut unlogged = bed.plan("true");
    unlogged.log_path = Some("main/0.log/not-a-directory/0.log".into());
    bed.start("p", unlogged).await.unwrap_err();
    bed.restart();
    let adopted = bed.runtime.adopt().await.unwrap();
    let containers = &adopted[0].containers;
    for container in containers {
        let runtime::plan::ContainerState::Exited(exit) = &container.state else { panic!("{container:?}") };
        assert_eq!((exit.exit_code, exit.started_at), (128, None));
        assert!(!exit.message.is_empty());
    }
    bed.finish().await;
}
