//! Reads what a guest handed in, through the kernel, so that nothing it says can crash the reader.

use proxy_golang_abi as abi;

use super::arena::Piece;
use super::peek;
use crate::host::model::{Array, Buffer, Op, Outcome, Region, Reply, ReplyFound, Text};

/// Memory: its first address and its length.
pub type Range = (u64, u64);

/// Where memory of the running call lies.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    /// Scratch of the running call.
    pub scratch: &'a [Range],
    /// Views of the running call.
    pub views: &'a [Range],
    /// Whether an address is lent memory of another call.
    pub foreign: fn(u64) -> bool,
}

/// Where pieces lie.
pub(super) fn ranges(pieces: &[Piece]) -> Vec<Range> {
    pieces.iter().map(|p| (p.start, p.len)).collect()
}

fn left(ranges: &[Range], at: u64) -> Option<u64> {
    ranges
        .iter()
        .find(|(start, len)| at >= *start && at - start < *len)
        .map(|(start, len)| start + len - at)
}

/// More elements than a sane guest hands in: not read.
const MAX_ITEMS: u64 = 1 << 16;
const MAX_TEXT: u32 = 64 << 20;

impl Reader<'_> {
    fn region(&self, at: u64) -> Region {
        if at == 0 {
            return Region::Null;
        }
        if let Some(n) = left(self.scratch, at) {
            return Region::Scratch(n);
        }
        if let Some(n) = left(self.views, at) {
            return Region::View(n);
        }
        if (self.foreign)(at) {
            return Region::Foreign;
        }
        Region::Guest
    }

    /// A string.
    pub fn text(&self, s: abi::Str) -> Text {
        let ptr = s.ptr as u64;
        Text {
            ptr,
            len: s.len,
            flags: s.flags.0,
            bytes: if s.len == 0 {
                Some(Vec::new())
            } else if ptr == 0 || s.len > MAX_TEXT {
                None
            } else {
                peek::bytes(ptr, s.len as usize).ok()
            },
            region: self.region(ptr),
        }
    }

    fn buffer(&self, b: abi::Buf) -> Buffer {
        Buffer {
            text: self.text(b.bytes),
            release: b.release.map_or(0, |f| f as usize as u64),
            ctx: b.ctx,
        }
    }

    /// An array, each element made into something by `each`.
    pub fn array<T: peek::Plain, U>(
        &self,
        ptr: *const T,
        count: u64,
        each: impl Fn(T) -> U,
    ) -> Array<U> {
        let ptr = ptr as u64;
        let items = if count == 0 {
            Some(Vec::new())
        } else if ptr == 0 || count > MAX_ITEMS {
            None
        } else {
            peek::array::<T>(ptr, usize::try_from(count).unwrap_or(0))
                .ok()
                .map(|v| v.into_iter().map(each).collect())
        };
        Array {
            ptr,
            count,
            region: self.region(ptr),
            items,
            bytes: count.saturating_mul(size_of::<T>() as u64),
        }
    }

    fn op(&self, o: abi::Op) -> Op {
        Op {
            kind: o.kind.0,
            flags: o.flags.0,
            target: o.target.0,
            u0: o.u0,
            key: self.text(o.key),
            val: self.buffer(o.val),
        }
    }

    fn reply(&self, at: *const abi::Reply) -> ReplyFound {
        let at = at as u64;
        if at == 0 {
            return ReplyFound::None;
        }
        let Ok(size) = peek::value::<u32>(at) else {
            return ReplyFound::Unreadable(at);
        };
        let Ok(r) = peek::prefix::<abi::Reply>(at, size as usize) else {
            return ReplyFound::Unreadable(at);
        };
        let pair = |f: abi::Field| (self.text(f.name), self.text(f.value));
        ReplyFound::Some(Box::new(Reply {
            size,
            status: r.status,
            flags: r.flags.0,
            grpc_status: r.grpc_status,
            fields: self.array(r.fields, r.n_fields, pair),
            body: self.array(r.body, r.n_body, |b| self.buffer(b)),
            trailers: self.array(r.trailers, r.n_trailers, pair),
            details: self.text(r.details),
            tail_is_zero: tail_is_zero(at, size as usize, size_of::<abi::Reply>()),
        }))
    }

    /// The result at `at`, of which the first `size` bytes exist.
    pub fn outcome(&self, at: u64, size: u32) -> Result<Outcome, peek::Unreadable> {
        let r = peek::prefix::<abi::EventResult>(at, size as usize)?;
        Ok(Outcome {
            size: r.size,
            action: r.action,
            flags: r.flags.0,
            reserved0: r.reserved0,
            user: r.user,
            ops: self.array(r.ops, r.n_ops, |o| self.op(o)),
            reply: self.reply(r.reply),
            unsubscribe: r.unsubscribe,
            body_mode: r.body_mode,
            more_bytes: r.more_bytes,
            pend_ns: r.pend_ns,
            error: self.text(r.error),
            tail_is_zero: tail_is_zero(at, size as usize, size_of::<abi::EventResult>()),
        })
    }
}

fn tail_is_zero(at: u64, size: usize, known: usize) -> bool {
    if size <= known || size > 1 << 16 {
        return size <= known;
    }
    peek::bytes(at + known as u64, size - known).is_ok_and(|t| t.iter().all(|b| *b == 0))
}
