//! The path by which a request is routed.
//!
//! Endpoints get the path as the client wrote it, but rules match what it means: `/x/../admin` and `/%61dmin` must not pass by
//! the rule that closes `/admin`. Source: nginx `ngx_http_parse.c`, `ngx_http_parse_complex_uri`.

/// Decodes escapes, merges slashes and resolves dots; `None` for a path that leaves the root or is no path.
pub fn normalized(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return None;
    }
    let decoded = decoded(path.as_bytes())?;
    if !decoded.contains("//") && !decoded.contains("/.") {
        return Some(decoded);
    }
    let mut kept: Vec<&str> = Vec::new();
    for element in decoded.split('/') {
        match element {
            "" | "." => {}
            ".." => {
                kept.pop()?;
            }
            name => kept.push(name),
        }
    }
    let directory = ["/", "/.", "/.."].iter().any(|end| decoded.ends_with(end));
    let end = if directory && !kept.is_empty() { "/" } else { "" };
    Some(format!("/{}{end}", kept.join("/")))
}

fn decoded(path: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, after @ ..] = after else { return None };
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let byte = digit(high)? << 4 | digit(low)?;
        if byte == 0 {
            return None;
        }
        bytes.push(byte);
        rest = after;
    }
    Some(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::normalized;

    #[test]
    fn paths_are_what_they_mean() {
        let cases = [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/a/b/", Some("/a/b/")),
            ("//a///b", Some("/a/b")),
            ("/x/../admin", Some("/admin")),
            ("/x/%2e%2E/admin", Some("/admin")),
            ("/%61dmin", Some("/admin")),
            ("/a/./b/.", Some("/a/b/")),
            ("/a/..", Some("/")),
            ("/a%2fb", Some("/a/b")),
            ("/.well-known/x", Some("/.well-known/x")),
            ("/a..b", Some("/a..b")),
            ("/..", None),
            ("/a/../../b", None),
            ("/%0", None),
            ("/%zz", None),
            ("/%00", None),
            ("*", None),
        ];
        for (path, expected) in cases {
            assert_eq!(normalized(path).as_deref(), expected, "{path}");
        }
    }
}
