//! Splits a label selector's query string into words and signs.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Error,
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    GreaterThan,
    Identifier,
    In,
    LessThan,
    NotEquals,
    NotIn,
    Open,
}

const SIGNS: &[u8] = b"=!(),><";

/// Returns the tokens with their texts; the last is [`Token::End`].
pub(super) fn tokens(text: &str) -> Vec<(Token, String)> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        // A NUL ends upstream's scan.
        let Some(first) = rest.bytes().next().filter(|byte| *byte != 0) else {
            out.push((Token::End, String::new()));
            return out;
        };
        let (token, length) = if SIGNS.contains(&first) { sign(rest) } else { word(rest) };
        let literal = match token {
            Token::Error => format!("error expected: keyword found '{}'", &rest[..length]),
            _ => rest[..length].to_owned(),
        };
        out.push((token, literal));
        rest = &rest[length..];
    }
}

/// The longest sign that `text` begins with.
fn sign(text: &str) -> (Token, usize) {
    let two = text.get(..2).and_then(|two| match two {
        "==" => Some(Token::DoubleEquals),
        "!=" => Some(Token::NotEquals),
        _ => None,
    });
    if let Some(token) = two {
        return (token, 2);
    }
    let token = match text.as_bytes()[0] {
        b')' => Token::Close,
        b',' => Token::Comma,
        b'!' => Token::Not,
        b'=' => Token::Equals,
        b'>' => Token::GreaterThan,
        b'<' => Token::LessThan,
        b'(' => Token::Open,
        _ => Token::Error,
    };
    (token, 1)
}

fn word(text: &str) -> (Token, usize) {
    let ends = |byte: u8| SIGNS.contains(&byte) || matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0);
    let length = text.bytes().position(ends).unwrap_or(text.len());
    let token = match &text[..length] {
        "in" => Token::In,
        "notin" => Token::NotIn,
        _ => Token::Identifier,
    };
    (token, length)
}
