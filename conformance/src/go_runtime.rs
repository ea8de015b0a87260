//! Where the Go runtime of a library keeps its own figures: its variables by the symbol table, their members by the debug
//! information. Nothing of the guest's takes part.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use addr2line::gimli;
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// Addresses from the start of the mapped library.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Bytes that the last collection found in use: a `uint64`.
    pub(crate) in_use: u64,
    /// How many collections there were: a `uint32`.
    pub(crate) collections: u64,
    /// How many goroutines there are or were at most, since the runtime keeps them for the next ones: a `uint64`.
    pub(crate) goroutines: u64,
    /// How many threads the runtime has started: a `uint64`.
    pub(crate) threads: u64,
    /// What one of each takes in the heap.
    pub(crate) goroutine_bytes: u64,
    pub(crate) thread_bytes: u64,
}

const GOROUTINES: &str = "runtime.allglen";
const GOROUTINE: &str = "runtime.g";
const THREAD: &str = "runtime.m";

/// A variable of the runtime's, the type of it, and a member.
const THREADS: (&str, &str, &str) = ("runtime.sched", "runtime.schedt", "mnext");
const IN_USE: (&str, &str, &str) = (
    "runtime.gcController",
    "runtime.gcControllerState",
    "heapMarked",
);
const COLLECTIONS: (&str, &str, &str) = ("runtime.memstats", "runtime.mstats", "numgc");

/// Looks for them in the library at `path`; an error says what is missing.
pub(crate) fn figures(path: &Path) -> Result<Figures, String> {
    let data = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let file: ElfFile64 = ElfFile64::parse(data.as_slice()).map_err(|e| e.to_string())?;
    let endian = file.endian();
    let low = file
        .elf_program_headers()
        .iter()
        .filter(|p| p.p_type(endian) == object::elf::PT_LOAD)
        .map(|p| p.p_vaddr(endian))
        .min()
        .unwrap_or(0);
    let types = types(&file).map_err(|e| format!("its debug information: {e}"))?;
    let variable = |name: &str| {
        file.symbols()
            .find(|s| s.name() == Ok(name))
            .map(|s| s.address() - low)
            .ok_or_else(|| {
                format!("the library has no symbol {name}: it is stripped or built with -s")
            })
    };
    let lacks = |what: String| {
        format!(
            "the library has no debug information of {what}: it is stripped, built with -s or -w, or by another Go"
        )
    };
    let find = |(name, of, member): (&str, &str, &str)| {
        let offset = types.get(of).and_then(|t| t.members.get(member));
        let offset = offset.ok_or_else(|| lacks(format!("{of}.{member}")))?;
        Ok::<u64, String>(variable(name)? + offset)
    };
    let size = |name: &str| {
        types
            .get(name)
            .map(|t| t.size)
            .ok_or_else(|| lacks(name.to_string()))
    };
    // The runtime's allocator rounds up to its classes, which are these for sizes like theirs.
    let goroutine = size(GOROUTINE)?.next_multiple_of(32);
    let thread = (size(THREAD)? + 8).next_multiple_of(256);
    Ok(Figures {
        in_use: find(IN_USE)?,
        collections: find(COLLECTIONS)?,
        goroutines: variable(GOROUTINES)?,
        threads: find(THREADS)?,
        goroutine_bytes: goroutine,
        // Each has two goroutines of its own, which are not counted among the others.
        thread_bytes: thread + 2 * goroutine,
    })
}

#[derive(Default)]
struct Type {
    size: u64,
    members: HashMap<String, u64>,
}

/// The types that are looked for, by name.
fn types(file: &ElfFile64) -> Result<HashMap<&'static str, Type>, gimli::Error> {
    let load = |id: gimli::SectionId| -> Result<Cow<'_, [u8]>, gimli::Error> {
        Ok(file
            .section_by_name(id.name())
            .and_then(|s| s.uncompressed_data().ok())
            .unwrap_or_default())
    };
    let sections = gimli::DwarfSections::load(load)?;
    let dwarf = sections.borrow(|s| gimli::EndianSlice::new(s, gimli::NativeEndian));
    let mut found: HashMap<&'static str, Type> = HashMap::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        let unit = dwarf.unit(header)?;
        let name = |e: &gimli::DebuggingInformationEntry<'_, '_, _, _>| -> Option<String> {
            let value = e.attr_value(gimli::DW_AT_name).ok()??;
            let text = dwarf.attr_string(&unit, value).ok()?;
            Some(text.to_string_lossy().into_owned())
        };
        let mut entries = unit.entries();
        let mut of: Option<&'static str> = None;
        while let Some((_, e)) = entries.next_dfs()? {
            match e.tag() {
                gimli::DW_TAG_structure_type => {
                    let n = name(e);
                    of = [IN_USE.1, COLLECTIONS.1, THREADS.1, GOROUTINE, THREAD]
                        .into_iter()
                        .find(|t| n.as_deref() == Some(*t));
                    if let Some(of) = of {
                        let size = e.attr_value(gimli::DW_AT_byte_size)?;
                        found.entry(of).or_default().size =
                            size.and_then(|s| s.udata_value()).unwrap_or(0);
                    }
                }
                gimli::DW_TAG_member => {
                    if let Some(of) = of
                        && let Some(n) = name(e)
                        && let Ok(Some(at)) = e.attr_value(gimli::DW_AT_data_member_location)
                        && let Some(at) = at.udata_value()
                    {
                        found.entry(of).or_default().members.insert(n, at);
                    }
                }
                _ => of = None,
            }
        }
    }
    Ok(found)
}
