//! The guest of the boundary benchmark, the twin of `guest-sdk/c/bench/bench_guest.c`.

use proxy_golang_guest::prelude::*;

/// Reads all request fields, finds two, and makes three changes: one set with a copied value, one added, one removed.
pub struct BenchHeaders;

impl Filter for BenchHeaders {
    type Ctx = ();

    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

impl OnRequestHeaders for BenchHeaders {
    fn on_request_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        let (mut request_id, mut agent, mut total) = (&b""[..], None, 0);
        for field in ev.headers() {
            let (name, value) = (field.name(), field.value());
            total += name.len() + value.len();
            if name == b"x-request-id" {
                request_id = value;
            } else if name == b"user-agent" {
                agent = Some(value);
            }
        }
        ev.set_header("x-seen-id", request_id);
        let size = if total > 1024 || agent.is_none() { "large" } else { "small" };
        ev.add_header_borrowed("x-size", size);
        ev.remove_header_borrowed("user-agent");
        Ok(Verdict::Continue)
    }
}
