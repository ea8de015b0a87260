//! Where Go keeps its heap: arenas of 64 MiB, aligned to as much, at an address that newer versions choose at random.
//! The C library's heaps of threads have the same shape and begin with a pointer to their arena, which tells them apart.

use super::{arena, peek};

const ARENA: u64 = 64 << 20;

struct Mapping {
    low: u64,
    high: u64,
    anonymous: bool,
    writable: bool,
}

fn mappings() -> Vec<Mapping> {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return Vec::new();
    };
    maps.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (low, high) = words.next()?.split_once('-')?;
            let writable = words.next()?.starts_with("rw");
            let inode = words.nth(2)?;
            Some(Mapping {
                low: u64::from_str_radix(low, 16).ok()?,
                high: u64::from_str_radix(high, 16).ok()?,
                writable,
                anonymous: inode == "0" && words.next().is_none_or(|n| n.starts_with("[anon: Go")),
            })
        })
        .collect()
}

/// Whether anonymous mappings without a gap make up the arena at `base`.
fn is_arena(base: u64, maps: &[Mapping]) -> bool {
    if arena::is_ours(base) || arena::is_ours(base + ARENA - 1) {
        return false;
    }
    let mut at = base;
    for m in maps
        .iter()
        .filter(|m| m.high > base && m.low < base + ARENA)
    {
        if !m.anonymous || m.low > at {
            return false;
        }
        at = m.high;
    }
    at >= base + ARENA && !is_thread_heap(base)
}

fn is_thread_heap(base: u64) -> bool {
    peek::value::<u64>(base)
        .is_ok_and(|first| matches!(first % ARENA, 0x20 | 0x30) && first / ARENA != 0)
}

/// Whether `at` is in a heap of Go's.
pub(crate) fn is_go(at: u64) -> bool {
    is_arena(at / ARENA * ARENA, &mappings())
}

/// The largest part of Go's heap that was ever in use: its first and its last address.
pub(crate) fn go_heap() -> Option<(u64, u64)> {
    let maps = mappings();
    maps.iter()
        .filter(|m| m.anonymous && m.writable && is_arena(m.low / ARENA * ARENA, &maps))
        .map(|m| (m.low, m.high))
        .max_by_key(|(low, high)| high - low)
}
