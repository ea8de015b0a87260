//! Replies.

use proxy_golang_abi::feature::Feature;

use super::Context;
use super::text::{check_array, check_buffer, check_field, check_text};
use crate::host::model::Reply;

impl Context {
    pub(super) fn judge_reply(
        &self,
        r: &Reply,
        at: &str,
        put: &mut impl FnMut(&'static str, String),
    ) {
        let v1 = u32::try_from(size_of::<proxy_golang_abi::Reply>()).unwrap_or(0);
        if r.size < v1 {
            let zero = r.size == 0 && r.status == 0;
            put(
                if zero { "PXG-ABI-011" } else { "PXG-ABI-002" },
                format!(
                    "{at}: the reply has size {}; it has {v1} bytes in version 1.0",
                    r.size
                ),
            );
            return;
        }
        if !r.tail_is_zero {
            put(
                "PXG-ABI-005",
                format!("{at}: the reply's tail behind version 1.0 is not zero"),
            );
        }
        if !(200..=599).contains(&r.status) {
            put(
                "PXG-RPL-001",
                format!("{at}: a reply with the status {}", r.status),
            );
        }
        if r.flags & !0x7 != 0 {
            put(
                "PXG-ABI-005",
                format!("{at}: reply.flags has undefined bits {:#x}", r.flags & !7),
            );
        }
        if r.flags & 1 != 0 && !(0..=16).contains(&r.grpc_status) {
            put(
                "PXG-RPL-001",
                format!("{at}: grpc_status {}", r.grpc_status),
            );
        }
        if r.flags & 2 != 0 && !(self.has(Feature::STREAM_REPLY) && self.has(Feature::APPLY)) {
            put(
                "PXG-NEG-003",
                format!("{at}: OPEN needs STREAM_REPLY and APPLY"),
            );
        }
        for (fields, name) in [(&r.fields, "fields"), (&r.trailers, "trailers")] {
            check_array(fields, &format!("{at}: reply.{name}"), put);
            for (i, (n, v)) in fields.get().iter().enumerate() {
                let what = format!("{at}: reply.{name}[{i}]");
                check_text(n, &format!("{what}.name"), false, put);
                check_text(v, &format!("{what}.value"), false, put);
                if n.get().first() == Some(&b':') {
                    put("PXG-HDR-006", format!("{what}: a pseudo-header in a reply"));
                } else {
                    check_field(n.get(), Some(v.get()), &what, put);
                }
            }
        }
        check_array(&r.body, &format!("{at}: reply.body"), put);
        for (i, b) in r.body.get().iter().enumerate() {
            check_buffer(b, &format!("{at}: reply.body[{i}]"), put);
        }
        check_text(&r.details, &format!("{at}: reply.details"), false, put);
    }
}
