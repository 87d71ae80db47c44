//! An API server in memory.

use std::sync::Arc;

use client::{Client, Resource};
use k8s_openapi::api::core::v1::Namespace;
use serde_json::Value;
use server::authz::ClusterAuthorizer;
use server::identity::{Everybody, User};
use server::server::{Server, ServerConfig};
use store::memory::Memory;

fn random(out: &mut [u8]) {
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), out).unwrap();
}

/// A server with the namespace `rack`, and a client that may do everything.
pub async fn start() -> Client {
    let everybody = Arc::new(Everybody(User::loopback("tester")));
    let (store, rng): (_, server::hooks::Rng) = (Memory::new(), Arc::new(random));
    let authorizer = Arc::new(ClusterAuthorizer::new(store.clone()));
    let clock = client::system_clock();
    let mut config = ServerConfig::new(store, kinds::registry(), everybody, authorizer.clone(), clock, rng.clone());
    config.admission = server::admission::chain(authorizer, rng);
    let client = Server::new(config).local(User::loopback("tester"));
    for name in server::bootstrap::NAMESPACES.iter().chain(&["rack"]) {
        let namespace = serde_json::json!({"metadata": {"name": name}});
        client.create::<Namespace>(&serde_json::from_value(namespace).unwrap()).await.unwrap();
    }
    client
}

/// Creates the objects of a YAML list; `kind` decides where.
pub async fn create(client: &Client, yaml: &str) {
    let objects: Vec<Value> = serde_saphyr::from_str(yaml).unwrap();
    for mut object in objects {
        let (of, version) = match object["kind"].as_str().unwrap() {
            "Ingress" => (Resource::new("networking.k8s.io", "v1", "ingresses"), "networking.k8s.io/v1"),
            "IngressClass" => (Resource::new("networking.k8s.io", "v1", "ingressclasses"), "networking.k8s.io/v1"),
            "Service" => (Resource::new("", "v1", "services"), "v1"),
            "Secret" => (Resource::new("", "v1", "secrets"), "v1"),
            "EndpointSlice" => (Resource::new("discovery.k8s.io", "v1", "endpointslices"), "discovery.k8s.io/v1"),
            other => panic!("{other}"),
        };
        object["apiVersion"] = version.into();
        object["metadata"].as_object_mut().unwrap().remove("uid");
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        client.create_object(&of, &namespace, object).await.unwrap();
    }
}
