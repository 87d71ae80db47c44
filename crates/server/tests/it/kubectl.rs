//! What a user types.

use crate::cluster::Cluster;

async fn run(cluster: &Cluster, line: &str, stdin: &str) -> (bool, String) {
    let arguments: Vec<&str> = line.split(' ').collect();
    let output = cluster.kubectl(&arguments, stdin).await;
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    eprintln!("$ kubectl {line}\n{text}");
    (output.status.success(), text)
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
async fn applies_shows_changes_and_deletes() {
    let cluster = Cluster::start().await;
    let (ok, text) = run(&cluster, "apply -f -", DEPLOYMENT).await;
    assert!(ok && text == "deployment.apps/web created\n", "{text}");
    let (_, text) = run(&cluster, "apply -f -", DEPLOYMENT).await;
    assert_eq!(text, "deployment.apps/web unchanged\n");
    let (_, text) = run(&cluster, "apply -f -", &DEPLOYMENT.replace("replicas: 2", "replicas: 3")).await;
    assert_eq!(text, "deployment.apps/web configured\n");
    let (_, text) = run(&cluster, "get deploy -o wide", "").await;
    assert!(text.contains("web    0/3     0            0"), "{text}");
    let (_, text) = run(&cluster, "get deploy web -o jsonpath={.spec.replicas}", "").await;
    assert_eq!(text, "3");
    run(&cluster, "api-resources", "").await;
    run(&cluster, "version", "").await;
    run(&cluster, "describe deploy web", "").await;
    run(&cluster, "scale deploy web --replicas=5", "").await;
    run(&cluster, "label deploy web a=b", "").await;
    run(&cluster, "patch deploy web -p {\"spec\":{\"replicas\":1}}", "").await;
    run(&cluster, "explain deploy.spec.replicas", "").await;
    run(&cluster, "diff -f -", DEPLOYMENT).await;
    run(&cluster, "delete deploy web", "").await;
}
