//! Each verb's semantics, over HTTP.

use serde_json::{Value, json};

use crate::cluster::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"k": value}})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "example.com/a:1"}]}})
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn what_is_created_can_be_read() {
    let cluster = Cluster::start().await;
    let made = cluster.post(MAPS, &map("a", "1")).await;
    assert_eq!(made.code, 201);
    let read = cluster.get(&format!("{MAPS}/a")).await;
    assert_eq!((read.code, read.value()), (200, made.value()));
    let metadata = &read.value()["metadata"];
    assert_eq!(metadata["uid"].as_str().unwrap().len(), 36);
    assert!(metadata["creationTimestamp"].as_str().unwrap().ends_with('Z'));

    let again = cluster.post(MAPS, &map("a", "1")).await;
    assert_eq!((again.code, again.message()), (409, "configmaps \"a\" already exists".to_owned()));
    let absent = cluster.get(&format!("{MAPS}/b")).await;
    assert_eq!((absent.code, absent.message()), (404, "configmaps \"b\" not found".to_owned()));
    assert_eq!(absent.value()["details"], json!({"name": "b", "kind": "configmaps"}));
}

#[tokio::test]
async fn names_are_generated() {
    let cluster = Cluster::start().await;
    let made = cluster.post(MAPS, &json!({"metadata": {"generateName": "web-"}})).await;
    let name = made.value()["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
}

#[tokio::test]
async fn what_clients_may_not_write_is_cleared() {
    let cluster = Cluster::start().await;
    let object = json!({"metadata": {"name": "a", "uid": "mine", "creationTimestamp": "2001-01-01T00:00:00Z",
        "deletionTimestamp": "2001-01-01T00:00:00Z"}});
    let made = cluster.post(MAPS, &object).await.value();
    assert_ne!(made["metadata"]["uid"], "mine");
    assert!(made["metadata"].get("deletionTimestamp").is_none());
    let object = json!({"metadata": {"name": "b", "namespace": "other"}});
    let refused = cluster.post(MAPS, &object).await;
    let why = "the namespace of the provided object does not match the namespace sent on the request";
    assert_eq!((refused.code, refused.message()), (400, why.to_owned()));
}

#[tokio::test]
async fn unknown_fields_in_three_modes() {
    let cluster = Cluster::start().await;
    let body = r#"{"metadata":{"name":"a"},"spec":{"replicaz":1,"replicas":1,"replicas":2,"selector":{"matchLabels":{"a":"b"}},
        "template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
    let path = "/apis/apps/v1/namespaces/default/deployments?dryRun=All&fieldValidation=";
    let ask = async |mode: &str| cluster.ask("POST", &format!("{path}{mode}"), &[], body).await;

    let strict = ask("Strict").await;
    let message = strict.message();
    assert_eq!(strict.code, 400, "{message}");
    let found = r#"strict decoding error: unknown field "spec.replicaz", duplicate field "spec.replicas""#;
    assert!(message.contains(found), "{message}");

    let warned = ask("Warn").await;
    assert_eq!(warned.code, 201, "{}", warned.message());
    assert!(warned.warnings()[0].starts_with(r#"299 - "unknown field \"spec.replicaz\""#), "{:?}", warned.warnings());
    assert_eq!(warned.warnings()[1], r#"299 - "duplicate field \"spec.replicas\"""#);
    assert_eq!(warned.value()["spec"]["replicas"], 2);
    assert!(warned.value()["spec"].get("replicaz").is_none());

    let ignored = ask("Ignore").await;
    assert_eq!((ignored.code, ignored.warnings().len()), (201, 0));
    assert_eq!(ask("Nonsense").await.code, 422);
}

#[tokio::test]
async fn yaml_that_repeats_itself_in_three_modes() {
    let cluster = Cluster::start().await;
    let body = "zz: 1\nmetadata: {name: a}\ndata:\n  k: a\n  k: b\naa: 2\n";
    let ask = async |mode: &str| {
        let path = format!("{MAPS}?dryRun=All&fieldValidation={mode}");
        cluster.ask("POST", &path, &[("content-type", "application/yaml")], body).await
    };
    let strict = ask("Strict").await;
    let found = "strict decoding error: yaml: unmarshal errors:\n  line 5: key \"k\" already set in map, unknown field \"aa\", unknown field \"zz\"";
    assert!(strict.code == 400 && strict.message().contains(found), "{}", strict.message());
    // A line break has no place in a header: upstream drops the first warning, here the line break goes.
    assert_eq!(ask("Warn").await.warnings().len(), 3);
    let ignored = ask("Ignore").await;
    assert_eq!((ignored.code, &ignored.value()["data"]), (201, &json!({"k": "b"})));
}

#[tokio::test]
async fn what_has_no_columns_is_not_answered_as_a_table() {
    let cluster = Cluster::start().await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let body = r#"{"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}}"#;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    assert_eq!(cluster.ask("POST", path, &accept, body).await.code, 406);
    assert_eq!(cluster.ask("GET", "/api/v1", &accept, "").await.code, 406);
    cluster.post(MAPS, &json!({"metadata": {"name": "a"}})).await;
    assert_eq!(cluster.ask("GET", &format!("{MAPS}/a"), &accept, "").await.value()["kind"], "Table");
}

#[tokio::test]
async fn a_scale_is_a_table_of_its_own() {
    let cluster = Cluster::start().await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    let all = "/apis/apps/v1/namespaces/default/deployments";
    cluster.post(all, &json!({"metadata": {"name": "a"}, "spec": spec})).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = cluster.ask("GET", &format!("{all}/a/scale"), &accept, "").await.value();
    let names: Vec<&Value> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|column| &column["name"]).collect();
    assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..3], [json!("a"), json!(2), json!(0)]);
}

#[tokio::test]
async fn values_of_a_wrong_type_are_refused_in_go_s_words() {
    let cluster = Cluster::start().await;
    let body = json!({"metadata": {"name": "a"}, "spec": {"replicas": "three"}});
    let refused = cluster.post("/apis/apps/v1/namespaces/default/deployments", &body).await;
    let why = "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32";
    assert_eq!((refused.code, refused.message()), (400, why.to_owned()));
}

#[tokio::test]
async fn yaml_in_and_out() {
    let cluster = Cluster::start().await;
    let headers = [("content-type", "application/yaml"), ("accept", "application/yaml")];
    let made = cluster.ask("POST", MAPS, &headers, "metadata: {name: a}\ndata: {k: \"on\"}\n").await;
    let text = String::from_utf8(made.body.to_vec()).unwrap();
    assert_eq!(made.code, 201, "{text}");
    assert_eq!(made.headers["content-type"], "application/yaml");
    assert!(text.contains("kind: ConfigMap"), "{text}");
    let xml = cluster.ask("POST", MAPS, &[("content-type", "application/xml")], "<a/>").await;
    assert_eq!(xml.code, 415);
    let protobuf = cluster.ask("GET", MAPS, &[("accept", "application/vnd.kubernetes.protobuf")], "").await;
    assert_eq!(protobuf.code, 406);
}

#[tokio::test]
async fn updates_conflict_on_an_older_revision() {
    let cluster = Cluster::start().await;
    let path = format!("{MAPS}/a");
    let first = cluster.post(MAPS, &map("a", "1")).await.value();
    let mut second = first.clone();
    second["data"]["k"] = "2".into();
    let second = cluster.put(&path, &second).await;
    assert_eq!(second.code, 200);
    assert!(revision(&second.value()) > revision(&first));

    let mut stale = first.clone();
    stale["data"]["k"] = "3".into();
    let refused = cluster.put(&path, &stale).await;
    let why = "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again";
    assert_eq!((refused.code, refused.message()), (409, why.to_owned()));

    let unconditional = cluster.put(&path, &map("a", "4")).await;
    assert_eq!((unconditional.code, &unconditional.value()["data"]["k"]), (200, &json!("4")));

    let mut other = map("a", "5");
    other["metadata"]["uid"] = "another".into();
    assert_eq!(cluster.put(&path, &other).await.code, 409);
    assert_eq!(cluster.put(&path, &map("b", "5")).await.code, 400);
    assert_eq!(cluster.put(&format!("{MAPS}/zzz"), &map("zzz", "5")).await.code, 404);
}

#[tokio::test]
async fn a_write_that_changes_nothing_keeps_the_revision() {
    let cluster = Cluster::start().await;
    let first = cluster.post(MAPS, &map("a", "1")).await.value();
    let again = cluster.put(&format!("{MAPS}/a"), &first).await.value();
    assert_eq!(again, first);
    let patched = cluster.patch(&format!("{MAPS}/a"), "merge", &json!({"data": {"k": "1"}})).await.value();
    assert_eq!(patched, first);
}

#[tokio::test]
async fn patches_of_three_kinds() {
    let cluster = Cluster::start().await;
    let path = "/api/v1/namespaces/default/services";
    let service = json!({"metadata": {"name": "a"}, "spec": {"type": "ExternalName", "externalName": "x.example"}});
    let made = cluster.post(path, &service).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let path = format!("{path}/a");

    let patch = json!([{"op": "replace", "path": "/spec/externalName", "value": "y.example"}]);
    assert_eq!(cluster.patch(&path, "json", &patch).await.value()["spec"]["externalName"], "y.example");
    let failing = json!([{"op": "test", "path": "/spec/externalName", "value": "z"}]);
    assert_eq!(cluster.patch(&path, "json", &failing).await.code, 422);

    let patch = json!({"metadata": {"labels": {"a": "b", "c": "d"}}});
    cluster.patch(&path, "merge", &patch).await;
    let patch = json!({"metadata": {"labels": {"a": null}}});
    assert_eq!(cluster.patch(&path, "merge", &patch).await.value()["metadata"]["labels"], json!({"c": "d"}));

    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
            {"name": "one", "image": "i:1"}, {"name": "two", "image": "i:2"}]}}}});
    assert_eq!(cluster.post(deployments, &deployment).await.code, 201);
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "two", "image": "i:3"}]}}}});
    let patched = cluster.patch(&format!("{deployments}/a"), "strategic-merge", &patch).await.value();
    let containers = patched["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let images: Vec<&Value> = containers.iter().map(|container| &container["image"]).collect();
    assert_eq!(images, ["i:1", "i:3"]);
    assert_eq!(patched["metadata"]["generation"], 2);

    let headers = [("content-type", "application/apply-patch+cbor")];
    let unknown = cluster.ask("PATCH", &path, &headers, "{}").await;
    assert_eq!(unknown.code, 415);
    assert!(unknown.message().ends_with("application/apply-patch+yaml"), "{}", unknown.message());
}

#[tokio::test]
async fn concurrent_patches_all_land() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, &map("a", "1")).await;
    let path = format!("{MAPS}/a");
    let patches: Vec<Value> = (0..20).map(|n| json!({"data": {format!("k{n}"): "v"}})).collect();
    let answers =
        futures_util::future::join_all(patches.iter().map(|patch| cluster.patch(&path, "merge", patch))).await;
    assert!(answers.iter().all(|answer| answer.code == 200));
    assert_eq!(cluster.get(&path).await.value()["data"].as_object().unwrap().len(), 21);
}

#[tokio::test]
async fn dry_runs_change_nothing() {
    let cluster = Cluster::start().await;
    let made = cluster.post(&format!("{MAPS}?dryRun=All"), &map("a", "1")).await;
    assert_eq!(made.code, 201);
    assert!(made.value()["metadata"].get("resourceVersion").is_none());
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.code, 404);

    let real = cluster.post(MAPS, &map("a", "1")).await.value();
    let path = format!("{MAPS}/a");
    let patched = cluster.patch(&format!("{path}?dryRun=All"), "merge", &json!({"data": {"k": "2"}})).await.value();
    assert_eq!(patched["data"]["k"], "2");
    assert_eq!(cluster.delete(&path, &json!({"dryRun": ["All"]})).await.code, 200);
    assert_eq!(cluster.get(&path).await.value(), real);
    assert_eq!(cluster.post(&format!("{MAPS}?dryRun=Some"), &map("b", "1")).await.code, 422);
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        cluster.post(MAPS, &map(name, "1")).await;
    }
    let first = cluster.get(&format!("{MAPS}?limit=2")).await.value();
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    cluster.delete(&format!("{MAPS}/c"), &json!({})).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = cluster.get(&format!("{MAPS}?limit=2&continue={token}")).await.value();
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let last = cluster.get(&format!("{MAPS}?limit=2&continue={token}")).await.value();
    assert_eq!(names(&last), ["e"]);
    assert!(last["metadata"].get("continue").is_none());
    assert_eq!(cluster.get(&format!("{MAPS}?continue=nonsense")).await.code, 400);
}

#[tokio::test]
async fn an_expired_page_comes_with_a_fresh_token() {
    let limits = store::state::Limits { commits: 4, ..Default::default() };
    let cluster = Cluster::with(|config| config.store = store::memory::Memory::with_limits(limits)).await;
    for name in ["a", "b", "c"] {
        cluster.post(MAPS, &map(name, "1")).await;
    }
    let first = cluster.get(&format!("{MAPS}?limit=1")).await.value();
    for n in 0..20 {
        cluster.put(&format!("{MAPS}/a"), &map("a", &n.to_string())).await;
    }
    let token = first["metadata"]["continue"].as_str().unwrap();
    let expired = cluster.get(&format!("{MAPS}?limit=1&continue={token}")).await;
    assert_eq!((expired.code, &expired.value()["reason"]), (410, &json!("Expired")));
    let fresh = expired.value()["metadata"]["continue"].as_str().unwrap().to_owned();
    assert_eq!(names(&cluster.get(&format!("{MAPS}?continue={fresh}")).await.value()), ["b", "c"]);

    let old = revision(&first);
    assert_eq!(cluster.get(&format!("{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact")).await.code, 410);
    assert_eq!(cluster.get(&format!("{MAPS}?resourceVersion={old}&resourceVersionMatch=NotOlderThan")).await.code, 200);
    let mut watch = cluster.watch(&format!("{MAPS}?watch=1&resourceVersion=1"), &[]).await;
    let event = watch.next().await;
    assert!(event.is_none_or(|event| event["type"] == "ERROR" && event["object"]["code"] == 410));
}

#[tokio::test]
async fn lists_at_revisions() {
    let cluster = Cluster::start().await;
    let first = revision(&cluster.post(MAPS, &map("a", "1")).await.value());
    cluster.post(MAPS, &map("b", "1")).await;
    let list = async |query: &str| cluster.get(&format!("{MAPS}?{query}")).await;
    let exact = list(&format!("resourceVersion={first}&resourceVersionMatch=Exact")).await.value();
    assert_eq!((names(&exact), revision(&exact)), (vec!["a"], first));
    let newer = list(&format!("resourceVersion={first}")).await.value();
    assert_eq!(names(&newer), ["a", "b"]);
    assert_eq!(revision(&newer), first + 1);
    assert_eq!(list("resourceVersionMatch=Exact").await.code, 422);
    assert_eq!(list("resourceVersion=0&resourceVersionMatch=Exact").await.code, 422);
    assert_eq!(list("sendInitialEvents=true").await.code, 422);
    let future = list("resourceVersion=99999").await;
    assert_eq!(future.code, 504);
    assert_eq!(future.value()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn a_list_says_its_items_kind_once_and_a_watch_each_time() {
    let cluster = Cluster::start().await;
    let made = cluster.post(MAPS, &map("a", "1")).await.value();
    let list = cluster.get(MAPS).await.value();
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("ConfigMapList"), &json!("v1")));
    let mut item = made.clone();
    item.as_object_mut().unwrap().retain(|name, _| !["apiVersion", "kind"].contains(&name.as_str()));
    assert_eq!(list["items"], json!([item]));
    let mut watch = cluster.watch(&format!("{MAPS}?watch=1"), &[]).await;
    assert_eq!(watch.next().await.unwrap()["object"], made);
}

#[tokio::test]
async fn selectors() {
    let cluster = Cluster::start().await;
    let mut labelled = map("a", "1");
    labelled["metadata"]["labels"] = json!({"app": "web"});
    cluster.post(MAPS, &labelled).await;
    cluster.post(MAPS, &map("b", "1")).await;
    let list = async |query: &str| cluster.get(&format!("{MAPS}?{query}")).await;
    assert_eq!(names(&list("labelSelector=app%3Dweb").await.value()), ["a"]);
    assert_eq!(names(&list("labelSelector=!app").await.value()), ["b"]);
    assert_eq!(names(&list("fieldSelector=metadata.name%3Db").await.value()), ["b"]);
    assert_eq!(names(&list("fieldSelector=metadata.name!%3Db").await.value()), ["a"]);
    assert_eq!(list("labelSelector=a%20in%20b").await.code, 400);
    let unknown = list("fieldSelector=spec.x%3Db").await;
    assert_eq!(unknown.code, 400);
    cluster.post("/api/v1/namespaces/default/pods", &pod("p")).await;
    let pods = "/api/v1/pods?fieldSelector=status.phase%3DPending,spec.nodeName%3D";
    assert_eq!(names(&cluster.get(pods).await.value()), ["p"]);
}

#[tokio::test]
async fn tables_and_metadata() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, &map("a", "1")).await;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let answer = cluster.ask("GET", MAPS, &table, "").await.value();
    assert_eq!(answer["kind"], "Table");
    assert_eq!(answer["columnDefinitions"][0]["name"], "Name");
    assert_eq!(answer["rows"][0]["cells"][0], "a");
    assert_eq!(answer["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let whole = cluster.ask("GET", &format!("{MAPS}?includeObject=Object"), &table, "").await.value();
    assert_eq!(whole["rows"][0]["object"]["data"]["k"], "1");
    let none = cluster.ask("GET", &format!("{MAPS}?includeObject=None"), &table, "").await.value();
    assert!(none["rows"][0]["object"].is_null());
    let partial = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let answer = cluster.ask("GET", MAPS, &partial, "").await.value();
    assert_eq!((&answer["kind"], names(&answer)), (&json!("PartialObjectMetadataList"), vec!["a"]));
    assert!(answer["items"][0].get("data").is_none());
}

#[tokio::test]
async fn large_lists_are_compressed_on_request() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, &map("a", &"x".repeat(200_000))).await;
    let plain = cluster.get(MAPS).await;
    assert!(plain.headers.get("content-encoding").is_none());
    let packed = cluster.ask("GET", MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed.body[..]), &mut text).unwrap();
    assert_eq!(text, plain.body);
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let cluster = Cluster::start().await;
    let large = cluster.post(MAPS, &map("a", &"x".repeat(4 << 20))).await;
    assert_eq!((large.code, large.message()), (413, "Request entity too large: limit is 3145728".to_owned()));
}

#[tokio::test]
async fn paths_that_lead_nowhere() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.get("/api/v1/namespaces/default/nothing").await.code, 404);
    assert_eq!(cluster.get("/apis/apps/v1beta1/deployments").await.code, 404);
    assert_eq!(cluster.get("/api/v1/namespaces/default/nodes").await.code, 404);
    assert_eq!(cluster.get("/nothing").await.code, 404);
    assert_eq!(cluster.get("/api/v1/pods/a").await.code, 405);
    assert_eq!(cluster.post("/api/v1/configmaps", &map("a", "1")).await.code, 405);
    assert_eq!(cluster.delete("/api/v1/namespaces", &json!({})).await.code, 405);
}

#[tokio::test]
async fn health_and_version() {
    let cluster = Cluster::start().await;
    for path in ["/livez", "/readyz", "/healthz", "/livez/ping"] {
        assert_eq!(cluster.get(path).await.body, "ok", "{path}");
    }
    let verbose = cluster.get("/readyz?verbose").await;
    assert_eq!(verbose.body, "[+]ping ok\n[+]shutdown ok\nreadyz check passed\n");
    assert_eq!(cluster.get("/livez/nothing").await.code, 404);
    assert_eq!(cluster.get("/version").await.value()["gitVersion"], "v1.37.2+coracle.0");
}

#[tokio::test]
async fn discovery_in_both_forms() {
    let cluster = Cluster::start().await;
    let v1 = cluster.get("/api/v1").await.value();
    let pods = v1["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods").unwrap();
    assert_eq!((&pods["shortNames"], &pods["singularName"]), (&json!(["po"]), &json!("pod")));
    assert_eq!(cluster.get("/apis/apps").await.value()["preferredVersion"]["groupVersion"], "apps/v1");

    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json")];
    let all = cluster.ask("GET", "/apis", &accept, "").await;
    assert_eq!(all.headers["content-type"], "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let groups = all.value();
    let apps = groups["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
    assert_eq!(apps["versions"][0]["resources"][0]["resource"], "deployments");
    let tag = all.headers["etag"].to_str().unwrap();
    let same = cluster.ask("GET", "/apis", &[accept[0], ("if-none-match", tag)], "").await;
    assert_eq!((same.code, same.body.len()), (304, 0));
}

#[tokio::test]
async fn openapi_is_there_for_every_group() {
    let cluster = Cluster::start().await;
    let index = cluster.get("/openapi/v3").await.value();
    for (path, entry) in index["paths"].as_object().unwrap() {
        let answer = cluster.get(entry["serverRelativeURL"].as_str().unwrap()).await;
        assert_eq!((answer.code, &answer.value()["openapi"]), (200, &json!("3.0.0")), "{path}");
    }
}

#[tokio::test]
async fn events_are_served_from_two_groups() {
    let cluster = Cluster::start().await;
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Tested", "message": "hello", "type": "Normal", "reportingComponent": "test", "source": {"component": "test"}});
    let made = cluster.post("/api/v1/namespaces/default/events", &event).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let other = cluster.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.value();
    assert_eq!(other["apiVersion"], "events.k8s.io/v1");
    assert_eq!((&other["note"], &other["regarding"]["name"]), (&json!("hello"), &json!("p")));
    let list = cluster.get("/apis/events.k8s.io/v1/events").await.value();
    assert_eq!((&list["kind"], &list["items"][0]["note"]), (&json!("EventList"), &json!("hello")));
}

/// Panics when it is asked about one name.
struct Fragile;

impl server::admit::Plugin for Fragile {
    fn name(&self) -> &'static str {
        "Fragile"
    }

    fn validate<'a>(
        &'a self,
        at: &'a server::admit::AdmissionAttributes<'a>,
        _: Option<&'a Value>,
    ) -> server::identity::BoxFuture<'a, Result<(), api::status::Status>> {
        assert_ne!(at.name, "fragile", "a test of what a panic does");
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test]
async fn a_panic_is_one_request_s_500() {
    let cluster = Cluster::with(|config| config.admission.0.push(Box::new(Fragile))).await;
    assert_eq!(cluster.post(MAPS, &map("fragile", "1")).await.code, 500);
    assert_eq!(cluster.post(MAPS, &map("sturdy", "1")).await.code, 201);
}

/// Labels what is created, and refuses what is called `no`.
struct Labels;

impl server::admit::Plugin for Labels {
    fn name(&self) -> &'static str {
        "Labels"
    }

    fn admit<'a>(
        &'a self,
        at: &'a server::admit::AdmissionAttributes<'a>,
        object: &'a mut Value,
    ) -> server::identity::BoxFuture<'a, Result<(), api::status::Status>> {
        if at.is("", "configmaps") {
            object["metadata"]["labels"] = json!({"by": at.user.name});
            at.warnings.add("labelled");
        }
        Box::pin(async { Ok(()) })
    }

    fn validate<'a>(
        &'a self,
        at: &'a server::admit::AdmissionAttributes<'a>,
        object: Option<&'a Value>,
    ) -> server::identity::BoxFuture<'a, Result<(), api::status::Status>> {
        let refused = (at.name == "no").then(|| at.forbidden(object, "it is called no"));
        Box::pin(async { refused.map_or(Ok(()), Err) })
    }
}

#[tokio::test]
async fn admission_changes_refuses_and_warns() {
    let cluster = Cluster::with(|config| config.admission.0.push(Box::new(Labels))).await;
    let made = cluster.post(MAPS, &map("a", "1")).await;
    assert_eq!((made.code, &made.value()["metadata"]["labels"]["by"]), (201, &json!("tester")));
    assert_eq!(made.warnings(), [r#"299 - "labelled""#]);
    let refused = cluster.post(MAPS, &map("no", "1")).await;
    assert_eq!((refused.code, refused.message()), (403, "configmaps \"no\" is forbidden: it is called no".to_owned()));
    let patched = cluster.patch(&format!("{MAPS}/a"), "merge", &json!({"metadata": {"labels": {"by": "me"}}})).await;
    assert_eq!(patched.value()["metadata"]["labels"]["by"], "tester", "admission has the last word");
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_for_a_time_goes_by_itself() {
    use std::sync::atomic::{AtomicI64, Ordering};
    let ahead = std::sync::Arc::new(AtomicI64::new(0));
    let hands = ahead.clone();
    let cluster = Cluster::with(move |config| {
        config.clock = std::sync::Arc::new(move || {
            jiff::Timestamp::now() + jiff::SignedDuration::from_secs(hands.load(Ordering::Relaxed))
        });
    })
    .await;
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Tested", "type": "Normal", "source": {"component": "test"}});
    let path = "/api/v1/namespaces/default/events";
    assert_eq!(cluster.post(path, &event).await.code, 201);
    let mut watch = cluster.watch(&format!("{path}?watch=true"), &[]).await;
    assert!(watch.line().await.starts_with("ADDED e "));
    ahead.store(3601, Ordering::Relaxed);
    tokio::spawn(cluster.server.clone().maintain());
    assert!(watch.line().await.starts_with("DELETED e "));
}

#[tokio::test]
async fn put_creates_where_it_may() {
    let cluster = Cluster::start().await;
    let path = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l";
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "me", "leaseDurationSeconds": 40,
        "renewTime": "2026-01-01T00:00:00.000000Z"}});
    let made = cluster.put(path, &lease).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let mut renewed = made.value();
    renewed["spec"]["renewTime"] = "2026-01-01T00:00:10.000000Z".into();
    let again = cluster.put(path, &renewed).await;
    assert_eq!(again.code, 200, "{}", again.message());
    assert!(revision(&again.value()) > revision(&made.value()));
    assert_eq!(cluster.get(path).await.value(), again.value());
    // A revision or a uid says that it was there before.
    let gone = json!({"metadata": {"name": "m", "uid": made.value()["metadata"]["uid"]}, "spec": lease["spec"]});
    assert_eq!(cluster.put("/apis/coordination.k8s.io/v1/namespaces/default/leases/m", &gone).await.code, 409);
}
