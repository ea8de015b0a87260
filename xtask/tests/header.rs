//! The generated headers against the compiled crate, with the compilers and readers that their users have.

mod abi_constants;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use proxy_golang_abi::layout::STRUCTS;

const HEADERS: &[&str] = &["proxy_golang.h", "proxy_golang/ext/metrics.h"];

fn include() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../include")
}

/// Runs a tool; a missing one is an error that says how to get it.
fn tool(program: &str, arguments: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = command.output().unwrap_or_else(|error| {
        panic!("{program}: {error}. `cargo xtask test` installs what the tests need")
    });
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// gcc's and, where it is installed, clang's driver for C or C++.
fn compilers(gcc: &'static str, clang: &'static str) -> Vec<&'static str> {
    let there = Command::new(clang).arg("--version").output().is_ok();
    [Some(gcc), there.then_some(clang)]
        .into_iter()
        .flatten()
        .collect()
}

/// A file that includes every header, twice.
fn includes(folder: &Path, name: &str) -> PathBuf {
    let mut text = String::new();
    for header in HEADERS.iter().chain(HEADERS) {
        text.push_str(&format!("#include \"{header}\"\n"));
    }
    text.push_str("int all_included;\n");
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn compile(compiler: &str, standard: &str, file: &Path) {
    let include = include();
    let mut arguments = vec![format!("-std={standard}"), "-I".into()];
    arguments.push(include.display().to_string());
    for flag in ["-Wall", "-Wextra", "-Wpedantic", "-Wpadded", "-Werror"] {
        arguments.push(flag.into());
    }
    // `long long`, which a 64-bit literal may be, is older than C++11 only by name.
    arguments.push("-fsyntax-only".into());
    arguments.push(file.display().to_string());
    tool(compiler, arguments);
}

#[test]
fn the_headers_compile_in_every_dialect_without_padding() {
    let folder = tempfile::tempdir().unwrap();
    let c = includes(folder.path(), "all.c");
    for compiler in compilers("gcc", "clang") {
        for standard in ["c99", "c11"] {
            compile(compiler, standard, &c);
        }
    }
    let cpp = includes(folder.path(), "all.cpp");
    for compiler in compilers("g++", "clang++") {
        for standard in ["c++11", "c++20"] {
            compile(compiler, standard, &cpp);
        }
    }
}

#[test]
fn the_layout_check_compiles_in_every_dialect() {
    let file = include().join("layout_check.c");
    for compiler in compilers("gcc", "clang") {
        for standard in ["c99", "c11"] {
            compile(compiler, standard, &file);
        }
    }
    // Compilers of C++ take the language from the ending.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("layout_check.cpp");
    std::fs::copy(&file, &copy).unwrap();
    for compiler in compilers("g++", "clang++") {
        for standard in ["c++11", "c++20"] {
            compile(compiler, standard, &copy);
        }
    }
}

#[test]
fn the_layout_check_has_every_struct_and_member() {
    let text = std::fs::read_to_string(include().join("layout_check.c")).unwrap();
    for s in STRUCTS {
        assert!(
            text.contains(&format!("SIZE({}, {});", s.c, s.size)),
            "{}",
            s.c
        );
        for f in s.fields {
            let line = format!("MEMBER({}, {}, {}, {});", s.c, f.name, f.offset, f.size);
            assert!(text.contains(&line), "{line}");
        }
    }
}

/// What bindgen, by libclang, reads in the headers: constants, and sizes and offsets by type and member.
struct Read {
    numbers: BTreeMap<String, i64>,
    sizes: BTreeMap<String, usize>,
    offsets: BTreeMap<String, usize>,
}

fn bindgen() -> Read {
    let folder = tempfile::tempdir().unwrap();
    let file = includes(folder.path(), "all.h");
    let bindings = bindgen::Builder::default()
        .header(file.display().to_string())
        .clang_arg(format!("-I{}", include().display()))
        .allowlist_item("(pxg|PXG)_.*")
        .layout_tests(true)
        .formatter(bindgen::Formatter::None)
        .generate()
        .unwrap();
    let mut read = Read {
        numbers: BTreeMap::new(),
        sizes: BTreeMap::new(),
        offsets: BTreeMap::new(),
    };
    let file: syn::File = syn::parse_file(&bindings.to_string()).unwrap();
    for item in file.items {
        let syn::Item::Const(item) = item else {
            continue;
        };
        if item.ident != "_" {
            if let Some(value) = number(&item.expr) {
                read.numbers.insert(item.ident.to_string(), value);
            }
            continue;
        }
        let syn::Expr::Block(block) = *item.expr else {
            continue;
        };
        for statement in block.block.stmts {
            let syn::Stmt::Expr(syn::Expr::Index(index), _) = statement else {
                continue;
            };
            layout(&index, &mut read);
        }
    }
    read
}

/// One of bindgen's checks: `["Offset of field: pxg_str::len"][offset_of!(pxg_str, len) - 8usize]`.
fn layout(index: &syn::ExprIndex, read: &mut Read) {
    let syn::Expr::Array(array) = &*index.expr else {
        return;
    };
    let Some(syn::Expr::Lit(syn::ExprLit {
        lit: syn::Lit::Str(what),
        ..
    })) = array.elems.first()
    else {
        return;
    };
    let syn::Expr::Binary(difference) = &*index.index else {
        return;
    };
    let value = usize::try_from(number(&difference.right).unwrap()).unwrap();
    let what = what.value();
    if let Some(name) = what.strip_prefix("Size of ") {
        read.sizes.insert(name.to_owned(), value);
    } else if let Some(name) = what.strip_prefix("Offset of field: ") {
        read.offsets.insert(name.to_owned(), value);
    }
}

fn number(expr: &syn::Expr) -> Option<i64> {
    match expr {
        syn::Expr::Lit(syn::ExprLit {
            lit: syn::Lit::Int(i),
            ..
        }) => i.base10_parse().ok(),
        syn::Expr::Unary(unary) => Some(-number(&unary.expr)?),
        _ => None,
    }
}

#[test]
fn bindgen_reads_the_crates_layout_and_constants_in_the_headers() {
    let read = bindgen();
    let mut sizes = BTreeMap::new();
    let mut offsets = BTreeMap::new();
    for s in STRUCTS {
        sizes.insert(s.c.to_owned(), s.size);
        for f in s.fields {
            offsets.insert(format!("{}::{}", s.c, f.name), f.offset);
        }
    }
    assert_eq!(read.sizes, sizes);
    assert_eq!(read.offsets, offsets);
    let numbers: BTreeMap<String, i64> = abi_constants::NUMBERS
        .iter()
        .map(|(name, value)| ((*name).to_owned(), *value))
        .collect();
    assert_eq!(
        numbers.len(),
        abi_constants::NUMBERS.len(),
        "a C name twice"
    );
    assert_eq!(read.numbers, numbers);
}

#[test]
fn luajit_reads_what_the_header_has() {
    let mut script = String::from(
        "local ffi = require 'ffi'\nlocal pxg = require 'proxy_golang.ffi'\nlocal bad = {}\n\
         local function same(what, is, want) if is ~= want then bad[#bad + 1] = what .. ': ' .. tostring(is) .. ', not ' .. want end end\n",
    );
    for s in STRUCTS {
        script += &format!("same('size of {0}', ffi.sizeof('{0}'), {1})\n", s.c, s.size);
        for f in s.fields {
            script += &format!(
                "same('{0}.{1}', ffi.offsetof('{0}', '{1}'), {2})\n",
                s.c, f.name, f.offset
            );
        }
    }
    for (name, value) in bindgen().numbers {
        let short = name.trim_start_matches("PXG_");
        script += &format!("same('{name}', pxg.{short}, {value})\n");
    }
    script += "same('phase_bit', pxg.phase_bit(19), 524288ULL)\n\
               same('symbol', pxg.GUEST_INIT_SYMBOL, 'pxg_guest_init_v1')\n\
               local n = 0\nfor _, v in pairs(pxg) do if type(v) == 'number' then n = n + 1 end end\n";
    script += &format!("same('constants', n, {})\n", abi_constants::NUMBERS.len());
    script += "assert(#bad == 0, table.concat(bad, '\\n'))\nprint 'same'\n";
    // `require "proxy_golang.ffi"` looks for proxy_golang/ffi.lua; the module's file has both words in its name.
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("proxy_golang")).unwrap();
    std::fs::copy(
        include().join("proxy_golang.ffi.lua"),
        folder.path().join("proxy_golang/ffi.lua"),
    )
    .unwrap();
    let test = folder.path().join("test.lua");
    let path = format!("package.path = '{}/?.lua'\n", folder.path().display());
    std::fs::write(&test, path + &script).unwrap();
    assert_eq!(tool("luajit", [test]), "same\n");
}

/// The guest in the header's top comment.
fn example() -> String {
    let header = std::fs::read_to_string(include().join("proxy_golang.h")).unwrap();
    let top = &header[..header.find("#ifndef PROXY_GOLANG_H").unwrap()];
    let start = top.find(" *   #include \"proxy_golang.h\"").unwrap();
    let lines = top[start..]
        .lines()
        .map_while(|line| line.strip_prefix(" *   "));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn the_example_in_the_header_is_a_guest_with_one_symbol_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().join("host");
    let mut arguments = vec!["-std=c99".into(), "-D_POSIX_C_SOURCE=200809L".into()];
    arguments.extend([OsString::from("-I"), include().into()]);
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/example_host.c");
    arguments.extend([data.into(), "-o".into(), host.clone().into(), "-ldl".into()]);
    tool("gcc", arguments);
    let source = folder.path().join("guest.c");
    std::fs::write(&source, example()).unwrap();
    for compiler in compilers("gcc", "clang") {
        let library = folder.path().join(format!("{compiler}.so"));
        let include = include();
        let flags = "-std=c99 -Wall -Werror -shared -fPIC -I";
        let mut arguments: Vec<_> = flags.split(' ').map(std::ffi::OsStr::new).collect();
        arguments.extend([include.as_os_str(), source.as_os_str(), "-o".as_ref()]);
        arguments.push(library.as_os_str());
        tool(compiler, arguments);
        let symbols = tool(
            "nm",
            [
                "-D".as_ref(),
                "--defined-only".as_ref(),
                library.as_os_str(),
            ],
        );
        let names: Vec<_> = symbols
            .lines()
            .filter_map(|l| l.split(' ').nth(2))
            .collect();
        assert_eq!(names, [proxy_golang_abi::GUEST_INIT_SYMBOL], "{compiler}");
        let said = tool(host.to_str().unwrap(), [&library]);
        assert_eq!(
            said, "hello: action 1, kind 2, x-hello = world\n",
            "{compiler}"
        );
    }
}
