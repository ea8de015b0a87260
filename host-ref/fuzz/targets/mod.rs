//! What is fuzzed: each function takes any bytes, and panics if an invariant is broken. Compiled into the fuzzers of
//! this folder and into the host's tests, which put the kept corpus through.
#![allow(dead_code, unreachable_pub)] // each user takes its part

#[cfg(feature = "proxy")]
pub mod config;
pub mod elf;
pub mod engine;
pub mod result;

use std::io::Write as _;

/// A file with these bytes, in memory where that is possible.
pub fn file(data: &[u8], ending: &str) -> tempfile::NamedTempFile {
    let mut made = tempfile::Builder::new();
    made.suffix(ending);
    let mut file = made
        .tempfile_in("/dev/shm")
        .or_else(|_| made.tempfile())
        .expect("a temporary file");
    file.write_all(data).expect("a temporary file");
    file
}

/// Numbers from bytes; zeros when they are used up.
pub struct Source {
    data: Vec<u8>,
    at: usize,
}

impl Source {
    pub fn new(data: &[u8]) -> Self {
        Self {
            data: data.to_vec(),
            at: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.at >= self.data.len()
    }

    pub fn byte(&mut self) -> u8 {
        let b = self.data.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        b
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    pub fn odds(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }
}
