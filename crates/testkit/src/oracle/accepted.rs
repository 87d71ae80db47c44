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
    place(
        "token_review|*_access_review",
        "*",
        "/managed*",
        "nobody owns the fields of a review, which is answered and forgotten",
    ),
    place(
        "service_account",
        "token *",
        "/managed*",
        "nobody owns the fields of a TokenRequest, which is answered and forgotten",
    ),
    place(
        "runtime_class",
        "*/handler *",
        "/body/message|/body/details/causes/*/message",
        "upstream counts a new handler's bytes, and prints no value for one that changes",
    ),
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
        "*",
        "openapi",
        "/body/schemas/*.FieldsV1|/body/schemas/*.ManagedFieldsEntry",
        "FieldsV1 is described where it stands",
    ),
    place(
        "*",
        "openapi",
        "/body/schemas/*AppArmorProfile|/body/schemas/*SeccompProfile|/body/schemas/*PodSchedulingGroup",
        "the OpenAPI documents do not mark unions",
    ),
    place(
        "node|pod|service",
        "discovery|aggregated discovery",
        "*resources*",
        "sub-resources that are not served are not listed",
    ),
    place(
        "pod",
        "*",
        "/body/status/conditions/*/lastTransitionTime",
        "a condition that a pod is created with has no time: strategies know no clock",
    ),
    place(
        "pod",
        "delete *",
        "/body/metadata/deletion*|/body/metadata/generation",
        "a pod that goes at once is shown as it was",
    ),
    place(
        "*",
        "*",
        "/body/metadata/generation",
        "an empty object is as good as none, so that setting one changes nothing",
    ),
    place(
        "*_access_review",
        "*",
        "/body/status/evaluationError",
        "selectors of access reviews decide nothing, and are not parsed",
    ),
    place(
        "events_event",
        "create full: a name *",
        "/body/details/causes|/body/message",
        "a name that no path can hold is refused for that reason too",
    ),
    place("endpoint_slice", "*/addressType *", "*", "upstream prints no value for an address type that changes"),
    place(
        "local_subject_access_review",
        "*/metadata with *",
        "*",
        "upstream takes metadata from a LocalSubjectAccessReview before it looks at it",
    ),
    place(
        "pod",
        "*llocat*|*esourceClaimStatus*",
        "*",
        "what devices and claims were allocated is not checked: there are none",
    ),
    place("service", "make full again", "*", "a service that exists is said to exist, not to hold an address"),
    place("service", "*odePort*", "*", "dry runs of upstream do not look at node ports"),
    place("*", "*stopSignal*", "*", "stop signals of containers are served, which upstream has switched off"),
    place(
        "node|pod|service",
        "*with podPreemptionPolicy*|*initContainers/*/restartPolicy empty*|*/trafficDistribution empty*",
        "*",
        "an empty policy is as good as none",
    ),
    place(
        "pod",
        "*httpGet with protocol*|*with volumeHealth*|*with evictionResponders*",
        "*",
        "fields that upstream has switched off are not taken away",
    ),
    place("node", "*/allocatable empty*", "/managed*", "what is empty is filled in before anybody owns it"),
    place("*", "*with seLinuxOptions*", "/warnings", "SELinux labels have no effect, which is warned of"),
    place("service", "*/spec/ports doubled*", "*", "a port that stands twice is said once"),
    place("*", "*with imagePullSecrets*", "/warnings", "a secret without a name is warned of on every write"),
    place("node", "*podCIDRs*", "*", "a range that is none is no error of the server"),
    place("service", "apply full: a new object", "*", "all that is taken already is said at once"),
    place(
        "endpoint_slice|cluster_role|role|limit_range",
        "*",
        "/managed//0/fieldsV1/f:endpoints|/managed//0/fieldsV1/f:ports|/managed//0/fieldsV1/f:rules|/managed//0/fieldsV1/f:spec",
        "an empty list is as good as none: nobody owns it",
    ),
];

/// What a rule looks at.
struct Seen<'a> {
    subject: &'a Subject,
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
            seen.is_patch("") && theirs == ours && theirs >= 400 && seen.difference.pointer.ends_with("message")
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
            of_type && seen.is_patch("")
        },
        reason: "a patch does not change what an object is",
    },
    Rule {
        holds: |seen| seen.request.id.contains("/metadata with resourceVersion") && seen.codes().1 == 400,
        reason: "a revision that is none is refused",
    },
    Rule {
        holds: |seen| seen.difference.pointer == "/warnings" && matches!(seen.codes().0, 406 | 415),
        reason: "a kind that is deprecated is so for every request",
    },
    Rule {
        holds: |seen| {
            let is_of_pod = seen.they_say("pod updates may not change fields other than");
            is_of_pod && seen.request.id.contains(" with ") && matches!(seen.codes(), (422, 200 | 422))
        },
        reason: "an empty object in an update of a pod is no change",
    },
    Rule {
        holds: |seen| {
            seen.subject.name == "binding" && seen.codes() == (201, 422) && seen.request.id.contains("/metadata/")
        },
        reason: "labels and annotations that a Binding brings are checked",
    },
    Rule {
        holds: |seen| {
            let asks_name = |answer: &Value| answer["body"].to_string().contains("name or generateName is required");
            seen.subject.name == "event" && asks_name(seen.ours) && !asks_name(seen.upstream)
        },
        reason: "what is wrong with an event's metadata is said together with the rest",
    },
    Rule {
        holds: |seen| {
            let asks_name = |answer: &Value| answer["body"].to_string().contains("name or generateName is required");
            seen.subject.name == "limit_range" && asks_name(seen.ours) && !asks_name(seen.upstream)
        },
        reason: "a LimitRange needs a name: strategies know no randomness",
    },
    Rule { holds: |seen| seen.codes() == (415, 415), reason: "what is taken is named in an answer of 415" },
    Rule {
        holds: |seen| {
            let is_absent = seen.difference.pointer.starts_with("/body/paths/") && seen.difference.ours.is_null();
            is_absent && seen.request.id == "openapi"
        },
        reason: "the OpenAPI documents leave out watch paths, which are deprecated, and what is not served",
    },
    Rule {
        holds: |seen| seen.subject.name == "binding" && seen.they_say("Name parameter"),
        reason: "a pod that cannot have such a name is not found",
    },
    Rule {
        holds: |seen| seen.codes() == (406, 406) && seen.difference.pointer == "/body/message",
        reason: "what can be had is listed in an answer of 406: coracle writes no protobuf",
    },
    Rule {
        holds: |seen| seen.request.id.contains(" huge") && (seen.is_patch("strategic") || seen.is_patch("apply")),
        reason: "upstream cuts numbers of some patches to the width of their field",
    },
    Rule {
        holds: |seen| seen.request.id == "list by a bad token" && seen.codes().0 == seen.codes().1,
        reason: "a broken continue token is explained in the words of another parser",
    },
    Rule {
        holds: |seen| seen.request.id == "list by an unknown field" && seen.codes().0 == seen.codes().1,
        reason: "which fields can be selected by is not listed",
    },
    Rule {
        holds: |seen| {
            let is_invalid = seen.codes() == (422, 422) && seen.request.content_type.is_empty();
            seen.subject.name == "replication_controller" && is_invalid
        },
        reason: "a ReplicationController without a template lacks the template's containers, and without labels its own",
    },
    Rule {
        holds: |seen| {
            let is_action = ["bind ", "evict "].iter().any(|act| seen.request.id.starts_with(act));
            (seen.subject.name == "binding" || is_action) && seen.codes() == (500, 422)
        },
        reason: "what is wrong with a Binding or an Eviction is the client's mistake, not the server's",
    },
    Rule {
        holds: |seen| {
            let pointer = &seen.difference.pointer;
            let by_taints = pointer.contains("taints") || seen.they_say(".spec.taints");
            // Whoever applies the same taints takes that one away.
            let is_change = seen.is_patch("apply") && pointer == "/managed//0/time";
            seen.subject.name == "node" && (by_taints || is_change)
        },
        reason: "nodes are tainted by the node lifecycle controller, not at their creation",
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
    let seen = Seen { subject, request, difference, upstream, ours };
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
