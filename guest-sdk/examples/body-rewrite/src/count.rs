//! Counting streamed bodies.

use proxy_golang_guest::Counter;
use proxy_golang_guest::prelude::*;

/// Counts the bytes of both bodies as they stream by. The response's count goes into the trailer `x-body-bytes` where
/// the host can add one, both into the metrics `body_request_bytes` and `body_response_bytes` where it has metrics,
/// and both into the log at level DEBUG. Its configuration is empty.
pub struct BodyCount {
    request: Option<Counter>,
    response: Option<Counter>,
    add_trailer: bool,
}

/// What one stream has seen.
#[derive(Default)]
pub struct Seen {
    request: u64,
    response: u64,
}

impl Filter for BodyCount {
    type Ctx = Seen;

    fn configure(input: &ConfigInput<'_>, setup: &mut Setup) -> Result<Self, ConfigError> {
        if !input.bytes().trim_ascii().is_empty() {
            return Err(ConfigError::new(
                "found a configuration; body-count takes none: leave it empty",
            ));
        }
        let add_trailer = input.has(Feature::TRAILERS_OUT_RESPONSE);
        if !add_trailer || !input.has(Feature::TRAILERS_IN_RESPONSE) {
            setup.skip(Phase::RESPONSE_TRAILERS);
        }
        let counter = |name| input.counter(name, &[]).ok();
        Ok(Self {
            request: counter("body_request_bytes"),
            response: counter("body_response_bytes"),
            add_trailer,
        })
    }
}

impl OnRequestBody for BodyCount {
    const MODE: BodyMode = BodyMode::STREAM;

    fn on_request_body(&self, seen: &mut Seen, ev: &BodyEvent<'_>) -> Outcome {
        seen.request += ev.len() as u64;
        Ok(Verdict::Continue)
    }
}

impl OnResponseBody for BodyCount {
    const MODE: BodyMode = BodyMode::STREAM;

    fn on_response_body(&self, seen: &mut Seen, ev: &BodyEvent<'_>) -> Outcome {
        seen.response += ev.len() as u64;
        // Where trailers follow, theirs is the event to add one at.
        if ev.is_end_of_stream() && self.add_trailer {
            ev.set_trailer_fmt("x-body-bytes", format_args!("{}", seen.response));
        }
        Ok(Verdict::Continue)
    }
}

impl OnResponseTrailers for BodyCount {
    fn on_response_trailers(&self, seen: &mut Seen, ev: &TrailersEvent<'_>) -> Outcome {
        ev.set_trailer_fmt("x-body-bytes", format_args!("{}", seen.response));
        Ok(Verdict::Continue)
    }
}

impl OnLog for BodyCount {
    fn on_log(&self, seen: &mut Seen, ev: &LogEvent<'_>) {
        for (counter, bytes) in [
            (&self.request, seen.request),
            (&self.response, seen.response),
        ] {
            if let Some(counter) = counter {
                ev.count(counter, bytes);
            }
        }
        proxy_golang_guest::debug!(
            ev,
            "body-count: request {} bytes, response {} bytes",
            seen.request,
            seen.response
        );
    }
}
