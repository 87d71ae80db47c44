//! The project's own commands. No dependencies: it is the first thing that a fresh machine builds.
//!
//! - `cargo xtask up [--once] [--json FILE] [--pull]` builds the release binary and runs the example rack.
//! - `cargo xtask test [ARGS]` checks style, licences and structure, and runs all tests.
//! - `cargo xtask tidy` checks the structure alone.
//! - `cargo xtask fuzz [TARGET] [--seconds N]` feeds nonsense to one parser of strangers' bytes, or to all.
//! - `cargo xtask conformance|diff|bench|torture [ARGS]` builds the binary and runs one of the instruments, which explain themselves with `--help`.

mod fuzz;
mod machine;
mod tidy;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

type Result<T = ()> = std::result::Result<T, String>;

const USAGE: &str = "usage: cargo xtask up [--once] [--json FILE] [--pull] | test [ARGS for the test runner] | tidy | fuzz [TARGET] [--seconds N]
       cargo xtask conformance|diff|bench|torture [ARGS, --help]";

/// A program that judges the built binary.
struct Instrument {
    name: &'static str,
    package: &'static str,
    /// Whether it measures, so that only a release build will do. The others take one with `--release`.
    release: bool,
    /// Features that the binary has for it alone.
    features: Option<&'static str>,
}

const INSTRUMENTS: &[Instrument] = &[
    Instrument { name: "conformance", package: "testkit", release: false, features: None },
    Instrument { name: "diff", package: "testkit", release: false, features: None },
    Instrument { name: "bench", package: "benches", release: true, features: None },
    Instrument { name: "torture", package: "testkit", release: false, features: Some("coracle/faults") },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((command, rest)) if command == "up" => up(rest),
        Some((command, rest)) if command == "test" => test(rest),
        Some((command, rest)) if command == "fuzz" => fuzz::run(rest),
        Some((command, [])) if command == "tidy" => tidy::check(&root()),
        Some((command, rest)) => INSTRUMENTS
            .iter()
            .find(|instrument| instrument.name == command)
            .map_or_else(|| Err(USAGE.to_owned()), |instrument| judge(instrument, rest)),
        None => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

fn up(arguments: &[String]) -> Result {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--once" | "--pull" => {}
            "--json" if rest.next().is_some() => {}
            _ => return Err(USAGE.to_owned()),
        }
    }
    machine::check()?;
    machine::install(machine::FOR_UP)?;
    cargo(&["build", "--release", "--package", "coracle", "--package", "testkit", "--bins"])?;
    let rack = target_dir()?.join("release/rack");
    run(Command::new(rack).args(arguments))
}

/// Builds the binary and an instrument, and runs it with the rest of the command line.
fn judge(instrument: &Instrument, arguments: &[String]) -> Result {
    machine::check()?;
    machine::install(machine::FOR_TESTS)?;
    let release = instrument.release || arguments.iter().any(|argument| argument == "--release");
    let mut build = vec!["build", "--package", "coracle", "--package", instrument.package, "--bins"];
    build.extend(release.then_some("--release"));
    let planted = arguments.iter().any(|argument| argument == "--planted");
    let features = if planted { Some("coracle/planted") } else { instrument.features };
    build.extend(features.iter().flat_map(|features| ["--features", features]));
    cargo(&build)?;
    let built = target_dir()?.join(if release { "release" } else { "debug" });
    let arguments = arguments.iter().filter(|argument| *argument != "--release");
    run(Command::new(built.join(instrument.name)).args(arguments))
}

fn test(arguments: &[String]) -> Result {
    machine::check()?;
    machine::install(machine::FOR_TESTS)?;
    tidy::check(&root())?;
    cargo(&["fmt", "--all", "--check"])?;
    licences()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    let mut command = vec!["test", "--workspace", "--no-fail-fast"];
    command.extend(arguments.iter().map(String::as_str));
    cargo(&command)
}

/// `cargo deny`, which is built into `target/tools` when the machine has none.
fn licences() -> Result {
    let tools = root().join("target/tools");
    let installed = tools.join("bin/cargo-deny");
    if !installed.exists() {
        let tools = tools.to_string_lossy().into_owned();
        run(Command::new("cargo").args(["install", "cargo-deny", "--locked", "--root", &tools]).args([
            "--no-default-features",
            "--config",
            "profile.release.opt-level=0",
            "--config",
            "profile.release.lto=false",
            "--target-dir",
            &format!("{tools}/build"),
        ]))?;
    }
    run(Command::new(installed).current_dir(root()).args(["check", "licenses", "bans", "sources"]))
}

/// Where cargo puts what it builds for this machine; the target is named in `.cargo/config.toml`.
fn target_dir() -> Result<PathBuf> {
    let version = Command::new("rustc").arg("-vV").output().map_err(|e| format!("could not run rustc: {e}"))?;
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc -vV names no host")?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join(host))
}

fn cargo(arguments: &[&str]) -> Result {
    let mut command = Command::new("cargo");
    // What the outer cargo says of this very package: some build scripts would take it for theirs, and build everything anew.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|prefix| text.starts_with(prefix))
        {
            command.env_remove(&name);
        }
    }
    run(command.current_dir(root()).args(arguments))
}

fn run(command: &mut Command) -> Result {
    let shown = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|error| format!("could not run {shown}: {error}"))?;
    succeeded(status, command)
}

fn succeeded(status: ExitStatus, command: &Command) -> Result {
    if status.success() {
        return Ok(());
    }
    let words: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    Err(format!("{} {}: {status}", command.get_program().to_string_lossy(), words.join(" ")))
}
