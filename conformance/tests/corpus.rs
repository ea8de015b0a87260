//! The kept corpus of the coverage-guided fuzzer of what the suite reads, put through once.

use std::path::Path;

#[test]
fn every_kept_input_is_read_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host-ref/fuzz/corpus/reports");
    let mut kinds = [0; 4];
    for e in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let file = e.expect("a folder of files").path();
        let data = std::fs::read(&file).expect("a file of the corpus");
        if let Some(first) = data.first() {
            kinds[usize::from(first % 4)] += 1;
        }
        let ended = std::panic::catch_unwind(|| proxy_golang_conformance::fuzzing::any(&data));
        assert!(ended.is_ok(), "{}", file.display());
    }
    assert!(kinds.iter().all(|n| *n > 0), "{kinds:?}");
}
