//! Nobody grants what he does not have: roles and bindings are checked against the rules of whoever writes them.
//!
//! Upstream does this in the RBAC registry. Sources: kubernetes `pkg/registry/rbac/validation/{rule,policy_compact}.go`,
//! `pkg/registry/rbac/{role,rolebinding}/policybased/storage.go`.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::key::{GroupResource, Key};
use api::status::Status;
use serde_json::Value;

use crate::admit::{AdmissionAttributes, Operation, Plugin};
use crate::authz::ClusterAuthorizer;
use crate::authz::rbac::Rule;
use crate::identity::{Authorizer, BoxFuture, Decision, SYSTEM_MASTERS};
use crate::path::{Attributes, Resource};

const GROUP: &str = "rbac.authorization.k8s.io";

pub struct Escalation {
    authorizer: Arc<ClusterAuthorizer>,
}

impl Escalation {
    pub fn new(authorizer: Arc<ClusterAuthorizer>) -> Self {
        Self { authorizer }
    }

    fn check(&self, at: &AdmissionAttributes<'_>, object: &Value) -> Result<(), Status> {
        let resource = at.resource();
        let concerned = resource.group == GROUP && at.subresource.is_empty() && at.operation != Operation::Delete;
        if !concerned || at.user.is_in(SYSTEM_MASTERS) {
            return Ok(());
        }
        match &*resource.resource {
            "roles" | "clusterroles" => {
                let same = at.old.is_some_and(|old| {
                    old["rules"] == object["rules"] && old["aggregationRule"] == object["aggregationRule"]
                });
                if same || self.may(at, "escalate", &resource.resource, at.namespace, name(object)) {
                    return Ok(());
                }
                let mut wanted = rules(object);
                if object["aggregationRule"].is_object() {
                    let all = || vec!["*".to_owned()];
                    wanted.push(Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() });
                }
                self.must_hold(at, object, &wanted)
            }
            _ => {
                if at
                    .old
                    .is_some_and(|old| old["subjects"] == object["subjects"] && old["roleRef"] == object["roleRef"])
                {
                    return Ok(());
                }
                let role = object["roleRef"]["name"].as_str().unwrap_or_default();
                let (resource, within) = if object["roleRef"]["kind"] == "ClusterRole" {
                    ("clusterroles", "")
                } else {
                    ("roles", at.namespace)
                };
                if self.may(at, "bind", resource, at.namespace, role) {
                    return Ok(());
                }
                let of = GroupResource::new(GROUP, resource);
                let role = at.snapshot.get(&Key::new(&of, within, role)).ok_or_else(|| Status::not_found(&of, role))?;
                self.must_hold(at, object, &rules(&role.value()))
            }
        }
    }

    fn may(
        &self,
        at: &AdmissionAttributes<'_>,
        verb: &'static str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> bool {
        let resource = Resource {
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Resource::default()
        };
        matches!(self.authorizer.authorize(at.user, &Attributes::resource(verb, resource)), Decision::Allow(_))
    }

    fn must_hold(&self, at: &AdmissionAttributes<'_>, object: &Value, wanted: &[Rule]) -> Result<(), Status> {
        let policy = self.authorizer.rbac().policy(at.snapshot);
        let held: Vec<&Rule> = policy.rules(at.user, at.namespace).collect();
        let missing: BTreeSet<String> = wanted
            .iter()
            .flat_map(broken_down)
            .filter(|atom| !held.iter().any(|rule| covers(rule, atom)))
            .map(|atom| shown(&atom))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<String> = missing.into_iter().collect();
        let why = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            at.user.name,
            quoted(&at.user.groups),
            missing.join("\n")
        );
        Err(at.forbidden(Some(object), why))
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn rules(role: &Value) -> Vec<Rule> {
    serde_json::from_value(role["rules"].clone()).unwrap_or_default()
}

/// Rules of one verb, one group, one resource and at most one name each.
fn broken_down(rule: &Rule) -> Vec<Rule> {
    let mut atoms = Vec::new();
    let one = |text: &String| vec![text.clone()];
    for verb in &rule.verbs {
        for url in &rule.non_resource_urls {
            atoms.push(Rule { verbs: one(verb), non_resource_urls: one(url), ..Rule::default() });
        }
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let names: Vec<Vec<String>> = if rule.resource_names.is_empty() {
                    vec![Vec::new()]
                } else {
                    rule.resource_names.iter().map(one).collect()
                };
                for resource_names in names {
                    let (api_groups, resources) = (one(group), one(resource));
                    atoms.push(Rule { verbs: one(verb), api_groups, resources, resource_names, ..Rule::default() });
                }
            }
        }
    }
    atoms
}

/// Whether a rule that somebody holds allows all that an atom does.
fn covers(held: &Rule, atom: &Rule) -> bool {
    let has =
        |list: &[String], wanted: &[String]| wanted.iter().all(|w| list.iter().any(|have| have == "*" || have == w));
    if !has(&held.verbs, &atom.verbs) {
        return false;
    }
    if let [url] = &atom.non_resource_urls[..] {
        return held.non_resource_urls.iter().any(|have| match have.strip_suffix('*') {
            Some(prefix) => url.starts_with(prefix),
            None => have == url,
        });
    }
    let sub_resource_of_all =
        |wanted: &String| wanted.split_once('/').is_some_and(|(_, sub)| held.resources.contains(&format!("*/{sub}")));
    has(&held.api_groups, &atom.api_groups)
        && (has(&held.resources, &atom.resources) || atom.resources.iter().all(sub_resource_of_all))
        && (held.resource_names.is_empty()
            || !atom.resource_names.is_empty() && has(&held.resource_names, &atom.resource_names))
}

/// Source: kubernetes `pkg/apis/rbac/v1/helpers.go`, `CompactString`.
fn shown(rule: &Rule) -> String {
    let mut parts = Vec::new();
    for (field, list) in [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ] {
        if !list.is_empty() {
            parts.push(format!("{field}:{}", quoted(list)));
        }
    }
    format!("{{{}}}", parts.join(", "))
}

/// As Go prints a list of strings with `%q`.
fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|entry| format!("{entry:?}")).collect::<Vec<_>>().join(" "))
}

impl Plugin for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn validate<'a>(
        &'a self,
        at: &'a AdmissionAttributes<'a>,
        object: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let outcome = object.map_or(Ok(()), |object| self.check(at, object));
        Box::pin(async { outcome })
    }
}
