//! Strict checks, type errors and pruning, in upstream's words.

use serde_json::{Value, json};

use super::*;

const TABLE: &str = "\
# comment
io.k8s.api.x.v1.Pod\tgvk=x/v1/Pod
\tapiVersion\tstring\tvia=TypeMeta
\tkind\tstring\tvia=TypeMeta
\tmetadata\tio.k8s.api.x.v1.Meta
\tspec\tio.k8s.api.x.v1.Spec
io.k8s.api.x.v1.Meta
\tcreationTimestamp\ttime
\tlabels\t{}string
\tname\tstring
io.k8s.api.x.v1.Spec
\tcontainers\t[]io.k8s.api.x.v1.Container\trequired list=map keys=name merge-key=name patch=merge
\tdata\t{}bytes
\tnodeSelector\t{}string\tatomic
\trenewTime\tmicro-time
\treplicas\tint32\tdefault=1
\tuid\tint64
io.k8s.api.x.v1.Container
\targs\t[]string\tlist=atomic
\tenv\t[]io.k8s.api.x.v1.EnvVar\tlist=map keys=name merge-key=name patch=merge
\timagePullPolicy\tstring\tgo=v1.PullPolicy
\tlimits\t{}quantity\tgo=v1.ResourceList
\tname\tstring\trequired
\tport\tint-or-string
\ttcpSocket\tio.k8s.api.x.v1.Socket\tvia=ProbeHandler
\ttty\tbool
io.k8s.api.x.v1.EnvVar
\tname\tstring\trequired
\tvalue\tstring
io.k8s.api.x.v1.Socket\tatomic
\traw\tany
";

fn pod(schema: &Schema) -> Type<'_> {
    schema.get("io.k8s.api.x.v1.Pod").unwrap()
}

fn container(member: Value) -> Value {
    json!({"spec": {"containers": [{"name": "a"}, member]}})
}

#[test]
fn knows_the_facts() {
    let schema = Schema::parse(TABLE).unwrap();
    assert_eq!(pod(&schema).gvk(), Some(("x", "v1", "Pod")));
    let Shape::Object(spec) = pod(&schema).field("spec").unwrap().shape() else { panic!("spec is an object") };
    assert_eq!((spec.go_name(), spec.short_name()), ("v1.Spec", "Spec"));
    let containers = spec.field("containers").unwrap();
    assert!(containers.is_required() && containers.patch_strategy().merge);
    assert_eq!((containers.merge_key(), containers.list_type()), (Some("name"), Some(ListType::Map)));
    assert_eq!(containers.list_map_keys().collect::<Vec<_>>(), ["name"]);
    assert_eq!(spec.field("replicas").unwrap().default(), Some(&json!(1)));
    assert!(spec.field("nodeSelector").unwrap().is_atomic());
    assert!(schema.get("io.k8s.api.x.v1.Socket").unwrap().is_atomic());
    assert!(spec.field("Containers").is_none());
}

#[test]
fn refuses_tables_that_it_does_not_understand() {
    for (table, message) in [
        ("\ta\tstring", "line 1 of the schema: a field before the first type"),
        ("A\n\tb", "line 2 of the schema: field b has no shape"),
        ("A\n\tb\t[]C", "line 2 of the schema: C is not defined"),
        ("A\n\tb\tstring\tc=d", "line 2 of the schema: unknown attribute c=d"),
        ("A\nA", "line 2 of the schema: A stands there twice"),
        ("A\tb", "line 1 of the schema: unknown attribute b"),
    ] {
        assert_eq!(Schema::parse(table).unwrap_err().to_string(), message);
    }
}

#[test]
fn finds_every_unknown_field() {
    let schema = Schema::parse(TABLE).unwrap();
    let value = json!({
        "kind": "Pod",
        "Spec": {},
        "metadata": {"labels": {"any": "thing"}},
        "spec": {
            "containers": [{"name": "a", "imagePullPolice": "Always", "tcpSocket": {"raw": {"what": "ever"}}}],
            "foo": {"not": {"looked": "into"}},
        },
        "status": null,
    });
    let found = pod(&schema).check(&value).unwrap();
    assert_eq!(
        Strict::message(&found).unwrap(),
        "strict decoding error: unknown field \"Spec\", unknown field \"spec.containers[0].imagePullPolice\", unknown field \
         \"spec.foo\", unknown field \"status\""
    );
    let Strict::Unknown { nearest, .. } = &found[1] else { panic!("{found:?}") };
    assert_eq!(nearest.as_deref(), Some("imagePullPolicy"));
    assert_eq!(Strict::message(&[]), None);
}

#[test]
fn names_wrong_types_as_go_does() {
    let schema = Schema::parse(TABLE).unwrap();
    let field = "json: cannot unmarshal";
    for (value, message) in [
        (json!([]), format!("{field} array into Go value of type v1.Pod")),
        (json!({"kind": 1}), format!("{field} number into Go struct field Pod.TypeMeta.kind of type string")),
        (json!({"spec": 1}), format!("{field} number into Go struct field Pod.spec of type v1.Spec")),
        (
            container(json!({"env": [{"name": "a", "value": 5}]})),
            format!("{field} number into Go struct field EnvVar.spec.containers.env.value of type string"),
        ),
        (
            container(json!({"env": {}})),
            format!("{field} object into Go struct field Container.spec.containers.env of type []v1.EnvVar"),
        ),
        (
            container(json!({"args": [true]})),
            format!("{field} bool into Go struct field Container.spec.containers.args of type string"),
        ),
        (
            container(json!({"imagePullPolicy": []})),
            format!(
                "{field} array into Go struct field Container.spec.containers.imagePullPolicy of type v1.PullPolicy"
            ),
        ),
        (
            container(json!({"limits": "1"})),
            format!("{field} string into Go struct field Container.spec.containers.limits of type v1.ResourceList"),
        ),
        (
            container(json!({"tcpSocket": 1})),
            format!(
                "{field} number into Go struct field Container.spec.containers.ProbeHandler.tcpSocket of type v1.Socket"
            ),
        ),
        (
            container(json!({"port": true})),
            format!("{field} bool into Go struct field Container.spec.containers.port of type int32"),
        ),
        (
            container(json!({"port": 3_000_000_000_u32})),
            format!("{field} number 3000000000 into Go struct field Container.spec.containers.port of type int32"),
        ),
        (
            json!({"metadata": {"labels": {"a": 1}}}),
            format!("{field} number into Go struct field Meta.metadata.labels of type string"),
        ),
        (
            json!({"spec": {"replicas": 1.5}}),
            format!("{field} number 1.5 into Go struct field Spec.spec.replicas of type int32"),
        ),
        (
            json!({"spec": {"uid": 9_223_372_036_854_775_808_u64}}),
            format!("{field} number 9223372036854775808 into Go struct field Spec.spec.uid of type int64"),
        ),
        (
            json!({"spec": {"replicas": "1"}}),
            format!("{field} string into Go struct field Spec.spec.replicas of type int32"),
        ),
        (
            json!({"metadata": {"creationTimestamp": 1}}),
            format!("{field} number into Go struct field Meta.metadata.creationTimestamp of type string"),
        ),
        (
            json!({"metadata": {"creationTimestamp": "now"}}),
            "parsing time \"now\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"now\" as \"2006\"".to_owned(),
        ),
        (json!({"spec": {"data": {"a": "not base64!"}}}), "illegal base64 data at input byte 3".to_owned()),
        (
            container(json!({"limits": {"cpu": "1x"}})),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".to_owned(),
        ),
        // The first wrong type is reported, unless a type that decodes itself fails behind it.
        (
            json!({"metadata": {"name": 1}, "spec": {"replicas": "1"}}),
            format!("{field} number into Go struct field Meta.metadata.name of type string"),
        ),
        (
            json!({"metadata": {"name": 1}, "spec": {"containers": [{"limits": {"cpu": "1i"}}]}}),
            "unable to parse quantity's suffix".to_owned(),
        ),
    ] {
        assert_eq!(pod(&schema).check(&value).unwrap_err().to_string(), message, "{value}");
    }
}

#[test]
fn takes_null_for_unset() {
    let schema = Schema::parse(TABLE).unwrap();
    let mut value = json!({
        "metadata": {"creationTimestamp": null, "labels": {"a": null}},
        "spec": {"containers": [null, {"name": null, "args": [null], "limits": {"cpu": null}}], "replicas": null},
    });
    assert_eq!(pod(&schema).check(&value), Ok(Vec::new()));
    pod(&schema).prune(&mut value);
    let expected = json!({
        "metadata": {"labels": {"a": ""}},
        "spec": {"containers": [{}, {"args": [""], "limits": {"cpu": "0"}}]},
    });
    assert_eq!(value, expected);
}

#[test]
fn prunes_and_writes_as_upstream() {
    let schema = Schema::parse(TABLE).unwrap();
    let mut value = json!({
        "metadata": {"creationTimestamp": "2026-11-23T12:00:00.5+01:00", "managed": 1},
        "spec": {
            "renewTime": "2026-11-23T12:00:00.123456+01:00",
            "containers": [{"name": "a", "x": 1, "port": 80, "limits": {"cpu": 0.5, "memory": "1024Mi", "x": 2}}],
        },
        "status": {},
    });
    pod(&schema).prune(&mut value);
    let expected = json!({
        "metadata": {"creationTimestamp": "2026-11-23T11:00:00Z"},
        "spec": {
            "renewTime": "2026-11-23T11:00:00.123456Z",
            "containers": [{"name": "a", "port": 80, "limits": {"cpu": "500m", "memory": "1Gi", "x": "2"}}],
        },
    });
    assert_eq!(value, expected);
    let again = value.clone();
    pod(&schema).prune(&mut value);
    assert_eq!(value, again);
}
