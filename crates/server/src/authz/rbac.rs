//! Roles: who may do what, as the RBAC objects say.
//!
//! The objects are compiled into one immutable [`Policy`], which is made anew only when one of them has changed. Sources:
//! kubernetes `plugin/pkg/auth/authorizer/rbac/rbac.go`, `pkg/registry/rbac/validation/rule.go`,
//! `pkg/apis/rbac/v1/evaluation_helpers.go`.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use api::key::{GroupResource, Key};
use serde::Deserialize;
use store::Snapshot;

use crate::identity::{Decision, User};
use crate::path::{Attributes, Target};

const GROUP: &str = "rbac.authorization.k8s.io";
const CLUSTER_ROLES: GroupResource = GroupResource::new(GROUP, "clusterroles");
const ROLES: GroupResource = GroupResource::new(GROUP, "roles");
const CLUSTER_ROLE_BINDINGS: GroupResource = GroupResource::new(GROUP, "clusterrolebindings");
const ROLE_BINDINGS: GroupResource = GroupResource::new(GROUP, "rolebindings");
const ALL: &str = "*";

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    pub fn allows(&self, attributes: &Attributes) -> bool {
        if !has(&self.verbs, &attributes.verb) {
            return false;
        }
        match &attributes.target {
            Target::Path(path) => self.non_resource_urls.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => pattern == path,
            }),
            Target::Resource(at) => {
                has(&self.api_groups, &at.group)
                    && self.allows_resource(&at.resource, &at.subresource)
                    && (self.resource_names.is_empty() || self.resource_names.contains(&at.name))
            }
        }
    }

    fn allows_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|rule| {
            rule == ALL
                || match rule.split_once('/') {
                    None => subresource.is_empty() && rule == resource,
                    Some((of, sub)) => sub == subresource && !sub.is_empty() && (of == ALL || of == resource),
                }
        })
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|entry| entry == ALL || entry == wanted)
}

/// Who a binding names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    User(String),
    Group(String),
}

/// A role that a subject has, and by which binding.
struct Grant {
    /// `None`: everywhere.
    namespace: Option<String>,
    rules: Result<Arc<[Rule]>, String>,
    /// Such as `ClusterRoleBinding "x" of ClusterRole "y" to Group "z"`.
    source: String,
}

/// All roles and bindings, by subject.
#[derive(Default)]
pub struct Policy {
    grants: BTreeMap<Subject, Vec<Grant>>,
}

impl Policy {
    pub fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        let namespace = match &attributes.target {
            Target::Resource(at) => at.namespace.as_str(),
            Target::Path(_) => "",
        };
        let mut missing = Vec::new();
        for grant in self.of(user, namespace) {
            match &grant.rules {
                Ok(rules) if rules.iter().any(|rule| rule.allows(attributes)) => {
                    return Decision::Allow(format!("RBAC: allowed by {}", grant.source));
                }
                Ok(_) => {}
                Err(why) => missing.push(why.as_str()),
            }
        }
        let reason = match &missing[..] {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        };
        Decision::NoOpinion(reason)
    }

    /// The rules that a user has in a namespace, or at the cluster scope when it is empty.
    pub fn rules<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.of(user, namespace).filter_map(|grant| grant.rules.as_ref().ok()).flat_map(|rules| rules.iter())
    }

    fn of<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = &'a Grant> {
        let subjects =
            std::iter::once(Subject::User(user.name.clone())).chain(user.groups.iter().cloned().map(Subject::Group));
        subjects
            .filter_map(|subject| self.grants.get(&subject))
            .flatten()
            .filter(move |grant| grant.namespace.as_ref().is_none_or(|of| of == namespace && !namespace.is_empty()))
    }

    fn compile(snapshot: &Snapshot) -> Self {
        let mut policy = Self::default();
        for resource in [&CLUSTER_ROLE_BINDINGS, &ROLE_BINDINGS] {
            for object in snapshot.range(&Key::resource_prefix(resource), None) {
                // Validation keeps anything else out; a binding that is not understood grants nothing.
                if let Ok(binding) = object.decode::<Binding>() {
                    policy.add(snapshot, object.key().namespace(), object.key().name(), binding);
                }
            }
        }
        policy
    }

    fn add(&mut self, snapshot: &Snapshot, namespace: &str, name: &str, binding: Binding) {
        let RoleRef { kind, name: role } = &binding.role_ref;
        let rules = rules_of(snapshot, namespace, &binding.role_ref);
        let (binding_kind, shown) = if namespace.is_empty() {
            ("ClusterRoleBinding", name.to_owned())
        } else {
            ("RoleBinding", format!("{name}/{namespace}"))
        };
        for subject in binding.subjects {
            let shown_subject = if subject.kind == "ServiceAccount" {
                format!("ServiceAccount \"{}/{}\"", subject.name, subject.namespace)
            } else {
                format!("{} {:?}", subject.kind, subject.name)
            };
            let key = match subject.kind.as_str() {
                "User" => Subject::User(subject.name),
                "Group" => Subject::Group(subject.name),
                "ServiceAccount" => {
                    let of = if subject.namespace.is_empty() { namespace } else { &subject.namespace };
                    Subject::User(format!("system:serviceaccount:{of}:{}", subject.name))
                }
                _ => continue,
            };
            self.grants.entry(key).or_default().push(Grant {
                namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
                rules: rules.clone(),
                source: format!("{binding_kind} {shown:?} of {kind} {role:?} to {shown_subject}"),
            });
        }
    }
}

fn rules_of(snapshot: &Snapshot, namespace: &str, role: &RoleRef) -> Result<Arc<[Rule]>, String> {
    #[derive(Deserialize)]
    struct Role {
        #[serde(default)]
        rules: Option<Vec<Rule>>,
    }
    let (resource, within) = if role.kind == "ClusterRole" { (CLUSTER_ROLES, "") } else { (ROLES, namespace) };
    let object = snapshot.get(&Key::new(&resource, within, &role.name));
    let role = object.and_then(|object| object.decode::<Role>().ok()).ok_or_else(|| {
        let kind = resource.resource.trim_end_matches('s');
        format!("{kind}.{GROUP} {:?} not found", role.name)
    })?;
    Ok(role.rules.unwrap_or_default().into())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Binding {
    #[serde(default)]
    subjects: Vec<SubjectRef>,
    role_ref: RoleRef,
}

#[derive(Deserialize)]
struct SubjectRef {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

/// The current policy, compiled when it is asked for after a change.
#[derive(Default)]
pub struct Rbac(RwLock<(Mark, Arc<Policy>)>);

/// Tells one state of the RBAC objects from any other: a change moves the sum of revisions or the count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark {
    objects: u64,
    revisions: u64,
}

impl Rbac {
    pub fn policy(&self, snapshot: &Snapshot) -> Arc<Policy> {
        let mark = Mark::of(snapshot);
        {
            let (current, policy) = &*self.0.read().expect("no holder of this lock can panic");
            if *current == mark {
                return policy.clone();
            }
        }
        let policy = Arc::new(Policy::compile(snapshot));
        *self.0.write().expect("no holder of this lock can panic") = (mark, policy.clone());
        policy
    }
}

impl Mark {
    fn of(snapshot: &Snapshot) -> Self {
        let prefix = format!("/{GROUP}/");
        let fold = |mark: Self, revision: u64| Self {
            objects: mark.objects + 1,
            revisions: mark.revisions.wrapping_add(revision),
        };
        snapshot.range(&prefix, None).map(|object| object.revision).fold(Self::default(), fold)
    }
}

#[cfg(test)]
mod tests {
    use api::object::Draft;
    use http::Method;
    use serde_json::{Value, json};
    use store::memory::Memory;
    use store::{Op, Store};

    use super::*;
    use crate::path::Query;

    fn put(resource: &GroupResource, namespace: &str, name: &str, mut value: Value) -> Op {
        value["metadata"] = json!({"name": name, "namespace": namespace});
        Op::Put(Draft::new(Key::new(resource, namespace, name), value).expect("object"))
    }

    async fn store() -> Arc<Memory> {
        let store = Memory::new();
        let viewer = json!({"rules": [
            {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log", "*/scale"]},
            {"verbs": ["get"], "nonResourceURLs": ["/version", "/openapi/*"]},
        ]});
        let one = json!({"rules": [{"verbs": ["update"], "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["web"]}]});
        let subjects = |kind: &str, name: &str| json!([{"kind": kind, "name": name, "namespace": "rack"}]);
        let ops = vec![
            put(&CLUSTER_ROLES, "", "viewer", viewer),
            put(&ROLES, "rack", "one", one),
            put(
                &CLUSTER_ROLE_BINDINGS,
                "",
                "all",
                json!({"subjects": subjects("Group", "family"), "roleRef": {"kind": "ClusterRole", "name": "viewer"}}),
            ),
            put(
                &ROLE_BINDINGS,
                "rack",
                "own",
                json!({"subjects": subjects("ServiceAccount", "site"), "roleRef": {"kind": "Role", "name": "one"}}),
            ),
            put(
                &ROLE_BINDINGS,
                "rack",
                "here",
                json!({"subjects": subjects("User", "ann"), "roleRef": {"kind": "ClusterRole", "name": "viewer"}}),
            ),
            put(
                &ROLE_BINDINGS,
                "rack",
                "gone",
                json!({"subjects": subjects("User", "bob"), "roleRef": {"kind": "Role", "name": "none"}}),
            ),
        ];
        store.txn(vec![], ops).await.expect("commit");
        store
    }

    async fn check(user: User, method: Method, uri: &str, expected: Decision) {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let attributes = Attributes::parse(&method, path, &Query::parse(query));
        let decision = Rbac::default().policy(&store().await.snapshot()).authorize(&user, &attributes);
        assert_eq!(decision, expected, "{method} {uri}");
    }

    fn refused() -> Decision {
        Decision::NoOpinion(String::new())
    }

    #[tokio::test]
    async fn a_cluster_role_bound_to_a_group_holds_everywhere() {
        let user = User::new("eve", &["family"]);
        let allowed = || {
            Decision::Allow(
                r#"RBAC: allowed by ClusterRoleBinding "all" of ClusterRole "viewer" to Group "family""#.into(),
            )
        };
        check(user.clone(), Method::GET, "/api/v1/namespaces/rack/pods/web/log", allowed()).await;
        check(user.clone(), Method::GET, "/api/v1/pods", allowed()).await;
        check(user.clone(), Method::GET, "/openapi/v3", allowed()).await;
        check(user.clone(), Method::GET, "/api/v1/namespaces/rack/pods/web/exec", refused()).await;
        check(user.clone(), Method::GET, "/api/v1/namespaces/rack/pods?watch=1", refused()).await;
        check(user, Method::GET, "/metrics", refused()).await;
    }

    #[tokio::test]
    async fn a_role_binding_holds_in_its_namespace_only() {
        let allowed =
            Decision::Allow(r#"RBAC: allowed by RoleBinding "here/rack" of ClusterRole "viewer" to User "ann""#.into());
        check(User::new("ann", &[]), Method::GET, "/api/v1/namespaces/rack/pods", allowed).await;
        check(User::new("ann", &[]), Method::GET, "/api/v1/namespaces/other/pods", refused()).await;
        check(User::new("ann", &[]), Method::GET, "/api/v1/pods", refused()).await;
        check(User::new("ann", &[]), Method::GET, "/version", refused()).await;
    }

    #[tokio::test]
    async fn resource_names_narrow_a_rule() {
        let site = || User::new("system:serviceaccount:rack:site", &[]);
        let allowed = Decision::Allow(
            r#"RBAC: allowed by RoleBinding "own/rack" of Role "one" to ServiceAccount "site/rack""#.into(),
        );
        check(site(), Method::PUT, "/apis/apps/v1/namespaces/rack/deployments/web", allowed).await;
        check(site(), Method::PUT, "/apis/apps/v1/namespaces/rack/deployments/other", refused()).await;
        check(site(), Method::PUT, "/apis/apps/v1/namespaces/rack/deployments/web/status", refused()).await;
    }

    #[tokio::test]
    async fn a_missing_role_is_named() {
        let reason = r#"RBAC: role.rbac.authorization.k8s.io "none" not found"#.to_owned();
        check(User::new("bob", &[]), Method::GET, "/api/v1/namespaces/rack/pods", Decision::NoOpinion(reason)).await;
    }

    #[tokio::test]
    async fn a_change_is_seen_at_once() {
        let store = store().await;
        let rbac = Rbac::default();
        let attributes = Attributes::parse(&Method::GET, "/api/v1/pods", &Query::default());
        let user = User::new("eve", &["family"]);
        assert!(matches!(rbac.policy(&store.snapshot()).authorize(&user, &attributes), Decision::Allow(_)));
        store.txn(vec![], vec![Op::Delete(Key::new(&CLUSTER_ROLE_BINDINGS, "", "all"))]).await.expect("commit");
        assert_eq!(rbac.policy(&store.snapshot()).authorize(&user, &attributes), refused());
    }
}
