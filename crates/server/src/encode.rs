//! Objects, lists and tables as bytes: stored bytes as they are where that is what was asked for.
//!
//! Source: apiserver `pkg/endpoints/handlers/response.go`.

use std::sync::Arc;

use api::object::{Object, SCHEMA};
use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use kinds::kind::Column;
use kinds::table::age;
use serde_json::{Value, json};

use crate::http::negotiate::{Form, MetaVersion};
use crate::registry::Registry;
use crate::registry::catalog::Served;
use crate::registry::list::Listed;

/// How much of each object a table's rows carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Registry {
    /// The object in the served version.
    pub fn shown(&self, served: &Served, object: &Object) -> Value {
        let mut value = self.stored(served, object);
        served.export(&mut value);
        value
    }

    /// The object in the storage version. What a dry run would have created has no revision.
    fn stored(&self, served: &Served, object: &Object) -> Value {
        let mut value = self.value(served, object);
        if object.revision == 0 {
            value["metadata"].as_object_mut().and_then(|metadata| metadata.remove("resourceVersion"));
        }
        value
    }

    /// Appends the object's JSON in the served version.
    pub fn write_json(&self, served: &Served, object: &Object, out: &mut BytesMut) {
        if !served.is_storage() || object.draft().schema != SCHEMA {
            serde_json::to_writer(out.writer(), &self.shown(served, object)).expect("a value is always JSON");
        } else if object.revision == 0 {
            out.put_slice(object.draft().body());
        } else {
            object.write_json(out);
        }
    }

    /// Appends the object as an element of a list, which says the kind and version once for all: upstream's lists leave them out.
    ///
    /// `own` is how an object of the kind begins when it says them itself: keys are stored in order, and these two come first.
    fn write_item(&self, served: &Served, own: &[u8], object: &Object, out: &mut BytesMut) {
        let whole = served.is_storage() && object.draft().schema == SCHEMA && object.revision != 0;
        if whole && object.draft().body().starts_with(own) {
            out.put_u8(b'{');
            object.write_json_from(own.len(), out);
        } else {
            let mut value = self.shown(served, object);
            if let Some(members) = value.as_object_mut() {
                members.retain(|name, _| !["apiVersion", "kind"].contains(&name.as_str()));
            }
            write(out, &value);
        }
    }

    /// One object in the form that was accepted. `include` matters to tables only.
    pub fn object_json(&self, served: &Served, object: &Object, form: Form, include: Include) -> Bytes {
        let mut out = BytesMut::with_capacity(object.draft().body().len() + 64);
        match form {
            Form::Whole | Form::MetadataList(_) => self.write_json(served, object, &mut out),
            Form::Metadata(version) => write(&mut out, &partial(&self.shown(served, object), version)),
            Form::Table(version) => {
                let rows = vec![self.row(served, object, version, include)];
                let metadata = match object.revision {
                    0 => json!({}),
                    revision => json!({"resourceVersion": revision.to_string()}),
                };
                write(&mut out, &table(&served.kind.columns, version, metadata, rows, true));
            }
        }
        out.freeze()
    }

    /// A page in the form that was accepted.
    pub fn list_json(&self, served: &Served, list: &Listed, form: Form, include: Include) -> Bytes {
        let mut metadata = json!({"resourceVersion": list.revision.to_string()});
        if let Some(next) = &list.next {
            metadata["continue"] = next.as_str().into();
        }
        if let Some(remaining) = list.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let size: usize = list.objects.iter().map(|object| object.draft().body().len() + 40).sum();
        match form {
            Form::Whole | Form::Metadata(_) => {
                let (kind, version) = (served.kind_name(), served.api_version());
                let own = format!("{{\"apiVersion\":\"{version}\",\"kind\":\"{kind}\",");
                write_list(&(format!("{kind}List"), version), &metadata, &list.objects, size, |object, out| {
                    self.write_item(served, own.as_bytes(), object, out);
                })
            }
            Form::MetadataList(version) => {
                let head = ("PartialObjectMetadataList".to_owned(), version.api_version().to_owned());
                write_list(&head, &metadata, &list.objects, size / 4, |object, out| {
                    write(out, &partial(&self.shown(served, object), version));
                })
            }
            Form::Table(version) => {
                let rows = list.objects.iter().map(|object| self.row(served, object, version, include)).collect();
                let mut out = BytesMut::new();
                write(&mut out, &table(&served.kind.columns, version, metadata, rows, true));
                out.freeze()
            }
        }
    }

    /// One row of a table.
    pub fn row(&self, served: &Served, object: &Object, version: MetaVersion, include: Include) -> Value {
        let value = self.stored(served, object);
        let cells = (served.kind.row)(&value, self.now());
        match include {
            Include::None => json!({"cells": cells, "object": null}),
            Include::Metadata => json!({"cells": cells, "object": partial(&value, version)}),
            Include::Object => json!({"cells": cells, "object": self.shown(served, object)}),
        }
    }
}

fn write(out: &mut BytesMut, value: &Value) {
    serde_json::to_writer(out.writer(), value).expect("a value is always JSON");
}

fn write_list(
    (kind, api_version): &(String, String),
    metadata: &Value,
    objects: &[Arc<Object>],
    size: usize,
    each: impl Fn(&Object, &mut BytesMut),
) -> Bytes {
    let mut out = BytesMut::with_capacity(size + 128);
    out.put_slice(format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":").as_bytes());
    write(&mut out, metadata);
    out.put_slice(b",\"items\":[");
    for (n, object) in objects.iter().enumerate() {
        if n > 0 {
            out.put_u8(b',');
        }
        each(object, &mut out);
    }
    out.put_slice(b"]}");
    out.freeze()
}

/// An object's metadata alone.
pub fn partial(object: &Value, version: MetaVersion) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": object["metadata"]})
}

/// A Scale as a table.
///
/// Source: kubernetes `pkg/printers/internalversion/printers.go`, `printScale`.
pub fn table_of_scale(scale: Value, version: MetaVersion, include: Include, now: Timestamp) -> Value {
    let columns = [
        Column { format: "".into(), ..Column::name() },
        Column::new("Desired", "integer", "How many there should be."),
        Column::new("Available", "integer", "How many there are."),
        Column::age(),
    ];
    let count = |part: &str| scale[part]["replicas"].as_i64().unwrap_or(0);
    let cells = json!([scale["metadata"]["name"], count("spec"), count("status"), age(&scale, now)]);
    let object = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(&scale, version),
        Include::Object => scale.clone(),
    };
    let metadata = json!({"resourceVersion": scale["metadata"]["resourceVersion"]});
    table(&columns, version, metadata, vec![json!({"cells": cells, "object": object})], true)
}

/// A table; in a watch only the first one has `headers`.
pub fn table(columns: &[Column], version: MetaVersion, metadata: Value, rows: Vec<Value>, headers: bool) -> Value {
    let columns = headers.then(|| {
        let column = |column: &Column| {
            json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        };
        columns.iter().map(column).collect::<Vec<_>>()
    });
    json!({
        "kind": "Table", "apiVersion": version.api_version(), "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}
