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
        if self.0.is_empty() { Self::new(name) } else { Self(format!("{}.{name}", self.0)) }
    }

    /// Appends `[index]`.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// Appends `[key]`.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
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
    TooMany,
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
            Self::TooMany => "FieldValueTooMany",
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
            Self::TooMany => "Too many",
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
        let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        Self { kind: ErrorType::NotSupported, field: field.clone(), value: Some(value.into()), detail }
    }

    pub fn forbidden(field: &Path, detail: impl Into<String>) -> Self {
        Self { kind: ErrorType::Forbidden, field: field.clone(), value: None, detail: detail.into() }
    }

    pub fn too_long(field: &Path, max_bytes: usize) -> Self {
        Self {
            kind: ErrorType::TooLong,
            field: field.clone(),
            value: None,
            detail: format!("may not be more than {max_bytes} bytes"),
        }
    }

    pub fn too_many(field: &Path, actual: usize, max: usize) -> Self {
        Self {
            kind: ErrorType::TooMany,
            field: field.clone(),
            value: Some(actual.into()),
            detail: format!("must have at most {max} items"),
        }
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

/// Strings as Go's `%q`, everything else as JSON.
fn shown(value: &Value) -> String {
    value.to_string()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}
