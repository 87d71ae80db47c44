//! Field selectors, such as `metadata.name=web,status.phase!=Running`.
//!
//! Source: apimachinery `pkg/fields/selector.go`.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// All requirements must hold; none selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    requirements: Vec<Requirement>,
}

/// One field that must, or must not, have one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub field: String,
    /// False for `!=`.
    pub equal: bool,
    pub value: String,
}

impl FieldSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    /// Parses a query string. `\`, `,` and `=` in values are written with a backslash before them.
    ///
    /// # Errors
    /// What is wrong, in upstream's words.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut terms = split_terms(text);
        terms.sort_unstable();
        let requirement = |term: &str| {
            let (field, equal, value) = split_term(term)
                .ok_or_else(|| Error(format!("invalid selector: '{text}'; can't understand '{term}'")))?;
            Ok(Requirement { field: field.to_owned(), equal, value: unescape(value)? })
        };
        let terms = terms.into_iter().filter(|term| !term.is_empty());
        Ok(Self { requirements: terms.map(requirement).collect::<Result<_, Error>>()? })
    }

    /// Selects what meets all of these.
    pub fn all(requirements: Vec<Requirement>) -> Self {
        Self { requirements }
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Asks `value` for each field; a field that an object does not have is the empty string.
    pub fn matches<'a>(&self, value: impl Fn(&str) -> &'a str) -> bool {
        self.requirements.iter().all(|r| (value(&r.field) == r.value) == r.equal)
    }

    /// The one value that `field` must have, so that a lookup can replace a scan.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equal && r.field == field).map(|r| r.value.as_str())
    }
}

impl FromStr for FieldSelector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Requirement { field, equal, value }) in self.requirements.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let sign = if *equal { "=" } else { "!=" };
            write!(f, "{comma}{field}{sign}{}", escape(value))?;
        }
        Ok(())
    }
}

/// Returns `value` as it stands in a field selector.
pub fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '\\' | ',' | '=') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn unescape(value: &str) -> Result<String, Error> {
    let invalid = |sequence: &str| Error(format!("invalid field selector: invalid escape sequence: {sequence}"));
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(invalid(&format!("\\{c}"))),
                None => return Err(invalid("\\")),
            },
            // Upstream prints the code point.
            ',' | '=' => {
                return Err(Error(format!("invalid field selector: unescaped character in value: {}", c as u32)));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Splits at commas without a backslash before them.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Splits at the first operator; fields know no escapes.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (at, _) in term.char_indices() {
        let (field, rest) = term.split_at(at);
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((field, equal, value));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_writes() {
        for (text, written) in [
            ("", ""),
            ("x=a,y=b,z=c", "x=a,y=b,z=c"),
            ("z=c,x==a", "x=a,z=c"),
            ("x!=a,y=b", "x!=a,y=b"),
            ("x=", "x="),
            ("x= ,z= ", "x= ,z= "),
            (r"x=a\,b\=c\\", r"x=a\,b\=c\\"),
            (",,x=a,", "x=a"),
            ("x=a||y\\=b", "x=a||y\\=b"),
        ] {
            let selector = FieldSelector::parse(text).unwrap();
            assert_eq!(selector.to_string(), written);
            assert_eq!(FieldSelector::parse(written).unwrap(), selector);
        }
    }

    #[test]
    fn names_what_it_cannot_read() {
        for (text, message) in [
            ("metadata.name", "invalid selector: 'metadata.name'; can't understand 'metadata.name'"),
            ("x=a=b", "invalid field selector: unescaped character in value: 61"),
            (r"x=a\n", r"invalid field selector: invalid escape sequence: \n"),
            (r"x=a\", r"invalid field selector: invalid escape sequence: \"),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn matches_fields() {
        let of = |field: &str| match field {
            "metadata.name" => "web",
            "status.phase" => "Running",
            _ => "",
        };
        for (text, expected) in [
            ("", true),
            ("metadata.name=web", true),
            ("metadata.name==web,status.phase!=Failed", true),
            ("metadata.name!=web", false),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap().matches(of), expected, "{text}");
        }
        assert_eq!(FieldSelector::parse("metadata.name=web,a!=b").unwrap().exact("metadata.name"), Some("web"));
    }
}
