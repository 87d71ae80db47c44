//! Pods and services in real network namespaces, with real packets. Needs root.

mod probe;
mod services;
mod world;
