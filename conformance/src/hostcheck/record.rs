//! The record of one call across the boundary: what the probe guest and the layer write, one JSON object a line, and
//! what the history checker reads.
//!
//! A call has two records, `enter` and `exit`, with the same thread; calls nest properly on a thread. `seq` is drawn from
//! one counter of the process, so it orders the records of a process. Members that do not apply are left out.
//!
//! | `fn` | `enter` | `exit` |
//! |---|---|---|
//! | `init` | the host's table in `host`, `cpus` | `status` |
//! | `on_config_new` | `config_bytes`, `filter`, `features`, `arg` = flags, `parent` | `config`, `status`, what it declared in `result` |
//! | `on_config_drop` | `config` | |
//! | `on_event` | the event, and the preset result in `preset` | `sum` again, `result` |
//! | `on_cancel`, `on_stream_end` | `config user stream token worker` | |
//! | `on_batch_end`, `on_worker` | `worker`, `arg` = up, `stack`, `cpus` | |
//! | `complete`, `apply`, `wake` | `token` or `stream`, `result`, `arg` | `status` |
//! | `scratch_more`, `get_ext`, `log` | `arg` = bytes asked for | `status` (0, or NOTFOUND for NULL), `misaligned`, `dirty` |
//! | `release` | `owned` = the buffer's id, `arg` = how often by now | |
//! | `unload` | the library's destructor | |
//! | `note` | `rule`, `text`: the probe itself saw a rule broken | |

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Who wrote a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// The probe guest.
    #[default]
    Probe,
    /// The layer between a host and a guest.
    Layer,
}

/// Which end of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Edge {
    /// The call begins.
    #[default]
    Enter,
    /// The call returns.
    Exit,
}

/// A field: name and value, each byte as the character of its number (ISO 8859-1).
pub(crate) type Field = (String, String);

/// What `on_event` found preset in its result, and the scratch it was lent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Preset {
    /// `size` of the result.
    pub(crate) size: u32,
    /// Its action, which is to be UNSET.
    pub(crate) action: u32,
    /// Its user slot.
    pub(crate) user: u64,
    /// Every other member but the scratch was zero.
    pub(crate) zero: bool,
    /// Operations and bytes that were lent.
    pub(crate) ops_cap: u64,
    /// See above.
    pub(crate) cap: u64,
    /// The low four bits of the two addresses, OR-ed.
    pub(crate) misaligned: u64,
    /// `scratch_ops` held something that is neither zeros nor an earlier operation.
    pub(crate) dirty: bool,
}

/// What a guest answered, or handed to `complete` and `apply`; and what a configuration declared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    /// The name of the script's result, where it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    /// The action.
    pub(crate) action: u32,
    /// The result's flags; of a configuration its flags.
    pub(crate) flags: u32,
    /// The user slot from now on.
    pub(crate) user: u64,
    /// Number of operations.
    pub(crate) n_ops: u64,
    /// Sums over the operations: bytes passed, dropped, injected, written to a streamed reply.
    pub(crate) pass: u64,
    /// See `pass`.
    pub(crate) drop: u64,
    /// See `pass`.
    pub(crate) inject: u64,
    /// See `pass`.
    pub(crate) write: u64,
    /// Phases that are not wanted any more.
    pub(crate) unsubscribe: u64,
    /// Body modes, request and response.
    pub(crate) modes: [u32; 2],
    /// `more_bytes`.
    pub(crate) more: u64,
    /// The reply's status; absent without a reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reply: Option<u32>,
    /// Ids of the owned buffers in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) owned: Vec<u64>,
    /// Of a configuration: phases subscribed to.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) subscribe: u64,
    /// Of a configuration: phases that may pend.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) pend: u64,
    /// Of a configuration: most bytes held.
    pub(crate) max_body: [u64; 2],
}

/// The host's table, as the probe found it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct HostTable {
    /// `size`.
    pub(crate) size: u32,
    /// Version.
    pub(crate) major: u32,
    /// Version.
    pub(crate) minor: u32,
    /// Bound of worker indices; 0 is unknown.
    pub(crate) n_workers: u32,
    /// Feature bits.
    pub(crate) features: [u64; 4],
    /// Name.
    pub(crate) name: String,
    /// Version.
    pub(crate) version: String,
    /// `ctx`.
    pub(crate) ctx: u64,
    /// Entries that are not null: complete, apply, wake, log, scratch_more, get_ext, page.
    pub(crate) entries: [bool; 7],
    /// Checksum over the bytes of the table.
    pub(crate) sum: String,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// One end of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    /// Who wrote it.
    pub(crate) side: Side,
    /// Its place in the order of the process.
    pub(crate) seq: u64,
    /// Monotonic time in nanoseconds.
    pub(crate) t: u64,
    /// Process.
    pub(crate) pid: u32,
    /// Thread.
    pub(crate) tid: u32,
    /// Which function.
    #[serde(rename = "fn")]
    pub(crate) function: String,
    /// Which end of it.
    pub(crate) edge: Edge,
    /// The path of the library that wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) library: Option<String>,
    /// The filter's instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instance: Option<String>,
    /// The case whose script ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) case: Option<String>,
    /// The configuration's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<u64>,
    /// The configuration it overrides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<u64>,
    /// Stream handle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stream: Option<u64>,
    /// Token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<u64>,
    /// The user slot as the host gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<u64>,
    /// Worker index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) worker: Option<u32>,
    /// Phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) phase: Option<u32>,
    /// Event flags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) flags: Option<u32>,
    /// `size` of the struct that came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<u32>,
    /// `arg` of the event or of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) arg: Option<u64>,
    /// Headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fields: Option<Vec<Field>>,
    /// Trailers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trailers: Option<Vec<Field>>,
    /// The request's headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peer_fields: Option<Vec<Field>>,
    /// The request's trailers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peer_trailers: Option<Vec<Field>>,
    /// Length of each chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chunks: Option<Vec<u64>>,
    /// Where the view begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) body_offset: Option<u64>,
    /// The view's bytes, if they are at most 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) body: Option<String>,
    /// FNV-1a over the view's bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) body_sum: Option<String>,
    /// Attributes; null where ABSENT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) attrs: Option<Vec<Option<String>>>,
    /// FNV-1a over every byte of the event and its views.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sum: Option<String>,
    /// What was preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) preset: Option<Preset>,
    /// What was answered or handed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Answer>,
    /// What a call answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<i32>,
    /// Of a configuration: its features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) features: Option<[u64; 4]>,
    /// Of a configuration: its filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) filter: Option<String>,
    /// Of a configuration: FNV-1a over the bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) config_bytes: Option<String>,
    /// The host's table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<HostTable>,
    /// Of an owned buffer: its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owned: Option<u64>,
    /// Of a note: the rule that the probe saw broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<String>,
    /// Of a note: what it saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    /// The low bits of an address that ought to be aligned to 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) misaligned: Option<u64>,
    /// Of `on_worker`: the thread's stack in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stack: Option<u64>,
    /// Of `init` and `on_worker`: how many processors the thread may run on; 0 if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpus: Option<u64>,
    /// Memory that ought to be zero was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dirty: Option<bool>,
}

impl Record {
    /// Reads one line.
    pub(crate) fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }

    /// Whether it is this end of this function.
    pub(crate) fn is(&self, function: &str, edge: Edge) -> bool {
        self.function == function && self.edge == edge
    }

    /// Bytes in the view of a body event.
    pub(crate) fn view_len(&self) -> u64 {
        self.chunks.as_ref().map_or(0, |c| c.iter().sum())
    }

    /// The case that the fields of the request name.
    pub(crate) fn named_case(&self) -> Option<&str> {
        [&self.fields, &self.peer_fields]
            .into_iter()
            .flatten()
            .flatten()
            .find(|(n, _)| n == CASE_FIELD)
            .map(|(_, v)| v.as_str())
    }
}

/// The request field that names the case whose script runs.
pub(crate) const CASE_FIELD: &str = "x-pxg-case";

/// FNV-1a with 64 bits, as the probe writes sums.
pub(crate) fn fnv(bytes: &[u8]) -> String {
    let mut h = 0xcbf2_9ce4_8422_2325_u64;
    for b in bytes {
        h = (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
    }
    format!("{h:016x}")
}

/// All records below `dir`, in the order of their files and sequence numbers; a line that is no record is an error that
/// names it.
pub(crate) fn read_dir(dir: &Path) -> anyhow::Result<Vec<Record>> {
    use anyhow::Context as _;
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    let mut all = Vec::new();
    for f in files {
        let text =
            std::fs::read_to_string(&f).with_context(|| format!("cannot read {}", f.display()))?;
        let from = all.len();
        for (i, line) in text.lines().enumerate() {
            all.push(
                Record::parse(line)
                    .with_context(|| format!("{}:{}: no record: {line}", f.display(), i + 1))?,
            );
        }
        all[from..].sort_by_key(|r| r.seq);
    }
    Ok(all)
}
