//! The structure of API types at run time: strict checks, pruning and the facts that patches need.
//!
//! Follows what upstream's decoder does with its Go structs: sigs.k8s.io/json (a case-sensitive `encoding/json` that
//! collects unknown fields) and `k8s.io/apimachinery/pkg/runtime/serializer/json`. The source of the facts is
//! `kinds/facts/schema-1.37.tsv`.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::Value;

mod check;
mod conform;
mod parse;
mod suggest;
mod time;

pub use check::{Strict, TypeError, kind as json_kind};
pub use suggest::nearest;

/// A set of types that refer to each other.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<Definition>,
    names: HashMap<Cow<'static, str>, TypeId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct TypeId(u32);

#[derive(Debug)]
struct Definition {
    name: Cow<'static, str>,
    atomic: bool,
    gvk: Option<Cow<'static, str>>,
    /// Ordered by name.
    fields: Vec<FieldDefinition>,
}

#[derive(Debug)]
struct FieldDefinition {
    name: Cow<'static, str>,
    shape: ShapeDefinition,
    required: bool,
    atomic: bool,
    list: Option<ListType>,
    keys: Vec<Cow<'static, str>>,
    merge_key: Option<Cow<'static, str>>,
    patch: PatchStrategy,
    /// The Go type, where the shape does not tell it.
    go: Option<Cow<'static, str>>,
    /// The embedded Go struct that the field belongs to.
    via: Option<Cow<'static, str>>,
    pointer: bool,
    default: Option<Value>,
    zero: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ShapeDefinition {
    Scalar(Scalar),
    Object(TypeId),
    List(Box<ShapeDefinition>),
    Map(Box<ShapeDefinition>),
}

/// What is not made of other values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    String,
    Int32,
    Int64,
    Number,
    Bool,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    IntOrString,
    /// RFC 3339 in seconds.
    Time,
    /// RFC 3339 in microseconds.
    MicroTime,
    /// Whatever JSON there is.
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// How strategic merge patches treat a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists are merged item by item. Without it they are replaced.
    pub merge: bool,
    /// The object is replaced as a whole.
    pub replace: bool,
    /// Patches name the keys to keep in `$retainKeys`.
    pub retain_keys: bool,
}

/// A struct of the schema.
#[derive(Clone, Copy, Debug)]
pub struct Type<'a> {
    schema: &'a Schema,
    definition: &'a Definition,
}

/// A field of a struct.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    schema: &'a Schema,
    definition: &'a FieldDefinition,
}

/// What a field, a list or a map holds.
#[derive(Clone, Copy, Debug)]
pub enum Shape<'a> {
    Scalar(Scalar),
    Object(Type<'a>),
    List(Element<'a>),
    Map(Element<'a>),
}

/// The items of a list or the values of a map.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    schema: &'a Schema,
    definition: &'a ShapeDefinition,
}

impl Schema {
    /// Takes a type by its full name, such as `io.k8s.api.core.v1.Pod`.
    pub fn get(&self, name: &str) -> Option<Type<'_>> {
        self.names.get(name).map(|id| self.by_id(*id))
    }

    /// Every type, ordered by name.
    pub fn types(&self) -> impl Iterator<Item = Type<'_>> {
        self.types.iter().map(|definition| Type { schema: self, definition })
    }

    fn by_id(&self, id: TypeId) -> Type<'_> {
        Type { schema: self, definition: &self.types[id.0 as usize] }
    }

    fn shape<'a>(&'a self, definition: &'a ShapeDefinition) -> Shape<'a> {
        match definition {
            ShapeDefinition::Scalar(scalar) => Shape::Scalar(*scalar),
            ShapeDefinition::Object(id) => Shape::Object(self.by_id(*id)),
            ShapeDefinition::List(definition) => Shape::List(Element { schema: self, definition }),
            ShapeDefinition::Map(definition) => Shape::Map(Element { schema: self, definition }),
        }
    }
}

impl<'a> Type<'a> {
    pub fn name(&self) -> &'a str {
        &self.definition.name
    }

    /// The name as Go prints it, such as `v1.Pod`.
    pub fn go_name(&self) -> &'a str {
        let name: &'a str = &self.definition.name;
        let dot = name.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
        &name[dot..]
    }

    /// The name without its package, such as `Pod`.
    pub fn short_name(&self) -> &'a str {
        let name: &'a str = &self.definition.name;
        name.rsplit('.').next().unwrap_or(name)
    }

    /// Merged as a whole by server-side apply.
    pub fn is_atomic(&self) -> bool {
        self.definition.atomic
    }

    /// Group, version and kind, for the types of whole objects.
    pub fn gvk(&self) -> Option<(&'a str, &'a str, &'a str)> {
        let (group, rest) = self.definition.gvk.as_deref()?.split_once('/')?;
        let (version, kind) = rest.split_once('/')?;
        Some((group, version, kind))
    }

    /// The fields, ordered by name.
    pub fn fields(&self) -> impl Iterator<Item = Field<'a>> + use<'a> {
        let schema = self.schema;
        self.definition.fields.iter().map(move |definition| Field { schema, definition })
    }

    pub fn field(&self, name: &str) -> Option<Field<'a>> {
        let fields = &self.definition.fields;
        let at = fields.binary_search_by(|field| field.name.as_ref().cmp(name)).ok()?;
        Some(Field { schema: self.schema, definition: &fields[at] })
    }
}

impl PartialEq for Type<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.definition, other.definition)
    }
}

impl<'a> Field<'a> {
    pub fn name(&self) -> &'a str {
        &self.definition.name
    }

    pub fn shape(&self) -> Shape<'a> {
        self.schema.shape(&self.definition.shape)
    }

    pub fn is_required(&self) -> bool {
        self.definition.required
    }

    pub fn list_type(&self) -> Option<ListType> {
        self.definition.list
    }

    /// The keys by which the items of a list of type map are told apart.
    pub fn list_map_keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.definition.keys.iter().map(AsRef::as_ref)
    }

    /// A map or struct that server-side apply merges as a whole.
    pub fn is_atomic(&self) -> bool {
        self.definition.atomic
    }

    /// The key by which strategic merge patches find the items of a list.
    pub fn merge_key(&self) -> Option<&'a str> {
        self.definition.merge_key.as_deref()
    }

    pub fn patch_strategy(&self) -> PatchStrategy {
        self.definition.patch
    }

    /// Whether nothing and the zero value are different.
    pub fn is_pointer(&self) -> bool {
        self.definition.pointer
    }

    /// The default that the schema documents, where it is not the zero value.
    pub fn default(&self) -> Option<&'a Value> {
        self.definition.default.as_ref()
    }

    /// What upstream's encoder writes where the field is not set, if it writes anything: structs that are held by value,
    /// and what has no `omitempty`.
    pub fn zero(&self) -> Option<&'a Value> {
        self.definition.zero.as_ref()
    }
}

impl<'a> Element<'a> {
    pub fn shape(&self) -> Shape<'a> {
        self.schema.shape(self.definition)
    }
}

#[cfg(test)]
mod tests;
