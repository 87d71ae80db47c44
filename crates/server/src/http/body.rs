//! Request bodies: read within limits, parsed from JSON or YAML, checked against the kind's schema.
//!
//! Source: apiserver `pkg/endpoints/handlers/{rest,create}.go`, apimachinery `pkg/runtime/serializer/json/json.go`.

use std::borrow::Cow;

use api::json;
use api::schema::{Shape, Strict, Type};
use api::status::Status;
use api::yaml;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use super::protobuf;
use crate::admit::Warnings;
use crate::path::Query;

/// Upstream's limit of request bodies.
pub const MAX_BODY: usize = 3 * 1024 * 1024;

/// What happens to fields that the schema does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    /// # Errors
    /// 422 for a value that is none of the three.
    pub fn parse(query: &Query, options: &str) -> Result<Self, Status> {
        match query.get("fieldValidation").unwrap_or_default() {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => {
                let path = api::field::Path::new("fieldValidation");
                let error = api::field::Error::not_supported(&path, other, &["", "Ignore", "Strict", "Warn"]);
                Err(Status::invalid("meta.k8s.io", options, "", &[error]))
            }
        }
    }
}

/// Reads the whole body.
///
/// # Errors
/// 413 when it is too large, 400 when the client breaks off.
pub async fn read<B>(body: B) -> Result<Bytes, Status>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large(format!("limit is {MAX_BODY}"))),
        Err(error) => Err(Status::bad_request(format!("the request's body could not be read: {error}"))),
    }
}

/// A parsed body.
pub struct Parsed<'a> {
    pub value: Value,
    pub text: Text<'a>,
}

/// What strict field validation can learn from the text of a body.
pub enum Text<'a> {
    Json {
        text: &'a [u8],
        repeats: bool,
    },
    /// The keys that stand twice.
    Yaml(Vec<String>),
    /// Nothing.
    Unknown,
}

impl Text<'_> {
    /// What is wrong with the text, in upstream's order; `unknown` is what is wrong with its value.
    ///
    /// Upstream makes JSON of YAML, ordered by name, before it looks at the fields.
    fn problems(&self, schema: Option<Type<'_>>, unknown: Vec<Strict>) -> Vec<Strict> {
        match self {
            Self::Json { text, repeats } if *repeats || !unknown.is_empty() => {
                json::strict(text, schema.map_or(json::Of::Anything, |of| json::Of::Shape(Shape::Object(of))))
            }
            Self::Yaml(repeated) if !repeated.is_empty() => {
                let mut problems = vec![Strict::Yaml(repeated.clone())];
                problems.extend(unknown);
                problems
            }
            Self::Json { .. } | Self::Yaml(_) | Self::Unknown => unknown,
        }
    }
}

/// Parses a body by its media type.
///
/// # Errors
/// 415 for other media types than JSON, YAML and, with a type, protobuf; 400 for a body that is not what it says.
pub fn parse<'a>(media_type: &str, body: &'a [u8], schema: Option<Type<'_>>) -> Result<Parsed<'a>, Status> {
    match media_type {
        "application/json" => {
            let json::Parsed { value, repeats } = json::parse(body).map_err(|error| {
                Status::bad_request(format!(
                    "the object provided is unrecognized: couldn't get version/kind; json parse error: {error}"
                ))
            })?;
            Ok(Parsed { value, text: Text::Json { text: body, repeats } })
        }
        "application/yaml" => {
            let bad = |why: &dyn std::fmt::Display| {
                Status::bad_request(format!("error converting YAML to JSON: yaml: {why}"))
            };
            let text = std::str::from_utf8(body).map_err(|error| bad(&error))?;
            let (value, repeated) = yaml::parse_lenient(text).map_err(|error| bad(&error))?;
            Ok(Parsed { value, text: Text::Yaml(repeated) })
        }
        protobuf::MEDIA_TYPE if let Some(of) = schema => {
            let value = protobuf::decode(body, of)
                .map_err(|error| Status::bad_request(format!("the object provided is unrecognized: {error}")))?;
            Ok(Parsed { value, text: Text::Unknown })
        }
        _ => Err(Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// The type that an endpoint takes.
pub struct Expected<'a> {
    pub api_version: Cow<'a, str>,
    pub kind: &'a str,
    pub schema: Option<Type<'a>>,
}

/// Makes a parsed body an object of the expected type: known fields only, every value of its type.
///
/// # Errors
/// 400 for another type, for values of a wrong type, and in strict mode for fields that the type does not have.
pub fn conform(
    parsed: Parsed<'_>,
    expected: Expected<'_>,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, Status> {
    let Parsed { mut value, text } = parsed;
    let Expected { api_version, kind, schema } = expected;
    let api_version = &*api_version;
    let Value::Object(members) = &mut value else {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; it must be a JSON object"
        )));
    };
    let mut is_other = false;
    for (field, wanted) in [("apiVersion", api_version), ("kind", kind)] {
        match members.get(field) {
            None | Some(Value::Null) => drop(members.insert(field.to_owned(), wanted.into())),
            Some(Value::String(given)) if given.is_empty() => drop(members.insert(field.to_owned(), wanted.into())),
            Some(Value::String(given)) if given == wanted => {}
            Some(Value::String(_)) => is_other = true,
            Some(given) => {
                let why = format!(
                    "json: cannot unmarshal {} into Go struct field .{field} of type string",
                    api::schema::json_kind(given)
                );
                return Err(Status::bad_request(format!(
                    "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {why}"
                )));
            }
        }
    }
    if is_other {
        let given = |field: &str| members.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        return Err(not_this_type((&given("apiVersion"), &given("kind")), (api_version, kind), schema));
    }
    strict(&mut value, schema, &text, validation, warnings).map_err(|Unfit(why)| {
        let version = api_version.rsplit('/').next().unwrap_or(api_version);
        Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    })?;
    Ok(value)
}

/// 400 for an object of another version or kind than the endpoint takes.
///
/// Source: apimachinery `pkg/runtime/{error,scheme}.go`, apiserver `pkg/endpoints/handlers/rest.go`, `transformDecodeError`.
fn not_this_type(
    (api_version, kind): (&str, &str),
    (wanted_version, wanted): (&str, &str),
    schema: Option<Type<'_>>,
) -> Status {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let (wanted_group, _) = wanted_version.rsplit_once('/').unwrap_or_default();
    let is_known =
        |version: &str| kinds::schema::schema().types().any(|known| known.gvk() == Some((group, version, kind)));
    let is_preview = version.contains("alpha") || version.contains("beta");
    if group == wanted_group && kind == wanted && is_preview && is_known("v1") {
        return Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({wanted_version})"
        ));
    }
    let why = if is_known(version) {
        let go = schema.map_or("", |of| of.name()).rsplit('.').nth(2).unwrap_or("core");
        format!("converting ({version}.{kind}) to ({go}.{wanted}): unknown conversion")
    } else {
        format!("no kind {kind:?} is registered for version {api_version:?} in scheme \"pkg/runtime/scheme.go:111\"")
    };
    Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {wanted}: {why}"))
}

/// Why a value is not of its type, in the words of upstream's decoder.
#[derive(Debug)]
pub struct Unfit(pub String);

/// Checks a value against its type, and drops what the type does not have unless strictness forbids it.
///
/// # Errors
/// When a value has a wrong type; in strict mode also for what the type does not have, or what the text has twice.
pub fn strict(
    value: &mut Value,
    schema: Option<Type<'_>>,
    text: &Text<'_>,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<(), Unfit> {
    let mut unknown = Vec::new();
    if let Some(of) = schema {
        unknown = of.check(value).map_err(|error| Unfit(error.to_string()))?;
        of.prune(value);
        of.settle_zeros(value);
    }
    let found = text.problems(schema, unknown);
    match validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => found.iter().for_each(|problem| warnings.add(explained(problem))),
        FieldValidation::Strict => {
            if let Some(message) = Strict::message(&found) {
                return Err(Unfit(message + &near_misses(&found)));
            }
        }
    }
    Ok(())
}

fn explained(problem: &Strict) -> String {
    format!("{problem}{}", near_misses(std::slice::from_ref(problem)))
}

/// What was probably meant, behind upstream's text.
fn near_misses(found: &[Strict]) -> String {
    let nearest: Vec<String> = found
        .iter()
        .filter_map(|problem| match problem {
            Strict::Unknown { nearest: Some(nearest), .. } => Some(format!("{nearest:?}")),
            _ => None,
        })
        .collect();
    if nearest.is_empty() { String::new() } else { format!(" (did you mean {}?)", nearest.join(", ")) }
}
