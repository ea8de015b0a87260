/* SPDX-License-Identifier: Apache-2.0 */

/* Guests called from Lua: what hosts/openresty calls through LuaJIT's FFI, and what the module has to know of it.
 *
 * A stream of Lua is a stream of the ABI whose driver is a Lua program: it feeds messages, takes what may leave, and
 * decides what becomes of it. Nothing of it touches an nginx request but its end: a stream lives no longer than the
 * request (or the request that the Lua module makes for a timer) that it was opened for.
 *
 * ngx_http_pxg_lua_fields.c has the messages' fields, ngx_http_pxg_lua_filters.c the configurations. */

#ifndef NGX_HTTP_PXG_LUA_H
#define NGX_HTTP_PXG_LUA_H

#include "ngx_http_pxg.h"

/* ---- For the module ------------------------------------------------------------------------------------------------ */

/* Mail came for a stream; false: it is not one of Lua's. */
bool ngx_http_pxg_lua_resume(pxg_stream *s);
/* Before the configurations are dropped: ends all streams and gives the configurations back. */
void ngx_http_pxg_lua_exit(void);

/* ---- Fields: ngx_http_pxg_lua_fields.c ----------------------------------------------------------------------------- */

typedef struct {
  pxg_field *at;
  size_t n, cap;
  unsigned gone : 1;   /* Some were removed since the last commit. */
  unsigned pseudo : 1; /* A pseudo-header was appended: commit brings it to the front. */
} ngx_http_pxg_lua_list_t;

typedef struct {
  uint32_t slot; /* First: see ngx_http_pxg_lua_resume. */
  ngx_pool_t *pool;
  ngx_http_pxg_lua_list_t lists[2][2]; /* By direction; headers, trailers. */
} ngx_http_pxg_lua_message_t;

/* Its `data` is an ngx_http_pxg_lua_stream_t, and begins with the message. */
extern const pxg_stream_ops ngx_http_pxg_lua_ops;
/* Empties the list and copies `n` fields to it. */
bool ngx_http_pxg_lua_copy(ngx_http_pxg_lua_message_t *m, int d, bool trailers, const pxg_field *fields, size_t n);

/* ---- Streams ------------------------------------------------------------------------------------------------------- */

typedef struct {
  ngx_http_pxg_lua_message_t message; /* First: the operations' `data`. */
  pxg_stream *stream;
  ngx_http_request_t *request;
  ngx_queue_t queue; /* Of the request's. */
  ngx_event_t timer;
  void *sema[2];
  pxg_slice taken; /* What the last take answered. */

  /* For attributes. */
  off_t body_bytes[2];
  ngx_str_t raw_path;
  uint64_t started_ns;
  const char *origin;
} ngx_http_pxg_lua_stream_t;

/* The streams of one request: its pool's cleanup ends them. */
typedef struct {
  ngx_queue_t streams;
  ngx_http_event_handler_pt read_handler; /* What ngx_http_pxg_lua_read replaced while it waits. */
  unsigned began : 1;                     /* Of the request's body. */
  unsigned ended : 1;
} ngx_http_pxg_lua_owner_t;

/* Null: the stream is not there. `direction` is checked. */
ngx_http_pxg_lua_stream_t *ngx_http_pxg_lua_enter(uint64_t handle, int direction);
/* After each call into the engine for a stream. */
void ngx_http_pxg_lua_settle(ngx_http_pxg_lua_stream_t *s);
/* Posts the semaphores of those who wait for the stream. */
void ngx_http_pxg_lua_post(ngx_http_pxg_lua_stream_t *s);
/* Null: the request has opened no stream. */
ngx_http_pxg_lua_owner_t *ngx_http_pxg_lua_owner_of(ngx_http_request_t *r);

/* ---- Exported to Lua ----------------------------------------------------------------------------------------------- */

/* What the Lua library checks before it calls anything else: raised whenever a function or struct below changes. */
#define NGX_HTTP_PXG_LUA_ABI 2
int ngx_http_pxg_lua_abi_version(void);

/* Strings are NUL-terminated. 0 leaves a limit as it is preset. `without`: features 0 to 63 that the caller's program
 * cannot keep; what no Lua program can is cleared anyway. `attributes`: its streams are about the request that they are
 * opened for, and have its attributes; else none. */
typedef struct {
  const char *guest, *filter, *name, *config;
  uint32_t n_config, fail_open, failure_status, max_pending, attributes, reserved;
  uint64_t without, pend_limit_ns, hold_limit_ns, max_body;
} ngx_http_pxg_lua_spec_t;

/* A configuration by its name, as proxy_golang_filter defines it or ngx_http_pxg_lua_load has: its number, 0 or more.
 * Each set of features, with attributes and without, is a configuration of its own. -1 with the cause in `err`, of which `*errlen` says the room and
 * then the length. */
int ngx_http_pxg_lua_filter(const char *name, uint64_t without, int attributes, char *err, size_t *errlen);
/* Loads the library if need be, which blocks the worker, and makes the configuration. An earlier one of the same name
 * and features is replaced for streams to come, or stays if this one is refused. */
int ngx_http_pxg_lua_load(const ngx_http_pxg_lua_spec_t *spec, char *err, size_t *errlen);
/* Null: there is none of that number. */
pxg_config *ngx_http_pxg_lua_config(int filter);
void ngx_http_pxg_lua_filters_exit(void);

/* A stream for `n` configurations, in the order of requests. `flags`: PXG_STREAM_*. Its handle, which fits a double
 * and is never used again; 0 with the cause. */
uint64_t ngx_http_pxg_lua_open(ngx_http_request_t *r, const int *filters, size_t n, uint32_t flags, char *err,
                               size_t *errlen);

/* All of these answer PXG_OK, or PXG_E_STALE for a handle whose stream is not there (any more). Fields and bytes are
 * copied. `flags` of a head: PXG_HEAD_*. */
int ngx_http_pxg_lua_head(uint64_t handle, int direction, uint32_t flags, const pxg_field *fields, size_t n);
int ngx_http_pxg_lua_bytes(uint64_t handle, int direction, const void *bytes, size_t n);
int ngx_http_pxg_lua_end(uint64_t handle, int direction, const pxg_field *trailers, size_t n);
/* Reads what there is of the body of `r`, a main request for which the stream was opened, as it comes, also in chunks or by
 * HTTP/2, and feeds it. 1: something was fed; 0: nothing has come yet, more of it posts the semaphore that is being
 * watched; PXG_E_STALE; PXG_E_STATE: the body was read by others before; below -299 a status of HTTP with its sign
 * changed, 408 for a client that is too slow and 499 for one that is gone. */
int ngx_http_pxg_lua_read(uint64_t handle, ngx_http_request_t *r);
/* `why`: PXG_END_*. The handle is stale from here on. */
int ngx_http_pxg_lua_finish(uint64_t handle, uint32_t why);

/* The next thing that may leave. `bytes` and `fields` are valid until the next call for the stream. */
typedef struct {
  uint32_t kind; /* PXG_OUT_* + 1; 0: nothing now. */
  int32_t direction;
  uint32_t flags; /* PXG_OUT_*. */
  uint32_t reserved;
  const uint8_t *bytes; /* Of BYTES. */
  size_t n_bytes;
  const pxg_field *fields; /* Of HEAD, and of END with PXG_OUT_TRAILERS. */
  size_t n_fields;
} ngx_http_pxg_lua_out_t;

int ngx_http_pxg_lua_take(uint64_t handle, ngx_http_pxg_lua_out_t *out);
/* 1: a guest's PENDING stops this direction now; 0: none does. */
int ngx_http_pxg_lua_pends(uint64_t handle, int direction);
/* 1: some guest may look at this direction's body as things stand; 0: none does. */
int ngx_http_pxg_lua_sees_body(uint64_t handle, int direction);
/* The next mail, timer or end of the stream posts `sema`, a semaphore of lua-nginx-module, once. It has to live until
 * then. */
int ngx_http_pxg_lua_watch(uint64_t handle, int direction, void *sema);
/* For logs: `<filter>.<details>` of a local reply; null: there is none. Valid until the next call for the stream. */
const char *ngx_http_pxg_lua_details(uint64_t handle);
/* What lua-nginx-module does not tell of a request: 1 if it ends at its head, and that no 100 is to be answered any more,
 * because the response is coming. */
int ngx_http_pxg_lua_request_ends(ngx_http_request_t *r);
void ngx_http_pxg_lua_no_continue(ngx_http_request_t *r);
/* Streams that are open on this worker. */
size_t ngx_http_pxg_lua_streams(void);

#endif
