//! Field paths and validation errors in upstream's wording.
//!
//! Source: apimachinery `pkg/util/validation/field/{path,errors}.go`.

use std::fmt;

use serde_json::Value;

/// A path to a field, such as `spec.containers[0].name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    pub fn new(root: &str) -> Self {
        Self(root.to_owned())
    }

    /// Appends `.name`.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self::new(name) } else { Self([&self.0, ".", name].concat()) }
    }

    /// Appends `[index]`.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// Appends `[key]`.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self([&self.0, "[", key, "]"].concat())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// The classes of field errors; `reason` gives the name used in a Status' causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooShort,
    TooMany,
    TooFew,
    Internal,
    TypeInvalid,
}

impl ErrorType {
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooShort => "FieldValueTooShort",
            Self::TooMany => "FieldValueTooMany",
            Self::TooFew => "FieldValueTooFew",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooShort => "Too short",
            Self::TooMany => "Too many",
            Self::TooFew => "Too few",
            Self::Internal => "Internal error",
        }
    }
}

/// One thing that is wrong with one field. `Display` is upstream's `path: Class: "value": detail`.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    pub kind: ErrorType,
    pub field: Path,
    /// The offending value, for the classes that show it.
    pub value: Option<Value>,
    pub detail: String,
}

impl Error {
    pub fn not_found(field: &Path, value: impl Into<Value>) -> Self {
        Self { kind: ErrorType::NotFound, field: field.clone(), value: Some(value.into()), detail: String::new() }
    }

    pub fn required(field: &Path, detail: impl Into<String>) -> Self {
        Self { kind: ErrorType::Required, field: field.clone(), value: None, detail: detail.into() }
    }

    pub fn duplicate(field: &Path, value: impl Into<Value>) -> Self {
        Self { kind: ErrorType::Duplicate, field: field.clone(), value: Some(value.into()), detail: String::new() }
    }

    pub fn invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { kind: ErrorType::Invalid, field: field.clone(), value: Some(value.into()), detail: detail.into() }
    }

    /// `supported` is listed in the message, in the order given.
    pub fn not_supported(field: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|s| quoted(s)).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        Self { kind: ErrorType::NotSupported, field: field.clone(), value: Some(value.into()), detail }
    }

    pub fn forbidden(field: &Path, detail: impl Into<String>) -> Self {
        Self { kind: ErrorType::Forbidden, field: field.clone(), value: None, detail: detail.into() }
    }

    pub fn type_invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { kind: ErrorType::TypeInvalid, ..Self::invalid(field, value, detail) }
    }

    pub fn too_long(field: &Path, max_bytes: usize) -> Self {
        let unit = if max_bytes == 1 { "byte" } else { "bytes" };
        let detail = format!("may not be more than {max_bytes} {unit}");
        Self { kind: ErrorType::TooLong, field: field.clone(), value: None, detail }
    }

    pub fn too_short(field: &Path, min_characters: usize) -> Self {
        let unit = if min_characters == 1 { "character" } else { "characters" };
        let detail = format!("must be at least {min_characters} {unit}");
        Self { kind: ErrorType::TooShort, field: field.clone(), value: None, detail }
    }

    pub fn too_many(field: &Path, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {max} {unit}");
        Self { kind: ErrorType::TooMany, field: field.clone(), value: Some(actual.into()), detail }
    }

    pub fn too_few(field: &Path, actual: usize, min: usize) -> Self {
        let unit = if min == 1 { "item" } else { "items" };
        let detail = format!("must have at least {min} {unit}");
        Self { kind: ErrorType::TooFew, field: field.clone(), value: Some(actual.into()), detail }
    }

    pub fn internal(field: &Path, detail: impl Into<String>) -> Self {
        Self { kind: ErrorType::Internal, field: field.clone(), value: None, detail: detail.into() }
    }

    /// The message without its field, as in a Status' cause.
    pub fn body(&self) -> String {
        let mut out = self.kind.text().to_owned();
        if let Some(value) = &self.value {
            out.push_str(": ");
            out.push_str(&shown(value));
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

/// Strings as Go's `%q`, everything else as Go's JSON, which escapes what HTML gives a meaning.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        other => {
            let mut out = String::new();
            for c in other.to_string().chars() {
                match c {
                    '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
                    c => out.push(c),
                }
            }
            out
        }
    }
}

/// Returns `text` as Go's `%q` writes it.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if c < ' ' || c == '\x7f' => out.push_str(&format!("\\x{:02x}", c as u32)),
            // Debug escapes what is not printable, as Go does, but writes its code point differently.
            c if c == '\'' || c.escape_debug().len() == 1 => out.push(c),
            c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push('"');
    out
}

/// Joins errors as upstream's aggregate does: each text once, in brackets when there are several.
pub fn aggregate(errors: &[Error]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for text in errors.iter().map(Error::to_string) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match &texts[..] {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn renders_each_class() {
        let path = Path::new("spec").child("containers").index(0).child("name");
        for (error, text) in [
            (Error::not_found(&path, "a"), r#"Not found: "a""#),
            (Error::required(&path, ""), "Required value"),
            (Error::required(&path, "is needed"), "Required value: is needed"),
            (Error::duplicate(&path, "a\"b"), r#"Duplicate value: "a\"b""#),
            (Error::duplicate(&path, json!({"name": "a", "n": 1})), r#"Duplicate value: {"n":1,"name":"a"}"#),
            (Error::invalid(&path, 5, "must be less"), "Invalid value: 5: must be less"),
            (Error::invalid(&path, true, "no"), "Invalid value: true: no"),
            (Error::invalid(&path, Value::Null, "no"), "Invalid value: null: no"),
            (Error::invalid(&path, json!(["a<b"]), "no"), r#"Invalid value: ["a\u003cb"]: no"#),
            (Error::not_supported(&path, "c", &["a", "b"]), r#"Unsupported value: "c": supported values: "a", "b""#),
            (Error::not_supported(&path, "c", &[]), r#"Unsupported value: "c""#),
            (Error::forbidden(&path, "may not"), "Forbidden: may not"),
            (Error::too_long(&path, 63), "Too long: may not be more than 63 bytes"),
            (Error::too_long(&path, 1), "Too long: may not be more than 1 byte"),
            (Error::too_many(&path, 3, 1), "Too many: 3: must have at most 1 item"),
            (Error::too_few(&path, 0, 2), "Too few: 0: must have at least 2 items"),
            (Error::too_short(&path, 2), "Too short: must be at least 2 characters"),
            (Error::type_invalid(&path, 1, "a string"), "Invalid value: 1: a string"),
            (Error::internal(&path, "oh"), "Internal error: oh"),
        ] {
            assert_eq!(error.to_string(), format!("spec.containers[0].name: {text}"));
        }
    }

    #[test]
    fn paths_are_written_as_upstream_does() {
        assert_eq!(Path::default().to_string(), "<nil>");
        assert_eq!(Path::default().child("a").to_string(), "a");
        assert_eq!(Path::new("metadata").child("labels").key("a/b").to_string(), "metadata.labels[a/b]");
    }

    #[test]
    fn quotes_as_go() {
        assert_eq!(quoted("a'b\"\\\n\t\u{1}\u{7f}ä\u{200b}\u{e0001}"), r#""a'b\"\\\n\t\x01\x7fä\u200b\U000e0001""#);
    }

    #[test]
    fn aggregates_once_each() {
        let a = Error::required(&Path::new("a"), "");
        let b = Error::required(&Path::new("b"), "");
        assert_eq!(aggregate(&[a.clone(), a.clone()]), "a: Required value");
        assert_eq!(aggregate(&[a.clone(), b, a]), "[a: Required value, b: Required value]");
    }
}
