//! The official conformance suite of the release that coracle speaks, run against a cluster in namespaces.
//!
//! The suite, its client and its images are programs of the Go module `conformance/`. Source: kubernetes
//! `test/conformance/testdata/conformance.yaml` (the tests), `test/e2e` (the suite), `test/utils/image/manifest.go` (the images).

pub mod cluster;
pub mod images;
pub mod libraries;
pub mod objects;
pub mod options;
pub mod outcome;
pub mod progress;
pub mod refusals;
pub mod report;
pub mod run;
pub mod suite;
pub mod tools;
