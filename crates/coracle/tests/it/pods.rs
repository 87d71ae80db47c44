//! What a user does with running pods: logs, exec, attach, cp, run, wait and rollouts.

use crate::apply::deployment;
use crate::cluster::{BUSYBOX, Session, with_each_kubectl};

fn pod(name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - {{name: main, image: {BUSYBOX}, command: [sh, -c, {script:?}]}}
"
    )
}

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn start(user: &Session, name: &str, script: &str) {
    user.apply(&pod(name, script));
    user.check(
        &["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"],
        &format!("pod/{name} condition met"),
    );
}

#[test]
fn reads_logs() {
    with_each_kubectl("logs", |user| {
        start(
            user,
            "talker",
            &format!(
                "for i in 1 2 3; do echo line $i; done; echo to stderr >&2; while [ ! -e /go ]; do sleep 0.05; done; echo more; {FOREVER}"
            ),
        );
        user.check(&["logs", "talker", "--tail=2"], "line 3\nto stderr");
        let stamped = user.ok(&["logs", "talker", "--timestamps"]);
        assert!(stamped.lines().all(|line| line.starts_with("20") && line.contains("Z ")), "{stamped}");
        user.check(&["logs", "talker", "--since=1h", "--limit-bytes=6"], "line 1");
        user.check(&["logs", "talker", "--prefix", "--tail=1"], "[pod/talker/main] to stderr");
        let mut following = user.kubectl().follow(&["logs", "-f", "talker"]).unwrap();
        following.wait_for("to stderr").unwrap();
        user.ok(&["exec", "talker", "--", "touch", "/go"]);
        following.wait_for("more").unwrap();
        user.ok(&["delete", "pod", "talker"]);
        assert_eq!(following.wait_for_end().unwrap(), Some(0));
        user.fails(&["logs", "talker"], "error: error from server (NotFound): pods \"talker\" not found");
    });
}

#[test]
fn reads_logs_of_the_container_before() {
    with_each_kubectl("previous", |user| {
        user.apply(&pod("again", "echo my pid; [ -e /dev/termination-log ] && exit 1"));
        user.ok(&[
            "wait",
            "pod/again",
            "--for=jsonpath={.status.containerStatuses[0].restartCount}=1",
            "--timeout=60s",
        ]);
        user.check(&["logs", "again", "--previous"], "my pid");
        user.shows(&["describe", "pod", "again"], &["Last State:     Terminated", "Exit Code:    1"]);
        start(user, "first", FOREVER);
        user.fails(
            &["logs", "first", "--previous"],
            "previous terminated container \"main\" in pod \"first\" not found",
        );
        user.fails(&["logs", "first", "-c", "other"], "error: container other is not valid for pod first");
    });
}

#[test]
fn executes_commands_as_older_releases_do() {
    with_each_kubectl("spdy", |user| {
        start(user, "shell", FOREVER);
        let run = |arguments: &[&str], stdin: &str| {
            user.kubectl().run_with(&["KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false"], arguments, stdin)
        };
        let printed = run(&["exec", "-i", "shell", "--", "sh", "-c", "cat; echo err >&2; exit 3"], "typed\n");
        assert_eq!((printed.code, printed.stdout.as_str()), (Some(3), "typed\n"), "{printed}");
        assert!(printed.stderr.starts_with("err\n"), "{printed}");
        // More than any buffer on the way holds.
        let block = "0123456789abcde\n".repeat(64 << 10);
        let printed = run(&["exec", "-i", "shell", "--", "cat"], &block);
        assert!(printed.code == Some(0) && printed.stdout == block, "{} bytes", printed.stdout.len());
    });
}

#[test]
fn executes_commands() {
    with_each_kubectl("exec", |user| {
        start(user, "shell", FOREVER);
        user.check(&["exec", "shell", "--", "echo", "hi"], "hi");
        let printed =
            user.kubectl().run(&["exec", "-i", "shell", "--", "sh", "-c", "cat; echo wrong >&2; exit 3"], "typed\n");
        assert_eq!((printed.code, &*printed.stdout), (Some(3), "typed\n"), "{printed}");
        assert!(
            printed.stderr.contains("wrong") && printed.stderr.contains("command terminated with exit code 3"),
            "{printed}"
        );
        let printed = user.kubectl().run_on_terminal(&["exec", "-it", "shell", "--", "sh"], "tty; exit 4\n");
        assert!(printed.code == Some(4) && printed.stdout.contains("/dev/pts/0"), "{printed}");
        user.fails(&["exec", "shell", "--", "nonsense"], "nonsense");
        user.fails(&["exec", "shell", "-c", "other", "--", "true"], "container other is not valid for pod shell");
        user.fails(&["exec", "other", "--", "true"], "Error from server (NotFound): pods \"other\" not found");
        let big = user.ok(&["exec", "shell", "--", "sh", "-c", "yes 0123456789 | head -n 200000"]);
        assert_eq!(big.lines().count(), 200_000);
    });
}

#[test]
fn copies_files() {
    with_each_kubectl("cp", |user| {
        start(user, "shell", FOREVER);
        let (namespace, minor) = (user.namespace(), user.minor());
        let script = format!(
            "set -e; cd /run; echo from the host > up-{minor}
             $KUBECTL cp up-{minor} {namespace}/shell:/tmp/up
             $KUBECTL -n {namespace} exec shell -- cat /tmp/up
             $KUBECTL cp {namespace}/shell:/etc/group down-{minor}; grep root down-{minor}"
        );
        let printed = user.kubectl().run_program(&["sh", "-c", &script]);
        assert_eq!(printed.code, Some(0), "{printed}");
        assert!(printed.stdout.contains("from the host\n") && printed.stdout.contains("root:x:0"), "{printed}");
    });
}

#[test]
fn runs_and_attaches() {
    with_each_kubectl("run", |user| {
        let image = format!("--image={BUSYBOX}");
        let arguments =
            ["run", "once", &image, "--restart=Never", "--rm", "-i", "--", "sh", "-c", "read x; echo got $x"];
        let printed = user.kubectl().run(&arguments, "it\n");
        assert!(printed.code == Some(0) && printed.stdout.contains("got it\n"), "{printed}");
        assert!(printed.stdout.contains("pod \"once\" deleted"), "{printed}");
        let arguments = ["run", "terminal", &image, "--restart=Never", "--rm", "-it", "--", "sh"];
        let printed = user.kubectl().run_on_terminal(&arguments, "tty; exit 5\n");
        assert!(printed.code == Some(5) && printed.stdout.contains("/dev/pts/0"), "{printed}");
        start(user, "ticker", "trap 'exit 0' TERM; while :; do echo tick; sleep 0.1; done");
        let mut attached = user.kubectl().follow(&["attach", "ticker"]).unwrap();
        attached.wait_for("tick").unwrap();
        user.ok(&["delete", "pod", "ticker", "--wait=false"]);
        attached.wait_for_end().unwrap();
    });
}

#[test]
fn waits_for_what_is_asked() {
    with_each_kubectl("wait", |user| {
        user.apply(&pod("once", "exit 0").replace("spec:", "spec:\n  restartPolicy: Never"));
        user.check(
            &["wait", "pod/once", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"],
            "pod/once condition met",
        );
        user.fails(
            &["wait", "pod/once", "--for=condition=Ready", "--timeout=100ms"],
            "timed out waiting for the condition on pods/once",
        );
        user.ok(&["delete", "pod", "once", "--wait=false"]);
        user.ok(&["wait", "pod/once", "--for=delete", "--timeout=60s"]);
        let stubborn = pod("stubborn", "trap '' TERM; echo deaf; while :; do sleep 0.1; done")
            .replace("Seconds: 5", "Seconds: 300");
        user.apply(&stubborn);
        user.ok(&["wait", "pod/stubborn", "--for=condition=Ready", "--timeout=60s"]);
        // A second deletion may shorten the first one's time.
        user.ok(&["delete", "pod", "stubborn", "--wait=false"]);
        user.check(&["get", "pod", "stubborn", "-o", "jsonpath={.metadata.deletionGracePeriodSeconds}"], "300");
        user.ok(&["delete", "pod", "stubborn", "--grace-period=1"]);
        user.fails(&["get", "pod", "stubborn"], "not found");
        start(user, "forced", FOREVER);
        user.ok(&["delete", "pod", "forced", "--force", "--grace-period=0"]);
        user.fails(&["get", "pod", "forced"], "not found");
    });
}

#[test]
fn rolls_out_and_back() {
    with_each_kubectl("rollout", |user| {
        user.apply(&deployment("web"));
        let status = || {
            user.shows(
                &["rollout", "status", "deploy/web", "--timeout=60s"],
                &["deployment \"web\" successfully rolled out"],
            )
        };
        status();
        let names =
            || user.ok(&["get", "pods", "-l", "app=web", "--field-selector=status.phase=Running", "-o", "name"]);
        // A rollout is over while the last of the old pods are still ending.
        let gone = |pods: &str| {
            let wait = ["wait", "--for=delete", "--timeout=60s"];
            user.ok(&wait.into_iter().chain(pods.lines()).collect::<Vec<_>>());
        };
        let before = names();
        user.check(&["rollout", "restart", "deploy/web"], "deployment.apps/web restarted");
        status();
        gone(&before);
        assert!(before.lines().all(|pod| !names().contains(pod)), "{before}");
        user.ok(&["annotate", "deploy", "web", "kubernetes.io/change-cause=restarted"]);
        user.check(
            &["set", "image", "deploy/web", "web=docker.io/library/busybox:none"],
            "deployment.apps/web image updated",
        );
        user.fails(
            &["rollout", "status", "deploy/web", "--timeout=500ms"],
            "error: timed out waiting for the condition",
        );
        user.shows(
            &["rollout", "history", "deploy/web"],
            &["REVISION  CHANGE-CAUSE", "1         <none>", "3         restarted"],
        );
        user.shows(&["rollout", "history", "deploy/web", "--revision=3"], &["busybox:none"]);
        user.check(&["rollout", "undo", "deploy/web"], "deployment.apps/web rolled back");
        status();
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        user.check(&["get", "deploy", "web", "-o", image], BUSYBOX);
        let before = names();
        user.check(&["rollout", "undo", "deploy/web", "--to-revision=1"], "deployment.apps/web rolled back");
        status();
        gone(&before);
        user.fails(
            &["rollout", "undo", "deploy/web", "--to-revision=99"],
            "error: unable to find specified revision 99 in history",
        );
        user.check(&["rollout", "pause", "deploy/web"], "deployment.apps/web paused");
        user.check(&["rollout", "resume", "deploy/web"], "deployment.apps/web resumed");
        user.check(&["scale", "deploy", "web", "--replicas=3"], "deployment.apps/web scaled");
        status();
        assert_eq!(names().lines().count(), 3);
    });
}
