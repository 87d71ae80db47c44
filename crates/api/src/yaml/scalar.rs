//! What a plain scalar means.
//!
//! Source: go.yaml.in/yaml/v2 `resolve.go`; JSON's view of numbers is that of Go's `encoding/json`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value};

/// Returns the value of a plain scalar, or `None` for infinities and what is not a number.
pub(super) fn resolve(text: &str) -> Option<Value> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Value::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Some(Value::Bool(true));
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Some(Value::Bool(false));
        }
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => {
            return None;
        }
        _ => {}
    }
    let number = match text.as_bytes()[0] {
        b'.' => is_float(text).then(|| float(text)),
        b'0'..=b'9' | b'+' | b'-' => {
            let plain = text.replace('_', "");
            integer(&plain).map(Value::Number).map(Some).or_else(|| is_float(&plain).then(|| float(&plain)))
        }
        _ => None,
    };
    number.unwrap_or_else(|| Some(Value::String(text.to_owned())))
}

/// Base 2, 8, 10 or 16 by its prefix, as `strconv.ParseInt` with base 0.
fn integer(text: &str) -> Option<Number> {
    let negative = text.starts_with('-');
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', _, ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', _, ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', _, ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // Rust's parser would take a second sign.
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    if negative {
        return i64::from_str_radix(&format!("-{digits}"), radix).ok().map(Number::from);
    }
    // ParseUint takes no sign.
    match u64::from_str_radix(digits, radix).ok()? {
        value if i64::try_from(value).is_ok() || !text.starts_with('+') => Some(value.into()),
        _ => None,
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
        None => digits(mantissa),
    };
    mantissa && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['-', '+']).unwrap_or(exponent)))
}

/// JSON writes whole numbers without a fraction, so `1e3` can stand where an integer belongs.
fn float(text: &str) -> Option<Value> {
    let value: f64 = text.parse().ok()?;
    if value.fract() == 0.0 && value.abs() < 9.0e15 {
        return Some(Value::from(value as i64));
    }
    if value.is_finite() { Number::from_f64(value).map(Value::Number) } else { Some(Value::String(text.to_owned())) }
}

pub(super) fn binary(text: &str) -> Option<String> {
    let packed: String = text.split_ascii_whitespace().collect();
    String::from_utf8(STANDARD.decode(packed).ok()?).ok()
}

/// Whether a plain text would be read back as something else, by Go or by older parsers.
pub(super) fn is_ambiguous(text: &str) -> bool {
    !matches!(resolve(text), Some(Value::String(_)))
        || text == "<<"
        || text == "="
        || is_timestamp(text)
        || is_base_60(text)
}

/// Begins as a date, as far as Go's decoder looks.
fn is_timestamp(text: &str) -> bool {
    let Some((year, rest)) = text.split_once('-') else {
        return false;
    };
    let digits = |text: &str, most: usize| {
        let length = text.bytes().take_while(u8::is_ascii_digit).count();
        (1..=most).contains(&length).then_some(length)
    };
    let Some((month, rest)) = rest.split_once('-') else {
        return false;
    };
    let day = digits(rest, 2);
    year.len() == 4
        && year.bytes().all(|byte| byte.is_ascii_digit())
        && digits(month, 2) == Some(month.len())
        && day.is_some_and(|day| rest.len() == day || rest[day..].starts_with(['T', 't', ' ']))
}

/// `[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?`
fn is_base_60(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut places = whole.split(':');
    let first = places.next().unwrap_or_default();
    let numeric = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let mut rest = places.peekable();
    rest.peek().is_some()
        && first.starts_with(|c: char| c.is_ascii_digit())
        && numeric(first)
        && numeric(fraction)
        && rest.all(|place| place.len() <= 2 && place.parse::<u8>().is_ok_and(|place| place < 60))
}
