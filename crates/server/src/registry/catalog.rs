//! The served kinds by path: which kind, in which version, answers `/apis/GROUP/VERSION/RESOURCE`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::key::GroupResource;
use kinds::kind::{Kind, Scope, Subresource, Version};
use serde_json::Value;

/// Every served kind. The order in which kinds were given is the order of discovery.
pub struct Catalog {
    kinds: Vec<Arc<Kind>>,
    by_path: BTreeMap<(String, String, String), Served>,
}

/// A kind in one of its served versions.
#[derive(Clone)]
pub struct Served {
    pub kind: Arc<Kind>,
    index: usize,
}

impl Catalog {
    /// Indexes the kinds by the paths that they are served under.
    pub fn new(kinds: Vec<Kind>) -> Self {
        let kinds: Vec<Arc<Kind>> = kinds.into_iter().map(Arc::new).collect();
        let mut by_path = BTreeMap::new();
        for kind in &kinds {
            for (index, version) in kind.versions.iter().enumerate() {
                let path =
                    (version.group.to_string(), version.version.to_string(), kind.names.resource.resource.to_string());
                by_path.insert(path, Served { kind: kind.clone(), index });
            }
        }
        Self { kinds, by_path }
    }

    /// What a path leads to.
    pub fn find(&self, group: &str, version: &str, resource: &str) -> Option<&Served> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), resource.to_owned()))
    }

    /// Every kind, in the order given.
    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    /// The kind stored under a group and resource.
    pub fn stored(&self, resource: &GroupResource) -> Option<&Arc<Kind>> {
        self.kinds.iter().find(|kind| kind.names.resource == *resource)
    }

    /// What is served, by group and version: the core group first, then by name; kinds in the order of their names.
    pub fn by_group_version(&self) -> BTreeMap<(&str, &str), Vec<&Served>> {
        let mut out: BTreeMap<(&str, &str), Vec<&Served>> = BTreeMap::new();
        for ((group, version, _), served) in &self.by_path {
            out.entry((group, version)).or_default().push(served);
        }
        out
    }
}

impl Served {
    /// The version that is served.
    pub fn version(&self) -> &Version {
        &self.kind.versions[self.index]
    }

    /// Distinguishes the versions of one kind in caches.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether stored bytes can be sent as they are.
    pub fn is_storage(&self) -> bool {
        self.index == 0
    }

    /// Such as `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.version())
    }

    /// Such as `Deployment`.
    pub fn kind_name(&self) -> &str {
        &self.kind.names.kind
    }

    /// The group and plural name that this version is served under, as messages name it.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::owned(&*self.version().group, &*self.kind.names.resource.resource)
    }

    /// Whether objects are in namespaces.
    pub fn is_namespaced(&self) -> bool {
        self.kind.scope == Scope::Namespaced
    }

    /// The sub-resource of a name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.kind.subresources.iter().find(|sub| sub.name == name)
    }

    /// Turns an object of this version into one of the storage version.
    pub fn import(&self, object: &mut Value) {
        if let Some(convert) = &self.version().convert {
            (convert.to_storage)(object);
        }
        self.set_type(object, &self.kind.versions[0]);
    }

    /// Turns an object of the storage version into one of this version.
    pub fn export(&self, object: &mut Value) {
        if let Some(convert) = &self.version().convert {
            (convert.from_storage)(object);
            self.set_type(object, self.version());
        }
    }

    fn set_type(&self, object: &mut Value, version: &Version) {
        object["apiVersion"] = api_version(version).into();
        object["kind"] = self.kind_name().into();
    }
}

/// Such as `apps/v1`.
pub fn api_version(version: &Version) -> String {
    if version.group.is_empty() {
        version.version.to_string()
    } else {
        format!("{}/{}", version.group, version.version)
    }
}
