//! The C guests and helpers: compiled with the flags of their Makefile and driven by their own small host, under
//! valgrind where there is one. The header is also compiled as C++.

use std::path::{Path, PathBuf};
use std::process::Command;

fn c() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("c")
}

fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let out = command.output().unwrap_or_else(|e| {
        panic!("{shown}: {e}; a C and C++ compiler and make are needed (Debian: build-essential)")
    });
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(out.status.success(), "{shown}: {}\n{text}", out.status);
    text
}

/// Builds everything into a directory of its own.
fn build(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    run(Command::new("make")
        .current_dir(c())
        .args(["-s", "all", "CFLAGS=-O1 -g -Werror"])
        .arg(format!("BUILD={}", dir.display()))
        .arg(format!("{}/check", dir.display())));
    dir
}

#[test]
fn the_guests_behave() {
    let dir = build("c-check");
    let text = run(Command::new(dir.join("check")).arg(&dir));
    assert!(text.contains(" checks"), "{text}");
    // Memory: late and long reads, leaks.
    let valgrind = Command::new("valgrind")
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success());
    if valgrind {
        run(Command::new("valgrind")
            .args([
                "-q",
                "--error-exitcode=9",
                "--leak-check=full",
                "--errors-for-leak-kinds=definite",
            ])
            .arg(dir.join("check"))
            .arg(&dir));
    } else {
        eprintln!("valgrind is not installed: memory is not checked (Debian: valgrind)");
    }
}

#[test]
fn only_the_entry_is_exported() {
    let dir = build("c-symbols");
    for guest in ["minimal.so", "header-policy.so", "bench_guest.so"] {
        let text = run(Command::new("nm")
            .args(["-D", "--defined-only"])
            .arg(dir.join(guest)));
        let names: Vec<&str> = text
            .lines()
            .filter_map(|l| l.split_whitespace().last())
            .collect();
        assert_eq!(names, ["pxg_guest_init_v1"], "{guest}");
    }
}

#[test]
fn the_benchmark_guest_allocates_nothing() {
    let dir = build("c-bench");
    let text = run(Command::new(dir.join("boundary"))
        .arg(dir.join("bench_guest.so"))
        .args(["bench-headers", "1000"]));
    assert!(
        text.contains("\"allocations\":0,\"operations\":3"),
        "{text}"
    );
}

#[test]
fn the_header_is_cxx_too() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cxx");
    std::fs::create_dir_all(&dir).unwrap();
    let source = dir.join("twice.cc");
    let text = "#include \"proxy_golang_guest.h\"\n#include \"proxy_golang_guest.h\"\n\
                int main() { return PXGG_EQ(pxgg_trim(PXGG_LIT(\" a \")), \"a\") ? 0 : 1; }\n";
    std::fs::write(&source, text).unwrap();
    for standard in ["c++11", "c++20"] {
        let program = dir.join(standard.replace('+', "x"));
        run(Command::new("c++")
            .arg(format!("-std={standard}"))
            .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
            .arg(c().join("include"))
            .arg("-I")
            .arg(c().join("../../include"))
            .arg(&source)
            .arg("-o")
            .arg(&program));
        run(&mut Command::new(&program));
    }
}
