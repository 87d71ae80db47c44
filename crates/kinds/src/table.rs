//! Cells of the tables that `kubectl get` prints.
//!
//! Source: kubernetes `pkg/printers/internalversion/printers.go`, apimachinery `pkg/util/duration/duration.go`.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{items, text};

pub fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

/// The age of the object.
pub fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now)
}

/// How long ago a timestamp was, or `<unknown>` when there is none.
pub fn since(timestamp: &Value, now: Timestamp) -> Value {
    json!(moment(timestamp).map_or_else(|| "<unknown>".to_owned(), |then| duration(now, then)))
}

pub fn moment(timestamp: &Value) -> Option<Timestamp> {
    timestamp.as_str()?.parse().ok()
}

/// The time from `then` to `now` in two units at most, such as `3m12s`.
pub fn duration(now: Timestamp, then: Timestamp) -> String {
    let nanoseconds = now.as_nanosecond() - then.as_nanosecond();
    // Whole seconds, cut towards zero.
    let seconds = nanoseconds / 1_000_000_000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    let two = |big: i128, unit: &str, small: i128, sub: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{sub}") }
    };
    match () {
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => two(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// The string, or `<none>` for an empty one.
pub fn or_none(value: &Value) -> Value {
    or(value, "<none>")
}

pub fn or(value: &Value, otherwise: &str) -> Value {
    match text(value) {
        "" => json!(otherwise),
        some => json!(some),
    }
}

/// One field of every item, joined by commas.
pub fn joined(list: &Value, field: &str) -> Value {
    json!(items(list).iter().map(|item| text(&item[field])).collect::<Vec<_>>().join(","))
}

/// A label selector object in the form of the command line.
///
/// Source: apimachinery `pkg/apis/meta/v1/helpers.go`, `FormatLabelSelector`.
pub fn selector(of: &Value) -> Value {
    let mut terms: Vec<(String, String)> = of["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), format!("{key}={}", text(value))))
        .collect();
    for expression in items(&of["matchExpressions"]) {
        let key = text(&expression["key"]);
        let values: BTreeSet<&str> = items(&expression["values"]).iter().map(text).collect();
        let values = values.into_iter().collect::<Vec<_>>().join(",");
        let term = match text(&expression["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return json!("<error>"),
        };
        terms.push((key.to_owned(), term));
    }
    terms.sort();
    or_none(&json!(terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(",")))
}

/// A plain map of labels as `k=v,k=v`.
pub fn labels(map: &Value) -> Value {
    let pairs: Vec<String> =
        map.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value))).collect();
    or_none(&json!(pairs.join(",")))
}

/// The addresses or names under `status.loadBalancer.ingress`.
pub fn load_balancer(object: &Value) -> String {
    let of = |ingress: &Value| {
        let ip = text(&ingress["ip"]);
        if ip.is_empty() { text(&ingress["hostname"]).to_owned() } else { ip.to_owned() }
    };
    let set: BTreeSet<String> = items(&object["status"]["loadBalancer"]["ingress"]).iter().map(of).collect();
    set.into_iter().filter(|one| !one.is_empty()).collect::<Vec<_>>().join(",")
}

/// The first three, and how many more there are.
pub fn first_three(all: &[String]) -> String {
    match all {
        [] => "<unset>".to_owned(),
        [a, b, c, _, ..] => format!("{a},{b},{c} + {} more...", all.len() - 3),
        few => few.join(","),
    }
}
