//! Server-side apply and `managedFields`, over HTTP.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn apply(cluster: &Cluster, path: &str, body: &str) -> Answer {
    let join = if path.contains('?') { '&' } else { '?' };
    let path = if path.contains("fieldManager") { path.to_owned() } else { format!("{path}{join}fieldManager=me") };
    cluster.ask("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], body.to_owned()).await
}

fn map(data: Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}).to_string()
}

fn deployment(replicas: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "a:1"}]}}}})
}

/// The entries as `Operation manager[/subresource] fields`.
fn owners(object: &Value) -> Vec<String> {
    let line = |entry: &Value| {
        let text = |field: &str| entry[field].as_str().unwrap_or("-").to_owned();
        let sub = entry.get("subresource").map_or(String::new(), |sub| format!("/{}", sub.as_str().unwrap()));
        format!("{} {}{sub} {}", text("operation"), text("manager"), entry["fieldsV1"])
    };
    object["metadata"]["managedFields"].as_array().into_iter().flatten().map(line).collect()
}

#[tokio::test]
async fn creations_are_owned_as_upstream_has_it() {
    let cluster = Cluster::start().await;
    let body = deployment(json!(1)).to_string();
    let headers = [("content-type", "application/json"), ("user-agent", "kubectl-create/v1.36.0 (linux/amd64)")];
    let made = cluster.ask("POST", DEPLOYMENTS, &headers, body).await.value();
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!((&entry["manager"], &entry["operation"]), (&json!("kubectl-create"), &json!("Update")));
    assert_eq!((&entry["apiVersion"], &entry["time"]), (&json!("apps/v1"), &made["metadata"]["creationTimestamp"]));
    // As `kubectl create deployment` on v1.37 has it, less the container's generated name.
    let expected = json!({"f:spec": {
        "f:progressDeadlineSeconds": {}, "f:replicas": {}, "f:revisionHistoryLimit": {}, "f:selector": {},
        "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
        "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {
            "f:containers": {"k:{\"name\":\"c\"}": {
                ".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {},
                "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {}}},
            "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {},
            "f:terminationGracePeriodSeconds": {},
        }},
    }});
    assert_eq!(entry["fieldsV1"], expected);
    let service = json!({"metadata": {"name": "s"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    let made = cluster.post("/api/v1/namespaces/default/services?fieldManager=m", &service).await.value();
    let expected = json!({"f:spec": {
        "f:internalTrafficPolicy": {}, "f:selector": {}, "f:sessionAffinity": {}, "f:type": {},
        "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {
            ".": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}},
    }});
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"], expected);
    assert_eq!(
        owners(&cluster.get("/api/v1/namespaces/default").await.value()),
        [r#"Update unknown {"f:metadata":{"f:labels":{".":{},"f:kubernetes.io/metadata.name":{}}}}"#]
    );
}

#[tokio::test]
async fn applying_creates_and_changes() {
    let cluster = Cluster::start().await;
    let path = format!("{MAPS}/a");
    let made = apply(&cluster, &path, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: '1'}\n").await;
    assert_eq!((made.code, made.value()["data"]["x"].clone()), (201, json!("1")));
    assert_eq!(owners(&made.value()), [r#"Apply me {"f:data":{"f:x":{}}}"#]);
    // Nothing new leaves everything as it is, JSON or YAML.
    let again = apply(&cluster, &path, &map(json!({"x": "1"}))).await;
    assert_eq!((again.code, again.value()), (200, made.value()));
    let changed = apply(&cluster, &path, &map(json!({"y": "2"}))).await.value();
    assert_eq!(changed["data"], json!({"y": "2"}));
    assert_ne!(changed["metadata"]["resourceVersion"], made.value()["metadata"]["resourceVersion"]);
    assert_eq!(changed["metadata"]["uid"], made.value()["metadata"]["uid"]);
    let dry = apply(&cluster, &format!("{path}?dryRun=All"), &map(json!({"z": "3"}))).await;
    assert_eq!((dry.code, dry.value()["data"].clone()), (200, json!({"z": "3"})));
    assert_eq!(cluster.get(&path).await.value()["data"], json!({"y": "2"}));
}

#[tokio::test]
async fn conflicts_and_force() {
    let cluster = Cluster::start().await;
    let path = format!("{DEPLOYMENTS}/web");
    assert_eq!(apply(&cluster, &path, &deployment(json!(1)).to_string()).await.code, 201);
    let scale =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": 4}});
    let scaled = cluster.put(&format!("{path}/scale?fieldManager=hpa"), &scale).await;
    assert_eq!((scaled.code, scaled.value()["spec"]["replicas"].clone()), (200, json!(4)));
    let entries = cluster.get(&path).await.value()["metadata"]["managedFields"].clone();
    let hpa = entries.as_array().unwrap().iter().find(|entry| entry["manager"] == "hpa").unwrap();
    assert_eq!((&hpa["subresource"], &hpa["apiVersion"]), (&json!("scale"), &json!("apps/v1")));
    assert_eq!(hpa["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    let refused = apply(&cluster, &path, &deployment(json!(1)).to_string()).await;
    let who = r#"conflict with "hpa" with subresource "scale" using apps/v1"#;
    assert_eq!(
        (refused.code, refused.message()),
        (409, format!("Apply failed with 1 conflict: {who}: .spec.replicas"))
    );
    assert_eq!(
        refused.value()["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": who, "field": ".spec.replicas"}])
    );
    assert_eq!(refused.value()["reason"], "Conflict");
    let mut without = deployment(json!(1));
    without["spec"].as_object_mut().unwrap().remove("replicas");
    let given_up = apply(&cluster, &path, &without.to_string()).await;
    assert_eq!((given_up.code, given_up.value()["spec"]["replicas"].clone()), (200, json!(4)));
    let forced = apply(&cluster, &format!("{path}?force=true"), &deployment(json!(1)).to_string()).await.value();
    assert_eq!(forced["spec"]["replicas"], 1);
    assert!(owners(&forced).iter().all(|line| !line.contains("hpa")), "{:?}", owners(&forced));
    // The Scale can be applied too, and knows its owner.
    let config =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": 2}});
    let refused = apply(&cluster, &format!("{path}/scale?fieldManager=other"), &config.to_string()).await;
    assert_eq!(refused.message(), "Apply failed with 1 conflict: conflict with \"me\": .spec.replicas");
    let applied = apply(&cluster, &format!("{path}/scale?fieldManager=other&force=true"), &config.to_string()).await;
    assert_eq!((applied.code, applied.value()["spec"]["replicas"].clone()), (200, json!(2)));
}

#[tokio::test]
async fn status_and_specification_have_owners_of_their_own() {
    let cluster = Cluster::start().await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "a:1"}]}, "status": {"phase": "Failed"}});
    let made = cluster.post(&format!("{PODS}?fieldManager=m"), &pod).await.value();
    assert!(made["metadata"]["managedFields"][0]["fieldsV1"].get("f:status").is_none());
    let mut pod = made.clone();
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pod["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    let path = format!("{PODS}/p/status?fieldManager=kubelet");
    let updated = cluster.put(&path, &pod).await.value();
    let kubelet = r#"Update kubelet/status {"f:status":{"f:conditions":{".":{},"k:{\"type\":\"Ready\"}":{".":{},"f:lastProbeTime":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}}},"f:phase":{}}}"#;
    assert!(owners(&updated).contains(&kubelet.to_owned()), "{:?}", owners(&updated));
    let patch = json!({"status": {"phase": "Succeeded"}});
    let patched = cluster.patch(&format!("{PODS}/p/status?fieldManager=x"), "merge", &patch).await.value();
    assert!(
        owners(&patched).contains(&r#"Update x/status {"f:status":{"f:phase":{}}}"#.to_owned()),
        "{:?}",
        owners(&patched)
    );
    let config = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {phase: Running}\n";
    let conflict = apply(&cluster, &format!("{PODS}/p/status"), config).await.message();
    assert_eq!(
        conflict,
        "Apply failed with 1 conflict: conflict with \"x\" with subresource \"status\" using v1: .status.phase"
    );
    let absent = apply(&cluster, &format!("{PODS}/q/status"), &config.replace("name: p", "name: q")).await;
    assert_eq!((absent.code, absent.message()), (404, "pods \"q\" not found".to_owned()));
    // The scheduler's binding owns nothing, as upstream has it.
    let binding = json!({"metadata": {"name": "p"}, "target": {"name": "n"}});
    assert_eq!(cluster.post(&format!("{PODS}/p/binding"), &binding).await.code, 201);
    let bound = cluster.get(&format!("{PODS}/p")).await.value();
    assert_eq!((bound["spec"]["nodeName"].clone(), owners(&bound)), (json!("n"), owners(&patched)));
}

#[tokio::test]
async fn requests_that_are_none() {
    let cluster = Cluster::start().await;
    let path = format!("{MAPS}/a");
    let media = [("content-type", "application/apply-patch+yaml")];
    let good = map(json!({}));
    let answer = cluster.ask("PATCH", &path, &media, good.clone()).await;
    let message =
        r#"PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#;
    assert_eq!((answer.code, answer.message()), (422, message.to_owned()));
    let answer = cluster.patch(&format!("{path}?force=true"), "merge", &json!({})).await;
    let message =
        r#"PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch"#;
    assert_eq!((answer.code, answer.message()), (422, message.to_owned()));
    let with = |change: fn(&mut Value)| {
        let mut config: Value = serde_json::from_str(&map(json!({"a": "b"}))).unwrap();
        change(&mut config);
        config.to_string()
    };
    for (body, code, message) in [
        (with(|c| c["kind"] = json!("Secret")), 400, "invalid object type: /v1, Kind=Secret"),
        (
            "[]".to_owned(),
            400,
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        ("{".to_owned(), 400, "error decoding patch: error converting YAML to JSON: yaml: "),
        (with(|c| c["metadata"]["managedFields"] = json!([])), 400, "metadata.managedFields must be nil"),
        (
            with(|c| c["metadata"]["name"] = json!("b")),
            400,
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            with(|c| drop(c["metadata"].as_object_mut().unwrap().remove("name"))),
            400,
            "the name of the object (a based on URL) was undeterminable: name must be provided",
        ),
        (
            with(|c| c["foo"] = json!(1)),
            500,
            "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .foo: field not declared in schema",
        ),
        (
            with(|c| c["metadata"]["uid"] = json!("u")),
            409,
            "Operation cannot be fulfilled on configmaps \"a\": uid mismatch: the provided object specified uid u, and no existing object was found",
        ),
        (with(|c| c["data"] = json!({"a b": "c"})), 422, "ConfigMap \"a\" is invalid: data[a b]: Invalid value"),
    ] {
        let answer = apply(&cluster, &path, &body).await;
        assert_eq!(answer.code, code, "{body} {}", answer.message());
        assert!(answer.message().starts_with(message), "{body}: {}", answer.message());
    }
    assert_eq!(cluster.get(&path).await.code, 404);
    let stale = with(|c| c["metadata"]["resourceVersion"] = json!("1"));
    apply(&cluster, &path, &good).await;
    let answer = apply(&cluster, &path, &stale).await;
    assert_eq!(answer.code, 409);
    assert!(answer.message().contains("the object has been modified"), "{}", answer.message());
}

#[tokio::test]
async fn fields_that_stand_twice() {
    let cluster = Cluster::start().await;
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  x: '1'\n  x: '2'\n";
    let json = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1", "x": "2"}}"#;
    let path = format!("{MAPS}/a");
    for (body, line) in [(text, 6), (json, 1)] {
        let why = format!(
            "error converting YAML to JSON: yaml: unmarshal errors:\n  line {line}: key \"x\" already set in map"
        );
        let strict = apply(&cluster, &format!("{path}?fieldValidation=Strict"), body).await;
        assert_eq!((strict.code, strict.message()), (400, format!("error strict decoding patch: {why}")));
        let warned = apply(&cluster, &path, body).await;
        assert_eq!(warned.value()["data"]["x"], "2");
        let warning = warned.warnings().join(" ");
        assert!(warning.contains("already set in map"), "{warning}");
        let ignored = apply(&cluster, &format!("{path}?fieldValidation=Ignore"), body).await;
        assert!(ignored.code < 300 && ignored.warnings().is_empty());
    }
}

#[tokio::test]
async fn clients_may_reset_and_keep_the_owners() {
    let cluster = Cluster::start().await;
    let path = format!("{MAPS}/a");
    let made = apply(&cluster, &path, &map(json!({"x": "1"}))).await.value();
    let mut plain = made.clone();
    plain["metadata"].as_object_mut().unwrap().remove("managedFields");
    assert_eq!(cluster.put(&path, &plain).await.value(), made);
    plain["metadata"]["managedFields"] = json!([]);
    let reset = cluster.put(&path, &plain).await.value();
    assert!(reset["metadata"].get("managedFields").is_none(), "{reset}");
    let patched = cluster.patch(&format!("{path}?fieldManager=p"), "merge", &json!({"data": {"x": "2"}})).await.value();
    assert_eq!(owners(&patched), [""; 0]);
    let again = apply(&cluster, &path, &map(json!({"y": "1"}))).await.value();
    assert_eq!(
        owners(&again),
        [r#"Apply me {"f:data":{"f:y":{}}}"#, r#"Update before-first-apply {"f:data":{".":{},"f:x":{}}}"#]
    );
}

#[tokio::test]
async fn events_have_owners_in_both_of_their_versions() {
    let cluster = Cluster::start().await;
    let core = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Tested", "message": "hello", "type": "Normal", "source": {"component": "test"}});
    cluster.post("/api/v1/namespaces/default/events?fieldManager=m", &core).await;
    let path = "/apis/events.k8s.io/v1/namespaces/default/events/e";
    let refused = cluster.patch(path, "merge", &json!({"note": "bye"})).await;
    assert_eq!(refused.message(), "Event \"e\" is invalid: message: Invalid value: \"bye\": field is immutable");
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000001Z"}});
    let patched = cluster.patch(&format!("{path}?fieldManager=n"), "merge", &series).await;
    assert_eq!(patched.code, 200, "{}", patched.message());
    let lines = owners(&patched.value());
    assert!(lines.iter().any(|line| line.starts_with(r#"Update n {"f:series":{"#)), "{lines:?}");
    let first = lines.iter().find(|line| line.starts_with("Update m ")).unwrap();
    assert!(first.contains("f:involvedObject") && first.contains("f:message"), "{first}");
}

#[tokio::test]
async fn who_may_not_create_may_not_create_by_applying() {
    use server::identity::{Authorizer, Decision, User};
    use server::path::{Attributes, Target};
    struct NoCreation;
    impl Authorizer for NoCreation {
        fn authorize(&self, _: &User, attributes: &Attributes) -> Decision {
            match &attributes.target {
                Target::Resource(resource) if resource.resource == "configmaps" && attributes.verb == "create" => {
                    Decision::Deny("no".to_owned())
                }
                _ => Decision::Allow(String::new()),
            }
        }
    }
    let cluster = Cluster::with(|config| config.authorizer = Arc::new(NoCreation)).await;
    assert_eq!(apply(&cluster, &format!("{MAPS}/a"), &map(json!({}))).await.code, 403);
    let lease = json!({"metadata": {"name": "l"}, "spec": {}});
    assert!(cluster.put("/apis/coordination.k8s.io/v1/namespaces/default/leases/l", &lease).await.code < 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appliers_at_once_all_succeed() {
    let cluster = Arc::new(Cluster::start().await);
    let path = format!("{MAPS}/a");
    apply(&cluster, &path, &map(json!({"x": "1"}))).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..12 {
        let (cluster, path) = (cluster.clone(), format!("{path}?fieldManager=m{n}"));
        tasks.spawn(async move {
            let key = format!("k{n}");
            apply(&cluster, &path, &map(json!({key: "1"}))).await.code
        });
    }
    assert_eq!(tasks.join_all().await, [200; 12]);
    let object = cluster.get(&path).await.value();
    assert_eq!(object["data"].as_object().unwrap().len(), 13);
    assert_eq!(owners(&object).len(), 13);
}
