//! The kubelet's part: what runs on this machine, and what the API is told about it.
//!
//! Pure cores decide ([`pod_machine`], [`pod_status`], [`plan`], [`admission`], the payloads of [`volumes`], the thresholds of
//! [`probes`]), thin shells carry out. Each pod has a worker of its own with its own machine; the node's heartbeat shares
//! nothing with them. Follows upstream's `pkg/kubelet`.

pub mod accounts;
pub mod admission;
pub mod backoff;
pub mod events;
pub mod eviction;
pub mod exec;
pub mod hooks;
pub mod http_get;
pub mod image_gc;
pub mod images;
pub mod logs;
pub mod network;
pub mod node_status;
pub mod plan;
pub mod pod_machine;
pub mod pod_status;
pub mod probes;
pub mod resources;
pub mod run;
pub mod server;
pub mod shared;
pub mod sources;
pub mod status;
pub mod tokens;
pub mod volumes;
pub mod worker;
