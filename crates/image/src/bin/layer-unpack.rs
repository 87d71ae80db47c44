//! The unpacking child as a program of its own, for the tests of crates that do not build `coracle`.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    image::unpack::main(&args)
}
