//! The operator's bytes die when `configure` returns.
use proxy_golang_guest::prelude::*;

struct Keeps(&'static str);

impl Filter for Keeps {
    type Ctx = ();
    fn configure(input: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self(input.text()?))
    }
}

fn main() {}
