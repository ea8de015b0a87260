//! Cost of the boundary.
fn main() {}
