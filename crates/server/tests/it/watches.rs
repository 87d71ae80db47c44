//! Watches, as informers and kubectl use them.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cluster::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn make(cluster: &Cluster, name: &str, labels: Value) -> String {
    let made = cluster.post(MAPS, &json!({"metadata": {"name": name, "labels": labels}})).await;
    assert_eq!(made.code, 201, "{}", made.message());
    made.value()["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

async fn relabel(cluster: &Cluster, name: &str, labels: Value) -> String {
    let path = format!("{MAPS}/{name}");
    let patched = cluster.patch(&path, "merge", &json!({"metadata": {"labels": labels}})).await.value();
    patched["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn from_a_revision_on() {
    let cluster = Cluster::start().await;
    let first = make(&cluster, "a", json!({})).await;
    let second = make(&cluster, "b", json!({})).await;
    let mut watch = cluster.watch(&format!("{MAPS}?watch=true&resourceVersion={first}"), &[]).await;
    assert_eq!(watch.line().await, format!("ADDED b {second}"));
    let third = relabel(&cluster, "a", json!({"x": "y"})).await;
    assert_eq!(watch.line().await, format!("MODIFIED a {third}"));
    cluster.delete(&format!("{MAPS}/a"), &json!({})).await;
    // The last state comes with the revision of its deletion.
    let next = third.parse::<u64>().unwrap() + 1;
    assert_eq!(watch.line().await, format!("DELETED a {next}"));
}

#[tokio::test]
async fn without_a_revision_the_state_comes_first() {
    let cluster = Cluster::start().await;
    let first = make(&cluster, "a", json!({})).await;
    let mut watch = cluster.watch(&format!("{MAPS}?watch=true"), &[]).await;
    assert_eq!(watch.line().await, format!("ADDED a {first}"));
    let second = make(&cluster, "b", json!({})).await;
    assert_eq!(watch.line().await, format!("ADDED b {second}"));
}

#[tokio::test]
async fn watch_list_ends_its_initial_events_with_a_bookmark() {
    let cluster = Cluster::start().await;
    let first = make(&cluster, "a", json!({})).await;
    let path =
        format!("{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true");
    let mut watch = cluster.watch(&path, &[]).await;
    assert_eq!(watch.line().await, format!("ADDED a {first}"));
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(bookmark["object"]["metadata"]["annotations"], json!({"k8s.io/initial-events-end": "true"}));
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], first.as_str());
    assert_eq!(cluster.get(&format!("{MAPS}?watch=true&sendInitialEvents=true")).await.code, 422);
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let cluster = Cluster::start().await;
    make(&cluster, "a", json!({})).await;
    let mut watch = cluster.watch(&format!("{MAPS}?watch=true&labelSelector=x%3Dy"), &[]).await;
    let entered = relabel(&cluster, "a", json!({"x": "y"})).await;
    assert_eq!(watch.line().await, format!("ADDED a {entered}"));
    let changed = relabel(&cluster, "a", json!({"z": "z"})).await;
    assert_eq!(watch.line().await, format!("MODIFIED a {changed}"));
    let left = relabel(&cluster, "a", json!({"x": null})).await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["resourceVersion"]), (&json!("DELETED"), &json!(left)));
    assert_eq!(event["object"]["metadata"]["labels"]["x"], "y", "it leaves as it was last seen");
}

#[tokio::test]
async fn one_object_by_name() {
    let cluster = Cluster::start().await;
    make(&cluster, "a", json!({})).await;
    make(&cluster, "ab", json!({})).await;
    for path in [
        format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Da"),
        "/api/v1/watch/namespaces/default/configmaps/a".to_owned(),
    ] {
        let mut watch = cluster.watch(&path, &[]).await;
        assert!(watch.line().await.starts_with("ADDED a "), "{path}");
        relabel(&cluster, "ab", json!({"n": path.len().to_string()})).await;
        relabel(&cluster, "a", json!({"n": path.len().to_string()})).await;
        assert!(watch.line().await.starts_with("MODIFIED a "), "{path}");
    }
}

#[tokio::test]
async fn tables_have_headers_once() {
    let cluster = Cluster::start().await;
    make(&cluster, "a", json!({})).await;
    make(&cluster, "b", json!({})).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let mut watch = cluster.watch(&format!("{MAPS}?watch=true"), &accept).await;
    let (first, second) = (watch.next().await.unwrap(), watch.next().await.unwrap());
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    assert!(second["object"]["columnDefinitions"].is_null());
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn metadata_alone() {
    let cluster = Cluster::start().await;
    make(&cluster, "a", json!({})).await;
    let accept = [("accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io")];
    let mut watch = cluster.watch(&format!("{MAPS}?watch=true"), &accept).await;
    let event = watch.next().await.unwrap();
    assert_eq!(event["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(event["object"]["metadata"]["name"], "a");
}

#[tokio::test]
async fn it_ends_when_it_was_asked_to_with_a_bookmark() {
    let cluster = Cluster::start().await;
    let path = format!("{MAPS}?watch=true&resourceVersion=1&allowWatchBookmarks=true&timeoutSeconds=1");
    let mut watch = cluster.watch(&path, &[]).await;
    // Nothing in the selection moved, but the revision did.
    cluster.post("/api/v1/namespaces", &json!({"metadata": {"name": "other"}})).await;
    let event = watch.next().await.unwrap();
    assert_eq!(event["type"], "BOOKMARK");
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn the_server_stops_without_waiting_for_watches() {
    let mut stop = None;
    let cluster = Cluster::with(|config| stop = Some(config.shutdown.clone())).await;
    let mut watch = cluster.watch(&format!("{MAPS}?watch=true"), &[]).await;
    stop.unwrap().cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap();
    assert!(ended.is_none());
}

#[tokio::test]
async fn a_slow_client_delays_nobody() {
    let cluster = Cluster::start().await;
    // Never read from.
    let _slow = cluster.watch(&format!("{MAPS}?watch=true"), &[]).await;
    let mut fast = cluster.watch(&format!("{MAPS}?watch=true"), &[]).await;
    let large = "x".repeat(100_000);
    for n in 0..100 {
        let object = json!({"metadata": {"name": format!("m{n}")}, "data": {"k": large}});
        assert_eq!(cluster.post(MAPS, &object).await.code, 201);
        assert!(fast.line().await.starts_with(&format!("ADDED m{n} ")));
    }
}

/// Whatever happens at once, a watch tells of it in one order, and adds up to the list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_add_up_to_the_list() {
    let cluster = Cluster::start().await;
    let mut watch = cluster.watch(&format!("{MAPS}?watch=true&labelSelector=even"), &[]).await;
    let writer = async |seed: u64| {
        let mut random = seed;
        for _ in 0..60 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (name, what) = (format!("m{}", (random >> 33) % 8), (random >> 50) % 4);
            let path = format!("{MAPS}/{name}");
            let labels = if (random >> 40).is_multiple_of(2) { json!({"even": "yes"}) } else { json!({"even": null}) };
            match what {
                0 => cluster.delete(&path, &json!({})).await.code,
                1 => cluster.post(MAPS, &json!({"metadata": {"name": name, "labels": labels}})).await.code,
                _ => cluster.patch(&path, "merge", &json!({"metadata": {"labels": labels}})).await.code,
            };
        }
    };
    tokio::join!(writer(1), writer(2), writer(3), writer(4));
    let last = make(&cluster, "last", json!({"even": "yes"})).await;

    let (mut state, mut reached) = (std::collections::BTreeMap::new(), 0);
    loop {
        let event = watch.next().await.unwrap();
        let metadata = &event["object"]["metadata"];
        let revision: u64 = metadata["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert!(revision > reached, "{event}");
        reached = revision;
        let name = metadata["name"].as_str().unwrap().to_owned();
        let mut item = event["object"].clone();
        // A list says these once for all.
        item.as_object_mut().unwrap().retain(|name, _| !["apiVersion", "kind"].contains(&name.as_str()));
        let known = match event["type"].as_str().unwrap() {
            "ADDED" => state.insert(name.clone(), item).is_none(),
            "MODIFIED" => state.insert(name.clone(), item).is_some(),
            "DELETED" => state.remove(&name).is_some(),
            other => panic!("{other}"),
        };
        assert!(known, "{event}");
        if name == "last" && revision.to_string() == last {
            break;
        }
    }
    let list = cluster.get(&format!("{MAPS}?labelSelector=even")).await.value();
    let listed: Vec<&Value> = list["items"].as_array().unwrap().iter().collect();
    assert_eq!(state.values().collect::<Vec<_>>(), listed);
}

/// What stands on the wire until the server closes the connection.
async fn answer(cluster: &Cluster, version: &str) -> (String, String) {
    let mut stream = TcpStream::connect(cluster.address).await.unwrap();
    let request = format!("GET {MAPS}?watch=true&timeoutSeconds=1 HTTP/{version}\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn a_watch_over_http_1_takes_its_connection_and_closes_it() {
    let cluster = Cluster::start().await;
    make(&cluster, "a", json!({})).await;
    let (head, body) = answer(&cluster, "1.1").await;
    assert!(head.contains("connection: close") && head.contains("transfer-encoding: chunked"), "{head}");
    let (size, rest) = body.split_once("\r\n").unwrap();
    let (event, end) = rest.split_at(usize::from_str_radix(size, 16).unwrap());
    assert!(event.starts_with(r#"{"type":"ADDED""#) && event.ends_with("}\n"), "{event}");
    assert_eq!(end, "\r\n0\r\n\r\n");
    // Older clients know no chunks.
    let (_, body) = answer(&cluster, "1.0").await;
    assert_eq!(body, event);
}
