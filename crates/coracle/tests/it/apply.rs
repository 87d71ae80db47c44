//! What a user changes with kubectl, and what it answers.

use crate::cluster::{BUSYBOX, Session, with_each_kubectl};

/// A Deployment of two pods that say hello and end at once when told to.
pub fn deployment(name: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers:
      - name: web
        image: {BUSYBOX}
        command: [sh, -c, 'trap \"exit 0\" TERM; echo hello from $HOSTNAME; while :; do sleep 0.1; done']
        ports: [{{containerPort: 80, name: http}}]
"
    )
}

/// The same with no pods, for tests of the API alone.
pub fn empty_deployment(name: &str) -> String {
    deployment(name).replace("replicas: 2", "replicas: 0")
}

const REPLICAS: &str = "jsonpath={.spec.replicas}";

#[test]
fn applies_what_is_new_or_changed() {
    with_each_kubectl("apply", |user| {
        let manifest = empty_deployment("web");
        assert_eq!(user.apply(&manifest), "deployment.apps/web created");
        assert_eq!(user.apply(&manifest), "deployment.apps/web unchanged");
        let changed = manifest.replace("labels: {app: web}}\nspec", "labels: {app: web, tier: front}}\nspec");
        assert_eq!(user.apply(&changed), "deployment.apps/web configured");
        // What the manifest no longer has is taken away, what others set stays.
        user.check(&["annotate", "deploy", "web", "note=kept"], "deployment.apps/web annotated");
        assert_eq!(user.apply(&manifest), "deployment.apps/web configured");
        user.check(
            &["get", "deploy", "web", "-o", "jsonpath={.metadata.labels} {.metadata.annotations.note}"],
            "{\"app\":\"web\"} kept",
        );
        let all = format!("{manifest}---\n{}", empty_deployment("other"));
        assert_eq!(user.apply(&all), "deployment.apps/web unchanged\ndeployment.apps/other created");
        let shown = user.ok_with(&["apply", "view-last-applied", "-f", "-"], &manifest);
        assert!(shown.contains("kind: Deployment"), "{shown}");
        assert_eq!(user.ok_with(&["replace", "-f", "-"], &manifest), "deployment.apps/web replaced");
    });
}

#[test]
fn tries_without_doing() {
    with_each_kubectl("dry-run", |user| {
        let manifest = empty_deployment("web");
        let dry = |how: &str| user.ok_with(&["apply", "-f", "-", &format!("--dry-run={how}")], &manifest);
        assert_eq!(dry("client"), "deployment.apps/web created (dry run)");
        assert_eq!(dry("server"), "deployment.apps/web created (server dry run)");
        user.fails(&["get", "deploy", "web"], "Error from server (NotFound): deployments.apps \"web\" not found");
        let diff = user.kubectl().run(&["diff", "-f", "-"], &manifest);
        assert!(diff.code == Some(1) && diff.stdout.contains("+  name: web\n"), "{diff}");
        user.apply(&manifest);
        let same = user.kubectl().run(&["diff", "-f", "-"], &manifest);
        assert_eq!((same.code, &*same.stdout), (Some(0), ""), "{same}");
        let changed = manifest.replace("containerPort: 80", "containerPort: 81");
        let diff = user.kubectl().run(&["diff", "-f", "-"], &changed);
        assert!(diff.stdout.contains("-        - containerPort: 80\n+        - containerPort: 81\n"), "{diff}");
    });
}

#[test]
fn applies_on_the_server() {
    with_each_kubectl("ssa", |user| {
        let manifest = empty_deployment("web");
        let apply = |manager: &str, manifest: &str, more: &[&str]| {
            let manager = format!("--field-manager={manager}");
            let arguments = [&["apply", "--server-side", "-f", "-", &manager], more].concat();
            user.kubectl().run(&arguments, manifest)
        };
        let applied = apply("owner", &manifest, &[]);
        assert_eq!(applied.stdout.trim_end(), "deployment.apps/web serverside-applied", "{applied}");
        let other =
            manifest.replace("containerPort: 80", "containerPort: 80, protocol: TCP").replace("sleep 0.1", "sleep 1");
        let refused = apply("rival", &other, &[]);
        assert!(
            refused.code != Some(0)
                && refused.stderr.contains("conflict with \"owner\"")
                && refused.stderr.contains(".spec.template.spec.containers[name=\"web\"].command"),
            "{refused}"
        );
        let forced = apply("rival", &other, &["--force-conflicts"]);
        assert_eq!(forced.stdout.trim_end(), "deployment.apps/web serverside-applied", "{forced}");
        let managers = "jsonpath={.metadata.managedFields[?(@.operation==\"Apply\")].manager}";
        user.check(&["get", "deploy", "web", "-o", managers], "owner rival");
    });
}

#[test]
fn patches_in_three_ways() {
    with_each_kubectl("patch", |user| {
        user.apply(&empty_deployment("web"));
        let patch = |kind: &str, patch: &str| {
            user.check(&["patch", "deploy", "web", "--type", kind, "-p", patch], "deployment.apps/web patched");
        };
        patch(
            "strategic",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"A","value":"b"}]}]}}}}"#,
        );
        let container =
            "jsonpath={range .spec.template.spec.containers[*]}{.name} {.ports[0].name} {.env[0].value}{end}";
        user.check(&["get", "deploy", "web", "-o", container], "web http b");
        patch("merge", r#"{"metadata":{"labels":{"app":null,"tier":"front"}},"spec":{"paused":true}}"#);
        user.check(
            &["get", "deploy", "web", "-o", "jsonpath={.metadata.labels}{.spec.paused}"],
            r#"{"tier":"front"}true"#,
        );
        patch("json", r#"[{"op":"test","path":"/spec/paused","value":true},{"op":"remove","path":"/spec/paused"}]"#);
        user.check(&["get", "deploy", "web", "-o", "jsonpath={.spec.paused}"], "");
        let same = r#"{"metadata":{"labels":{"tier":"front"}}}"#;
        user.check(&["patch", "deploy", "web", "-p", same], "deployment.apps/web patched (no change)");
        let scale =
            ["patch", "deploy", "web", "--subresource=scale", "--type=merge", "-p", r#"{"spec":{"replicas":0}}"#];
        // Upstream's Scale leaves out a count of none, so that setting it is a change.
        assert!(user.ok(&scale).ends_with("/web patched"));
        user.fails(
            &["patch", "deploy", "web", "--type", "json", "-p", r#"[{"op":"test","path":"/spec/paused","value":1}]"#],
            "the server rejected our request",
        );
    });
}

#[test]
fn edits_with_an_editor() {
    with_each_kubectl("edit", |user| {
        user.apply(&empty_deployment("web"));
        let edit =
            |script: &str| user.kubectl().run_with_editor(&format!("sed -i {script}"), &["edit", "deploy", "web"]);
        let edited = edit("s/containerPort:.80/containerPort:\\ 8080/");
        assert_eq!(edited.stdout.trim_end(), "deployment.apps/web edited", "{edited}");
        let port = "jsonpath={.spec.template.spec.containers[0].ports[0].containerPort}";
        user.check(&["get", "deploy", "web", "-o", port], "8080");
        let unchanged = edit("s/x/x/");
        assert_eq!(unchanged.stderr.trim_end(), "Edit cancelled, no changes made.", "{unchanged}");
        // The file is opened again with the reason above it; an editor that leaves it so gives up, and the file is kept.
        let wrong = edit("s/containerPort:.8080$/containerPort:\\ 808080/");
        let (_, kept) = wrong
            .stderr
            .split_once("A copy of your changes has been stored to \"")
            .unwrap_or_else(|| panic!("{wrong}"));
        let kept = user.kubectl().run_program(&["cat", kept.split('"').next().unwrap()]);
        let reason = "Invalid value: 808080: must be between 1 and 65535, inclusive";
        assert!(kept.stdout.contains(reason), "{wrong}{kept}");
    });
}

#[test]
fn labels_annotates_and_sets() {
    with_each_kubectl("set", |user| {
        user.apply(&empty_deployment("web"));
        user.check(&["label", "deploy", "web", "tier=front"], "deployment.apps/web labeled");
        user.fails(
            &["label", "deploy", "web", "tier=back"],
            "error: 'tier' already has a value (front), and --overwrite is false",
        );
        user.check(&["label", "deploy", "web", "tier=back", "--overwrite"], "deployment.apps/web labeled");
        user.check(&["label", "deploy", "web", "tier-"], "deployment.apps/web unlabeled");
        user.fails(
            &["label", "deploy", "web", "tier=not a value"],
            "a valid label must be an empty string or consist of",
        );
        user.check(&["annotate", "deploy", "web", "a=b"], "deployment.apps/web annotated");
        user.check(&["annotate", "deploy", "web", "a-"], "deployment.apps/web annotated");
        user.check(&["set", "image", "deploy/web", "web=example.com/web:2"], "deployment.apps/web image updated");
        user.check(&["set", "env", "deploy/web", "A=b"], "deployment.apps/web env updated");
        user.check(
            &["set", "resources", "deploy/web", "--limits=memory=64Mi"],
            "deployment.apps/web resource requirements updated",
        );
        user.check(&["set", "serviceaccount", "deploy/web", "default"], "deployment.apps/web serviceaccount updated");
        user.check(&["scale", "deploy", "web", "--replicas=0", "--current-replicas=0"], "deployment.apps/web scaled");
        user.fails(
            &["scale", "deploy", "web", "--replicas=2", "--current-replicas=1"],
            "error: Expected replicas to be 1, was 0",
        );
        user.check(&["get", "deploy", "web", "-o", REPLICAS], "0");
    });
}

#[test]
fn creates_by_name() {
    with_each_kubectl("create", |user| {
        user.check(
            &["create", "deployment", "web", "--image=example.com/web:1", "--replicas=0"],
            "deployment.apps/web created",
        );
        user.check(&["expose", "deploy", "web", "--port=80", "--target-port=8080"], "service/web exposed");
        let ip = user.ok(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
        assert!(ip.starts_with("10."), "{ip}");
        user.check(&["create", "service", "nodeport", "web-port", "--tcp=80"], "service/web-port created");
        let port = user.ok(&["get", "service", "web-port", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
        assert!((30_000..=32_767).contains(&port.parse::<u32>().unwrap()), "{port}");
        user.check(&["create", "configmap", "c", "--from-literal=a=b"], "configmap/c created");
        user.check(&["create", "secret", "generic", "s", "--from-literal=a=b"], "secret/s created");
        user.check(&["get", "secret", "s", "-o", "go-template={{.data.a | base64decode}}"], "b");
        user.check(&["create", "serviceaccount", "robot"], "serviceaccount/robot created");
        let token = user.ok(&["create", "token", "robot", "--duration=10m"]);
        assert_eq!(token.split('.').count(), 3, "{token}");
        user.check(
            &["create", "role", "reader", "--verb=get", "--resource=pods"],
            "role.rbac.authorization.k8s.io/reader created",
        );
        let robot = format!("--serviceaccount={}:robot", user.namespace());
        user.check(
            &["create", "rolebinding", "robot", "--role=reader", &robot],
            "rolebinding.rbac.authorization.k8s.io/robot created",
        );
        let name = format!("--as=system:serviceaccount:{}:robot", user.namespace());
        user.check(&["auth", "can-i", "get", "pods", &name], "yes");
        let denied = user.kubectl().run(&["auth", "can-i", "delete", "pods", &name], "");
        assert_eq!((denied.code, denied.stdout.trim_end()), (Some(1), "no"), "{denied}");
        let listed = user.ok(&["auth", "can-i", "--list", &name]);
        assert!(listed.contains("pods "), "{listed}");
        let whoami = ["whoami", "-o", "jsonpath={.status.userInfo.username}"];
        user.check(
            &["auth", whoami[0], whoami[1], whoami[2], "--token", &token, "--kubeconfig=/etc/coracle/kubeconfig"],
            "kubernetes-admin",
        );
        user.check(
            &["create", "ingress", "web", "--rule=rack.example/*=web:80"],
            "ingress.networking.k8s.io/web created",
        );
        user.fails(&["create", "configmap", "c"], "error: failed to create configmap: configmaps \"c\" already exists");
        user.fails(&["create", "job", "j", "--image=x"], "the server could not find the requested resource");
    });
}

#[test]
fn deletes_as_asked() {
    with_each_kubectl("delete", |user: &Session| {
        let web = |extra: &[&str]| {
            user.apply(&deployment("web"));
            user.ok(&["wait", "deploy/web", "--for=condition=Available", "--timeout=60s"]);
            let printed = user.ok(&[&["delete", "deploy", "web"], extra].concat());
            assert!(printed.starts_with("deployment.apps \"web\" deleted"), "{printed}");
        };
        web(&["--cascade=orphan"]);
        let left = user.ok(&["get", "rs,pods", "-l", "app=web", "-o", "name"]);
        assert_eq!(left.lines().count(), 3, "{left}");
        // Applying it again adopts them.
        user.apply(&deployment("web"));
        user.ok(&["rollout", "status", "deploy/web", "--timeout=60s"]);
        assert_eq!(user.ok(&["get", "rs,pods", "-l", "app=web", "-o", "name"]), left);
        web(&["--cascade=foreground"]);
        user.check(&["get", "rs,pods", "-o", "name"], "");
        web(&["--wait=false"]);
        user.ok(&["wait", "rs,pods", "-l", "app=web", "--for=delete", "--timeout=60s"]);
        user.fails(&["delete", "deploy", "web"], "Error from server (NotFound): deployments.apps \"web\" not found");
        user.check(&["delete", "deploy", "web", "--ignore-not-found"], "");
        user.check(&["delete", "pods", "--all"], "No resources found");
    });
}
