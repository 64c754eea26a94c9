//! The program `saferl`.
fn main() {}
