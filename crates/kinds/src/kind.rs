//! What a kind declares once, and everything else reads.
//!
//! Routes, discovery, tables, OpenAPI, the request pipeline, namespace deletion and garbage collection know kinds only by
//! this struct, so a CRD builds the same one at run time. Follows upstream's `registry/*/strategy.go`.

use std::borrow::Cow;
use std::time::Duration;

use api::field;
use api::key::GroupResource;
use api::names;
use api::validation;
use jiff::Timestamp;
use serde_json::{Value, json};

pub use crate::strategy::Strategy;
use crate::strategy::Validate;
use crate::table;

pub struct Kind {
    pub names: Names,
    pub scope: Scope,
    /// The rule for `metadata.name`, and for `metadata.generateName` when the flag is set; empty when it is kept.
    pub name: fn(&str, bool) -> names::Messages,
    /// The storage version, to which the others convert, is first.
    pub versions: Vec<Version>,
    pub verbs: &'static [Verb],
    /// How the whole object is created and updated.
    pub strategy: Strategy,
    pub subresources: Vec<Subresource>,
    pub columns: Vec<Column>,
    /// The cells of one object's row, one per column; `Age` and the like count from the time given.
    pub row: Row,
    /// The fields that field selectors may name beside `metadata.name` and `metadata.namespace`, with their values.
    pub fields: Fields,
    /// Whether PUT on an absent name creates it.
    pub create_on_update: bool,
    /// Whether PUT and PATCH without a resourceVersion are allowed to overwrite.
    pub unconditional_update: bool,
    /// For kinds that die gracefully: the seconds to grant, given the object and what the caller asked for.
    pub grace: Option<Grace>,
    /// Bookkeeping keys that exist exactly as long as the object claims them, such as cluster IPs and node ports.
    pub claims: Option<Claims>,
    /// Objects are removed this long after their last write.
    pub ttl: Option<Duration>,
    /// Whether what belongs to an object stays when it is deleted and nobody says otherwise.
    pub orphans: bool,
    /// For kinds that are answered when they are created, and never stored.
    pub answered: Option<Answer>,
}

pub type Row = Box<dyn Fn(&Value, Timestamp) -> Vec<Value> + Send + Sync>;
pub type Fields = Box<dyn Fn(&Value) -> Vec<(&'static str, String)> + Send + Sync>;
pub type Grace = Box<dyn Fn(&Value, Option<i64>) -> i64 + Send + Sync>;
pub type Claims = Box<dyn Fn(&Value) -> Vec<Claim> + Send + Sync>;

/// Who answers a kind that is created and never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    TokenReview,
    SelfSubjectReview,
    SubjectAccessReview,
    LocalSubjectAccessReview,
    SelfSubjectAccessReview,
    SelfSubjectRulesReview,
    /// The old form of `pods/binding`, posted to the namespace.
    Binding,
}

pub struct Names {
    pub kind: Cow<'static, str>,
    /// The storage group and plural name.
    pub resource: GroupResource,
    pub singular: Cow<'static, str>,
    pub short: Vec<Cow<'static, str>>,
    pub categories: Vec<Cow<'static, str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// One served version of a kind. The group is given too, because Event is served from two.
pub struct Version {
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    /// The schema's name, such as `io.k8s.api.core.v1.Pod`.
    pub schema: Cow<'static, str>,
    /// Conversion to and from the storage version; `None` for the storage version itself.
    pub convert: Option<Conversion>,
    /// The rules of this version, in place of the strategy's; the object is in the storage version.
    pub validate: Option<Validate>,
    /// The rule of this version's names, in place of the kind's.
    pub name: Option<fn(&str, bool) -> names::Messages>,
    /// What these rules find wrong with a new object is said before its metadata is looked at.
    pub rules_first: bool,
}

pub struct Conversion {
    pub to_storage: Box<dyn Fn(&mut Value) + Send + Sync>,
    pub from_storage: Box<dyn Fn(&mut Value) + Send + Sync>,
}

/// What can be done with most kinds.
pub const ALL: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];

/// What can be done with `status` and `scale`.
pub const READ_WRITE: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

pub struct Subresource {
    pub name: &'static str,
    /// Group, version and kind of its body, where it differs from the parent's; such as `Scale` in `autoscaling/v1`.
    pub body: Option<(&'static str, &'static str, &'static str)>,
    pub verbs: &'static [Verb],
    pub action: Action,
}

/// How a sub-resource is served.
pub enum Action {
    /// Reads the parent, writes through its own strategy.
    Own(Strategy),
    /// The `autoscaling/v1` Scale view of `spec.replicas`, `status.replicas` and `spec.selector`.
    Scale,
    /// `pods/binding`: sets `spec.nodeName` once.
    Binding,
    /// `pods/eviction`.
    Eviction,
    /// `serviceaccounts/token`: a TokenRequest.
    Token,
    /// `namespaces/finalize`: replaces `spec.finalizers`.
    Finalize,
    /// Passed on to the node: `log`, `exec`, `attach`, `portforward`.
    Node,
    /// `pods/proxy` and `services/proxy`: passed on to what a pod serves.
    Proxy,
}

/// A key that belongs to one object alone, taken and released in the object's own transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Such as `cluster-ips` or `node-ports`.
    pub pool: &'static str,
    pub value: String,
    /// What is said when it belongs to another object.
    pub taken: field::Error,
}

pub struct Column {
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `boolean` or `date`.
    pub kind: Cow<'static, str>,
    /// `name` for the first column, otherwise usually empty.
    pub format: Cow<'static, str>,
    pub description: Cow<'static, str>,
    /// 0 always, above 0 only with `-o wide`.
    pub priority: i32,
}

impl Kind {
    /// A namespaced kind with every verb and no behaviour of its own, to be refined by struct update.
    pub fn namespaced(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        let schema_group = group.split('.').next().filter(|first| !first.is_empty()).unwrap_or("core");
        Self {
            names: Names {
                kind: kind.into(),
                resource: GroupResource::new(group, plural),
                singular: kind.to_lowercase().into(),
                short: Vec::new(),
                categories: Vec::new(),
            },
            scope: Scope::Namespaced,
            name: validation::name_is_dns_subdomain,
            versions: vec![Version {
                group: group.into(),
                version: version.into(),
                schema: format!("io.k8s.api.{schema_group}.{version}.{kind}").into(),
                convert: None,
                validate: None,
                name: None,
                rules_first: false,
            }],
            verbs: ALL,
            strategy: Strategy::none(),
            subresources: Vec::new(),
            columns: vec![Column::name(), Column::new("Created At", "date", "When the object was created.")],
            row: Box::new(|object, _| {
                vec![json!(table::name(object)), object["metadata"]["creationTimestamp"].clone()]
            }),
            fields: Box::new(|_| Vec::new()),
            create_on_update: false,
            unconditional_update: true,
            grace: None,
            claims: None,
            ttl: None,
            orphans: false,
            answered: None,
        }
    }

    /// As [`Kind::namespaced`], without a namespace.
    pub fn cluster(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self { scope: Scope::Cluster, ..Self::namespaced(group, version, kind, plural) }
    }

    /// Names it goes by on the command line.
    #[must_use]
    pub fn short(mut self, names: &[&'static str]) -> Self {
        self.names.short = names.iter().map(|&name| name.into()).collect();
        self
    }

    /// Groups it belongs to on the command line, such as `all`.
    #[must_use]
    pub fn categories(mut self, names: &[&'static str]) -> Self {
        self.names.categories = names.iter().map(|&name| name.into()).collect();
        self
    }

    /// Makes it one that is created to be answered and never stored.
    #[must_use]
    pub fn answered(self, by: Answer) -> Self {
        Self { verbs: &[Verb::Create], answered: Some(by), ..self }
    }
}

impl Kind {
    /// What nobody comes to own by a write through an endpoint, which is `subresource` or, if that is empty, the main one.
    ///
    /// Source: the strategies' `GetResetFields`.
    pub fn resets(&self, subresource: &str) -> &'static [&'static str] {
        let has_status = self.subresources.iter().any(|sub| sub.name == "status");
        match self.subresources.iter().find(|sub| sub.name == subresource).map(|sub| &sub.action) {
            Some(Action::Own(strategy)) => strategy.resets,
            Some(Action::Finalize) => &["status"],
            None if has_status => &["status"],
            _ => &[],
        }
    }
}

impl Subresource {
    /// `status` with its own strategy, which keeps at least the specification.
    pub fn status(strategy: Strategy) -> Self {
        let resets = if strategy.resets.is_empty() { &["spec"] } else { strategy.resets };
        let strategy = Strategy { resets, ..strategy };
        Self { name: "status", body: None, verbs: READ_WRITE, action: Action::Own(strategy) }
    }

    /// `proxy`, with whatever method; `options` is the kind that clients find in discovery.
    pub fn proxy(options: &'static str) -> Self {
        const METHODS: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];
        Self { name: "proxy", body: Some(("", "v1", options)), verbs: METHODS, action: Action::Proxy }
    }

    pub fn scale() -> Self {
        Self { name: "scale", body: Some(("autoscaling", "v1", "Scale")), verbs: READ_WRITE, action: Action::Scale }
    }
}

impl Column {
    pub fn new(name: &'static str, kind: &'static str, description: &'static str) -> Self {
        Self { name: name.into(), kind: kind.into(), format: "".into(), description: description.into(), priority: 0 }
    }

    /// A column of strings.
    pub fn text(name: &'static str, description: &'static str) -> Self {
        Self::new(name, "string", description)
    }

    /// A column of whole numbers.
    pub fn number(name: &'static str, description: &'static str) -> Self {
        Self::new(name, "integer", description)
    }

    /// The first column of most tables.
    pub fn name() -> Self {
        Self {
            format: "name".into(),
            ..Self::text("Name", "The name, unique among objects of its kind and namespace.")
        }
    }

    pub fn age() -> Self {
        Self::text("Age", "How long ago the object was created.")
    }

    /// Shows it only with `-o wide`.
    #[must_use]
    pub fn wide(self) -> Self {
        Self { priority: 1, ..self }
    }
}
