//! The test host is strict: what breaks a rule fails the test with the rule's id.

use proxy_golang_guest::prelude::*;
use proxy_golang_guest::testing::{TestHost, request, response};
use proxy_golang_guest::{Library, library};

/// Breaks the rule that its configuration names.
struct Breaks(String);

impl Filter for Breaks {
    type Ctx = ();
    fn configure(input: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self(input.text()?.to_owned()))
    }
}

impl OnRequestHeaders for Breaks {
    fn on_request_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        match self.0.as_str() {
            "newline" => ev.set_header("x-a", "b\r\nx-c: d"),
            "upper case" => ev.set_header("X-A", "b"),
            "framing" => ev.set_header("content-length", "7"),
            "pseudo" => ev.add_header(":path", "/x"),
            "index" => ev.remove_header_at(99),
            "trailer" => ev.set_trailer("x-a", "b"),
            _ => {}
        }
        Ok(Verdict::Continue)
    }
}

impl OnRequestBody for Breaks {
    const MODE: BodyMode = BodyMode::STREAM;
    fn on_request_body(&self, (): &mut (), ev: &BodyEvent<'_>) -> Outcome {
        match self.0.as_str() {
            "beyond" => ev.pass(ev.len() + 1),
            "longer" => ev.inject("more"),
            "more at the end" if ev.is_end() => return Ok(Verdict::More(0)),
            "late header" => ev.set_header("x-a", "b"),
            "mode" => ev.body_mode(BodyMode::WHOLE),
            "status" => return ev.reply(99).send(),
            _ => {}
        }
        Ok(Verdict::Continue)
    }
}

static LIBRARY: Library = library! { "breaks" => Breaks };

#[test]
fn every_breach_is_seen() {
    for (how, rule) in [
        ("newline", "PXG-HDR-005"),
        ("upper case", "PXG-HDR-005"),
        ("framing", "PXG-HDR-008"),
        ("pseudo", "PXG-HDR-006"),
        ("index", "PXG-HDR-004"),
        ("trailer", "PXG-TRL-001"),
        ("beyond", "PXG-BODY-006"),
        ("longer", "PXG-HDR-007"),
        ("more at the end", "PXG-ACT-003"),
        ("late header", "PXG-TRL-001"),
        ("mode", "PXG-BODY"),
        ("status", "PXG-RPL-001"),
    ] {
        let result = std::panic::catch_unwind(|| {
            let host = TestHost::new(&LIBRARY);
            let config = host.configure("breaks", how).unwrap();
            config.exchange(
                request("POST", "/")
                    .header("content-length", "4")
                    .body("body"),
                response(204),
            )
        });
        let text = *result.expect_err(how).downcast::<String>().unwrap();
        assert!(
            text.contains(rule) && text.contains("PXG_TEST_SEED="),
            "{how}: {text}"
        );
    }
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("breaks", "nothing").unwrap();
    config.exchange(
        request("POST", "/")
            .header("content-length", "4")
            .body("body"),
        response(204),
    );
}
