//! The layout as data: what the tools write to `spec/abi/` and to `layout_check.c`, asserted here at compile time.

use core::mem::{align_of, offset_of, size_of};

use crate::ext::MetricsV1;
use crate::{
    AttrWant, Buf, ConfigIn, ConfigOut, Event, EventResult, Field, Guest, Host, Op, Page,
    Projection, Reply, Str,
};

/// A member of a struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// Name in C and in Rust.
    pub name: &'static str,
    /// Offset in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

/// A struct of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructLayout {
    /// Name in Rust.
    pub rust: &'static str,
    /// Name in C.
    pub c: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// Whether it may never grow in v1.
    pub frozen: bool,
    /// The members in order.
    pub fields: &'static [FieldLayout],
}

macro_rules! structs {
    ($($rust:ident = $c:literal, $frozen:literal { $($field:ident: $size:literal @ $offset:literal),+ $(,)? })+) => {
        /// Every struct of the ABI.
        pub const STRUCTS: &[StructLayout] = &[$(StructLayout {
            rust: stringify!($rust),
            c: $c,
            size: size_of::<$rust>(),
            align: align_of::<$rust>(),
            frozen: $frozen,
            fields: &[$(FieldLayout { name: stringify!($field), offset: offset_of!($rust, $field), size: $size }),+],
        }),+];
        $($(const _: () = assert!(offset_of!($rust, $field) == $offset);)+)+
    };
}

structs! {
    Str = "pxg_str", true { ptr: 8 @ 0, len: 4 @ 8, flags: 4 @ 12 }
    Field = "pxg_field", true { name: 16 @ 0, value: 16 @ 16 }
    Buf = "pxg_buf", true { bytes: 16 @ 0, release: 8 @ 16, ctx: 8 @ 24 }
    Op = "pxg_op", true { kind: 2 @ 0, flags: 2 @ 2, target: 4 @ 4, u0: 8 @ 8, key: 16 @ 16, val: 32 @ 32 }
    Page = "pxg_page", false { size: 4 @ 0, log_level: 4 @ 4, draining: 4 @ 8, reserved0: 4 @ 12, monotonic_ns: 8 @ 16, realtime_ns: 8 @ 24 }
    Reply = "pxg_reply", false { size: 4 @ 0, status: 4 @ 4, flags: 4 @ 8, grpc_status: 4 @ 12, fields: 8 @ 16, n_fields: 8 @ 24, body: 8 @ 32, n_body: 8 @ 40, trailers: 8 @ 48, n_trailers: 8 @ 56, details: 16 @ 64 }
    Event = "pxg_event", false { size: 4 @ 0, phase: 4 @ 4, flags: 4 @ 8, worker: 4 @ 12, config: 8 @ 16, user: 8 @ 24, stream: 8 @ 32, token: 8 @ 40, arg: 8 @ 48, fields: 8 @ 56, n_fields: 8 @ 64, trailers: 8 @ 72, n_trailers: 8 @ 80, peer_fields: 8 @ 88, n_peer_fields: 8 @ 96, peer_trailers: 8 @ 104, n_peer_trailers: 8 @ 112, chunks: 8 @ 120, n_chunks: 8 @ 128, body_offset: 8 @ 136, attrs: 8 @ 144, n_attrs: 8 @ 152 }
    EventResult = "pxg_result", false { size: 4 @ 0, action: 4 @ 4, flags: 4 @ 8, reserved0: 4 @ 12, user: 8 @ 16, ops: 8 @ 24, n_ops: 8 @ 32, reply: 8 @ 40, unsubscribe: 8 @ 48, body_mode: 8 @ 56, more_bytes: 8 @ 64, pend_ns: 8 @ 72, error: 16 @ 80, scratch_ops: 8 @ 96, scratch_ops_cap: 8 @ 104, scratch: 8 @ 112, scratch_cap: 8 @ 120 }
    AttrWant = "pxg_attr_want", false { name: 16 @ 0, phases: 8 @ 16, flags: 4 @ 24, reserved0: 4 @ 28 }
    Projection = "pxg_projection", false { name: 16 @ 0, phases: 8 @ 16 }
    ConfigIn = "pxg_config_in", false { size: 4 @ 0, flags: 4 @ 4, features: 32 @ 8, filter: 16 @ 40, name: 16 @ 56, bytes: 16 @ 72, parent: 8 @ 88 }
    ConfigOut = "pxg_config_out", false { size: 4 @ 0, flags: 4 @ 4, config: 8 @ 8, subscribe: 8 @ 16, pend_phases: 8 @ 24, body_mode: 8 @ 32, max_body: 16 @ 40, pend_ns: 8 @ 56, attrs: 8 @ 64, n_attrs: 8 @ 72, projection: 8 @ 80, n_projection: 8 @ 88, error: 16 @ 96, scratch: 8 @ 112, scratch_cap: 8 @ 120 }
    Host = "pxg_host", false { size: 4 @ 0, major: 4 @ 4, minor: 4 @ 8, n_workers: 4 @ 12, features: 32 @ 16, name: 16 @ 48, version: 16 @ 64, ctx: 8 @ 80, page: 8 @ 88, complete: 8 @ 96, apply: 8 @ 104, wake: 8 @ 112, log: 8 @ 120, scratch_more: 8 @ 128, get_ext: 8 @ 136 }
    Guest = "pxg_guest", false { size: 4 @ 0, major: 4 @ 4, minor: 4 @ 8, flags: 4 @ 12, required: 32 @ 16, known: 32 @ 48, name: 16 @ 80, version: 16 @ 96, ctx: 8 @ 112, filters: 8 @ 120, n_filters: 8 @ 128, on_config_new: 8 @ 136, on_config_drop: 8 @ 144, on_event: 8 @ 152, on_cancel: 8 @ 160, on_stream_end: 8 @ 168, on_batch_end: 8 @ 176, on_worker: 8 @ 184, get_ext: 8 @ 192 }
    MetricsV1 = "pxg_metrics_v1", false { size: 4 @ 0, reserved0: 4 @ 4, define: 8 @ 8, record: 8 @ 16 }
}

// No padding (PXG-ABI-001): every member begins where the one before it ends, and the last one ends the struct.
const _: () = {
    let mut s = 0;
    while s < STRUCTS.len() {
        let mut end = 0;
        let mut f = 0;
        while f < STRUCTS[s].fields.len() {
            assert!(
                STRUCTS[s].fields[f].offset == end,
                "padding before a member"
            );
            end += STRUCTS[s].fields[f].size;
            f += 1;
        }
        assert!(
            STRUCTS[s].size == end,
            "padding at the end, or a member that the list lacks"
        );
        s += 1;
    }
};
