//! Resource quantities such as `500m`, `1Gi` and `1e3`.
//!
//! Source: apimachinery `pkg/api/resource/quantity.go`.
