//! What a guest hands over: copies of what it borrows out, and a hand on the buffers that it gives away.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use proxy_golang_abi as abi;
use proxy_golang_conformance::parts::config::ConfigMade;
use proxy_golang_conformance::parts::model::{
    Array, Buffer, Op, Outcome, Region, Reply, ReplyFound, Text,
};

use super::memory::{For, Kind, Packer, Slab, room};
use super::platform;
use crate::report::{self, Place};

/// Longest struct that is copied.
const MAX_STRUCT: u32 = 4096;

/// A buffer that belongs to the host until it releases it.
struct Owned {
    release: u64,
    ctx: u64,
    slot: usize,
    stream: u64,
    since: u64,
}

#[derive(Default)]
struct Books {
    next: u64,
    owned: HashMap<u64, Owned>,
}

static BOOKS: Mutex<Option<Books>> = Mutex::new(None);

fn books<T>(f: impl FnOnce(&mut Books) -> T) -> T {
    let mut b = BOOKS.lock().unwrap_or_else(PoisonError::into_inner);
    f(b.get_or_insert_default())
}

/// A buffer that was handed over and not released: its library, its stream, and since when.
pub(crate) struct Outstanding {
    pub(crate) slot: usize,
    pub(crate) stream: u64,
    pub(crate) since: u64,
}

/// Buffers that nobody has released.
pub(crate) fn outstanding() -> Vec<Outstanding> {
    books(|b| {
        b.owned
            .values()
            .map(|o| Outstanding {
                slot: o.slot,
                stream: o.stream,
                since: o.since,
            })
            .collect()
    })
}

/// In the place of the guest's `release`, with the layer's own number as `ctx`.
unsafe extern "C" fn release(id: u64) {
    let taken = books(|b| (b.owned.remove(&id), id < b.next));
    match taken {
        (Some(o), _) => {
            let outer = super::hooks::IN_RELEASE.replace(true);
            crate::trace::release(o.slot, o.stream, id);
            // SAFETY: the guest gave this function with an OWNED buffer, to be called once with its `ctx`.
            unsafe {
                let f: unsafe extern "C" fn(u64) = std::mem::transmute(o.release as usize);
                f(o.ctx);
            }
            super::hooks::IN_RELEASE.set(outer);
        }
        (None, known) => {
            if let Some(r) = report::current() {
                let place = Place {
                    function: "release",
                    ..Place::default()
                };
                let what = if known {
                    "called `release` a second time for one buffer".to_string()
                } else {
                    format!("called `release` with {id:#x}, which no buffer has as its ctx")
                };
                r.report(
                    &report::host(
                        "PXG-MEM-006",
                        what,
                        "exactly one call for each OWNED buffer, with the buffer's ctx",
                    ),
                    &place,
                );
            }
        }
    }
}

fn has_owned(o: &Outcome) -> bool {
    !o.owned().is_empty()
}

fn text_room(t: &Text) -> usize {
    t.get().len()
}

fn buffer_room(b: &Buffer) -> usize {
    if b.text.flags & 0x30 == 0 {
        text_room(&b.text)
    } else {
        0
    }
}

fn fields_room(a: &Array<(Text, Text)>) -> usize {
    room::<abi::Field>(a.get().len())
        + a.get()
            .iter()
            .map(|(n, v)| text_room(n) + text_room(v))
            .sum::<usize>()
}

fn outcome_room(o: &Outcome) -> usize {
    let ops = room::<abi::Op>(o.ops.get().len())
        + o.ops
            .get()
            .iter()
            .map(|o| text_room(&o.key) + buffer_room(&o.val))
            .sum::<usize>();
    let reply = match &o.reply {
        ReplyFound::Some(r) => {
            room::<u8>(r.size.min(MAX_STRUCT) as usize + size_of::<abi::Reply>())
                + fields_room(&r.fields)
                + fields_room(&r.trailers)
                + room::<abi::Buf>(r.body.get().len())
                + r.body.get().iter().map(buffer_room).sum::<usize>()
                + text_room(&r.details)
        }
        _ => 0,
    };
    room::<u8>(o.size.min(MAX_STRUCT) as usize + size_of::<abi::EventResult>())
        + ops
        + reply
        + text_room(&o.error)
}

/// It begins in lent memory and ends behind it: the host is to see that as it is, and to refuse it (PXG-MEM-012).
fn leaves(region: Region, bytes: u64) -> bool {
    matches!(region, Region::Scratch(room) | Region::View(room) if bytes > room)
}

struct Copier {
    p: Packer,
    slot: usize,
    stream: u64,
    owned: Vec<u64>,
}

impl Copier {
    fn text(&mut self, t: &Text) -> abi::Str {
        abi::Str {
            ptr: match t.get() {
                _ if leaves(t.region, t.len.into()) => t.ptr as *const u8,
                [] => t.ptr as *const u8,
                b => self.p.bytes(b),
            },
            len: t.len,
            flags: abi::StrFlags(t.flags),
        }
    }

    fn buffer(&mut self, b: &Buffer) -> abi::Buf {
        let borrowed = b.text.flags & 0x30 == 0;
        let bytes = if borrowed {
            self.text(&b.text)
        } else {
            abi::Str {
                ptr: b.text.ptr as *const u8,
                len: b.text.len,
                flags: abi::StrFlags(b.text.flags),
            }
        };
        // What is neither owned nor zero is the host's to refuse.
        let as_it_is = || {
            // SAFETY: the guest gave the address as an optional function of this type; it is handed on, not called.
            unsafe {
                std::mem::transmute::<usize, Option<unsafe extern "C" fn(u64)>>(b.release as usize)
            }
        };
        if b.text.flags & 0x20 != 0 && b.release != 0 {
            let owned = Owned {
                release: b.release,
                ctx: b.ctx,
                slot: self.slot,
                stream: self.stream,
                since: platform::now_ns(),
            };
            let id = books(|books| {
                let id = books.next;
                books.next += 1;
                books.owned.insert(id, owned);
                id
            });
            self.owned.push(id);
            return abi::Buf {
                bytes,
                release: Some(release),
                ctx: id,
            };
        }
        abi::Buf {
            bytes,
            release: as_it_is(),
            ctx: b.ctx,
        }
    }

    fn op(&mut self, o: &Op) -> abi::Op {
        abi::Op {
            kind: abi::OpKind(o.kind),
            flags: abi::OpFlags(o.flags),
            target: abi::Target(o.target),
            u0: o.u0,
            key: self.text(&o.key),
            val: self.buffer(&o.val),
        }
    }

    fn fields(&mut self, a: &Array<(Text, Text)>) -> *const abi::Field {
        let v: Vec<abi::Field> = a
            .get()
            .iter()
            .map(|(n, v)| abi::Field {
                name: self.text(n),
                value: self.text(v),
            })
            .collect();
        if v.is_empty() || leaves(a.region, a.bytes) {
            a.ptr as *const abi::Field
        } else {
            self.p.array(&v)
        }
    }

    /// `at`: where the guest has the reply, for what is behind version 1.0.
    fn reply(&mut self, r: &Reply, at: u64) -> *const abi::Reply {
        let mut raw: abi::Reply =
            proxy_golang_conformance::parts::peek::prefix(at, r.size as usize)
                .unwrap_or_else(|_| unreachable!("it was read a moment ago"));
        raw.fields = self.fields(&r.fields);
        raw.trailers = self.fields(&r.trailers);
        let body: Vec<abi::Buf> = r.body.get().iter().map(|b| self.buffer(b)).collect();
        if !body.is_empty() && !leaves(r.body.region, r.body.bytes) {
            raw.body = self.p.array(&body);
        }
        raw.details = self.text(&r.details);
        self.sized(&raw, r.size, at).cast()
    }

    /// A struct with what the guest has behind the known members.
    fn sized<T: proxy_golang_conformance::parts::peek::Plain>(
        &mut self,
        v: &T,
        size: u32,
        at: u64,
    ) -> *const u8 {
        use proxy_golang_conformance::parts::peek;
        let known = peek::as_bytes(v);
        // `size` itself is read by the host, whatever it says.
        let size = (size as usize).clamp(size_of::<u32>(), MAX_STRUCT as usize);
        let mut bytes = peek::bytes(at, size).unwrap_or_else(|_| vec![0; size]);
        let n = known.len().min(size);
        bytes[..n].copy_from_slice(&known[..n]);
        self.p.array(&bytes)
    }
}

/// A result for the host: the same in guarded memory, with the layer's `release`.
pub(super) struct Handed {
    pub(super) slab: Slab,
    pub(super) raw: abi::EventResult,
    /// The struct itself in guarded memory.
    pub(super) at: u64,
    /// The layer's numbers of the buffers that change hands.
    pub(super) owned: Vec<u64>,
}

/// Copies what `o` borrows. None where nothing must be copied, or the result is beyond belief.
pub(super) fn result(
    o: &Outcome,
    raw: &abi::EventResult,
    at: u64,
    kind: Kind,
    f: For,
    slot: usize,
    guards: bool,
) -> Option<Handed> {
    let borrows = o.ops.count > 0 || o.reply != ReplyFound::None || o.error.len > 0;
    let whole = kind == Kind::Handed;
    let too_long =
        o.size > MAX_STRUCT || matches!(&o.reply, ReplyFound::Some(r) if r.size > MAX_STRUCT);
    if too_long || !(has_owned(o) || guards && (borrows || whole)) {
        return None;
    }
    let mut c = Copier {
        p: Packer::new(outcome_room(o), kind, f)?,
        slot,
        stream: f.stream,
        owned: Vec::new(),
    };
    let mut out = *raw;
    let ops: Vec<abi::Op> = o.ops.get().iter().map(|op| c.op(op)).collect();
    if !ops.is_empty() && !leaves(o.ops.region, o.ops.bytes) {
        out.ops = c.p.array(&ops);
    }
    if let (ReplyFound::Some(r), reply) = (&o.reply, raw.reply) {
        out.reply = c.reply(r, reply as u64);
    }
    out.error = c.text(&o.error);
    let copied_at = if whole {
        c.sized(&out, o.size, at) as u64
    } else {
        0
    };
    c.p.slab.seal();
    Some(Handed {
        slab: c.p.slab,
        raw: out,
        at: copied_at,
        owned: c.owned,
    })
}

/// Copies what a `pxg_config_out` borrows.
pub(super) fn config(made: &ConfigMade, raw: &abi::ConfigOut) -> Option<(Slab, abi::ConfigOut)> {
    let total = room::<abi::AttrWant>(made.attrs.get().len())
        + room::<abi::Projection>(made.projection.get().len())
        + made
            .attrs
            .get()
            .iter()
            .map(|a| text_room(&a.name))
            .sum::<usize>()
        + made
            .projection
            .get()
            .iter()
            .map(|p| text_room(&p.name))
            .sum::<usize>()
        + text_room(&made.error);
    if total <= 2 * 15 {
        return None;
    }
    let mut c = Copier {
        p: Packer::new(total, Kind::ConfigResult, For::default())?,
        slot: 0,
        stream: 0,
        owned: Vec::new(),
    };
    let mut out = *raw;
    let attrs: Vec<abi::AttrWant> = made
        .attrs
        .get()
        .iter()
        .map(|a| abi::AttrWant {
            name: c.text(&a.name),
            phases: a.phases,
            flags: abi::AttrFlags(a.flags),
            reserved0: a.reserved0,
        })
        .collect();
    if !attrs.is_empty() {
        out.attrs = c.p.array(&attrs);
    }
    // The phases of a projection are not in what was read: they are read again.
    let projection: Vec<abi::Projection> = proxy_golang_conformance::parts::peek::array(
        raw.projection as u64,
        made.projection.get().len(),
    )
    .unwrap_or_default();
    let projection: Vec<abi::Projection> = projection
        .into_iter()
        .zip(made.projection.get())
        .map(|(p, read)| abi::Projection {
            name: c.text(&read.name),
            ..p
        })
        .collect();
    if !projection.is_empty() {
        out.projection = c.p.array(&projection);
    }
    out.error = c.text(&made.error);
    c.p.slab.seal();
    Some((c.p.slab, out))
}

/// A text for the host.
pub(super) fn text(bytes: &[u8]) -> Option<Slab> {
    let mut p = Packer::new(bytes.len(), Kind::Log, For::default())?;
    p.bytes(bytes);
    p.slab.seal();
    Some(p.slab)
}
