//! The unprivileged worker: ingress and DNS.

/// Runs as `coracle edge`.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
