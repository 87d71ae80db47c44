//! Times in RFC 3339 as Go reads and writes them.
//!
//! Source: apimachinery `pkg/apis/meta/v1/{time,micro_time}.go`; the messages are those of Go's `time.Parse`.

use jiff::Timestamp;

use crate::field::quoted;

/// Parses a time.
///
/// # Errors
/// Go's message, which names the part that could not be read.
pub(super) fn parse(text: &str, layout: &str) -> Result<Timestamp, String> {
    let Err(Failure { rest, element }) = scan(text, layout.contains(".000000")) else {
        return text.parse().map_err(|_| format!("parsing time {}: day out of range", quoted(text)));
    };
    Err(match element {
        Element::Layout(element) => {
            let (text, layout) = (quoted(text), quoted(layout));
            format!("parsing time {text} as {layout}: cannot parse {} as {}", quoted(rest), quoted(element))
        }
        Element::Range(unit) => format!("parsing time {}: {unit} out of range", quoted(text)),
        Element::Extra => format!("parsing time {}: extra text: {}", quoted(text), quoted(rest)),
    })
}

pub(super) const SECONDS: &str = "2006-01-02T15:04:05Z07:00";
pub(super) const MICROSECONDS: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Writes a time in seconds, as `v1.Time` does.
pub(super) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Writes a time in microseconds, as `v1.MicroTime` does.
pub(super) fn microseconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

struct Failure<'a> {
    rest: &'a str,
    element: Element,
}

enum Element {
    Layout(&'static str),
    Range(&'static str),
    Extra,
}

/// Goes through the elements of the layout to find the first that does not fit.
fn scan(text: &str, fraction_required: bool) -> Result<(), Failure<'_>> {
    let mut rest = text;
    for (element, digits, low, high, unit) in [
        ("2006", 4, 0, 9999, "year"),
        ("-", 0, 0, 0, ""),
        ("01", 2, 1, 12, "month"),
        ("-", 0, 0, 0, ""),
        ("02", 2, 1, 31, "day"),
        ("T", 0, 0, 0, ""),
        ("15", 2, 0, 23, "hour"),
        (":", 0, 0, 0, ""),
        ("04", 2, 0, 59, "minute"),
        (":", 0, 0, 0, ""),
        ("05", 2, 0, 59, "second"),
    ] {
        let failure = Failure { rest, element: Element::Layout(element) };
        if digits == 0 {
            rest = rest.strip_prefix(element).ok_or(failure)?;
            continue;
        }
        let number = rest.get(..digits).filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        let number: u32 = number.and_then(|number| number.parse().ok()).ok_or(failure)?;
        rest = &rest[digits..];
        if !(low..=high).contains(&number) {
            return Err(Failure { rest, element: Element::Range(unit) });
        }
    }
    // Go takes a fraction even where the layout has none.
    match rest.strip_prefix('.') {
        Some(fraction) if fraction.starts_with(|c: char| c.is_ascii_digit()) => {
            let after = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            if fraction_required && fraction.len() - after.len() != 6 {
                return Err(Failure { rest, element: Element::Layout(".000000") });
            }
            rest = after;
        }
        _ if fraction_required => return Err(Failure { rest, element: Element::Layout(".000000") }),
        _ => {}
    }
    let zone = || Failure { rest, element: Element::Layout("Z07:00") };
    let after = if let Some(after) = rest.strip_prefix('Z') {
        after
    } else {
        let offset = rest.get(..6).filter(|offset| match offset.as_bytes() {
            [b'+' | b'-', a, b, b':', c, d] => [a, b, c, d].iter().all(|byte| byte.is_ascii_digit()),
            _ => false,
        });
        offset.ok_or_else(zone)?;
        &rest[6..]
    };
    if after.is_empty() { Ok(()) } else { Err(Failure { rest: after, element: Element::Extra }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        for (text, written) in [
            ("2026-11-23T12:00:00Z", "2026-11-23T12:00:00Z"),
            ("2026-11-23T12:00:00+02:00", "2026-11-23T10:00:00Z"),
            ("2026-11-23T12:00:00.987Z", "2026-11-23T12:00:00Z"),
        ] {
            assert_eq!(parse(text, SECONDS).map(seconds).as_deref(), Ok(written));
        }
        let micro = "2026-11-23T12:00:00.123456Z";
        assert_eq!(parse(micro, MICROSECONDS).map(microseconds).as_deref(), Ok(micro));
    }

    #[test]
    fn fails_in_go_s_words() {
        let layout = "parsing time";
        for (text, message) in [
            ("x", r#""x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#),
            ("", r#""" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "2006""#),
            ("2026-11-23", r#""2026-11-23" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#),
            ("2026-13-23T12:00:00Z", r#""2026-13-23T12:00:00Z": month out of range"#),
            ("2026-02-30T12:00:00Z", r#""2026-02-30T12:00:00Z": day out of range"#),
            (
                "2026-11-23T12:00:00",
                r#""2026-11-23T12:00:00" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "Z07:00""#,
            ),
            ("2026-11-23T12:00:00Zx", r#""2026-11-23T12:00:00Zx": extra text: "x""#),
        ] {
            assert_eq!(parse(text, SECONDS).unwrap_err(), format!("{layout} {message}"));
        }
    }
}
