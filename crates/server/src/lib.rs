//! The API server: authentication → authorization → admission → registry → store.

pub mod admission;
pub mod admit;
pub mod allocate;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod discovery;
pub mod encode;
pub mod expiry;
#[doc(hidden)]
pub mod fuzz;
pub mod health;
pub mod hooks;
pub mod http;
pub mod identity;
pub mod impersonate;
pub mod local;
pub mod node;
pub mod openapi;
pub mod openid;
pub mod path;
pub mod pki;
mod proxy;
pub mod registry;
pub mod reviews;
pub mod server;
mod tunnel;
