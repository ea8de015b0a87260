//! A look at a library before it is loaded: what would go wrong, said in words (PXG-LOAD-001).

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use object::read::elf::{
    Dyn as _, FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _,
};
use object::read::{ReadCache, ReadRef};
use object::{Endianness, elf};
use proxy_golang_abi::GUEST_INIT_SYMBOL;

use super::error::{LoadError, LoadErrorKind};

/// What is known of a library from its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElfFacts {
    /// Absolute, without symbolic links.
    pub path: PathBuf,
    /// Device of the file: with `inode` what a loaded library is told apart by.
    pub device: u64,
    /// Inode of the file.
    pub inode: u64,
    /// Length in bytes.
    pub len: u64,
    /// Last modification in nanoseconds since 1970-01-01 UTC.
    pub modified_ns: i128,
    /// Whether a Go runtime is in it.
    pub go: bool,
    /// The C library that it was linked against, as far as it says so.
    pub libc: Option<Libc>,
    /// The linker's build id in hexadecimal.
    pub build_id: Option<String>,
}

/// A C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libc {
    /// GNU
    Glibc,
    /// musl
    Musl,
}

impl std::fmt::Display for Libc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
        })
    }
}

/// The C library of this process, as far as it is known.
pub(super) const OWN_LIBC: Option<Libc> = if cfg!(target_env = "gnu") {
    Some(Libc::Glibc)
} else if cfg!(target_env = "musl") {
    Some(Libc::Musl)
} else {
    None
};

const REBUILD: &str = "Build the guest as a shared library for this machine (Go: go build -buildmode=c-shared; Rust: \
                       crate-type cdylib; C: cc -shared -fPIC)";

/// Looks at the file without loading it: a regular 64-bit ELF shared library for this machine that exports
/// `pxg_guest_init_v1`. No code of it runs.
pub fn check(path: &Path) -> Result<ElfFacts, LoadError> {
    open(path).map(|(facts, _)| facts)
}

/// [`check`], with the file still open.
pub(super) fn open(named: &Path) -> Result<(ElfFacts, File), LoadError> {
    use LoadErrorKind as K;
    let io = |path: &Path, e: &std::io::Error| {
        let cwd = std::env::current_dir().unwrap_or_default();
        let advice = match (e.kind(), named.is_relative()) {
            (std::io::ErrorKind::PermissionDenied, _) => {
                "Let the user that the host runs as read the file and search its folders."
                    .to_owned()
            }
            (_, true) => format!(
                "The path is relative to {}; give it in full, or build the guest first.",
                cwd.display()
            ),
            (_, false) => "Correct the path, or build the guest first.".to_owned(),
        };
        LoadError::new(
            path,
            K::Missing,
            format!("\"{e}\""),
            "a readable guest library",
            advice,
        )
    };
    let path = named.canonicalize().map_err(|e| io(named, &e))?;
    let meta = path.metadata().map_err(|e| io(&path, &e))?;
    let kind = meta.file_type();
    if !kind.is_file() {
        let found = if kind.is_dir() {
            "a directory"
        } else if kind.is_fifo() {
            "a named pipe"
        } else if kind.is_socket() {
            "a socket"
        } else {
            "a device"
        };
        return Err(LoadError::new(
            &path,
            K::NotAFile,
            found,
            "a guest library, a regular file",
            "Name the library itself.",
        ));
    }
    let mut file = File::open(&path).map_err(|e| io(&path, &e))?;
    let mut head = Vec::new();
    (&mut file)
        .take(64)
        .read_to_end(&mut head)
        .map_err(|e| io(&path, &e))?;
    is_elf(&path, &head, meta.len())?;
    let cache = ReadCache::new(file);
    let seen = look_inside(&path, &cache, meta.len())?;
    let facts = ElfFacts {
        path,
        device: meta.dev(),
        inode: meta.ino(),
        len: meta.len(),
        modified_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        go: seen.go,
        libc: seen.libc,
        build_id: seen.build_id,
    };
    Ok((facts, cache.into_inner()))
}

/// The first 20 bytes: an ELF at all, 64 bits, our byte order, our machine, a library.
fn is_elf(path: &Path, head: &[u8], len: u64) -> Result<(), LoadError> {
    use LoadErrorKind as K;
    let wanted = format!(
        "a 64-bit ELF shared library for {}",
        machine_name(OWN_MACHINE)
    );
    let fail = |kind, found: String| {
        Err(LoadError::new(
            path,
            kind,
            found,
            wanted.clone(),
            format!("{REBUILD}."),
        ))
    };
    if !head.starts_with(&elf::ELFMAG) {
        return fail(K::NotElf, what_instead(head));
    }
    if head.len() < 20 {
        return fail(K::Damaged, format!("an ELF file cut after {len} bytes"));
    }
    let little = elf::DataEncoding(head[5]) == elf::ELFDATA2LSB;
    let half = |at: usize| {
        let bytes = [head[at], head[at + 1]];
        if little {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_be_bytes(bytes)
        }
    };
    let (kind, machine) = (elf::FileType(half(16)), elf::Machine(half(18)));
    let own_data = if cfg!(target_endian = "little") {
        elf::ELFDATA2LSB
    } else {
        elf::ELFDATA2MSB
    };
    if elf::FileClass(head[4]) != elf::ELFCLASS64 {
        return fail(
            K::WrongClass,
            format!(
                "a {} ELF file for {}",
                class_name(elf::FileClass(head[4])),
                machine_name(machine)
            ),
        );
    }
    if elf::DataEncoding(head[5]) != own_data {
        let order = if little {
            "little-endian"
        } else {
            "big-endian"
        };
        return fail(
            K::WrongClass,
            format!("a {order} ELF file for {}", machine_name(machine)),
        );
    }
    if machine != OWN_MACHINE {
        return fail(
            K::WrongMachine,
            format!("an ELF file for {}", machine_name(machine)),
        );
    }
    let found = match kind {
        elf::ET_DYN => return Ok(()),
        elf::ET_EXEC => "an executable",
        elf::ET_REL => "an object file that is not linked yet",
        elf::ET_CORE => "a core dump",
        _ => "an ELF file of an unknown type",
    };
    fail(K::NotALibrary, found.to_owned())
}

struct Seen {
    go: bool,
    libc: Option<Libc>,
    build_id: Option<String>,
}

fn look_inside<'data, R: ReadRef<'data>>(
    path: &Path,
    data: R,
    len: u64,
) -> Result<Seen, LoadError> {
    use LoadErrorKind as K;
    let damaged = |what: &dyn std::fmt::Display| {
        LoadError::new(
            path,
            K::Damaged,
            format!("an ELF file of {len} bytes that is damaged or cut: {what}"),
            "a whole shared library",
            "Copy or build it again; the copy may have been interrupted.",
        )
    };
    type Header = elf::FileHeader64<Endianness>;
    let header = Header::parse(data).map_err(|e| damaged(&e))?;
    let endian = header.endian().map_err(|e| damaged(&e))?;
    let segments = header
        .program_headers(endian, data)
        .map_err(|e| damaged(&e))?;
    // Mapping a segment that the file does not have would end in SIGBUS, not in an error.
    for segment in segments.iter().filter(|s| s.p_type(endian) == elf::PT_LOAD) {
        let end = segment
            .p_offset(endian)
            .saturating_add(segment.p_filesz(endian));
        if end > len {
            return Err(damaged(&format!("a segment ends at byte {end}")));
        }
    }
    let mut flags = 0;
    for segment in segments {
        let dynamic = segment.dynamic(endian, data).map_err(|e| damaged(&e))?;
        for entry in dynamic.into_iter().flatten() {
            if entry.d_tag(endian) == elf::DT_FLAGS_1 {
                flags |= entry.d_val(endian);
            }
        }
    }
    if flags & elf::DF_1_PIE.0 != 0 {
        return Err(LoadError::new(
            path,
            K::NotALibrary,
            "an executable (position-independent)",
            "a shared library",
            format!("{REBUILD}."),
        ));
    }
    let sections = header.sections(endian, data).map_err(|e| damaged(&e))?;
    let named = |name: &[u8]| {
        sections
            .section_by_name(endian, name)
            .map(|(_, section)| section)
    };
    let seen = Seen {
        go: named(b".go.buildinfo").is_some() || named(b".note.go.buildid").is_some(),
        libc: libc(&sections, endian, data),
        build_id: named(b".note.gnu.build-id").and_then(|s| build_id(s, endian, data)),
    };
    // A library without a section table has a symbol table all the same; the dynamic linker will tell.
    if sections.is_empty() {
        return Ok(seen);
    }
    let table = |kind| {
        sections
            .symbols(endian, data, kind)
            .map_err(|e| damaged(&e))
    };
    let dynamic = table(elf::SHT_DYNSYM)?;
    let mut majors = Vec::new();
    for symbol in dynamic.iter().filter(|s| !s.is_undefined(endian)) {
        let name = dynamic.symbol_name(endian, symbol).unwrap_or_default();
        if name == GUEST_INIT_SYMBOL.as_bytes() {
            if matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC) {
                return Ok(seen);
            }
            return Err(LoadError::new(
                path,
                K::NoEntry,
                format!("{GUEST_INIT_SYMBOL} as a variable"),
                format!("a function {GUEST_INIT_SYMBOL}"),
                "Rename the variable: names beginning pxg_guest_init_v are reserved.",
            ));
        }
        if let Some(major) = name.strip_prefix(b"pxg_guest_init_v") {
            majors.push(String::from_utf8_lossy(major).into_owned());
        }
    }
    majors.sort();
    if !majors.is_empty() {
        let majors = majors.join(", ");
        return Err(LoadError::new(
            path,
            K::OtherMajor,
            format!(
                "a guest for major version {majors} of the ABI only (pxg_guest_init_v{majors})"
            ),
            format!("{GUEST_INIT_SYMBOL}, for major version 1"),
            "Build the guest with an SDK for version 1, or use a host for its version.",
        ));
    }
    let all = table(elf::SHT_SYMTAB)?;
    let hidden = all.iter().any(|s| {
        !s.is_undefined(endian)
            && all.symbol_name(endian, s).ok() == Some(GUEST_INIT_SYMBOL.as_bytes())
    });
    let (found, advice) = if hidden {
        (
            format!("{GUEST_INIT_SYMBOL}, but hidden"),
            "Export it: default visibility, and `global` in the linker's version script.",
        )
    } else {
        (
            "a shared library without that function".to_owned(),
            "Name the guest's own library; if this is it, link the SDK's entry into it.",
        )
    };
    Err(LoadError::new(
        path,
        K::NoEntry,
        found,
        format!("the exported function {GUEST_INIT_SYMBOL}"),
        advice,
    ))
}

type Sections<'data, R> = object::read::elf::SectionTable<'data, elf::FileHeader64<Endianness>, R>;
type Section = elf::SectionHeader64<Endianness>;

/// By the names of the libraries that it needs.
fn libc<'data, R: ReadRef<'data>>(
    sections: &Sections<'data, R>,
    endian: Endianness,
    data: R,
) -> Option<Libc> {
    let (entries, link) = sections.dynamic(endian, data).ok()??;
    let strings = sections.strings(endian, data, link).ok()?;
    entries
        .iter()
        .filter(|d| d.d_tag(endian) == elf::DT_NEEDED)
        .find_map(|d| {
            let at = u32::try_from(d.d_val(endian)).ok()?;
            match strings.get(at).ok()? {
                b"libc.so.6" => Some(Libc::Glibc),
                b"libc.so" => Some(Libc::Musl),
                name if name.starts_with(b"libc.musl-") => Some(Libc::Musl),
                _ => None,
            }
        })
}

fn build_id<'data, R: ReadRef<'data>>(
    section: &Section,
    endian: Endianness,
    data: R,
) -> Option<String> {
    let mut notes = section.notes(endian, data).ok()??;
    let note = notes.next().ok()??;
    let mut hex = String::new();
    for byte in note.desc() {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Some(hex)
}

fn what_instead(head: &[u8]) -> String {
    let known: [(&[u8], &str); 9] = [
        (b"#!", "a script"),
        (b"MZ", "a Windows library or program"),
        (b"!<arch>", "a static archive (Go: -buildmode=c-archive)"),
        (b"\xcf\xfa\xed\xfe", "a macOS library or program"),
        (b"\xca\xfe\xba\xbe", "a macOS universal file"),
        (b"\0asm", "a WebAssembly module"),
        (b"\x1f\x8b", "a gzip file"),
        (b"PK\x03\x04", "a zip file"),
        (
            b"version https://git-lfs",
            "a Git LFS pointer instead of the file",
        ),
    ];
    if head.is_empty() {
        return "an empty file".to_owned();
    }
    known
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map_or_else(
            || {
                format!(
                    "a file that begins with \"{}\"",
                    crate::ffi::clean(&head[..head.len().min(8)], 8)
                )
            },
            |(_, name)| (*name).to_owned(),
        )
}

const OWN_MACHINE: elf::Machine = if cfg!(target_arch = "x86_64") {
    elf::EM_X86_64
} else if cfg!(target_arch = "aarch64") {
    elf::EM_AARCH64
} else if cfg!(target_arch = "riscv64") {
    elf::EM_RISCV
} else if cfg!(target_arch = "powerpc64") {
    elf::EM_PPC64
} else if cfg!(target_arch = "s390x") {
    elf::EM_S390
} else if cfg!(target_arch = "loongarch64") {
    elf::EM_LOONGARCH
} else {
    panic!("this machine's number in ELF files is to be added here")
};

fn machine_name(machine: elf::Machine) -> String {
    match machine {
        elf::EM_X86_64 => "x86-64".to_owned(),
        elf::EM_AARCH64 => "aarch64".to_owned(),
        elf::EM_386 => "i386".to_owned(),
        elf::EM_ARM => "arm".to_owned(),
        elf::EM_RISCV => "riscv".to_owned(),
        elf::EM_PPC64 => "ppc64".to_owned(),
        elf::EM_S390 => "s390x".to_owned(),
        elf::EM_LOONGARCH => "loongarch".to_owned(),
        elf::EM_MIPS => "mips".to_owned(),
        other => format!("machine number {}", other.0),
    }
}

fn class_name(class: elf::FileClass) -> String {
    match class {
        elf::ELFCLASS32 => "32-bit".to_owned(),
        other => format!("class {}", other.0),
    }
}
