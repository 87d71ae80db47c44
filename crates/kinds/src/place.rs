//! A place in an untyped object: a value and the path to it, so that a complaint about the one names the other.

use api::field::{Error, Path};
use api::names;
use serde_json::Value;

use crate::value::{is_empty, items, number, text};

/// A rule for names, as in `api::names`: empty when the text keeps it.
pub type Rule = fn(&str) -> names::Messages;

#[derive(Clone, Debug)]
pub struct Place<'a> {
    pub value: &'a Value,
    pub path: Path,
}

impl<'a> Place<'a> {
    pub fn root(value: &'a Value) -> Self {
        Self { value, path: Path::default() }
    }

    pub fn new(value: &'a Value, path: Path) -> Self {
        Self { value, path }
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self { value: &self.value[name], path: self.path.child(name) }
    }

    /// The items of a list, or none.
    pub fn items(&self) -> impl Iterator<Item = Self> + use<'a> {
        let path = self.path.clone();
        items(self.value).iter().enumerate().map(move |(i, value)| Self { value, path: path.index(i) })
    }

    pub fn len(&self) -> usize {
        items(self.value).len()
    }

    /// The entries of a map, or none.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Self)> + use<'a> {
        let path = self.path.clone();
        self.value
            .as_object()
            .into_iter()
            .flatten()
            .map(move |(key, value)| (key.as_str(), Self { value, path: path.key(key) }))
    }

    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Absent, or a value without content.
    pub fn is_empty(&self) -> bool {
        is_empty(self.value)
    }

    pub fn text(&self) -> &'a str {
        text(self.value)
    }

    pub fn number(&self) -> i64 {
        number(self.value)
    }

    pub fn is(&self, expected: &str) -> bool {
        self.text() == expected
    }

    pub fn is_true(&self) -> bool {
        self.value.as_bool() == Some(true)
    }

    pub fn required(&self, detail: &str) -> Error {
        Error::required(&self.path, detail)
    }

    pub fn invalid(&self, detail: impl Into<String>) -> Error {
        Error::invalid(&self.path, self.value.clone(), detail)
    }

    pub fn duplicate(&self) -> Error {
        Error::duplicate(&self.path, self.value.clone())
    }

    pub fn not_found(&self) -> Error {
        Error::not_found(&self.path, self.value.clone())
    }

    pub fn forbidden(&self, detail: impl Into<String>) -> Error {
        Error::forbidden(&self.path, detail)
    }

    pub fn not_supported(&self, supported: &[&str]) -> Error {
        Error::not_supported(&self.path, self.value.clone(), supported)
    }

    /// Complains about each way in which the text breaks the rule.
    pub fn keep(&self, rule: Rule, errors: &mut Vec<Error>) {
        let text = self.text();
        errors.extend(rule(text).into_iter().map(|message| Error::invalid(&self.path, text, message)));
    }

    /// As [`Place::keep`], for a text that must be there.
    pub fn require(&self, rule: Rule, errors: &mut Vec<Error>) {
        if self.is_empty() {
            errors.push(self.required(""));
        } else {
            self.keep(rule, errors);
        }
    }

    /// For a text that must be there.
    pub fn must_be_set(&self, errors: &mut Vec<Error>) {
        if self.is_empty() {
            errors.push(self.required(""));
        }
    }

    /// For a text that must be one of these, in the order in which messages list them.
    pub fn one_of(&self, supported: &[&str], errors: &mut Vec<Error>) {
        if self.is_empty() {
            errors.push(self.required(""));
        } else {
            self.if_set_one_of(supported, errors);
        }
    }

    pub fn if_set_one_of(&self, supported: &[&str], errors: &mut Vec<Error>) {
        if self.is_set() && !supported.contains(&self.text()) {
            errors.push(self.not_supported(supported));
        }
    }

    /// Source: apimachinery `pkg/api/validation/generic.go`, `ValidateNonnegativeField`.
    pub fn not_negative(&self, errors: &mut Vec<Error>) {
        if self.number() < 0 {
            errors.push(self.invalid("must be greater than or equal to 0"));
        }
    }

    /// A port's number or its name.
    ///
    /// Source: kubernetes `pkg/apis/core/validation/validation.go`, `ValidatePortNumOrName`.
    pub fn port(&self, errors: &mut Vec<Error>) {
        if self.value.is_string() {
            self.keep(names::is_port_name, errors);
        } else {
            self.port_number(errors);
        }
    }

    pub fn port_number(&self, errors: &mut Vec<Error>) {
        let shown = self.number();
        let messages = names::is_port_num(shown);
        errors.extend(messages.into_iter().map(|message| Error::invalid(&self.path, shown, message)));
    }
}
