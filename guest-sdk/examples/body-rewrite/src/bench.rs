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
            total += field.value_len();
            if field.is("x-request-id") {
                request_id = field.value();
            } else if field.is("user-agent") {
                agent = Some(field.value());
            }
        }
        ev.set_header("x-seen-id", request_id);
        let size = if total > 1024 || agent.is_none() {
            "large"
        } else {
            "small"
        };
        ev.add_header_borrowed("x-size", size);
        ev.remove_header_borrowed("user-agent");
        Ok(Verdict::Continue)
    }
}
