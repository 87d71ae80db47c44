//! What the files of a Secret, ConfigMap, downward API or projected volume contain: pure.
//!
//! Sources: pkg/volume/{secret,configmap,downwardapi,projected}, `MakePayload` and `collectData`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret,
    SecretVolumeSource, VolumeProjection,
};

use crate::plan::env::{Facts, Lookup, pod_field, resource_field};

/// The mode of files that name none.
const DEFAULT_MODE: i32 = 0o644;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub mode: u32,
    pub data: Vec<u8>,
    /// The file's owner, root when unset.
    pub uid: Option<u32>,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, File>;

fn file(data: Vec<u8>, mode: i32) -> File {
    File { mode: u32::try_from(mode).unwrap_or(0o644) & 0o777, data, uid: None }
}

/// Takes all keys, or those of `items` under their paths. `missing` words the error for a key that there is not.
fn select(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<KeyToPath>>,
    mode: i32,
    optional: bool,
    missing: &str,
) -> Result<Payload, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data.iter().map(|(key, value)| (key.clone(), file(value.clone(), mode))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                payload.insert(item.path.clone(), file(value.clone(), item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => return Err(format!("{missing}: {}", item.key)),
        }
    }
    Ok(payload)
}

fn secret_data(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

fn config_map_data(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

/// # Errors
/// When the Secret or a key is missing and not optional, in upstream's words.
pub fn secret(source: &SecretVolumeSource, from: &dyn Lookup) -> Result<Payload, String> {
    let name = source.secret_name.as_deref().unwrap_or_default();
    let optional = source.optional == Some(true);
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    match from.secret(name) {
        Some(found) => {
            select(&secret_data(&found), source.items.as_ref(), mode, optional, "references non-existent secret key")
        }
        None if optional => Ok(Payload::new()),
        None => Err(format!("secret {name:?} not found")),
    }
}

/// # Errors
/// When the ConfigMap or a key is missing and not optional, in upstream's words.
pub fn config_map(source: &ConfigMapVolumeSource, from: &dyn Lookup) -> Result<Payload, String> {
    let optional = source.optional == Some(true);
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    match from.config_map(&source.name) {
        Some(found) => {
            let missing = "configmap references non-existent config key";
            select(&config_map_data(&found), source.items.as_ref(), mode, optional, missing)
        }
        None if optional => Ok(Payload::new()),
        None => Err(format!("configmap {:?} not found", source.name)),
    }
}

/// # Errors
/// For fields that there are not.
pub fn downward(
    items: Option<&Vec<DownwardAPIVolumeFile>>,
    default_mode: Option<i32>,
    pod: &Pod,
    facts: &Facts,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items.into_iter().flatten() {
        let text = if let Some(field) = &item.field_ref {
            pod_field(pod, field, facts)?
        } else if let Some(resource) = &item.resource_field_ref {
            resource_field(pod, None, resource, facts)?
        } else {
            continue;
        };
        let mode = item.mode.or(default_mode).unwrap_or(DEFAULT_MODE);
        payload.insert(item.path.clone(), file(text.into_bytes(), mode));
    }
    Ok(payload)
}

/// A token projection's token and, when all containers run as one user, that user.
#[derive(Clone, Debug)]
pub struct Token {
    pub text: String,
}

/// `tokens` holds the tokens of the source's token projections, in their order.
///
/// # Errors
/// As the single kinds; and for projections that this node does not know.
pub fn projected(
    source: &ProjectedVolumeSource,
    pod: &Pod,
    from: &dyn Lookup,
    facts: &Facts,
    tokens: &[Token],
) -> Result<Payload, String> {
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let mut tokens = tokens.iter();
    let mut payload = Payload::new();
    for projection in source.sources.iter().flatten() {
        payload.extend(one_projection(projection, mode, pod, from, facts, &mut tokens)?);
    }
    Ok(payload)
}

fn one_projection<'a>(
    projection: &VolumeProjection,
    mode: i32,
    pod: &Pod,
    from: &dyn Lookup,
    facts: &Facts,
    tokens: &mut impl Iterator<Item = &'a Token>,
) -> Result<Payload, String> {
    if let Some(source) = &projection.secret {
        let optional = source.optional == Some(true);
        return match from.secret(&source.name) {
            Some(found) => select(
                &secret_data(&found),
                source.items.as_ref(),
                mode,
                optional,
                "references non-existent secret key",
            ),
            None if optional => Ok(Payload::new()),
            None => Err(format!("secret {:?} not found", source.name)),
        };
    }
    if let Some(source) = &projection.config_map {
        let optional = source.optional == Some(true);
        return match from.config_map(&source.name) {
            Some(found) => {
                let missing = "configmap references non-existent config key";
                select(&config_map_data(&found), source.items.as_ref(), mode, optional, missing)
            }
            None if optional => Ok(Payload::new()),
            None => Err(format!("configmap {:?} not found", source.name)),
        };
    }
    if let Some(source) = &projection.downward_api {
        return downward(source.items.as_ref(), Some(mode), pod, facts);
    }
    if let Some(source) = &projection.service_account_token {
        let token = tokens.next().ok_or("the service account token was not requested")?;
        let (uid, private) = (one_user(pod), fs_group(pod).is_some());
        let mode = if uid.is_some() || private { 0o600 } else { mode };
        let file = File { uid, ..file(token.text.clone().into_bytes(), mode) };
        return Ok(Payload::from([(source.path.clone(), file)]));
    }
    Err("a projected source other than secret, configMap, downwardAPI and serviceAccountToken is not supported"
        .to_owned())
}

pub fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The user that all of the pod's containers ask for, if they agree. Source: pkg/volume/util, `FsUserFrom`.
fn one_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|container| container.security_context.as_ref().and_then(|context| context.run_as_user).or(of_pod));
    let mut first = None;
    for user in users {
        let user = u32::try_from(user?).ok()?;
        if first.is_some_and(|first| first != user) {
            return None;
        }
        first = Some(user);
    }
    first
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    struct Sources;

    impl Lookup for Sources {
        fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>> {
            let found = json!({"data": {"a": "1"}, "binaryData": {"b": "AAE="}});
            (name == "m").then(|| Arc::new(serde_json::from_value(found).unwrap()))
        }

        fn secret(&self, name: &str) -> Option<Arc<Secret>> {
            let found = json!({"data": {"k": "eA=="}});
            (name == "s").then(|| Arc::new(serde_json::from_value(found).unwrap()))
        }
    }

    fn shown(payload: Result<Payload, String>) -> String {
        match payload {
            Ok(files) => files
                .iter()
                .map(|(path, file)| format!("{path}:{:o}:{:?}", file.mode, String::from_utf8_lossy(&file.data)))
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => format!("! {error}"),
        }
    }

    fn check_map(source: Value, expected: &str) {
        assert_eq!(shown(config_map(&serde_json::from_value(source).unwrap(), &Sources)), expected);
    }

    #[test]
    fn keys_become_files() {
        check_map(json!({"name": "m", "defaultMode": 0o600}), r#"a:600:"1" b:600:"\0\u{1}""#);
        check_map(json!({"name": "m", "items": [{"key": "a", "path": "x/y", "mode": 0o400}]}), r#"x/y:400:"1""#);
        check_map(
            json!({"name": "m", "items": [{"key": "z", "path": "z"}]}),
            "! configmap references non-existent config key: z",
        );
        check_map(json!({"name": "none"}), "! configmap \"none\" not found");
        check_map(json!({"name": "none", "optional": true}), "");
        let missing = serde_json::from_value(json!({"secretName": "s", "items": [{"key": "z", "path": "z"}]})).unwrap();
        assert_eq!(shown(secret(&missing, &Sources)), "! references non-existent secret key: z");
    }

    #[test]
    fn tokens_belong_to_the_one_user() {
        let source: ProjectedVolumeSource = serde_json::from_value(json!({"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"path": "token"}},
            {"configMap": {"name": "m", "items": [{"key": "a", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]}))
        .unwrap();
        let pod = |user: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"namespace": "n"}, "spec": {
                "securityContext": {"runAsUser": user}, "containers": [{"name": "a"}],
            }}))
            .unwrap()
        };
        let tokens = [Token { text: "t".to_owned() }];
        let make = |pod: &Pod| projected(&source, pod, &Sources, &Facts::default(), &tokens);
        assert_eq!(shown(make(&pod(json!(null)))), r#"ca.crt:644:"1" namespace:644:"n" token:644:"t""#);
        let owned = make(&pod(json!(7))).unwrap();
        assert_eq!((owned["token"].mode, owned["token"].uid), (0o600, Some(7)));
    }
}
