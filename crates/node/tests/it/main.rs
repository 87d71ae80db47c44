//! The node for real: an API server in process, and pods as processes of this machine.

mod bed;
mod configuration;
mod endpoint;
mod pods;
mod probes;
mod survival;
