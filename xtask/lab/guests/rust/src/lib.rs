//! The benchmarks' guest in Rust: the same filters as in `../main.go` and `../c/bench.c`.
#![forbid(unsafe_code)]

use proxy_golang_guest::prelude::*;

/// Sets one field in each request.
pub struct Sync;

impl Filter for Sync {
    type Ctx = ();

    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

impl OnRequestHeaders for Sync {
    fn on_request_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        ev.set_header_borrowed("x-bench", "0123456789abcdef");
        Ok(Verdict::Continue)
    }
}

/// Takes the whole body and sets a field to its length.
pub struct Whole;

impl Filter for Whole {
    type Ctx = ();

    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

impl OnRequestBody for Whole {
    const MODE: BodyMode = BodyMode::WHOLE;

    fn on_request_body(&self, (): &mut (), ev: &BodyEvent<'_>) -> Outcome {
        ev.set_header_fmt("x-bench", format_args!("{}", ev.len()));
        Ok(Verdict::Continue)
    }
}

proxy_golang_guest::export! {
    "bench-sync" => Sync,
    "bench-whole" => Whole,
}
