//! The records of a run, read while they are written.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result};

use super::record::Record;

#[derive(Default)]
struct Inner {
    files: HashMap<PathBuf, (u64, Vec<u8>)>,
    all: Vec<Rc<Record>>,
    /// Which case a place belongs to: not every record of it says so.
    places: HashMap<(u32, Option<String>, u64, u64), String>,
    by_case: HashMap<String, Vec<Rc<Record>>>,
}

/// All records below a folder.
#[derive(Clone)]
pub(crate) struct Journal {
    dir: PathBuf,
    inner: Rc<RefCell<Inner>>,
}

impl Journal {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            inner: Rc::default(),
        }
    }

    /// Reads what was written since the last time.
    pub(crate) fn refresh(&self) -> Result<()> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&self.dir)?
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
            .collect();
        files.sort();
        let mut inner = self.inner.borrow_mut();
        let mut fresh = Vec::new();
        for f in files {
            let (at, rest) = inner.files.entry(f.clone()).or_default();
            if std::fs::metadata(&f)?.len() == *at {
                continue;
            }
            let mut file = File::open(&f)?;
            file.seek(SeekFrom::Start(*at))?;
            *at += file.read_to_end(rest)? as u64;
            let Some(end) = rest.iter().rposition(|b| *b == b'\n') else {
                continue;
            };
            let whole: Vec<u8> = rest.drain(..=end).collect();
            for line in whole.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                let text = std::str::from_utf8(line)
                    .with_context(|| format!("{}: not UTF-8", f.display()))?;
                fresh.push(
                    Record::parse(text)
                        .with_context(|| format!("{}: no record: {text}", f.display()))?,
                );
            }
        }
        // Threads draw their numbers before they write.
        fresh.sort_by_key(|r| (r.pid, r.seq));
        for r in fresh {
            let r = Rc::new(r);
            let place = r
                .config
                .zip(r.stream)
                .map(|(c, s)| (r.pid, r.library.clone(), c, s));
            let case = r
                .case
                .clone()
                .or_else(|| r.named_case().map(str::to_string))
                .or_else(|| place.as_ref().and_then(|p| inner.places.get(p).cloned()));
            if let Some(case) = case {
                if let Some(p) = place {
                    inner.places.insert(p, case.clone());
                }
                inner.by_case.entry(case).or_default().push(r.clone());
            }
            inner.all.push(r);
        }
        Ok(())
    }

    /// Every record.
    pub(crate) fn all(&self) -> Vec<Rc<Record>> {
        let mut all = self.inner.borrow().all.clone();
        all.sort_by_key(|r| (r.pid, r.seq));
        all
    }

    /// The records of a case, in their order.
    pub(crate) fn of(&self, case: &str) -> Vec<Rc<Record>> {
        let mut of = self
            .inner
            .borrow()
            .by_case
            .get(case)
            .cloned()
            .unwrap_or_default();
        of.sort_by_key(|r| (r.pid, r.seq));
        of
    }

    pub(crate) fn count(&self, case: &str) -> usize {
        self.inner.borrow().by_case.get(case).map_or(0, Vec::len)
    }
}
