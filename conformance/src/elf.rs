//! What a library's file says about itself.

use std::path::Path;

use object::read::elf::{ElfFile64, FileHeader as _};
use object::read::{ReadCache, ReadRef};
use object::{
    Architecture, Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind,
};

/// A symbol that the library defines for others.
pub(crate) struct Export {
    pub(crate) name: String,
    pub(crate) is_function: bool,
}

fn parse<'a, R: ReadRef<'a>>(path: &Path, data: R) -> Result<ElfFile64<'a, Endianness, R>, String> {
    let head = data
        .read_bytes_at(0, data.len().unwrap_or(0).min(8))
        .unwrap_or_default();
    let found = match head {
        [] => "an empty file",
        [0x7f, b'E', b'L', b'F', 1, ..] => "a 32-bit ELF file",
        [0x7f, b'E', b'L', b'F', ..] => "an ELF file",
        [b'#', b'!', ..] => "a script",
        [b'M', b'Z', ..] => "a Windows program",
        [0xcf, 0xfa, 0xed, 0xfe, ..] => "a macOS library",
        _ => "something else",
    };
    let expected = format!("a 64-bit ELF shared object for {}", std::env::consts::ARCH);
    let file: ElfFile64<'a, Endianness, R> = ElfFile64::parse(data).map_err(|e| {
        format!(
            "{}: found {found} ({e}), expected {expected}",
            path.display()
        )
    })?;
    let here = match std::env::consts::ARCH {
        "x86_64" => Architecture::X86_64,
        "aarch64" => Architecture::Aarch64,
        _ => Architecture::Unknown,
    };
    if file.architecture() != here {
        return Err(format!(
            "{}: found {found} for {:?}, expected {expected}",
            path.display(),
            file.architecture()
        ));
    }
    if file.elf_header().e_type(file.endian()) != object::elf::ET_DYN {
        return Err(format!(
            "{}: found {found} that is not a shared object, expected {expected}",
            path.display()
        ));
    }
    Ok(file)
}

/// The symbols that the library at `path` exports, or why it is none.
pub(crate) fn exports(path: &Path) -> Result<Vec<Export>, String> {
    let file = std::fs::File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let data = ReadCache::new(file);
    let file = parse(path, &data)?;
    Ok(file
        .dynamic_symbols()
        .filter(|s| s.is_definition() && !s.is_local())
        .filter_map(|s| {
            Some(Export {
                name: s.name().ok()?.to_string(),
                is_function: s.kind() == SymbolKind::Text,
            })
        })
        .collect())
}

/// Whether the library contains a Go runtime.
pub(crate) fn has_go(path: &Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else {
        return false;
    };
    // A library may be large, and only its tables are looked at.
    let data = ReadCache::new(file);
    parse(path, &data).is_ok_and(|f| {
        f.sections().any(|s| {
            matches!(
                s.name(),
                Ok(".go.buildinfo" | ".gopclntab" | ".data.rel.ro.gopclntab")
            )
        })
    })
}

/// Words of the library's constant strings that may be names or values of fields, `most` at most. None of a library
/// with a Go runtime: its strings have no ends.
pub(crate) fn words(path: &Path, most: usize) -> Vec<String> {
    let Ok(data) = std::fs::read(path) else {
        return Vec::new();
    };
    let Ok(file) = parse(path, data.as_slice()) else {
        return Vec::new();
    };
    let Some(text) = file
        .section_by_name(".rodata")
        .filter(|_| file.section_by_name(".gopclntab").is_none())
        .and_then(|s| s.data().ok())
    else {
        return Vec::new();
    };
    let mut out: Vec<String> = text
        .split(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')))
        .filter(|w| (3..32).contains(&w.len()))
        .filter_map(|w| std::str::from_utf8(w).ok())
        .map(str::to_ascii_lowercase)
        .take(20 * most)
        .collect();
    out.sort();
    out.dedup();
    // Names of fields look like `x-name` more often than not.
    out.sort_by_key(|w| !w.contains('-'));
    out.truncate(most);
    out
}

/// The name of the function that begins at `offset` of the file's addresses.
pub(crate) fn symbols_with_prefix(path: &Path, prefix: &str) -> Vec<String> {
    let Ok(data) = std::fs::read(path) else {
        return Vec::new();
    };
    let Ok(file) = parse(path, data.as_slice()) else {
        return Vec::new();
    };
    file.symbols()
        .chain(file.dynamic_symbols())
        .filter_map(|s| s.name().ok())
        .filter(|n| n.starts_with(prefix))
        .map(str::to_string)
        .collect()
}

/// Where the library keeps what its symbol table calls `name`: an address relative to its base.
pub(crate) fn address_of(path: &Path, name: &str) -> Option<u64> {
    let data = std::fs::read(path).ok()?;
    let file = parse(path, data.as_slice()).ok()?;
    file.symbols()
        .find(|s| s.name() == Ok(name))
        .map(|s| s.address())
}
