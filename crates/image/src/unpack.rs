//! Unpacking layers in a confined child.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// How to start the confined child: a program that calls [`main`] when run with these arguments.
#[derive(Clone, Debug)]
pub struct Unpacker {
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

impl Unpacker {
    /// This very program with the argument `unpack`.
    pub fn current_exe() -> Unpacker {
        Unpacker { program: "/proc/self/exe".into(), args: vec!["unpack".into()] }
    }
}

/// The child: confines itself to its working directory, then unpacks the layer on stdin into it.
///
/// `args` are those after the subcommand's name.
pub fn main(_args: &[OsString]) -> ExitCode {
    todo!()
}
