//! A view cannot be kept in the stream's context.
use proxy_golang_guest::prelude::*;

struct Keeps;

impl Filter for Keeps {
    type Ctx = Option<&'static [u8]>;
    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

impl OnRequestHeaders for Keeps {
    fn on_request_headers(&self, ctx: &mut Self::Ctx, ev: &HeadersEvent<'_>) -> Outcome {
        *ctx = ev.headers().get("x-key");
        Ok(Verdict::Continue)
    }
}

fn main() {}
