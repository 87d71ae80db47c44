//! From start to exit.

use runtime::Error;

use crate::bed::Bed;

async fn check(script: &str, code: i32, output: &str) {
    let mut bed = Bed::new();
    let plan = bed.plan(script);
    let (exit, log) = bed.run(plan).await;
    assert_eq!((exit.exit_code, log.as_str()), (code, output));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_and_its_exit_is_known() {
    check("echo hello; echo world >&2; exit 3", 3, "hello\nworld\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn success_is_zero() {
    check("true", 0, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_128_and_the_signal() {
    check("sh -c 'kill -TERM $$'; echo $?; trap - TERM; kill -USR1 $$; exec sleep 60", 0, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_is_a_start_error() {
    let bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("");
    plan.spec.process_mut().as_mut().unwrap().set_args(Some(vec!["nothing".to_owned()]));
    let error = bed.start("p", plan).await.unwrap_err();
    assert!(matches!(error, Error::Start { .. }));
    assert_eq!(error.to_string(), r#"exec: "nothing": executable file not found in $PATH"#);
    bed.finish().await;
}
