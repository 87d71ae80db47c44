//! Runs the fuzz targets of `fuzz/`: cargo-fuzz with libFuzzer, which needs a nightly compiler.
//!
//! What is found lies in `fuzz/artifacts/TARGET`; with the mending it becomes a seed in `fuzz/corpus/TARGET`, which every test run
//! replays. What libFuzzer collects on its way stays in `target/fuzz/corpus`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Result, root, run as run_command};

/// Of each target, unless `--seconds` says otherwise.
const SECONDS: u32 = 60;
/// The longest input that is tried, in bytes: parsers show their faults in small ones.
const LONGEST: u32 = 16 << 10;
/// A single input may not take longer, in seconds, nor more memory, in MB.
const SLOWEST: u32 = 10;
const LARGEST: u32 = 2048;

pub fn run(arguments: &[String]) -> Result {
    let targets = targets(&root())?;
    let wanted = Wanted::parse(arguments, &targets)?;
    tools()?;
    run_command(cargo_fuzz("build").args(&wanted.target)).map_err(|error| format!("could not build: {error}"))?;
    let chosen = targets.iter().filter(|target| wanted.target.as_ref().is_none_or(|only| only == *target));
    let mut failed = Vec::new();
    for target in chosen {
        println!("{target}: {} s", wanted.seconds);
        if fuzz(target, wanted.seconds).is_err() {
            failed.push(target.as_str());
        }
    }
    let where_to_look = "what broke them is in fuzz/artifacts; mend it, and keep the input in fuzz/corpus";
    if failed.is_empty() { Ok(()) } else { Err(format!("broken: {}; {where_to_look}", failed.join(", "))) }
}

#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// All when `None`.
    target: Option<String>,
    seconds: u32,
}

impl Wanted {
    fn parse(arguments: &[String], targets: &[String]) -> Result<Self> {
        let mut wanted = Self { target: None, seconds: SECONDS };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--seconds" => {
                    let number = rest.next().and_then(|number| number.parse().ok()).filter(|number| *number > 0);
                    wanted.seconds = number.ok_or("--seconds takes a number of seconds, such as 60")?;
                }
                name if wanted.target.is_none() && targets.iter().any(|target| target == name) => {
                    wanted.target = Some(name.to_owned());
                }
                name => {
                    let known = targets.join(", ");
                    return Err(format!("{name:?} is no fuzz target; the targets are {known}"));
                }
            }
        }
        Ok(wanted)
    }
}

/// The names of all targets.
fn targets(root: &Path) -> Result<Vec<String>> {
    let dir = root.join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&dir).map_err(|error| format!("could not read {}: {error}", dir.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut targets: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned())).collect();
    targets.sort();
    Ok(targets)
}

/// Looks for what is needed, and says how to get it.
fn tools() -> Result {
    let works =
        |arguments: &[&str]| Command::new("cargo").args(arguments).output().is_ok_and(|out| out.status.success());
    if !works(&["+nightly", "--version"]) {
        return Err("fuzzing needs a nightly compiler: rustup toolchain install nightly".to_owned());
    }
    if !works(&["+nightly", "fuzz", "--version"]) {
        return Err("fuzzing needs cargo-fuzz: cargo install cargo-fuzz --locked".to_owned());
    }
    Ok(())
}

fn cargo_fuzz(verb: &str) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root()).args(["+nightly", "fuzz", verb, "--target-dir", "target/fuzz"]);
    command
}

fn fuzz(target: &str, seconds: u32) -> Result {
    let root = root();
    let collected = root.join("target/fuzz/corpus").join(target);
    fs::create_dir_all(&collected).map_err(|error| format!("could not make {}: {error}", collected.display()))?;
    let mut command = cargo_fuzz("run");
    command.arg(target);
    // libFuzzer adds to the first corpus alone.
    command.args([&collected, &root.join("fuzz/corpus").join(target)]).arg("--");
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={LONGEST}"),
        format!("-timeout={SLOWEST}"),
        format!("-rss_limit_mb={LARGEST}"),
        "-print_final_stats=1".to_owned(),
        "-verbosity=0".to_owned(),
        "-print_funcs=0".to_owned(),
    ]);
    run_command(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Result<(Option<&str>, u32)>) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let targets = ["tar".to_owned(), "yaml".to_owned()];
        let expected = expected.map(|(target, seconds)| Wanted { target: target.map(str::to_owned), seconds });
        assert_eq!(Wanted::parse(&words, &targets), expected);
    }

    #[test]
    fn an_unknown_target_lists_the_known_ones() {
        check("", Ok((None, SECONDS)));
        check("yaml --seconds 5", Ok((Some("yaml"), 5)));
        check("yml", Err("\"yml\" is no fuzz target; the targets are tar, yaml".to_owned()));
        check("--seconds soon", Err("--seconds takes a number of seconds, such as 60".to_owned()));
    }
}
