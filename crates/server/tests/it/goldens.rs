//! What upstream answered, request by request: `cargo xtask diff --keep` has written it down.

use std::fmt::Write;
use std::sync::Arc;

use server::authn::CREDENTIAL_ID;
use server::authn::token::Tokens;
use server::authz::ClusterAuthorizer;
use server::identity::{Everybody, User};
use server::reviews::Reviews;
use testkit::oracle::canonical::canonical;
use testkit::oracle::compare::{Tally, differences};
use testkit::oracle::golden::{self, Exchange};
use testkit::oracle::subjects::Subject;
use testkit::oracle::{Answer, Memory, Request, USER_AGENT, cases, subjects};

use crate::cluster::{Cluster, rng};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A server with everything that answers requests about objects, asked by its administrator.
async fn cluster() -> Cluster {
    let cluster = Cluster::with(|config| {
        let authorizer = Arc::new(ClusterAuthorizer::new(config.store.clone()));
        let mut user = User::new("kubernetes-admin", &["system:masters", "system:authenticated"]);
        user.extra.insert(CREDENTIAL_ID.to_owned(), vec!["X509SHA256=00".to_owned()]);
        config.authenticator = Arc::new(Everybody(user));
        config.authorizer = authorizer.clone();
        config.admission = server::admission::chain(authorizer.clone(), rng());
        let ranges = vec!["10.96.0.0/12".parse().unwrap()];
        let node_ports = server::allocate::NODE_PORTS;
        config.allocators.push(Box::new(server::allocate::Services { ranges, node_ports, rng: rng() }));
        let key = rcgen::KeyPair::generate().unwrap().serialize_der();
        let tokens = Arc::new(Tokens::new(&key, ISSUER, config.store.clone(), config.clock.clone()).unwrap());
        config.tokens = tokens.clone();
        config.reviewer = Arc::new(Reviews { authorizer, tokens });
    })
    .await;
    for namespace in server::bootstrap::NAMESPACES {
        cluster.post("/api/v1/namespaces", &serde_json::json!({"metadata": {"name": namespace}})).await;
    }
    for initial in server::bootstrap::roles_and_bindings().iter().chain(&server::bootstrap::priority_classes()) {
        let namespace = initial.object["metadata"]["namespace"].as_str();
        let below = namespace.map(|name| format!("namespaces/{name}/")).unwrap_or_default();
        let made =
            cluster.post(&format!("/apis/{}/v1/{below}{}", initial.group, initial.resource), &initial.object).await;
        assert_eq!(made.code, 201, "{}", made.message());
    }
    cluster
}

async fn ask(cluster: &Cluster, memory: &mut Memory, request: &Request) -> Answer {
    let or_json = |text: &str| if text.is_empty() { "application/json".to_owned() } else { text.to_owned() };
    let body = memory.fill(request).map(|body| body.to_string());
    let (accept, content_type) = (or_json(&request.accept), or_json(&request.content_type));
    let mut headers = vec![("user-agent", USER_AGENT), ("accept", accept.as_str())];
    if body.is_some() {
        headers.push(("content-type", &content_type));
    }
    let told = cluster.ask(&request.method, &request.path, &headers, body.unwrap_or_default()).await;
    let warnings = told.warnings().into_iter().map(str::to_owned).collect();
    let text = String::from_utf8_lossy(&told.body).into_owned();
    let content_type = told.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let answer = Answer::new(told.code, content_type, warnings, text);
    memory.note(request, &answer);
    answer
}

/// Every open difference, and how many answers were compared.
async fn replay(subject: &Subject) -> (String, Tally) {
    let (cluster, mut memory) = (cluster().await, Memory::default());
    let (mut open, mut tally) = (String::new(), Tally::default());
    for Exchange { request, answer } in golden::read(subject.name).unwrap() {
        let ours = canonical(&request, &ask(&cluster, &mut memory, &request).await).value();
        if answer.is_null() {
            continue;
        }
        let found = differences(subject, &request, &answer, &ours);
        tally.count(&found);
        for difference in found.iter().filter(|difference| difference.reason.is_none()) {
            let (id, at) = (&request.id, &difference.pointer);
            writeln!(open, "{id}: {at}\n  upstream {}\n  coracle  {}", difference.upstream, difference.ours).unwrap();
        }
    }
    (open, tally)
}

macro_rules! goldens {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            let subject = subjects::all().into_iter().find(|subject| subject.name == stringify!($name)).unwrap();
            let (open, tally) = replay(&subject).await;
            assert!(open.is_empty(), "{tally:?}\n{open}");
            assert!(tally.compared > 20, "{tally:?}");
        })*

        #[test]
        fn every_subject_has_goldens() {
            let names: Vec<&str> = subjects::all().iter().map(|subject| subject.name).collect();
            let mut tested = vec![$(stringify!($name)),*];
            tested.sort_unstable();
            let mut known = names.clone();
            known.sort_unstable();
            assert_eq!(tested, known);
        }
    };
}

goldens! {
    binding config_map endpoints event events_event namespace node pod secret service_account service deployment replica_set
    replication_controller
    token_review self_subject_review subject_access_review local_subject_access_review self_subject_access_review
    self_subject_rules_review ingress ingress_class priority_class lease endpoint_slice cluster_role cluster_role_binding role
    role_binding limit_range pod_template runtime_class
}

/// What goes on to a node, which the oracle has none of.
const OF_NODES: [&str; 5] = ["attach", "exec", "log", "portforward", "proxy"];

#[test]
fn everything_that_is_served_has_a_subject() {
    for kind in kinds::registry() {
        let (resource, name) = (&*kind.names.resource.resource, &*kind.names.kind);
        for version in &kind.versions {
            let of = |subject: &&Subject| subject.group == version.group && subject.version == version.version;
            let all = subjects::all();
            let subject = all.iter().filter(of).find(|subject| subject.kind == name && subject.plural == resource);
            let subject = subject.unwrap_or_else(|| panic!("the oracle has no subject {name} of {}", version.group));
            let script = cases::script(subject, 1);
            for sub in kind.subresources.iter().filter(|sub| !OF_NODES.contains(&sub.name)) {
                let suffix = format!("/{}", sub.name);
                let is_asked =
                    |request: &Request| request.path.split('?').next().is_some_and(|path| path.ends_with(&suffix));
                assert!(script.iter().any(is_asked), "the oracle asks nothing of {resource}/{}", sub.name);
            }
        }
    }
}
