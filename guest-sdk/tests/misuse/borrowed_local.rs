//! What a result borrows must outlive the call: a local does not.
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
        let local = format!("{}", 7);
        ev.set_header_borrowed("x-a", &local);
        Ok(Verdict::Continue)
    }
}

fn main() {}
