//! What the project's coverage-guided fuzzers call: everything here that reads a file. Not part of the interface.

use std::io::Write as _;

use crate::report::verify;
use crate::scenario::Scenario;
use crate::{elf, subject};

/// Reads bytes as what their first one says. Whatever they are, it returns.
///
/// # Panics
/// If what was read is not what was written, or a mistake has no words.
pub fn any(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    if kind % 4 == 2 {
        scenario(&String::from_utf8_lossy(rest));
        return;
    }
    let Ok(mut file) = tempfile::Builder::new()
        .tempfile_in("/dev/shm")
        .or_else(|_| tempfile::NamedTempFile::new())
    else {
        return;
    };
    if file.write_all(rest).is_err() {
        return;
    }
    let path = file.path();
    match kind % 4 {
        0 => {
            if let Err(text) = elf::exports(path) {
                assert!(text.contains("found"), "{text}");
            }
            elf::has_go(path);
            elf::words(path, 50);
            elf::symbols_with_prefix(path, "x");
            crate::symbols::name_of(path, 0x1000);
        }
        1 => {
            if let Ok(r) = verify::verify(path) {
                // Whatever a report says, all its forms can be made of it.
                crate::report::html::page(&r);
                crate::report::machine::tap(&r);
                crate::report::machine::github(&r);
                crate::report::human::whole(&r, true);
                let _ = crate::report::machine::junit(&r);
            }
        }
        _ => {
            let text = String::from_utf8_lossy(rest);
            // Files that the settings name are not this fuzzer's to read.
            if !text.contains("config_file") {
                let _ = subject::read(path);
            }
        }
    }
}

fn scenario(text: &str) {
    if let Ok(s) = Scenario::parse(text) {
        let written = s.to_text().unwrap_or_default();
        match Scenario::parse(&written) {
            Ok(again) => assert!(again == s, "{written}"),
            Err(e) => panic!("{e:#}: {written}"),
        }
    }
}
