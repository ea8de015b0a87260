//! Only an event that was deferred is pending.
use proxy_golang_guest::prelude::*;

struct Keeps;

impl Filter for Keeps {
    type Ctx = ();
    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

impl OnRequestHeaders for Keeps {
    fn on_request_headers(&self, _: &mut (), _: &HeadersEvent<'_>) -> Outcome {
        Ok(Verdict::Pending(proxy_golang_guest::verdict::Deferred(())))
    }
}

fn main() {}
