//! The host's look at a library's file, before anything of it runs.

use super::file;

pub fn run(data: &[u8]) {
    let file = file(data, ".so");
    match proxy_golang_host::loader::check(file.path()) {
        Ok(facts) => assert!(facts.path.is_absolute()),
        Err(e) => {
            let text = e.to_string();
            assert!(text.len() > 20, "an error without words: {text:?}");
        }
    }
}
