//! Why the runtime could not do what it was asked.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be executed, or the container not set up. `reason` is fit for a Pod's status, in runc's words.
    #[error("{reason}")]
    Start { reason: String },
    /// The plan asks for what this runtime cannot or must not do.
    #[error("{field}: {problem}")]
    Plan { field: String, problem: String },
    #[error("pod {0:?} is not known to the runtime")]
    UnknownPod(String),
    #[error("container {0:?} is not known to the runtime")]
    UnknownContainer(String),
    #[error("container {0:?} is not running")]
    NotRunning(String),
    /// The pod's shim does not answer; an [`Event::ShimDied`](crate::plan::Event::ShimDied) follows if it is dead.
    #[error("the shim of pod {0:?} does not answer")]
    Shim(String),
    /// `what` says what was being done.
    #[error("could not {what}")]
    Io { what: String, source: io::Error },
}

pub(crate) fn io_error(what: String) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { what: what.clone(), source }
}
