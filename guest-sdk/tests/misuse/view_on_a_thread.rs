//! A view cannot go to a thread.
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
        let path = ev.headers().get_str(":path").unwrap_or_default();
        std::thread::spawn(move || println!("{path}"));
        Ok(Verdict::Continue)
    }
}

fn main() {}
