//! Rewriting whole bodies.

use aho_corasick::{AhoCorasick, MatchKind};
use proxy_golang_guest::prelude::*;
use proxy_golang_guest::{Counter, Direction, debug, warn};
use serde::Deserialize;

/// Replaces literal strings in whole bodies. Configured in JSON:
///
/// ```json
/// {
///   "direction": "response",
///   "content_types": ["text/html", "application/*"],
///   "replace": [{"from": "http://internal.example", "to": "https://www.example.com"}],
///   "max_body": 1048576,
///   "over_limit": "pass"
/// }
/// ```
/// Only `replace` is required. `direction` is `response` (the default), `request` or `both`. `content_types` is
/// `["text/*", "application/json"]` if left out; parameters such as `charset` do not count. At each place of the body
/// the first of the replacements that matches wins, and what was put in is not looked at again. A body longer than
/// `max_body` bytes (the default is the host's own limit) is passed unchanged with `over_limit` `pass`, the default;
/// with `fail` a request is answered 413 and a response 502.
///
/// Bodies in a content-encoding can't be searched and pass unchanged; so that responses come without one, the
/// request's `accept-encoding` is removed. Partial responses (206) pass unchanged too. Where a body was changed, the
/// fields that digest it (`etag`, `content-md5`, `digest`, `content-digest`, `repr-digest`) are removed.
pub struct BodyRewrite {
    rules: AhoCorasick,
    to: Vec<String>,
    content_types: Vec<String>,
    over_limit: OverLimit,
    requests: bool,
    responses: bool,
    rewritten: Option<Counter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    direction: Where,
    #[serde(default = "default_content_types")]
    content_types: Vec<String>,
    replace: Vec<Replacement>,
    #[serde(default)]
    max_body: u64,
    #[serde(default)]
    over_limit: OverLimit,
}

#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Where {
    #[default]
    Response,
    Request,
    Both,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replacement {
    from: String,
    to: String,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OverLimit {
    #[default]
    Pass,
    Fail,
}

fn default_content_types() -> Vec<String> {
    vec!["text/*".to_owned(), "application/json".to_owned()]
}

impl Filter for BodyRewrite {
    type Ctx = ();

    fn configure(input: &ConfigInput<'_>, setup: &mut Setup) -> Result<Self, ConfigError> {
        let config: Config = serde_json::from_str(input.text()?)?;
        if let Some(empty) = config.replace.iter().position(|r| r.from.is_empty()) {
            return Err(ConfigError::new(format!(
                "replace[{empty}].from is empty; expected the text to look for"
            )));
        }
        if config.replace.is_empty() {
            return Err(ConfigError::new(
                "replace is empty; expected at least one {\"from\": ..., \"to\": ...}",
            ));
        }
        let rules = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostFirst)
            .build(config.replace.iter().map(|r| &r.from))?;

        let (requests, responses) = (
            config.direction != Where::Response,
            config.direction != Where::Request,
        );
        let directions = [
            (requests, Direction::Request, Feature::BODY_WHOLE_REQUEST),
            (responses, Direction::Response, Feature::BODY_WHOLE_RESPONSE),
        ];
        for (wanted, direction, feature) in directions {
            // A body is turned on when its headers say that it may be rewritten.
            setup.body_mode(direction, BodyMode::SKIP);
            setup.max_body(direction, config.max_body);
            if wanted && !input.has(feature) {
                return Err(ConfigError::missing_feature(feature));
            }
        }
        if !requests {
            setup.skip(Phase::REQUEST_BODY);
        }
        if !responses {
            setup
                .skip(Phase::RESPONSE_HEADERS)
                .skip(Phase::RESPONSE_BODY);
        }
        Ok(Self {
            rules,
            to: config.replace.into_iter().map(|r| r.to).collect(),
            content_types: config
                .content_types
                .iter()
                .map(|t| t.to_ascii_lowercase())
                .collect(),
            over_limit: config.over_limit,
            requests,
            responses,
            rewritten: input.counter("body_rewrite_bodies", &[]).ok(),
        })
    }
}

impl BodyRewrite {
    /// Whether a message with these headers has a body to rewrite.
    fn applies_to(&self, ev: &HeadersEvent<'_>) -> bool {
        let headers = ev.headers();
        let encoded = headers
            .get("content-encoding")
            .is_some_and(|e| !e.eq_ignore_ascii_case(b"identity"));
        if ev.is_end_of_stream() || encoded || headers.get(":status") == Some(b"206") {
            return false;
        }
        let Some(content_type) = headers.get_str("content-type") else {
            return false;
        };
        let content_type = content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        self.content_types
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => content_type.starts_with(prefix),
                None => content_type == *pattern,
            })
    }

    fn headers(&self, ev: &HeadersEvent<'_>) -> Outcome {
        if self.applies_to(ev) {
            ev.body_mode(BodyMode::WHOLE);
        }
        Ok(Verdict::Continue)
    }

    fn body(&self, ev: &BodyEvent<'_>, too_long: u16) -> Outcome {
        if ev.is_over_limit() {
            return match self.over_limit {
                OverLimit::Pass => {
                    debug!(
                        ev,
                        "body-rewrite: over the limit with {} bytes, passed unchanged",
                        ev.len()
                    );
                    ev.body_mode(BodyMode::SKIP);
                    Ok(Verdict::Continue)
                }
                OverLimit::Fail => {
                    warn!(ev, "body-rewrite: over the limit with {} bytes", ev.len());
                    ev.reply(too_long)
                        .header("content-type", "text/plain")
                        .body("the body is too long to be rewritten\n")
                        .details("body-rewrite: over the limit")
                        .send()
                }
            };
        }
        let body = ev.contiguous();
        if !self.rules.is_match(&*body) {
            return Ok(Verdict::Continue);
        }
        for digest in [
            "etag",
            "content-md5",
            "digest",
            "content-digest",
            "repr-digest",
        ] {
            if ev.headers().contains(digest) {
                ev.remove_header_borrowed(digest);
            }
        }
        if let Some(counter) = &self.rewritten {
            ev.count(counter, 1);
        }
        // The new body is handed over: the host sends it from where it is.
        ev.replace(self.rules.replace_all_bytes(&body, &self.to));
        Ok(Verdict::Continue)
    }
}

impl OnRequestHeaders for BodyRewrite {
    fn on_request_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        if self.responses && ev.headers().contains("accept-encoding") {
            ev.remove_header("accept-encoding");
        }
        if self.requests {
            self.headers(ev)
        } else {
            Ok(Verdict::Continue)
        }
    }
}

impl OnRequestBody for BodyRewrite {
    const MODE: BodyMode = BodyMode::WHOLE;

    fn on_request_body(&self, (): &mut (), ev: &BodyEvent<'_>) -> Outcome {
        self.body(ev, 413)
    }
}

impl OnResponseHeaders for BodyRewrite {
    fn on_response_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        self.headers(ev)
    }
}

impl OnResponseBody for BodyRewrite {
    const MODE: BodyMode = BodyMode::WHOLE;

    fn on_response_body(&self, (): &mut (), ev: &BodyEvent<'_>) -> Outcome {
        self.body(ev, 502)
    }
}
