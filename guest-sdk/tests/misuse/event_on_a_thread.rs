//! An event belongs to its thread.
use proxy_golang_guest::prelude::*;

struct Keeps;

impl Filter for Keeps {
    type Ctx = ();
    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

impl OnRequestHeaders for Keeps {
    fn on_request_headers(&self, _: &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        std::thread::scope(|s| {
            s.spawn(|| ev.set_header("x-a", "b"));
        });
        Ok(Verdict::Continue)
    }
}

fn main() {}
