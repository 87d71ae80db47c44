//! Which representation a client gets: JSON or YAML, whole objects, tables or metadata alone.
//!
//! Source: apiserver `pkg/endpoints/handlers/negotiation/negotiate.go`, goautoneg.

use api::status::Status;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};

use crate::path::Query;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Json,
    /// JSON with line breaks, for people.
    Pretty,
    Yaml,
}

impl Format {
    /// What the answer says it is.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json | Self::Pretty => "application/json",
            Self::Yaml => "application/yaml",
        }
    }
}

/// What of an object is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    Whole,
    Table(MetaVersion),
    /// PartialObjectMetadata.
    Metadata(MetaVersion),
    MetadataList(MetaVersion),
}

/// A version of `meta.k8s.io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetaVersion {
    V1,
    V1Beta1,
}

impl MetaVersion {
    /// As objects of this version say it.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub format: Format,
    pub form: Form,
}

/// One media range of an Accept header.
#[derive(Debug)]
pub struct Range<'a> {
    pub media_type: String,
    pub parameters: Vec<(&'a str, &'a str)>,
    weight: f32,
}

impl Range<'_> {
    /// The value of a parameter other than the weight.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// The (kind, group, version) that the range asks to convert to.
    pub fn target(&self) -> Option<(&str, &str, &str)> {
        let get = |name| self.parameter(name).unwrap_or_default();
        let target = (get("as"), get("g"), get("v"));
        (target != ("", "", "")).then_some(target)
    }
}

/// An Accept header's ranges, the preferred first: by weight, then by how much they name, then as written.
pub fn ranges(header: &str) -> Vec<Range<'_>> {
    let mut ranges: Vec<Range<'_>> = header
        .split(',')
        .filter_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media_type = parts.next().filter(|text| !text.is_empty())?.to_ascii_lowercase();
            let mut range = Range { media_type, parameters: Vec::new(), weight: 1.0 };
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                let (name, value) = (name.trim(), value.trim().trim_matches('"'));
                if name == "q" {
                    range.weight = value.parse().unwrap_or(1.0);
                } else {
                    range.parameters.push((name, value));
                }
            }
            Some(range)
        })
        .collect();
    let wildcards = |range: &Range<'_>| range.media_type.matches('*').count();
    ranges.sort_by(|a, b| b.weight.total_cmp(&a.weight).then_with(|| wildcards(a).cmp(&wildcards(b))));
    ranges
}

/// All Accept headers as one.
pub fn accept(headers: &HeaderMap) -> String {
    let values: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    values.join(",")
}

/// What can be made of an endpoint's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Metadata, and a table.
    Tables,
    /// Metadata: reviews and actions have no columns.
    Metadata,
    /// Nothing else: what is no object.
    Whole,
}

/// Chooses the representation of an endpoint's answer.
///
/// # Errors
/// 406 when nothing of what the client accepts is offered.
pub fn negotiate(headers: &HeaderMap, query: &Query, offer: Offer) -> Result<Accepted, Status> {
    let json = if is_pretty(headers, query) { Format::Pretty } else { Format::Json };
    let header = accept(headers);
    if header.trim().is_empty() {
        return Ok(Accepted { format: json, form: Form::Whole });
    }
    for range in ranges(&header) {
        let format = match range.media_type.as_str() {
            "application/json" | "application/*" | "*/*" => {
                if range.parameter("pretty") == Some("1") {
                    Format::Pretty
                } else {
                    json
                }
            }
            "application/yaml" => Format::Yaml,
            _ => continue,
        };
        if range.parameter("stream").is_some_and(|stream| !stream.is_empty() && stream != "watch") {
            continue;
        }
        match (form(&range), offer) {
            (None, _) | (Some(Form::Table(_)), Offer::Metadata) => {}
            (Some(Form::Table(_) | Form::Metadata(_) | Form::MetadataList(_)), Offer::Whole) => {}
            (Some(form), _) => return Ok(Accepted { format, form }),
        }
    }
    Err(not_acceptable())
}

fn form(range: &Range<'_>) -> Option<Form> {
    let Some((kind, group, version)) = range.target() else { return Some(Form::Whole) };
    let version = match (group, version) {
        ("meta.k8s.io", "v1") => MetaVersion::V1,
        ("meta.k8s.io", "v1beta1") => MetaVersion::V1Beta1,
        _ => return None,
    };
    match kind {
        "Table" => Some(Form::Table(version)),
        "PartialObjectMetadata" => Some(Form::Metadata(version)),
        "PartialObjectMetadataList" => Some(Form::MetadataList(version)),
        _ => None,
    }
}

/// 406, with what is offered.
pub fn not_acceptable() -> Status {
    Status::not_acceptable("only the following media types are accepted: application/json, application/yaml")
}

/// Whether a person reads the answer.
pub fn is_pretty(headers: &HeaderMap, query: &Query) -> bool {
    if let Some(value) = query.get("pretty").filter(|value| !value.is_empty()) {
        return matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|person| agent.starts_with(person))
}

/// The media type of a request's body, without parameters; JSON when none is given.
pub fn content_type(headers: &HeaderMap) -> String {
    let header = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match header.split(';').next().unwrap_or_default().trim() {
        "" => "application/json".to_owned(),
        media_type => media_type.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, expected: Option<(Format, Form)>) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        let got =
            negotiate(&headers, &Query::default(), Offer::Tables).ok().map(|accepted| (accepted.format, accepted.form));
        assert_eq!(got, expected, "{accept}");
    }

    #[test]
    fn what_kubectl_sends() {
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Format::Json, Form::Table(MetaVersion::V1))),
        );
        check("application/vnd.kubernetes.protobuf,application/json", Some((Format::Json, Form::Whole)));
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
            Some((Format::Json, Form::MetadataList(MetaVersion::V1))),
        );
    }

    #[test]
    fn weights_decide_before_order() {
        check("application/json;q=0.5, application/yaml", Some((Format::Yaml, Form::Whole)));
        check("*/*, application/yaml", Some((Format::Yaml, Form::Whole)));
        check("*/*;q=0.1", Some((Format::Json, Form::Whole)));
    }

    #[test]
    fn what_has_no_columns_is_no_table() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let form = |accept: &str, offer| {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            negotiate(&headers, &Query::default(), offer).map(|accepted| accepted.form).map_err(|status| status.code)
        };
        assert_eq!(form(table, Offer::Metadata), Err(406));
        assert_eq!(form(&format!("{table}, application/json"), Offer::Metadata), Ok(Form::Whole));
        let metadata = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
        assert_eq!(form(metadata, Offer::Metadata), Ok(Form::Metadata(MetaVersion::V1)));
        assert_eq!(form(metadata, Offer::Whole), Err(406));
    }

    #[test]
    fn what_is_not_offered_is_refused() {
        check("application/vnd.kubernetes.protobuf", None);
        check("text/html", None);
        check("application/json;as=Unknown;v=v1;g=meta.k8s.io", None);
    }
}
