//! A deferred event is completed once.
use proxy_golang_guest::prelude::*;

struct Keeps;

impl Filter for Keeps {
    type Ctx = ();
    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

impl OnRequestHeaders for Keeps {
    const MAY_PEND: bool = true;
    fn on_request_headers(&self, _: &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        let (verdict, pending) = ev.defer()?;
        pending.resume()?;
        pending.resume()?;
        Ok(verdict)
    }
}

fn main() {}
