//! What upstream answered, one file a kind: a request and its canonical answer on each line.
//!
//! Most requests differ in one place from an earlier one, and so do most answers: each is written as a JSON patch of the
//! nearest of the lines before, when that is shorter.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{Pick, Request};

/// A request, and what upstream answered, in canonical form.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    pub request: Request,
    /// Null where coracle is known to answer otherwise: the request is made for those that follow.
    pub answer: Value,
}

/// How many lines back a patch may refer to.
const WINDOW: usize = 40;
/// What most lines have in common with the line before.
const REPEATED: [&str; 4] = ["method", "path", "type", "accept"];

/// The file of a subject.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../server/tests/goldens")).join(format!("{name}.jsonl"))
}

/// # Errors
/// When the file is not there or damaged.
pub fn read(name: &str) -> Result<Vec<Exchange>> {
    let path = path(name);
    let text = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    decode(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// # Errors
/// When the file cannot be written.
pub fn write(name: &str, exchanges: &[Exchange]) -> Result<()> {
    let path = path(name);
    fs::create_dir_all(path.parent().context("goldens lie in a directory")?)?;
    fs::write(&path, encode(exchanges)).with_context(|| format!("could not write {}", path.display()))
}

/// What is worth keeping: all that changes or reads something, and of the rest what is said for the first time.
pub fn worth_keeping(exchanges: Vec<Exchange>) -> Vec<Exchange> {
    let mut said = BTreeSet::new();
    let keep = |exchange: &Exchange| {
        let is_dry = exchange.request.is_dry() || exchange.request.id.starts_with("create ");
        let mut is_new = false;
        for saying in sayings(exchange) {
            is_new |= said.insert(saying);
        }
        is_new || !is_dry
    };
    exchanges.into_iter().filter(keep).collect()
}

/// The sort of request, and each thing that its answer says, without what it quotes.
fn sayings(exchange: &Exchange) -> Vec<String> {
    let sort = exchange.request.id.split([':', ' ']).next().unwrap_or_default();
    let body = &exchange.answer["body"];
    let causes = body["details"]["causes"].as_array().filter(|causes| !causes.is_empty());
    let texts: Vec<&Value> =
        causes.map_or_else(|| vec![&body["message"]], |causes| causes.iter().map(|cause| &cause["message"]).collect());
    let saying = |text: &&Value| {
        let unquoted: String = text.as_str().unwrap_or_default().split('"').step_by(2).collect();
        let without_field = unquoted.split("Go struct field").next().unwrap_or_default().to_owned();
        format!("{sort} {} {without_field}", exchange.answer["code"])
    };
    texts.iter().map(saying).collect()
}

/// One line for each exchange.
pub fn encode(exchanges: &[Exchange]) -> String {
    let mut out = String::new();
    let (mut bodies, mut answers) = (Vec::new(), Vec::new());
    let mut before: [String; 4] = Default::default();
    for Exchange { request, answer } in exchanges {
        let mut line = Map::from_iter([("id".to_owned(), json!(request.id))]);
        let now = [&request.method, &request.path, &request.content_type, &request.accept];
        for ((name, text), was) in REPEATED.iter().zip(now).zip(&mut before) {
            // What is as in the line before is left out.
            if text != was {
                line.insert((*name).to_owned(), json!(text));
                was.clone_from(text);
            }
        }
        let mut put = |name: &str, text: &str| drop(line.insert(name.to_owned(), json!(text)));
        match &request.pick {
            Some(Pick::Resources(plural)) => put("pickResources", plural),
            Some(Pick::Group(name)) => put("pickGroup", name),
            Some(Pick::Schemas { gvk, plural }) => {
                put("pickSchemas", gvk);
                put("plural", plural);
            }
            None => {}
        }
        if let Some(body) = &request.body {
            line.insert("body".to_owned(), shortest(body, &bodies));
        }
        line.insert("answer".to_owned(), shortest(answer, &answers));
        bodies.push(request.body.clone().unwrap_or_default());
        answers.push(answer.clone());
        out.push_str(&Value::Object(line).to_string());
        out.push('\n');
    }
    out
}

/// `{"is": VALUE}`, or `{"back": LINES, "patch": [...]}`.
fn shortest(value: &Value, before: &[Value]) -> Value {
    let mut best = json!({"is": value});
    let mut length = best.to_string().len();
    // The first lines are the whole objects, and the last ones the likeliest twins.
    let near = (1..=WINDOW.min(before.len())).chain(before.len().saturating_sub(2).max(WINDOW + 1)..=before.len());
    for back in near {
        let like = &before[before.len() - back];
        let patched = json!({"back": back, "patch": json_patch::diff(like, value)});
        let patched_length = patched.to_string().len();
        if patched_length < length {
            (best, length) = (patched, patched_length);
        }
    }
    best
}

/// # Errors
/// When a line is not one that [`encode`] writes.
pub fn decode(text: &str) -> Result<Vec<Exchange>> {
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut before: [String; 4] = Default::default();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line)?;
        for (name, was) in REPEATED.iter().zip(&mut before) {
            if let Some(now) = line[*name].as_str() {
                now.clone_into(was);
            }
        }
        let [method, path, content_type, accept] = before.clone();
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let pick = if line["pickResources"].is_string() {
            Some(Pick::Resources(text("pickResources")))
        } else if line["pickGroup"].is_string() {
            Some(Pick::Group(text("pickGroup")))
        } else if line["pickSchemas"].is_string() {
            Some(Pick::Schemas { gvk: text("pickSchemas"), plural: text("plural") })
        } else {
            None
        };
        let body = line
            .get("body")
            .map(|body| restored(body, &exchanges, |exchange| exchange.request.body.clone().unwrap_or_default()));
        let answer = restored(&line["answer"], &exchanges, |exchange| exchange.answer.clone())?;
        let request = Request { id: text("id"), method, path, content_type, accept, body: body.transpose()?, pick };
        exchanges.push(Exchange { request, answer });
    }
    Ok(exchanges)
}

fn restored(kept: &Value, before: &[Exchange], of: impl Fn(&Exchange) -> Value) -> Result<Value> {
    if let Some(whole) = kept.get("is") {
        return Ok(whole.clone());
    }
    let back = usize::try_from(kept["back"].as_u64().context("neither a value nor a patch")?)?;
    let like = before.len().checked_sub(back).and_then(|at| before.get(at)).context("a patch of no line")?;
    let mut value = of(like);
    let patch: json_patch::Patch = serde_json::from_value(kept["patch"].clone())?;
    json_patch::patch(&mut value, &patch)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let exchange = |id: &str, n: i64, pick: Option<Pick>| Exchange {
            request: Request {
                id: id.to_owned(),
                method: "POST".to_owned(),
                path: "/x?y=z".to_owned(),
                content_type: String::new(),
                accept: "a/b".to_owned(),
                body: (n != 3).then(|| json!({"n": n, "long": "a".repeat(100)})),
                pick,
            },
            answer: json!({"code": 200, "body": {"n": n, "long": "b".repeat(100)}}),
        };
        let schemas = Pick::Schemas { gvk: "g/v/K".to_owned(), plural: "ks".to_owned() };
        let mut all = vec![exchange("a", 1, None), exchange("b", 2, Some(schemas)), exchange("c", 3, None)];
        all.extend((4..30).map(|n| exchange(&n.to_string(), n, Some(Pick::Group("g".to_owned())))));
        let text = encode(&all);
        assert!(text.lines().nth(1).is_some_and(|line| line.contains("patch")), "{text}");
        assert_eq!(decode(&text).expect("readable"), all);
    }
}
