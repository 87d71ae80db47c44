//! The v1.37 object schema: one table of facts, parsed once.
