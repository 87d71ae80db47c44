//! Names of resources and of stored objects.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

/// A resource type without its version, such as `deployments` in `apps`. The core group is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupResource {
    pub group: Cow<'static, str>,
    /// Plural, lower case.
    pub resource: Cow<'static, str>,
}

impl GroupResource {
    pub const fn new(group: &'static str, resource: &'static str) -> Self {
        Self { group: Cow::Borrowed(group), resource: Cow::Borrowed(resource) }
    }

    pub fn owned(group: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { group: Cow::Owned(group.into()), resource: Cow::Owned(resource.into()) }
    }
}

/// Writes `deployments.apps`, or `pods` for the core group, as upstream's messages do.
impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(&self.resource) } else { write!(f, "{}.{}", self.resource, self.group) }
    }
}

/// Where a value is stored: `/GROUP/RESOURCE/NAMESPACE/NAME`, ordered as bytes.
///
/// The core group is written `core`, a cluster-scoped object has an empty namespace segment. Bookkeeping that is not an
/// API object uses a group beginning with a dot, such as `/.alloc/cluster-ips//10.96.0.1`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    pub fn new(of: &GroupResource, namespace: &str, name: &str) -> Self {
        Self(format!("{}{namespace}/{name}", Self::resource_prefix(of)).into())
    }

    /// Returns the prefix that all objects of a resource share.
    pub fn resource_prefix(of: &GroupResource) -> String {
        let group = if of.group.is_empty() { "core" } else { &of.group };
        format!("/{group}/{}/", of.resource)
    }

    /// Returns the prefix that all objects of a resource in one namespace share.
    pub fn namespace_prefix(of: &GroupResource, namespace: &str) -> String {
        format!("{}{namespace}/", Self::resource_prefix(of))
    }

    /// Takes a key as written by `Display`, or `None` when it does not have four segments.
    pub fn parse(text: &str) -> Option<Self> {
        (text.starts_with('/') && text.split('/').count() == 5).then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn group_resource(&self) -> GroupResource {
        let group = self.segment(1);
        GroupResource::owned(if group == "core" { "" } else { group }, self.segment(2))
    }

    /// The namespace, empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.segment(3)
    }

    pub fn name(&self) -> &str {
        self.segment(4)
    }

    fn segment(&self, n: usize) -> &str {
        self.0.split('/').nth(n).expect("a key has four segments by construction")
    }
}

/// Lets ordered maps be searched by prefix without building a key.
impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back() {
        for (of, namespace, name, text) in [
            (GroupResource::new("", "pods"), "default", "web", "/core/pods/default/web"),
            (GroupResource::new("apps", "deployments"), "a", "b.c", "/apps/deployments/a/b.c"),
            (GroupResource::new("", "nodes"), "", "n1", "/core/nodes//n1"),
            (GroupResource::new(".alloc", "cluster-ips"), "", "10.96.0.1", "/.alloc/cluster-ips//10.96.0.1"),
        ] {
            let key = Key::new(&of, namespace, name);
            assert_eq!(key.as_str(), text);
            assert!(text.starts_with(&Key::namespace_prefix(&of, namespace)));
            let read = Key::parse(text).unwrap();
            assert_eq!((read.group_resource(), read.namespace(), read.name()), (of, namespace, name));
        }
        assert_eq!(Key::parse("core/pods/default/web"), None);
        assert_eq!(Key::parse("/core/pods/web"), None);
    }

    #[test]
    fn resources_are_named_as_in_messages() {
        assert_eq!(GroupResource::new("", "pods").to_string(), "pods");
        assert_eq!(GroupResource::new("apps", "deployments").to_string(), "deployments.apps");
    }
}
