//! What a guest allocates in C's heap: its own calls of the allocator, by the entries of its global offset table, which
//! lead here instead. So nothing of the host's is counted, nothing is loaded before the C library, and each block has
//! the place that asked for it.
//!
//! Not seen: what the C library allocates by itself on behalf of a guest (`getline`), and collected heaps.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Object as _, ObjectSymbol as _, RelocationFlags};

/// A block that is in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) size: u64,
    /// The address behind the call.
    pub(crate) site: u64,
    /// Which round it was made in.
    pub(crate) round: u64,
}

static LIVE: Mutex<Option<HashMap<u64, Block>>> = Mutex::new(None);
static ROUND: AtomicU64 = AtomicU64::new(0);
static ON: AtomicBool = AtomicBool::new(false);

fn live() -> MutexGuard<'static, Option<HashMap<u64, Block>>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn made(at: *mut libc::c_void, size: usize, site: u64) {
    if ON.load(Ordering::Relaxed) && !at.is_null() {
        let block = Block {
            size: size as u64,
            site,
            round: ROUND.load(Ordering::Relaxed),
        };
        live().get_or_insert_default().insert(at as u64, block);
    }
}

fn gone(at: *mut libc::c_void) {
    if ON.load(Ordering::Relaxed) && !at.is_null() {
        live().get_or_insert_default().remove(&(at as u64));
    }
}

// The thunks add the return address, which is where the guest called, as a further argument, and jump: the stack is as
// the guest left it.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    "pxg_conformance_malloc: mov rsi, [rsp]",
    "jmp {malloc}",
    "pxg_conformance_calloc: mov rdx, [rsp]",
    "jmp {calloc}",
    "pxg_conformance_realloc: mov rdx, [rsp]",
    "jmp {realloc}",
    "pxg_conformance_aligned_alloc: mov rdx, [rsp]",
    "jmp {aligned_alloc}",
    "pxg_conformance_posix_memalign: mov rcx, [rsp]",
    "jmp {posix_memalign}",
    "pxg_conformance_strdup: mov rsi, [rsp]",
    "jmp {strdup}",
    malloc = sym malloc,
    calloc = sym calloc,
    realloc = sym realloc,
    aligned_alloc = sym aligned_alloc,
    posix_memalign = sym posix_memalign,
    strdup = sym strdup,
);
#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    "pxg_conformance_malloc: mov x1, x30",
    "b {malloc}",
    "pxg_conformance_calloc: mov x2, x30",
    "b {calloc}",
    "pxg_conformance_realloc: mov x2, x30",
    "b {realloc}",
    "pxg_conformance_aligned_alloc: mov x2, x30",
    "b {aligned_alloc}",
    "pxg_conformance_posix_memalign: mov x3, x30",
    "b {posix_memalign}",
    "pxg_conformance_strdup: mov x1, x30",
    "b {strdup}",
    malloc = sym malloc,
    calloc = sym calloc,
    realloc = sym realloc,
    aligned_alloc = sym aligned_alloc,
    posix_memalign = sym posix_memalign,
    strdup = sym strdup,
);

unsafe extern "C" {
    fn pxg_conformance_malloc();
    fn pxg_conformance_calloc();
    fn pxg_conformance_realloc();
    fn pxg_conformance_aligned_alloc();
    fn pxg_conformance_posix_memalign();
    fn pxg_conformance_strdup();
}

extern "C" fn malloc(size: usize, site: u64) -> *mut libc::c_void {
    // SAFETY: as the guest called it.
    let at = unsafe { libc::malloc(size) };
    made(at, size, site);
    at
}

extern "C" fn calloc(n: usize, size: usize, site: u64) -> *mut libc::c_void {
    // SAFETY: as the guest called it.
    let at = unsafe { libc::calloc(n, size) };
    made(at, n.saturating_mul(size), site);
    at
}

extern "C" fn realloc(old: *mut libc::c_void, size: usize, site: u64) -> *mut libc::c_void {
    // Before the call: another thread may be given the same address as soon as it is free.
    gone(old);
    // SAFETY: as the guest called it.
    let at = unsafe { libc::realloc(old, size) };
    if at.is_null() && size > 0 {
        made(old, size, site);
    }
    made(at, size, site);
    at
}

extern "C" fn aligned_alloc(align: usize, size: usize, site: u64) -> *mut libc::c_void {
    // SAFETY: as the guest called it.
    let at = unsafe { libc::aligned_alloc(align, size) };
    made(at, size, site);
    at
}

extern "C" fn posix_memalign(
    to: *mut *mut libc::c_void,
    align: usize,
    size: usize,
    site: u64,
) -> i32 {
    // SAFETY: as the guest called it.
    let done = unsafe { libc::posix_memalign(to, align, size) };
    if done == 0 {
        // SAFETY: it was filled by the call above.
        made(unsafe { *to }, size, site);
    }
    done
}

extern "C" fn strdup(text: *const libc::c_char, site: u64) -> *mut libc::c_char {
    // SAFETY: as the guest called it.
    let at = unsafe { libc::strdup(text) };
    if !at.is_null() {
        // SAFETY: a copy of a terminated string.
        made(at.cast(), unsafe { libc::strlen(at) } + 1, site);
    }
    at
}

extern "C" fn free(at: *mut libc::c_void) {
    gone(at);
    // SAFETY: as the guest called it.
    unsafe { libc::free(at) };
}

fn hook_of(name: &str) -> Option<u64> {
    Some(match name {
        "malloc" => pxg_conformance_malloc as *const () as u64,
        "calloc" => pxg_conformance_calloc as *const () as u64,
        "realloc" => pxg_conformance_realloc as *const () as u64,
        "aligned_alloc" | "memalign" => pxg_conformance_aligned_alloc as *const () as u64,
        "posix_memalign" => pxg_conformance_posix_memalign as *const () as u64,
        "strdup" | "__strdup" => pxg_conformance_strdup as *const () as u64,
        "free" | "cfree" => free as *const () as u64,
        _ => return None,
    })
}

/// Leads the calls of the library that was loaded from `path` to `base` here. How many entries were changed; none is no
/// error: the library may have an allocator of its own.
pub(crate) fn watch(path: &Path, base: u64) -> usize {
    let Ok(data) = std::fs::read(path) else {
        return 0;
    };
    let Ok(file) = ElfFile64::<object::Endianness>::parse(data.as_slice()) else {
        return 0;
    };
    let Some(relocations) = file.dynamic_relocations() else {
        return 0;
    };
    let endian = file.endian();
    // The lowest address of the file's segments is at `base`.
    let low = file
        .elf_program_headers()
        .iter()
        .filter(|p| p.p_type(endian) == object::elf::PT_LOAD)
        .map(|p| p.p_vaddr(endian))
        .min()
        .unwrap_or(0);
    let symbols = file.dynamic_symbol_table();
    let mut changed = 0;
    ON.store(true, Ordering::Relaxed);
    for (at, r) in relocations {
        let RelocationFlags::Elf { r_type } = r.flags() else {
            continue;
        };
        let is_entry = matches!(
            r_type,
            object::elf::R_X86_64_JUMP_SLOT
                | object::elf::R_X86_64_GLOB_DAT
                | object::elf::R_AARCH64_JUMP_SLOT
                | object::elf::R_AARCH64_GLOB_DAT
        );
        let object::RelocationTarget::Symbol(index) = r.target() else {
            continue;
        };
        let name = symbols
            .as_ref()
            .and_then(|s| object::ObjectSymbolTable::symbol_by_index(s, index).ok())
            .and_then(|s| s.name().ok());
        if let Some(hook) = name.filter(|_| is_entry).and_then(hook_of) {
            write_entry(base + at - low, hook);
            changed += 1;
        }
    }
    changed
}

/// Writes a pointer to where the loader may have made memory read-only.
fn write_entry(at: u64, value: u64) {
    let page = (at & !0xfff) as *mut libc::c_void;
    // SAFETY: `at` is an aligned entry of a live library's offset table, by its own relocations. It stays writable: who
    // reads it meanwhile finds the old function or the new one.
    unsafe {
        if libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE) == 0 {
            (*(at as *const AtomicU64)).store(value, Ordering::Release);
        }
    }
}

/// What is made from now on belongs to this round.
pub(crate) fn begin_round(n: u64) {
    ROUND.store(n, Ordering::Relaxed);
}

/// What was made in round `n` and is in use.
pub(crate) fn left_of_round(n: u64) -> Vec<Block> {
    live()
        .as_ref()
        .map(|l| l.values().filter(|b| b.round == n).copied().collect())
        .unwrap_or_default()
}
