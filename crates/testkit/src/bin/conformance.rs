//! `cargo xtask conformance`: Kubernetes' own conformance suite against a cluster in namespaces.

use std::process::ExitCode;

use testkit::conformance::options::{USAGE, parse};
use testkit::conformance::run::run;

fn main() -> ExitCode {
    let outcome = parse(std::env::args().skip(1)).and_then(|options| match options {
        Some(options) => run(&options),
        None => {
            println!("{USAGE}");
            Ok(true)
        }
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}
