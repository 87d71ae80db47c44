//! `cargo xtask torture`: kills, stops, starves and deceives a cluster under load, and checks that nobody notices what nobody may.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use planted::Bug;
use testkit::torture::{Options, run};

const USAGE: &str = "usage: cargo xtask torture [--minutes N] [--seed S] [--planted [NAME]] [--release]
  --minutes N       how long, in minutes (1); the last round is brought to its end
  --seed S          repeats the choices of another run; without it a new seed is taken and printed
  --planted [NAME]  proves that the bug of that name is found, or each of all of them, in a minute and a half each
  --release         tortures a release build";

/// How long a planted bug may take to be found.
const TO_FIND: Duration = Duration::from_secs(90);

/// What the command line asks for.
#[derive(Debug, PartialEq)]
struct Asked {
    minutes: f64,
    seed: Option<u64>,
    /// Empty: no bug is planted.
    planted: Vec<Bug>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match parse(&arguments)
        .map_err(anyhow::Error::msg)
        .and_then(|asked| if asked.planted.is_empty() { torture(&asked) } else { prove(&asked) })
    {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("torture: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn parse(arguments: &[String]) -> Result<Asked, String> {
    let mut asked = Asked { minutes: 1.0, seed: None, planted: Vec::new() };
    let mut rest = arguments.iter().peekable();
    while let Some(argument) = rest.next() {
        if argument == "--planted" {
            asked.planted = match rest.next_if(|name| !name.starts_with("--")) {
                None => Bug::ALL.to_vec(),
                Some(name) => {
                    vec![Bug::ALL.iter().copied().find(|bug| bug.name() == name).ok_or_else(|| unknown(name))?]
                }
            };
            continue;
        }
        let value = rest.next();
        match (argument.as_str(), value) {
            ("--minutes", Some(text)) => {
                let minutes = text.parse().ok().filter(|minutes| (0.0..=100_000.0).contains(minutes));
                asked.minutes = minutes.ok_or_else(|| format!("--minutes {text}: a number of minutes is wanted"))?;
            }
            ("--seed", Some(text)) => {
                let seed = text.parse().map_err(|_| format!("--seed {text}: a whole number from 0 is wanted"))?;
                asked.seed = Some(seed);
            }
            ("--minutes" | "--seed", None) => return Err(format!("{argument} needs a value\n{USAGE}")),
            (other, _) => return Err(format!("unknown argument {other:?}\n{USAGE}")),
        }
    }
    Ok(asked)
}

fn unknown(name: &str) -> String {
    let known: Vec<String> = Bug::ALL.iter().map(|bug| format!("  {:<24} {}", bug.name(), bug.what())).collect();
    format!("no bug is called {name:?}; there are\n{}", known.join("\n"))
}

fn options(seed: u64) -> Result<Options> {
    Ok(Options {
        lab: "torture".to_owned(),
        binary: coracle()?,
        seeds: vec![seed],
        length: Duration::ZERO,
        with_clock: true,
        planted: None,
        patience: Duration::from_secs(60),
        prepared: |_| Ok(()),
        verbose: false,
    })
}

/// Runs, and says whether there was no violation.
fn torture(asked: &Asked) -> Result<bool> {
    let seed = asked.seed.unwrap_or_else(new_seed);
    println!("seed {seed}");
    let length = Duration::from_secs_f64(asked.minutes * 60.0);
    let summary = run(&Options { length, verbose: true, ..options(seed)? })?;
    println!("\n{summary}");
    Ok(summary.violations.is_empty())
}

/// Plants bugs one after the other, and says whether each was found, and nothing without one.
fn prove(asked: &Asked) -> Result<bool> {
    let seed = asked.seed.unwrap_or_else(new_seed);
    println!("seed {seed}");
    let patience = Duration::from_secs(20);
    let healthy = run(&Options { length: Duration::from_secs(20), ..options(seed)? })?;
    let nothing = if healthy.violations.is_empty() { "nothing, as it must be" } else { "VIOLATIONS" };
    println!("{:<24} {nothing}", "without a bug");
    healthy.violations.iter().for_each(|violation| println!("  {violation}"));
    let mut missed = 0;
    for bug in &asked.planted {
        let began = std::time::Instant::now();
        let outcome =
            run(&Options { length: TO_FIND, planted: Some(*bug), with_clock: false, patience, ..options(seed)? });
        let found = match outcome {
            Ok(summary) => summary.violations.first().map(ToString::to_string),
            Err(error) => Some(format!("no cluster comes up: {error:#}")),
        };
        let verdict = if found.is_some() { "found" } else { "NOT FOUND" };
        missed += usize::from(found.is_none());
        let by: String = found.unwrap_or_default().lines().next().unwrap_or_default().chars().take(300).collect();
        println!("{:<24} {verdict} after {:.0?}: {by}", bug.name(), began.elapsed());
    }
    println!("{} of {} found", asked.planted.len() - missed, asked.planted.len());
    Ok(missed == 0 && healthy.violations.is_empty())
}

/// The binary that was built beside this one.
fn coracle() -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("coracle"))
}

/// Short, so that it is easily typed again.
fn new_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) % 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str], expected: Result<Asked, &str>) {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        match (parse(&arguments), expected) {
            (Ok(asked), Ok(expected)) => assert_eq!(asked, expected),
            (Err(said), Err(expected)) => assert!(said.contains(expected), "{said}"),
            (parsed, expected) => panic!("{parsed:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn arguments_are_read_or_explained() {
        let asked = |minutes, seed, planted: &[Bug]| Asked { minutes, seed, planted: planted.to_vec() };
        check(&[], Ok(asked(1.0, None, &[])));
        check(&["--minutes", "0.5", "--seed", "7"], Ok(asked(0.5, Some(7), &[])));
        check(&["--planted", "--seed", "7"], Ok(asked(1.0, Some(7), Bug::ALL)));
        check(&["--planted", "lost-write"], Ok(asked(1.0, None, &[Bug::LostWrite])));
        check(&["--planted", "gremlins"], Err("watch-drops-event"));
        check(&["--minutes", "ten"], Err("a number of minutes"));
        check(&["--seed", "-1"], Err("a whole number"));
        check(&["--seed"], Err("needs a value"));
        check(&["--kill", "everything"], Err("usage: cargo xtask torture"));
    }
}
