//! Containers' configurations, as far as each case is about.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;
use crate::pod_machine::event::User;

fn plan(pod: Value, container: Value, image: ImageConfig) -> Result<Value, PlanError> {
    let mut container = container;
    container["name"] = json!("c");
    let mut spec = pod;
    spec["containers"] = json!([container]);
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap();
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let identity = Identity { user: User { uid: 7, gid: 8, groups: vec![8, 9] }, home: "/home".to_owned() };
    let bind = |source: &str, target: &str, read_only| Bind {
        source: source.into(),
        target: target.to_owned(),
        read_only,
        recursive_read_only: false,
        propagation: Propagation::Private,
    };
    let binds = [bind("/b", "/data/sub", true), bind("/a", "/data", false)];
    let env = BTreeMap::from([("WHO".to_owned(), "me".to_owned())]);
    let device = Device { path: "/dev/sda".to_owned(), kind: 'b', major: 8, minor: 0, mode: 0o660, uid: 0, gid: 6 };
    let spec = super::container(&Inputs {
        pod: &pod,
        container,
        image: &image,
        identity: &identity,
        env: &env,
        binds: &binds,
        host_name: "p",
        seccomp_file: None,
        devices: &[device],
        memory_capacity: 4 << 30,
    })?;
    Ok(serde_json::to_value(spec).unwrap())
}

fn check(container: Value, pointer: &str, expect: Expect) {
    let image = ImageConfig { cmd: vec!["run".to_owned()], ..ImageConfig::default() };
    let found = plan(json!({}), container, image).unwrap();
    let part = found.pointer(pointer).cloned().unwrap_or_default();
    expect.assert_eq(&part.to_string());
}

#[test]
fn commands_and_arguments_override_the_image() {
    let image = || ImageConfig {
        entrypoint: vec!["entry".to_owned()],
        cmd: vec!["cmd".to_owned()],
        env: vec!["WHO=image".to_owned(), "IMAGE=1".to_owned()],
        working_dir: "/srv".to_owned(),
        ..ImageConfig::default()
    };
    let args = |container: Value| plan(json!({}), container, image()).unwrap()["process"]["args"].to_string();
    assert_eq!(args(json!({})), r#"["entry","cmd"]"#);
    assert_eq!(args(json!({"args": ["$(WHO)"]})), r#"["entry","me"]"#);
    assert_eq!(args(json!({"command": ["sh"]})), r#"["sh"]"#);
    assert_eq!(args(json!({"command": ["sh"], "args": ["$(IMAGE)", "$$(WHO)"]})), r#"["sh","$(IMAGE)","$(WHO)"]"#);
    let process = plan(json!({}), json!({}), image()).unwrap()["process"].clone();
    assert_eq!(process["cwd"], "/srv");
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(process["env"], json!(["HOME=/home", "HOSTNAME=p", "IMAGE=1", path, "WHO=me"]));
    let empty = plan(json!({}), json!({}), ImageConfig::default());
    assert_eq!(empty, Err(PlanError::Create("no command specified".to_owned())));
}

#[test]
fn a_plain_container_has_the_default_capabilities_and_may_gain() {
    let image = ImageConfig { cmd: vec!["run".to_owned()], ..ImageConfig::default() };
    let found = plan(json!({}), json!({}), image).unwrap();
    for set in ["bounding", "effective", "permitted"] {
        let names: std::collections::BTreeSet<&str> =
            found["process"]["capabilities"][set].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(names, capability::DEFAULT.iter().copied().collect());
    }
    check(json!({}), "/process/noNewPrivileges", expect!["false"]);
    check(json!({}), "/process/user", expect![[r#"{"additionalGids":[8,9],"gid":8,"uid":7,"umask":18}"#]]);
    check(json!({}), "/linux/seccomp/defaultAction", expect![[r#""SCMP_ACT_ERRNO""#]]);
    check(json!({}), "/linux/resources/cpu", expect![[r#"{"shares":2}"#]]);
    check(json!({}), "/process/oomScoreAdj", expect!["1000"]);
}

#[test]
fn the_posts_security_context_is_all_there() {
    let container = || {
        json!({"securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }, "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}})
    };
    check(container(), "/process/capabilities/effective", expect!["[]"]);
    check(container(), "/process/noNewPrivileges", expect!["true"]);
    check(container(), "/root/readonly", expect!["true"]);
    check(container(), "/linux/resources/cpu", expect![[r#"{"period":100000,"quota":50000,"shares":512}"#]]);
    check(container(), "/linux/resources/memory", expect![[r#"{"limit":67108864,"swap":67108864}"#]]);
}

#[test]
fn privileged_containers_see_everything() {
    let container = || json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": true}});
    check(container(), "/linux/maskedPaths", expect!["[]"]);
    check(container(), "/linux/seccomp", expect!["null"]);
    check(container(), "/linux/devices/0/path", expect![[r#""/dev/sda""#]]);
    check(container(), "/linux/resources/devices", expect![[r#"[{"access":"rwm","allow":true}]"#]]);
    let mounts =
        plan(json!({}), json!({"command": ["sh"], "securityContext": {"privileged": true}}), ImageConfig::default());
    let mounts = mounts.unwrap()["mounts"].to_string();
    assert!(
        !mounts.contains("\"ro\"") || mounts.matches("\"ro\"").count() == 1,
        "only the read-only volume is: {mounts}"
    );
}

#[test]
fn mounts_come_after_those_above_them() {
    let found = plan(json!({}), json!({"command": ["sh"]}), ImageConfig::default()).unwrap();
    let places: Vec<&str> = found["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .take(2)
        .map(|mount| mount["destination"].as_str().unwrap())
        .collect();
    assert_eq!(places, ["/data/sub", "/data"]);
    let last = found["mounts"].as_array().unwrap().last().unwrap()["options"].clone();
    assert_eq!(last, json!(["rbind", "rprivate", "ro"]));
}

#[test]
fn what_cannot_be_is_named() {
    let error = |container: Value| {
        plan(json!({}), container, ImageConfig { cmd: vec!["x".to_owned()], ..ImageConfig::default() }).unwrap_err()
    };
    let unknown = error(json!({"securityContext": {"capabilities": {"add": ["X"]}}}));
    assert_eq!(unknown, PlanError::Create("unknown capability \"CAP_X\" to add".to_owned()));
    let profile =
        error(json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}}}));
    assert_eq!(profile.reason(), "CreateContainerError");
    let pod = |spec: Value| -> Pod { serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap() };
    let users = super::pod(&pod(json!({"containers": [], "hostUsers": false})), "cluster.local", "/logs".as_ref());
    assert!(users.unwrap_err().starts_with("spec.hostUsers: false is not supported"));
}
