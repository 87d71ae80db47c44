//! The program that the tests give to the runtime: a shim, and what else the real binary is started as.

fn main() {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|arg| arg.to_str()) {
        Some("shim") => runtime::shim::main(&args[1..]),
        other => {
            eprintln!("unknown command {other:?}");
            std::process::exit(2);
        }
    }
}
