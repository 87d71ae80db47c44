//! The project's own commands: `cargo xtask up`, `cargo xtask test`, `cargo xtask tidy`.

fn main() {}
