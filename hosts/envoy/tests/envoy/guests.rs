//! The guests: C ones compiled here, the examples built as their authors build them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Builds a library once for each name.
fn built(name: &str, build: impl FnOnce(&Path) -> Command) -> PathBuf {
    static BUILT: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut all = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    if let Some(path) = all.get(name) {
        return path.clone();
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("envoy-{name}.so"));
    // A process that still has the old one mapped keeps it.
    let _ = std::fs::remove_file(&out);
    let mut command = build(&out);
    let done = command.output().unwrap_or_else(|e| {
        panic!(
            "{} cannot be started ({e}): `cargo xtask test --only envoy` brings it",
            command.get_program().display()
        )
    });
    assert!(
        done.status.success(),
        "{command:?}\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
    all.insert(name.to_owned(), out.clone());
    out
}

fn c(name: &str, sources: &[PathBuf]) -> PathBuf {
    let root = root();
    built(name, |out| {
        let mut cc = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()));
        cc.args([
            "-std=gnu11",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-pthread",
        ]);
        cc.arg("-I")
            .arg(root.join("include"))
            .arg("-I")
            .arg(root.join("guest-sdk/c/include"));
        cc.args(["-fvisibility=hidden", "-o"])
            .arg(out)
            .args(sources);
        cc
    })
}

/// The guest that does what its configuration says.
pub(crate) fn script() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/script");
    let files = std::fs::read_dir(&folder).expect("the folder of the guest");
    let files = files.map(|file| file.expect("a file").path());
    let mut sources: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|e| e == "c"))
        .collect();
    sources.sort();
    c("script", &sources)
}

/// The example in C.
pub(crate) fn header_policy() -> PathBuf {
    let source = root().join("guest-sdk/c/examples/header-policy.c");
    c("header-policy", &[source])
}

/// The examples in Go and those that the tests need: one library with all of them.
pub(crate) fn go() -> PathBuf {
    go_of("go", Path::new("hosts/envoy/tests/guests/go"))
}

/// The examples in Go as their authors bundle them: another library, with a runtime of its own.
pub(crate) fn go_bundle() -> PathBuf {
    go_of("go-bundle", Path::new("guest-sdk/go/examples/bundle"))
}

fn go_of(name: &str, package: &Path) -> PathBuf {
    built(name, |out| {
        let mut go = Command::new("go");
        go.current_dir(root().join(package));
        go.args(["build", "-buildmode=c-shared", "-o"])
            .arg(out)
            .arg(".");
        go.env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "1");
        go
    })
}

/// The examples in Rust. Cargo puts them beside this program when it builds the workspace's tests.
pub(crate) fn rust() -> PathBuf {
    let library = beside_this("libbody_rewrite.so");
    assert!(
        library.is_file(),
        "there is no {}: run `cargo build -p body-rewrite` first",
        library.display()
    );
    library
}

/// What cargo built into the folder of this program, or above it.
fn beside_this(name: &str) -> PathBuf {
    let program = std::env::current_exe().expect("the path of this program");
    let folder = program.parent().expect("a program is in a folder");
    let above = folder
        .parent()
        .expect("the folder of tests is in another")
        .join(name);
    if above.is_file() {
        above
    } else {
        folder.join(name)
    }
}

/// The folder in which Envoy finds the module: cargo builds it beside the tests of its package.
pub(crate) fn module_folder() -> PathBuf {
    let program = std::env::current_exe().expect("the path of this program");
    let folder = program
        .parent()
        .expect("a program is in a folder")
        .to_owned();
    assert!(
        folder.join("libproxy_golang.so").is_file(),
        "no libproxy_golang.so in {}",
        folder.display()
    );
    folder
}
