//! What a user types, and what kubectl makes of the answers.

use serde_json::json;

use crate::cluster::Cluster;

/// Runs a command line and returns what it printed.
async fn run(cluster: &Cluster, line: &str, stdin: &str) -> String {
    let arguments: Vec<&str> = line.split(' ').collect();
    let output = cluster.kubectl(&arguments, stdin).await;
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    eprintln!("$ kubectl {line}\n{text}");
    // Newer ones tell where from.
    text.replace(" from default namespace", "").replace(" from other namespace", "")
}

async fn check(cluster: &Cluster, line: &str, stdin: &str, expected: &str) {
    assert_eq!(run(cluster, line, stdin).await.trim_end(), expected, "kubectl {line}");
}

async fn shows(cluster: &Cluster, line: &str, expected: &str) {
    let text = run(cluster, line, "").await;
    assert!(text.contains(expected), "kubectl {line} shows no {expected:?}:\n{text}");
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: example.com/web:1, ports: [{containerPort: 80}]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applies_and_changes() {
    let cluster = Cluster::start().await;
    check(&cluster, "apply -f -", DEPLOYMENT, "deployment.apps/web created").await;
    check(&cluster, "apply -f -", DEPLOYMENT, "deployment.apps/web unchanged").await;
    check(&cluster, "apply -f -", &DEPLOYMENT.replace("replicas: 2", "replicas: 3"), "deployment.apps/web configured")
        .await;
    check(&cluster, "get deploy web -o jsonpath={.spec.replicas}", "", "3").await;
    check(&cluster, "scale deploy web --replicas=5", "", "deployment.apps/web scaled").await;
    check(&cluster, "label deploy web tier=front", "", "deployment.apps/web labeled").await;
    check(&cluster, "annotate deploy web a=b", "", "deployment.apps/web annotated").await;
    check(&cluster, "set image deploy/web web=example.com/web:2", "", "deployment.apps/web image updated").await;
    check(&cluster, "rollout restart deploy/web", "", "deployment.apps/web restarted").await;
    check(&cluster, "patch deploy web -p {\"spec\":{\"replicas\":1}}", "", "deployment.apps/web patched").await;
    check(&cluster, "patch deploy web --type=merge -p {\"spec\":{\"paused\":true}}", "", "deployment.apps/web patched")
        .await;
    let patch = "[{\"op\":\"remove\",\"path\":\"/spec/paused\"}]";
    check(&cluster, &format!("patch deploy web --type=json -p {patch}"), "", "deployment.apps/web patched").await;
    let text = run(&cluster, "diff -f -", DEPLOYMENT).await;
    assert!(text.contains("-  replicas: 1\n+  replicas: 2"), "{text}");
    check(&cluster, "apply --dry-run=server -f -", DEPLOYMENT, "deployment.apps/web configured (server dry run)").await;
    check(
        &cluster,
        "replace --force -f -",
        DEPLOYMENT,
        "deployment.apps \"web\" deleted\ndeployment.apps/web replaced",
    )
    .await;
    check(&cluster, "delete -f -", DEPLOYMENT, "deployment.apps \"web\" deleted").await;
    let wrong = DEPLOYMENT.replace("image:", "imagge:");
    let text = run(&cluster, "apply -f -", &wrong).await;
    assert!(
        text.contains("strict decoding error: unknown field \"spec.template.spec.containers[0].imagge\""),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shows_what_there_is() {
    let cluster = Cluster::start().await;
    run(&cluster, "apply -f -", DEPLOYMENT).await;
    shows(&cluster, "get deploy -o wide", "web    0/2     0            0").await;
    shows(&cluster, "get deploy -A", "default     web").await;
    shows(&cluster, "get deploy web -o yaml", "  progressDeadlineSeconds: 600").await;
    shows(&cluster, "get deploy -o name", "deployment.apps/web").await;
    shows(&cluster, "get deploy -o custom-columns=N:.metadata.name", "N\nweb").await;
    shows(&cluster, "get all --show-labels", "deployment.apps/web").await;
    shows(&cluster, "get deploy -l app=web --sort-by=.metadata.name", "web").await;
    shows(&cluster, "get deploy --chunk-size=1", "web").await;
    shows(&cluster, "get pods", "No resources found in default namespace.").await;
    shows(&cluster, "get pod nothing", "Error from server (NotFound): pods \"nothing\" not found").await;
    shows(&cluster, "get nonsense", "error: the server doesn't have a resource type \"nonsense\"").await;
    shows(&cluster, "describe deploy web", "StrategyType:           RollingUpdate").await;
    shows(&cluster, "rollout history deploy/web", "deployment.apps/web").await;
    shows(&cluster, "explain deploy.spec.replicas", "FIELD: replicas <integer>").await;
    shows(&cluster, "explain pod --recursive", "terminationGracePeriodSeconds\t<integer>").await;
    shows(&cluster, "explain pod.spec.containers.resources.limits", "<map[string]Quantity>").await;
    shows(&cluster, "api-resources --namespaced=false", "priorityclasses").await;
    shows(&cluster, "api-versions", "networking.k8s.io/v1").await;
    shows(&cluster, "version", "Server Version: v1.37.2+coracle.0").await;
    shows(&cluster, "get --raw /readyz?verbose", "readyz check passed").await;
    shows(&cluster, "get endpoints", "Warning: v1 Endpoints is deprecated in v1.33+").await;
    shows(
        &cluster,
        "wait deploy/web --for=jsonpath={.spec.replicas}=2 --timeout=5s",
        "deployment.apps/web condition met",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn makes_things_by_name() {
    let cluster = Cluster::start().await;
    check(&cluster, "create namespace other", "", "namespace/other created").await;
    check(&cluster, "create configmap c --from-literal=a=b -n other", "", "configmap/c created").await;
    check(&cluster, "create secret generic s --from-literal=a=b", "", "secret/s created").await;
    check(&cluster, "get secret s -o jsonpath={.data.a}", "", "Yg==").await;
    check(&cluster, "create serviceaccount robot", "", "serviceaccount/robot created").await;
    check(&cluster, "create role r --verb=get --resource=pods", "", "role.rbac.authorization.k8s.io/r created").await;
    check(&cluster, "run p --image=example.com/a:1 --restart=Never", "", "pod/p created").await;
    check(&cluster, "expose pod p --port=80", "", "service/p exposed").await;
    check(&cluster, "delete pod p --now", "", "pod \"p\" deleted").await;
    check(&cluster, "delete configmap --all -n other", "", "configmap \"c\" deleted").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_an_object() {
    let cluster = Cluster::start().await;
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Tested", "message": "hello", "type": "Normal", "source": {"component": "test"}});
    cluster.post("/api/v1/namespaces/default/events", &event).await;
    shows(&cluster, "events", "hello").await;
    shows(&cluster, "get events --field-selector=involvedObject.name=p", "Tested").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_until_it_has_seen_enough() {
    let cluster = Cluster::start().await;
    run(&cluster, "apply -f -", DEPLOYMENT).await;
    let scaled = async {
        // The watch has begun when its first rows are out; a change before that is in them.
        check(&cluster, "scale deploy web --replicas=4", "", "deployment.apps/web scaled").await;
    };
    let arguments = "wait deploy/web --for=jsonpath={.spec.replicas}=4 --timeout=20s";
    let (text, ()) = tokio::join!(run(&cluster, arguments, ""), scaled);
    assert_eq!(text, "deployment.apps/web condition met\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits() {
    let cluster = Cluster::start().await;
    run(&cluster, "apply -f -", DEPLOYMENT).await;
    check(&cluster, "edit deploy web", "", "deployment.apps/web edited").await;
    check(&cluster, "get deploy web -o jsonpath={.spec.replicas}", "", "7").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prints_changes_as_they_come() {
    let cluster = Cluster::start().await;
    run(&cluster, "apply -f -", DEPLOYMENT).await;
    let scaled = async {
        // The first row comes from the list; the change may fall before the watch begins, which then starts behind it.
        run(&cluster, "scale deploy web --replicas=4", "").await;
        run(&cluster, "scale deploy web --replicas=5", "").await;
    };
    let watching = run(&cluster, "get deploy -w --request-timeout=3s", "");
    let (text, ()) = tokio::join!(watching, scaled);
    assert!(text.starts_with("NAME   READY") && text.contains("0/5"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applies_on_the_server() {
    let cluster = Cluster::start().await;
    let check = async |line, stdin: &str, expected| check(&cluster, line, stdin, expected).await;
    let text = run(&cluster, "diff --server-side -f -", DEPLOYMENT).await;
    assert!(text.contains("+  replicas: 2"), "{text}");
    check("apply --server-side -f -", DEPLOYMENT, "deployment.apps/web serverside-applied").await;
    check("apply --server-side -f -", DEPLOYMENT, "deployment.apps/web serverside-applied").await;
    assert_eq!(run(&cluster, "diff --server-side -f -", DEPLOYMENT).await, "");
    check("scale deploy web --replicas=5", "", "deployment.apps/web scaled").await;
    let text = run(&cluster, "apply --server-side -f -", DEPLOYMENT).await;
    let conflict = r#"Apply failed with 1 conflict: conflict with "kubectl" with subresource "scale" using apps/v1: .spec.replicas"#;
    assert!(text.contains(conflict) && text.contains("--force-conflicts"), "{text}");
    check("apply --server-side --force-conflicts -f -", DEPLOYMENT, "deployment.apps/web serverside-applied").await;
    check("get deploy web -o jsonpath={.spec.replicas}", "", "2").await;
    shows(&cluster, "get deploy web -o yaml --show-managed-fields", "manager: kubectl\n    operation: Apply").await;
    let text = run(&cluster, "get deploy web -o yaml", "").await;
    assert!(!text.contains("managedFields"), "{text}");
    // What was applied by the client is taken over without a conflict.
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: '1'}\n";
    check("apply -f -", map, "configmap/c created").await;
    check("apply --server-side -f -", &map.replace("'1'", "'2'"), "configmap/c serverside-applied").await;
    check("get cm c -o jsonpath={.data.a}", "", "2").await;
    let wrong = map.replace("\ndata", "\ndta");
    shows_of(&cluster, "apply --server-side -f -", &wrong, ".dta: field not declared in schema").await;
}

async fn shows_of(cluster: &Cluster, line: &str, stdin: &str, expected: &str) {
    let text = run(cluster, line, stdin).await;
    assert!(text.contains(expected), "kubectl {line} shows no {expected:?}:\n{text}");
}
