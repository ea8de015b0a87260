//! Addresses to functions, files and lines, from the debug information of a library: C, Rust and Go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

/// A mapped file.
#[derive(Clone, Debug)]
pub struct Module {
    pub path: PathBuf,
    pub low: u64,
    pub high: u64,
    pub offset: u64,
}

/// Where an address is.
#[derive(Clone, Debug)]
pub struct Site {
    /// The file's name without its folder.
    pub library: String,
    pub function: Option<String>,
    pub line: Option<String>,
    pub in_guest: bool,
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.function {
            Some(n) => write!(f, "{n}")?,
            None => write!(f, "?")?,
        }
        if let Some(l) = &self.line {
            write!(f, "  {l}")?;
        }
        write!(f, "  ({})", self.library)
    }
}

struct Loaded {
    loader: Option<addr2line::Loader>,
    segments: Vec<(u64, u64, u64)>,
    /// Address, size, name: for files without debug information.
    symbols: Vec<(u64, u64, String)>,
}

impl Loaded {
    fn read(path: &Path) -> Option<Self> {
        let data = std::fs::read(path).ok()?;
        let file: ElfFile64 = ElfFile64::parse(data.as_slice()).ok()?;
        let mut symbols: Vec<(u64, u64, String)> = file
            .symbols()
            .chain(file.dynamic_symbols())
            .filter(|s| s.is_definition())
            .filter_map(|s| Some((s.address(), s.size(), s.name().ok()?.to_string())))
            .collect();
        symbols.sort();
        let segments = file
            .segments()
            .map(|s| {
                let (offset, size) = s.file_range();
                (offset, size, s.address())
            })
            .collect();
        Some(Self {
            loader: addr2line::Loader::new(path).ok(),
            segments,
            symbols,
        })
    }

    fn address_of(&self, offset: u64) -> u64 {
        self.segments
            .iter()
            .find(|(at, size, _)| offset >= *at && offset < at + size)
            .map_or(offset, |(at, _, address)| offset - at + address)
    }

    fn function(&self, address: u64) -> Option<String> {
        let i = self.symbols.partition_point(|(a, _, _)| *a <= address);
        self.symbols[..i]
            .iter()
            .rev()
            .take(8)
            .find(|(a, size, _)| address < a + (*size).max(1))
            .map(|(_, _, n)| n.clone())
    }

    fn site(&self, address: u64) -> (Option<String>, Option<String>) {
        let mut function = None;
        let mut line = None;
        if let Some(l) = &self.loader
            && let Ok(mut frames) = l.find_frames(address)
        {
            while let Ok(Some(f)) = frames.next() {
                if function.is_none() {
                    function = f
                        .function
                        .as_ref()
                        .and_then(|n| n.demangle().ok().map(std::borrow::Cow::into_owned));
                    line = f.location.as_ref().and_then(|l| {
                        let file = Path::new(l.file?)
                            .file_name()?
                            .to_string_lossy()
                            .into_owned();
                        Some(format!("{file}:{}", l.line?))
                    });
                }
            }
        }
        (function.or_else(|| self.function(address)), line)
    }
}

/// The libraries of one case's process.
pub struct Symbols {
    modules: Vec<Module>,
    guest: PathBuf,
    loaded: HashMap<PathBuf, Option<Loaded>>,
}

impl Symbols {
    pub fn new(modules: Vec<Module>, guest: &Path) -> Self {
        Self {
            modules,
            guest: std::fs::canonicalize(guest).unwrap_or_else(|_| guest.to_path_buf()),
            loaded: HashMap::new(),
        }
    }

    /// Where `pc` is; `None` if it is in no mapped file.
    pub fn at(&mut self, pc: u64) -> Option<Site> {
        let m = self
            .modules
            .iter()
            .find(|m| (m.low..m.high).contains(&pc))?
            .clone();
        let loaded = self
            .loaded
            .entry(m.path.clone())
            .or_insert_with(|| Loaded::read(&m.path));
        let (function, line) = loaded
            .as_ref()
            .map(|l| l.site(l.address_of(pc - m.low + m.offset)))
            .unwrap_or_default();
        Some(Site {
            library: m
                .path
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default(),
            function,
            line,
            in_guest: m.path == self.guest,
        })
    }

    /// The frames of a fault: where it happened, and the first function of the guest's own behind it.
    pub fn sites(&mut self, frames: &[u64]) -> (Option<Site>, Option<Site>) {
        let first = frames.first().and_then(|pc| self.at(*pc));
        let mut own = None;
        for (i, pc) in frames.iter().enumerate().filter(|(_, pc)| **pc != 0) {
            // A return address belongs to the call before it.
            let Some(s) = self.at(if i == 0 { *pc } else { pc - 1 }) else {
                continue;
            };
            let runtime = s.function.as_deref().is_some_and(|f| {
                [
                    "runtime.",
                    "internal/",
                    "syscall.",
                    "golang.org/x/sys/",
                    "os.",
                    "io.",
                    "net.",
                    "crosscall",
                    "_cgo",
                ]
                .iter()
                .any(|p| f.starts_with(p))
            });
            if s.in_guest && s.function.is_some() && !runtime {
                own = Some(s);
                break;
            }
        }
        (first, own)
    }
}

/// In words: the function, file and line of a library at `address`.
pub(crate) fn place(path: &Path, address: u64) -> String {
    let library = path.file_name().unwrap_or_default().to_string_lossy();
    let (function, line) = Loaded::read(path)
        .map(|l| l.site(address))
        .unwrap_or_default();
    Site {
        library: library.into_owned(),
        function,
        line,
        in_guest: true,
    }
    .to_string()
}

/// The function of a library at `address` of the file.
pub(crate) fn name_of(path: &Path, address: u64) -> Option<String> {
    Loaded::read(path)?.function(address)
}
