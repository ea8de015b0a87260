-- SPDX-License-Identifier: Apache-2.0
-- Generated from proxy-golang-abi by `cargo xtask gen`: do not edit.
--
-- The proxy_golang ABI for LuaJIT. Installed as proxy_golang/ffi.lua on package.path; requiring it declares the types,
-- and the module holds the constants without their prefix PXG_.
--
--   local ffi = require "ffi"
--   local pxg = require "proxy_golang.ffi"
--   local ev = ffi.new("pxg_event", { size = ffi.sizeof("pxg_event"), phase = pxg.PHASE_REQUEST_HEADERS })
--   local mask = pxg.phase_bit(pxg.PHASE_LOG)
--
-- The documentation is in proxy_golang.h. A host in Lua leaves every [any-thread] entry of pxg_host null: a Lua
-- callback must not run on another thread.

local bit = require "bit"
local ffi = require "ffi"

if not (ffi.abi "64bit" and ffi.os ~= "Windows") then
  error("proxy_golang v1 is defined for LP64 targets only")
end

ffi.cdef [[
typedef struct pxg_str {
  const uint8_t *ptr;
  uint32_t len;
  uint32_t flags;
} pxg_str;
typedef struct pxg_field {
  pxg_str name;
  pxg_str value;
} pxg_field;
typedef struct pxg_buf {
  pxg_str bytes;
  void (*release)(uint64_t ctx);
  uint64_t ctx;
} pxg_buf;
typedef struct pxg_op {
  uint16_t kind;
  uint16_t flags;
  uint32_t target;
  uint64_t u0;
  pxg_str key;
  pxg_buf val;
} pxg_op;
typedef struct pxg_event {
  uint32_t size;
  uint32_t phase;
  uint32_t flags;
  uint32_t worker;
  uint64_t config;
  uint64_t user;
  uint64_t stream;
  uint64_t token;
  uint64_t arg;
  const pxg_field *fields;
  uint64_t n_fields;
  const pxg_field *trailers;
  uint64_t n_trailers;
  const pxg_field *peer_fields;
  uint64_t n_peer_fields;
  const pxg_field *peer_trailers;
  uint64_t n_peer_trailers;
  const pxg_str *chunks;
  uint64_t n_chunks;
  uint64_t body_offset;
  const pxg_str *attrs;
  uint64_t n_attrs;
} pxg_event;
typedef struct pxg_reply {
  uint32_t size;
  uint32_t status;
  uint32_t flags;
  int32_t grpc_status;
  const pxg_field *fields;
  uint64_t n_fields;
  const pxg_buf *body;
  uint64_t n_body;
  const pxg_field *trailers;
  uint64_t n_trailers;
  pxg_str details;
} pxg_reply;
typedef struct pxg_result {
  uint32_t size;
  uint32_t action;
  uint32_t flags;
  uint32_t reserved0;
  uint64_t user;
  const pxg_op *ops;
  uint64_t n_ops;
  const pxg_reply *reply;
  uint64_t unsubscribe;
  uint32_t body_mode[2];
  uint64_t more_bytes;
  uint64_t pend_ns;
  pxg_str error;
  pxg_op *scratch_ops;
  uint64_t scratch_ops_cap;
  uint8_t *scratch;
  uint64_t scratch_cap;
} pxg_result;
typedef struct pxg_attr_want {
  pxg_str name;
  uint64_t phases;
  uint32_t flags;
  uint32_t reserved0;
} pxg_attr_want;
typedef struct pxg_projection {
  pxg_str name;
  uint64_t phases;
} pxg_projection;
typedef struct pxg_config_in {
  uint32_t size;
  uint32_t flags;
  uint64_t features[4];
  pxg_str filter;
  pxg_str name;
  pxg_str bytes;
  uint64_t parent;
} pxg_config_in;
typedef struct pxg_config_out {
  uint32_t size;
  uint32_t flags;
  uint64_t config;
  uint64_t subscribe;
  uint64_t pend_phases;
  uint32_t body_mode[2];
  uint64_t max_body[2];
  uint64_t pend_ns;
  const pxg_attr_want *attrs;
  uint64_t n_attrs;
  const pxg_projection *projection;
  uint64_t n_projection;
  pxg_str error;
  uint8_t *scratch;
  uint64_t scratch_cap;
} pxg_config_out;
typedef struct pxg_page {
  uint32_t size;
  uint32_t log_level;
  uint32_t draining;
  uint32_t reserved0;
  uint64_t monotonic_ns;
  uint64_t realtime_ns;
} pxg_page;
typedef struct pxg_host {
  uint32_t size;
  uint32_t major;
  uint32_t minor;
  uint32_t n_workers;
  uint64_t features[4];
  pxg_str name;
  pxg_str version;
  uint64_t ctx;
  const pxg_page *page;
  int32_t (*complete)(uint64_t ctx, uint64_t token, const pxg_result *r);
  int32_t (*apply)(uint64_t ctx, uint64_t stream, const pxg_result *r);
  int32_t (*wake)(uint64_t ctx, uint64_t stream, uint64_t arg);
  void (*log)(uint64_t ctx, uint32_t level, const uint8_t *ptr, uint64_t len);
  uint8_t *(*scratch_more)(uint64_t ctx, uint64_t n);
  const void *(*get_ext)(uint64_t ctx, const uint8_t *id, uint64_t len);
} pxg_host;
typedef struct pxg_guest {
  uint32_t size;
  uint32_t major;
  uint32_t minor;
  uint32_t flags;
  uint64_t required[4];
  uint64_t known[4];
  pxg_str name;
  pxg_str version;
  uint64_t ctx;
  const pxg_str *filters;
  uint64_t n_filters;
  int32_t (*on_config_new)(uint64_t ctx, const pxg_config_in *input, pxg_config_out *out);
  void (*on_config_drop)(uint64_t ctx, uint64_t config);
  void (*on_event)(uint64_t ctx, const pxg_event *ev, pxg_result *out);
  void (*on_cancel)(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t worker);
  void (*on_stream_end)(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker);
  void (*on_batch_end)(uint64_t ctx, uint32_t worker);
  void (*on_worker)(uint64_t ctx, uint32_t worker, uint32_t up);
  const void *(*get_ext)(uint64_t ctx, const uint8_t *id, uint64_t len);
} pxg_guest;
typedef struct pxg_metrics_v1 {
  uint32_t size;
  uint32_t reserved0;
  int32_t (*define)(uint64_t ctx, uint32_t kind, const pxg_str *name, const pxg_field *labels, uint64_t n_labels, uint32_t *id);
  int32_t (*record)(uint64_t ctx, uint32_t id, int64_t value);
} pxg_metrics_v1;
typedef int32_t (*pxg_guest_init_v1_fn)(const pxg_host *host, pxg_guest *out);
int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out);
]]

local pxg = {
  VERSION_MAJOR = 1,
  VERSION_MINOR = 0,
  GUEST_INIT_SYMBOL = "pxg_guest_init_v1",
  OK = 0,
  FULL = 1,
  E_STALE = -1,
  E_STATE = -2,
  E_ARG = -3,
  E_UNSUPPORTED = -4,
  E_LIMIT = -5,
  E_THREAD = -6,
  E_VERSION = -7,
  E_NOTFOUND = -8,
  E_INTERNAL = -9,
  STR_ABSENT = 1,
  STR_SENSITIVE = 2,
  BUF_BORROWED = 0,
  BUF_STATIC = 16,
  BUF_OWNED = 32,
  OP_HEADER_SET = 1,
  OP_HEADER_ADD = 2,
  OP_HEADER_DELETE = 3,
  OP_SET_AT = 4,
  OP_DELETE_AT = 5,
  OP_PASS = 8,
  OP_DROP = 9,
  OP_INJECT = 10,
  OP_BODY_WRITE = 11,
  OP_METADATA_SET = 16,
  OP_METRIC = 17,
  OP_ROUTE = 18,
  OPF_MUST = 1,
  OPF_END = 2,
  TARGET_HEADERS = 0,
  TARGET_TRAILERS = 1,
  TARGET_UPSTREAM = 2,
  TARGET_CLIENT = 3,
  PHASE_REQUEST_HEADERS = 1,
  PHASE_REQUEST_BODY = 2,
  PHASE_REQUEST_TRAILERS = 3,
  PHASE_RESPONSE_HEADERS = 4,
  PHASE_RESPONSE_BODY = 5,
  PHASE_RESPONSE_TRAILERS = 6,
  PHASE_LOG = 7,
  PHASE_WAKE = 8,
  PHASE_L4_OPEN = 16,
  PHASE_L4_DOWNSTREAM = 17,
  PHASE_L4_UPSTREAM = 18,
  PHASE_L4_CLOSE = 19,
  EV_END_STREAM = 1,
  EV_BODY_END = 2,
  EV_WHOLE_BODY = 4,
  EV_HEADERS_HELD = 8,
  EV_OVER_LIMIT = 16,
  EV_CAN_REPLY = 32,
  EV_LOCAL_ORIGIN = 64,
  EV_EOS_UNKNOWN = 128,
  EV_UPGRADED = 256,
  EV_REDIRECTED = 512,
  EV_SUBREQUEST = 1024,
  EV_RESUMED = 2048,
  EV_WRITABLE = 4096,
  END_COMPLETE = 1,
  END_CLIENT_ABORT = 2,
  END_UPSTREAM_RESET = 3,
  END_TIMEOUT = 4,
  END_REPLIED = 5,
  END_ERROR = 6,
  DIREND_NEVER_BEGAN = 0,
  DIREND_COMPLETE = 1,
  DIREND_SENDER = 2,
  DIREND_RECEIVER = 3,
  DIREND_PROXY = 4,
  ACT_UNSET = 0,
  ACT_CONTINUE = 1,
  ACT_PENDING = 2,
  ACT_MORE = 3,
  ACT_REPLY = 4,
  ACT_RESET = 5,
  ACT_ERROR = 6,
  BODY_UNSET = 0,
  BODY_SKIP = 1,
  BODY_STREAM = 2,
  BODY_WHOLE = 3,
  BODY_OBSERVE = 4,
  DIR_REQUEST = 0,
  DIR_RESPONSE = 1,
  REPLY_GRPC = 1,
  REPLY_OPEN = 2,
  REPLY_FLUSH = 4,
  RES_RESIZES = 1,
  RES_FLUSH = 2,
  ATTR_REQUIRED = 1,
  CFG_IN_VALIDATE_ONLY = 1,
  CFG_DUPLEX = 1,
  CFG_RESIZES_REQUEST = 2,
  CFG_RESIZES_RESPONSE = 4,
  CFG_WANT_PEER_FIELDS = 8,
  CFG_ORPHAN = 16,
  CFG_SUBREQUESTS = 32,
  CFG_UPGRADE_BODY = 64,
  F_PEND_REQUEST_HEADERS = 0,
  F_PEND_REQUEST_BODY = 1,
  F_PEND_REQUEST_TRAILERS = 2,
  F_PEND_RESPONSE_HEADERS = 3,
  F_PEND_RESPONSE_BODY = 4,
  F_PEND_RESPONSE_TRAILERS = 5,
  F_PEND_L4_OPEN = 6,
  F_PEND_L4_DATA = 7,
  F_BODY_STREAM_REQUEST = 8,
  F_BODY_STREAM_RESPONSE = 9,
  F_BODY_WHOLE_REQUEST = 10,
  F_BODY_WHOLE_RESPONSE = 11,
  F_BODY_OBSERVE_REQUEST = 12,
  F_BODY_OBSERVE_RESPONSE = 13,
  F_HOLD_REQUEST = 14,
  F_HOLD_RESPONSE = 15,
  F_RESIZE_REQUEST = 16,
  F_RESIZE_RESPONSE = 17,
  F_EXACT_EOS_REQUEST = 18,
  F_EXACT_EOS_RESPONSE = 19,
  F_TRAILERS_IN_REQUEST = 20,
  F_TRAILERS_IN_RESPONSE = 21,
  F_TRAILERS_OUT_REQUEST = 22,
  F_TRAILERS_OUT_RESPONSE = 23,
  F_PARTIAL_RELEASE = 24,
  F_CONTINUE_GATE = 25,
  F_BODY_INJECT = 26,
  F_STREAM_REPLY = 27,
  F_FLUSH = 28,
  F_REPLY_REFILTER = 29,
  F_ROUTE = 30,
  F_METADATA = 31,
  F_OWNED_BUF = 32,
  F_WIRE_ORDER = 33,
  F_ORPHAN = 34,
  F_SUBREQUESTS = 35,
  F_UPGRADE_BODY = 36,
  F_THREAD_AFFINE = 37,
  F_BATCH_END = 38,
  F_CONFIG_REJECT = 39,
  F_CONFIG_THREAD = 40,
  F_L4 = 41,
  F_APPLY = 42,
  LOG_TRACE = 0,
  LOG_DEBUG = 1,
  LOG_INFO = 2,
  LOG_WARN = 3,
  LOG_ERROR = 4,
  LOG_OFF = 5,
  GUEST_ABORTS = 1,
  METRICS_V1_ID = "pxg.metrics/1",
  METRIC_COUNTER = 1,
  METRIC_GAUGE = 2,
  METRIC_HISTOGRAM = 3,
}

-- The bit of a phase in a phase mask, as uint64_t.
function pxg.phase_bit(phase)
  return bit.lshift(1ULL, phase)
end

return pxg
