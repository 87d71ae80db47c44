//! Every kind that is compared, with its base objects.

use anyhow::{Result, bail};
use serde_json::{Value, json};

/// A kind, and the objects from which its requests are made.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// Also the name of the golden file.
    pub name: &'static str,
    pub kind: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
    /// Created to be answered, never stored.
    pub answered: bool,
    pub scale: bool,
    bases: &'static str,
}

macro_rules! subject {
    ($name:literal $kind:literal $group:tt $version:literal $plural:literal $($flag:ident)*) => {
        Subject {
            $($flag: true,)*
            ..Subject {
                name: $name,
                kind: $kind,
                group: $group,
                version: $version,
                plural: $plural,
                namespaced: false,
                answered: false,
                scale: false,
                bases: include_str!(concat!("bases/", $name, ".yaml")),
            }
        }
    };
}

const RBAC: &str = "rbac.authorization.k8s.io";

/// All of them.
pub fn all() -> Vec<Subject> {
    vec![
        subject!("binding" "Binding" "" "v1" "bindings" namespaced answered),
        subject!("config_map" "ConfigMap" "" "v1" "configmaps" namespaced),
        subject!("endpoints" "Endpoints" "" "v1" "endpoints" namespaced),
        subject!("event" "Event" "" "v1" "events" namespaced),
        subject!("events_event" "Event" "events.k8s.io" "v1" "events" namespaced),
        subject!("limit_range" "LimitRange" "" "v1" "limitranges" namespaced),
        subject!("namespace" "Namespace" "" "v1" "namespaces"),
        subject!("node" "Node" "" "v1" "nodes"),
        subject!("pod" "Pod" "" "v1" "pods" namespaced),
        subject!("pod_template" "PodTemplate" "" "v1" "podtemplates" namespaced),
        subject!("secret" "Secret" "" "v1" "secrets" namespaced),
        subject!("replication_controller" "ReplicationController" "" "v1" "replicationcontrollers" namespaced scale),
        subject!("service_account" "ServiceAccount" "" "v1" "serviceaccounts" namespaced),
        subject!("service" "Service" "" "v1" "services" namespaced),
        subject!("deployment" "Deployment" "apps" "v1" "deployments" namespaced scale),
        subject!("replica_set" "ReplicaSet" "apps" "v1" "replicasets" namespaced scale),
        subject!("token_review" "TokenReview" "authentication.k8s.io" "v1" "tokenreviews" answered),
        subject!("self_subject_review" "SelfSubjectReview" "authentication.k8s.io" "v1" "selfsubjectreviews" answered),
        subject!("subject_access_review" "SubjectAccessReview" "authorization.k8s.io" "v1" "subjectaccessreviews" answered),
        subject!("local_subject_access_review" "LocalSubjectAccessReview" "authorization.k8s.io" "v1" "localsubjectaccessreviews" namespaced answered),
        subject!("self_subject_access_review" "SelfSubjectAccessReview" "authorization.k8s.io" "v1" "selfsubjectaccessreviews" answered),
        subject!("self_subject_rules_review" "SelfSubjectRulesReview" "authorization.k8s.io" "v1" "selfsubjectrulesreviews" answered),
        subject!("ingress" "Ingress" "networking.k8s.io" "v1" "ingresses" namespaced),
        subject!("ingress_class" "IngressClass" "networking.k8s.io" "v1" "ingressclasses"),
        subject!("runtime_class" "RuntimeClass" "node.k8s.io" "v1" "runtimeclasses"),
        subject!("priority_class" "PriorityClass" "scheduling.k8s.io" "v1" "priorityclasses"),
        subject!("lease" "Lease" "coordination.k8s.io" "v1" "leases" namespaced),
        subject!("endpoint_slice" "EndpointSlice" "discovery.k8s.io" "v1" "endpointslices" namespaced),
        subject!("cluster_role" "ClusterRole" RBAC "v1" "clusterroles"),
        subject!("cluster_role_binding" "ClusterRoleBinding" RBAC "v1" "clusterrolebindings"),
        subject!("role" "Role" RBAC "v1" "roles" namespaced),
        subject!("role_binding" "RoleBinding" RBAC "v1" "rolebindings" namespaced),
    ]
}

/// The subjects that `--kind` names: by kind, plural or file name, in any case.
///
/// # Errors
/// For an unknown one; the message lists the known ones.
pub fn named(name: &str) -> Result<Vec<Subject>> {
    let known = all();
    let is = |subject: &&Subject| {
        [subject.kind, subject.plural, subject.name].iter().any(|known| known.eq_ignore_ascii_case(name))
    };
    let found: Vec<Subject> = known.iter().filter(is).copied().collect();
    if found.is_empty() {
        let mut kinds: Vec<&str> = known.iter().map(|subject| subject.kind).collect();
        kinds.dedup();
        bail!("there is no kind {name:?}; known are {}", kinds.join(", "));
    }
    Ok(found)
}

impl Subject {
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Such as `/apis/apps/v1`.
    pub fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// The namespace that is this subject's own.
    pub fn namespace(&self) -> String {
        format!("oracle-{}", self.name.replace('_', "-"))
    }

    /// The path of its collection.
    pub fn collection(&self) -> String {
        if self.namespaced {
            format!("{}/namespaces/{}/{}", self.root(), self.namespace(), self.plural)
        } else {
            format!("{}/{}", self.root(), self.plural)
        }
    }

    /// Its base objects, and the status that is written to the first one, where it has one.
    ///
    /// # Panics
    /// When the YAML that is built in is none.
    pub fn bases(&self) -> (Vec<Value>, Option<Value>) {
        let text = self.bases.replace("$ns", &self.namespace());
        let documents = api::yaml::parse_all(&text).expect("the bases are YAML");
        let (mut bases, mut status) = (Vec::new(), None);
        for mut base in documents.into_iter().map(|document| document.value) {
            if base.as_object().is_some_and(|base| base.keys().all(|key| key == "status")) {
                status = Some(base["status"].take());
                continue;
            }
            base["apiVersion"] = json!(self.api_version());
            base["kind"] = json!(self.kind);
            if !self.answered {
                base["metadata"]["labels"]["oracle"] = json!("yes");
            }
            bases.push(base);
        }
        (bases, status)
    }

    /// The full name of its type in the schema.
    pub fn type_name(&self) -> String {
        let group = match self.group {
            "" => "core",
            group => group.split('.').next().unwrap_or(group),
        };
        format!("io.k8s.api.{group}.{}.{}", self.version, self.kind)
    }
}
