//! The configuration of `pxg-host`: TOML, types, and everything that is checked before a guest is loaded.

use std::path::Path;

use proxy_golang_host::proxy::config::{Config, check};

use super::file;

pub fn run(data: &[u8]) {
    // Files that it names would be read: none but those beside it.
    if data.windows(2).any(|w| w == b"..") || data.contains(&b'/') && names_a_device(data) {
        return;
    }
    let file = file(data, ".toml");
    let read = Config::read(file.path()).and_then(check);
    if let Err(e) = read {
        let text = e.to_string();
        assert!(
            text.contains(
                &*file
                    .path()
                    .file_name()
                    .expect("it has a name")
                    .to_string_lossy()
            ),
            "an error that does not name the file: {text}"
        );
    }
}

fn names_a_device(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    ["/dev", "/proc", "/sys"]
        .iter()
        .any(|d| text.contains(d) && Path::new(d).exists())
}
