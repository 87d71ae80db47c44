//! Every pod runs as a service account, and finds its token where every client looks.
//!
//! Source: kubernetes `plugin/pkg/admission/serviceaccount/admission.go`.

use api::key::{GroupResource, Key};
use api::status::Status;
use k8s_openapi::api::core::v1::ServiceAccount as Account;
use serde_json::{Value, json};

use crate::admit::{AdmissionAttributes, Operation, Plugin};
use crate::hooks::Rng;
use crate::identity::BoxFuture;

const ACCOUNTS: GroupResource = GroupResource::new("", "serviceaccounts");
const VOLUME_PREFIX: &str = "kube-api-access-";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// An hour and the time that a token is still honoured after its renewal is due.
const TOKEN_SECONDS: i64 = 3607;

pub struct ServiceAccount {
    rng: Rng,
}

impl ServiceAccount {
    pub fn new(rng: Rng) -> Self {
        Self { rng }
    }

    fn admit_pod(&self, at: &AdmissionAttributes<'_>, pod: &mut Value) -> Result<(), Status> {
        if pod["metadata"]["annotations"][MIRROR].is_string() {
            return check_mirror(at, pod);
        }
        let name =
            pod["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty()).unwrap_or("default").to_owned();
        pod["spec"]["serviceAccountName"] = json!(name);
        pod["spec"]["serviceAccount"] = json!(name);
        let account = find(at, pod, &name)?;
        if pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
            && let Some(secrets) = account.image_pull_secrets.as_ref().filter(|secrets| !secrets.is_empty())
        {
            pod["spec"]["imagePullSecrets"] = json!(secrets);
        }
        let mounts = pod["spec"]["automountServiceAccountToken"].as_bool();
        if mounts.or(account.automount_service_account_token).unwrap_or(true) {
            self.mount_token(pod);
        }
        Ok(())
    }

    fn mount_token(&self, pod: &mut Value) {
        let volumes = pod["spec"]["volumes"].as_array();
        let existing =
            volumes.into_iter().flatten().filter_map(|v| v["name"].as_str()).find(|n| n.starts_with(VOLUME_PREFIX));
        let (name, exists) = match existing {
            Some(name) => (name.to_owned(), true),
            None => (format!("{VOLUME_PREFIX}{}", self.suffix()), false),
        };
        let mut mounted = false;
        for list in ["initContainers", "containers"] {
            for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
                let mounts = &mut container["volumeMounts"];
                if mounts.as_array().is_some_and(|m| m.iter().any(|m| m["mountPath"] == MOUNT_PATH)) {
                    continue;
                }
                push(mounts, json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
                mounted = true;
            }
        }
        if mounted && !exists {
            push(&mut pod["spec"]["volumes"], token_volume(&name));
        }
    }

    /// Five characters that make no words. Source: apimachinery `pkg/util/rand/rand.go`.
    fn suffix(&self) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut random = [0; 5];
        (self.rng)(&mut random);
        random.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
    }
}

fn push(list: &mut Value, entry: Value) {
    match list.as_array_mut() {
        Some(entries) => entries.push(entry),
        None => *list = json!([entry]),
    }
}

fn token_volume(name: &str) -> Value {
    let namespace = json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]}})
}

fn find(at: &AdmissionAttributes<'_>, pod: &Value, name: &str) -> Result<Account, Status> {
    let object = at.snapshot.get(&Key::new(&ACCOUNTS, at.namespace, name));
    object.and_then(|object| object.decode().ok()).ok_or_else(|| {
        let missing = Status::not_found(&GroupResource::new("", "serviceaccount"), name);
        at.forbidden(Some(pod), format!("error looking up service account {}/{name}: {missing}", at.namespace))
    })
}

fn check_mirror(at: &AdmissionAttributes<'_>, pod: &Value) -> Result<(), Status> {
    if pod["spec"]["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Err(at.forbidden(Some(pod), "a mirror pod may not reference service accounts"));
    }
    Ok(())
}

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn admit<'a>(&'a self, at: &'a AdmissionAttributes<'a>, pod: &'a mut Value) -> BoxFuture<'a, Result<(), Status>> {
        let is_new_pod = at.is("", "pods") && at.operation == Operation::Create;
        let outcome = if is_new_pod { self.admit_pod(at, pod) } else { Ok(()) };
        Box::pin(async { outcome })
    }
}
