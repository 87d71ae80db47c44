//! The requests that are made of a kind: what each verb answers to its base objects, and to those objects with something wrong.

use api::schema::{Schema, Type};
use serde_json::{Value, json};

use super::mutate::{self, Dice, Mutant, set};
use super::subjects::Subject;
use super::{Pick, Request};

/// Objects with one thing wrong, for each base object; by seed where there could be more.
const CREATES: usize = 400;
/// Objects with several things wrong, for each base object.
const SEVERAL: usize = 25;
/// Objects with one thing wrong that are sent as an update, and as each kind of patch; by seed.
const UPDATES: usize = 40;
const PATCHES: usize = 10;

pub(super) const MERGE: &str = "application/merge-patch+json";
pub(super) const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
pub(super) const TABLE: &str = "application/json;as=Table;g=meta.k8s.io;v=v1";
const PARTIAL: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const PARTIAL_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A script under construction.
pub(super) struct Script<'a> {
    pub(super) subject: &'a Subject,
    pub(super) of: Option<Type<'a>>,
    dice: Dice,
    requests: Vec<Request>,
}

/// Every request about `subject`, in the order in which they are sent. The same seed gives the same script.
pub fn script(subject: &Subject, seed: u64) -> Vec<Request> {
    let schema: Schema = mutate::schema();
    let mut script = Script { subject, of: schema.get(&subject.type_name()), dice: Dice(seed), requests: Vec::new() };
    let (bases, status) = subject.bases();
    script.prelude();
    for base in &bases {
        script.creates(base);
    }
    if !subject.answered {
        let named = |base: &Value| base["metadata"]["name"].is_string() && !is_beyond(base);
        for (n, base) in bases.iter().enumerate().filter(|(_, base)| named(base)) {
            script.life(base, status.as_ref().filter(|_| n == 0));
        }
        script.lists(&bases);
    }
    script.documents();
    let mut requests = script.requests;
    // Two changes may come to the same words; the first one stays.
    let mut seen = std::collections::BTreeSet::new();
    requests.retain(|request| seen.insert(request.id.clone()));
    requests
}

/// A base object of that name has what coracle does not serve yet: it is created, and no more.
fn is_beyond(base: &Value) -> bool {
    base["metadata"]["name"] == "beyond"
}

impl Script<'_> {
    pub(super) fn ask(
        &mut self,
        id: impl Into<String>,
        method: &str,
        path: impl Into<String>,
        body: Option<Value>,
    ) -> &mut Request {
        self.requests.push(Request {
            id: id.into(),
            method: method.to_owned(),
            path: path.into(),
            content_type: String::new(),
            accept: String::new(),
            body,
            pick: None,
        });
        self.requests.last_mut().expect("it was pushed")
    }

    pub(super) fn patch(&mut self, id: impl Into<String>, path: impl Into<String>, content_type: &str, patch: Value) {
        content_type.clone_into(&mut self.ask(id, "PATCH", path, Some(patch)).content_type);
    }

    /// The namespace and the account without which the kind cannot be created.
    fn prelude(&mut self) {
        if !self.subject.namespaced {
            return;
        }
        let namespace = self.subject.namespace();
        self.ask("prelude: namespace", "POST", "/api/v1/namespaces", Some(json!({"metadata": {"name": namespace}})));
        let below = format!("/api/v1/namespaces/{namespace}");
        let account = json!({"metadata": {"name": "default"}});
        self.ask("prelude: account", "POST", format!("{below}/serviceaccounts"), Some(account));
        if self.subject.name == "binding" {
            let spec = json!({"schedulerName": "oracle", "containers": [{"name": "c", "image": "example.com/a"}]});
            let pod = json!({"metadata": {"name": "bound"}, "spec": spec});
            self.ask("prelude: pod", "POST", format!("{below}/pods"), Some(pod));
        }
    }

    /// Creates that change nothing.
    fn creates(&mut self, base: &Value) {
        let name =
            base["metadata"]["name"].as_str().or(base["metadata"]["generateName"].as_str()).unwrap_or("it").to_owned();
        let collection = self.subject.collection();
        // Reviews know no dry run: they change nothing as they are.
        let is_review = self.subject.answered && self.subject.name != "binding";
        let path = if is_review { collection } else { format!("{collection}?dryRun=All") };
        let joint = if is_review { '?' } else { '&' };
        self.ask(format!("create {name}"), "POST", path.clone(), Some(base.clone()));
        if is_beyond(base) {
            return;
        }
        let of = self.of;
        let mut mutants: Vec<Mutant> = mutate::each(base, of, "");
        if self.subject.name != "config_map" {
            mutants.retain(|mutant| !mutant.label.starts_with("/metadata"));
        }
        if mutants.len() > CREATES {
            mutants = self.sample(mutants, CREATES);
        }
        mutants.extend(mutate::several(base, of, "", SEVERAL, &mut self.dice));
        for Mutant { label, object } in mutants {
            self.ask(format!("create {name}: {label}"), "POST", path.clone(), Some(object));
        }
        for (label, value) in mutate::names() {
            let mut object = base.clone();
            set(&mut object, "/metadata/name", Some(value));
            self.ask(format!("create {name}: a name {label}"), "POST", path.clone(), Some(object));
        }
        for validation in ["Strict", "Warn", "Ignore", "Nonsense"] {
            let mut object = base.clone();
            object["stranger"] = json!(1);
            object["metadata"]["stranger"] = json!(1);
            let path = format!("{path}{joint}fieldValidation={validation}");
            self.ask(format!("create {name}: strangers, {validation}"), "POST", path, Some(object));
        }
    }

    /// From creation to deletion.
    fn life(&mut self, base: &Value, status: Option<&Value>) {
        let name = base["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let collection = self.subject.collection();
        let one = format!("{collection}/{name}");
        let dry = format!("{one}?dryRun=All");
        self.ask(format!("make {name}"), "POST", collection.clone(), Some(base.clone()));
        self.ask(format!("make {name} again"), "POST", collection, Some(base.clone()));
        self.ask(format!("get {name}"), "GET", one.clone(), None);
        for (form, accept) in [("table", TABLE), ("metadata", PARTIAL)] {
            accept.clone_into(&mut self.ask(format!("get {name} as {form}"), "GET", one.clone(), None).accept);
        }
        self.updates(base, &name, &dry);
        self.patches(base, &name, &dry);
        self.applies(base, &name, &one);
        if let Some(status) = status {
            self.statuses(base, status, &name, &one);
        }
        if self.subject.scale {
            self.scales(&name, &one);
        }
        self.sub_resources(base, &name, &one);
        let annotation = json!({"metadata": {"annotations": {"oracle": "was here"}}});
        self.patch(format!("annotate {name}"), one.clone(), MERGE, annotation);
        self.ask(format!("get {name} at last"), "GET", one.clone(), None);
        self.deletes(&name, &one);
    }

    fn updates(&mut self, base: &Value, name: &str, dry: &str) {
        let mut with_revision = base.clone();
        with_revision["metadata"]["resourceVersion"] = json!("$rv");
        self.ask(format!("update {name}: nothing"), "PUT", dry, Some(with_revision.clone()));
        self.ask(format!("update {name}: without a revision"), "PUT", dry, Some(base.clone()));
        for (label, pointer, value) in [
            ("of an old revision", "/metadata/resourceVersion", json!("1")),
            ("of no revision", "/metadata/resourceVersion", json!("abc")),
            ("of another uid", "/metadata/uid", json!("7c0b6a0e-0000-4000-8000-00000000000f")),
            ("of another name", "/metadata/name", json!("another")),
            ("of another namespace", "/metadata/namespace", json!("another")),
            ("of another kind", "/kind", json!("Another")),
            ("of another version", "/apiVersion", json!("v9")),
        ] {
            let mut object = with_revision.clone();
            set(&mut object, pointer, Some(value));
            self.ask(format!("update {name}: {label}"), "PUT", dry, Some(object));
        }
        let mut mutants = mutate::each(&with_revision, self.of, "");
        mutants.retain(|mutant| !mutant.label.starts_with("/metadata"));
        for Mutant { label, object } in self.sample(mutants, UPDATES) {
            self.ask(format!("update {name}: {label}"), "PUT", dry, Some(object));
        }
    }

    fn patches(&mut self, base: &Value, name: &str, dry: &str) {
        let mut mutants = mutate::each(base, self.of, "");
        mutants.retain(|mutant| !mutant.label.starts_with("/metadata"));
        for (form, content_type) in [("merge", MERGE), ("strategic", STRATEGIC)] {
            for Mutant { label, object } in self.sample(mutants.clone(), PATCHES) {
                self.patch(format!("{form} {name}: {label}"), dry, content_type, object);
            }
            let labels = json!({"metadata": {"labels": {"new": "one", "oracle": null}}});
            self.patch(format!("{form} {name}: labels"), dry, content_type, labels);
            self.patch(format!("{form} {name}: a list"), dry, content_type, json!([]));
            let renamed = json!({"metadata": {"name": "another"}});
            self.patch(format!("{form} {name}: a name"), dry, content_type, renamed);
            self.patch(format!("{form} {name}: a stranger"), dry, content_type, json!({"stranger": {"a": 1}}));
            let strict = format!("{dry}&fieldValidation=Strict");
            self.patch(
                format!("{form} {name}: a stranger, Strict"),
                strict,
                content_type,
                json!({"stranger": {"a": 1}}),
            );
            let absent = dry.replace(&format!("/{name}?"), "/absent?");
            self.patch(format!("{form} absent, not {name}"), absent, content_type, json!({}));
        }
        for (label, patch) in [
            ("a test that fails", json!([{"op": "test", "path": "/metadata/name", "value": "another"}])),
            ("a test that holds", json!([{"op": "test", "path": "/metadata/name", "value": name}])),
            ("a label", json!([{"op": "add", "path": "/metadata/labels/new", "value": "one"}])),
            ("a path that is absent", json!([{"op": "remove", "path": "/spec/absent/more"}])),
            ("an unknown operation", json!([{"op": "invent", "path": "/metadata"}])),
            ("a copy", json!([{"op": "copy", "from": "/metadata/labels/oracle", "path": "/metadata/labels/copied"}])),
            ("a move", json!([{"op": "move", "from": "/metadata/labels/oracle", "path": "/metadata/labels/moved"}])),
            ("no list", json!({})),
        ] {
            self.patch(format!("json {name}: {label}"), dry, JSON_PATCH, patch);
        }
        self.patch(format!("patch {name}: of an unknown form"), dry, "application/unknown", json!({}));
    }

    fn applies(&mut self, base: &Value, name: &str, one: &str) {
        let dry = format!("{one}?dryRun=All&fieldManager=applier");
        self.patch(format!("apply {name}: the same"), dry.clone(), APPLY, base.clone());
        self.patch(format!("apply {name}: without a manager"), format!("{one}?dryRun=All"), APPLY, base.clone());
        let mut labelled = base.clone();
        set(&mut labelled, "/metadata/labels/oracle", Some(json!("mine")));
        self.patch(format!("apply {name}: a conflict"), dry.clone(), APPLY, labelled.clone());
        self.patch(format!("apply {name}: by force"), format!("{dry}&force=true"), APPLY, labelled);
        let mut mutants = mutate::each(base, self.of, "");
        mutants.retain(|mutant| !mutant.label.starts_with("/metadata"));
        for Mutant { label, object } in self.sample(mutants, PATCHES) {
            self.patch(format!("apply {name}: {label}"), format!("{dry}&force=true"), APPLY, object);
        }
        let fresh = format!("{}-applied", name);
        let mut object = base.clone();
        set(&mut object, "/metadata/name", Some(json!(fresh)));
        let path = dry.replace(&format!("/{name}?"), &format!("/{fresh}?"));
        self.patch(format!("apply {name}: a new object"), path, APPLY, object);
    }

    fn statuses(&mut self, base: &Value, status: &Value, name: &str, one: &str) {
        let path = format!("{one}/status");
        let dry = format!("{path}?dryRun=All");
        let mut object = base.clone();
        object["metadata"]["resourceVersion"] = json!("$rv");
        object["status"] = status.clone();
        self.ask(format!("status {name}"), "PUT", dry.clone(), Some(object.clone()));
        let mutants = mutate::each(&object, self.of, "/status");
        for Mutant { label, object } in self.sample(mutants, 2 * UPDATES) {
            self.ask(format!("status {name}: {label}"), "PUT", dry.clone(), Some(object));
        }
        for (form, content_type) in [("merge", MERGE), ("strategic", STRATEGIC)] {
            let body = json!({"status": status, "spec": null, "metadata": {"labels": {"new": "one"}}});
            self.patch(format!("status {name}: {form}"), dry.clone(), content_type, body);
        }
        self.ask(format!("status {name} for good"), "PUT", path.clone(), Some(object));
        self.ask(format!("status {name}, read"), "GET", path, None);
        TABLE.clone_into(&mut self.ask(format!("get {name} with a status as table"), "GET", one, None).accept);
    }

    fn scales(&mut self, name: &str, one: &str) {
        let path = format!("{one}/scale");
        let dry = format!("{path}?dryRun=All");
        for (form, accept) in [("table", TABLE), ("metadata", PARTIAL)] {
            accept.clone_into(&mut self.ask(format!("scale {name} as {form}"), "GET", path.clone(), None).accept);
        }
        self.ask(format!("scale {name}"), "GET", path, None);
        let namespace = self.subject.namespace();
        let scale = |replicas: Value| {
            let metadata = json!({"name": name, "namespace": namespace, "resourceVersion": "$rv"});
            json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": {"replicas": replicas}})
        };
        for replicas in [json!(3), json!(-1), json!("x"), json!(null), json!(1_u64 << 40)] {
            self.ask(format!("scale {name} to {replicas}"), "PUT", dry.clone(), Some(scale(replicas)));
        }
        let mut renamed = scale(json!(1));
        renamed["metadata"]["name"] = json!("another");
        self.ask(format!("scale {name}: another name"), "PUT", dry.clone(), Some(renamed));
        self.ask(
            format!("scale {name}: no Scale"),
            "PUT",
            dry.clone(),
            Some(json!({"kind": "Pod", "apiVersion": "v1"})),
        );
        self.patch(format!("scale {name}: merge"), dry.clone(), MERGE, json!({"spec": {"replicas": 2}}));
        self.patch(format!("scale {name}: strategic"), dry, STRATEGIC, json!({"spec": {"replicas": 2}}));
    }

    fn deletes(&mut self, name: &str, one: &str) {
        let dry = format!("{one}?dryRun=All");
        for (label, mut options) in [
            ("of another uid", json!({"preconditions": {"uid": "7c0b6a0e-0000-4000-8000-00000000000f"}})),
            ("of another revision", json!({"preconditions": {"resourceVersion": "1"}})),
            ("of this revision", json!({"preconditions": {"resourceVersion": "$rv", "uid": "$uid"}})),
            ("by an unknown policy", json!({"propagationPolicy": "Nonsense"})),
            ("by two policies", json!({"propagationPolicy": "Orphan", "orphanDependents": true})),
            ("in the foreground", json!({"propagationPolicy": "Foreground"})),
            ("as an orphan", json!({"propagationPolicy": "Orphan"})),
            ("with a negative grace", json!({"gracePeriodSeconds": -5})),
            ("with a grace", json!({"gracePeriodSeconds": 7})),
            ("with an unknown dry run", json!({"dryRun": ["Some"]})),
            ("with a stranger", json!({"stranger": 1})),
            ("with a wrong type", json!({"gracePeriodSeconds": "x"})),
            ("with another kind", json!({"kind": "Pod", "apiVersion": "v1"})),
        ] {
            if options.get("dryRun").is_none() {
                options["dryRun"] = json!(["All"]);
            }
            self.ask(format!("delete {name} {label}"), "DELETE", one, Some(options));
        }
        self.ask(format!("delete {name}: dry"), "DELETE", dry, None);
        self.ask(format!("delete {name}"), "DELETE", one, None);
        self.ask(format!("get {name} after all"), "GET", one, None);
        self.ask(format!("delete {name} again"), "DELETE", format!("{one}?dryRun=All"), None);
        self.ask(
            format!("update {name} after all"),
            "PUT",
            one,
            Some(json!({"metadata": {"name": name, "uid": "$uid"}})),
        );
    }

    fn lists(&mut self, bases: &[Value]) {
        let collection = self.subject.collection();
        for base in bases.iter().filter(|base| base["metadata"]["name"].is_string() && !is_beyond(base)) {
            let mut listed = base.clone();
            let name = format!("{}-listed", base["metadata"]["name"].as_str().unwrap_or_default());
            set(&mut listed, "/metadata/name", Some(json!(name)));
            if let Some(spec) = listed.get_mut("spec").and_then(Value::as_object_mut) {
                // What belongs to one object alone has not been given back when this one is made.
                for own in ["clusterIP", "clusterIPs", "healthCheckNodePort", "ports", "podCIDR", "podCIDRs", "type"] {
                    if self.subject.kind != "Service" || base["metadata"]["name"] == "full" {
                        spec.remove(own);
                    }
                }
                if self.subject.kind == "Service" && base["metadata"]["name"] == "full" {
                    spec.clear();
                    spec.insert("ports".to_owned(), json!([{"port": 80}]));
                }
            }
            self.ask(format!("make {name}"), "POST", collection.clone(), Some(listed));
        }
        let chosen = format!("{collection}?labelSelector=oracle%3Dyes");
        self.ask("list", "GET", chosen.clone(), None);
        for (form, accept) in [("table", TABLE), ("metadata", PARTIAL_LIST)] {
            accept.clone_into(&mut self.ask(format!("list as {form}"), "GET", chosen.clone(), None).accept);
        }
        for include in ["None", "Object", "Nonsense"] {
            let path = format!("{chosen}&includeObject={include}");
            TABLE.clone_into(&mut self.ask(format!("list as table with {include}"), "GET", path, None).accept);
        }
        for (label, query) in [
            ("by name", "fieldSelector=metadata.name%3Dfull-listed"),
            ("by an unknown field", "fieldSelector=spec.unknown%3Da"),
            ("by a broken field selector", "fieldSelector=a%3D%3D%3Db%3Dc,d"),
            ("by a broken label selector", "labelSelector=a%20b%20c"),
            ("by a bad label", "labelSelector=a%3D-b-"),
            ("by a set", "labelSelector=oracle%20in%20(no,never)"),
            ("by a bad limit", "limit=x"),
            ("of a bad revision", "resourceVersion=x"),
            ("matching without a revision", "resourceVersionMatch=Exact"),
            ("by a bad token", "continue=nonsense"),
            ("with a bad timeout", "timeoutSeconds=x"),
        ] {
            self.ask(format!("list {label}"), "GET", format!("{collection}?{query}"), None);
        }
        let dry = format!("{collection}?labelSelector=oracle%3Dyes&dryRun=All");
        self.ask("delete all: dry", "DELETE", dry, None);
        self.ask("delete all", "DELETE", chosen, None);
    }

    /// What is said of the kind itself.
    fn documents(&mut self) {
        let subject = *self.subject;
        let resources = Some(Pick::Resources(subject.plural.to_owned()));
        self.ask("discovery", "GET", subject.root(), None).pick.clone_from(&resources);
        let all = if subject.group.is_empty() { "/api" } else { "/apis" };
        let aggregated = self.ask("aggregated discovery", "GET", all, None);
        AGGREGATED.clone_into(&mut aggregated.accept);
        aggregated.pick = Some(Pick::Resources(format!("{}/{}/{}", subject.group, subject.version, subject.plural)));
        if !subject.group.is_empty() {
            self.ask("group", "GET", format!("/apis/{}", subject.group), None);
            self.ask("groups", "GET", "/apis", None).pick = Some(Pick::Group(subject.group.to_owned()));
        }
        let gvk = format!("{}/{}/{}", subject.group, subject.version, subject.kind);
        let document = format!("/openapi/v3{}", subject.root());
        self.ask("openapi", "GET", document, None).pick =
            Some(Pick::Schemas { gvk, plural: subject.plural.to_owned() });
        let collection = self.subject.collection();
        for (form, accept) in [("table", TABLE), ("metadata", PARTIAL), ("a list of metadata", PARTIAL_LIST)] {
            let path = format!("{collection}?dryRun=All");
            accept.clone_into(&mut self.ask(format!("create as {form}"), "POST", path, Some(json!({}))).accept);
        }
        if self.subject.name == "service_account" {
            self.ask("issuer", "GET", "/.well-known/openid-configuration", None);
            "*/*".clone_into(&mut self.ask("issuer's keys", "GET", "/openid/v1/jwks", None).accept);
        }
        self.ask("trace", "TRACE", collection.clone(), None);
        self.ask("put to the collection", "PUT", collection.clone(), Some(json!({})));
        self.ask("a sub-resource that is none", "GET", format!("{collection}/a/nonsense"), None);
        let xml = self.ask("create XML", "POST", collection.clone(), Some(json!({})));
        "application/xml".clone_into(&mut xml.content_type);
        "application/xml".clone_into(&mut self.ask("as XML", "GET", collection, None).accept);
    }

    /// `count` of the mutants, by the seed.
    pub(super) fn sample(&mut self, mut mutants: Vec<Mutant>, count: usize) -> Vec<Mutant> {
        let mut taken = Vec::new();
        while taken.len() < count && !mutants.is_empty() {
            taken.push(mutants.swap_remove(self.dice.below(mutants.len())));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::subjects;

    #[test]
    fn every_kind_has_a_script_that_repeats() {
        for subject in subjects::all() {
            let requests = script(&subject, 1);
            assert!(requests.len() > 50, "{}: {}", subject.name, requests.len());
            assert_eq!(requests, script(&subject, 1), "{}", subject.name);
        }
    }
}
