//! Filled by its crate's first commit.
