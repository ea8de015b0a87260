-- SPDX-License-Identifier: Apache-2.0

-- The ABI's structs for LuaJIT, as include/proxy_golang.h has them. Callbacks are declared with what this host leaves
-- null as plain pointers.

local ffi = require "ffi"
require "resty.proxy_golang.fields"

ffi.cdef [[
typedef struct { pxg_lua_str bytes; void (*release)(uint64_t ctx); uint64_t ctx; } pxg_lua_buf;
typedef struct {
    uint16_t kind, flags;
    uint32_t target;
    uint64_t u0;
    pxg_lua_str key;
    pxg_lua_buf val;
} pxg_lua_op;

typedef struct {
    uint32_t size, phase, flags, worker;
    uint64_t config, user, stream, token, arg;
    const pxg_lua_field *fields;        uint64_t n_fields;
    const pxg_lua_field *trailers;      uint64_t n_trailers;
    const pxg_lua_field *peer_fields;   uint64_t n_peer_fields;
    const pxg_lua_field *peer_trailers; uint64_t n_peer_trailers;
    const pxg_lua_str *chunks;          uint64_t n_chunks;
    uint64_t body_offset;
    const pxg_lua_str *attrs;           uint64_t n_attrs;
} pxg_lua_event;

typedef struct {
    uint32_t size, status, flags;
    int32_t  grpc_status;
    const pxg_lua_field *fields;   uint64_t n_fields;
    const pxg_lua_buf *body;       uint64_t n_body;
    const pxg_lua_field *trailers; uint64_t n_trailers;
    pxg_lua_str details;
} pxg_lua_reply;

typedef struct {
    uint32_t size, action, flags, reserved0;
    uint64_t user;
    const pxg_lua_op *ops; uint64_t n_ops;
    const pxg_lua_reply *reply;
    uint64_t unsubscribe;
    uint32_t body_mode[2];
    uint64_t more_bytes, pend_ns;
    pxg_lua_str error;
    pxg_lua_op *scratch_ops; uint64_t scratch_ops_cap;
    uint8_t *scratch;        uint64_t scratch_cap;
} pxg_lua_result;

typedef struct { pxg_lua_str name; uint64_t phases; uint32_t flags, reserved0; } pxg_lua_attr_want;
typedef struct { pxg_lua_str name; uint64_t phases; } pxg_lua_projection;

typedef struct {
    uint32_t size, flags;
    uint64_t features[4];
    pxg_lua_str filter, name, bytes;
    uint64_t parent;
} pxg_lua_config_in;

typedef struct {
    uint32_t size, flags;
    uint64_t config, subscribe, pend_phases;
    uint32_t body_mode[2];
    uint64_t max_body[2];
    uint64_t pend_ns;
    const pxg_lua_attr_want *attrs;       uint64_t n_attrs;
    const pxg_lua_projection *projection; uint64_t n_projection;
    pxg_lua_str error;
    uint8_t *scratch; uint64_t scratch_cap;
} pxg_lua_config_out;

typedef struct {
    uint32_t size, major, minor, n_workers;
    uint64_t features[4];
    pxg_lua_str name, version;
    uint64_t ctx;
    const void *page;
    void *complete, *apply, *wake, *log;
    uint8_t *(*scratch_more)(uint64_t ctx, uint64_t n);
    void *get_ext;
} pxg_lua_host;

typedef struct {
    uint32_t size, major, minor, flags;
    uint64_t required[4], known[4];
    pxg_lua_str name, version;
    uint64_t ctx;
    const pxg_lua_str *filters; uint64_t n_filters;
    int32_t (*on_config_new)(uint64_t ctx, const pxg_lua_config_in *input, pxg_lua_config_out *out);
    void (*on_config_drop)(uint64_t ctx, uint64_t config);
    void (*on_event)(uint64_t ctx, const pxg_lua_event *ev, pxg_lua_result *out);
    void *on_cancel;
    void (*on_stream_end)(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker);
    void *on_batch_end;
    void (*on_worker)(uint64_t ctx, uint32_t worker, uint32_t up);
    void *get_ext;
} pxg_lua_guest;

typedef int32_t (*pxg_lua_init)(const pxg_lua_host *host, pxg_lua_guest *out);
]]

return {
    PHASE = { REQUEST_HEADERS = 1, REQUEST_BODY = 2, RESPONSE_HEADERS = 4, RESPONSE_BODY = 5, LOG = 7 },
    -- A mode of bodies.
    WHOLE = 3,
    STATUS = { [-1] = "STALE", [-2] = "STATE", [-3] = "ARG", [-4] = "UNSUPPORTED", [-5] = "LIMIT", [-6] = "THREAD",
               [-7] = "VERSION", [-8] = "NOTFOUND", [-9] = "INTERNAL" },
}
