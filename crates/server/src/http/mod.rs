//! The server's HTTP side: connections, bodies, negotiation and routes.

pub mod body;
pub mod exchange;
pub mod listen;
pub mod negotiate;
pub mod protobuf;
pub mod reply;
pub mod route;
pub mod stream;
pub mod takeover;
pub mod write;
