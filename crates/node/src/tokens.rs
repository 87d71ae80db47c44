//! Service account tokens of projected volumes: requested when first needed, replaced when most of their life is over.
//!
//! Source: token/token_manager.go (`requiresRefresh`).

use std::collections::BTreeMap;

use client::{Client, Resource};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use serde_json::{Value, json};

use crate::volumes::payload::Token;

/// A token is replaced after this long, however long it lives.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);
/// What a projection asks for when it does not say. Source: apis/core/v1/defaults.go.
const DEFAULT_SECONDS: i64 = 3600;

#[derive(Clone, Debug)]
struct Issued {
    text: String,
    refresh_at: Timestamp,
    expires_at: Timestamp,
}

/// One pod's tokens, by audience and life.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    issued: BTreeMap<(String, i64), Issued>,
}

impl Tokens {
    /// When the next of them has to be replaced.
    pub fn next_refresh(&self) -> Option<Timestamp> {
        self.issued.values().map(|issued| issued.refresh_at).min()
    }

    /// The tokens of each projected volume of the pod, in the order of its sources.
    ///
    /// # Errors
    /// When a token is needed and the API gives none; one that is only old is used on.
    pub async fn of_pod(
        &mut self,
        client: &Client,
        pod: &Pod,
        now: Timestamp,
    ) -> Result<BTreeMap<String, Vec<Token>>, String> {
        let mut all = BTreeMap::new();
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
            let mut tokens = Vec::new();
            for projection in sources.filter_map(|source| source.service_account_token.as_ref()) {
                tokens.push(Token { text: self.one(client, pod, projection, now).await? });
            }
            if !tokens.is_empty() {
                all.insert(volume.name.clone(), tokens);
            }
        }
        Ok(all)
    }

    async fn one(
        &mut self,
        client: &Client,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
        now: Timestamp,
    ) -> Result<String, String> {
        let seconds = projection.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let key = (projection.audience.clone().unwrap_or_default(), seconds);
        let known = self.issued.get(&key).filter(|issued| now < issued.expires_at);
        if let Some(issued) = known.filter(|issued| now < issued.refresh_at) {
            return Ok(issued.text.clone());
        }
        match request(client, pod, &key.0, seconds, now).await {
            Ok(issued) => {
                let text = issued.text.clone();
                self.issued.insert(key, issued);
                Ok(text)
            }
            Err(error) => match known {
                Some(issued) => {
                    tracing::warn!(error, "token not replaced yet, the old one is used on");
                    Ok(issued.text.clone())
                }
                None => Err(format!("failed to fetch token: {error}")),
            },
        }
    }
}

async fn request(client: &Client, pod: &Pod, audience: &str, seconds: i64, now: Timestamp) -> Result<Issued, String> {
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let audiences: Vec<&str> = (!audience.is_empty()).then_some(audience).into_iter().collect();
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "metadata": {"name": account, "namespace": namespace},
        "spec": {
            "audiences": audiences,
            "expirationSeconds": seconds,
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": meta.name, "uid": meta.uid},
        },
    });
    let accounts = Resource::of::<ServiceAccount>();
    let reply = client.post(&accounts, namespace, account, "token", body).await.map_err(|error| error.to_string())?;
    read(&reply.value(), seconds, now).ok_or_else(|| "the API's answer holds no token".to_owned())
}

fn read(reply: &Value, seconds: i64, now: Timestamp) -> Option<Issued> {
    let status = &reply["status"];
    let text = status["token"].as_str()?.to_owned();
    let expires_at: Timestamp = status["expirationTimestamp"].as_str()?.parse().ok()?;
    let life = SignedDuration::from_secs(seconds);
    let most = expires_at.checked_sub(life / 5).ok()?;
    let day = now.checked_add(MAX_AGE).ok()?;
    Some(Issued { text, refresh_at: most.min(day), expires_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_replaced_after_four_fifths_or_a_day() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let refresh = |expires: &str, seconds| {
            let reply = json!({"status": {"token": "t", "expirationTimestamp": expires}});
            read(&reply, seconds, now).unwrap().refresh_at.to_string()
        };
        assert_eq!(refresh("2026-11-23T11:00:00Z", 3600), "2026-11-23T10:48:00Z");
        assert_eq!(refresh("2027-11-23T10:00:00Z", 365 * 86400), "2026-11-24T10:00:00Z");
    }
}
