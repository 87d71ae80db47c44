//! Why a container or an exec could not be started, in the words of Go's runtimes.

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Fault(pub(super) String);

/// Says what failed: `what: no such file or directory`.
pub(super) trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, Fault>;
}

impl<T, E: std::fmt::Display> During<T> for Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| Fault(format!("{}: {}", what(), words(&error.to_string()))))
    }
}

/// An error as Go's runtimes print it: `no such file or directory`, where Rust says `No such file or directory (os error 2)`.
pub(super) fn words(error: &str) -> String {
    let text = error.split(" (os error").next().unwrap_or(error);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) if letters.clone().next().is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn errors_read_like_gos() {
        let error = std::io::Error::from_raw_os_error(2).to_string();
        assert_eq!(words(&error), "no such file or directory");
        assert_eq!(words("EOF while parsing"), "EOF while parsing");
    }
}
