//! Rules for names, keys, ports and addresses. Each returns what is wrong, in upstream's words, or nothing.
//!
//! Source: apimachinery `pkg/util/validation/{validation,ip}.go`, `pkg/api/validate/content`,
//! `pkg/api/validation/generic.go`. Upstream counts "characters" in some messages and "bytes" in others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The messages of a rule: empty when the text keeps it.
pub type Messages = Vec<String>;

const LABEL_RE: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_RE: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_KEY_RE: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

/// `message` with the examples and the regular expression that upstream names.
pub fn regex_error(message: &str, regex: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{regex}')");
    }
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{regex}')", examples.join(" or "))
}

/// The message of a rule that counts bytes, as upstream's newer ones do.
pub fn in_bytes(message: String) -> String {
    match message.strip_suffix(" characters").filter(|rest| rest.starts_with("must be no more than ")) {
        Some(rest) => format!("{rest} bytes"),
        None => message,
    }
}

pub fn max_len_error(length: usize) -> String {
    format!("must be no more than {length} characters")
}

fn max_bytes_error(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

/// A DNS label of RFC 1123, such as a namespace's name.
pub fn is_dns1123_label(text: &str) -> Messages {
    let mut out = Messages::new();
    if text.len() > LABEL_MAX {
        out.push(max_len_error(LABEL_MAX));
    }
    if !label(text) {
        out.push(if subdomain(text) {
            "must not contain dots".to_owned()
        } else {
            let message = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                           start and end with an alphanumeric character";
            regex_error(message, LABEL_RE, &["my-name", "123-abc"])
        });
    }
    out
}

/// A DNS name of RFC 1123, such as most objects' names.
pub fn is_dns1123_subdomain(text: &str) -> Messages {
    subdomain_messages(text, max_len_error)
}

fn subdomain_messages(text: &str, too_long: fn(usize) -> String) -> Messages {
    let mut out = Messages::new();
    if text.len() > SUBDOMAIN_MAX {
        out.push(too_long(SUBDOMAIN_MAX));
    }
    if !subdomain(text) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
                       must start and end with an alphanumeric character";
        out.push(regex_error(message, SUBDOMAIN_RE, &["example.com"]));
    }
    out
}

/// `*.` and a DNS name, such as a host of an Ingress.
pub fn is_wildcard_dns1123_subdomain(text: &str) -> Messages {
    let mut out = Messages::new();
    if text.len() > SUBDOMAIN_MAX {
        out.push(max_len_error(SUBDOMAIN_MAX));
    }
    if !text.strip_prefix("*.").is_some_and(subdomain) {
        let message = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
                       consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        out.push(regex_error(message, &format!(r"\*\.{SUBDOMAIN_RE}"), &["*.example.com"]));
    }
    out
}

/// A DNS label that begins with a letter, such as a service's name.
pub fn is_dns1035_label(text: &str) -> Messages {
    let mut out = Messages::new();
    if text.len() > LABEL_MAX {
        out.push(max_len_error(LABEL_MAX));
    }
    if !(label(text) && text.starts_with(|c: char| c.is_ascii_lowercase())) {
        let message = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                       alphabetic character, and end with an alphanumeric character";
        out.push(regex_error(message, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    out
}

/// A label's key: `[prefix/]name`, where the prefix is a DNS name.
pub fn is_qualified_name(text: &str) -> Messages {
    let message = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
                   character";
    let pattern = || regex_error(message, LABEL_KEY_RE, &["MyName", "my.name", "123-abc"]);
    let mut out = Messages::new();
    let name = match text.split('/').collect::<Vec<_>>()[..] {
        [name] => name,
        ["", name] => {
            out.push("prefix part must be non-empty".to_owned());
            name
        }
        [prefix, name] => {
            out.extend(subdomain_messages(prefix, max_bytes_error).iter().map(|m| format!("prefix part {m}")));
            name
        }
        _ => {
            let hint = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format!("a valid label key {} {hint}", pattern())];
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        out.push(format!("name part {}", max_bytes_error(LABEL_MAX)));
    }
    if !label_key(name) {
        out.push(format!("name part {}", pattern()));
    }
    out
}

pub fn is_label_value(text: &str) -> Messages {
    let mut out = Messages::new();
    if text.len() > LABEL_MAX {
        out.push(max_bytes_error(LABEL_MAX));
    }
    if !(text.is_empty() || label_key(text)) {
        let message = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
                       must start and end with an alphanumeric character";
        out.push(regex_error(message, &format!("({LABEL_KEY_RE})?"), &["MyValue", "my_value", "12345"]));
    }
    out
}

/// `domain/path`, such as an Ingress class's controller.
pub fn is_domain_prefixed_path(text: &str) -> Messages {
    let Some((host, path)) = text.split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty()) else {
        return vec!["must be a domain-prefixed path (such as \"acme.io/foo\")".to_owned()];
    };
    let mut out = is_dns1123_subdomain(host);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
    if !path.bytes().all(allowed) {
        out.push(regex_error("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", &[]));
    }
    out
}

pub fn is_c_identifier(text: &str) -> Messages {
    let ok = text.bytes().enumerate().all(|(at, byte)| match byte {
        b'_' => true,
        b'0'..=b'9' => at > 0,
        _ => byte.is_ascii_alphabetic(),
    });
    if ok && !text.is_empty() {
        return Messages::new();
    }
    let message = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
                   characters or '_'";
    vec![regex_error(message, "[A-Za-z_][A-Za-z0-9_]*", &["my_name", "MY_NAME", "MyName"])]
}

/// The relaxed rule that v1.37 applies everywhere: printable ASCII without `=`.
pub fn is_env_var_name(text: &str) -> Messages {
    let mut out = Messages::new();
    if text.is_empty() {
        out.push("environment variable name must be non-empty".to_owned());
    }
    if !text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=') {
        out.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    out
}

/// A key in a ConfigMap's or a Secret's data.
pub fn is_config_map_key(text: &str) -> Messages {
    let mut out = Messages::new();
    if text.len() > SUBDOMAIN_MAX {
        out.push(max_len_error(SUBDOMAIN_MAX));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if text.is_empty() || !text.bytes().all(allowed) {
        let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        out.push(regex_error(message, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match text {
        "." => out.push("must not be '.'".to_owned()),
        ".." => out.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => out.push("must not start with '..'".to_owned()),
        _ => {}
    }
    out
}

pub fn is_http_header_name(text: &str) -> Messages {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Messages::new();
    }
    let message = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(message, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

pub fn is_percent(text: &str) -> Messages {
    let ok = text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()));
    if ok {
        return Messages::new();
    }
    let message = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![regex_error(message, "[0-9]+%", &["1%", "93%"])]
}

pub fn is_port_num(port: i64) -> Messages {
    is_in_range(port, 1, 65535)
}

pub fn is_in_range(value: i64, low: i64, high: i64) -> Messages {
    if (low..=high).contains(&value) {
        return Messages::new();
    }
    vec![format!("must be between {low} and {high}, inclusive")]
}

/// A uid or a gid.
pub fn is_user_id(id: i64) -> Messages {
    is_in_range(id, 0, i64::from(i32::MAX))
}

/// A port's name: at most 15 of `[-a-z0-9]`, with a letter.
pub fn is_port_name(text: &str) -> Messages {
    let mut out = Messages::new();
    if text.len() > 15 {
        out.push(max_len_error(15));
    }
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || !text.bytes().all(allowed) {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// A name that can stand in a request's path; RBAC's objects have no other rule.
pub fn is_path_segment_name(text: &str) -> Messages {
    if matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    is_path_segment_prefix(text)
}

/// As [`is_path_segment_name`], for a text that is followed by more.
pub fn is_path_segment_prefix(text: &str) -> Messages {
    ["/", "%"].iter().filter(|part| text.contains(**part)).map(|part| format!("may not contain '{part}'")).collect()
}

/// Lets a `generateName` end in a dash, by checking what the name could become.
pub fn mask_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        // Upstream replaces the dash and the character before it.
        Some(rest) if !rest.is_empty() => {
            let mut end = rest.len() - 1;
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            format!("{}a", &rest[..end])
        }
        _ => prefix.to_owned(),
    }
}

/// An IP address of a newer field: strict and in canonical form.
pub fn is_ip(text: &str) -> Messages {
    match parse_ip(text) {
        Err(messages) => messages,
        Ok(address) => canonical(text, &address.to_string()),
    }
}

/// An IP address of a field that predates the canonical form, such as a service's external IPs.
pub fn is_ip_for_legacy_field(text: &str) -> Messages {
    parse_ip(text).err().unwrap_or_default()
}

/// A CIDR of a newer field: strict and in canonical form.
pub fn is_cidr(text: &str) -> Messages {
    match parse_cidr(text) {
        Err(messages) => messages,
        Ok((address, length)) => canonical(text, &format!("{address}/{length}")),
    }
}

/// A CIDR of a field that predates the canonical form, such as a NetworkPolicy's.
pub fn is_cidr_for_legacy_field(text: &str) -> Messages {
    parse_cidr(text).err().unwrap_or_default()
}

fn canonical(text: &str, canonical: &str) -> Messages {
    if text == canonical { Messages::new() } else { vec![format!("must be in canonical form ({canonical:?})")] }
}

/// Returns the address; v1.37 refuses leading zeros and IPv4-mapped IPv6.
///
/// # Errors
/// What is wrong, in upstream's words.
pub fn parse_ip(text: &str) -> Result<IpAddr, Messages> {
    let Some(address) = parse_ip_sloppy(text) else {
        return Err(vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]);
    };
    if text.parse::<IpAddr>().is_err() {
        return Err(vec!["must not have leading 0s".to_owned()]);
    }
    if is_mapped(&address) {
        return Err(vec!["must not be an IPv4-mapped IPv6 address".to_owned()]);
    }
    Ok(address)
}

/// Returns the network's address and prefix length; v1.37 refuses bits beyond the prefix.
///
/// # Errors
/// What is wrong, in upstream's words.
pub fn parse_cidr(text: &str) -> Result<(IpAddr, u8), Messages> {
    let error = |message: &str| Err(vec![message.to_owned()]);
    let invalid = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let Some((host, digits)) = text.split_once('/') else {
        return error(invalid);
    };
    let Some(address) = parse_ip_sloppy(host) else {
        return error(invalid);
    };
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = match digits.parse::<u8>() {
        Ok(length) if length <= bits && digits.bytes().all(|byte| byte.is_ascii_digit()) => length,
        _ => return error(invalid),
    };
    if host.parse::<IpAddr>().is_err() || (digits.len() > 1 && digits.starts_with('0')) {
        return error("must not have leading 0s in IP or prefix length");
    }
    if is_mapped(&address) {
        return error("must not have an IPv4-mapped IPv6 address");
    }
    let beyond = match address {
        IpAddr::V4(v4) => u32::from(v4).checked_shl(u32::from(length)).unwrap_or(0) != 0,
        IpAddr::V6(v6) => u128::from(v6).checked_shl(u32::from(length)).unwrap_or(0) != 0,
    };
    if beyond {
        return error("must not have bits set beyond the prefix length");
    }
    Ok((address, length))
}

/// The `Warning` text for an address that is valid but not in canonical form.
pub fn ip_warning(field: &crate::field::Path, text: &str) -> Option<String> {
    let address = parse_ip_sloppy(text)?;
    if text.parse::<IpAddr>().is_err() || is_mapped(&address) {
        let standard = match address {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
            IpAddr::V4(_) => address,
        };
        return Some(format!("{field}: non-standard IP address {text:?} is invalid: use {:?}", standard.to_string()));
    }
    let canonical = address.to_string();
    (address.is_ipv6() && canonical != text)
        .then(|| format!("{field}: IPv6 address {text:?} should be in RFC 5952 canonical format ({canonical:?})"))
}

fn is_mapped(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// As Go once did, ignores leading zeros in dotted decimals.
pub fn parse_ip_sloppy(text: &str) -> Option<IpAddr> {
    let (head, dotted) = match text.rfind(':') {
        Some(colon) => text.split_at(colon + 1),
        None => ("", text),
    };
    if !dotted.contains('.') {
        return text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    let octets: Vec<String> = dotted.split('.').map(without_leading_zeros).collect();
    let dotted = octets.join(".");
    if head.is_empty() {
        return dotted.parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    format!("{head}{dotted}").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

fn without_leading_zeros(octet: &str) -> String {
    match octet.trim_start_matches('0') {
        "" if !octet.is_empty() => "0".to_owned(),
        rest => rest.to_owned(),
    }
}

fn label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn subdomain(text: &str) -> bool {
    text.split('.').all(label)
}

fn label_key(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.bytes().all(inner) && text.starts_with(edge) && text.ends_with(edge)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
        and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
        '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

    fn check(rule: impl Fn(&str) -> Messages, good: &[&str], bad: &[(&str, &[&str])]) {
        for text in good {
            assert_eq!(rule(text), Messages::new(), "{text:?}");
        }
        for (text, messages) in bad {
            let got = rule(text);
            assert_eq!(got.len(), messages.len(), "{text:?}: {got:?}");
            for (got, message) in got.iter().zip(*messages) {
                assert!(got.contains(message), "{text:?}: {got:?} lacks {message:?}");
            }
        }
    }

    #[test]
    fn dns_labels() {
        let long = "a".repeat(64);
        check(
            is_dns1123_label,
            &["a", "ab", "0", "1-1", "a--b"],
            &[
                ("", &[LABEL]),
                ("A", &[LABEL]),
                ("-a", &[LABEL]),
                ("a-", &[LABEL]),
                ("a_b", &[LABEL]),
                ("a.b", &["must not contain dots"]),
                (&long, &["must be no more than 63 characters"]),
            ],
        );
        check(is_dns1035_label, &["a", "a-1"], &[("1a", &["start with an alphabetic character"]), ("", &["DNS-1035"])]);
    }

    #[test]
    fn dns_subdomains() {
        let long = ["a"; 128].join(".");
        check(
            is_dns1123_subdomain,
            &["a", "a.b", "0.1-2.c"],
            &[
                ("a..b", &["(e.g. 'example.com', regex used for validation is '[a-z0-9]"]),
                (".a", &["RFC 1123 subdomain"]),
                ("A.b", &["RFC 1123 subdomain"]),
                (&long, &["must be no more than 253 characters"]),
            ],
        );
        check(
            is_wildcard_dns1123_subdomain,
            &["*.a.b"],
            &[("*", &["wildcard"]), ("*.*.b", &["wildcard"]), ("a.b", &["wildcard"])],
        );
    }

    #[test]
    fn label_keys_and_values() {
        let long = "a".repeat(64);
        check(
            is_qualified_name,
            &["simple", "now-with-dashes", "1-starts-with-num", "1234", "simple/simple", "a.b/c_D.e", "Uppercase"],
            &[
                ("", &["name part must be non-empty", "name part must consist of"]),
                ("/a", &["prefix part must be non-empty"]),
                ("a/", &["name part must be non-empty", "name part must consist of"]),
                ("A/b", &["prefix part a lowercase RFC 1123 subdomain"]),
                ("a/b/c", &["a valid label key must consist of"]),
                ("a b", &["name part must consist of"]),
                ("-a", &["name part must consist of"]),
                (&long, &["name part must be no more than 63 bytes"]),
            ],
        );
        check(
            is_label_value,
            &["", "a", "A.b_c-d", "123"],
            &[("-a", &["(e.g. 'MyValue',  or 'my_value',  or '12345', regex"])],
        );
    }

    #[test]
    fn other_names() {
        check(
            is_env_var_name,
            &["A", "a b", "1", "a.b-c/d", "..x"],
            &[("", &["must be non-empty"]), ("a=b", &["printable"]), ("ä", &["printable"])],
        );
        check(
            is_config_map_key,
            &["a", "a.b_c-D", ".a"],
            &[
                (".", &["must not be '.'"]),
                ("..a", &["must not start with '..'"]),
                ("a/b", &["config key"]),
                ("", &["config key"]),
            ],
        );
        check(is_c_identifier, &["_a1", "A"], &[("1a", &["C identifier"]), ("", &["C identifier"])]);
        check(is_http_header_name, &["X-A"], &[("X A", &["X-Header-Name"]), ("", &["HTTP header"])]);
        check(
            is_port_name,
            &["telnet", "re-mail-ck", "pop3", "a", "a-1", "1-a"],
            &[
                ("longerthan15characters", &["must be no more than 15 characters"]),
                ("", &["must contain only", "must contain at least one letter (a-z)"]),
                ("12345", &["must contain at least one letter"]),
                ("1-2-3-4", &["must contain at least one letter"]),
                ("-begin", &["must not begin or end with a hyphen"]),
                ("two--hyphens", &["must not contain consecutive hyphens"]),
                ("whois++", &["must contain only alpha-numeric"]),
            ],
        );
        check(
            is_path_segment_name,
            &["a:b", "A"],
            &[("..", &["may not be '..'"]), ("a/b%", &["may not contain '/'", "may not contain '%'"])],
        );
        check(
            is_domain_prefixed_path,
            &["acme.io/foo"],
            &[("acme.io", &["domain-prefixed"]), ("a/b c", &["Invalid path"])],
        );
        assert_eq!(is_port_num(0), ["must be between 1 and 65535, inclusive"]);
        assert_eq!(mask_trailing_dash("web-"), "wea");
        assert_eq!(mask_trailing_dash("-"), "-");
    }

    #[test]
    fn addresses() {
        check(
            is_ip,
            &["1.2.3.4", "::1", "2001:db8::ffff", "::"],
            &[
                ("1.2.3", &["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]),
                ("1.2.3.256", &["must be a valid IP address"]),
                ("1.2.3.4/24", &["must be a valid IP address"]),
                ("fe80::1%eth0", &["must be a valid IP address"]),
                ("[::1]", &["must be a valid IP address"]),
                ("010.2.3.4", &["must not have leading 0s"]),
                ("::ffff:1.2.3.4", &["must not be an IPv4-mapped IPv6 address"]),
                ("FE80::0:ABC", &["must be in canonical form (\"fe80::abc\")"]),
            ],
        );
        assert_eq!(is_ip_for_legacy_field("FE80::0:ABC"), Messages::new());
    }

    #[test]
    fn networks() {
        check(
            is_cidr,
            &["10.0.0.0/8", "0.0.0.0/0", "::/0", "2001:db8::/64", "1.2.3.4/32"],
            &[
                ("10.0.0.0", &["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"]),
                ("10.0.0.0/33", &["must be a valid CIDR value"]),
                ("10.0.0.0/+8", &["must be a valid CIDR value"]),
                ("10.0.0.0/08", &["must not have leading 0s in IP or prefix length"]),
                ("10.0.0.1/8", &["must not have bits set beyond the prefix length"]),
                ("::ffff:1.2.3.0/120", &["must not have an IPv4-mapped IPv6 address"]),
                ("2001:DB8::/64", &["must be in canonical form (\"2001:db8::/64\")"]),
            ],
        );
    }
}
