//! Ownership and applying, case by case, on a small schema.

use serde_json::json;

use super::*;
use crate::schema::Schema;

pub(super) const TABLE: &str = "\
Thing\tgvk=x/v1/Thing
\tapiVersion\tstring
\tkind\tstring
\tmetadata\tMeta\tzero={}
\tspec\tSpec\tzero={}
\tstatus\tStatus\tzero={}
Meta
\tannotations\t{}string
\tfinalizers\t[]string\tpatch=merge
\tlabels\t{}string
\tmanagedFields\t[]any\tlist=atomic
\tname\tstring
\tnamespace\tstring
\tresourceVersion\tstring
Spec
\targs\t[]string\tlist=atomic
\tcontainers\t[]Container\trequired list=map keys=name zero=null
\tports\t[]Port\tlist=map keys=port,protocol
\treplicas\tint32
\tselector\tSelector
\tset\t[]string\tlist=set
\ttemplate\tTemplate\tzero={}
Selector\tatomic
\tmatchLabels\t{}string
Template
\tlabels\t{}string
Container
\tenv\t[]Env\tlist=map keys=name
\timage\tstring
\tname\tstring\trequired zero=\"\"
\tresources\tResources\tzero={}
Resources
\tlimits\t{}quantity
Env
\tname\tstring\trequired zero=\"\"
\tvalue\tstring
Port
\tport\tint32\trequired zero=0
\tprotocol\tstring\tdefault=\"TCP\"
\ttarget\tint-or-string
Status
\tready\tint32
";

pub(super) static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::parse(TABLE).unwrap());

/// One version alone.
pub(super) struct One;

impl Versions for One {
    fn of(&self, api_version: &str) -> Option<Type<'_>> {
        (api_version == "x/v1").then(|| SCHEMA.get("Thing").unwrap())
    }

    fn convert(&self, object: &Value, from: &str, to: &str) -> Option<Value> {
        (from == to).then(|| object.clone())
    }
}

/// An object and the clock, which moves a minute with each write.
pub(super) struct World {
    pub live: Option<Value>,
    minute: u32,
}

impl World {
    pub fn new() -> Self {
        Self { live: None, minute: 0 }
    }

    fn write<T>(
        &mut self,
        manager: &str,
        subresource: &str,
        decide: impl FnOnce(&Write<'_>, Option<&Value>) -> T,
    ) -> T {
        self.minute += 1;
        let resets = Set::of_fields(&[if subresource == "status" { "spec" } else { "status" }]);
        let write = Write {
            versions: &One,
            api_version: "x/v1",
            of: SCHEMA.get("Thing").unwrap(),
            kind: "Thing",
            subresource,
            manager,
            resets: &resets,
            now: &format!("2026-11-26T12:{:02}:00Z", self.minute),
        };
        decide(&write, self.live.as_ref())
    }

    fn set_fields(object: &mut Value, fields: Option<Value>) {
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.remove("managedFields");
        if let Some(fields) = fields {
            metadata.insert("managedFields".to_owned(), fields);
        }
    }

    pub fn update_at(&mut self, manager: &str, subresource: &str, mut new: Value) {
        let fields = self.write(manager, subresource, |write, live| write.update(live, &new));
        Self::set_fields(&mut new, fields);
        self.live = Some(new);
    }

    pub fn update(&mut self, manager: &str, spec: Value) {
        let new = json!({"apiVersion": "x/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec});
        self.update_at(manager, "", new);
    }

    pub fn try_apply(&mut self, manager: &str, force: bool, config: &Value) -> Result<bool, Error> {
        let applied = self.write(manager, "", |write, live| write.apply(live, config, force))?;
        let changed = applied.object.is_some();
        let mut object = applied.object.unwrap_or_else(|| self.live.clone().unwrap());
        // As decoding into a typed object does.
        SCHEMA.get("Thing").unwrap().prune(&mut object);
        Self::set_fields(&mut object, applied.managed_fields);
        self.live = Some(object);
        Ok(changed)
    }

    pub fn apply(&mut self, manager: &str, spec: Value) -> Result<bool, Error> {
        self.try_apply(manager, false, &thing(spec))
    }

    /// Applies a configuration with no field at all.
    pub fn apply_nothing(&mut self, manager: &str) {
        let config = json!({"apiVersion": "x/v1", "kind": "Thing", "metadata": {"name": "a"}});
        self.try_apply(manager, false, &config).unwrap();
    }

    pub fn spec(&self) -> &Value {
        &self.live.as_ref().unwrap()["spec"]
    }

    /// The entries, as `Operation manager[/subresource] minute fields`.
    fn owners(&self) -> Vec<String> {
        let entries = &self.live.as_ref().unwrap()["metadata"]["managedFields"];
        let line = |entry: &Value| {
            let text = |field: &str| entry[field].as_str().unwrap_or("-");
            let sub = entry.get("subresource").map_or(String::new(), |sub| format!("/{}", sub.as_str().unwrap()));
            let minute = entry.get("time").map_or("-", |time| &time.as_str().unwrap()[14..16]);
            format!("{} {}{sub} {minute} {}", text("operation"), text("manager"), entry["fieldsV1"])
        };
        entries.as_array().into_iter().flatten().map(line).collect()
    }
}

pub(super) fn thing(spec: Value) -> Value {
    json!({"apiVersion": "x/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec})
}

#[test]
fn creating_owns_what_is_there_in_upstreams_form() {
    let mut world = World::new();
    let object = json!({"apiVersion": "x/v1", "kind": "Thing",
        "metadata": {"name": "a", "labels": {"app": "a"}, "finalizers": ["f/a"]},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "a"}}, "args": ["x"], "set": ["s"],
            "ports": [{"port": 80, "target": "http"}],
            "containers": [{"name": "c", "image": "i", "resources": {}, "env": [{"name": "E", "value": "1"}]}],
            "template": {"labels": {"app": "a"}},
        },
        "status": {"ready": 1}});
    world.update_at("kubectl-create", "", object);
    let entries = &world.live.as_ref().unwrap()["metadata"]["managedFields"];
    let expected = json!([{
        "manager": "kubectl-create", "operation": "Update", "apiVersion": "x/v1", "time": "2026-11-26T12:01:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {".": {}, "v:\"f/a\"": {}}},
            "f:spec": {
                "f:replicas": {}, "f:selector": {}, "f:args": {}, "f:set": {".": {}, "v:\"s\"": {}},
                "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}, "f:target": {}}},
                "f:containers": {"k:{\"name\":\"c\"}": {
                    ".": {}, "f:name": {}, "f:image": {}, "f:resources": {},
                    "f:env": {".": {}, "k:{\"name\":\"E\"}": {".": {}, "f:name": {}, "f:value": {}}},
                }},
                "f:template": {"f:labels": {".": {}, "f:app": {}}},
            },
        },
    }]);
    assert_eq!(*entries, expected);
}

#[test]
fn updates_take_what_they_change() {
    let mut world = World::new();
    world.update("a", json!({"replicas": 1, "set": ["x"], "args": ["1"]}));
    world.update("b", json!({"replicas": 2, "set": ["x"], "args": ["1"]}));
    assert_eq!(
        world.owners(),
        [
            r#"Update a 01 {"f:spec":{"f:args":{},"f:set":{".":{},"v:\"x\"":{}}}}"#,
            r#"Update b 02 {"f:spec":{"f:replicas":{}}}"#,
        ]
    );
    // What is removed is nobody's, and who owns nothing is not there.
    world.update("c", json!({"set": ["x", "y"], "args": ["1"]}));
    assert_eq!(
        world.owners(),
        [
            r#"Update a 01 {"f:spec":{"f:args":{},"f:set":{".":{},"v:\"x\"":{}}}}"#,
            r#"Update c 03 {"f:spec":{"f:set":{"v:\"y\"":{}}}}"#,
        ]
    );
    // A write that changes nothing leaves the times.
    let before = world.owners();
    world.update("a", json!({"set": ["x", "y"], "args": ["1"]}));
    assert_eq!(world.owners(), before);
}

#[test]
fn each_endpoint_owns_its_own() {
    let mut world = World::new();
    world.update("a", json!({"replicas": 1}));
    let mut new = world.live.clone().unwrap();
    new["status"] = json!({"ready": 1});
    new["spec"]["replicas"] = json!(9);
    world.update_at("kubelet", "status", new);
    assert_eq!(
        world.owners(),
        [r#"Update a 01 {"f:spec":{"f:replicas":{}}}"#, r#"Update kubelet/status 02 {"f:status":{"f:ready":{}}}"#,]
    );
}

#[test]
fn conflicts_are_told_in_upstreams_words() {
    let mut world = World::new();
    world.apply("a", json!({"replicas": 1, "containers": [{"name": "c", "image": "1"}]})).unwrap();
    let error = world.apply("b", json!({"replicas": 2})).unwrap_err();
    let cause = |manager: &str, field: &str| Cause {
        reason: "FieldManagerConflict".to_owned(),
        message: format!("conflict with {manager}"),
        field: field.to_owned(),
    };
    assert_eq!(
        error,
        Error::Conflicts {
            message: "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas".to_owned(),
            causes: vec![cause("\"a\"", ".spec.replicas")],
        }
    );
    // The same value is shared, and no conflict.
    assert_eq!(world.apply("b", json!({"replicas": 1})), Ok(false));
    world.update("c", json!({"replicas": 1, "containers": [{"name": "c", "image": "2"}]}));
    let error = world.apply("b", json!({"replicas": 3, "containers": [{"name": "c", "image": "3"}]})).unwrap_err();
    let image = r#".spec.containers[name="c"].image"#;
    assert_eq!(
        error,
        Error::Conflicts {
            message: format!(
                "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.replicas\nconflicts with \"c\" using x/v1:\n- {image}"
            ),
            causes: vec![cause("\"a\"", ".spec.replicas"), cause("\"c\" using x/v1", image)],
        }
    );
    let config = thing(json!({"replicas": 3}));
    assert_eq!(world.try_apply("b", true, &config), Ok(true));
    assert_eq!(world.spec()["replicas"], 3);
    assert_eq!(
        world.owners()[..2],
        [
            r#"Apply a 01 {"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:name":{}}}}}"#,
            r#"Apply b 06 {"f:spec":{"f:replicas":{}}}"#,
        ]
    );
}

#[test]
fn what_is_applied_no_more_goes() {
    let mut world = World::new();
    world
        .apply(
            "a",
            json!({"replicas": 1, "args": ["1"], "set": ["x", "y"], "containers": [{"name": "c"}, {"name": "d"}]}),
        )
        .unwrap();
    world.apply("b", json!({"set": ["y"], "containers": [{"name": "d", "image": "i"}]})).unwrap();
    world.apply("a", json!({"replicas": 1})).unwrap();
    assert_eq!(*world.spec(), json!({"replicas": 1, "set": ["y"], "containers": [{"name": "d", "image": "i"}]}));
    // What others changed since is theirs.
    world.update("c", json!({"replicas": 5, "set": ["y"]}));
    world.apply_nothing("a");
    assert_eq!(world.spec()["replicas"], 5);
    assert_eq!(
        world.owners(),
        [r#"Apply b 02 {"f:spec":{"f:set":{"v:\"y\"":{}}}}"#, r#"Update c 04 {"f:spec":{"f:replicas":{}}}"#]
    );
}

#[test]
fn lists_get_the_order_of_who_applies_them() {
    let named = |names: &str| -> Value { names.chars().map(|name| json!({"name": name.to_string()})).collect() };
    for (live, config, expected) in [
        ("ab", "ba", "ba"),
        ("abc", "cx", "abcx"),
        ("axb", "ba", "xba"),
        ("ab", "", "ab"),
        ("", "ba", "ba"),
        ("abcd", "db", "acdb"),
    ] {
        let mut world = World::new();
        world.update("m", json!({"containers": named(live)}));
        let config = thing(json!({"containers": named(config)}));
        world.try_apply("a", true, &config).unwrap();
        let names: String = world.spec()["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|item| item["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, expected, "{live} {config}");
    }
}

#[test]
fn whole_things_are_replaced_whole() {
    let mut world = World::new();
    world.apply("a", json!({"selector": {"matchLabels": {"a": "1"}}, "args": ["1", "2"]})).unwrap();
    let conflict = world.apply("b", json!({"selector": {"matchLabels": {"b": "1"}}})).unwrap_err();
    assert_eq!(conflict.to_string(), "Apply failed with 1 conflict: conflict with \"a\": .spec.selector");
    world.apply("a", json!({"selector": {"matchLabels": {"b": "1"}}, "args": ["3"]})).unwrap();
    assert_eq!(*world.spec(), json!({"selector": {"matchLabels": {"b": "1"}}, "args": ["3"]}));
}

#[test]
fn configurations_that_are_none() {
    let with = |spec: Value| thing(spec);
    let unfit = |why: &str| Error::Unfit(format!("failed to create typed patch object (/a; x/v1, Kind=Thing): {why}"));
    for (config, error) in [
        (with(json!({"foo": 1})), unfit(".spec.foo: field not declared in schema")),
        (with(json!({"replicas": "1"})), unfit(".spec.replicas: expected numeric (int or float), got string")),
        (
            with(json!({"containers": [{"name": "c", "env": [{"name": "A", "value": 5}]}]})),
            unfit(
                r#".spec.containers[name="c"].env[name="A"].value: expected string, got &value.valueUnstructured{Value:5}"#,
            ),
        ),
        (with(json!({"set": ["a", "a"]})), unfit(r#".spec.set: duplicate entries for key [="a"]"#)),
        (
            with(json!({"ports": [{"port": 1}, {"port": 1, "protocol": "TCP"}]})),
            unfit(r#".spec.ports: duplicate entries for key [port=1,protocol="TCP"]"#),
        ),
        (
            with(json!({"set": [null]})),
            unfit(".spec.set: element 0: associative list without keys has an element that's an explicit null"),
        ),
        (with(json!({"set": {}})), unfit(".spec.set: expected list, got &{map[]}")),
        (with(json!([])), unfit(".spec: expected map, got &{[]}")),
        (
            json!({"apiVersion": "x/v2", "kind": "Thing", "metadata": {"name": "a"}}),
            Error::BadRequest("invalid object type: x/v2, Kind=Thing".to_owned()),
        ),
        (
            json!({"apiVersion": "x/v1", "kind": "Thing", "metadata": {"managedFields": []}}),
            Error::BadRequest("metadata.managedFields must be nil".to_owned()),
        ),
    ] {
        assert_eq!(World::new().try_apply("a", false, &config), Err(error), "{config}");
    }
    let mut two = thing(json!({"foo": 1}));
    two["bar"] = json!(1);
    let error = World::new().try_apply("a", false, &two).unwrap_err().to_string();
    assert!(
        error.ends_with("errors:\n  .bar: field not declared in schema\n  .spec.foo: field not declared in schema"),
        "{error}"
    );
}

#[test]
fn what_was_there_before_is_noted_when_somebody_applies() {
    let mut world = World::new();
    world.live = Some(thing(json!({"replicas": 1, "args": ["1"]})));
    // Updates of what nobody owns begin nothing.
    world.update("a", json!({"replicas": 2, "args": ["1"]}));
    assert_eq!(world.owners(), [""; 0]);
    let error = world.apply("a", json!({"replicas": 3})).unwrap_err().to_string();
    assert_eq!(error, "Apply failed with 1 conflict: conflict with \"before-first-apply\" using x/v1: .spec.replicas");
    world.apply("a", json!({"replicas": 2})).unwrap();
    assert_eq!(
        world.owners(),
        [
            r#"Apply a - {"f:spec":{"f:replicas":{}}}"#,
            r#"Update before-first-apply 03 {"f:spec":{"f:args":{},"f:replicas":{}}}"#,
        ]
    );
}

#[test]
fn requests_may_write_the_owners_themselves() {
    let mut world = World::new();
    world.update("a", json!({"replicas": 1}));
    let entries = world.live.as_ref().unwrap()["metadata"]["managedFields"].clone();
    for reset in [json!([]), json!([{}])] {
        let mut new = thing(json!({"replicas": 1}));
        new["metadata"]["managedFields"] = reset;
        world.update_at("b", "", new);
        assert_eq!(world.owners(), [""; 0]);
    }
    // Those that are given count, and those that make no sense do not.
    let mut new = thing(json!({"replicas": 1}));
    new["metadata"]["managedFields"] = entries.clone();
    world.update_at("b", "", new.clone());
    assert_eq!(world.owners().len(), 1);
    new["metadata"]["managedFields"][0]["operation"] = json!("Guess");
    world.update_at("b", "", new);
    assert_eq!(world.live.as_ref().unwrap()["metadata"]["managedFields"], entries);
}

#[test]
fn kubectl_takes_over_what_it_applied_itself() {
    let mut world = World::new();
    let mut object = thing(json!({"replicas": 1, "args": ["1"]}));
    let noted = thing(json!({"replicas": 1, "args": ["1"]})).to_string();
    object["metadata"]["annotations"] = json!({LAST_APPLIED: noted});
    world.update_at("kubectl-client-side-apply", "", object.clone());
    let config = thing(json!({"replicas": 2, "args": ["1"]}));
    assert!(world.try_apply("other", false, &config).is_err());
    assert_eq!(world.try_apply("kubectl", false, &config), Ok(true));
    let shown = world.live.as_ref().unwrap();
    assert_eq!(shown["metadata"]["annotations"][LAST_APPLIED], format!("{config}\n"));
    // What somebody else has changed since is not kubectl's.
    let mut world = World::new();
    world.update_at("kubectl-client-side-apply", "", object.clone());
    object["spec"]["replicas"] = json!(7);
    world.update_at("hpa", "", object);
    let error = world.try_apply("kubectl", false, &config).unwrap_err().to_string();
    assert_eq!(error, "Apply failed with 1 conflict: conflict with \"hpa\" using x/v1: .spec.replicas");
}

#[test]
fn too_many_updaters_become_one() {
    let mut world = World::new();
    for n in 0..14 {
        world.update(&format!("m{n:02}"), json!({"set": (0..=n).map(|n| n.to_string()).collect::<Vec<_>>()}));
    }
    let owners = world.owners();
    assert_eq!(owners.len(), 10);
    assert_eq!(
        owners[0],
        r#"Update ancient-changes 05 {"f:spec":{"f:set":{".":{},"v:\"0\"":{},"v:\"1\"":{},"v:\"2\"":{},"v:\"3\"":{},"v:\"4\"":{}}}}"#
    );
    assert!(owners[1].starts_with("Update m05 06"), "{}", owners[1]);
}

#[test]
fn items_that_stand_there_twice() {
    let mut world = World::new();
    world.update(
        "a",
        json!({"set": ["x", "x"], "containers": [{"name": "c", "image": "1"}, {"name": "c", "image": "2"}]}),
    );
    let expected = r#"Update a 01 {"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{}},"f:set":{".":{},"v:\"x\"":{}}}}"#;
    assert_eq!(world.owners(), [expected]);
    let config = thing(json!({"containers": [{"name": "c", "image": "3"}]}));
    world.try_apply("b", true, &config).unwrap();
    assert_eq!(world.spec()["containers"], json!([{"name": "c", "image": "3"}]));
}

#[test]
fn scales_share_the_owner_of_their_replicas() {
    let entry = |manager: &str, operation: &str, sub: &str, fields: Value| {
        let mut entry = json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1", "time": "t",
            "fieldsType": "FieldsV1", "fieldsV1": fields});
        if !sub.is_empty() {
            entry["subresource"] = sub.into();
        }
        entry
    };
    let versions = ["apps/v1".to_owned()];
    let object = json!([
        entry("a", "Apply", "", json!({"f:spec": {"f:replicas": {}, "f:x": {}}})),
        entry("b", "Update", "", json!({"f:spec": {"f:x": {}}})),
    ]);
    let scale = scale::to_scale(&object, &versions).unwrap().unwrap();
    assert_eq!(scale[0]["apiVersion"], "autoscaling/v1");
    assert_eq!(scale[0]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(scale.as_array().unwrap().len(), 1);
    assert_eq!(scale::to_object(&object, &scale, "apps/v1", &versions).unwrap(), Some(object.clone()));
    let mut stolen = entry("hpa", "Update", "scale", json!({"f:spec": {"f:replicas": {}}}));
    stolen["apiVersion"] = json!("autoscaling/v1");
    let after = scale::to_object(&object, &json!([stolen]), "apps/v1", &versions).unwrap().unwrap();
    assert_eq!(after[0]["fieldsV1"], json!({"f:spec": {"f:x": {}}}));
    let scaled = after.as_array().unwrap().iter().find(|entry| entry["manager"] == "hpa").unwrap();
    assert_eq!(
        (&scaled["apiVersion"], &scaled["subresource"], scaled.get("time")),
        (&json!("apps/v1"), &json!("scale"), None)
    );
}

#[test]
fn names_of_managers() {
    for (agent, manager) in [
        ("kubectl/v1.36 (linux/amd64)", "kubectl"),
        ("Mozilla", "Mozilla"),
        ("", ""),
        ("a\tb/c", "ab"),
        (&"x".repeat(200), &"x".repeat(128)),
    ] {
        assert_eq!(manager_of_agent(agent), manager);
    }
}

#[test]
fn sets_read_what_they_write() {
    let text = json!({
        "f:a": {".": {}, "f:b": {}, "k:{\"name\":\"x\",\"port\":1}": {".": {}, "f:c": {}}},
        "f:s": {"v:1": {}, "v:\"1\"": {}, "v:true": {}, "i:3": {}},
    });
    let set = Set::from_json(&text).unwrap();
    assert_eq!(set.to_json(), text);
    let paths: Vec<String> = set.paths().iter().map(|path| set::shown(path)).collect();
    assert_eq!(
        paths,
        [
            ".a",
            ".a.b",
            r#".a[name="x",port=1]"#,
            r#".a[name="x",port=1].c"#,
            ".s[=1]",
            r#".s[="1"]"#,
            ".s[=true]",
            ".s[3]"
        ]
    );
    assert_eq!(Set::from_json(&json!({"x:a": {}, "f:b": {}})).unwrap().to_json(), json!({"f:b": {}}));
    for wrong in [json!([]), json!({"fa": {}}), json!({"k:[]": {}}), json!({"v:{": {}}), json!({"f:a": 1})] {
        assert!(Set::from_json(&wrong).is_err(), "{wrong}");
    }
}
