//! Loading, and what is checked of the guest's answer.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::missing;
use proxy_golang_abi::{GuestFlags, LogLevel, Status, VERSION_MAJOR};

use super::elf::{ElfFacts, Libc, OWN_LIBC, open};
use super::error::{LoadError, LoadErrorKind as K, names};
use super::signals::Blocked;
use super::{CONFIG_THREAD, Host, Library, State, file_name, lock};
use crate::ffi::{self, Entry, GuestAnswer, OpenError, clean, status_name};

/// Most bytes of a name or version that are kept.
const MAX_NAME: usize = 256;

/// A file that is mapped into this process for one host.
pub(super) struct Mapped {
    entry: &'static Entry,
    facts: ElfFacts,
    library: Option<Arc<Library>>,
}

/// Go runtimes of this process, whichever host loaded them: the files.
static GO: Mutex<Vec<(u64, u64, String)>> = Mutex::new(Vec::new());

/// Loads a guest library: once per file (device and inode), for the rest of the process. \[config-thread\]
///
/// The library's code runs in this process with all its rights: load only what you trust. Process-directed signals are
/// blocked in this thread meanwhile, so that threads which the guest starts never take them.
///
/// # Errors
/// The file is not a guest for this host, or the guest refuses it. Nothing of the host has changed then, but a file that
/// passed [`check`](super::check) stays mapped.
pub fn load(host: &Arc<Host>, path: &Path) -> Result<Arc<Library>, LoadError> {
    // Held open: an inode does not get another file while it is.
    let (facts, _file) = open(path)?;
    let key = (facts.device, facts.inode);
    let mut loaded = lock(&host.loaded);
    let known = loaded
        .files
        .get(&key)
        .map(|m| (m.entry, m.facts.clone(), m.library.clone()));
    let entry = match known {
        Some((entry, first, library)) => {
            if (first.len, first.modified_ns) != (facts.len, facts.modified_ns) {
                entry.log(
                    LogLevel::WARN,
                    &format!(
                        "{} was written to after it was loaded: what was mapped then keeps running, if it was not \
                         damaged. Give a new version another path, or move it over the old one (PXG-LOAD-007)",
                        facts.path.display()
                    ),
                );
            }
            if let Some(library) = library {
                return Ok(library);
            }
            entry
        }
        None => Entry::leak(&host.shared, &file_name(&facts.path)).ok_or_else(|| {
            LoadError::new(
                &facts.path,
                K::Limit,
                format!("{} libraries loaded in this process", ffi::MAX_LIBRARIES),
                "fewer: a library is never unloaded",
                "Restart the host.",
            )
        })?,
    };
    let serial = lock(&CONFIG_THREAD);
    let signals = Blocked::new();
    let init = ffi::open(&path_of_its_own(&facts)).map_err(|e| refused_by_linker(&facts, e))?;
    loaded.files.entry(key).or_insert_with(|| Mapped {
        entry,
        facts: facts.clone(),
        library: None,
    });
    warn_of_second_go(entry, &facts);
    let (answer, said) = entry.capture(|| init.call(entry));
    drop(signals);
    drop(serial);
    let library = Arc::new(accept(host, entry, facts, &answer, said.as_deref())?);
    entry.set_label(&library.name);
    if let Some(mapped) = loaded.files.get_mut(&key) {
        mapped.library = Some(Arc::clone(&library));
    }
    loaded.libraries.push(Arc::clone(&library));
    entry.log(
        LogLevel::INFO,
        &format!(
            "loaded {} {} from {}",
            library.name,
            library.version,
            library.facts.path.display()
        ),
    );
    Ok(library)
}

/// The file's path, written so that the dynamic linker has not seen it for another file: it looks at the text of a path
/// before it looks at the file, and would answer with the library that lay there before (PXG-LOAD-007).
fn path_of_its_own(facts: &ElfFacts) -> PathBuf {
    static OPENED: Mutex<Vec<(PathBuf, (u64, u64))>> = Mutex::new(Vec::new());
    let mut opened = lock(&OPENED);
    let file = (facts.device, facts.inode);
    let mut before = opened.iter().filter(|o| o.0 == facts.path);
    let turn = before.position(|o| o.1 == file).unwrap_or_else(|| {
        let turn = opened.iter().filter(|o| o.0 == facts.path).count();
        opened.push((facts.path.clone(), file));
        turn
    });
    let (Some(folder), Some(name)) = (facts.path.parent(), facts.path.file_name()) else {
        return facts.path.clone();
    };
    let mut path = OsString::from(folder);
    for _ in 0..turn {
        path.push("/.");
    }
    path.push("/");
    path.push(name);
    path.into()
}

fn refused_by_linker(facts: &ElfFacts, error: OpenError) -> LoadError {
    let (kind, text) = match error {
        OpenError::Load(text) => (K::Unresolved, text),
        OpenError::Symbol(text) => (K::NoEntry, text),
    };
    let other_libc = match (facts.libc, OWN_LIBC) {
        (Some(theirs), Some(ours)) if theirs != ours => Some((theirs, ours)),
        _ => None,
    };
    let advice = match other_libc {
        Some((theirs, ours)) => format!("The guest is built for {theirs}, this host for {ours}: build it for {ours}."),
        None if text.contains("GLIBC_") => {
            "The guest is built for a newer system: build it on one as old as this, or for musl hosts with musl.".to_owned()
        }
        None if text.contains("undefined symbol") => {
            "Link the library that has the symbol into the guest: a guest uses nothing of the host's executable \
             (PXG-LOAD-002)."
                .to_owned()
        }
        None => "Install the libraries that the guest needs, or link them into it (ldd names them).".to_owned(),
    };
    let expected = match facts.libc {
        Some(Libc::Musl) | None => "a library that loads with all its symbols resolved",
        Some(Libc::Glibc) => "a library that loads here with all its symbols resolved",
    };
    LoadError::new(
        &facts.path,
        kind,
        format!("\"{}\"", clean(text.as_bytes(), 1024)),
        expected,
        advice,
    )
}

fn warn_of_second_go(entry: &Entry, facts: &ElfFacts) {
    if !facts.go {
        return;
    }
    let mut runtimes = lock(&GO);
    if runtimes
        .iter()
        .any(|(device, inode, _)| (*device, *inode) == (facts.device, facts.inode))
    {
        return;
    }
    if let Some((_, _, first)) = runtimes.first() {
        entry.log(
            LogLevel::WARN,
            &format!(
                "{} is Go runtime number {} in this process, after {first}: it works in practice, and Go does not support \
                 it. Put the filters into one library (PXG-LOAD-008)",
                facts.path.display(),
                runtimes.len() + 1
            ),
        );
    }
    runtimes.push((facts.device, facts.inode, facts.path.display().to_string()));
}

fn accept(
    host: &Arc<Host>,
    entry: &'static Entry,
    facts: ElfFacts,
    answer: &GuestAnswer,
    said: Option<&str>,
) -> Result<Library, LoadError> {
    let fail = |kind, found: String, expected: String, advice: &str| {
        Err(LoadError::new(&facts.path, kind, found, expected, advice))
    };
    let text = said.map_or_else(
        || "no text".to_owned(),
        |said| format!("the text \"{said}\""),
    );
    let sdk = "Report it to the guest's author: its SDK fills the table.";
    if answer.status.0 < 0 {
        let found = format!(
            "the answer {} ({}) of its init, with {text}",
            status_name(answer.status),
            answer.status.0
        );
        let own = format!("{VERSION_MAJOR}.{}", abi::VERSION_MINOR);
        return match answer.status {
            Status::VERSION => fail(
                K::Version,
                found,
                format!("a guest that works with version {own} of the ABI"),
                "Build the guest with an SDK for this major version.",
            ),
            Status::UNSUPPORTED => fail(
                K::MissingFeature,
                found,
                "a guest that works with what this host can do".to_owned(),
                "Use a host that has what the guest asks for; the list of this one is in its documentation.",
            ),
            Status::STATE => fail(
                K::Refused,
                found,
                "a guest that takes more than one host in a process, or the only host".to_owned(),
                "Load the guest from one host only.",
            ),
            _ => fail(
                K::Refused,
                found,
                "OK".to_owned(),
                "See what the guest logged, and mend what it names.",
            ),
        };
    }
    let least = size_of::<abi::Guest>();
    if answer.size() < least || answer.size() > least {
        return fail(
            K::BadTable,
            format!("pxg_guest.size {}", answer.size()),
            format!(
                "{least}: not less than in version 1.0, not more than it was given (PXG-ABI-002)"
            ),
            sdk,
        );
    }
    let (major, minor) = answer.version();
    if major != VERSION_MAJOR {
        return fail(
            K::Version,
            format!("version {major}.{minor} in pxg_guest"),
            format!("major version {VERSION_MAJOR}"),
            "Build the guest with an SDK for this major version.",
        );
    }
    let unknown = answer.flags() & !GuestFlags::ABORTS.0;
    if unknown != 0 {
        return fail(
            K::BadTable,
            format!("pxg_guest.flags {:#x}", answer.flags()),
            format!("no bits beside {:#x} (PXG-ABI-005)", GuestFlags::ABORTS.0),
            "Use a host of the guest's version.",
        );
    }
    let lacks = missing(&answer.required(), host.shared.features());
    if lacks != [0; 4] {
        return fail(
            K::MissingFeature,
            format!("a guest that requires {}", names(&lacks)),
            "a guest that works without what this host does not have (PXG-NEG-003)".to_owned(),
            "Use a host that has it, or a build of the guest that can do without.",
        );
    }
    let table = match entry_table(answer, entry) {
        Ok(table) => table,
        Err(hooks) => {
            return fail(
                K::BadTable,
                format!("no {hooks} in pxg_guest"),
                "all of on_config_new, on_config_drop, on_event, on_cancel and on_stream_end"
                    .to_owned(),
                sdk,
            );
        }
    };
    let bad = |fault: crate::engine::Fault| {
        LoadError::new(
            &facts.path,
            K::BadTable,
            fault.text,
            "a table as the ABI says",
            sdk,
        )
    };
    let (name, version) = answer.names().map_err(bad)?;
    let filters = filters(&facts.path, answer.filters().map_err(bad)?)?;
    let name = if name.is_empty() {
        file_name(&facts.path)
    } else {
        clean(&name, MAX_NAME)
    };
    Ok(Library {
        host: Arc::clone(host),
        entry,
        table,
        name,
        version: clean(&version, MAX_NAME),
        filters,
        required: answer.required(),
        known: answer.known(),
        aborts: answer.flags() & GuestFlags::ABORTS.0 != 0,
        state: Mutex::new(State::default()),
        facts,
    })
}

fn entry_table(
    answer: &GuestAnswer,
    entry: &'static Entry,
) -> Result<&'static ffi::GuestTable, String> {
    answer.table(entry).map_err(|hooks| hooks.join(", "))
}

/// Non-empty, distinct, UTF-8.
fn filters(path: &Path, names: Vec<Vec<u8>>) -> Result<Vec<String>, LoadError> {
    let fail = |found: String, expected: &str| {
        let advice = "Register each filter of the guest under a name of its own.";
        Err(LoadError::new(path, K::BadTable, found, expected, advice))
    };
    if names.is_empty() {
        return fail("no filters in pxg_guest".to_owned(), "at least one");
    }
    let mut filters: Vec<String> = Vec::with_capacity(names.len());
    for name in names {
        let shown = clean(&name, MAX_NAME);
        let Ok(name) = String::from_utf8(name) else {
            return fail(format!("the filter name \"{shown}\""), "UTF-8");
        };
        if name.is_empty() {
            return fail(
                format!("an empty filter name at index {}", filters.len()),
                "a name",
            );
        }
        if filters.contains(&name) {
            return fail(
                format!("the filter name \"{shown}\" twice"),
                "distinct names",
            );
        }
        filters.push(name);
    }
    Ok(filters)
}
