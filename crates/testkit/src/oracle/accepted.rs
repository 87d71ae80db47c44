//! The differences that are as they should be, each with its reason.
//!
//! Most are told by where they are; the rest by what the answers say.

use serde_json::Value;

use super::Request;
use super::compare::Difference;
use super::subjects::Subject;

/// Differences that are told by where they are. Each of the three is a pattern in which `*` stands for anything, or several
/// with `|` between them.
struct Place {
    /// The subject's name.
    subject: &'static str,
    /// The request's id.
    request: &'static str,
    /// A JSON pointer into the canonical answer.
    pointer: &'static str,
    reason: &'static str,
}

const fn place(subject: &'static str, request: &'static str, pointer: &'static str, reason: &'static str) -> Place {
    Place { subject, request, pointer, reason }
}

const PLACES: &[Place] = &[
    place("*", "*", "/body/columnDefinitions/*/description", "columns are described in coracle's own words"),
    place(
        "event|events_event",
        "*",
        "/body/columnDefinitions/9/format",
        "the name of an event is its last column, not its first",
    ),
    place(
        "subject_access_review",
        "*",
        "/body/status/reason",
        "several bindings allow it, and which of them is named is chance",
    ),
    place("*", "*: an unknown operation", "*", "an unknown operation makes a JSON patch malformed"),
    place(
        "node|pod|service",
        "discovery|aggregated discovery",
        "*resources*",
        "sub-resources that are not served are not listed",
    ),
    place(
        "pod",
        "*llocat*|*esourceClaimStatus*",
        "*",
        "what devices and claims were allocated is not checked: there are none",
    ),
    place("node", "*/allocatable empty*", "/managed*", "what is empty is filled in before anybody owns it"),
    place("*", "*with seLinuxOptions*", "/warnings", "SELinux labels have no effect, which is warned of"),
    place("node", "*podCIDRs*", "*", "a range that is none is no error of the server"),
    place(
        "service",
        "update *: */spec/ports doubled*",
        "*",
        "a port that stands twice is the client's mistake, not the server's",
    ),
    place("service", "make full again", "*", "a service that exists is said to exist, not to hold an address"),
    place("service", "apply full: a new object", "*", "a dry run says of an address too that it is taken"),
    place(
        "endpoint_slice|cluster_role|role|limit_range",
        "*",
        "/managed//0/fieldsV1/f:endpoints|/managed//0/fieldsV1/f:ports|/managed//0/fieldsV1/f:rules|/managed//0/fieldsV1/f:spec",
        "an empty list is as good as none: nobody owns it",
    ),
];

/// What a rule looks at.
struct Seen<'a> {
    request: &'a Request,
    difference: &'a Difference,
    /// The whole canonical answers.
    upstream: &'a Value,
    ours: &'a Value,
}

impl Seen<'_> {
    fn codes(&self) -> (u64, u64) {
        let code = |answer: &Value| answer["code"].as_u64().unwrap_or(0);
        (code(self.upstream), code(self.ours))
    }

    fn is_patch(&self, form: &str) -> bool {
        self.request.content_type.contains(form) && self.request.content_type.contains("patch")
    }

    /// Whether upstream's answer says it.
    fn they_say(&self, text: &str) -> bool {
        self.upstream.to_string().contains(text)
    }
}

/// Differences that are told by what the answers say.
struct Rule {
    holds: fn(&Seen<'_>) -> bool,
    reason: &'static str,
}

const RULES: &[Rule] = &[
    Rule { holds: refuses_what_is_not_built, reason: "coracle refuses what it has not built" },
    Rule { holds: names_the_nearest, reason: "coracle says what was probably meant" },
    Rule {
        holds: |seen| {
            let (theirs, ours) = seen.codes();
            let is_of_patch = seen.request.id.starts_with("json ") || seen.they_say("patch: Invalid value");
            is_of_patch && theirs == ours && theirs >= 400 && seen.difference.pointer.ends_with("message")
        },
        reason: "a patch that cannot be applied is explained in coracle's own words",
    },
    Rule {
        holds: |seen| seen.is_patch("") && seen.codes() == (500, 422),
        reason: "a patch that does not fit is the client's mistake, not the server's",
    },
    Rule {
        holds: |seen| seen.codes() == (405, 405),
        reason: "what is not allowed is named: the verb and the resource",
    },
    Rule {
        holds: |seen| seen.they_say("strconv.") && seen.codes().1 == 400,
        reason: "a malformed number is the client's mistake and explained without the name of Go's parser",
    },
    Rule {
        holds: |seen| seen.they_say("StorageError: ") && seen.codes().0 == seen.codes().1,
        reason: "there is no etcd to speak of",
    },
    Rule {
        holds: |seen| {
            let of_type = ["/apiVersion", "/kind"].iter().any(|field| seen.request.id.contains(&format!(": {field} ")));
            of_type && seen.is_patch("") && seen.codes().1 == 400
        },
        reason: "a patch does not change what an object is",
    },
    Rule {
        holds: |seen| {
            let is_revision = seen.difference.pointer == "/body/metadata/resourceVersion";
            is_revision && seen.request.id.starts_with("create ") && seen.difference.ours.is_null()
        },
        reason: "what a dry run would create has no revision",
    },
    Rule {
        holds: |seen| seen.request.id.contains("/metadata with resourceVersion") && seen.codes() == (409, 400),
        reason: "a revision that is none is refused",
    },
    Rule {
        holds: |seen| seen.request.id.contains("/metadata with labels") && seen.codes() == (201, 422),
        reason: "labels that a Binding brings are checked: with wrong ones the pod could not be updated any more",
    },
    Rule {
        holds: |seen| seen.difference.pointer == "/warnings" && matches!(seen.codes().0, 406 | 415),
        reason: "a kind that is deprecated is so for every request",
    },
    Rule { holds: |seen| seen.codes() == (415, 415), reason: "what is taken is named in an answer of 415" },
    Rule {
        holds: |seen| {
            let is_absent = seen.difference.pointer.starts_with("/body/paths/") && seen.difference.ours.is_null();
            is_absent && seen.request.id == "openapi"
        },
        reason: "the OpenAPI documents leave out what is not served",
    },
    Rule {
        holds: |seen| seen.codes() == (406, 406) && seen.difference.pointer == "/body/message",
        reason: "what can be had is listed in an answer of 406: coracle writes no protobuf",
    },
    Rule {
        holds: |seen| seen.request.id.contains(" huge") && (seen.is_patch("strategic") || seen.is_patch("apply")),
        reason: "upstream cuts numbers of some patches to the width of their field",
    },
];

/// Every reason, one for each rule.
pub fn reasons() -> impl Iterator<Item = &'static str> {
    PLACES.iter().map(|place| place.reason).chain(RULES.iter().map(|rule| rule.reason))
}

/// The reason for a difference, when one is known.
pub fn reason(
    subject: &Subject,
    request: &Request,
    difference: &Difference,
    upstream: &Value,
    ours: &Value,
) -> Option<&'static str> {
    let is_here = |place: &&Place| {
        matches(place.subject, subject.name)
            && matches(place.request, &request.id)
            && matches(place.pointer, &difference.pointer)
    };
    let seen = Seen { request, difference, upstream, ours };
    let by_place = || PLACES.iter().find(is_here).map(|place| place.reason);
    RULES.iter().find(|rule| (rule.holds)(&seen)).map(|rule| rule.reason).or_else(by_place)
}

/// Whether one of several patterns is that of the text.
fn matches(patterns: &str, text: &str) -> bool {
    fn is_one(pattern: &str, text: &str) -> bool {
        match pattern.split_once('*') {
            None => pattern == text,
            Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
                rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| is_one(after, &rest[at..]))
            }),
        }
    }
    patterns.split('|').any(|pattern| is_one(pattern, text))
}

/// coracle says of a field that it is not supported yet, and upstream says everything else that coracle says.
fn refuses_what_is_not_built(seen: &Seen<'_>) -> bool {
    let is_refusal =
        |cause: &&Value| cause["message"].as_str().is_some_and(|text| text.contains("not supported yet by coracle"));
    let (refusals, others): (Vec<&Value>, Vec<&Value>) = causes(seen.ours).iter().partition(|cause| is_refusal(cause));
    let theirs = causes(seen.upstream);
    !refusals.is_empty() && others.iter().all(|cause| theirs.contains(cause) || is_nearly(cause, theirs))
}

fn causes(answer: &Value) -> &[Value] {
    answer["body"]["details"]["causes"].as_array().map_or(&[], Vec::as_slice)
}

/// Whether one of `theirs` is the same cause but for the text behind it that names what was meant.
fn is_nearly(cause: &Value, theirs: &[Value]) -> bool {
    let text = plain(cause["message"].as_str().unwrap_or_default());
    theirs
        .iter()
        .any(|other| other["field"] == cause["field"] && plain(other["message"].as_str().unwrap_or_default()) == text)
}

/// The same text, but for a guess at its end that upstream does not make.
fn names_the_nearest(seen: &Seen<'_>) -> bool {
    fn alike(upstream: &Value, ours: &Value) -> bool {
        match (upstream, ours) {
            (Value::String(upstream), Value::String(ours)) => plain(upstream) == plain(ours),
            (Value::Array(upstream), Value::Array(ours)) => {
                upstream.len() == ours.len() && upstream.iter().zip(ours).all(|(upstream, ours)| alike(upstream, ours))
            }
            (Value::Object(_), Value::Object(_)) => is_nearly(ours, std::slice::from_ref(upstream)),
            _ => false,
        }
    }
    seen.difference.ours.to_string().contains("did you mean") && alike(&seen.difference.upstream, &seen.difference.ours)
}

/// A text without `: did you mean …?` or ` (did you mean …?)`.
fn plain(text: &str) -> String {
    let mut rest = text;
    let mut out = String::new();
    while let Some((before, after)) = rest.split_once("did you mean ") {
        out.push_str(before.trim_end_matches([' ', '(', ':', ';']));
        let after = after.split_once('?').map_or("", |(_, after)| after);
        rest = after.strip_prefix(')').unwrap_or(after);
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text) in [("*", ""), ("a*c|d", "abbc"), ("a*c|d", "d"), ("*: x*", "b: x"), ("a*b*c", "a-b-b-c")] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("a*c", "ab"), ("a|b", "a|b"), ("*x", "xy")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn each_rule_has_a_reason_of_its_own() {
        let mut all: Vec<&str> = reasons().collect();
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn guesses_are_taken_off() {
        assert_eq!(plain(r#"299 - "unknown field \"a\" (did you mean \"b\"?)""#), r#"299 - "unknown field \"a\"""#);
        assert_eq!(plain(r#"Not found: "x": did you mean the volume "h"?"#), r#"Not found: "x""#);
        assert_eq!(plain("nothing"), "nothing");
    }
}
