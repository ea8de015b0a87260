//! Results that a guest sends outside a call: its own memory, which the host copies before it returns.

use proxy_golang_abi as abi;
use proxy_golang_abi::{Action, Buf, Op, OpFlags, OpKind, Status, Str, Target};

use super::buffer::Buffer;
use super::host::Host;

/// Bytes in the arena of an [`Outgoing`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bytes {
    at: usize,
    len: usize,
}

/// The value of an operation.
#[derive(Debug)]
pub(crate) enum Payload {
    None,
    Copied(Bytes),
    Handed(Buffer),
}

#[derive(Debug)]
pub(crate) struct OutgoingOp {
    pub(crate) kind: OpKind,
    pub(crate) flags: OpFlags,
    pub(crate) target: Target,
    pub(crate) u0: u64,
    pub(crate) key: Bytes,
    pub(crate) val: Payload,
}

/// A reply in the guest's memory.
#[derive(Debug, Default)]
pub(crate) struct OutgoingReply {
    pub(crate) status: u32,
    pub(crate) flags: abi::ReplyFlags,
    pub(crate) grpc_status: i32,
    pub(crate) fields: Vec<(Bytes, Bytes)>,
    pub(crate) trailers: Vec<(Bytes, Bytes)>,
    pub(crate) body: Vec<Buffer>,
    pub(crate) details: Bytes,
}

/// The array, or null if it is empty.
fn array<T>(list: &[T]) -> *const T {
    if list.is_empty() {
        std::ptr::null()
    } else {
        list.as_ptr()
    }
}

/// A result in the guest's memory.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) action: Action,
    pub(crate) flags: abi::ResultFlags,
    pub(crate) ops: Vec<OutgoingOp>,
    pub(crate) reply: Option<OutgoingReply>,
    pub(crate) more_bytes: u64,
    pub(crate) unsubscribe: u64,
    pub(crate) body_mode: [abi::BodyMode; 2],
    pub(crate) error: Bytes,
    arena: Vec<u8>,
}

impl Outgoing {
    pub(crate) fn new(action: Action) -> Self {
        Self {
            action,
            flags: abi::ResultFlags(0),
            ops: Vec::new(),
            reply: None,
            more_bytes: 0,
            unsubscribe: 0,
            body_mode: [abi::BodyMode::UNSET; 2],
            error: Bytes::default(),
            arena: Vec::new(),
        }
    }

    pub(crate) fn copy(&mut self, bytes: &[u8]) -> Bytes {
        let at = self.arena.len();
        self.arena.extend_from_slice(bytes);
        Bytes {
            at,
            len: bytes.len(),
        }
    }

    fn str(&self, b: Bytes) -> Str {
        if b.len == 0 {
            return Str::EMPTY;
        }
        Str::new(&self.arena[b.at..b.at + b.len])
    }

    fn fields(&self, list: &[(Bytes, Bytes)]) -> Vec<abi::Field> {
        list.iter()
            .map(|&(name, value)| abi::Field {
                name: self.str(name),
                value: self.str(value),
            })
            .collect()
    }

    pub(crate) fn complete(self, host: Host, token: u64) -> Status {
        // SAFETY: `send` keeps everything alive during the call.
        self.send(|r| unsafe { host.complete(token, r) })
    }

    pub(crate) fn apply(self, host: Host, stream: u64) -> Status {
        // SAFETY: as above.
        self.send(|r| unsafe { host.apply(stream, r) })
    }

    /// Calls `f` with the result as the ABI has it; owned buffers have changed hands by then. `f` must hand it to the
    /// host: the callers have made sure that the host has the function.
    fn send(mut self, f: impl FnOnce(&abi::EventResult) -> Status) -> Status {
        let taken = std::mem::take(&mut self.ops);
        let reply = self.reply.take();
        let ops: Vec<Op> = taken
            .into_iter()
            .map(|op| Op {
                kind: op.kind,
                flags: op.flags,
                target: op.target,
                u0: op.u0,
                key: self.str(op.key),
                val: match op.val {
                    Payload::None => Buf::EMPTY,
                    Payload::Copied(bytes) => Buf::borrowed(self.str(bytes)),
                    Payload::Handed(buffer) => buffer.into_abi(),
                },
            })
            .collect();
        let (mut fields, mut trailers, mut body) = (Vec::new(), Vec::new(), Vec::new());
        let raw_reply = reply.map(|r| {
            fields = self.fields(&r.fields);
            trailers = self.fields(&r.trailers);
            body = r
                .body
                .into_iter()
                .map(Buffer::into_abi)
                .collect::<Vec<Buf>>();
            abi::Reply {
                size: size_of::<abi::Reply>() as u32,
                status: r.status,
                flags: r.flags,
                grpc_status: r.grpc_status,
                fields: array(&fields),
                n_fields: fields.len() as u64,
                body: array(&body),
                n_body: body.len() as u64,
                trailers: array(&trailers),
                n_trailers: trailers.len() as u64,
                details: self.str(r.details),
            }
        });
        f(&abi::EventResult {
            size: size_of::<abi::EventResult>() as u32,
            action: self.action,
            flags: self.flags,
            reserved0: 0,
            user: 0,
            ops: array(&ops),
            n_ops: ops.len() as u64,
            reply: raw_reply
                .as_ref()
                .map_or(std::ptr::null(), std::ptr::from_ref),
            unsubscribe: self.unsubscribe,
            body_mode: self.body_mode,
            more_bytes: self.more_bytes,
            pend_ns: 0,
            error: self.str(self.error),
            scratch_ops: std::ptr::null_mut(),
            scratch_ops_cap: 0,
            scratch: std::ptr::null_mut(),
            scratch_cap: 0,
        })
    }
}
