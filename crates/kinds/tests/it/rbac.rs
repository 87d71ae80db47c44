//! Roles and their bindings.

use expect_test::expect;

use crate::{check, check_part, check_update};

fn object(kind: &str, fields: &str) -> String {
    format!("{{apiVersion: rbac.authorization.k8s.io/v1, kind: {kind}, metadata: {{name: a}}, {fields}}}")
}

#[test]
fn rules() {
    check(
        &object("Role", "rules: [{}, {verbs: [get], nonResourceURLs: [/x]}]"),
        expect![[r#"
        rules[0].verbs: Required value
        rules[0].apiGroups: Required value: resource rules must supply at least one api group
        rules[0].resources: Required value: resource rules must supply at least one resource
        rules[1].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs"#]],
    );
    check(
        &object(
            "ClusterRole",
            "rules: [{verbs: [get], nonResourceURLs: [/x], resources: [pods]}], aggregationRule: {}",
        ),
        expect![[r#"
            rules[0].nonResourceURLs: Invalid value: ["/x"]: rules cannot apply to both regular resources and non-resource URLs
            aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil"#]],
    );
}

#[test]
fn roles_may_gather_others() {
    let role =
        |selector: &str| object("ClusterRole", &format!("aggregationRule: {{clusterRoleSelectors: [{selector}]}}"));
    check(&role("{matchLabels: {to: all}}"), expect!["no errors"]);
    check(
        &role("{matchExpressions: [{key: a, operator: In}]}"),
        expect![
            "aggregationRule.clusterRoleSelectors[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
        ],
    );
}

#[test]
fn subjects_get_their_groups() {
    let binding = object(
        "RoleBinding",
        "roleRef: {kind: Role, name: r}, subjects: [{kind: User, name: u}, {kind: ServiceAccount, name: s}]",
    );
    check_part(
        &binding,
        "/subjects/0/apiGroup",
        expect![[r#"
        rbac.authorization.k8s.io
    "#]],
    );
    check_update(
        &binding,
        &binding.replace("name: r", "name: q"),
        expect![[
            r#"roleRef: Invalid value: {"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"q"}: field is immutable"#
        ]],
    );
}

#[test]
fn bindings() {
    check(
        &object(
            "RoleBinding",
            "roleRef: {kind: Rule, apiGroup: x}, subjects: [{kind: Robot}, {kind: Group, name: g, apiGroup: z}]",
        ),
        expect![[r#"
            roleRef.apiGroup: Unsupported value: "x": supported values: "rbac.authorization.k8s.io"
            roleRef.kind: Unsupported value: "Rule": supported values: "Role", "ClusterRole"
            roleRef.name: Required value
            subjects[0].name: Required value
            subjects[0].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group"
            subjects[1].apiGroup: Unsupported value: "z": supported values: "rbac.authorization.k8s.io""#]],
    );
    check(
        &object("ClusterRoleBinding", "roleRef: {kind: Role, name: r}, subjects: [{kind: ServiceAccount, name: s}]"),
        expect![[r#"
            roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole"
            subjects[0].namespace: Required value"#]],
    );
}
