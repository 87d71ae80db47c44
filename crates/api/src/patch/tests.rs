//! Patches of all three kinds, with the meaning of upstream's own cases.

use serde_json::json;

use super::*;
use crate::schema::Schema;

const TABLE: &str = "\
Item
\tname\tany
\tvalue\tany
\tother\tany
\tmergingList\t[]Item\tmerge-key=name patch=merge
\tnonMergingList\t[]Item
\tmergingIntList\t[]int64\tpatch=merge
\tnonMergingIntList\t[]int64
\tmergeItemPtr\tItem\tmerge-key=name patch=merge
\tsimpleMap\t{}string
\treplacingItem\tany\tpatch=replace
\tretainKeysMap\tRetainKeysItem\tpatch=retainKeys
\tretainKeysMergingList\t[]Item\tmerge-key=name patch=merge,retainKeys
RetainKeysItem
\tname\tany
\tvalue\tany
\tother\tany
\tsimpleMap\t{}string
\tmergingIntList\t[]int64\tpatch=merge
\tmergingList\t[]Item\tmerge-key=name patch=merge
\tnonMergingList\t[]Item
";

fn strategic(original: Value, patch: Value) -> Result<Value, Error> {
    let schema = Schema::parse(TABLE).unwrap();
    Patch::parse(Format::Strategic, patch.to_string().as_bytes())?.apply(original, schema.get("Item"))
}

fn check(what: &str, original: Value, patch: Value, expected: Value) {
    assert_eq!(strategic(original, patch), Ok(expected), "{what}");
}

/// Short for a list of items with these names.
fn named(names: &[i32]) -> Value {
    names.iter().map(|name| json!({"name": name})).collect()
}

#[test]
fn objects_are_merged_member_by_member() {
    check("add", json!({"name": 1}), json!({"value": 2}), json!({"name": 1, "value": 2}));
    check("change", json!({"name": 1, "value": 1}), json!({"value": 2}), json!({"name": 1, "value": 2}));
    check("null deletes", json!({"name": 1, "value": 1}), json!({"value": null}), json!({"name": 1}));
    check("null of nothing", json!({"name": 1}), json!({"value": null}), json!({"name": 1}));
    check(
        "null in what is new",
        json!({}),
        json!({"simpleMap": {"a": null, "b": "c"}}),
        json!({"simpleMap": {"b": "c"}}),
    );
    check(
        "map",
        json!({"simpleMap": {"a": "1", "b": "2"}}),
        json!({"simpleMap": {"b": null, "c": "3"}}),
        json!({"simpleMap": {"a": "1", "c": "3"}}),
    );
    check("other type", json!({"value": {"a": 1}}), json!({"value": [1]}), json!({"value": [1]}));
    check(
        "replace strategy",
        json!({"replacingItem": {"a": 1}, "name": 1}),
        json!({"replacingItem": {"b": 2}}),
        json!({"replacingItem": {"b": 2}, "name": 1}),
    );
    check(
        "unknown fields as RFC 7386 has it",
        json!({"new": {"a": 1, "b": [1]}}),
        json!({"new": {"b": [2], "c": 3}}),
        json!({"new": {"a": 1, "b": [2], "c": 3}}),
    );
}

#[test]
fn directives_replace_and_delete_objects() {
    check(
        "replace",
        json!({"simpleMap": {"a": "1"}, "name": 1}),
        json!({"simpleMap": {"$patch": "replace", "b": "2"}}),
        json!({"simpleMap": {"b": "2"}, "name": 1}),
    );
    check("replace all", json!({"name": 1, "value": 1}), json!({"$patch": "replace", "name": 2}), json!({"name": 2}));
    check(
        "delete",
        json!({"mergeItemPtr": {"name": 1}, "name": 1}),
        json!({"mergeItemPtr": {"$patch": "delete"}}),
        json!({"mergeItemPtr": {}, "name": 1}),
    );
    check("delete nothing", json!({"name": 1}), json!({"simpleMap": {"$patch": "delete"}}), json!({"name": 1}));
    assert_eq!(
        strategic(json!({"simpleMap": {"a": "1"}}), json!({"simpleMap": {"$patch": "mend", "b": "2"}})),
        Err(Error::Unprocessable("unknown patch type: mend in map: map[$patch:mend b:2]".to_owned()))
    );
}

#[test]
fn lists_without_a_strategy_are_replaced() {
    check(
        "objects",
        json!({"nonMergingList": named(&[1, 2])}),
        json!({"nonMergingList": [{"name": 1, "value": 1}]}),
        json!({"nonMergingList": [{"name": 1, "value": 1}]}),
    );
    check(
        "scalars",
        json!({"nonMergingIntList": [1, 2]}),
        json!({"nonMergingIntList": [3]}),
        json!({"nonMergingIntList": [3]}),
    );
    check(
        "empty",
        json!({"nonMergingIntList": [1, 2]}),
        json!({"nonMergingIntList": []}),
        json!({"nonMergingIntList": []}),
    );
}

#[test]
fn lists_of_objects_are_merged_by_key() {
    let two = || json!({"mergingList": [{"name": 1, "other": "a"}, {"name": 2, "value": 2}]});
    check(
        "change one, add one",
        two(),
        json!({"mergingList": [{"name": 1, "value": 1}, {"name": 3, "value": 3}]}),
        json!({"mergingList": [{"name": 1, "other": "a", "value": 1}, {"name": 3, "value": 3}, {"name": 2, "value": 2}]}),
    );
    check(
        "delete one",
        two(),
        json!({"mergingList": [{"$patch": "delete", "name": 1}]}),
        json!({"mergingList": [{"name": 2, "value": 2}]}),
    );
    check("delete none", two(), json!({"mergingList": [{"$patch": "delete", "name": 9}]}), two());
    check(
        "replace all",
        two(),
        json!({"mergingList": [{"$patch": "replace"}, {"name": 4}]}),
        json!({"mergingList": [{"name": 4}]}),
    );
    check("replace by nothing", two(), json!({"mergingList": [{"$patch": "replace"}]}), json!({"mergingList": []}));
    check(
        "delete a member of one",
        two(),
        json!({"mergingList": [{"name": 2, "value": null}]}),
        json!({"mergingList": [{"name": 1, "other": "a"}, {"name": 2}]}),
    );
    check(
        "a new list keeps no directives",
        json!({}),
        json!({"mergingList": [{"name": 1, "value": null}, {"$patch": "delete", "name": 2}]}),
        json!({"mergingList": [{"name": 1}]}),
    );
    check(
        "an empty one",
        json!({"mergingList": named(&[1])}),
        json!({"mergingList": []}),
        json!({"mergingList": named(&[1])}),
    );
    check(
        "nested",
        json!({"mergingList": [{"name": 1, "mergingList": [{"name": 1}, {"name": 2, "value": 2}]}, {"name": 2}]}),
        json!({"mergingList": [{"name": 1, "mergingList": [{"name": 1, "value": 1}]}]}),
        json!({"mergingList": [{"name": 1, "mergingList": [{"name": 1, "value": 1}, {"name": 2, "value": 2}]}, {"name": 2}]}),
    );
    check(
        "below a plain object",
        json!({"mergeItemPtr": {"mergingList": [{"name": 1, "other": "a"}]}}),
        json!({"mergeItemPtr": {"mergingList": [{"name": 1, "value": 1}]}}),
        json!({"mergeItemPtr": {"mergingList": [{"name": 1, "other": "a", "value": 1}]}}),
    );
}

#[test]
fn lists_of_scalars_are_merged_as_sets() {
    let list = |list: Value| json!({"mergingIntList": list});
    check("add", list(json!([1, 2])), list(json!([2, 3])), list(json!([1, 2, 3])));
    check(
        "delete",
        list(json!([1, 2, 1, 3])),
        json!({"$deleteFromPrimitiveList/mergingIntList": [1, 9]}),
        list(json!([2, 3])),
    );
    check(
        "delete and add",
        list(json!([1, 2, 3])),
        json!({"$deleteFromPrimitiveList/mergingIntList": [1], "mergingIntList": [4]}),
        list(json!([4, 2, 3])),
    );
    check(
        "delete from a list without a strategy",
        json!({"nonMergingIntList": [1, 2, 3]}),
        json!({"$deleteFromPrimitiveList/nonMergingIntList": [1, 3]}),
        json!({"nonMergingIntList": [2]}),
    );
    check("delete from nothing", json!({}), json!({"$deleteFromPrimitiveList/mergingIntList": [1]}), json!({}));
    check(
        "from an empty list",
        list(json!([])),
        json!({"$deleteFromPrimitiveList/mergingIntList": [1]}),
        list(json!([])),
    );
}

#[test]
fn element_order_is_kept_as_asked() {
    let list = |names: &[i32]| json!({"mergingList": named(names)});
    let order = |names: &[i32], change: &[i32]| {
        let mut patch = json!({"$setElementOrder/mergingList": named(names)});
        if !change.is_empty() {
            patch["mergingList"] = named(change);
        }
        patch
    };
    check("reorder", list(&[1, 2, 3]), order(&[3, 1, 2], &[]), list(&[3, 1, 2]));
    check("add in the middle", list(&[1, 3]), order(&[1, 2, 3], &[2]), list(&[1, 2, 3]));
    check("server-only items stay in place", list(&[1, 9, 2, 8]), order(&[1, 2], &[]), list(&[1, 9, 2, 8]));
    check("server-only items around a swap", list(&[1, 2, 9]), order(&[2, 1], &[]), list(&[2, 1, 9]));
    check("a new list", json!({}), order(&[1, 2], &[1, 2]), list(&[1, 2]));
    check("no list at all", json!({"name": 1}), order(&[1], &[]), json!({"name": 1}));
    let mut delete = order(&[1, 3], &[]);
    delete["mergingList"] = json!([{"$patch": "delete", "name": 2}]);
    check("delete", list(&[1, 2, 3]), delete, list(&[1, 3]));
    let ints = |list: Value| json!({"mergingIntList": list});
    check(
        "ints",
        ints(json!([1, 2, 3])),
        json!({"$setElementOrder/mergingIntList": [3, 1, 2]}),
        ints(json!([3, 1, 2])),
    );
    check(
        "ints, added and deleted",
        ints(json!([1, 2, 3])),
        json!({
            "$setElementOrder/mergingIntList": [4, 3, 2],
            "$deleteFromPrimitiveList/mergingIntList": [1],
            "mergingIntList": [4],
        }),
        ints(json!([4, 3, 2])),
    );
}

#[test]
fn retain_keys_clears_the_rest() {
    check(
        "clear",
        json!({"retainKeysMap": {"name": "foo", "value": 1, "other": "default"}}),
        json!({"retainKeysMap": {"$retainKeys": ["name", "value"], "value": 2}}),
        json!({"retainKeysMap": {"name": "foo", "value": 2}}),
    );
    check(
        "clear with a null",
        json!({"retainKeysMap": {"name": "foo", "value": 1}}),
        json!({"retainKeysMap": {"$retainKeys": ["name"], "value": null}}),
        json!({"retainKeysMap": {"name": "foo"}}),
    );
    check(
        "lists below",
        json!({"retainKeysMap": {"name": "foo", "mergingIntList": [1, 2], "other": 1}}),
        json!({"retainKeysMap": {
            "$retainKeys": ["name", "mergingIntList"],
            "$setElementOrder/mergingIntList": [1, 2, 3],
            "mergingIntList": [3],
        }}),
        json!({"retainKeysMap": {"name": "foo", "mergingIntList": [1, 2, 3]}}),
    );
    check(
        "items",
        json!({"retainKeysMergingList": [{"name": "a", "value": 1, "other": 1}, {"name": "b", "other": 2}]}),
        json!({"retainKeysMergingList": [{"$retainKeys": ["name", "other"], "name": "a"}]}),
        json!({"retainKeysMergingList": [{"name": "a", "other": 1}, {"name": "b", "other": 2}]}),
    );
}

#[test]
fn patches_that_do_not_fit_are_refused() {
    let list = || json!({"mergingList": named(&[1, 2])});
    let bad = |message: &str| Err(Error::BadRequest(message.to_owned()));
    let unfit = |message: &str| Err(Error::Unprocessable(message.to_owned()));
    for (original, patch, error) in [
        (
            list(),
            json!({"mergingList": [{"value": 1}]}),
            unfit("map: map[value:1] does not contain declared merge key: name"),
        ),
        (
            list(),
            json!({"mergingList": [{"$patch": "delete"}]}),
            unfit("map: map[$patch:delete] does not contain declared merge key: name"),
        ),
        (
            list(),
            json!({"mergingList": [{"$patch": "merge"}]}),
            unfit("merging lists cannot yet be specified in the patch"),
        ),
        (
            list(),
            json!({"mergingList": [1]}),
            unfit("list element types are not identical: [[map[name:1] map[name:2]] [1]]"),
        ),
        (list(), json!({"mergingList": [[]]}), unfit("lists of lists are not supported")),
        (
            list(),
            json!({"$setElementOrder/mergingList": named(&[2]), "mergingList": named(&[3])}),
            unfit("The order in patch list:\n[map[name:3]]\n doesn't match $setElementOrder list:\n[map[name:2]]\n"),
        ),
        (list(), json!({"$setElementOrder": []}), bad("invalid patch format of setElementOrder list")),
        (list(), json!({"$setElementOrder/mergingList": 1}), unfit("expected a []interface {}, but received a int64")),
        (list(), json!({"$deleteFromPrimitiveList/mergingIntList": 1}), bad("invalid patch format of primitive list")),
        (list(), json!({"$retainKeys": ["mergingList"], "name": 1}), bad("invalid patch format of retainKeys")),
        (list(), json!({"$retainKeys": "name"}), bad("invalid patch format of retainKeys")),
        (list(), json!([]), bad("json: cannot unmarshal array into Go value of type map[string]interface {}")),
    ] {
        assert_eq!(strategic(original, patch.clone()), error, "{patch}");
    }
    let patch = Patch::parse(Format::Strategic, b"{}").unwrap();
    assert_eq!(patch.apply(json!({}), None), Err(Error::NoSchema));
}

#[test]
fn applying_a_patch_again_changes_nothing() {
    let original = json!({"name": 1, "mergingList": [{"name": 1, "other": 1}, {"name": 2}], "mergingIntList": [1, 2]});
    for patch in [
        json!({"mergingList": [{"name": 3}, {"name": 2, "value": 1}]}),
        json!({"$setElementOrder/mergingList": named(&[2, 1, 3]), "mergingList": [{"name": 3}]}),
        json!({"mergingIntList": [3, 1], "name": null}),
        json!({"mergingList": [{"$patch": "delete", "name": 1}], "simpleMap": {"a": "b"}}),
    ] {
        let once = strategic(original.clone(), patch.clone()).unwrap();
        assert_eq!(strategic(once.clone(), patch), Ok(once));
    }
}

fn json_patch(original: Value, patch: &Value) -> Result<Value, Error> {
    Patch::parse(Format::Json, patch.to_string().as_bytes())?.apply(original, None)
}

#[test]
fn json_patches_follow_rfc_6902() {
    let patched = json_patch(
        json!({"a": [1, 2], "b/c": "d", "e": {"f": 1}}),
        &json!([
            {"op": "test", "path": "/a/0", "value": 1},
            {"op": "add", "path": "/a/1", "value": 9},
            {"op": "add", "path": "/a/-", "value": 3},
            {"op": "replace", "path": "/b~1c", "value": null},
            {"op": "move", "from": "/e/f", "path": "/g"},
            {"op": "copy", "from": "/a", "path": "/h"},
            {"op": "remove", "path": "/e"},
        ]),
    );
    assert_eq!(patched, Ok(json!({"a": [1, 9, 2, 3], "b/c": null, "g": 1, "h": [1, 9, 2, 3]})));
    for (operation, error) in [
        (
            json!({"op": "test", "path": "/a", "value": 2}),
            "operation 0 of the patch failed at \"/a\": value did not match",
        ),
        (json!({"op": "remove", "path": "/b"}), "operation 0 of the patch failed at \"/b\": path is invalid"),
        (
            json!({"op": "replace", "path": "/b", "value": 1}),
            "operation 0 of the patch failed at \"/b\": path is invalid",
        ),
        (
            json!({"op": "copy", "from": "/b", "path": "/c"}),
            "operation 0 of the patch failed at \"/c\": \"from\" path is invalid",
        ),
    ] {
        assert_eq!(json_patch(json!({"a": 1}), &json!([operation])), Err(Error::Unprocessable(error.to_owned())));
    }
}

#[test]
fn json_patches_are_limited() {
    let operation = json!({"op": "test", "path": "", "value": {}});
    let many = |count| Value::Array(vec![operation.clone(); count]);
    assert_eq!(json_patch(json!({}), &many(10_000)), Ok(json!({})));
    let message = "The allowed maximum operations in a JSON patch is 10000, got 10001";
    assert_eq!(json_patch(json!({}), &many(10_001)), Err(Error::TooLarge(message.to_owned())));

    let double = json!({"op": "copy", "from": "/a", "path": "/a/-"});
    let error = json_patch(json!({"a": ["y"]}), &Value::Array(vec![double; 64])).unwrap_err().to_string();
    assert!(error.starts_with("Unable to complete the copy, the accumulated size increase of copy is "), "{error}");

    let deeper = |at: usize| json!({"op": "add", "path": "/a".repeat(at + 1), "value": {}});
    let deep: Value = (0..130).map(deeper).collect();
    let error = json_patch(json!({}), &deep).unwrap_err().to_string();
    assert_eq!(error, "the patched object nests more than 120 levels deep");
}

#[test]
fn malformed_patches_are_bad_requests() {
    for (format, body, message) in [
        (
            Format::Json,
            "{}",
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
        ),
        (
            Format::Json,
            "[{\"op\": \"mend\", \"path\": \"/a\"}]",
            "error decoding patch: operation 0: unknown variant `mend`",
        ),
        (
            Format::Json,
            "[{\"op\": \"add\", \"path\": \"/a\"}]",
            "error decoding patch: operation 0: missing field `value`",
        ),
        (Format::Json, "[{\"op\": \"remove\", \"path\": \"a\"}]", "error decoding patch: operation 0: "),
        (
            Format::Merge,
            "[]",
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (Format::Merge, "{", "error decoding patch: EOF while parsing an object"),
    ] {
        let error = Patch::parse(format, body.as_bytes()).unwrap_err();
        assert!(matches!(error, Error::BadRequest(_)), "{error:?}");
        assert!(error.to_string().starts_with(message), "{error}");
    }
}

#[test]
fn merge_patches_follow_rfc_7386() {
    for (original, patch, expected) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ] {
        let merged = Patch::parse(Format::Merge, patch.to_string().as_bytes()).unwrap().apply(original, None);
        assert_eq!(merged, Ok(expected), "{patch}");
    }
}

#[test]
fn strict_validation_sees_the_patch_itself() {
    let strict = |format, body: &str| Patch::parse(format, body.as_bytes()).unwrap().strict().join(", ");
    assert_eq!(strict(Format::Merge, r#"{"spec": {"a": 1, "a": 2}}"#), "duplicate field \"spec.a\"");
    assert_eq!(
        strict(Format::Json, r#"[{"op": "remove", "path": "/a", "path": "/b", "note": 1}]"#),
        "json patch duplicate field \"[0].path\", json patch unknown field \"[0].note\""
    );
}
