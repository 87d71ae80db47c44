//! The differences that are as they should be, each with its reason.

use serde_json::Value;

use super::Request;
use super::compare::Difference;
use super::subjects::Subject;

/// What a rule looks at.
struct Seen<'a> {
    subject: &'a Subject,
    request: &'a Request,
    difference: &'a Difference,
    /// The whole canonical answers.
    upstream: &'a Value,
    ours: &'a Value,
}

struct Rule {
    holds: fn(&Seen<'_>) -> bool,
    reason: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        holds: |seen| {
            let is_review = |group| seen.request.path.contains(group);
            seen.difference.pointer.starts_with("/managed")
                && ["/authentication.k8s.io/", "/authorization.k8s.io/"].into_iter().any(is_review)
        },
        reason: "nobody owns the fields of a review, which is answered and forgotten",
    },
    Rule { holds: refuses_what_is_not_built, reason: "coracle refuses what it has not built" },
    Rule {
        holds: |seen| {
            let pointer = &seen.difference.pointer;
            pointer.starts_with("/body/columnDefinitions/") && pointer.ends_with("/description")
        },
        reason: "columns are described in coracle's own words",
    },
    Rule {
        holds: |seen| {
            let pointer = &seen.difference.pointer;
            pointer.starts_with("/body/items/") && (pointer.ends_with("/apiVersion") || pointer.ends_with("/kind"))
        },
        reason: "items of a list carry their type: lists hand out the stored bytes",
    },
    Rule {
        holds: |seen| {
            let same_code = seen.upstream["code"] == seen.ours["code"];
            seen.request.content_type.contains("patch") && same_code && seen.difference.pointer.ends_with("message")
        },
        reason: "a patch that cannot be applied is explained in coracle's own words",
    },
    Rule {
        holds: |seen| seen.subject.name == "events_event" && seen.upstream["code"] == 422,
        reason: "events of events.k8s.io are held to the rules of the core's events",
    },
    Rule {
        holds: |seen| seen.subject.name == "subject_access_review" && seen.difference.pointer == "/body/status/reason",
        reason: "several bindings allow it, and which of them is named is chance",
    },
    Rule {
        holds: |seen| seen.upstream["code"] == 405 && seen.ours["code"] == 405,
        reason: "what is not allowed is named: the verb and the resource",
    },
    Rule {
        holds: |seen| seen.upstream.to_string().contains("strconv.") && seen.ours["code"] == 400,
        reason: "a malformed number is the client's mistake and explained without the name of Go's parser",
    },
    Rule {
        holds: |seen| {
            seen.upstream.to_string().contains("StorageError: ") && seen.ours["code"] == seen.upstream["code"]
        },
        reason: "there is no etcd to speak of",
    },
    Rule {
        holds: |seen| {
            let of_type = ["/apiVersion", "/kind"].iter().any(|field| seen.request.id.contains(&format!(": {field} ")));
            of_type && seen.request.method == "PATCH"
        },
        reason: "a patch does not change what an object is",
    },
    Rule {
        holds: |seen| seen.request.id.ends_with(": an unknown operation"),
        reason: "an unknown operation makes a JSON patch malformed",
    },
    Rule {
        holds: |seen| {
            let pointer = &seen.difference.pointer;
            pointer.starts_with("/body/schemas/")
                && (pointer.ends_with(".FieldsV1") || pointer.ends_with(".ManagedFieldsEntry"))
        },
        reason: "FieldsV1 is described where it stands",
    },
    Rule {
        holds: |seen| {
            seen.subject.name == "pod"
                && seen.request.id.starts_with("delete ")
                && seen.difference.pointer.starts_with("/body/metadata/")
        },
        reason: "a pod that goes at once is shown as it was",
    },
    Rule {
        holds: |seen| seen.request.id.contains("/metadata with resourceVersion") && seen.ours["code"] == 400,
        reason: "a revision that is none is refused",
    },
    Rule {
        holds: |seen| {
            let code = &seen.upstream["code"];
            seen.difference.pointer == "/warnings" && (code == 415 || code == 406)
        },
        reason: "a kind that is deprecated is so for every request",
    },
    Rule {
        holds: |seen| seen.difference.pointer == "/body/columnDefinitions/9/format" && seen.subject.kind == "Event",
        reason: "the name of an event is its last column, not its first",
    },
    Rule {
        holds: |seen| seen.upstream["code"] == 415 && seen.ours["code"] == 415,
        reason: "what is taken is named in an answer of 415",
    },
    Rule {
        holds: |seen| seen.difference.pointer == "/body/metadata/generation",
        reason: "an empty object is as good as none, so that setting one changes nothing",
    },
    Rule {
        holds: |seen| seen.difference.pointer == "/body/status/evaluationError",
        reason: "selectors of access reviews decide nothing, and are not parsed",
    },
    Rule {
        holds: |seen| seen.upstream.to_string().contains("neither a standard finalizer name"),
        reason: "finalizers of core kinds need no domain in their names",
    },
    Rule {
        holds: |seen| seen.subject.name == "event" && seen.request.id == "create as table",
        reason: "an event needs a name",
    },
    Rule {
        holds: |seen| seen.difference.pointer.starts_with("/body/paths/") && seen.difference.ours.is_null(),
        reason: "the OpenAPI documents leave out watch paths, which are deprecated, and what is not served",
    },
    Rule {
        holds: |seen| {
            let pointer = &seen.difference.pointer;
            let unions = ["AppArmorProfile", "SeccompProfile", "PodSchedulingGroup"];
            pointer.starts_with("/body/schemas/") && unions.iter().any(|name| pointer.ends_with(name))
        },
        reason: "the OpenAPI documents do not mark unions",
    },
    Rule {
        holds: |seen| seen.request.id.contains("discovery") && seen.difference.pointer.contains("resources"),
        reason: "sub-resources that are not served are not listed",
    },
    Rule {
        holds: |seen| seen.subject.name == "pod" && seen.difference.pointer.starts_with("/body/status/conditions/"),
        reason: "a condition that a pod is created with has no time: strategies know no clock",
    },
    Rule {
        holds: |seen| seen.subject.name == "binding" && seen.upstream.to_string().contains("Name parameter"),
        reason: "a pod that cannot have such a name is not found",
    },
    Rule {
        holds: |seen| seen.subject.name == "binding" && seen.request.id.contains("/metadata with namespace"),
        reason: "a Binding is of the namespace that it is sent to",
    },
    Rule {
        holds: |seen| seen.upstream["code"] == 406,
        reason: "who cannot be answered is told after what is wrong with the question",
    },
    Rule {
        holds: |seen| seen.subject.name == "endpoint_slice" && seen.request.id.contains("/addressType "),
        reason: "upstream prints no value for an address type that changes",
    },
    Rule {
        holds: |seen| seen.subject.name == "local_subject_access_review" && seen.request.id.contains("/metadata with "),
        reason: "upstream takes metadata from a LocalSubjectAccessReview before it looks at it",
    },
    Rule {
        holds: |seen| seen.request.id.contains(" huge") && seen.request.content_type.contains("strategic"),
        reason: "upstream cuts numbers of a strategic patch to the width of their field",
    },
    Rule {
        holds: |seen| seen.subject.name == "pod" && seen.request.id.contains("llocat"),
        reason: "what devices and claims were allocated is not checked: there are none",
    },
    Rule {
        holds: |seen| seen.request.id == "list by a bad token" && seen.ours["code"] == seen.upstream["code"],
        reason: "a broken continue token is explained in the words of another parser",
    },
    Rule {
        holds: |seen| seen.subject.name == "service" && seen.request.id == "make full again",
        reason: "a service that exists is said to exist, not to hold an address",
    },
    Rule {
        holds: |seen| seen.subject.name == "service" && seen.request.id.contains("odePort"),
        reason: "dry runs of upstream do not look at node ports",
    },
    Rule {
        holds: |seen| seen.subject.name == "pod" && seen.request.id.contains("extendedResourceClaimStatus"),
        reason: "what devices and claims were allocated is not checked: there are none",
    },
    Rule {
        holds: |seen| seen.request.id.ends_with(": without a revision") && seen.upstream["code"] == 422,
        reason: "an update that needs a revision is refused in the name of the kind",
    },
    Rule {
        holds: |seen| seen.request.id.contains("/metadata/ownerReferences doubled"),
        reason: "of owners that stand twice the warning does not repeat the uids",
    },
    Rule {
        holds: |seen| seen.request.id.contains("stopSignal"),
        reason: "stop signals of containers are served, which upstream has switched off",
    },
    Rule {
        holds: |seen| seen.subject.name == "node" && seen.request.id.contains("with podPreemptionPolicy"),
        reason: "an empty policy is as good as none",
    },
    Rule {
        holds: |seen| seen.subject.kind == "Event" && seen.request.id.starts_with("delete "),
        reason: "a deletion in the foreground or of an owner alone is one for events too",
    },
    Rule {
        holds: |seen| seen.subject.name == "node" && seen.request.id.contains("externalID"),
        reason: "nodes have no warnings",
    },
    Rule {
        holds: |seen| seen.subject.name == "service" && seen.request.id.contains("/spec/ports doubled"),
        reason: "a port that stands twice is said once",
    },
    Rule {
        holds: |seen| {
            seen.request.content_type.contains("strategic") && seen.upstream.to_string().contains("not identical")
        },
        reason: "a patch that cannot be applied is explained in coracle's own words",
    },
    Rule {
        holds: |seen| seen.subject.name == "replication_controller" && seen.upstream["code"] == 422,
        reason: "a ReplicationController without a template lacks the template's containers, and without labels its own",
    },
    Rule {
        holds: |seen| seen.request.id == "list by an unknown field" && seen.ours["code"] == seen.upstream["code"],
        reason: "which fields can be selected by is not listed",
    },
    Rule {
        holds: |seen| seen.difference.pointer == "/warnings" && seen.request.id.contains("with imagePullSecrets"),
        reason: "a secret without a name is warned of on every write",
    },
    Rule { holds: |seen| seen.request.id.ends_with("with overhead"), reason: "an overhead is named where it stands" },
    Rule {
        holds: |seen| seen.subject.name == "node" && seen.request.id.contains("podCIDRs"),
        reason: "a range that is none is no error of the server",
    },
    Rule {
        holds: |seen| seen.subject.name == "service" && seen.request.id == "apply full: a new object",
        reason: "all that is taken already is said at once",
    },
    Rule { holds: names_the_nearest, reason: "coracle says what was probably meant" },
    Rule {
        holds: |seen| seen.subject.name == "binding" && seen.upstream["code"] == 500 && seen.ours["code"] == 422,
        reason: "a Binding without a target is the client's mistake, not the server's",
    },
    Rule {
        holds: |seen| {
            let by_taints =
                seen.difference.pointer.contains("taints") || seen.upstream.to_string().contains(".spec.taints");
            seen.subject.name == "node" && by_taints
        },
        reason: "nodes are tainted by the node lifecycle controller, not at their creation",
    },
    Rule {
        holds: |seen| {
            seen.subject.name == "self_subject_review" && seen.difference.pointer == "/body/metadata/creationTimestamp"
        },
        reason: "a SelfSubjectReview is answered, not created, and has no time of creation",
    },
];

/// The reason for a difference, when one is known.
pub fn reason(
    subject: &Subject,
    request: &Request,
    difference: &Difference,
    upstream: &Value,
    ours: &Value,
) -> Option<&'static str> {
    let seen = Seen { subject, request, difference, upstream, ours };
    RULES.iter().find(|rule| (rule.holds)(&seen)).map(|rule| rule.reason)
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
    fn guesses_are_taken_off() {
        assert_eq!(plain(r#"299 - "unknown field \"a\" (did you mean \"b\"?)""#), r#"299 - "unknown field \"a\"""#);
        assert_eq!(plain(r#"Not found: "x": did you mean the volume "h"?"#), r#"Not found: "x""#);
        assert_eq!(plain("nothing"), "nothing");
    }
}
