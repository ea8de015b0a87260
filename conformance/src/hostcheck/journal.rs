//! The records of a run, read while they are written.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result};

use super::record::Record;

/// Process, library, configuration and handle.
type Place = (u32, Option<String>, u64, u64);

#[derive(Default)]
struct Inner {
    files: HashMap<PathBuf, (u64, Vec<u8>)>,
    all: Vec<Rc<Record>>,
    /// A process has recorded as much as it may.
    full: bool,
    /// Which case a place belongs to: not every record of it says so.
    places: HashMap<Place, String>,
    /// Records of places of which nothing has said the case so far: one that the request does not reach is told it by LOG.
    unnamed: HashMap<Place, Vec<Rc<Record>>>,
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
        // Threads draw their numbers before they write. What names the case of a place comes first.
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
                let mut before = Vec::new();
                if let Some(p) = place {
                    before = inner.unnamed.remove(&p).unwrap_or_default();
                    inner.places.insert(p, case.clone());
                }
                let of = inner.by_case.entry(case).or_default();
                for b in before {
                    put(of, b);
                }
                put(of, r.clone());
            } else if let Some(p) = place {
                inner.unnamed.entry(p).or_default().push(r.clone());
            }
            // A note of no rule says that nothing more is recorded.
            inner.full |= r.function == "note" && r.rule.is_none();
            put(&mut inner.all, r);
        }
        Ok(())
    }

    /// Whether a process has recorded as much as it may: what happens now is not known.
    pub(crate) fn full(&self) -> bool {
        self.inner.borrow().full
    }

    /// Every record, in the order of its process.
    pub(crate) fn all(&self) -> Vec<Rc<Record>> {
        self.inner.borrow().all.clone()
    }

    /// The records of a case, in their order.
    pub(crate) fn of(&self, case: &str) -> Vec<Rc<Record>> {
        let inner = self.inner.borrow();
        inner.by_case.get(case).cloned().unwrap_or_default()
    }
}

/// Keeps the order: that of the numbers within a process, that of the clock between processes. What a thread was slow to
/// write, or another process wrote, is among the last.
fn put(into: &mut Vec<Rc<Record>>, r: Rc<Record>) {
    let later = |x: &Rc<Record>| match x.pid == r.pid {
        true => x.seq > r.seq,
        false => x.t > r.t,
    };
    let after = into.iter().rev().take_while(|x| later(x)).count();
    let mut at = into.len() - after;
    // Threads take their number and the time one after the other: an earlier number may have the later time.
    while let Some(i) = into[..at]
        .iter()
        .rposition(|x| x.pid == r.pid)
        .filter(|i| into[*i].seq > r.seq)
    {
        at = i;
    }
    into.insert(at, r);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_several_processes_are_in_the_order_of_the_clock_and_those_of_one_in_that_of_their_numbers()
     {
        let record = |pid: u32, seq: u64, t: u64| {
            let line = format!(
                r#"{{"side":"probe","seq":{seq},"t":{t},"pid":{pid},"tid":{pid},"fn":"on_event","edge":"enter"}}"#
            );
            Rc::new(Record::parse(&line).expect("a record"))
        };
        let mut all = Vec::new();
        for (pid, seq, t) in [
            (9, 1, 10),
            (9, 2, 30),
            (7, 1, 20),
            (7, 3, 40),
            (9, 3, 50),
            (7, 2, 45),
            (9, 4, 60),
        ] {
            put(&mut all, record(pid, seq, t));
        }
        let order: Vec<_> = all.iter().map(|r| (r.pid, r.seq)).collect();
        assert_eq!(
            order,
            [(9, 1), (7, 1), (9, 2), (7, 2), (7, 3), (9, 3), (9, 4)]
        );
    }
}
