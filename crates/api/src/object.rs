//! An object as it is stored, listed and watched: JSON bytes, the metadata parsed from them, and a revision.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::key::Key;
use crate::meta::Meta;

/// The schema generation that this build writes. Objects of an older one are converted when they are read.
pub const SCHEMA: u16 = 1;

/// Most objects are smaller.
const USUAL_SIZE: usize = 8192;

/// A JSON object about to be stored: everything but its revision, which exists only once it is committed.
#[derive(Clone, Debug)]
pub struct Draft {
    pub key: Key,
    pub meta: Meta,
    pub schema: u16,
    /// JSON without `metadata.resourceVersion`.
    body: Bytes,
    /// Offset in `body` just behind the `{` of `metadata`, where the revision is spliced in.
    splice: u32,
}

/// One revision of one object. Immutable, shared by the store, its history and every reader.
#[derive(Clone, Debug)]
pub struct Object {
    draft: Draft,
    /// The store's revision at which this version was committed: the object's `resourceVersion`.
    pub revision: u64,
}

/// Why bytes are not an object that can be stored.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error("not a JSON object with metadata")]
    Json(#[from] serde_json::Error),
    #[error("it is not UTF-8")]
    Encoding(#[from] std::str::Utf8Error),
    #[error("metadata is missing")]
    NoMetadata,
}

impl Draft {
    /// Takes an object as JSON; a `metadata.resourceVersion` in it is dropped.
    ///
    /// # Errors
    /// When there is no `metadata` object, or its fields have other types than Kubernetes gives them.
    pub fn new(key: Key, mut object: Value) -> Result<Self, Malformed> {
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).ok_or(Malformed::NoMetadata)?;
        metadata.remove("resourceVersion");
        let mut body = Vec::with_capacity(USUAL_SIZE);
        serde_json::to_writer(&mut body, &object)?;
        // A copy is as large as what it holds; the buffer is not, and it would live as long as the object.
        Self::from_bytes(key, SCHEMA, Bytes::copy_from_slice(&body))
    }

    /// Takes bytes that [`Draft::body`] returned, as read back from disk.
    ///
    /// # Errors
    /// As [`Draft::new`].
    pub fn from_bytes(key: Key, schema: u16, body: Bytes) -> Result<Self, Malformed> {
        #[derive(Deserialize)]
        struct Outline<'a> {
            #[serde(borrow)]
            metadata: Option<&'a RawValue>,
        }
        // serde_json looks into strings that it skips as little as it can: they may be anything but text.
        let outline: Outline<'_> = serde_json::from_str(std::str::from_utf8(&body)?)?;
        let raw = outline.metadata.ok_or(Malformed::NoMetadata)?.get();
        let meta = serde_json::from_str(raw)?;
        let offset = raw.as_ptr() as usize - body.as_ptr() as usize;
        let splice = u32::try_from(offset + 1).map_err(|_| Malformed::NoMetadata)?;
        Ok(Self { key, meta, schema, body, splice })
    }

    /// The stored bytes, without a resource version.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    pub fn commit(self, revision: u64) -> Arc<Object> {
        Arc::new(Object { draft: self, revision })
    }
}

impl Object {
    pub fn key(&self) -> &Key {
        &self.draft.key
    }

    pub fn meta(&self) -> &Meta {
        &self.draft.meta
    }

    /// The draft that this object was committed from.
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    /// Appends the object's JSON, resource version included.
    pub fn write_json(&self, out: &mut BytesMut) {
        self.write_json_from(0, out);
    }

    /// The same without the first `skipped` bytes, which end before the metadata.
    ///
    /// # Panics
    /// When they do not.
    pub fn write_json_from(&self, skipped: usize, out: &mut BytesMut) {
        let (head, tail) = self.draft.body.split_at(self.draft.splice as usize);
        out.reserve(self.draft.body.len() + 48);
        out.put_slice(&head[skipped..]);
        out.put_slice(b"\"resourceVersion\":\"");
        out.put_slice(self.revision.to_string().as_bytes());
        out.put_slice(if tail.first() == Some(&b'}') { b"\"" } else { b"\"," });
        out.put_slice(tail);
    }

    /// The object's JSON, resource version included.
    pub fn json(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.write_json(&mut out);
        out.freeze()
    }

    /// Parses the object, resource version included.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json()).expect("only valid JSON is stored")
    }

    /// Decodes the object into a typed struct, resource version included, managed fields left out: they are often half of an object
    /// and make trees of maps, and nothing in this process reads them from a struct.
    ///
    /// # Errors
    /// When a field has a type that the struct does not take.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        #[derive(Deserialize)]
        struct Managed<'a> {
            #[serde(borrow, rename = "managedFields")]
            fields: Option<&'a RawValue>,
        }
        let json = self.json();
        let metadata = &json[self.draft.splice as usize - 1..];
        let managed = Managed::deserialize(&mut serde_json::Deserializer::from_slice(metadata))?;
        let Some(fields) = managed.fields.map(RawValue::get) else { return serde_json::from_slice(&json) };
        let start = fields.as_ptr() as usize - json.as_ptr() as usize;
        let without = [&json[..start], b"null", &json[start + fields.len()..]].concat();
        serde_json::from_slice(&without)
    }

    /// The texts, numbers and truths of the object that are at most one level deep, such as `type` and `spec.nodeName`: a small part of
    /// what [`Object::value`] costs, and all that objects are selected by.
    pub fn outline(&self) -> Value {
        let mut text = serde_json::Deserializer::from_slice(&self.draft.body);
        Outline { levels: 2 }.deserialize(&mut text).expect("only valid JSON is stored")
    }
}

/// Reads a value without its lists and without objects that are deeper than so many levels: they become null, and members that are
/// null are left out.
struct Outline {
    levels: u8,
}

impl<'de> DeserializeSeed<'de> for Outline {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Outline {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        if self.levels == 0 {
            while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Value::Null);
        }
        let mut out = Map::new();
        while let Some(name) = members.next_key::<Cow<'_, str>>()? {
            let value = members.next_value_seed(Self { levels: self.levels - 1 })?;
            if !value.is_null() {
                out.insert(name.into_owned(), value);
            }
        }
        Ok(Value::Object(out))
    }
}

/// What a watch reports about one object.
#[derive(Clone, Debug)]
pub enum Change {
    Added(Arc<Object>),
    Modified {
        old: Arc<Object>,
        new: Arc<Object>,
    },
    /// The last state, and the revision of the deletion.
    Deleted {
        last: Arc<Object>,
        revision: u64,
    },
}

impl Change {
    pub fn key(&self) -> &Key {
        match self {
            Self::Added(object) | Self::Modified { new: object, .. } | Self::Deleted { last: object, .. } => {
                object.key()
            }
        }
    }

    pub fn revision(&self) -> u64 {
        match self {
            Self::Added(object) | Self::Modified { new: object, .. } => object.revision,
            Self::Deleted { revision, .. } => *revision,
        }
    }

    /// The object after the change, or `None` when it is gone.
    pub fn current(&self) -> Option<&Arc<Object>> {
        match self {
            Self::Added(object) | Self::Modified { new: object, .. } => Some(object),
            Self::Deleted { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::key::GroupResource;

    fn key() -> Key {
        Key::new(&GroupResource::new("apps", "deployments"), "default", "web")
    }

    #[test]
    fn the_revision_is_spliced_into_the_metadata() {
        let object = json!({"apiVersion": "apps/v1", "metadata": {"name": "web", "resourceVersion": "9", "uid": "u"}});
        let draft = Draft::new(key(), object).unwrap();
        assert_eq!(draft.body(), &r#"{"apiVersion":"apps/v1","metadata":{"name":"web","uid":"u"}}"#);
        let stored = Draft::from_bytes(key(), SCHEMA, draft.body().clone()).unwrap();
        for draft in [draft, stored] {
            assert_eq!((draft.meta.name.as_str(), draft.meta.uid.as_str()), ("web", "u"));
            let object = draft.commit(42);
            assert_eq!(
                object.json(),
                r#"{"apiVersion":"apps/v1","metadata":{"resourceVersion":"42","name":"web","uid":"u"}}"#
            );
            assert_eq!(object.value()["metadata"]["resourceVersion"], "42");
        }
        let empty = Draft::new(key(), json!({"metadata": {}})).unwrap().commit(1);
        assert_eq!(empty.json(), r#"{"metadata":{"resourceVersion":"1"}}"#);
    }

    #[test]
    fn structs_have_all_but_managed_fields() {
        let fields = json!([{"manager": "m", "fieldsV1": {"f:data": {}}}]);
        let object =
            json!({"metadata": {"labels": {"a": "b"}, "managedFields": fields, "name": "web"}, "data": {"a": [1]}});
        let object = Draft::new(key(), object).unwrap().commit(7);
        let decoded: Value = object.decode().unwrap();
        assert_eq!(
            decoded,
            json!({"metadata": {"labels": {"a": "b"}, "managedFields": null, "name": "web", "resourceVersion": "7"},
                "data": {"a": [1]}})
        );
        let without = Draft::new(key(), json!({"metadata": {"name": "web"}})).unwrap().commit(7);
        assert_eq!(without.decode::<Value>().unwrap(), without.value());
    }

    #[test]
    fn an_outline_has_what_is_near_the_top() {
        let object = json!({
            "kind": "Pod", "metadata": {"name": "web", "labels": {"a": "b"}, "finalizers": ["f"]},
            "spec": {"nodeName": "n", "hostNetwork": true, "priority": -1, "grace": 1.5, "containers": [{"name": "c"}]},
            "list": [1], "type": "t", "nothing": null,
        });
        assert_eq!(
            Draft::new(key(), object).unwrap().commit(1).outline(),
            json!({"kind": "Pod", "metadata": {"name": "web"}, "type": "t",
                "spec": {"nodeName": "n", "hostNetwork": true, "priority": -1, "grace": 1.5}})
        );
    }

    #[test]
    fn what_has_no_metadata_is_no_object() {
        for value in
            [json!({}), json!({"metadata": null}), json!({"metadata": []}), json!({"metadata": {"name": 1}}), json!([])]
        {
            assert!(Draft::new(key(), value.clone()).is_err(), "{value}");
        }
        assert!(Draft::from_bytes(key(), SCHEMA, Bytes::from_static(b"{\"metadata\":")).is_err());
    }
}
