//! What crosses the boundary, as owned values: events to be delivered and results as they were found.

use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase};

/// A header or trailer field to be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
    pub flags: u32,
}

/// A field from text.
pub fn field(name: &str, value: impl AsRef<[u8]>) -> Field {
    Field {
        name: name.as_bytes().to_vec(),
        value: value.as_ref().to_vec(),
        flags: 0,
    }
}

/// One event.
#[derive(Clone, Debug, Default)]
pub struct Event {
    pub phase: Phase,
    pub flags: EventFlags,
    pub worker: u32,
    pub config: u64,
    pub user: u64,
    pub stream: u64,
    pub token: u64,
    pub arg: u64,
    pub fields: Vec<Field>,
    pub trailers: Vec<Field>,
    pub peer_fields: Vec<Field>,
    pub peer_trailers: Vec<Field>,
    pub chunks: Vec<Vec<u8>>,
    pub body_offset: u64,
    /// None: ABSENT.
    pub attrs: Vec<Option<Vec<u8>>>,
}

/// In which lent memory a pointer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    Null,
    /// Scratch of this call: how many bytes are left of it from there.
    Scratch(u64),
    /// A view of this call: how many bytes are left of it from there.
    View(u64),
    /// Lent memory of another call, or a guard page.
    Foreign,
    /// The guest's own memory.
    Guest,
}

/// A string as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub ptr: u64,
    pub len: u32,
    pub flags: u32,
    /// None: the memory could not be read.
    pub bytes: Option<Vec<u8>>,
    pub region: Region,
}

impl Text {
    pub fn get(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }
}

/// A buffer as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    pub text: Text,
    pub release: u64,
    pub ctx: u64,
}

/// An operation as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    pub kind: u16,
    pub flags: u16,
    pub target: u32,
    pub u0: u64,
    pub key: Text,
    pub val: Buffer,
}

/// An array as it was found: where, how many it says, and its elements if they could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array<T> {
    pub ptr: u64,
    pub count: u64,
    pub region: Region,
    pub items: Option<Vec<T>>,
    /// Bytes of the whole array.
    pub bytes: u64,
}

impl<T> Array<T> {
    pub fn get(&self) -> &[T] {
        self.items.as_deref().unwrap_or_default()
    }
}

/// A reply as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub size: u32,
    pub status: u32,
    pub flags: u32,
    pub grpc_status: i32,
    pub fields: Array<(Text, Text)>,
    pub body: Array<Buffer>,
    pub trailers: Array<(Text, Text)>,
    pub details: Text,
    pub tail_is_zero: bool,
}

/// What `reply` of a result points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyFound {
    None,
    Unreadable(u64),
    Some(Box<Reply>),
}

/// A result as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub size: u32,
    pub action: Action,
    pub flags: u32,
    pub reserved0: u32,
    pub user: u64,
    pub ops: Array<Op>,
    pub reply: ReplyFound,
    pub unsubscribe: u64,
    pub body_mode: [BodyMode; 2],
    pub more_bytes: u64,
    pub pend_ns: u64,
    pub error: Text,
    /// What is behind the members of version 1.0, up to `size`, is zero.
    pub tail_is_zero: bool,
}

impl Outcome {
    /// The buffers whose ownership passed to the host.
    pub fn owned(&self) -> Vec<(u64, u64)> {
        let reply = match &self.reply {
            ReplyFound::Some(r) => r.body.get(),
            _ => &[],
        };
        self.ops
            .get()
            .iter()
            .map(|o| &o.val)
            .chain(reply)
            .filter(|b| b.text.flags & 0x20 != 0 && b.release != 0)
            .map(|b| (b.release, b.ctx))
            .collect()
    }

    /// The strings that the guest keeps in memory of its own until its next call. OWNED bytes live until their release.
    pub fn borrowed(&self) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        let mut put = |t: &Text| {
            if let (Region::Guest, Some(b)) = (t.region, &t.bytes)
                && !b.is_empty()
                && t.flags & 0x20 == 0
            {
                out.push((t.ptr, b.clone()));
            }
        };
        for o in self.ops.get() {
            put(&o.key);
            put(&o.val.text);
        }
        if let ReplyFound::Some(r) = &self.reply {
            for (n, v) in r.fields.get().iter().chain(r.trailers.get()) {
                put(n);
                put(v);
            }
            for b in r.body.get() {
                put(&b.text);
            }
            put(&r.details);
        }
        put(&self.error);
        out
    }

    /// What a repeat with the same input must give again, if the guest decides by its input alone: the action, and the
    /// kinds, keys and targets of its operations, without values.
    pub fn shape(&self) -> String {
        let ops: Vec<String> = self
            .ops
            .get()
            .iter()
            .map(|o| {
                format!(
                    "{}:{}:{}",
                    o.kind,
                    o.target,
                    String::from_utf8_lossy(o.key.get())
                )
            })
            .collect();
        let reply = match &self.reply {
            ReplyFound::Some(r) => r.status,
            _ => 0,
        };
        format!("{}/{reply}/{}", self.action.0, ops.join(","))
    }
}

/// Names of phases, as in the specification.
pub fn phase_name(p: Phase) -> &'static str {
    match p.0 {
        1 => "REQUEST_HEADERS",
        2 => "REQUEST_BODY",
        3 => "REQUEST_TRAILERS",
        4 => "RESPONSE_HEADERS",
        5 => "RESPONSE_BODY",
        6 => "RESPONSE_TRAILERS",
        7 => "LOG",
        8 => "WAKE",
        16 => "L4_OPEN",
        17 => "L4_DOWNSTREAM",
        18 => "L4_UPSTREAM",
        19 => "L4_CLOSE",
        _ => "no phase",
    }
}

/// Names of actions, as in the specification.
pub fn action_name(a: Action) -> String {
    match a.0 {
        0 => "UNSET".into(),
        1 => "CONTINUE".into(),
        2 => "PENDING".into(),
        3 => "MORE".into(),
        4 => "REPLY".into(),
        5 => "RESET".into(),
        6 => "ERROR".into(),
        n => format!("unknown action {n}"),
    }
}

/// Names of operation kinds, as in the specification.
pub fn op_name(kind: u16) -> String {
    match kind {
        1 => "HEADER_SET".into(),
        2 => "HEADER_ADD".into(),
        3 => "HEADER_DELETE".into(),
        4 => "SET_AT".into(),
        5 => "DELETE_AT".into(),
        8 => "PASS".into(),
        9 => "DROP".into(),
        10 => "INJECT".into(),
        11 => "BODY_WRITE".into(),
        16 => "METADATA_SET".into(),
        17 => "METRIC".into(),
        18 => "ROUTE".into(),
        n => format!("kind {n}"),
    }
}
