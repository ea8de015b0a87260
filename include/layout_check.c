/* SPDX-License-Identifier: Apache-2.0
 * Generated from proxy-golang-abi by `cargo xtask gen`: do not edit.
 *
 * Compile this file with your compiler and flags: it succeeds if they lay the structs out as the ABI says.
 *   cc -std=c11 -fsyntax-only -I include include/layout_check.c */

#include <stddef.h>

#include "proxy_golang.h"
#include "proxy_golang/ext/metrics.h"

#if defined(__cplusplus)
#define CHECK(what, condition) static_assert(condition, what)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define CHECK(what, condition) _Static_assert(condition, what)
#else
#define CHECK_NAME2(line) layout_check_##line
#define CHECK_NAME(line) CHECK_NAME2(line)
#define CHECK(what, condition) typedef char CHECK_NAME(__LINE__)[(condition) ? 1 : -1]
#endif

#define SIZE(type, bytes) CHECK("size of " #type, sizeof(type) == (bytes))
#define MEMBER(type, member, at, bytes)                                                                 \
  CHECK(#type "." #member, offsetof(type, member) == (at) && sizeof(((type *)0)->member) == (bytes))

SIZE(pxg_str, 16);
MEMBER(pxg_str, ptr, 0, 8);
MEMBER(pxg_str, len, 8, 4);
MEMBER(pxg_str, flags, 12, 4);

SIZE(pxg_field, 32);
MEMBER(pxg_field, name, 0, 16);
MEMBER(pxg_field, value, 16, 16);

SIZE(pxg_buf, 32);
MEMBER(pxg_buf, bytes, 0, 16);
MEMBER(pxg_buf, release, 16, 8);
MEMBER(pxg_buf, ctx, 24, 8);

SIZE(pxg_op, 64);
MEMBER(pxg_op, kind, 0, 2);
MEMBER(pxg_op, flags, 2, 2);
MEMBER(pxg_op, target, 4, 4);
MEMBER(pxg_op, u0, 8, 8);
MEMBER(pxg_op, key, 16, 16);
MEMBER(pxg_op, val, 32, 32);

SIZE(pxg_page, 32);
MEMBER(pxg_page, size, 0, 4);
MEMBER(pxg_page, log_level, 4, 4);
MEMBER(pxg_page, draining, 8, 4);
MEMBER(pxg_page, reserved0, 12, 4);
MEMBER(pxg_page, monotonic_ns, 16, 8);
MEMBER(pxg_page, realtime_ns, 24, 8);

SIZE(pxg_reply, 80);
MEMBER(pxg_reply, size, 0, 4);
MEMBER(pxg_reply, status, 4, 4);
MEMBER(pxg_reply, flags, 8, 4);
MEMBER(pxg_reply, grpc_status, 12, 4);
MEMBER(pxg_reply, fields, 16, 8);
MEMBER(pxg_reply, n_fields, 24, 8);
MEMBER(pxg_reply, body, 32, 8);
MEMBER(pxg_reply, n_body, 40, 8);
MEMBER(pxg_reply, trailers, 48, 8);
MEMBER(pxg_reply, n_trailers, 56, 8);
MEMBER(pxg_reply, details, 64, 16);

SIZE(pxg_event, 160);
MEMBER(pxg_event, size, 0, 4);
MEMBER(pxg_event, phase, 4, 4);
MEMBER(pxg_event, flags, 8, 4);
MEMBER(pxg_event, worker, 12, 4);
MEMBER(pxg_event, config, 16, 8);
MEMBER(pxg_event, user, 24, 8);
MEMBER(pxg_event, stream, 32, 8);
MEMBER(pxg_event, token, 40, 8);
MEMBER(pxg_event, arg, 48, 8);
MEMBER(pxg_event, fields, 56, 8);
MEMBER(pxg_event, n_fields, 64, 8);
MEMBER(pxg_event, trailers, 72, 8);
MEMBER(pxg_event, n_trailers, 80, 8);
MEMBER(pxg_event, peer_fields, 88, 8);
MEMBER(pxg_event, n_peer_fields, 96, 8);
MEMBER(pxg_event, peer_trailers, 104, 8);
MEMBER(pxg_event, n_peer_trailers, 112, 8);
MEMBER(pxg_event, chunks, 120, 8);
MEMBER(pxg_event, n_chunks, 128, 8);
MEMBER(pxg_event, body_offset, 136, 8);
MEMBER(pxg_event, attrs, 144, 8);
MEMBER(pxg_event, n_attrs, 152, 8);

SIZE(pxg_result, 128);
MEMBER(pxg_result, size, 0, 4);
MEMBER(pxg_result, action, 4, 4);
MEMBER(pxg_result, flags, 8, 4);
MEMBER(pxg_result, reserved0, 12, 4);
MEMBER(pxg_result, user, 16, 8);
MEMBER(pxg_result, ops, 24, 8);
MEMBER(pxg_result, n_ops, 32, 8);
MEMBER(pxg_result, reply, 40, 8);
MEMBER(pxg_result, unsubscribe, 48, 8);
MEMBER(pxg_result, body_mode, 56, 8);
MEMBER(pxg_result, more_bytes, 64, 8);
MEMBER(pxg_result, pend_ns, 72, 8);
MEMBER(pxg_result, error, 80, 16);
MEMBER(pxg_result, scratch_ops, 96, 8);
MEMBER(pxg_result, scratch_ops_cap, 104, 8);
MEMBER(pxg_result, scratch, 112, 8);
MEMBER(pxg_result, scratch_cap, 120, 8);

SIZE(pxg_attr_want, 32);
MEMBER(pxg_attr_want, name, 0, 16);
MEMBER(pxg_attr_want, phases, 16, 8);
MEMBER(pxg_attr_want, flags, 24, 4);
MEMBER(pxg_attr_want, reserved0, 28, 4);

SIZE(pxg_projection, 24);
MEMBER(pxg_projection, name, 0, 16);
MEMBER(pxg_projection, phases, 16, 8);

SIZE(pxg_config_in, 96);
MEMBER(pxg_config_in, size, 0, 4);
MEMBER(pxg_config_in, flags, 4, 4);
MEMBER(pxg_config_in, features, 8, 32);
MEMBER(pxg_config_in, filter, 40, 16);
MEMBER(pxg_config_in, name, 56, 16);
MEMBER(pxg_config_in, bytes, 72, 16);
MEMBER(pxg_config_in, parent, 88, 8);

SIZE(pxg_config_out, 128);
MEMBER(pxg_config_out, size, 0, 4);
MEMBER(pxg_config_out, flags, 4, 4);
MEMBER(pxg_config_out, config, 8, 8);
MEMBER(pxg_config_out, subscribe, 16, 8);
MEMBER(pxg_config_out, pend_phases, 24, 8);
MEMBER(pxg_config_out, body_mode, 32, 8);
MEMBER(pxg_config_out, max_body, 40, 16);
MEMBER(pxg_config_out, pend_ns, 56, 8);
MEMBER(pxg_config_out, attrs, 64, 8);
MEMBER(pxg_config_out, n_attrs, 72, 8);
MEMBER(pxg_config_out, projection, 80, 8);
MEMBER(pxg_config_out, n_projection, 88, 8);
MEMBER(pxg_config_out, error, 96, 16);
MEMBER(pxg_config_out, scratch, 112, 8);
MEMBER(pxg_config_out, scratch_cap, 120, 8);

SIZE(pxg_host, 144);
MEMBER(pxg_host, size, 0, 4);
MEMBER(pxg_host, major, 4, 4);
MEMBER(pxg_host, minor, 8, 4);
MEMBER(pxg_host, n_workers, 12, 4);
MEMBER(pxg_host, features, 16, 32);
MEMBER(pxg_host, name, 48, 16);
MEMBER(pxg_host, version, 64, 16);
MEMBER(pxg_host, ctx, 80, 8);
MEMBER(pxg_host, page, 88, 8);
MEMBER(pxg_host, complete, 96, 8);
MEMBER(pxg_host, apply, 104, 8);
MEMBER(pxg_host, wake, 112, 8);
MEMBER(pxg_host, log, 120, 8);
MEMBER(pxg_host, scratch_more, 128, 8);
MEMBER(pxg_host, get_ext, 136, 8);

SIZE(pxg_guest, 200);
MEMBER(pxg_guest, size, 0, 4);
MEMBER(pxg_guest, major, 4, 4);
MEMBER(pxg_guest, minor, 8, 4);
MEMBER(pxg_guest, flags, 12, 4);
MEMBER(pxg_guest, required, 16, 32);
MEMBER(pxg_guest, known, 48, 32);
MEMBER(pxg_guest, name, 80, 16);
MEMBER(pxg_guest, version, 96, 16);
MEMBER(pxg_guest, ctx, 112, 8);
MEMBER(pxg_guest, filters, 120, 8);
MEMBER(pxg_guest, n_filters, 128, 8);
MEMBER(pxg_guest, on_config_new, 136, 8);
MEMBER(pxg_guest, on_config_drop, 144, 8);
MEMBER(pxg_guest, on_event, 152, 8);
MEMBER(pxg_guest, on_cancel, 160, 8);
MEMBER(pxg_guest, on_stream_end, 168, 8);
MEMBER(pxg_guest, on_batch_end, 176, 8);
MEMBER(pxg_guest, on_worker, 184, 8);
MEMBER(pxg_guest, get_ext, 192, 8);

SIZE(pxg_metrics_v1, 24);
MEMBER(pxg_metrics_v1, size, 0, 4);
MEMBER(pxg_metrics_v1, reserved0, 4, 4);
MEMBER(pxg_metrics_v1, define, 8, 8);
MEMBER(pxg_metrics_v1, record, 16, 8);
