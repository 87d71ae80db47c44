//! The v1.37 schema: one table of facts, parsed when it is first needed.
//!
//! `facts/schema-1.37.tsv` says where the facts come from.

use std::sync::LazyLock;

use api::schema::{Schema, Type};
use serde_json::Value;

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    Schema::parse(include_str!("../facts/schema-1.37.tsv")).expect("a test parses the table that is built in")
});

/// Every type of the built-in groups.
pub fn schema() -> &'static Schema {
    &SCHEMA
}

/// Takes a built-in type by its full name, such as `io.k8s.api.core.v1.Pod`.
pub fn get(name: &str) -> Option<Type<'static>> {
    SCHEMA.get(name)
}

/// Takes the type of an object by what it says of itself.
pub fn of(object: &Value) -> Option<Type<'static>> {
    let version = object["apiVersion"].as_str()?;
    let (group, version) = version.split_once('/').unwrap_or(("core", version));
    let group = group.split('.').next().unwrap_or(group);
    get(&format!("io.k8s.api.{group}.{version}.{}", object["kind"].as_str()?))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::Path;

    use api::patch::{Format, Patch};
    use api::schema::{ListType, Shape, Strict};
    use serde_json::json;

    use super::*;

    #[test]
    fn has_every_group_that_is_served() {
        for name in [
            "io.k8s.api.core.v1.Pod",
            "io.k8s.api.core.v1.Binding",
            "io.k8s.api.apps.v1.Deployment",
            "io.k8s.api.autoscaling.v1.Scale",
            "io.k8s.api.networking.k8s.io.v1.Ingress",
            "io.k8s.api.networking.v1.IngressClass",
            "io.k8s.api.discovery.v1.EndpointSlice",
            "io.k8s.api.coordination.v1.Lease",
            "io.k8s.api.events.v1.Event",
            "io.k8s.api.rbac.v1.ClusterRole",
            "io.k8s.api.scheduling.v1.PriorityClass",
            "io.k8s.api.authentication.v1.TokenReview",
            "io.k8s.api.authorization.v1.SubjectAccessReview",
            "io.k8s.api.policy.v1.Eviction",
            "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        ] {
            let known = get(name).is_some();
            assert_eq!(known, !name.contains("k8s.io.v1"), "{name}");
        }
    }

    #[test]
    fn decoding_errors_are_upstream_s() {
        let deployment = get("io.k8s.api.apps.v1.Deployment").unwrap();
        let container = |member| json!({"spec": {"template": {"spec": {"containers": [member]}}}});
        assert_eq!(
            deployment.check(&container(json!({"env": [{"name": "A", "value": 5}]}))).unwrap_err().to_string(),
            "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string"
        );
        assert_eq!(
            Strict::message(&deployment.check(&container(json!({"imagePullPolice": "Always"}))).unwrap()).unwrap(),
            "strict decoding error: unknown field \"spec.template.spec.containers[0].imagePullPolice\""
        );
        let pod = get("io.k8s.api.core.v1.Pod").unwrap();
        assert_eq!(
            pod.check(&json!({"spec": {"volumes": [{"name": "a", "emptyDir": []}]}})).unwrap_err().to_string(),
            "json: cannot unmarshal array into Go struct field Volume.spec.volumes.VolumeSource.emptyDir of type \
             v1.EmptyDirVolumeSource"
        );
    }

    /// The merge facts agree with the table that was taken from the same release by other means.
    #[test]
    fn agrees_with_the_shared_facts() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/facts/fields-1.37.tsv");
        let table = fs::read_to_string(path).expect("the facts stand beside the repository");
        let mut expected: BTreeMap<&str, BTreeMap<&str, BTreeSet<String>>> = BTreeMap::new();
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let columns: Vec<&str> = line.split('\t').collect();
            let [name, field, attributes] = columns[..] else { panic!("{line:?} has not three columns") };
            // Maps are granular unless they say otherwise.
            let attributes = attributes.split(' ').filter(|attribute| *attribute != "map-type=granular");
            let attributes: BTreeSet<String> = attributes.map(str::to_owned).collect();
            if !attributes.is_empty() {
                expected.entry(name).or_default().insert(field, attributes);
            }
        }
        for of in schema().types() {
            let prefixes = ["io.k8s.api.", "io.k8s.apimachinery.pkg."];
            let Some(short) = prefixes.into_iter().find_map(|prefix| of.name().strip_prefix(prefix)) else { continue };
            let mut found = BTreeMap::new();
            if of.is_atomic() {
                found.insert(".", BTreeSet::from(["map-type=atomic".to_owned()]));
            }
            for field in of.fields() {
                let mut attributes = BTreeSet::new();
                attributes.extend(field.is_atomic().then(|| "map-type=atomic".to_owned()));
                attributes.extend(field.list_type().map(|list| match list {
                    ListType::Atomic => "list-type=atomic".to_owned(),
                    ListType::Set => "list-type=set".to_owned(),
                    ListType::Map => "list-type=map".to_owned(),
                }));
                let keys: Vec<&str> = field.list_map_keys().collect();
                attributes.extend((!keys.is_empty()).then(|| format!("list-map-keys={}", keys.join(","))));
                attributes.extend(field.merge_key().map(|key| format!("patch-merge-key={key}")));
                let patch = field.patch_strategy();
                let strategies: Vec<&str> =
                    [(patch.merge, "merge"), (patch.replace, "replace"), (patch.retain_keys, "retainKeys")]
                        .into_iter()
                        .filter_map(|(set, name)| set.then_some(name))
                        .collect();
                attributes.extend((!strategies.is_empty()).then(|| format!("patch-strategy={}", strategies.join(","))));
                if !attributes.is_empty() {
                    found.insert(field.name(), attributes);
                }
            }
            assert_eq!(found, expected.remove(short).unwrap_or_default(), "{short}");
        }
        // Whatever is left belongs to groups that are not served, as do the topology terms of storage classes.
        expected.retain(|name, _| !name.starts_with("core.v1.TopologySelector"));
        let served = ["core.", "apps.", "networking.v1.", "discovery.v1.", "coordination.v1.", "rbac.", "apis.meta."];
        let left: Vec<&&str> =
            expected.keys().filter(|name| served.iter().any(|group| name.starts_with(group))).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn kubectl_patches_find_containers_by_name() {
        let deployment = get("io.k8s.api.apps.v1.Deployment");
        let spec = |containers, strategy| json!({"spec": {"strategy": strategy, "template": {"spec": {"containers": containers}}}});
        let old = spec(
            json!([{"name": "a", "image": "a:1", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "b:1"}]),
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}),
        );
        let body = json!({"spec": {
            "strategy": {"$retainKeys": ["type"], "type": "Recreate"},
            "template": {"spec": {
                "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
                "containers": [{"name": "a", "image": "a:2"}],
            }},
        }});
        let patch = Patch::parse(Format::Strategic, body.to_string().as_bytes()).unwrap();
        let new = spec(
            json!([{"name": "b", "image": "b:1"}, {"name": "a", "image": "a:2", "ports": [{"containerPort": 80}]}]),
            json!({"type": "Recreate"}),
        );
        assert_eq!(patch.apply(old, deployment), Ok(new));
    }

    #[test]
    fn lists_that_merge_have_structs_or_scalars_as_items() {
        for field in schema().types().flat_map(|of| of.fields()).filter(|field| field.patch_strategy().merge) {
            let Shape::List(items) = field.shape() else { continue };
            let structs = matches!(items.shape(), Shape::Object(_));
            assert_eq!(field.merge_key().is_some(), structs, "{}", field.name());
        }
    }
}
