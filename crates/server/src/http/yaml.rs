//! YAML in and out, by way of JSON values.

use serde_json::Value;

/// Parses one document.
///
/// # Errors
/// What is wrong, with line and column.
pub fn parse(text: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

/// Writes a document.
pub fn write(value: &Value) -> String {
    serde_saphyr::to_string(value).expect("a JSON value has a YAML form")
}
