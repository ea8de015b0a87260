//! Scenarios: what a host does with a guest, step by step, as a file that repeats it.
//!
//! A file holds JSON, one object a line: first what the host is like and what is configured, then the steps in their
//! order. Each step belongs to a lane, which is a loop thread; lanes run at the same time.

mod bytes;
pub(crate) mod play;
pub(crate) mod record;
mod shape;

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

pub(crate) use bytes::Bytes;
pub(crate) use shape::{Drive, HostShape, Lines, SubjectShape};

/// The version of the file's format.
const VERSION: u32 = 1;

/// What a scenario does, and what it is known to show.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scenario {
    /// The rule that it shows to be broken, and how, where it was kept for that.
    pub(crate) shows: Option<(String, String)>,
    pub(crate) host: HostShape,
    /// Empty: every filter of the library, with an empty configuration.
    pub(crate) subjects: Vec<SubjectShape>,
    /// The steps of each loop thread.
    pub(crate) lanes: Vec<Vec<Step>>,
}

/// One thing that a loop thread does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Step {
    /// Makes a further configuration of a subject, as a reload does.
    Configure { conf: u32, subject: usize },
    /// Offers bytes as a configuration, and drops at once what is made of them.
    Offer {
        subject: usize,
        bytes: Bytes,
        #[serde(default, skip_serializing_if = "is_false")]
        validate: bool,
    },
    /// Drops a configuration of this lane when its streams have ended.
    Drop { conf: u32 },
    /// Opens a stream; its exchange is put through as far as the steps that follow say.
    Open(Box<Open>),
    /// Goes on with a stream, at most by so many events, and never waits.
    Go { stream: u32, events: u32 },
    /// Waits until a stream's pending event is completed.
    Wait { stream: u32 },
    /// The client goes away.
    Abort { stream: u32 },
    /// Goes on to the stream's end, waiting where it must.
    Finish { stream: u32 },
    /// The end of an iteration of the loop.
    Turn,
    /// The loop has nothing to do for so long.
    Pause { us: u64 },
    /// What the guest answered, for the reader: nothing is done.
    Saw { stream: u32, what: String },
    /// The guest allocates on another thread, and its heap is collected.
    Collect { ms: u64 },
}

/// A stream to be opened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Open {
    pub(crate) stream: u32,
    /// A configuration that this lane made, else one of those that were made first, by the number of their subject.
    pub(crate) conf: u32,
    pub(crate) request: Lines,
    pub(crate) response: Lines,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) upgraded: bool,
    #[serde(flatten)]
    pub(crate) drive: Drive,
}

fn is_false(b: &bool) -> bool {
    !b
}

#[derive(Serialize, Deserialize)]
struct Header {
    scenario: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(default)]
    host: HostShape,
    #[serde(default)]
    subjects: Vec<SubjectShape>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(default, skip_serializing_if = "is_zero")]
    lane: usize,
    #[serde(flatten)]
    step: Step,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Configurations of a lane's own have numbers from here on.
pub(crate) const OWN_CONFS: u32 = 1000;

/// More loop threads than a scenario can have.
const MAX_LANES: usize = 16;

impl Scenario {
    /// As the lines of a file.
    pub(crate) fn to_text(&self) -> Result<String> {
        let header = Header {
            scenario: VERSION,
            rule: self.shows.as_ref().map(|s| s.0.clone()),
            title: self.shows.as_ref().map(|s| s.1.clone()),
            host: self.host.clone(),
            subjects: self.subjects.clone(),
        };
        let mut out = serde_json::to_string(&header)? + "\n";
        for (lane, steps) in self.lanes.iter().enumerate() {
            for step in steps {
                out += &line(lane, step)?;
            }
        }
        Ok(out)
    }

    /// From the lines of a file.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().enumerate();
        let Some((_, first)) = lines.next() else {
            bail!("the file is empty; a scenario begins with a line {{\"scenario\":{VERSION}}}");
        };
        let h: Header = serde_json::from_str(first).context(
            "line 1: found no scenario's header; expected an object with `scenario`, `host`, `subjects`",
        )?;
        if h.scenario != VERSION {
            bail!(
                "line 1: the scenario has version {}, this program reads version {VERSION}; record it again",
                h.scenario
            );
        }
        let mut out = Self {
            shows: h.rule.map(|r| (r, h.title.unwrap_or_default())),
            host: h.host,
            subjects: h.subjects,
            lanes: Vec::new(),
        };
        for (i, text) in lines.filter(|(_, l)| !l.trim().is_empty()) {
            let l: Line = serde_json::from_str(text)
                .with_context(|| format!("line {}: found no step of a scenario", i + 1))?;
            if l.lane >= MAX_LANES {
                bail!(
                    "line {}: lane {}; the last one is {}",
                    i + 1,
                    l.lane,
                    MAX_LANES - 1
                );
            }
            if out.lanes.len() <= l.lane {
                out.lanes.resize_with(l.lane + 1, Vec::new);
            }
            out.lanes[l.lane].push(l.step);
        }
        out.host.check()?;
        Ok(out)
    }

    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Writes a file.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = self.to_text()?;
        std::fs::File::create(path)
            .and_then(|mut f| f.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// How many steps it has.
    pub(crate) fn len(&self) -> usize {
        self.lanes.iter().map(Vec::len).sum()
    }
}

fn line(lane: usize, step: &Step) -> Result<String> {
    Ok(serde_json::to_string(&Line {
        lane,
        step: step.clone(),
    })? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Scenario {
        Scenario {
            shows: Some(("PXG-MEM-002".into(), "a view".into())),
            host: HostShape {
                without: vec!["LOG".into()],
                tail: 8,
                ..HostShape::default()
            },
            subjects: vec![SubjectShape {
                filter: "f".into(),
                config: Bytes(vec![0xff, 0]),
                ..SubjectShape::default()
            }],
            lanes: vec![
                vec![
                    Step::Open(Box::new(Open {
                        stream: 1,
                        request: Lines {
                            fields: vec![(Bytes::from(":path"), Bytes::from("/a"))],
                            reads: vec![Bytes(vec![b'L'; 4000]), Bytes(vec![0x80])],
                            trailers: Some(Vec::new()),
                        },
                        drive: Drive {
                            chunks: Some(3),
                            ..Drive::default()
                        },
                        ..Open::default()
                    })),
                    Step::Turn,
                ],
                vec![Step::Finish { stream: 1 }],
            ],
        }
    }

    #[test]
    fn a_scenario_survives_its_file() {
        let mut s = sample();
        s.host.without.clear();
        let text = s.to_text().unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(text.len() < 1000, "{text}");
        assert_eq!(Scenario::parse(&text).unwrap(), s);
    }

    #[test]
    fn what_is_no_scenario_is_refused_with_its_line() {
        let bad = |t: &str| format!("{:#}", Scenario::parse(t).unwrap_err());
        assert!(bad("").contains("empty"));
        assert!(bad("{}").contains("line 1"));
        assert!(bad("{\"scenario\":9}").contains("version 9"));
        assert!(bad("{\"scenario\":1}\n{\"do\":\"dance\"}").contains("line 2"));
        assert!(bad("{\"scenario\":1}\n{\"do\":\"turn\",\"lane\":99}").contains("lane 99"));
        let text = sample().to_text().unwrap();
        assert!(bad(&text).contains("no feature \"LOG\""), "{}", bad(&text));
    }
}
