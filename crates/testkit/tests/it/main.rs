//! What a lab promises: hosts that reach each other, own directories, and nothing left behind.

mod host;
