//! Selectors: grammar, matching and messages.

use serde_json::json;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn parses_and_writes_the_canonical_form() {
    for (text, written) in [
        ("", ""),
        ("x=a,y=b,z=c", "x=a,y=b,z=c"),
        ("x!=a,y=b", "x!=a,y=b"),
        ("x=,z= ", "x=,z="),
        ("!x", "!x"),
        ("! x", "!x"),
        ("x>1,z<5", "x>1,z<5"),
        ("b==c,a", "a,b==c"),
        ("x in (b, a ,b)", "x in (a,b)"),
        ("x in (foo,,baz),y,z notin ()", "x in (,baz,foo),y,z notin ()"),
        ("x in (,)", "x in ()"),
        ("x in (a,)", "x in (,a)"),
        ("x in(a)", "x in (a)"),
        ("notin=in", "notin=in"),
        ("in in (in)", "in in (in)"),
        ("example.com/a-b=c", "example.com/a-b=c"),
    ] {
        let selector = Selector::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(selector.to_string(), written, "{text}");
        assert_eq!(Selector::parse(written).unwrap().to_string(), written, "{text}");
    }
}

#[test]
fn says_what_it_cannot_read() {
    for (text, message) in [
        ("x=a(y=b", "found '(', expected: ',' or 'end of string'"),
        ("x==a==b", "found '==', expected: ',' or 'end of string'"),
        ("!x=a", "found '=', expected: ',' or 'end of string'"),
        (",", "found ',', expected: !, identifier, or 'end of string'"),
        ("x,", "found '', expected: identifier after ','"),
        ("x y", "unable to parse requirement: found 'y', expected: in, notin, =, ==, !=, gt, lt"),
        ("x in a", "unable to parse requirement: found 'a' expected: '('"),
        ("x in (a b)", "unable to parse requirement: found 'b', expected: ',' or ')'"),
        ("x in (=)", "unable to parse requirement: found '=', expected: ',', ')' or identifier"),
        ("x=(", "unable to parse requirement: found '(', expected: identifier"),
        (
            "x<a",
            "unable to parse requirement: values[0]: Invalid value: \"a\": for 'Gt', 'Lt' operators, the value must be an \
             integer",
        ),
        (
            "-x=a",
            "unable to parse requirement: <nil>: Invalid value: \"-x\": name part must consist of alphanumeric characters, \
             '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
             '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        ),
        (
            "x=-",
            "unable to parse requirement: values[0][x]: Invalid value: \"-\": a valid label must be an empty string or \
             consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
             'MyValue',  or 'my_value',  or '12345', regex used for validation is \
             '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
        ),
    ] {
        assert_eq!(Selector::parse(text).map(|s| s.to_string()).unwrap_err().to_string(), message, "{text}");
    }
}

#[test]
fn matches_labels() {
    for (text, set, expected) in [
        ("", &[("x", "y")][..], true),
        ("x=y,z=w", &[("x", "y"), ("z", "w")], true),
        ("x!=y,z!=w", &[("x", "z"), ("z", "a")], true),
        ("notin=in", &[("notin", "in")], true),
        ("x", &[("x", "z")], true),
        ("!x", &[("y", "z")], true),
        ("x>1", &[("x", "2")], true),
        ("x<1", &[("x", "0")], true),
        ("x>1", &[("x", "two")], false),
        ("x>1", &[], false),
        ("x=z", &[], false),
        ("x!=z", &[], true),
        ("x notin (a,b)", &[], true),
        ("x in (a,b)", &[("x", "b")], true),
        ("x in (a,b)", &[("x", "c")], false),
        ("x=y", &[("x", "z")], false),
        ("x", &[("y", "z")], false),
        ("!x", &[("x", "z")], false),
        ("x=", &[("x", "")], true),
    ] {
        assert_eq!(Selector::parse(text).unwrap().matches(&labels(set)), expected, "{text} {set:?}");
    }
}

#[test]
fn reads_label_selectors() {
    let read = |value| Selector::from_json(&value).map(|selector| selector.to_string());
    assert_eq!(
        read(json!({
            "matchLabels": {"b": "c"},
            "matchExpressions": [
                {"key": "a", "operator": "In", "values": ["y", "x"]},
                {"key": "d", "operator": "Exists"},
                {"key": "e", "operator": "DoesNotExist"},
                {"key": "f", "operator": "NotIn", "values": ["z"]},
            ]
        }))
        .unwrap(),
        "a in (x,y),b=c,d,!e,f notin (z)"
    );
    assert!(Selector::from_json(&Value::Null).unwrap().is_nothing());
    assert!(Selector::from_json(&json!({})).unwrap().is_empty());
    assert!(!Selector::nothing().matches(&BTreeMap::new()));
    let unknown = json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]});
    assert_eq!(read(unknown).unwrap_err().to_string(), "\"Gt\" is not a valid label selector operator");
}

#[test]
fn finds_exact_values() {
    let selector = Selector::parse("a=b,c in (d),e in (f,g),!h").unwrap();
    assert_eq!((selector.exact("a"), selector.exact("c")), (Some("b"), Some("d")));
    assert_eq!((selector.exact("e"), selector.exact("h"), selector.exact("i")), (None, None, None));
}

#[test]
fn validates_label_selectors() {
    let selector = json!({
        "matchLabels": {"a b": "-"},
        "matchExpressions": [
            {"key": "a", "operator": "In"},
            {"key": "a", "operator": "Exists", "values": ["b"]},
            {"key": "a", "operator": "Like", "values": ["-"]},
        ]
    });
    let errors = validate_label_selector(&selector, &Path::new("spec").child("selector"));
    let expected = [
        "spec.selector.matchLabels: Invalid value: \"a b\": name part must consist of",
        "spec.selector.matchLabels: Invalid value: \"-\": a valid label must be",
        "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
        "spec.selector.matchExpressions[1].values: Forbidden: may not be specified when `operator` is 'Exists' or",
        "spec.selector.matchExpressions[2].operator: Invalid value: \"Like\": not a valid selector operator",
        "spec.selector.matchExpressions[2].values[0]: Invalid value: \"-\": a valid label must be",
    ];
    assert_eq!(errors.len(), expected.len());
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
