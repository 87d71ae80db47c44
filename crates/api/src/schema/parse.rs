//! Reads a schema from its table. `kinds/facts/generate.py` describes the form.

use std::borrow::Cow;

use super::{Definition, FieldDefinition, ListType, PatchStrategy, Scalar, Schema, ShapeDefinition, TypeId};

/// A line of the table that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the schema: {what}")]
pub struct Malformed {
    pub line: usize,
    what: String,
}

impl Schema {
    /// Parses a table of types. Names are borrowed from it.
    ///
    /// # Errors
    /// Names the first line that has another form, or that refers to a type which the table does not have.
    pub fn parse(table: &'static str) -> Result<Self, Malformed> {
        let lines = || table.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let mut schema = Self::default();
        for (at, line) in lines().filter(|(_, line)| !line.starts_with('\t')) {
            let (name, attributes) = line.split_once('\t').unwrap_or((line, ""));
            let id = TypeId(schema.types.len() as u32);
            if schema.names.insert(Cow::Borrowed(name), id).is_some() {
                return Err(Malformed { line: at + 1, what: format!("{name} stands there twice") });
            }
            let mut definition = Definition { name: Cow::Borrowed(name), atomic: false, gvk: None, fields: Vec::new() };
            for attribute in attributes.split_ascii_whitespace() {
                match attribute.split_once('=') {
                    None if attribute == "atomic" => definition.atomic = true,
                    Some(("gvk", gvk)) => definition.gvk = Some(Cow::Borrowed(gvk)),
                    _ => return Err(Malformed { line: at + 1, what: format!("unknown attribute {attribute}") }),
                }
            }
            schema.types.push(definition);
        }
        let mut types = 0;
        for (at, line) in lines() {
            let Some(line) = line.strip_prefix('\t') else {
                types += 1;
                continue;
            };
            let field = schema.parse_field(line).map_err(|what| Malformed { line: at + 1, what })?;
            let orphan = || Malformed { line: at + 1, what: "a field before the first type".to_owned() };
            let index = usize::checked_sub(types, 1).ok_or_else(orphan)?;
            schema.types[index].fields.push(field);
        }
        for definition in &mut schema.types {
            definition.fields.sort_by(|a, b| a.name.cmp(&b.name));
            definition.fields.shrink_to_fit();
        }
        Ok(schema)
    }

    fn parse_field(&self, line: &'static str) -> Result<FieldDefinition, String> {
        let mut columns = line.splitn(3, '\t');
        let name = columns.next().unwrap_or_default();
        let shape = columns.next().ok_or_else(|| format!("field {name} has no shape"))?;
        let mut field = FieldDefinition {
            name: Cow::Borrowed(name),
            shape: self.parse_shape(shape)?,
            required: false,
            atomic: false,
            list: None,
            keys: Vec::new(),
            merge_key: None,
            patch: PatchStrategy::default(),
            go: None,
            via: None,
            pointer: false,
            default: None,
            zero: None,
        };
        for attribute in columns.next().unwrap_or_default().split_ascii_whitespace() {
            match attribute.split_once('=') {
                None if attribute == "required" => field.required = true,
                None if attribute == "atomic" => field.atomic = true,
                None if attribute == "pointer" => field.pointer = true,
                Some(("list", "atomic")) => field.list = Some(ListType::Atomic),
                Some(("list", "set")) => field.list = Some(ListType::Set),
                Some(("list", "map")) => field.list = Some(ListType::Map),
                Some(("keys", keys)) => field.keys = keys.split(',').map(Cow::Borrowed).collect(),
                Some(("merge-key", key)) => field.merge_key = Some(Cow::Borrowed(key)),
                Some(("patch", strategies)) => field.patch = parse_strategies(strategies)?,
                Some(("go", go)) => field.go = Some(Cow::Borrowed(go)),
                Some(("via", via)) => field.via = Some(Cow::Borrowed(via)),
                Some(("default", json)) => field.default = Some(parse_value(json)?),
                Some(("zero", json)) => field.zero = Some(parse_value(json)?),
                _ => return Err(format!("unknown attribute {attribute}")),
            }
        }
        Ok(field)
    }

    fn parse_shape(&self, text: &str) -> Result<ShapeDefinition, String> {
        if let Some(items) = text.strip_prefix("[]") {
            return Ok(ShapeDefinition::List(Box::new(self.parse_shape(items)?)));
        }
        if let Some(values) = text.strip_prefix("{}") {
            return Ok(ShapeDefinition::Map(Box::new(self.parse_shape(values)?)));
        }
        let scalar = match text {
            "string" => Scalar::String,
            "int32" => Scalar::Int32,
            "int64" => Scalar::Int64,
            "number" => Scalar::Number,
            "bool" => Scalar::Bool,
            "bytes" => Scalar::Bytes,
            "quantity" => Scalar::Quantity,
            "int-or-string" => Scalar::IntOrString,
            "time" => Scalar::Time,
            "micro-time" => Scalar::MicroTime,
            "any" => Scalar::Any,
            name => {
                let id = self.names.get(name).ok_or_else(|| format!("{name} is not defined"))?;
                return Ok(ShapeDefinition::Object(*id));
            }
        };
        Ok(ShapeDefinition::Scalar(scalar))
    }
}

fn parse_value(json: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn parse_strategies(text: &str) -> Result<PatchStrategy, String> {
    let mut out = PatchStrategy::default();
    for strategy in text.split(',') {
        match strategy {
            "merge" => out.merge = true,
            "replace" => out.replace = true,
            "retainKeys" => out.retain_keys = true,
            other => return Err(format!("unknown patch strategy {other}")),
        }
    }
    Ok(out)
}
