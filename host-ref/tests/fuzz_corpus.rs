//! The kept corpus of the coverage-guided fuzzers (`fuzz/`), put through their targets once: what was found stays found.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::path::Path;

fn each(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|e| e.expect("a folder of files").path())
        .collect();
    files.sort();
    assert!(
        files.len() >= 5,
        "{}: {} files",
        folder.display(),
        files.len()
    );
    for file in files {
        let data = std::fs::read(&file).expect("a file of the corpus");
        let ended = std::panic::catch_unwind(|| run(&data));
        assert!(ended.is_ok(), "{target}: {}", file.display());
    }
    run(b"");
}

#[test]
fn engine() {
    each("engine", targets::engine::run);
}

#[test]
fn result() {
    each("result", targets::result::run);
}

#[test]
fn elf() {
    each("elf", targets::elf::run);
}

#[cfg(feature = "proxy")]
#[test]
fn config() {
    each("config", targets::config::run);
}
