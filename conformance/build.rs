//! Embeds the rules, the headers and the sources of the mutants, so that the program needs no files beside it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    println!("cargo::rerun-if-changed={}", dir.display());
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    entries.sort();
    for e in entries {
        if e.is_dir() {
            files(&e, out);
        } else {
            out.push(e);
        }
    }
}

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut code = String::new();
    let list = |code: &mut String, name: &str, dirs: &[(&str, &str)], endings: &[&str]| {
        let _ = writeln!(code, "static {name}: &[(&str, &str)] = &[");
        let mut any = false;
        for (dir, prefix) in dirs {
            let mut found = Vec::new();
            files(&root.join(dir), &mut found);
            for f in found {
                let below = f
                    .strip_prefix(root.join(dir))
                    .expect("inside")
                    .display()
                    .to_string();
                let twice = prefix.is_empty() && name == "GO_SDK" && below != "go.mod";
                if twice || below.ends_with("_test.go") {
                    continue;
                }
                if endings.iter().any(|e| below.ends_with(e)) {
                    any = true;
                    let _ = writeln!(
                        code,
                        "    ({:?}, include_str!({:?})),",
                        format!("{prefix}{below}"),
                        f.display().to_string()
                    );
                }
            }
        }
        assert!(any, "found nothing in {dirs:?}");
        let _ = writeln!(code, "];");
    };
    list(&mut code, "RULES", &[("rules", "")], &[".toml"]);
    list(
        &mut code,
        "SOURCES",
        &[
            ("mutants/guest", "guest/"),
            ("include", "include/"),
            ("probe", "probe/"),
            ("minihost/src", "minihost/src/"),
            ("minihost/adapter", "minihost/"),
        ],
        &[".c", ".h", ".inc", ".go", ".mod", ".toml", ".so", ".cc"],
    );
    // What the probe's twin in Go is built with.
    list(
        &mut code,
        "GO_SDK",
        &[
            ("go-sdk/guest", "guest/"),
            ("go-sdk/internal", "internal/"),
            ("go-sdk/proxyfilter", "proxyfilter/"),
            ("go-sdk/", ""),
        ],
        &[".c", ".h", ".go", "go.mod", ".s", ".so"],
    );
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("embedded.rs"), code).expect("cannot write to OUT_DIR");
}
