//! Label and field selectors, as query strings and as `LabelSelector` objects.
//!
//! Source: apimachinery `pkg/labels/selector.go`, `pkg/fields/selector.go`.
