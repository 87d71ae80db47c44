//! Pods and services in real network namespaces, with real packets. Needs root.

mod services;
mod world;
