/* SPDX-License-Identifier: Apache-2.0
 * Generated from proxy-golang-abi by `cargo xtask gen`: do not edit. */

/* proxy_golang: the C ABI between a proxy (the host) and a native library with filters (the guest), version 1.
 *
 * A guest exports one function, pxg_guest_init_v1. The two sides exchange tables of functions, and then the host
 * calls on_event once per phase of a stream: everything the guest may read comes in with the call, everything it
 * wants comes back in the result, as data. The normative text is in spec/; PXG-MEM-002 and the like are ids of its
 * rules.
 *
 * Life of a guest
 *
 *   pxg_guest_init_v1 -> on_config_new -> on_worker(up)
 *       -> on_event ... [PENDING -> complete | on_cancel] ... -> on_event(LOG) -> on_stream_end
 *       -> on_config_drop -> on_worker(down)
 *
 * Tags: on which thread a function is called
 *
 *   [config-thread]  one call at a time, and never on a loop thread where the host has CONFIG_THREAD
 *   [loop-thread]    the worker thread of the stream; never two calls at once for one stream; must not block
 *   [any-thread]     every thread at every time, also before on_event has returned
 *   [in-call]        memory: only inside the call that lent it, on that call's thread
 *
 * Words: who owns memory
 *
 *   view      the host's memory, read-only; it dies when the call that brought it returns
 *   borrowed  the guest's memory; it stays valid until the next call into the same guest on the same thread
 *   owned     a buffer that changes hands; the host calls its release exactly once, on any thread
 *   lent      the host's scratch memory, writable inside the call
 *
 *   Nothing else is freed or kept across the boundary. What outlives a call is never a pointer: config, user, stream
 *   and token are 64-bit values, and a late use of a stream or token is answered with PXG_E_STALE, for ever.
 *
 * Structs that begin with `size` grow at their end in later minor versions. Read only what is below the size you were
 * given, write only what is below it, and set all that is reserved to zero (PXG-ABI-003, -004, -005). Strings are
 * pointer and length, never NUL-terminated. Flags, actions and kinds that a guest does not list in `known` never
 * reach it. Unset (0) is never an action: a result that a guest forgets to fill is an error of that guest.
 *
 * A guest: it adds a field to every response. Build it with: cc -std=c99 -shared -fPIC -I include guest.c -o guest.so
 *
 *   #include "proxy_golang.h"
 *   #define S(text) { (const uint8_t *)text, sizeof text - 1, 0 }
 *   static const pxg_str filters[] = { S("hello") };
 *   static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
 *     static uint64_t last;
 *     return out->config = ++last, out->subscribe = PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS), PXG_OK;
 *   }
 *   static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
 *     out->scratch_ops[0] = (pxg_op){ PXG_OP_HEADER_ADD, 0, PXG_TARGET_HEADERS, 0, S("x-hello"), { S("world"), 0, 0 } };
 *     out->ops = out->scratch_ops, out->n_ops = 1, out->action = PXG_ACT_CONTINUE;
 *   }
 *   static void drop(uint64_t ctx, uint64_t config) {}
 *   static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {}
 *   static void end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {}
 *   int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
 *     if (host->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
 *     if (out->size > sizeof *out) out->size = sizeof *out;
 *     out->major = PXG_VERSION_MAJOR, out->minor = PXG_VERSION_MINOR, out->flags = PXG_GUEST_ABORTS;
 *     out->filters = filters, out->n_filters = 1, out->on_config_new = config_new, out->on_config_drop = drop;
 *     out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
 *     return PXG_OK;
 *   }
 */

#ifndef PROXY_GOLANG_H
#define PROXY_GOLANG_H

#include <stdint.h>

#if !defined(__LP64__)
#error "proxy_golang v1 is defined for LP64 targets only"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Version and entry ------------------------------------------------------------------------------------------ */

#define PXG_VERSION_MAJOR 1 /* The major version of this ABI. It is also part of the entry symbol's name. */
#define PXG_VERSION_MINOR 0 /* The minor version of this ABI. It informs; what may be used is decided by features. */

/* The name of the one function that a guest exports. */
#define PXG_GUEST_INIT_SYMBOL "pxg_guest_init_v1"

/* ---- Status codes: int32_t -------------------------------------------------------------------------------------- */

/* What a function answers. 0 and positive numbers are successes. */
#define PXG_OK 0               /* Done, or accepted. */
#define PXG_FULL 1             /* `apply`: taken, but the stream is above its watermark; a WAKE flagged WRITABLE
                                * follows. */
#define PXG_E_STALE (-1)       /* The token or stream has ended, belongs to another guest, or never was. Safe to
                                * get, for ever. */
#define PXG_E_STATE (-2)       /* Not in this state: for example `complete` with PENDING. */
#define PXG_E_ARG (-3)         /* An argument is out of its range. The text is in the host's log. */
#define PXG_E_UNSUPPORTED (-4) /* A feature, flag or kind that the other side does not have. */
#define PXG_E_LIMIT (-5)       /* Over a limit. */
#define PXG_E_THREAD (-6)      /* Called on a thread that the function's tag does not allow. */
#define PXG_E_VERSION (-7)     /* Another major version. */
#define PXG_E_NOTFOUND (-8)    /* No such filter, attribute, cluster or metric. */
#define PXG_E_INTERNAL (-9)    /* The callee failed; a caught panic, for example. */

/* ---- Leaf structs: strings, fields, buffers, operations --------------------------------------------------------- */

/* Bits of `pxg_str.flags`. In a `pxg_buf` they also carry the lifetime of the bytes. */
#define PXG_STR_ABSENT 0x1u    /* Not there; differs from empty. */
#define PXG_STR_SENSITIVE 0x2u /* Never logged, traced or indexed. */
#define PXG_BUF_BORROWED 0x0u  /* In a `pxg_buf`: valid until the next call into the same guest on the same thread. */
#define PXG_BUF_STATIC 0x10u   /* In a `pxg_buf`: lives as long as the process. */
#define PXG_BUF_OWNED 0x20u    /* In a `pxg_buf`: the host releases it exactly once, on any thread. */

/* Bytes with a length: never NUL-terminated, may hold NUL and bytes that are no UTF-8.
 *
 * A null `ptr` with `len` 0 is the empty string; absence is the flag PXG_STR_ABSENT. For lengths below 4 GiB the
 * struct has the bits of `{ptr, size_t}`. Frozen for v1 (PXG-CMP-004). */
typedef struct pxg_str {
  const uint8_t *ptr; /* The first byte. Owner and lifetime are those of the struct that holds this string. */
  uint32_t len;       /* Length in bytes. */
  uint32_t flags;     /* `PXG_STR_*`, and in a pxg_buf also `PXG_BUF_*`. */
} pxg_str;

/* A header or trailer field. Frozen for v1. */
typedef struct pxg_field {
  pxg_str name;  /* Lower case in what a host delivers. */
  pxg_str value; /* Raw bytes, as the host holds them. */
} pxg_field;

/* Bytes that a guest hands to the host, with their lifetime in `bytes.flags`. Frozen for v1.
 *
 * `BORROWED` (0) bytes stay valid until the next call into the same guest on the same thread; `STATIC` ones as
 * long as the process; `OWNED` ones are released by the host exactly once on every path, also when the call that
 * carried them was refused (PXG-MEM-006). */
typedef struct pxg_buf {
  pxg_str bytes;                 /* The bytes and their lifetime. */
  void (*release)(uint64_t ctx); /* Only for OWNED bytes. [any-thread] Called exactly once with `ctx`; it must not
                                  * block and must not call the host, and in a Go guest it must be a C function
                                  * (PXG-MEM-007). Null otherwise. */
  uint64_t ctx;                  /* The guest's value for `release`. */
} pxg_buf;

/* What an operation does. */
#define PXG_OP_HEADER_SET 1    /* Leave exactly one field `key` with `val`. Targets: own headers, own trailers. */
#define PXG_OP_HEADER_ADD 2    /* Append a field `key` with `val`. */
#define PXG_OP_HEADER_DELETE 3 /* Remove all fields `key`. */
#define PXG_OP_SET_AT 4        /* Replace the value of the field at index `u0` of the delivered view by `val`. */
#define PXG_OP_DELETE_AT 5     /* Remove the field at index `u0` of the delivered view. */
#define PXG_OP_PASS 8          /* Forward the next `u0` bytes of the view. The cursor starts at the view's first
                                * byte. */
#define PXG_OP_DROP 9          /* Discard the next `u0` bytes of the view. */
#define PXG_OP_INJECT 10       /* Put `val` at the cursor. */
#define PXG_OP_BODY_WRITE 11   /* Append `val` to the streamed reply; with PXG_OPF_END it ends there. */
#define PXG_OP_METADATA_SET 16 /* Set the metadata `key` to `val`; see `u0`. */
#define PXG_OP_METRIC 17       /* Record `u0` for the metric `target`. */
#define PXG_OP_ROUTE 18        /* `key` "cluster" with `val` chooses the cluster; `key` "recompute" routes again. */

/* Flags of an operation. */
#define PXG_OPF_MUST 0x1u /* A host that does not know or cannot do this operation fails the stream; without it the
                           * operation is skipped and counted. */
#define PXG_OPF_END 0x2u  /* On BODY_WRITE: the streamed reply ends here. */

/* What an operation acts on. */
#define PXG_TARGET_HEADERS 0u  /* The headers of the event's own direction. */
#define PXG_TARGET_TRAILERS 1u /* The trailers of the event's own direction. */
#define PXG_TARGET_UPSTREAM 2u /* INJECT on L4: towards the upstream. */
#define PXG_TARGET_CLIENT 3u   /* INJECT on L4: towards the client. */

/* One operation of a result: an effect as data. 64 bytes, one cache line; frozen for v1. */
typedef struct pxg_op {
  uint16_t kind;   /* `PXG_OP_*`; decides what the other members mean. */
  uint16_t flags;  /* `PXG_OPF_*`. */
  uint32_t target; /* `PXG_TARGET_*`; for METRIC the metric's id. */
  uint64_t u0;     /* PASS and DROP: a count of bytes. SET_AT and DELETE_AT: an index into the delivered view.
                    * METRIC: the value as a signed number. METADATA_SET: the length of the namespace at the head
                    * of `key`, 0 for the guest's own. */
  pxg_str key;     /* The field's name, the metadata's namespace and key, or for ROUTE `cluster` or `recompute`.
                    * Borrowed. */
  pxg_buf val;     /* The value or the bytes. */
} pxg_op;

/* ---- Phases, events --------------------------------------------------------------------------------------------- */

/* Where in its life a stream is. The bit of a phase in a mask is `1 << phase`; 0 is invalid, 16 to 31 are for L4. */
#define PXG_PHASE_REQUEST_HEADERS 1   /* The head of the request. */
#define PXG_PHASE_REQUEST_BODY 2      /* Bytes of the request's body that have not been passed yet. */
#define PXG_PHASE_REQUEST_TRAILERS 3  /* The request's trailers. */
#define PXG_PHASE_RESPONSE_HEADERS 4  /* The head of the response. */
#define PXG_PHASE_RESPONSE_BODY 5     /* Bytes of the response's body that have not been passed yet. */
#define PXG_PHASE_RESPONSE_TRAILERS 6 /* The response's trailers. */
#define PXG_PHASE_LOG 7               /* Both directions have ended; the last event of a stream. */
#define PXG_PHASE_WAKE 8              /* An answer to `wake`, or the streamed reply has room again. */
#define PXG_PHASE_L4_OPEN 16          /* A connection, before any byte of it. */
#define PXG_PHASE_L4_DOWNSTREAM 17    /* Bytes from the client. */
#define PXG_PHASE_L4_UPSTREAM 18      /* Bytes from the upstream. */
#define PXG_PHASE_L4_CLOSE 19         /* The connection has ended. */

/* The bit of a phase in a phase mask: pxg_config_out.subscribe, pxg_result.unsubscribe and others. */
#define PXG_PHASE_BIT(p) (1ull << (p))

/* Flags of an event. */
#define PXG_EV_END_STREAM 0x0001u   /* Nothing follows in this direction. At most once per direction. */
#define PXG_EV_BODY_END 0x0002u     /* The last body event, whether trailers follow or not. */
#define PXG_EV_WHOLE_BODY 0x0004u   /* The view is the whole body. */
#define PXG_EV_HEADERS_HELD 0x0008u /* The headers have not left: header operations are legal and `fields` is
                                     * filled. */
#define PXG_EV_OVER_LIMIT 0x0010u   /* The body is longer than `max_body`; the view is all that is held. */
#define PXG_EV_CAN_REPLY 0x0020u    /* A reply can still be made now. Judged again when the result is applied. */
#define PXG_EV_LOCAL_ORIGIN 0x0040u /* The response is a local reply of the host or of another guest. */
#define PXG_EV_EOS_UNKNOWN 0x0080u  /* The host does not know yet whether a body follows. */
#define PXG_EV_UPGRADED 0x0100u     /* The exchange has become a tunnel: both bodies are skipped unless
                                     * UPGRADE_BODY. */
#define PXG_EV_REDIRECTED 0x0200u   /* The stream has been redirected inside the host. */
#define PXG_EV_SUBREQUEST 0x0400u   /* The stream is a subrequest of the host. */
#define PXG_EV_RESUMED 0x0800u      /* The first event of this direction after a completion. */
#define PXG_EV_WRITABLE 0x1000u     /* WAKE: the streamed reply is below its watermark again. */

/* LOG's `arg`, bits 0 to 7: why the stream ended. */
#define PXG_END_COMPLETE 1       /* Both directions ran to their ends. */
#define PXG_END_CLIENT_ABORT 2   /* The client went away. */
#define PXG_END_UPSTREAM_RESET 3 /* The upstream failed after the stream had been sent to it. */
#define PXG_END_TIMEOUT 4        /* A time limit of the host. */
#define PXG_END_REPLIED 5        /* A guest or the host replied locally. */
#define PXG_END_ERROR 6          /* A guest failed or reset the stream, or the host failed. */

/* LOG's `arg`, bits 8 to 11 for the request and 12 to 15 for the response: how a direction ended. */
#define PXG_DIREND_NEVER_BEGAN 0 /* It never began. */
#define PXG_DIREND_COMPLETE 1    /* Complete. */
#define PXG_DIREND_SENDER 2      /* Cut by its sender. */
#define PXG_DIREND_RECEIVER 3    /* Cut by its receiver. */
#define PXG_DIREND_PROXY 4       /* Cut by the host or by a guest. */

/* The parts of LOG's arg: why the stream ended, how the request ended, how the response ended. */
#define PXG_ARG_END(arg) ((arg) & 0xffu)
#define PXG_ARG_REQUEST_END(arg) ((arg) >> 8 & 0xfu)
#define PXG_ARG_RESPONSE_END(arg) ((arg) >> 12 & 0xfu)

/* What happens to a stream. Every pointer in it is a view: it dies when `on_event` returns (PXG-MEM-002). */
typedef struct pxg_event {
  uint32_t size;                  /* Size of the struct as the host knows it, in bytes. */
  uint32_t phase;                 /* `PXG_PHASE_*`. */
  uint32_t flags;                 /* `PXG_EV_*`. */
  uint32_t worker;                /* Index of the worker that the stream lives on. */
  uint64_t config;                /* What `on_config_new` answered. */
  uint64_t user;                  /* The guest's slot for this stream, 0 at first. */
  uint64_t stream;                /* Handle of the stream for `apply` and `wake`, valid until just before
                                   * `on_stream_end`. */
  uint64_t token;                 /* For `complete`; 0 where the phase is not in `pend_phases`. Valid from the
                                   * entry of `on_event`. */
  uint64_t arg;                   /* WAKE: the OR of the wakes' values. LOG: the end as `PXG_END_*` and
                                   * `PXG_DIREND_*`. */
  const pxg_field *fields;        /* The headers of this direction, in HEADERS events and while HEADERS_HELD; in
                                   * LOG the response's. */
  uint64_t n_fields;              /* Number of `fields`. */
  const pxg_field *trailers;      /* The trailers of this direction, in TRAILERS events and with WHOLE_BODY; in LOG
                                   * the response's. */
  uint64_t n_trailers;            /* Number of `trailers`. */
  const pxg_field *peer_fields;   /* The request's headers, in response events with WANT_PEER_FIELDS and always in
                                   * LOG. */
  uint64_t n_peer_fields;         /* Number of `peer_fields`. */
  const pxg_field *peer_trailers; /* The request's trailers, as `peer_fields`. */
  uint64_t n_peer_trailers;       /* Number of `peer_trailers`. */
  const pxg_str *chunks;          /* Every byte received and not yet passed, in at most 64 pieces. */
  uint64_t n_chunks;              /* Number of `chunks`. */
  uint64_t body_offset;           /* Absolute offset in the received body of the view's first byte. */
  const pxg_str *attrs;           /* The configuration's attributes in its order; ABSENT where unknown here. */
  uint64_t n_attrs;               /* Number of `attrs`. */
} pxg_event;

/* ---- Results, replies ------------------------------------------------------------------------------------------- */

/* What a guest decides. 0 is invalid and an error. */
#define PXG_ACT_UNSET 0    /* Preset by the host: the guest decided nothing. */
#define PXG_ACT_CONTINUE 1 /* Apply the operations and go on. */
#define PXG_ACT_PENDING 2  /* Hold; `complete` or `on_cancel` follows. Carries no operations and no reply. */
#define PXG_ACT_MORE 3     /* Keep the rest of the view, or the headers, and bring more. */
#define PXG_ACT_REPLY 4    /* Answer the client with `reply`. */
#define PXG_ACT_RESET 5    /* Abort both directions without a reply. */
#define PXG_ACT_ERROR 6    /* The guest failed; the failure mode decides. */

/* How a direction's body reaches a guest. */
#define PXG_BODY_UNSET 0   /* In a result: unchanged. In a configuration: SKIP. */
#define PXG_BODY_SKIP 1    /* Nothing is delivered. */
#define PXG_BODY_STREAM 2  /* Bytes as they come. */
#define PXG_BODY_WHOLE 3   /* One event with the whole body, the headers still held. */
#define PXG_BODY_OBSERVE 4 /* A look after forwarding: nothing can be held or changed. */

#define PXG_DIR_REQUEST 0  /* Index of the request in arrays that have one element per direction. */
#define PXG_DIR_RESPONSE 1 /* Index of the response in arrays that have one element per direction. */

/* Flags of a reply. */
#define PXG_REPLY_GRPC 0x1u  /* `grpc_status` counts, and the reply is made a gRPC one for a gRPC request. */
#define PXG_REPLY_OPEN 0x2u  /* The body follows by `apply` with BODY_WRITE. */
#define PXG_REPLY_FLUSH 0x4u /* Hand the reply to the transport at once. */

/* A local reply. Lent by the guest for one call: borrowed. */
typedef struct pxg_reply {
  uint32_t size;             /* Size of the struct as its writer knows it, in bytes. */
  uint32_t status;           /* 200 to 599. */
  uint32_t flags;            /* `PXG_REPLY_*`. */
  int32_t grpc_status;       /* Counts only with PXG_REPLY_GRPC. */
  const pxg_field *fields;   /* Borrowed. The host adds framing fields itself and refuses them here. */
  uint64_t n_fields;         /* Number of `fields`. */
  const pxg_buf *body;       /* The body's parts in order; each says its own lifetime. */
  uint64_t n_body;           /* Number of `body` parts. */
  const pxg_field *trailers; /* Borrowed. Needs the feature TRAILERS_OUT_RESPONSE; otherwise skipped and counted. */
  uint64_t n_trailers;       /* Number of `trailers`. */
  pxg_str details;           /* For logs, never for clients. Borrowed. */
} pxg_reply;

/* Flags of a result. */
#define PXG_RES_RESIZES 0x1u /* While the headers are held: a STREAM body of this direction may change its length. */
#define PXG_RES_FLUSH 0x2u   /* Hand what was passed to the transport before the next event. */

/* What a guest decides. The host presets all of it: action UNSET, `user` as in the event, the rest 0; and it lends
 * scratch memory for the call. */
typedef struct pxg_result {
  uint32_t size;            /* Size of the struct as its writer knows it, in bytes. */
  uint32_t action;          /* `PXG_ACT_*`. */
  uint32_t flags;           /* `PXG_RES_*`. */
  uint32_t reserved0;       /* Zero. */
  uint64_t user;            /* The guest's slot from now on. Ignored in `complete` and `apply`. */
  const pxg_op *ops;        /* The operations, one array. Borrowed, or `scratch_ops`. */
  uint64_t n_ops;           /* Number of `ops`. */
  const pxg_reply *reply;   /* With REPLY; null otherwise. Borrowed. */
  uint64_t unsubscribe;     /* Mask of phases that this guest no longer wants for this stream. */
  uint32_t body_mode[2];    /* New body modes per direction; UNSET leaves as is. */
  uint64_t more_bytes;      /* With MORE: how many further bytes are worth an event; 0 leaves the pace to the host. */
  uint64_t pend_ns;         /* With PENDING: a wish for the deadline in nanoseconds; 0 is the configuration's, and
                             * the host's limit applies. */
  pxg_str error;            /* With ERROR: for the log. Borrowed. */
  pxg_op *scratch_ops;      /* [in-call] Lent by the host: at least 32 operations, zeros or earlier operations,
                             * never other bytes. */
  uint64_t scratch_ops_cap; /* Capacity of `scratch_ops`, in operations. */
  uint8_t *scratch;         /* [in-call] Lent by the host: at least 4096 bytes, 16-aligned, content undefined. */
  uint64_t scratch_cap;     /* Capacity of `scratch`, in bytes. */
} pxg_result;

/* ---- Configuration ---------------------------------------------------------------------------------------------- */

/* Flags of `pxg_attr_want`. */
#define PXG_ATTR_REQUIRED 0x1u /* A host that never has this attribute refuses the configuration. */

/* An attribute that a configuration wants with its events. */
typedef struct pxg_attr_want {
  pxg_str name;       /* Its name, from the spec's list or the host's own. Borrowed. */
  uint64_t phases;    /* Mask of the phases whose events shall carry it. */
  uint32_t flags;     /* `PXG_ATTR_*`. */
  uint32_t reserved0; /* Zero. */
} pxg_attr_want;

/* A field that is all a configuration needs to see in some phases: others may be left out of the view. */
typedef struct pxg_projection {
  pxg_str name;    /* The field's name, lower case. Borrowed. */
  uint64_t phases; /* Mask of the phases it is for. */
} pxg_projection;

/* Flags of `pxg_config_in`. */
#define PXG_CFG_IN_VALIDATE_ONLY 0x1u /* Validate only: no threads, sockets or other side effects. The
                                       * configuration will be dropped, never used. */

/* A configuration to be made. Every pointer is a view that dies when `on_config_new` returns. */
typedef struct pxg_config_in {
  uint32_t size;        /* Size of the struct as the host knows it, in bytes. */
  uint32_t flags;       /* `PXG_CFG_IN_*`. */
  uint64_t features[4]; /* What the host can do for the streams of this configuration: a subset of its table's
                         * features. */
  pxg_str filter;       /* Which of the library's filters. */
  pxg_str name;         /* Name of this instance, for logs and metrics. */
  pxg_str bytes;        /* The operator's configuration, byte for byte. */
  uint64_t parent;      /* For a route's override: the value of the configuration it overrides, alive at least as
                         * long; 0 for none. */
} pxg_config_in;

/* Flags of `pxg_config_out`. */
#define PXG_CFG_DUPLEX 0x1u           /* One direction may go on while the other pends. */
#define PXG_CFG_RESIZES_REQUEST 0x2u  /* A STREAM request body may change its length. */
#define PXG_CFG_RESIZES_RESPONSE 0x4u /* A STREAM response body may change its length. */
#define PXG_CFG_WANT_PEER_FIELDS 0x8u /* Response events carry the request's fields as `peer_fields`. */
#define PXG_CFG_ORPHAN 0x10u          /* Response phases also for streams whose request never reached this filter. */
#define PXG_CFG_SUBREQUESTS 0x20u     /* Subrequests of the host are filtered too. */
#define PXG_CFG_UPGRADE_BODY 0x40u    /* Body events go on after an upgrade. */

/* What a configuration wants. The host zeroes it, sets `size` and lends scratch memory; it copies everything
 * before its next call into the guest (PXG-CFG-002). */
typedef struct pxg_config_out {
  uint32_t size;                    /* Size of the struct, in bytes. */
  uint32_t flags;                   /* `PXG_CFG_*`. */
  uint64_t config;                  /* The guest's value for this configuration; never 0. */
  uint64_t subscribe;               /* Mask of the phases that are delivered. Body phases: may be turned on. */
  uint64_t pend_phases;             /* Mask of the phases that may answer PENDING. */
  uint32_t body_mode[2];            /* Body mode per direction; UNSET is SKIP. */
  uint64_t max_body[2];             /* Most bytes of a body held per direction; 0 is the host's default, more than
                                     * its limit is its limit. */
  uint64_t pend_ns;                 /* A wish for the deadline of a PENDING in nanoseconds; 0 is the host's
                                     * default. */
  const pxg_attr_want *attrs;       /* The attributes, in the order in which events shall carry them. Borrowed. */
  uint64_t n_attrs;                 /* Number of `attrs`. */
  const pxg_projection *projection; /* The fields that suffice, if not all are needed. Borrowed. */
  uint64_t n_projection;            /* Number of `projection`; 0 delivers all fields. */
  pxg_str error;                    /* When the answer is negative: why, for the operator. Borrowed. */
  uint8_t *scratch;                 /* [in-call] Lent by the host: at least 4096 bytes, 16-aligned. */
  uint64_t scratch_cap;             /* Capacity of `scratch`, in bytes. */
} pxg_config_out;

/* ---- Features --------------------------------------------------------------------------------------------------- */

/* The number of a feature. */
#define PXG_F_PEND_REQUEST_HEADERS 0   /* PENDING at request headers. */
#define PXG_F_PEND_REQUEST_BODY 1      /* PENDING at request body. */
#define PXG_F_PEND_REQUEST_TRAILERS 2  /* PENDING at request trailers. */
#define PXG_F_PEND_RESPONSE_HEADERS 3  /* PENDING at response headers. */
#define PXG_F_PEND_RESPONSE_BODY 4     /* PENDING at response body. */
#define PXG_F_PEND_RESPONSE_TRAILERS 5 /* PENDING at response trailers. */
#define PXG_F_PEND_L4_OPEN 6           /* PENDING at the opening of a connection. */
#define PXG_F_PEND_L4_DATA 7           /* PENDING at the bytes of a connection. */
#define PXG_F_BODY_STREAM_REQUEST 8    /* Mode STREAM for request bodies. */
#define PXG_F_BODY_STREAM_RESPONSE 9   /* Mode STREAM for response bodies. */
#define PXG_F_BODY_WHOLE_REQUEST 10    /* Mode WHOLE for request bodies. */
#define PXG_F_BODY_WHOLE_RESPONSE 11   /* Mode WHOLE for response bodies. */
#define PXG_F_BODY_OBSERVE_REQUEST 12  /* Mode OBSERVE for request bodies. */
#define PXG_F_BODY_OBSERVE_RESPONSE 13 /* Mode OBSERVE for response bodies. */
#define PXG_F_HOLD_REQUEST 14          /* MORE at request headers: they are held until the body has been seen. */
#define PXG_F_HOLD_RESPONSE 15         /* MORE at response headers. */
#define PXG_F_RESIZE_REQUEST 16        /* RESIZES for request bodies. */
#define PXG_F_RESIZE_RESPONSE 17       /* RESIZES for response bodies. */
#define PXG_F_EXACT_EOS_REQUEST 18     /* END_STREAM at request headers is exact. */
#define PXG_F_EXACT_EOS_RESPONSE 19    /* END_STREAM at response headers is exact. */
#define PXG_F_TRAILERS_IN_REQUEST 20   /* Request trailers are delivered. */
#define PXG_F_TRAILERS_IN_RESPONSE 21  /* Response trailers are delivered. */
#define PXG_F_TRAILERS_OUT_REQUEST 22  /* Request trailers can be changed and added. */
#define PXG_F_TRAILERS_OUT_RESPONSE 23 /* Response trailers can be changed and added. */
#define PXG_F_PARTIAL_RELEASE 24       /* MORE with PASS, DROP or INJECT: a part of the view leaves while the rest
                                        * is kept. */
#define PXG_F_CONTINUE_GATE 25         /* The verdict on the request headers comes before `100-continue` is
                                        * answered. */
#define PXG_F_BODY_INJECT 26           /* BODY_WRITE on a forwarded message. */
#define PXG_F_STREAM_REPLY 27          /* Replies whose body follows (`PXG_REPLY_OPEN`). */
#define PXG_F_FLUSH 28                 /* FLUSH is honoured. */
#define PXG_F_REPLY_REFILTER 29        /* A reply passes the response phases of the other guests. */
#define PXG_F_ROUTE 30                 /* ROUTE operations. */
#define PXG_F_METADATA 31              /* METADATA_SET operations. */
#define PXG_F_OWNED_BUF 32             /* Owned buffers are sent without a copy. */
#define PXG_F_WIRE_ORDER 33            /* Fields in the order of the wire. */
#define PXG_F_ORPHAN 34                /* The configuration flag ORPHAN. */
#define PXG_F_SUBREQUESTS 35           /* The configuration flag SUBREQUESTS. */
#define PXG_F_UPGRADE_BODY 36          /* The configuration flag UPGRADE_BODY. */
#define PXG_F_THREAD_AFFINE 37         /* All calls for a stream come on one thread. */
#define PXG_F_BATCH_END 38             /* `on_batch_end` is called. */
#define PXG_F_CONFIG_REJECT 39         /* A refused update leaves the old configuration serving. */
#define PXG_F_CONFIG_THREAD 40         /* Config-thread calls never run on a loop thread. */
#define PXG_F_L4 41                    /* The L4 phases. */
#define PXG_F_APPLY 42                 /* `apply` and `wake` work. */

/* ---- The two tables --------------------------------------------------------------------------------------------- */

/* Log levels, of `log` and of `pxg_page.log_level`. */
#define PXG_LOG_TRACE 0 /* Every step. */
#define PXG_LOG_DEBUG 1 /* For the filter's author. */
#define PXG_LOG_INFO 2  /* For the operator. */
#define PXG_LOG_WARN 3  /* Something is off; the stream goes on. */
#define PXG_LOG_ERROR 4 /* Something failed. */
#define PXG_LOG_OFF 5   /* Nothing is logged. */

/* Words of the host that a guest reads without a call: relaxed atomic loads, each word naturally aligned. Owned by
 * the host, read-only for guests, alive as long as the process. */
typedef struct pxg_page {
  uint32_t size;         /* Size of the struct, in bytes. */
  uint32_t log_level;    /* `PXG_LOG_*`: nothing below it is worth formatting. Follows a change within a second. */
  uint32_t draining;     /* Not 0 once the host drains. */
  uint32_t reserved0;    /* Zero. */
  uint64_t monotonic_ns; /* Monotonic clock in nanoseconds, as of the host's last look; 0 where the host keeps
                          * none. */
  uint64_t realtime_ns;  /* Nanoseconds since 1970-01-01 UTC, as `monotonic_ns`. */
} pxg_page;

/* The host's table. Complete before init, never changed, alive as long as the process (PXG-NEG-001). */
typedef struct pxg_host {
  uint32_t size;        /* Size of the struct as the host knows it, in bytes. */
  uint32_t major;       /* The host's major version. */
  uint32_t minor;       /* The host's minor version. */
  uint32_t n_workers;   /* Upper bound of worker indices in this process; 0 is unknown. */
  uint64_t features[4]; /* `PXG_F_*`: bit n is `features[n / 64] & 1 << (n % 64)`. */
  pxg_str name;         /* For logs. */
  pxg_str version;      /* For logs. */
  uint64_t ctx;         /* First argument of every function below. Another value for each guest library: that is
                         * how the owner of a token is known. */
  const pxg_page *page; /* See pxg_page; may be null. */

  /* [any-thread] Ends a PENDING. Copies what is borrowed before it returns, never blocks, never runs a hook. OK:
   * accepted, not yet applied. STALE: the token has ended. STATE or ARG: refused, the token lives on. Owned
   * buffers pass to the host with every answer. Null iff no PEND feature is set. */
  int32_t (*complete)(uint64_t ctx, uint64_t token, const pxg_result *r);

  /* [any-thread] Acts on a stream outside its events: operations without direction, REPLY, RESET, BODY_WRITE. As
   * `complete`; FULL: taken, wait for WRITABLE. Null iff APPLY is not set. */
  int32_t (*apply)(uint64_t ctx, uint64_t stream, const pxg_result *r);

  /* [any-thread] Leads to at least one WAKE event with `arg` OR-ed into its `arg`, or answers STALE. Null iff
   * APPLY is not set. */
  int32_t (*wake)(uint64_t ctx, uint64_t stream, uint64_t arg);

  /* [any-thread] A line for the host's log, without a line end. May be null. */
  void (*log)(uint64_t ctx, uint32_t level, const uint8_t *ptr, uint64_t len);

  /* [in-call] More scratch inside `on_event` and `on_config_new`: zeroed, 16-aligned, dies with the call's
   * scratch; null over the limit. Never a null entry. */
  uint8_t *(*scratch_more)(uint64_t ctx, uint64_t n);

  /* [any-thread] The table of an extension, starting with its `size`, alive as long as the process; null if the
   * host has none of that id. May be a null entry. */
  const void *(*get_ext)(uint64_t ctx, const uint8_t *id, uint64_t len);
} pxg_host;

/* Flags of `pxg_guest`. */
#define PXG_GUEST_ABORTS 0x1u /* A panic in this guest is not contained: C, Zig, `panic=abort`. */

/* The guest's table, filled by pxg_guest_init_v1. The host has zeroed it and set `size`; it copies the struct, and
 * what its pointers point to stays valid and unchanged as long as the process. */
typedef struct pxg_guest {
  uint32_t size;          /* Size of the struct: set by the host, and lowered by a guest that knows less. */
  uint32_t major;         /* The guest's major version. */
  uint32_t minor;         /* The guest's minor version. */
  uint32_t flags;         /* `PXG_GUEST_*`. */
  uint64_t required[4];   /* Features without which no filter of the library works. */
  uint64_t known[4];      /* Features whose flags, actions and kinds the guest understands: others never reach it. */
  pxg_str name;           /* For logs. */
  pxg_str version;        /* For logs. */
  uint64_t ctx;           /* First argument of every function below. */
  const pxg_str *filters; /* The names of the library's filters. */
  uint64_t n_filters;     /* Number of `filters`. */

  /* [config-thread] Makes a configuration, or refuses it with a negative status and `out->error`. */
  int32_t (*on_config_new)(uint64_t ctx, const pxg_config_in *input, pxg_config_out *out);

  /* [config-thread] Exactly once per configuration, after its last stream and its last live token. */
  void (*on_config_drop)(uint64_t ctx, uint64_t config);

  /* [loop-thread] The hot crossing. */
  void (*on_event)(uint64_t ctx, const pxg_event *ev, pxg_result *out);

  /* [loop-thread] A pending token has been retired without being completed. Must not wait for a worker. */
  void (*on_cancel)(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t worker);

  /* [loop-thread] The last call for a stream; exactly once iff `user` is not 0. */
  void (*on_stream_end)(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker);

  /* [loop-thread] Optional, feature BATCH_END: once at the end of a loop iteration in which an event of this guest
   * answered PENDING. */
  void (*on_batch_end)(uint64_t ctx, uint32_t worker);

  /* [loop-thread] Optional. `up` 1 before the first event of that worker; 0 is best effort. */
  void (*on_worker)(uint64_t ctx, uint32_t worker, uint32_t up);

  /* [any-thread] Optional. The guest's extensions, as the host's. */
  const void *(*get_ext)(uint64_t ctx, const uint8_t *id, uint64_t len);
} pxg_guest;

/* The type of `pxg_guest_init_v1`, the one function that a guest exports. [config-thread] The host has zeroed
 * `*out` and set `out->size`. Idempotent for one host; for another host of the process it answers that host's own
 * `ctx`, or STATE. VERSION for another major. */
typedef int32_t (*pxg_guest_init_v1_fn)(const pxg_host *host, pxg_guest *out);

/* For a guest: the prototype of what it exports. Cgo writes its own: define PXG_NO_PROTOTYPES there. */
#ifndef PXG_NO_PROTOTYPES
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out);
#endif

#ifdef __cplusplus
}
#endif

#endif /* PROXY_GOLANG_H */
