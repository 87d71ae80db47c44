//! The shim.

/// Entry point of `coracle shim`: serves one pod until it is removed. Never returns; `args` are those after `shim`.
pub fn main(args: &[std::ffi::OsString]) -> ! {
    todo!("{args:?}")
}
