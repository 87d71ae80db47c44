//! The API server: authentication → authorization → admission → registry → store.

pub mod admit;
pub mod authn;
pub mod hooks;
pub mod identity;
pub mod path;
pub mod pki;
