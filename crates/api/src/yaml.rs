//! YAML to JSON values and back, reading scalars as Go's decoder does.
//!
//! Source: sigs.k8s.io/yaml (`yaml.go`) over go.yaml.in/yaml/v2: YAML 1.1 scalars without base-60 numbers. Manifests
//! become JSON first and types later, so that a number is refused where a string belongs. Duplicate keys are errors,
//! and an explicit key wins over a merged one wherever it stands. Aliases and nesting are limited. Compared with Go on
//! 29,000 generated texts, only fractions and huge numbers as keys, and the minus of -0.0, come out differently.

use std::collections::HashMap;

use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value};

mod scalar;
mod write;

pub use write::to_string;

/// Nodes that aliases and merges may add to one text.
const MOST_ALIASED: usize = 100_000;
/// What JSON allows later on; see [`crate::json`].
const DEEPEST: usize = 120;

/// One document of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub value: Value,
    /// Where it begins, counted from 1.
    pub line: usize,
}

/// A text that is no YAML, or holds what JSON has no place for. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct Error {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

/// Parses all documents of a stream; empty ones are left out.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse_all(text: &str) -> Result<Vec<Document>, Error> {
    Ok(Reader::new(text, None).documents()?.into_iter().filter(|document| !document.value.is_null()).collect())
}

/// Parses a text of one document; an empty one is null.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(text: &str) -> Result<Value, Error> {
    let mut documents = parse_all(text)?;
    if let Some(second) = documents.get(1) {
        let message = "a second document begins here, but one is expected".to_owned();
        return Err(Error { line: second.line, column: 1, message });
    }
    Ok(documents.pop().map_or(Value::Null, |document| document.value))
}

/// Parses a text of one document in which the last of several equal keys wins, and says where they stand, as in
/// `line 3: key "a" already set in map`.
///
/// # Errors
/// As [`parse`], but for those keys.
pub fn parse_lenient(text: &str) -> Result<(Value, Vec<String>), Error> {
    let mut reader = Reader::new(text, None);
    reader.repeated = Some(Vec::new());
    let value = reader.documents()?.into_iter().next().map_or(Value::Null, |document| document.value);
    Ok((value, reader.repeated.unwrap_or_default()))
}

/// Returns the line and column at which a field stands, to say where a wrong one is.
///
/// `path` is written as in strict decoding errors, such as `spec.containers[0].name`; `begins` is the line of its
/// document. Fields that come from an alias are not found.
pub fn locate(text: &str, begins: usize, path: &str) -> Option<(usize, usize)> {
    let mut reader = Reader::new(text, Some((begins, path)));
    // The text has been read before: an error behind the field does not matter.
    reader.documents().ok();
    reader.found
}

struct Reader<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    /// Where the parser is.
    mark: Marker,
    anchors: HashMap<usize, Anchored>,
    aliased: usize,
    /// The line of the document and the path that are searched, and the path at hand.
    wanted: Option<(usize, &'a str)>,
    path: String,
    begins: usize,
    found: Option<(usize, usize)>,
    /// What to do of keys that stand there twice: note them, or fail.
    repeated: Option<Vec<String>>,
}

#[derive(Clone)]
struct Anchored {
    value: Value,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, wanted: Option<(usize, &'a str)>) -> Self {
        let mut options = Options::default();
        options.set_emit_comments(false);
        Self {
            parser: Parser::new_from_str_with_options(text, options),
            mark: Marker::default(),
            anchors: HashMap::new(),
            aliased: 0,
            wanted,
            path: String::new(),
            begins: 0,
            found: None,
            repeated: None,
        }
    }

    fn documents(&mut self) -> Result<Vec<Document>, Error> {
        let mut out = Vec::new();
        loop {
            match self.next()? {
                Event::StreamEnd => return Ok(out),
                Event::DocumentStart(..) => {
                    self.anchors.clear();
                    let event = self.next()?;
                    self.begins = self.mark.line();
                    let value = self.node(event, 0)?;
                    out.push(Document { value, line: self.begins });
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<Event<'a>, Error> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                self.mark = span.start;
                Ok(event)
            }
            Some(Err(error)) => {
                self.mark = *error.marker();
                Err(self.error(error.info()))
            }
            None => Ok(Event::StreamEnd),
        }
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error { line: self.mark.line(), column: self.mark.col() + 1, message: message.into() }
    }

    fn node(&mut self, event: Event<'a>, depth: usize) -> Result<Value, Error> {
        if depth > DEEPEST {
            return Err(self.error(format!("nested more than {DEEPEST} levels deep")));
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = self.scalar(&text, style, tag.as_deref())?;
                self.keep(anchor, &value);
                Ok(value)
            }
            Event::SequenceStart(_, anchor, _) => {
                let (mut items, length) = (Vec::new(), self.path.len());
                loop {
                    let event = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    if self.wanted.is_some() {
                        self.path.push_str(&format!("[{}]", items.len()));
                        self.look_here();
                    }
                    items.push(self.node(event, depth + 1)?);
                    self.path.truncate(length);
                }
                let value = Value::Array(items);
                self.keep(anchor, &value);
                Ok(value)
            }
            Event::MappingStart(_, anchor, _) => {
                let value = Value::Object(self.mapping(depth)?);
                self.keep(anchor, &value);
                Ok(value)
            }
            Event::Alias(id) => self.alias(id, depth),
            _ => Err(self.error("a value is expected here")),
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Map<String, Value>, Error> {
        let (mut own, mut merged, length) = (Map::new(), Map::new(), self.path.len());
        loop {
            let event = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let at = self.mark;
            if matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<") {
                let event = self.next()?;
                let source = self.node(event, depth + 1)?;
                self.merge(&mut merged, source)?;
                continue;
            }
            let key = self.key(event, depth)?;
            self.mark = at;
            if own.contains_key(&key) {
                let (line, quoted) = (self.mark.line(), crate::field::quoted(&key));
                match &mut self.repeated {
                    Some(repeated) => repeated.push(format!("line {line}: key {quoted} already set in map")),
                    None => return Err(self.error(format!("key {quoted} is already set in this mapping"))),
                }
            }
            if self.wanted.is_some() {
                if length != 0 {
                    self.path.push('.');
                }
                self.path.push_str(&key);
                self.look_here();
            }
            let event = self.next()?;
            let value = self.node(event, depth + 1)?;
            self.path.truncate(length);
            own.insert(key, value);
        }
        merged.extend(own);
        Ok(merged)
    }

    /// JSON's keys are strings: Go writes other scalars out.
    fn key(&mut self, event: Event<'a>, depth: usize) -> Result<String, Error> {
        match self.node(event, depth + 1)? {
            Value::String(key) => Ok(key),
            Value::Bool(key) => Ok(key.to_string()),
            Value::Number(key) => Ok(key.to_string()),
            Value::Null => Err(self.error("a key is missing, or is null; quote it if it is a text")),
            Value::Array(_) | Value::Object(_) => Err(self.error("a key must be a text, a number or a boolean")),
        }
    }

    /// `<<`: members of another mapping, or of several of which the first wins.
    fn merge(&self, into: &mut Map<String, Value>, source: Value) -> Result<(), Error> {
        let sources = match source {
            Value::Array(sources) => sources,
            source => vec![source],
        };
        for source in sources {
            let Value::Object(members) = source else {
                return Err(self.error("map merge requires map or sequence of maps as the value"));
            };
            for (key, value) in members {
                into.entry(key).or_insert(value);
            }
        }
        Ok(())
    }

    fn scalar(&self, text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, Error> {
        let core = tag.and_then(|tag| tag.suffix_in_namespace("tag:yaml.org,2002:"));
        match core.as_deref() {
            None if tag.is_none() && style == ScalarStyle::Plain => match scalar::resolve(text) {
                Some(value) => Ok(value),
                None => Err(self.error(format!("{text} has no place in JSON; quote it if it is a text"))),
            },
            Some(name @ ("bool" | "int" | "float" | "null")) => {
                let value = scalar::resolve(text).filter(|value| match name {
                    "bool" => value.is_boolean(),
                    "int" => value.is_i64() || value.is_u64(),
                    "float" => value.is_number(),
                    _ => value.is_null(),
                });
                value.ok_or_else(|| self.error(format!("cannot decode `{text}` as a !!{name}")))
            }
            Some("binary") => scalar::binary(text)
                .map(Value::String)
                .ok_or_else(|| self.error("!!binary value contains invalid base64 data, or no text")),
            _ => Ok(Value::String(text.to_owned())),
        }
    }

    fn alias(&mut self, id: usize, depth: usize) -> Result<Value, Error> {
        let Some(Anchored { value, nodes }) = self.anchors.get(&id).cloned() else {
            return Err(self.error("an anchor contains itself"));
        };
        self.aliased += nodes;
        if self.aliased > MOST_ALIASED {
            return Err(self.error(format!("aliases add more than {MOST_ALIASED} values")));
        }
        if depth + deepest(&value) > DEEPEST {
            return Err(self.error(format!("nested more than {DEEPEST} levels deep")));
        }
        Ok(value)
    }

    fn keep(&mut self, anchor: usize, value: &Value) {
        if anchor != 0 {
            self.anchors.insert(anchor, Anchored { value: value.clone(), nodes: count(value) });
        }
    }

    fn look_here(&mut self) {
        if self.found.is_none() && self.wanted == Some((self.begins, self.path.as_str())) {
            self.found = Some((self.mark.line(), self.mark.col() + 1));
        }
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(members) => Box::new(members.values()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Box::new(std::iter::empty()),
    }
}

fn count(value: &Value) -> usize {
    1 + children(value).map(count).sum::<usize>()
}

fn deepest(value: &Value) -> usize {
    children(value).map(|child| 1 + deepest(child)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests;
