//! Example guest in Rust, with filters to read and copy from:
//!
//! * `body-rewrite` rewrites whole bodies by literal replacements,
//! * `body-count` counts the bytes of streamed bodies,
//! * `async-echo` defers a request and decides it on another thread,
//! * `bench-headers` is the guest of the boundary benchmark.
#![forbid(unsafe_code)]

mod async_echo;
mod bench;
mod count;
mod rewrite;

pub use async_echo::AsyncEcho;
pub use bench::BenchHeaders;
pub use count::BodyCount;
pub use rewrite::BodyRewrite;

proxy_golang_guest::export! {
    "body-rewrite" => BodyRewrite,
    "body-count" => BodyCount,
    "async-echo" => AsyncEcho,
    "bench-headers" => BenchHeaders,
}
