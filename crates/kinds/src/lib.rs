//! Every built-in kind, one file each, and the list of them.

pub mod kind;
