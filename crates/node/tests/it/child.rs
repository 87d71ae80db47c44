//! The program that the tests give to the runtime and the image store for their children.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|arg| arg.to_str()) {
        Some("shim") => runtime::shim::main(&args[1..]),
        Some("unpack") => image::unpack::main(&args[1..]),
        other => {
            eprintln!("unknown command {other:?}");
            ExitCode::from(2)
        }
    }
}
