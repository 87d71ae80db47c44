//! Reads Kubernetes' protobuf form into JSON values, because typed clients send it; answers are JSON, which they accept.
//!
//! Field numbers come from `facts/protobuf-1.37.tsv`, shapes from [`kinds::schema`]. Source: apimachinery
//! `pkg/runtime/serializer/protobuf`, protobuf.dev/programming-guides/encoding.

use std::collections::HashMap;
use std::sync::LazyLock;

use api::schema::{Element, Scalar, Shape, Type};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// What a body in this form says it is.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Every body begins with it.
const MAGIC: &[u8] = b"k8s\0";

/// Deeper messages are refused; no type of the API nests so deeply.
const MAX_DEPTH: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it does not begin with the four bytes of Kubernetes' protobuf form")]
    Magic,
    #[error("it ends too early")]
    Short,
    #[error("field {0} has wire type {1}, which its type is not written in")]
    Wire(u64, u8),
    #[error("a text is not UTF-8")]
    Text,
    #[error("a number is out of range")]
    Range,
    #[error("messages nest too deeply")]
    Deep,
    #[error("embedded JSON is malformed: {0}")]
    Json(#[from] serde_json::Error),
    #[error("there is no table of numbers for {0}")]
    Unknown(String),
}

struct Field {
    /// The name in JSON, or the type of an embedded struct behind `@`.
    name: &'static str,
    /// Whether the zero value means unset.
    zero_is_unset: bool,
}

type Numbers = HashMap<&'static str, HashMap<u64, Field>>;

static NUMBERS: LazyLock<Numbers> = LazyLock::new(|| parse(include_str!("../../facts/protobuf-1.37.tsv")));

fn parse(table: &'static str) -> Numbers {
    let mut all = Numbers::new();
    let mut of = "";
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let Some(cells) = line.strip_prefix('\t') else {
            of = line;
            all.entry(of).or_default();
            continue;
        };
        let mut cells = cells.split('\t');
        let number = cells.next().and_then(|number| number.parse().ok()).expect("a test reads the table");
        let name = cells.next().expect("a test reads the table");
        let field = Field { name, zero_is_unset: cells.next() == Some("z") };
        all.entry(of).or_default().insert(number, field);
    }
    all
}

/// Decodes a body of the given type; `apiVersion` and `kind` are those of its envelope.
///
/// # Errors
/// What is wrong with it.
pub fn decode(body: &[u8], of: Type<'_>) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let (mut raw, mut version, mut kind) = (&[][..], String::new(), String::new());
    let mut fields = Reader(envelope);
    while let Some((number, item)) = fields.next()? {
        match (number, item) {
            (1, Item::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, item)) = meta.next()? {
                    match (number, item) {
                        (1, Item::Bytes(text)) => version = self::text(text)?,
                        (2, Item::Bytes(text)) => kind = self::text(text)?,
                        _ => {}
                    }
                }
            }
            (2, Item::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let mut object = Map::new();
    message(raw, of, of.name(), &mut object, 0)?;
    for (field, value) in [("apiVersion", version), ("kind", kind)] {
        if !value.is_empty() {
            object.insert(field.to_owned(), value.into());
        }
    }
    Ok(object.into())
}

/// A field's value as the wire has it.
#[derive(Clone, Copy)]
enum Item<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl Item<'_> {
    fn wire(&self) -> u8 {
        match self {
            Self::Varint(_) => 0,
            Self::Fixed64(_) => 1,
            Self::Bytes(_) => 2,
            Self::Fixed32(_) => 5,
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u64, Item<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = tag >> 3;
        let item = match tag & 7 {
            0 => Item::Varint(self.varint()?),
            1 => Item::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::Short)?;
                Item::Bytes(self.take(length)?)
            }
            5 => Item::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(Error::Wire(number, other as u8)),
        };
        Ok(Some((number, item)))
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let [byte] = self.array()?;
            if shift == 63 && byte > 1 {
                return Err(Error::Range);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Range)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(Error::Short)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        Ok(self.take(N)?.try_into().expect("it was taken with this length"))
    }
}

/// Reads a message into `out`. `numbers` is the struct that has the numbers: `of` itself, or one embedded in it.
fn message(bytes: &[u8], of: Type<'_>, numbers: &str, out: &mut Map<String, Value>, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Deep);
    }
    let table = NUMBERS.get(numbers).ok_or_else(|| Error::Unknown(numbers.to_owned()))?;
    let mut fields = Reader(bytes);
    while let Some((number, item)) = fields.next()? {
        // As in Go, what a newer client knows is passed over.
        let Some(field) = table.get(&number) else { continue };
        if let Some(embedded) = field.name.strip_prefix('@') {
            let Item::Bytes(bytes) = item else { return Err(Error::Wire(number, item.wire())) };
            message(bytes, of, embedded, out, depth + 1)?;
            continue;
        }
        let Some(shape) = of.field(field.name).map(|field| field.shape()) else { continue };
        match shape {
            Shape::List(items) => {
                let list = out.entry(field.name).or_insert_with(|| json!([]));
                let list = list.as_array_mut().expect("a list's field only ever gets a list");
                append(items, number, item, list, depth)?;
            }
            Shape::Map(values) => {
                let (key, value) = entry(values, number, item, depth)?;
                let map = out.entry(field.name).or_insert_with(|| json!({}));
                map.as_object_mut().expect("a map's field only ever gets a map").insert(key, value);
            }
            shape => {
                let value = single(shape, number, item, depth)?;
                if !(value.is_null() || field.zero_is_unset && is_zero(&value)) {
                    out.insert(field.name.to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

fn append(items: Element<'_>, number: u64, item: Item<'_>, list: &mut Vec<Value>, depth: usize) -> Result<(), Error> {
    let shape = items.shape();
    // Numbers may come one by one, or packed into one field.
    if let (Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Bool), Item::Bytes(packed)) = (shape, item) {
        let mut packed = Reader(packed);
        while !packed.0.is_empty() {
            let one = Item::Varint(packed.varint()?);
            list.push(single(shape, number, one, depth)?);
        }
        return Ok(());
    }
    list.push(single(shape, number, item, depth)?);
    Ok(())
}

/// One entry of a map: a message with the key as its first field and the value as its second.
fn entry(values: Element<'_>, number: u64, item: Item<'_>, depth: usize) -> Result<(String, Value), Error> {
    let Item::Bytes(bytes) = item else { return Err(Error::Wire(number, item.wire())) };
    let (mut key, mut value) = (String::new(), None);
    let mut fields = Reader(bytes);
    while let Some((number, item)) = fields.next()? {
        match (number, item) {
            (1, Item::Bytes(text)) => key = self::text(text)?,
            (2, item) => {
                value = Some(match (values.shape(), item) {
                    // A list as a value is a message of its own, such as ExtraValue.
                    (Shape::List(items), Item::Bytes(inner)) => {
                        let mut list = Vec::new();
                        let mut inner = Reader(inner);
                        while let Some((number, item)) = inner.next()? {
                            append(items, number, item, &mut list, depth + 1)?;
                        }
                        list.into()
                    }
                    (shape, item) => single(shape, number, item, depth + 1)?,
                });
            }
            _ => {}
        }
    }
    // What a value is when it was not written: its zero value.
    let zero = || match values.shape() {
        Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Number) => json!(0),
        Shape::Scalar(Scalar::Bool) => json!(false),
        Shape::Scalar(_) => json!(""),
        Shape::List(_) => json!([]),
        Shape::Object(_) | Shape::Map(_) => json!({}),
    };
    Ok((key, value.unwrap_or_else(zero)))
}

fn single(shape: Shape<'_>, number: u64, item: Item<'_>, depth: usize) -> Result<Value, Error> {
    let wrong = || Error::Wire(number, item.wire());
    match (shape, item) {
        (Shape::Object(of), Item::Bytes(bytes)) => {
            let mut out = Map::new();
            message(bytes, of, of.name(), &mut out, depth + 1)?;
            Ok(out.into())
        }
        (Shape::Scalar(scalar), item) => self::scalar(scalar, item, wrong),
        _ => Err(wrong()),
    }
}

fn scalar(scalar: Scalar, item: Item<'_>, wrong: impl Fn() -> Error) -> Result<Value, Error> {
    Ok(match (scalar, item) {
        (Scalar::String, Item::Bytes(bytes)) => text(bytes)?.into(),
        (Scalar::Int32 | Scalar::Int64, Item::Varint(bits)) => bits.cast_signed().into(),
        (Scalar::Bool, Item::Varint(bits)) => (bits != 0).into(),
        (Scalar::Number, Item::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Scalar::Number, Item::Fixed32(bits)) => f64::from(f32::from_bits(bits)).into(),
        (Scalar::Bytes, Item::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Scalar::Quantity, Item::Bytes(bytes)) => match first(bytes)? {
            Some(Item::Bytes(quantity)) => text(quantity)?.into(),
            _ => "0".into(),
        },
        (Scalar::IntOrString, Item::Bytes(bytes)) => {
            let (mut kind, mut number, mut string) = (0, 0, String::new());
            let mut fields = Reader(bytes);
            while let Some((field, item)) = fields.next()? {
                match (field, item) {
                    (1, Item::Varint(bits)) => kind = bits,
                    (2, Item::Varint(bits)) => number = bits.cast_signed(),
                    (3, Item::Bytes(bytes)) => string = text(bytes)?,
                    _ => {}
                }
            }
            if kind == 0 { number.into() } else { string.into() }
        }
        (Scalar::Time | Scalar::MicroTime, Item::Bytes(bytes)) => time(scalar, bytes)?,
        (Scalar::Any, Item::Bytes(bytes)) => match first(bytes)? {
            Some(Item::Bytes(json)) if !json.is_empty() => serde_json::from_slice(json)?,
            _ => Value::Null,
        },
        _ => return Err(wrong()),
    })
}

/// The first field's last value.
fn first(bytes: &[u8]) -> Result<Option<Item<'_>>, Error> {
    let mut found = None;
    let mut fields = Reader(bytes);
    while let Some((number, item)) = fields.next()? {
        if number == 1 {
            found = Some(item);
        }
    }
    Ok(found)
}

/// Seconds and nanoseconds since 1970; nothing at all is no time.
fn time(scalar: Scalar, bytes: &[u8]) -> Result<Value, Error> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut fields = Reader(bytes);
    while let Some((number, item)) = fields.next()? {
        match (number, item) {
            (1, Item::Varint(bits)) => seconds = bits.cast_signed(),
            (2, Item::Varint(bits)) => nanos = i32::try_from(bits.cast_signed()).map_err(|_| Error::Range)?,
            _ => {}
        }
    }
    if (seconds, nanos) == (0, 0) {
        return Ok(Value::Null);
    }
    let time = Timestamp::new(seconds, nanos).map_err(|_| Error::Range)?;
    let format = if matches!(scalar, Scalar::MicroTime) { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(format).to_string().into())
}

fn text(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }

    fn enveloped(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC, &field(1, &meta), &field(2, raw)].concat()
    }

    fn check(of: &str, raw: &[u8], expected: Value) {
        let of = kinds::schema::get(of).unwrap();
        assert_eq!(decode(&enveloped("v1", "K", raw), of).unwrap(), expected);
    }

    #[test]
    fn objects_with_maps_and_unset_texts() {
        let entry = [field(1, b"a"), field(2, b"b")].concat();
        let meta = [field(1, b"name"), field(3, b""), field(8, &[]), field(11, &entry)].concat();
        let raw = [field(1, &meta), field(2, &[field(1, b"k"), field(2, b"v")].concat())].concat();
        check(
            "io.k8s.api.core.v1.ConfigMap",
            &raw,
            json!({"apiVersion": "v1", "kind": "K", "metadata": {"name": "name", "labels": {"a": "b"}}, "data": {"k": "v"}}),
        );
    }

    #[test]
    fn embedded_structs_become_fields_of_the_outer_one() {
        // volumes: name 1, the embedded source 2, in it emptyDir 2 with medium 1.
        let source = field(2, &field(1, b"Memory"));
        let spec = field(1, &[field(1, b"tmp"), field(2, &source)].concat());
        check(
            "io.k8s.api.core.v1.Pod",
            &field(2, &spec),
            json!({"apiVersion": "v1", "kind": "K", "spec": {"volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}]}}),
        );
    }

    #[test]
    fn a_pointer_to_zero_is_set() {
        // spec 2, replicas 1 as a varint.
        check(
            "io.k8s.api.apps.v1.Deployment",
            &field(2, &[8, 0]),
            json!({"apiVersion": "v1", "kind": "K", "spec": {"replicas": 0}}),
        );
    }

    #[test]
    fn broken_bodies_are_refused() {
        let of = kinds::schema::get("io.k8s.api.core.v1.Pod").unwrap();
        let whole = enveloped("v1", "Pod", &field(1, &field(1, b"name")));
        assert!(matches!(decode(b"{}", of), Err(Error::Magic)));
        for end in MAGIC.len() + 1..whole.len() {
            assert!(decode(&whole[..end], of).is_err() || end == MAGIC.len() + 2 + whole[5] as usize, "{end}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let of = kinds::schema::get("io.k8s.api.core.v1.Pod").unwrap();
        let whole = enveloped("v1", "Pod", &field(2, &field(1, &[field(1, b"a"), field(2, &field(2, b"m"))].concat())));
        let mut random = 1_u64;
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random % 4 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = MAGIC.len() + (random >> 40) as usize % (bytes.len() - MAGIC.len());
                bytes[at] = (random >> 32) as u8;
            }
            // Any answer will do.
            drop(decode(&bytes, of));
        }
    }

    #[test]
    fn every_field_of_every_kind_has_a_number() {
        fn names(of: &str, out: &mut Vec<&'static str>) {
            for field in NUMBERS.get(of).into_iter().flat_map(HashMap::values) {
                match field.name.strip_prefix('@') {
                    Some(embedded) => names(embedded, out),
                    None => out.push(field.name),
                }
            }
        }
        for kind in kinds::registry() {
            for version in &kind.versions {
                let of = kinds::schema::get(&version.schema).unwrap();
                let mut known = vec!["apiVersion", "kind"];
                names(of.name(), &mut known);
                for field in of.fields() {
                    assert!(known.contains(&field.name()), "{}: {}", of.name(), field.name());
                }
            }
        }
    }
}
