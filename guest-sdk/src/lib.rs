//! Write proxy_golang filters in safe Rust.
