//! What the conformance suite reads: libraries' files, reports, scenarios, settings.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proxy_golang_conformance::fuzzing::any(data));
