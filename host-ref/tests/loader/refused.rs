//! Libraries that are no guests, and guests that are wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use proxy_golang_host::loader::{LoadError, LoadErrorKind as K, check, load};

use crate::support::*;

/// The error of a file that [`check`] refuses, and that [`load`] refuses in the same words.
#[track_caller]
fn refused(path: &Path, kind: K, parts: &[&str]) -> LoadError {
    let error = check(path).expect_err("expected a refusal");
    assert_eq!(error.kind, kind, "{error}");
    assert_says(&error, parts);
    assert!(error.to_string().ends_with('.'), "{error}");
    let (host, _) = host();
    assert_eq!(
        load(&host, path).expect_err("as check").to_string(),
        error.to_string()
    );
    assert!(host.libraries().is_empty());
    error
}

/// The error of a guest that [`check`] accepts and [`load`] refuses.
#[track_caller]
fn refused_by_load(name: &str, kind: K, parts: &[&str]) {
    let path = guest(name);
    check(&path).unwrap_or_else(|e| panic!("{e}"));
    let (host, _) = host();
    let error = load(&host, &path).expect_err("expected a refusal");
    assert_eq!(error.kind, kind, "{error}");
    assert_says(&error, parts);
    assert_says(&error, &[path.to_str().expect("an ASCII path")]);
    assert!(host.libraries().is_empty());
}

#[test]
fn missing_file() {
    refused(
        Path::new("/nowhere/guest.so"),
        K::Missing,
        &[
            "/nowhere/guest.so",
            "No such file",
            "a readable guest library",
            "build the guest first",
        ],
    );
    refused(
        Path::new("no/guest.so"),
        K::Missing,
        &["The path is relative to /"],
    );
}

#[test]
fn directory_and_pipe() {
    let folder = scratch_file("folder");
    fs::create_dir(&folder).unwrap();
    refused(
        &folder,
        K::NotAFile,
        &["a directory", "a regular file", "Name the library itself"],
    );
    let socket = scratch_file("s");
    // A path of a socket is short.
    let short = std::env::temp_dir().join(format!("pxg-{}.sock", std::process::id()));
    let _listener = std::os::unix::net::UnixListener::bind(&short).unwrap();
    fs::rename(&short, &socket).unwrap();
    refused(&socket, K::NotAFile, &["a socket"]);
}

#[test]
fn not_an_elf_file() {
    for (bytes, found) in [
        (&b""[..], "an empty file"),
        (b"#!/bin/sh\n", "a script"),
        (b"!<arch>\nfoo", "c-archive"),
        (b"MZ\x90\0", "Windows"),
        (b"hello\nworld", "begins with \"hello\\nwo ... \""),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "Git LFS pointer",
        ),
    ] {
        let path = scratch_file("file");
        fs::write(&path, bytes).unwrap();
        let found = found.replace(" ... ", "");
        refused(
            &path,
            K::NotElf,
            &[
                &found,
                "a 64-bit ELF shared library for",
                "-buildmode=c-shared",
            ],
        );
    }
}

#[test]
fn truncated_elf() {
    let whole = fs::read(guest("plain")).unwrap();
    for len in [10, 30, 100, 5000, whole.len() / 2, whole.len() - 1] {
        let path = scratch_file("cut.so");
        fs::write(&path, &whole[..len]).unwrap();
        refused(
            &path,
            K::Damaged,
            &["cut", &len.to_string(), "shared library"],
        );
    }
}

#[test]
fn library_without_a_section_table() {
    let mut bytes = fs::read(guest("plain")).unwrap();
    // e_shoff, e_shnum and e_shstrndx.
    for at in (40..48).chain(60..64) {
        bytes[at] = 0;
    }
    let whole = scratch_file("whole.so");
    fs::write(&whole, &bytes).unwrap();
    load(&host().0, &whole).unwrap_or_else(|e| panic!("{e}"));
    // Mapping what is not there would end in SIGBUS.
    let cut = scratch_file("cut.so");
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    refused(
        &cut,
        K::Damaged,
        &[
            "damaged or cut: a segment ends at byte",
            "a whole shared library",
        ],
    );
}

/// A copy of a good guest with some of its first bytes changed.
fn patched(changes: &[(usize, u8)]) -> std::path::PathBuf {
    let mut bytes = fs::read(guest("plain")).unwrap();
    for (at, byte) in changes {
        bytes[*at] = *byte;
    }
    let path = scratch_file("patched.so");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn another_machine() {
    let (other, name) = if cfg!(target_arch = "x86_64") {
        (183, "aarch64")
    } else {
        (62, "x86-64")
    };
    refused(
        &patched(&[(18, other)]),
        K::WrongMachine,
        &[name, "shared library for", "for this machine"],
    );
    refused(
        &patched(&[(18, 0x34), (19, 0x12)]),
        K::WrongMachine,
        &["machine number 4660"],
    );
}

#[test]
fn another_word_size_or_byte_order() {
    refused(
        &patched(&[(4, 1), (18, 3)]),
        K::WrongClass,
        &["a 32-bit ELF file for i386", "64-bit"],
    );
    refused(
        &patched(&[(5, 2), (18, 0), (19, 22)]),
        K::WrongClass,
        &["big-endian ELF file for s390x"],
    );
}

#[test]
fn executable_instead_of_a_library() {
    let pie = compile("executable", &["-pie", "-rdynamic"]);
    refused(
        &pie,
        K::NotALibrary,
        &[
            "an executable (position-independent)",
            "a shared library",
            "cdylib",
        ],
    );
    let fixed = compile("executable", &["-no-pie", "-rdynamic", "-fno-pic"]);
    refused(&fixed, K::NotALibrary, &["an executable", "-shared -fPIC"]);
    refused(
        &compile("no_entry", &["-c"]),
        K::NotALibrary,
        &["object file"],
    );
}

#[test]
fn no_entry_function() {
    refused(
        &guest("no_entry"),
        K::NoEntry,
        &[
            "without that function",
            "the exported function pxg_guest_init_v1",
            "link the SDK's entry",
        ],
    );
    refused(
        &guest("hidden_entry"),
        K::NoEntry,
        &["pxg_guest_init_v1, but hidden", "default visibility"],
    );
    refused(
        &guest("entry_is_data"),
        K::NoEntry,
        &["as a variable", "a function", "Rename"],
    );
}

#[test]
fn another_major_version_in_the_name() {
    refused(
        &guest("other_major"),
        K::OtherMajor,
        &[
            "major version 2",
            "pxg_guest_init_v1, for major version 1",
            "SDK for version 1",
        ],
    );
}

#[test]
fn unreadable_file() {
    let path = guest("plain");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser may read everything.
    if fs::File::open(&path).is_err() {
        refused(
            &path,
            K::Missing,
            &[
                "Permission denied",
                "Let the user that the host runs as read the file",
            ],
        );
    }
}

#[test]
fn unresolved_symbols_are_found_at_load() {
    refused_by_load(
        "unresolved",
        K::Unresolved,
        &[
            "only_in_the_proxy",
            "all its symbols resolved",
            "Link the library that has the symbol into the guest",
        ],
    );
}

#[test]
fn init_refuses_the_version() {
    refused_by_load(
        "says_version",
        K::Version,
        &[
            "the answer VERSION (-7)",
            "made for the draft of\\nversion 1",
            "version 1.0 of the ABI",
            "Build the guest",
        ],
    );
}

#[test]
fn a_refused_guest_can_be_tried_again() {
    let path = guest("says_internal");
    let (host, log) = host();
    let error = load(&host, &path).expect_err("the first time");
    assert_eq!(error.kind, K::Refused);
    assert_says(
        &error,
        &["INTERNAL (-9)", "no rules file", "mend what it names"],
    );
    let library = load(&host, &path).expect("the second time");
    assert_eq!(host.libraries().len(), 1);
    assert_eq!(library.name(), "test-guest");
    assert_eq!(
        log.with("no rules file")[0].1,
        library.path().file_name().unwrap().to_str().unwrap()
    );
}

#[test]
fn tables_that_break_rules() {
    for (name, kind, parts) in [
        (
            "answers_major_2",
            K::Version,
            &["version 2.0 in pxg_guest", "major version 1"][..],
        ),
        (
            "table_too_short",
            K::BadTable,
            &[
                "pxg_guest.size 152",
                "200: not less than in version 1.0",
                "author",
            ],
        ),
        (
            "unknown_guest_flags",
            K::BadTable,
            &["pxg_guest.flags 0x8001", "no bits beside 0x1"],
        ),
        (
            "requires_features",
            K::MissingFeature,
            &[
                "requires WIRE_ORDER, L4, feature number 200",
                "PXG-NEG-003",
                "Use a host that has it",
            ],
        ),
        (
            "no_filters",
            K::BadTable,
            &["no filters", "at least one", "Register each filter"],
        ),
        (
            "filters_twice",
            K::BadTable,
            &["the filter name \"auth\" twice", "distinct names"],
        ),
        (
            "filter_name_not_utf8",
            K::BadTable,
            &["the filter name \"a\\xff\"", "UTF-8"],
        ),
        (
            "filters_null",
            K::BadTable,
            &["pxg_guest.filters", "8-aligned array"],
        ),
        (
            "no_on_event",
            K::BadTable,
            &[
                "no on_event, on_cancel in pxg_guest",
                "all of on_config_new",
            ],
        ),
    ] {
        refused_by_load(name, kind, parts);
    }
}
