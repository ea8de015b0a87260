//! What the tests of the program share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub(crate) fn manifest() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Builds the C guest in `source`, with `define` set, as `NAME.so` in `dir`.
pub(crate) fn build(dir: &Path, source: &str, define: &str, name: &str) -> PathBuf {
    let out = dir.join(format!("{name}.so"));
    let done = Command::new("cc")
        .args([
            "-std=gnu99",
            "-O1",
            "-g",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            "-fno-builtin-free",
        ])
        .arg(format!("-D{define}=1"))
        .arg("-I")
        .arg(manifest().join("include"))
        .arg(manifest().join(source))
        .arg("-o")
        .arg(&out)
        .arg("-lpthread")
        .output()
        .expect("a C compiler is needed");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    out
}

/// The C guest of the self-test with one defect, or with one that it does not have.
pub(crate) fn mutant(dir: &Path, defect: &str) -> PathBuf {
    let define = format!("M_{}", defect.replace('-', "_"));
    build(dir, "mutants/guest/c/guest.c", &define, defect)
}

pub(crate) fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pxg-conformance"))
}

/// What it answers: both outputs, one after the other.
pub(crate) fn run(command: &mut Command) -> (i32, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the program starts");
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.code().expect("the program is not killed"), text)
}
