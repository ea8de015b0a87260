//! The recorded ABI: `spec/abi/v1.<minor>.layout.json`, which only grows once it is released, and the fingerprint in
//! `spec/abi/README.md`, so that nobody changes the ABI without opening the spec.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use proxy_golang_abi::layout::STRUCTS;
use proxy_golang_abi::{VERSION_MAJOR, VERSION_MINOR};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cbind::Model;
use super::{Made, Output};

const FOLDER: &str = "spec/abi";
const README: &str = "spec/abi/README.md";
const HISTORY: &str = "spec/abi/history.md";
const MARK: &str = "ABI fingerprint: ";

/// The ABI of one minor version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    abi: String,
    /// Once true, entries are only added.
    released: bool,
    entry: String,
    structs: Vec<StructRecord>,
    constants: Vec<ConstantRecord>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StructRecord {
    name: String,
    size: usize,
    align: usize,
    /// May never grow in this major version.
    frozen: bool,
    members: Vec<MemberRecord>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberRecord {
    name: String,
    offset: usize,
    size: usize,
    declaration: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConstantRecord {
    name: String,
    value: serde_json::Value,
}

impl Record {
    /// The ABI as the crate has it now.
    pub(super) fn of(model: &Model) -> Result<Self> {
        let mut structs = Vec::new();
        for layout in STRUCTS {
            let s = model.structs.iter().find(|s| s.rust == layout.rust);
            let s = s.with_context(|| format!("no struct {}", layout.rust))?;
            let members = layout.fields.iter().zip(&s.members);
            structs.push(StructRecord {
                name: layout.c.to_owned(),
                size: layout.size,
                align: layout.align,
                frozen: layout.frozen,
                members: members
                    .map(|(l, m)| MemberRecord {
                        name: l.name.to_owned(),
                        offset: l.offset,
                        size: l.size,
                        declaration: m.decl.clone(),
                    })
                    .collect(),
            });
        }
        let constants = model.constants().map(|c| ConstantRecord {
            name: c.c.clone(),
            value: match c.value {
                Some(number) => number.into(),
                None => c.text.trim_matches('"').into(),
            },
        });
        Ok(Self {
            abi: format!("{VERSION_MAJOR}.{VERSION_MINOR}"),
            released: false,
            entry: model.entry.decl.clone(),
            structs,
            constants: constants.collect(),
        })
    }

    /// Over all that a compiled guest or host depends on, and nothing else: no comments, no `released`.
    fn fingerprint(&self) -> String {
        let mut text = format!("{}\n{}\n", self.abi, self.entry);
        for s in &self.structs {
            let _ = writeln!(text, "{} {} {} {}", s.name, s.size, s.align, s.frozen);
            for m in &s.members {
                let _ = writeln!(text, " {} {} {}", m.offset, m.size, m.declaration);
            }
        }
        for c in &self.constants {
            let _ = writeln!(text, "{} {}", c.name, c.value);
        }
        let hash = Sha256::digest(text);
        let mut hex = String::from("sha256:");
        for byte in hash {
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }

    /// What of `self`, a released record, `now` has changed or lost.
    fn broken_by(&self, now: &Self) -> Vec<String> {
        let mut broken = Vec::new();
        if self.entry != now.entry {
            broken.push(format!("entry: was `{}`, is `{}`", self.entry, now.entry));
        }
        for old in &self.structs {
            let Some(new) = now.structs.iter().find(|s| s.name == old.name) else {
                broken.push(format!("struct {} is gone", old.name));
                continue;
            };
            if old.frozen && (!new.frozen || new.size != old.size) {
                broken.push(format!(
                    "{} is frozen at {} bytes, has {}",
                    old.name, old.size, new.size
                ));
            }
            if new.align != old.align {
                broken.push(format!(
                    "{}: alignment was {}, is {}",
                    old.name, old.align, new.align
                ));
            }
            for (i, m) in old.members.iter().enumerate() {
                match new.members.get(i) {
                    Some(n) if n == m => {}
                    Some(n) => broken.push(format!(
                        "{}: member {i} was `{}` at {}, is `{}` at {}",
                        old.name, m.declaration, m.offset, n.declaration, n.offset
                    )),
                    None => broken.push(format!("{}.{} is gone", old.name, m.name)),
                }
            }
            for n in new.members.iter().skip(old.members.len()) {
                if n.offset < old.size {
                    broken.push(format!(
                        "{}.{} begins at {}, inside the old {} bytes",
                        old.name, n.name, n.offset, old.size
                    ));
                }
            }
        }
        for old in &self.constants {
            match now.constants.iter().find(|c| c.name == old.name) {
                Some(new) if new.value == old.value => {}
                // It says which record this is.
                Some(_) if old.name == "PXG_VERSION_MINOR" && self.abi != now.abi => {}
                Some(new) => {
                    broken.push(format!("{} was {}, is {}", old.name, old.value, new.value))
                }
                None => broken.push(format!("{} is gone", old.name)),
            }
        }
        broken
    }
}

/// The record and, with a reason, the renewed fingerprint.
pub(super) fn made(model: &Model, accept: Option<&str>) -> Result<Made> {
    let mut now = Record::of(model)?;
    let path = format!("{FOLDER}/v{}.layout.json", now.abi);
    for (file, old) in records()? {
        if file == path {
            now.released = old.released;
        }
        if old.released {
            let broken = old.broken_by(&now);
            ensure!(
                broken.is_empty(),
                "{file} is released and says otherwise:\n  {}\n\
                 A released ABI only grows: put new members behind the old end, give new constants new names, and \
                 undo the rest.",
                broken.join("\n  ")
            );
        }
    }
    let json = serde_json::to_string_pretty(&now)?;
    let mut made = Made::default();
    made.outputs.push(Output::new(path, compact(&json) + "\n"));
    fingerprint(&now.fingerprint(), &now.abi, accept, &mut made)?;
    Ok(made)
}

fn records() -> Result<Vec<(String, Record)>> {
    let mut records = Vec::new();
    for file in super::list(FOLDER)? {
        if file.ends_with(".layout.json") {
            let text = super::read(&file)?;
            let record = serde_json::from_str(&text).with_context(|| format!("read {file}"))?;
            records.push((file, record));
        }
    }
    Ok(records)
}

/// One member or constant on a line: short enough to read, and a diff shows what changed.
fn compact(pretty: &str) -> String {
    let mut out = String::new();
    let mut object: Option<String> = None;
    for line in pretty.lines() {
        let depth = line.len() - line.trim_start().len();
        let word = line.trim();
        let leaf = depth == 8 || depth == 4;
        match &mut object {
            None if leaf && word == "{" => object = Some(line.to_owned()),
            None => out += &format!("{line}\n"),
            Some(text) if word.starts_with('}') => {
                out += &format!("{text} {word}\n");
                object = None;
            }
            // A struct: its members are leaves of their own.
            Some(text) if word.ends_with('[') => {
                out += &format!("{text} {word}\n");
                object = None;
            }
            Some(text) => {
                text.push(' ');
                text.push_str(word);
            }
        }
    }
    out.trim_end().to_owned()
}

const NEW_README: &str = "# The recorded ABI

`v1.<minor>.layout.json` records every struct, member, signature and constant of a minor version. `cargo xtask gen`
writes it. While its `released` is false it follows the crate; once it is true it only grows, and the generator refuses
a change of what is in it.

The next line stands for all of that. It differs as soon as the ABI in `proxy-golang-abi` changes, and only
`cargo xtask gen --accept-abi \"why\"` renews it, which also writes the reason to [history.md](history.md). Describe the
change in the chapters of the spec first.

";

fn fingerprint(hash: &str, abi: &str, accept: Option<&str>, made: &mut Made) -> Result<()> {
    let readme = if super::exists(README) {
        super::read(README)?
    } else {
        NEW_README.to_owned() + MARK + "`none`\n"
    };
    let start = readme
        .find(MARK)
        .with_context(|| format!("{README} lacks the line `{MARK}`sha256:...``"))?;
    let line = readme[start..].lines().next().unwrap_or_default();
    let old = line.trim_start_matches(MARK).trim_matches('`');
    if old == hash {
        made.outputs.push(Output::new(README, readme));
        return Ok(());
    }
    let Some(why) = accept else {
        made.complaints.push(format!(
            "the ABI has changed: {README} records {old}, proxy-golang-abi has {hash}.\n\
             `git diff {FOLDER}` shows what, after a run of `cargo xtask gen`. If that is meant: describe it in spec/, \
             then run `cargo xtask gen --accept-abi \"why\"`."
        ));
        return Ok(());
    };
    let why = why.trim();
    ensure!(
        !why.is_empty(),
        "--accept-abi wants the reason of the change"
    );
    let mut history = if super::exists(HISTORY) {
        super::read(HISTORY)?
    } else {
        "# Changes of the ABI\n\nOne line per accepted change, the newest last.\n\n".to_owned()
    };
    let short = |hash: &str| {
        hash.trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect::<String>()
    };
    let _ = writeln!(
        history,
        "- {abi} `{}` to `{}`: {why}",
        short(old),
        short(hash)
    );
    let renewed = readme.replace(line, &format!("{MARK}`{hash}`"));
    made.outputs.push(Output::new(README, renewed));
    made.outputs.push(Output::new(HISTORY, history));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn released() -> Record {
        let mut record = Record::of(&Model::read().unwrap()).unwrap();
        record.released = true;
        record
    }

    fn broken(change: impl FnOnce(&mut Record)) -> String {
        let old = released();
        let mut now = old.clone();
        change(&mut now);
        old.broken_by(&now).join("\n")
    }

    fn event(record: &mut Record) -> &mut StructRecord {
        let mut all = record.structs.iter_mut();
        all.find(|s| s.name == "pxg_event").unwrap()
    }

    #[test]
    fn a_released_record_accepts_only_growth_at_the_end() {
        assert_eq!(broken(|_| {}), "");
        assert_eq!(
            broken(|r| {
                let s = event(r);
                let offset = s.size;
                s.size += 8;
                s.members.push(MemberRecord {
                    name: "more".into(),
                    offset,
                    size: 8,
                    declaration: "uint64_t more".into(),
                });
                r.constants.push(ConstantRecord {
                    name: "PXG_ACT_NEW".into(),
                    value: 7.into(),
                });
            }),
            ""
        );
    }

    #[test]
    fn a_released_record_names_what_was_changed() {
        assert!(broken(|r| event(r).members.swap(4, 5)).contains("pxg_event: member 4 was"));
        assert!(broken(|r| event(r).members.truncate(3)).contains("pxg_event.worker is gone"));
        assert!(broken(|r| r.structs[0].size = 24).contains("pxg_str is frozen at 16"));
        assert!(broken(|r| drop(r.structs.remove(4))).contains("struct pxg_page is gone"));
        assert!(broken(|r| r.entry.push('x')).contains("entry: was"));
        let constant = |r: &mut Record| r.constants[10].value = 99.into();
        let name = released().constants[10].name.clone();
        assert!(broken(constant).contains(&format!("{name} was")));
        assert!(broken(|r| drop(r.constants.remove(10))).contains(&format!("{name} is gone")));
        let inside = |r: &mut Record| {
            event(r).members.push(MemberRecord {
                name: "in".into(),
                offset: 8,
                size: 8,
                declaration: "uint64_t in".into(),
            });
        };
        assert!(broken(inside).contains("inside the old 160 bytes"));
    }

    #[test]
    fn the_fingerprint_sees_types_and_values_but_no_mark() {
        let old = released();
        let mut now = old.clone();
        now.released = false;
        assert_eq!(old.fingerprint(), now.fingerprint());
        event(&mut now).members[1].declaration = "int32_t phase".into();
        assert_ne!(old.fingerprint(), now.fingerprint());
    }
}
