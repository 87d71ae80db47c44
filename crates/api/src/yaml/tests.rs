//! Documents read as Go reads them.

use serde_json::json;

use super::*;

#[test]
fn scalars_are_read_as_go_reads_them() {
    for (text, value) in [
        ("text", json!("text")),
        ("y", json!(true)),
        ("Yes", json!(true)),
        ("on", json!(true)),
        ("oN", json!("oN")),
        ("yEs", json!("yEs")),
        ("n", json!(false)),
        ("OFF", json!(false)),
        ("~", Value::Null),
        ("Null", Value::Null),
        ("nULL", json!("nULL")),
        ("5", json!(5)),
        ("+5", json!(5)),
        ("-5", json!(-5)),
        ("0644", json!(420)),
        ("0o644", json!(420)),
        ("-0644", json!(-420)),
        ("0x1F", json!(31)),
        ("0b101", json!(5)),
        ("0899", json!(899)),
        ("1_000", json!(1000)),
        ("1__0", json!(10)),
        ("18446744073709551615", json!(18_446_744_073_709_551_615_u64)),
        ("1.5", json!(1.5)),
        (".5", json!(0.5)),
        ("1.", json!(1)),
        ("1e3", json!(1000)),
        ("1.5e-3", json!(0.0015)),
        ("1e", json!("1e")),
        ("0x", json!("0x")),
        ("--5", json!("--5")),
        ("+-5", json!("+-5")),
        ("1.2.3", json!("1.2.3")),
        ("100m", json!("100m")),
        ("1Gi", json!("1Gi")),
        ("12:30:45", json!("12:30:45")),
        ("2026-11-23", json!("2026-11-23")),
        ("2026-11-23T12:00:00Z", json!("2026-11-23T12:00:00Z")),
        ("\"5\"", json!("5")),
        ("'yes'", json!("yes")),
        ("''", json!("")),
        ("!!str 5", json!("5")),
        ("!!int \"5\"", json!(5)),
        ("!!float 5", json!(5)),
        ("!!binary aGVsbG8=", json!("hello")),
        ("|\n  a\n  b\n", json!("a\nb\n")),
        (">-\n  a\n  b\n", json!("a b")),
    ] {
        assert_eq!(parse(&format!("a: {text}")), Ok(json!({"a": value})), "{text}");
    }
}

#[test]
fn keys_become_texts() {
    let text = "on: 1\n0644: 2\n1.5: 3\n\"5\": 4\n? x\n: 5\n";
    assert_eq!(parse(text), Ok(json!({"true": 1, "420": 2, "1.5": 3, "5": 4, "x": 5})));
}

#[test]
fn documents_are_separated() {
    let text = "# nothing\n---\na: 1\n---\n\n---\n# b\n\nb: 2\n...\n---\n[c]\n";
    let documents = parse_all(text).unwrap();
    let found: Vec<_> = documents.iter().map(|document| (document.line, document.value.clone())).collect();
    assert_eq!(found, [(3, json!({"a": 1})), (9, json!({"b": 2})), (12, json!(["c"]))]);
    assert_eq!(parse_all(""), Ok(Vec::new()));
    assert_eq!(
        parse("a: 1\n---\nb: 2\n").unwrap_err().to_string(),
        "line 3, column 1: a second document begins here, but one is expected"
    );
    assert_eq!(parse("{\"a\": [1, {\"b\": null}]}"), Ok(json!({"a": [1, {"b": null}]})));
}

#[test]
fn aliases_and_merges() {
    let text = "
base: &base {a: 1, b: [2]}
other: &other {a: 9, c: 3}
copy: *base
one:
  <<: *base
  a: 4
late:
  a: 5
  <<: *base
many:
  <<: [*base, *other]
quoted:
  \"<<\": 1
";
    let value = parse(text).unwrap();
    assert_eq!(value["copy"], json!({"a": 1, "b": [2]}));
    assert_eq!(value["one"], json!({"a": 4, "b": [2]}));
    assert_eq!(value["late"], json!({"a": 5, "b": [2]}));
    assert_eq!(value["many"], json!({"a": 1, "b": [2], "c": 3}));
    assert_eq!(value["quoted"], json!({"<<": 1}));
}

#[test]
fn errors_name_their_place() {
    for (text, message) in [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: key \"a\" is already set in this mapping"),
        ("a:\n  on: 1\n  yes: 2\n", "line 3, column 3: key \"true\" is already set in this mapping"),
        ("a: .inf\n", "line 1, column 4: .inf has no place in JSON; quote it if it is a text"),
        ("a: !!int x\n", "line 1, column 10: cannot decode `x` as a !!int"),
        ("a: !!binary \"%\"\n", "line 1, column 13: !!binary value contains invalid base64 data, or no text"),
        ("~: 1\n", "line 1, column 1: a key is missing, or is null; quote it if it is a text"),
        ("? [a]\n: 1\n", "line 1, column 5: a key must be a text, a number or a boolean"),
        ("a:\n  <<: 1\n", "line 2, column 7: map merge requires map or sequence of maps as the value"),
        ("a: &a [*a]\n", "line 1, column 8: an anchor contains itself"),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
    }
    for (text, line) in [("a: b: c\n", 1), ("a:\n\t- b\n", 2), ("a: [1\nb: 2\n", 2), ("a: *b\n", 1), ("a: \"b\n", 1)] {
        let error = parse(text).unwrap_err();
        assert_eq!((error.line, error.message.is_empty()), (line, false), "{text}: {error}");
    }
}

#[test]
fn hostile_texts_are_refused_quickly() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for at in 1..9 {
        let aliases = vec![format!("*a{}", at - 1); 10].join(", ");
        bomb.push_str(&format!("a{at}: &a{at} [{aliases}]\n"));
    }
    assert!(parse(&bomb).unwrap_err().message.contains("aliases add more than 100000 values"));
    for deep in ["[".repeat(10_000), "{a: ".repeat(10_000), "- ".repeat(10_000)] {
        assert!(parse(&deep).is_err());
    }
    assert!(parse(&format!("{}1{}", "[".repeat(100), "]".repeat(100))).is_ok());
    let mut deep = "a0: &a0 [1]\n".to_owned();
    for at in 1..200 {
        deep.push_str(&format!("a{at}: &a{at} [*a{}]\n", at - 1));
    }
    assert!(parse(&deep).unwrap_err().message.contains("nested more than 120 levels deep"));
}

#[test]
fn fields_are_located() {
    let text =
        "kind: A\n---\nkind: B\nspec:\n  containers:\n  - name: a\n    imagePullPolice: Always\n  - {name: b, x: 1}\n";
    let begins = parse_all(text).unwrap()[1].line;
    for (path, place) in [
        ("kind", Some((3, 1))),
        ("spec.containers[0].imagePullPolice", Some((7, 5))),
        ("spec.containers[1]", Some((8, 5))),
        ("spec.containers[1].x", Some((8, 15))),
        ("spec.volumes", None),
    ] {
        assert_eq!(locate(text, begins, path), place, "{path}");
    }
}

#[test]
fn writes_what_kubectl_writes() {
    let value = json!({
        "apiVersion": "v1",
        "data": {"empty": "", "lines": "a\n  b\n", "no end": "a\nb", "more": "a\n\n", "space": " a\nb", "tab": "a\tb"},
        "items": [{"a": 1, "b": [1, [2, 3], {}]}, [], "x", null],
        "nothing": {},
        "texts": ["yes", "0644", "1e3", "12:30", "2026-11-23", "~", "a: b", "a #b", "- a", "-a", "it's", "#", "a'b", "*", "null", "{", "a:", "@b", "é\u{a0}"],
    });
    let expected = r#"apiVersion: v1
data:
  empty: ""
  lines: |
    a
      b
  more: |+
    a

  no end: |-
    a
    b
  space: " a\nb"
  tab: "a\tb"
items:
- a: 1
  b:
  - 1
  - - 2
    - 3
  - {}
- []
- x
- null
nothing: {}
texts:
- "yes"
- "0644"
- "1e3"
- "12:30"
- "2026-11-23"
- "~"
- 'a: b'
- 'a #b'
- '- a'
- -a
- it's
- '#'
- a'b
- '*'
- "null"
- '{'
- 'a:'
- '@b'
- "é\u00a0"
"#;
    assert_eq!(to_string(&value), expected);
    assert_eq!(parse(expected), Ok(value));
}

/// Every text survives a round trip, as a value, as a key and as an item.
#[test]
fn any_text_comes_back() {
    let parts = [
        "", " ", "a", "-", "?", ":", ",", "[", "]", "{", "}", "#", "&", "*", "!", "|", ">", "'", "\"", "%", "@", "`",
        "\\", "\n", "\t", "\r", "0", "1", "_", ".", "e", "y", "no", "~", "<<", "=", "é", "\u{85}", "\u{feff}",
        "\u{2028}", "😀", "\u{0}", "\u{7f}", "---", "...",
    ];
    for a in parts {
        for b in parts {
            for c in ["", "a", " ", "\n"] {
                let text = format!("{a}{b}{c}");
                let value = json!({"v": text, "k": {text.clone(): 1}, "l": [text, [text, 1]]});
                let written = to_string(&value);
                assert_eq!(parse(&written), Ok(value), "{written}");
            }
        }
    }
}

#[test]
fn scalars_at_the_top() {
    for value in [json!(null), json!(1), json!("a"), json!("a\nb\n"), json!([]), json!({}), json!([[1], {"a": [2]}])] {
        assert_eq!(parse(&to_string(&value)), Ok(value));
    }
}
