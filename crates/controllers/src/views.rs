//! What a controller sees: one immutable view per resource, taken together.

use std::collections::BTreeMap;

use api::key::{GroupResource, Key};
use api::object::Object;
use client::Resource;
use client::informer::View;
use client::typed::Typed;
use tracing::warn;

pub struct Views(BTreeMap<GroupResource, View>);

impl Views {
    pub fn new(views: impl IntoIterator<Item = View>) -> Self {
        Self(views.into_iter().map(|view| (view.resource().clone(), view)).collect())
    }

    /// The view of a kind.
    ///
    /// # Panics
    /// When the controller did not list it among its inputs.
    pub fn of<K: Typed>(&self) -> &View {
        let resource = Resource::of::<K>().resource;
        self.0.get(&resource).unwrap_or_else(|| panic!("{resource} is not an input of this controller"))
    }

    pub fn resource(&self, resource: &GroupResource) -> Option<&View> {
        self.0.get(resource)
    }

    pub fn all(&self) -> impl Iterator<Item = &View> {
        self.0.values()
    }

    /// The object behind a key, decoded; `None` when there is none.
    pub fn get<K: Typed>(&self, key: &Key) -> Option<K> {
        self.of::<K>().get(key).and_then(|object| decode(object))
    }
}

/// Decodes an object. One that this build cannot read is as good as absent to a controller; the server validates what it
/// stores, so this tells of an older or newer schema.
pub fn decode<K: Typed>(object: &Object) -> Option<K> {
    object.decode().inspect_err(|error| warn!(key = %object.key(), %error, "could not decode, ignored")).ok()
}
