//! What others need to check the cluster's tokens.

use std::sync::Arc;

use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};
use server::authn::token::Tokens;

use crate::cluster::Cluster;

const CONFIGURATION: &str = "/.well-known/openid-configuration";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

async fn cluster() -> Cluster {
    Cluster::with(|config| {
        let key = rcgen::KeyPair::generate().unwrap().serialize_der();
        config.tokens = Arc::new(Tokens::new(&key, ISSUER, config.store.clone(), config.clock.clone()).unwrap());
        config.advertised = "192.0.2.1:6443".to_owned();
    })
    .await
}

fn decoded(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).unwrap()
}

#[tokio::test]
async fn a_stranger_can_check_a_token() {
    let cluster = cluster().await;
    let configuration = cluster.get(CONFIGURATION).await;
    assert_eq!(configuration.headers["content-type"], "application/json");
    assert_eq!(configuration.headers["cache-control"], "public, max-age=3600");
    let expected = json!({
        "issuer": ISSUER, "jwks_uri": "https://192.0.2.1:6443/openid/v1/jwks", "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
    });
    assert_eq!(configuration.value(), expected);
    let keys = cluster.get("/openid/v1/jwks").await;
    assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
    assert_eq!(keys.headers["cache-control"], "public, max-age=3600");

    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    cluster.post(accounts, &json!({"metadata": {"name": "a"}})).await;
    let asked = json!({"spec": {"audiences": ["me"]}});
    let token = cluster.post(&format!("{accounts}/a/token"), &asked).await.value()["status"]["token"].take();
    let (signed, signature) = token.as_str().unwrap().rsplit_once('.').unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let [header, claims] = [header, claims].map(|part| serde_json::from_slice::<Value>(&decoded(part)).unwrap());
    assert_eq!(claims["iss"], ISSUER);
    let keys = keys.value();
    let key = keys["keys"].as_array().unwrap().iter().find(|key| key["kid"] == header["kid"]).unwrap();
    let mut point = vec![4];
    point.extend(["x", "y"].iter().flat_map(|part| decoded(key[*part].as_str().unwrap())));
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    assert_eq!(public.verify(signed.as_bytes(), &decoded(signature)), Ok(()));
}

#[tokio::test]
async fn only_who_issues_tokens_has_an_issuer() {
    let paths = async |cluster: &Cluster| cluster.get("/").await.value()["paths"].to_string().contains(CONFIGURATION);
    let with = cluster().await;
    assert!(paths(&with).await);
    assert_eq!(with.get(&format!("{CONFIGURATION}/")).await.code, 200);
    assert_eq!(with.post(CONFIGURATION, &json!({})).await.code, 405);
    let without = Cluster::start().await;
    assert!(!paths(&without).await);
    assert_eq!(without.get(CONFIGURATION).await.code, 404);
}
