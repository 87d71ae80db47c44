//! The requests that are made of a kind's sub-resources other than `status` and `scale`.

use serde_json::{Value, json};

use super::cases::{MERGE, STRATEGIC, Script, TABLE};
use super::mutate::{self, Mutant, set};

/// Objects with one thing wrong that are sent to each of these sub-resources, by seed.
const WRONG: usize = 12;
const ANOTHER_UID: &str = "7c0b6a0e-0000-4000-8000-00000000000f";

impl Script<'_> {
    /// What the sub-resources of the object at `one` answer.
    pub(super) fn sub_resources(&mut self, base: &Value, name: &str, one: &str) {
        match self.subject.name {
            "pod" => {
                self.bindings(name, one);
                self.evictions(name, one);
                self.ephemeral_containers(base, name, one);
                self.resizes(base, name, one);
                self.connections(name, one);
            }
            "service_account" => self.tokens(name, one),
            "namespace" => self.finalizers(base, name, one),
            _ => {}
        }
    }

    /// A create for each of `bodies`, under its label, and one that asks for what no action has: a table.
    fn acts(&mut self, what: &str, name: &str, path: &str, bodies: Vec<(&str, Value)>) {
        if let Some((_, body)) = bodies.first() {
            let table = self.ask(format!("{what} {name}: as table"), "POST", path, Some(body.clone()));
            TABLE.clone_into(&mut table.accept);
        }
        for (label, body) in bodies {
            self.ask(format!("{what} {name}: {label}"), "POST", path, Some(body));
        }
    }

    fn bindings(&mut self, name: &str, one: &str) {
        let with = |metadata: Value, target: Value| json!({"metadata": metadata, "target": target});
        let named = || json!({"name": name});
        let bodies = vec![
            ("to a node", with(named(), json!({"kind": "Node", "name": "n"}))),
            ("without a kind", with(named(), json!({"name": "n"}))),
            ("to no node", with(named(), json!({"kind": "Node"}))),
            ("to a pod", with(named(), json!({"kind": "Pod", "name": "n"}))),
            ("to a bad name", with(named(), json!({"kind": "Node", "name": "Bad Name!"}))),
            ("of another name", with(json!({"name": "another"}), json!({"name": "n"}))),
            ("of another uid", with(json!({"name": name, "uid": ANOTHER_UID}), json!({"name": "n"}))),
            ("of another kind", json!({"apiVersion": "v1", "kind": "Pod"})),
        ];
        self.acts("bind", name, &format!("{one}/binding?dryRun=All"), bodies);
    }

    fn evictions(&mut self, name: &str, one: &str) {
        let with = |options: Value| json!({"metadata": {"name": name}, "deleteOptions": options});
        let bodies = vec![
            ("plainly", json!({"metadata": {"name": name}})),
            ("of another name", json!({"metadata": {"name": "another"}})),
            ("of another kind", json!({"apiVersion": "v1", "kind": "Pod"})),
            ("of another version", json!({"apiVersion": "policy/v9", "kind": "Eviction"})),
            ("of another uid", with(json!({"preconditions": {"uid": ANOTHER_UID}}))),
            ("of this uid", with(json!({"preconditions": {"uid": "$uid", "resourceVersion": "$rv"}}))),
            ("with a grace", with(json!({"gracePeriodSeconds": 3}))),
            ("by an unknown policy", with(json!({"propagationPolicy": "Nonsense"}))),
            ("with an unknown dry run", with(json!({"dryRun": ["Some"]}))),
            ("with a wrong type", with(json!({"gracePeriodSeconds": "x"}))),
        ];
        self.acts("evict", name, &format!("{one}/eviction?dryRun=All"), bodies);
        let absent = one.replace(&format!("/{name}"), "/absent");
        let body = json!({"metadata": {"name": "absent"}});
        self.ask(format!("evict absent, not {name}"), "POST", format!("{absent}/eviction?dryRun=All"), Some(body));
    }

    fn ephemeral_containers(&mut self, base: &Value, name: &str, one: &str) {
        let path = format!("{one}/ephemeralcontainers");
        let dry = format!("{path}?dryRun=All");
        self.ask(format!("ephemeral {name}"), "GET", path, None);
        let mut object = base.clone();
        object["metadata"]["resourceVersion"] = json!("$rv");
        self.ask(format!("ephemeral {name}: none"), "PUT", dry.clone(), Some(object.clone()));
        let container = json!({"name": "debug", "image": "example.com/debug", "command": ["sh"], "stdin": true});
        object["spec"]["ephemeralContainers"] = json!([container]);
        self.ask(format!("ephemeral {name}: one"), "PUT", dry.clone(), Some(object.clone()));
        self.wrong("ephemeral", name, &dry, &object, "/spec/ephemeralContainers");
        let patch = json!({"spec": {"ephemeralContainers": [container], "priority": 7}});
        for (form, content_type) in [("merge", MERGE), ("strategic", STRATEGIC)] {
            self.patch(format!("ephemeral {name}: {form}"), dry.clone(), content_type, patch.clone());
        }
    }

    fn resizes(&mut self, base: &Value, name: &str, one: &str) {
        let path = format!("{one}/resize");
        let dry = format!("{path}?dryRun=All");
        self.ask(format!("resize {name}"), "GET", path, None);
        let mut object = base.clone();
        object["metadata"]["resourceVersion"] = json!("$rv");
        self.ask(format!("resize {name}: nothing"), "PUT", dry.clone(), Some(object.clone()));
        for (label, resources) in [
            (
                "to more",
                json!({"requests": {"cpu": "300m", "memory": "64Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}}),
            ),
            ("to nothing", json!({})),
            ("by another resource", json!({"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "1"}})),
            ("to less than is asked", json!({"requests": {"cpu": "3"}, "limits": {"cpu": "1"}})),
        ] {
            set(&mut object, "/spec/containers/0/resources", Some(resources));
            self.ask(format!("resize {name}: {label}"), "PUT", dry.clone(), Some(object.clone()));
        }
        let container =
            json!({"name": base["spec"]["containers"][0]["name"], "resources": {"requests": {"cpu": "1m"}}});
        let patch = json!({"spec": {"containers": [container], "priority": 7}});
        self.patch(format!("resize {name}: strategic"), dry, STRATEGIC, patch);
    }

    /// Streams that do not come about: the pod runs nowhere.
    fn connections(&mut self, name: &str, one: &str) {
        for (label, path) in [
            ("log", "/log"),
            ("log of an unknown container", "/log?container=unknown"),
            ("log with a bad limit", "/log?limitBytes=0"),
            ("log with a bad tail", "/log?tailLines=-1"),
            ("exec", "/exec?command=ls"),
            ("exec in an unknown container", "/exec?command=ls&container=unknown"),
            ("attach", "/attach"),
            ("port forward", "/portforward"),
        ] {
            self.ask(format!("{label}, {name}"), "GET", format!("{one}{path}"), None);
        }
    }

    fn tokens(&mut self, name: &str, one: &str) {
        let with = |spec: Value| json!({"spec": spec});
        let bound = |kind: &str, version: &str| {
            with(json!({"audiences": ["a"], "boundObjectRef": {"kind": kind, "apiVersion": version, "name": "absent"}}))
        };
        let bodies = vec![
            ("plainly", with(json!({}))),
            ("for audiences", with(json!({"audiences": ["a", "b"], "expirationSeconds": 700}))),
            ("for a minute", with(json!({"audiences": ["a"], "expirationSeconds": 60}))),
            ("for ever", with(json!({"audiences": ["a"], "expirationSeconds": 1_u64 << 40}))),
            ("bound to an absent pod", bound("Pod", "v1")),
            ("bound to an absent secret", bound("Secret", "v1")),
            ("bound to an absent node", bound("Node", "v1")),
            ("bound to a job", bound("Job", "batch/v1")),
            ("of another name", json!({"metadata": {"name": "another"}, "spec": {"audiences": ["a"]}})),
            ("with a stranger", json!({"stranger": 1, "spec": {"audiences": ["a"]}})),
            ("of a wrong type", with(json!({"audiences": "a"}))),
        ];
        self.acts("token", name, &format!("{one}/token"), bodies);
    }

    fn finalizers(&mut self, base: &Value, name: &str, one: &str) {
        let dry = format!("{one}/finalize?dryRun=All");
        let mut object = base.clone();
        object["metadata"]["resourceVersion"] = json!("$rv");
        for finalizers in [json!(["kubernetes"]), json!([]), json!(["a.example/b", "kubernetes"]), json!(["bad"])] {
            object["spec"] = json!({"finalizers": finalizers});
            self.ask(format!("finalize {name} by {finalizers}"), "PUT", dry.clone(), Some(object.clone()));
        }
        object["metadata"]["name"] = json!("another");
        self.ask(format!("finalize {name}: another name"), "PUT", dry, Some(object));
    }

    /// Some of the changes below `root`, as updates.
    fn wrong(&mut self, what: &str, name: &str, dry: &str, object: &Value, root: &str) {
        let mutants = mutate::each(object, self.of, root);
        for Mutant { label, object } in self.sample(mutants, WRONG) {
            self.ask(format!("{what} {name}: {label}"), "PUT", dry, Some(object));
        }
    }
}
