//! Writes JSON values as YAML in the shape of `kubectl get -o yaml`.
//!
//! Keys are ordered, lists stand at the indentation of their key, and a text is quoted where Go's decoder, or one of
//! YAML 1.1, would read something else.

use serde_json::{Map, Value};

use super::scalar;

/// Writes one document, which ends with a line feed.
pub fn to_string(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(members) if !members.is_empty() => mapping(&mut out, members, 0, false),
        Value::Array(items) if !items.is_empty() => sequence(&mut out, items, 0),
        other => {
            scalar_line(&mut out, other, 0);
        }
    }
    out
}

/// `inline` when the first key follows a dash on its line.
fn mapping(out: &mut String, members: &Map<String, Value>, indent: usize, mut inline: bool) {
    for (key, value) in members {
        if !std::mem::take(&mut inline) {
            pad(out, indent);
        }
        out.push_str(&one_line(key));
        out.push(':');
        match value {
            Value::Object(members) if !members.is_empty() => {
                out.push('\n');
                mapping(out, members, indent + 2, false);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                sequence(out, items, indent);
            }
            other => {
                out.push(' ');
                scalar_line(out, other, indent + 2);
            }
        }
    }
}

fn sequence(out: &mut String, items: &[Value], indent: usize) {
    for item in items {
        pad(out, indent);
        out.push_str("- ");
        item_after_dash(out, item, indent + 2);
    }
}

fn item_after_dash(out: &mut String, item: &Value, indent: usize) {
    match item {
        Value::Object(members) if !members.is_empty() => mapping(out, members, indent, true),
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    pad(out, indent);
                }
                out.push_str("- ");
                item_after_dash(out, item, indent + 2);
            }
        }
        other => scalar_line(out, other, indent),
    }
}

fn scalar_line(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(text) if is_block(text) => {
            let ends = match (text.ends_with("\n\n") || text == "\n", text.ends_with('\n')) {
                (true, _) => "|+",
                (false, true) => "|",
                (false, false) => "|-",
            };
            out.push_str(ends);
            out.push('\n');
            for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
                if !line.is_empty() {
                    pad(out, indent.max(2));
                    out.push_str(line);
                }
                out.push('\n');
            }
            return;
        }
        Value::String(text) => out.push_str(&one_line(text)),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
    }
    out.push('\n');
}

/// Whether a text of several lines can stand as it is.
fn is_block(text: &str) -> bool {
    text.contains('\n')
        && !text.starts_with([' ', '\n', '\t'])
        && text.chars().all(|c| c == '\n' || c == '\t' || is_printable(c))
        && !text.split('\n').any(|line| line.ends_with([' ', '\t']))
}

fn one_line(text: &str) -> String {
    if !text.chars().all(is_printable) {
        return double_quoted(text);
    }
    if scalar::is_ambiguous(text) {
        return format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    }
    if is_plain(text) { text.to_owned() } else { format!("'{}'", text.replace('\'', "''")) }
}

fn is_plain(text: &str) -> bool {
    let mut chars = text.chars();
    let first = match (chars.next(), chars.next()) {
        (Some('-' | '?' | ':'), second) => second.is_some_and(|c| c != ' ' && !",[]{}".contains(c)),
        (Some(first), _) => !",[]{}#&*!|>'\"%@` ".contains(first),
        (None, _) => false,
    };
    first
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.starts_with("---")
        && !text.starts_with("...")
}

fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{85}' | '\u{a0}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// JSON's escapes are YAML's, but for those of characters that it does not escape.
fn double_quoted(text: &str) -> String {
    let mut out = String::new();
    for c in Value::from(text).to_string().chars() {
        match c as u32 {
            _ if is_printable(c) => out.push(c),
            code @ ..=0xffff => out.push_str(&format!("\\u{code:04x}")),
            code => out.push_str(&format!("\\U{code:08x}")),
        }
    }
    out
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}
