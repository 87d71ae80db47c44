//! An error and what caused it, in one line.

use std::error::Error;

/// The texts of an error and of all its causes, the outermost first.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
