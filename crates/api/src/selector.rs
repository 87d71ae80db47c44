//! Label and field selectors, as query strings and as `LabelSelector` objects.
//!
//! Source: apimachinery `pkg/labels/selector.go`, `pkg/fields/selector.go`, `pkg/apis/meta/v1/helpers.go` and
//! `pkg/apis/meta/v1/validation/validation.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::field::{self, Path};
use crate::names;

pub mod fields;
mod lexer;

use lexer::Token;

/// Why a text is no selector, in upstream's words. The server answers it as a bad request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// A label selector: all requirements, ordered by key, or nothing at all.
///
/// The default selects everything, as an empty `LabelSelector` does; an absent one selects nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector(Inner);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Inner {
    Nothing,
    All(Vec<Requirement>),
}

impl Default for Inner {
    fn default() -> Self {
        Self::All(Vec::new())
    }
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// None for `Exists` and `DoesNotExist`, one for the comparisons, at least one for `In` and `NotIn`.
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// The `LabelSelector` of an object's specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    #[serde(deserialize_with = "crate::meta::null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "crate::meta::null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelectorRequirement {
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    #[serde(deserialize_with = "crate::meta::null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

impl Selector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self(Inner::Nothing)
    }

    /// Selects what carries all of these labels, such as a service's `spec.selector`. The labels are not checked.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Self {
        let requirement = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.clone()],
        };
        Self(Inner::All(labels.iter().map(requirement).collect()))
    }

    /// Parses a query string such as `app=web,tier in (a,b),!old`.
    ///
    /// # Errors
    /// What is wrong, in upstream's words.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut requirements = Parser { tokens: lexer::tokens(text), position: 0 }.selector().map_err(Error)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self(Inner::All(requirements)))
    }

    /// Takes the selector of a specification; an absent one (null) selects nothing, an empty one everything.
    ///
    /// # Errors
    /// When it has not the shape of a `LabelSelector`, or a requirement breaks the rules.
    pub fn from_json(value: &Value) -> Result<Self, Error> {
        match Option::<LabelSelector>::deserialize(value) {
            Ok(Some(selector)) => Self::try_from(&selector),
            Ok(None) => Ok(Self::nothing()),
            Err(error) => Err(Error(error.to_string())),
        }
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match &self.0 {
            Inner::Nothing => false,
            Inner::All(requirements) => requirements.iter().all(|requirement| requirement.matches(labels)),
        }
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Inner::All(requirements) if requirements.is_empty())
    }

    pub fn is_nothing(&self) -> bool {
        self.0 == Inner::Nothing
    }

    /// The conditions; none for a selector of everything, and for one of nothing.
    pub fn requirements(&self) -> &[Requirement] {
        match &self.0 {
            Inner::Nothing => &[],
            Inner::All(requirements) => requirements,
        }
    }

    /// The one value that `key` must have, so that an index can be used.
    pub fn exact(&self, key: &str) -> Option<&str> {
        let requirement = self.requirements().iter().find(|requirement| requirement.key == key)?;
        match (requirement.operator, &requirement.values[..]) {
            (Operator::Equals | Operator::DoubleEquals | Operator::In, [value]) => Some(value),
            _ => None,
        }
    }

    /// This selector and one more condition.
    #[must_use]
    pub fn and(mut self, requirement: Requirement) -> Self {
        if let Inner::All(requirements) = &mut self.0 {
            requirements.push(requirement);
            requirements.sort_by(|a, b| a.key.cmp(&b.key));
        }
        self
    }
}

impl TryFrom<&LabelSelector> for Selector {
    type Error = Error;

    fn try_from(from: &LabelSelector) -> Result<Self, Error> {
        let labels = from.match_labels.iter();
        let mut requirements = labels
            .map(|(key, value)| Requirement::new(key.clone(), Operator::Equals, vec![value.clone()]))
            .collect::<Result<Vec<_>, _>>()?;
        for expression in &from.match_expressions {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(Error(format!("{other:?} is not a valid label selector operator"))),
            };
            requirements.push(Requirement::new(expression.key.clone(), operator, expression.values.clone())?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self(Inner::All(requirements)))
    }
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

/// Writes the canonical query string, which is empty for everything and for nothing.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, requirement) in self.requirements().iter().enumerate() {
            write!(f, "{}{requirement}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Requirement {
    /// Checks the key and the values.
    ///
    /// # Errors
    /// Every field error, joined.
    pub fn new(key: impl Into<String>, operator: Operator, values: Vec<String>) -> Result<Self, Error> {
        let key = key.into();
        let mut errors = Vec::new();
        // Upstream's path is nil here, and a child of nil is a root.
        let path = Path::new("values");
        if let Some(error) = key_error(&key, &Path::new("key")) {
            errors.push(error);
        }
        let count = match operator {
            Operator::In | Operator::NotIn => {
                values.is_empty().then_some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals => {
                (values.len() != 1).then_some("exact-match compatibility requires one single value")
            }
            Operator::Exists | Operator::DoesNotExist => {
                (!values.is_empty()).then_some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan => {
                (values.len() != 1).then_some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
        };
        errors.extend(count.map(|detail| field::Error::invalid(&path, values.clone(), detail)));
        for (at, value) in values.iter().enumerate() {
            if matches!(operator, Operator::GreaterThan | Operator::LessThan) && value.parse::<i64>().is_err() {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(field::Error::invalid(&path.index(at), value.clone(), detail));
            }
        }
        for (at, value) in values.iter().enumerate() {
            let messages = names::is_label_value(value);
            if !messages.is_empty() {
                errors.push(field::Error::invalid(&path.index(at).key(&key), value.clone(), messages.join("; ")));
            }
        }
        if errors.is_empty() { Ok(Self { key, operator, values }) } else { Err(Error(field::aggregate(&errors))) }
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn | Operator::NotEquals => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => self.compared(value).is_some_and(|(label, bound)| label > bound),
            Operator::LessThan => self.compared(value).is_some_and(|(label, bound)| label < bound),
        }
    }

    /// The label and the bound as integers.
    fn compared(&self, value: Option<&String>) -> Option<(i64, i64)> {
        Some((value?.parse().ok()?, self.values.first()?.parse().ok()?))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, operator, values } = self;
        let values =
            values.iter().map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(",");
        match operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

fn key_error(key: &str, path: &Path) -> Option<field::Error> {
    let messages = names::is_qualified_name(key);
    (!messages.is_empty()).then(|| field::Error::invalid(path, key, messages.join("; ")))
}

/// Returns everything that is wrong with the `LabelSelector` at `path`. One of another shape is left to the schema.
pub fn validate_label_selector(selector: &Value, path: &Path) -> Vec<field::Error> {
    match Option::<LabelSelector>::deserialize(selector) {
        Ok(Some(selector)) => selector.validate(path),
        Ok(None) | Err(_) => Vec::new(),
    }
}

/// As [`validate_label_selector`], for one requirement.
pub fn validate_requirement(requirement: &Value, path: &Path) -> Vec<field::Error> {
    Option::<LabelSelectorRequirement>::deserialize(requirement)
        .ok()
        .flatten()
        .map_or_else(Vec::new, |requirement| requirement.validate(path))
}

impl LabelSelector {
    /// Returns everything that is wrong, with fields below `path`.
    pub fn validate(&self, path: &Path) -> Vec<field::Error> {
        let mut errors = validate_labels(&self.match_labels, &path.child("matchLabels"));
        for (at, expression) in self.match_expressions.iter().enumerate() {
            errors.extend(expression.validate(&path.child("matchExpressions").index(at)));
        }
        errors
    }

    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

impl LabelSelectorRequirement {
    fn validate(&self, path: &Path) -> Vec<field::Error> {
        let mut errors = Vec::new();
        let values = path.child("values");
        match self.operator.as_str() {
            "In" | "NotIn" if self.values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(field::Error::required(&values, detail));
            }
            "Exists" | "DoesNotExist" if !self.values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(field::Error::forbidden(&values, detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(field::Error::invalid(&path.child("operator"), other, "not a valid selector operator"))
            }
        }
        errors.extend(validate_label_name(&self.key, &path.child("key")));
        for (at, value) in self.values.iter().enumerate() {
            let messages = names::is_label_value(value).into_iter();
            errors.extend(messages.map(|m| field::Error::invalid(&values.index(at), value.clone(), m)));
        }
        errors
    }
}

/// Returns what is wrong with a label's key.
pub fn validate_label_name(name: &str, path: &Path) -> Vec<field::Error> {
    names::is_qualified_name(name).into_iter().map(|m| field::Error::invalid(path, name, m)).collect()
}

/// Returns what is wrong with labels, ordered by key.
pub fn validate_labels(labels: &BTreeMap<String, String>, path: &Path) -> Vec<field::Error> {
    let mut errors = Vec::new();
    for (key, value) in labels {
        errors.extend(validate_label_name(key, path));
        let messages = names::is_label_value(value).into_iter();
        errors.extend(messages.map(|m| field::Error::invalid(path, value.clone(), m)));
    }
    errors
}

/// Where a word may stand for an operator.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    Operator,
    Value,
}

struct Parser {
    /// Ends with [`Token::End`].
    tokens: Vec<(Token, String)>,
    position: usize,
}

const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

impl Parser {
    fn look(&self, context: Context) -> (Token, &str) {
        let (token, text) = self.tokens.get(self.position).or(self.tokens.last()).expect("ends with a token");
        match token {
            Token::In | Token::NotIn if context == Context::Value => (Token::Identifier, text),
            token => (*token, text),
        }
    }

    fn next(&mut self, context: Context) -> (Token, String) {
        let (token, text) = self.look(context);
        let found = (token, text.to_owned());
        self.position += 1;
        found
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.look(Context::Value) {
                (Token::Identifier | Token::Not, _) => {}
                (Token::End, _) => return Ok(requirements),
                (_, text) => return Err(format!("found '{text}', expected: !, identifier, or 'end of string'")),
            }
            let requirement = self.requirement().map_err(|error| format!("unable to parse requirement: {error}"))?;
            requirements.push(requirement);
            match self.next(Context::Value) {
                (Token::End, _) => return Ok(requirements),
                (Token::Comma, _) => match self.look(Context::Value) {
                    (Token::Identifier | Token::Not, _) => {}
                    (_, text) => return Err(format!("found '{text}', expected: identifier after ','")),
                },
                (_, text) => return Err(format!("found '{text}', expected: ',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut token, mut key) = self.next(Context::Value);
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.next(Context::Value);
        }
        if token != Token::Identifier {
            return Err(format!("found '{key}', expected: identifier"));
        }
        if let Some(error) = key_error(&key, &Path::default()) {
            return Err(error.to_string());
        }
        let alone = matches!(self.look(Context::Value).0, Token::End | Token::Comma);
        let operator = match (negated, alone) {
            (true, _) => Operator::DoesNotExist,
            (false, true) => Operator::Exists,
            (false, false) => self.operator()?,
        };
        let values = match operator {
            Operator::Exists | Operator::DoesNotExist => BTreeSet::new(),
            Operator::In | Operator::NotIn => self.values()?,
            _ => BTreeSet::from([self.exact_value()?]),
        };
        Requirement::new(key, operator, values.into_iter().collect()).map_err(|Error(message)| message)
    }

    fn operator(&mut self) -> Result<Operator, String> {
        match self.next(Context::Operator) {
            (Token::In, _) => Ok(Operator::In),
            (Token::NotIn, _) => Ok(Operator::NotIn),
            (Token::Equals, _) => Ok(Operator::Equals),
            (Token::DoubleEquals, _) => Ok(Operator::DoubleEquals),
            (Token::NotEquals, _) => Ok(Operator::NotEquals),
            (Token::GreaterThan, _) => Ok(Operator::GreaterThan),
            (Token::LessThan, _) => Ok(Operator::LessThan),
            (_, text) => Err(format!("found '{text}', expected: {OPERATORS}")),
        }
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.look(Context::Value).0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next(Context::Value) {
            (Token::Identifier, text) => Ok(text),
            (_, text) => Err(format!("found '{text}', expected: identifier")),
        }
    }

    /// `(a,b)`, where an empty place stands for the empty value.
    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        match self.next(Context::Value) {
            (Token::Open, _) => {}
            (_, text) => return Err(format!("found '{text}' expected: '('")),
        }
        match self.look(Context::Value) {
            (Token::Identifier | Token::Comma, _) => {}
            (Token::Close, _) => {
                self.position += 1;
                return Ok(BTreeSet::from([String::new()]));
            }
            (_, text) => return Err(format!("found '{text}', expected: ',', ')' or identifier")),
        }
        let mut values = BTreeSet::new();
        loop {
            match self.next(Context::Value) {
                (Token::Identifier, text) => {
                    values.insert(text);
                    match self.look(Context::Value) {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => break,
                        (_, text) => return Err(format!("found '{text}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.look(Context::Value).0 {
                        Token::Close => {
                            values.insert(String::new());
                            break;
                        }
                        Token::Comma => {
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                (_, text) => return Err(format!("found '{text}', expected: ',', or identifier")),
            }
        }
        self.position += 1;
        Ok(values)
    }
}

#[cfg(test)]
mod tests;
