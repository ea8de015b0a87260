/* SPDX-License-Identifier: Apache-2.0 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "ngx_http_pxg_lua.h"

#include <dlfcn.h>

/* ---- Handles ------------------------------------------------------------------------------------------------------- */

/* 20 bits of slot and 33 of generation, so that a double holds them all. */
enum { NGX_HTTP_PXG_LUA_SLOT_BITS = 20, NGX_HTTP_PXG_LUA_GENERATION_BITS = 33 };
#define NGX_HTTP_PXG_LUA_SLOTS (1u << NGX_HTTP_PXG_LUA_SLOT_BITS)

typedef struct {
  uint64_t generation;
  ngx_http_pxg_lua_stream_t *stream;
  uint32_t next_free;
} ngx_http_pxg_lua_slot_t;

static struct {
  ngx_http_pxg_lua_slot_t *at;
  uint32_t n, cap, first_free; /* `first_free`: index + 1. */
  size_t live;
} ngx_http_pxg_lua_slots;

static bool ngx_http_pxg_lua_slot(ngx_http_pxg_lua_stream_t *s) {
  ngx_http_pxg_lua_slot_t *at;
  uint32_t i, cap;

  if (ngx_http_pxg_lua_slots.first_free) {
    i = ngx_http_pxg_lua_slots.first_free - 1;
    ngx_http_pxg_lua_slots.first_free = ngx_http_pxg_lua_slots.at[i].next_free;
  } else {
    if (ngx_http_pxg_lua_slots.n == ngx_http_pxg_lua_slots.cap) {
      cap = ngx_http_pxg_lua_slots.cap ? ngx_http_pxg_lua_slots.cap * 2 : 64;
      if (cap > NGX_HTTP_PXG_LUA_SLOTS) return false;
      at = realloc(ngx_http_pxg_lua_slots.at, cap * sizeof(*at));
      if (at == NULL) return false;
      ngx_http_pxg_lua_slots.at = at;
      ngx_http_pxg_lua_slots.cap = cap;
    }
    i = ngx_http_pxg_lua_slots.n++;
    ngx_http_pxg_lua_slots.at[i].generation = 1;
  }
  ngx_http_pxg_lua_slots.at[i].stream = s;
  ngx_http_pxg_lua_slots.live++;
  s->message.slot = i;
  return true;
}

/* A slot whose generations are used up is not used again. */
static void ngx_http_pxg_lua_free_slot(uint32_t i) {
  ngx_http_pxg_lua_slot_t *at = &ngx_http_pxg_lua_slots.at[i];

  at->stream = NULL;
  ngx_http_pxg_lua_slots.live--;
  if (++at->generation >> NGX_HTTP_PXG_LUA_GENERATION_BITS) return;
  at->next_free = ngx_http_pxg_lua_slots.first_free;
  ngx_http_pxg_lua_slots.first_free = i + 1;
}

static ngx_http_pxg_lua_stream_t *ngx_http_pxg_lua_find(uint64_t handle) {
  uint64_t i = handle & (NGX_HTTP_PXG_LUA_SLOTS - 1);

  if (i >= ngx_http_pxg_lua_slots.n || ngx_http_pxg_lua_slots.at[i].generation != handle >> NGX_HTTP_PXG_LUA_SLOT_BITS)
    return NULL;
  return ngx_http_pxg_lua_slots.at[i].stream;
}

/* ---- Wake-up ------------------------------------------------------------------------------------------------------- */

/* The function that lua-resty-core's ngx.semaphore calls: the Lua module has it if its Lua code has called us. It posts
 * an event and runs no Lua. */
void ngx_http_pxg_lua_post(ngx_http_pxg_lua_stream_t *s) {
  static int (*post)(void *sema, int n);
  int d;

  for (d = 0; d < 2; d++) {
    void *sema = s->sema[d];
    if (sema == NULL) continue;
    s->sema[d] = NULL;
    if (post == NULL) *(void **)&post = dlsym(RTLD_DEFAULT, "ngx_http_lua_ffi_sema_post");
    if (post)
      (void)post(sema, 1);
    else
      ngx_log_error(NGX_LOG_ALERT, ngx_cycle->log, 0, "proxy_golang: the Lua module has no ngx_http_lua_ffi_sema_post");
  }
}

/* What one Lua thread feeds may have moved what another one waits for. What may leave is taken later, by calls of their own:
 * until then all that was lent is kept. Taking moves nothing in the engine, so no deadline changes by it. */
void ngx_http_pxg_lua_settle(ngx_http_pxg_lua_stream_t *s) {
  uint64_t at, now;

  ngx_http_pxg_lua_post(s);
  pxg_stream_keep(s->stream);
  at = pxg_stream_deadline(s->stream);
  if (at == 0) {
    if (s->timer.timer_set) ngx_del_timer(&s->timer);
  } else {
    now = ngx_http_pxg_now();
    ngx_add_timer(&s->timer, at > now ? (ngx_msec_t)((at - now + 999999) / 1000000) : 1);
  }
  ngx_http_pxg_batch();
}

static void ngx_http_pxg_lua_timer(ngx_event_t *ev) {
  ngx_http_pxg_lua_stream_t *s = ev->data;

  (void)ngx_http_pxg_worker();
  pxg_stream_timer(s->stream);
  ngx_http_pxg_lua_settle(s);
}

/* The data of the module's own streams is another struct: whatever its first bytes are, no slot of Lua's points to it. */
bool ngx_http_pxg_lua_resume(pxg_stream *stream) {
  void *data = pxg_stream_data(stream);
  ngx_http_pxg_lua_stream_t *s = data;
  uint32_t i;

  ngx_memcpy(&i, data, sizeof(i));
  if (i >= ngx_http_pxg_lua_slots.n || ngx_http_pxg_lua_slots.at[i].stream != s) return false;
  ngx_http_pxg_lua_settle(s);
  return true;
}

/* ---- Life ---------------------------------------------------------------------------------------------------------- */

static void ngx_http_pxg_lua_end_stream(ngx_http_pxg_lua_stream_t *s, uint32_t why) {
  (void)ngx_http_pxg_worker();
  if (s->timer.timer_set) ngx_del_timer(&s->timer);
  ngx_queue_remove(&s->queue);
  pxg_slice_drop(&s->taken);
  pxg_stream_finish(s->stream, why);
  pxg_stream_free(s->stream);
  ngx_http_pxg_lua_free_slot(s->message.slot);
  ngx_http_pxg_lua_post(s);
  ngx_destroy_pool(s->message.pool);
  if (pxg_configs_to_drop()) (void)pxg_configs_drop();
  ngx_http_pxg_batch();
}

static void ngx_http_pxg_lua_cleanup(void *data) {
  ngx_http_pxg_lua_owner_t *o = data;

  while (!ngx_queue_empty(&o->streams)) {
    ngx_http_pxg_lua_stream_t *s = ngx_queue_data(ngx_queue_head(&o->streams), ngx_http_pxg_lua_stream_t, queue);
    ngx_http_request_t *r = s->request;
    bool aborted = r->connection->error || r->headers_out.status == NGX_HTTP_CLIENT_CLOSED_REQUEST;
    ngx_http_pxg_lua_end_stream(s, aborted ? PXG_END_CLIENT_ABORT : PXG_END_ERROR);
  }
}

void ngx_http_pxg_lua_exit(void) {
  uint32_t i;
  for (i = 0; i < ngx_http_pxg_lua_slots.n; i++)
    if (ngx_http_pxg_lua_slots.at[i].stream)
      ngx_http_pxg_lua_end_stream(ngx_http_pxg_lua_slots.at[i].stream, PXG_END_ERROR);
  ngx_http_pxg_lua_filters_exit();
}

ngx_http_pxg_lua_owner_t *ngx_http_pxg_lua_owner_of(ngx_http_request_t *r) {
  ngx_pool_cleanup_t *cln;

  for (cln = r->pool->cleanup; cln; cln = cln->next)
    if (cln->handler == ngx_http_pxg_lua_cleanup) return cln->data;
  return NULL;
}

static ngx_http_pxg_lua_owner_t *ngx_http_pxg_lua_owner(ngx_http_request_t *r) {
  ngx_http_pxg_lua_owner_t *o = ngx_http_pxg_lua_owner_of(r);
  ngx_pool_cleanup_t *cln;

  if (o) return o;
  cln = ngx_pool_cleanup_add(r->pool, sizeof(*o));
  if (cln == NULL) return NULL;
  o = cln->data;
  ngx_memzero(o, sizeof(*o));
  ngx_queue_init(&o->streams);
  cln->handler = ngx_http_pxg_lua_cleanup;
  return o;
}

uint64_t ngx_http_pxg_lua_open(ngx_http_request_t *r, const int *filters, size_t n, uint32_t flags, char *err,
                               size_t *errlen) {
  enum { NGX_HTTP_PXG_LUA_POOL = 1024 };
  pxg_config *chain[PXG_MAX_PLACES];
  ngx_http_pxg_lua_stream_t *s;
  ngx_http_pxg_lua_owner_t *o;
  ngx_pool_t *pool;
  pxg_worker *w = ngx_http_pxg_worker();
  const char *why = "no memory";
  size_t i;

  for (i = 0; i < n && i < PXG_MAX_PLACES; i++) {
    chain[i] = ngx_http_pxg_lua_config(filters[i]);
    if (chain[i] == NULL) break;
  }
  if (w == NULL || n == 0 || i < n) {
    why = w == NULL                      ? "this process has no worker of proxy_golang"
          : n == 0 || n > PXG_MAX_PLACES ? "a chain has 1 to 32 filters"
                                         : "a filter that does not exist any more";
    goto refused;
  }
  o = ngx_http_pxg_lua_owner(r);
  pool = o ? ngx_create_pool(NGX_HTTP_PXG_LUA_POOL, ngx_cycle->log) : NULL;
  if (pool == NULL) goto refused;
  s = ngx_pcalloc(pool, sizeof(*s));
  if (s == NULL || !ngx_http_pxg_lua_slot(s)) {
    ngx_destroy_pool(pool);
    why = s ? "more than 2^20 streams are open" : why;
    goto refused;
  }
  s->message.pool = pool;
  s->request = r;
  s->raw_path = r->unparsed_uri;
  s->started_ns = ngx_http_pxg_started(r);
  s->timer.handler = ngx_http_pxg_lua_timer;
  s->timer.data = s;
  s->timer.log = ngx_cycle->log;
  s->stream = pxg_stream_open(w, chain, n, &ngx_http_pxg_lua_ops, s, r->connection->number, flags);
  if (s->stream == NULL) {
    ngx_http_pxg_lua_free_slot(s->message.slot);
    ngx_destroy_pool(pool);
    goto refused;
  }
  ngx_queue_insert_tail(&o->streams, &s->queue);
  return ngx_http_pxg_lua_slots.at[s->message.slot].generation << NGX_HTTP_PXG_LUA_SLOT_BITS | s->message.slot;

refused:
  *errlen = (size_t)(ngx_snprintf((u_char *)err, *errlen, "%s", why) - (u_char *)err);
  return 0;
}

int ngx_http_pxg_lua_finish(uint64_t handle, uint32_t why) {
  ngx_http_pxg_lua_stream_t *s = ngx_http_pxg_lua_find(handle);

  if (s == NULL) return PXG_E_STALE;
  ngx_http_pxg_lua_end_stream(s, why);
  return PXG_OK;
}

/* ---- Feeding and taking -------------------------------------------------------------------------------------------- */

/* Without a look at the clock: for calls that only ask. */
static ngx_http_pxg_lua_stream_t *ngx_http_pxg_lua_look(uint64_t handle, int direction) {
  if (direction != PXG_DIR_REQUEST && direction != PXG_DIR_RESPONSE) return NULL;
  return ngx_http_pxg_lua_find(handle);
}

ngx_http_pxg_lua_stream_t *ngx_http_pxg_lua_enter(uint64_t handle, int direction) {
  (void)ngx_http_pxg_worker();
  return ngx_http_pxg_lua_look(handle, direction);
}

int ngx_http_pxg_lua_head(uint64_t handle, int direction, uint32_t flags, const pxg_field *fields, size_t n) {
  ngx_http_pxg_lua_stream_t *s = ngx_http_pxg_lua_enter(handle, direction);

  if (s == NULL) return PXG_E_STALE;
  if (!ngx_http_pxg_lua_copy(&s->message, direction, false, fields, n)) return PXG_E_INTERNAL;
  if (direction == PXG_DIR_RESPONSE) s->origin = flags & PXG_HEAD_LOCAL ? "host.content" : "via_upstream";
  pxg_stream_head(s->stream, direction, flags);
  ngx_http_pxg_lua_settle(s);
  return PXG_OK;
}

int ngx_http_pxg_lua_bytes(uint64_t handle, int direction, const void *bytes, size_t n) {
  ngx_http_pxg_lua_stream_t *s = ngx_http_pxg_lua_enter(handle, direction);
  pxg_slice slice = {.ptr = bytes, .len = n, .lent = true};

  if (s == NULL) return PXG_E_STALE;
  if (direction == PXG_DIR_REQUEST) s->body_bytes[direction] += (off_t)n;
  pxg_stream_bytes(s->stream, direction, &slice, 1);
  ngx_http_pxg_lua_settle(s);
  return PXG_OK;
}

int ngx_http_pxg_lua_end(uint64_t handle, int direction, const pxg_field *trailers, size_t n) {
  ngx_http_pxg_lua_stream_t *s = ngx_http_pxg_lua_enter(handle, direction);

  if (s == NULL) return PXG_E_STALE;
  if (n && !ngx_http_pxg_lua_copy(&s->message, direction, true, trailers, n)) return PXG_E_INTERNAL;
  pxg_stream_end(s->stream, direction, n > 0);
  ngx_http_pxg_lua_settle(s);
  return PXG_OK;
}

int ngx_http_pxg_lua_take(uint64_t handle, ngx_http_pxg_lua_out_t *out) {
  ngx_http_pxg_lua_stream_t *s = ngx_http_pxg_lua_look(handle, 0);
  ngx_http_pxg_lua_list_t *l;
  pxg_out o;

  ngx_memzero(out, sizeof(*out));
  if (s == NULL) return PXG_E_STALE;
  pxg_slice_drop(&s->taken);
  s->taken = (pxg_slice){0};
  if (!pxg_take(s->stream, &o)) return PXG_OK;
  out->kind = (uint32_t)o.kind + 1;
  out->direction = o.direction;
  out->flags = o.flags;
  if (o.kind == PXG_OUT_BYTES) {
    s->taken = o.slice;
    if (o.direction == PXG_DIR_RESPONSE) s->body_bytes[o.direction] += (off_t)o.slice.len;
    out->bytes = o.slice.ptr, out->n_bytes = o.slice.len;
  } else if (o.kind == PXG_OUT_HEAD || (o.flags & PXG_OUT_TRAILERS)) {
    l = &s->message.lists[o.direction][o.kind == PXG_OUT_END];
    out->fields = l->at, out->n_fields = l->n;
  }
  return PXG_OK;
}

int ngx_http_pxg_lua_pends(uint64_t handle, int direction) {
  ngx_http_pxg_lua_stream_t *s = ngx_http_pxg_lua_look(handle, direction);
  return s ? pxg_stream_pends(s->stream, direction) : PXG_E_STALE;
}

int ngx_http_pxg_lua_sees_body(uint64_t handle, int direction) {
  ngx_http_pxg_lua_stream_t *s = ngx_http_pxg_lua_look(handle, direction);
  return s ? pxg_stream_sees_body(s->stream, direction) : PXG_E_STALE;
}

int ngx_http_pxg_lua_watch(uint64_t handle, int direction, void *sema) {
  ngx_http_pxg_lua_stream_t *s = ngx_http_pxg_lua_look(handle, direction);

  if (s == NULL) return PXG_E_STALE;
  s->sema[direction] = sema;
  return PXG_OK;
}

const char *ngx_http_pxg_lua_details(uint64_t handle) {
  ngx_http_pxg_lua_stream_t *s = ngx_http_pxg_lua_look(handle, 0);
  return s ? pxg_stream_details(s->stream) : NULL;
}

int ngx_http_pxg_lua_request_ends(ngx_http_request_t *r) {
#if (NGX_HTTP_V2)
  if (r->stream) return r->stream->in_closed || r->headers_in.content_length_n == 0;
#endif
  return r->headers_in.content_length_n <= 0 && !r->headers_in.chunked;
}

void ngx_http_pxg_lua_no_continue(ngx_http_request_t *r) { r->expect_tested = 1; }

size_t ngx_http_pxg_lua_streams(void) { return ngx_http_pxg_lua_slots.live; }

int ngx_http_pxg_lua_abi_version(void) { return NGX_HTTP_PXG_LUA_ABI; }
