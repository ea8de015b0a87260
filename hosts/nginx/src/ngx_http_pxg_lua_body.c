/* SPDX-License-Identifier: Apache-2.0 */

/* The request's body for a stream of Lua, read without nginx's buffering: piece by piece, no faster than the Lua program
 * asks for it. lua-nginx-module has this (ngx.req.socket) only for bodies of a known length in HTTP/1. */

#include "ngx_http_pxg_lua.h"

static void ngx_http_pxg_lua_body_began(ngx_http_request_t *r) { /* What there is of it is looked at behind the call. */
}

/* nginx's own handlers go back to their places at once: lua-nginx-module resumes its threads by them. */
static ngx_int_t ngx_http_pxg_lua_begin_body(ngx_http_request_t *r) {
  ngx_http_event_handler_pt read = r->read_event_handler, write = r->write_event_handler;
  ngx_int_t rc;

  r->request_body_no_buffering = 1;
  rc = ngx_http_read_client_request_body(r, ngx_http_pxg_lua_body_began);
  r->read_event_handler = read;
  r->write_event_handler = write;
  if (rc < NGX_HTTP_SPECIAL_RESPONSE) r->main->count--; /* Nobody is called back. */
  return rc;
}

/* Once for each wait, also where its thread has been killed. */
static void ngx_http_pxg_lua_body_event(ngx_http_request_t *r) {
  ngx_http_pxg_lua_owner_t *o = ngx_http_pxg_lua_owner_of(r);
  ngx_queue_t *q;

  r->read_event_handler = o->read_handler;
  for (q = ngx_queue_head(&o->streams); q != ngx_queue_sentinel(&o->streams); q = ngx_queue_next(q))
    ngx_http_pxg_lua_post(ngx_queue_data(q, ngx_http_pxg_lua_stream_t, queue));
}

/* Whether there was anything. */
static bool ngx_http_pxg_lua_feed_body(ngx_http_pxg_lua_stream_t *s, ngx_http_request_t *r, bool last) {
  ngx_chain_t *cl = r->request_body->bufs, *next;
  bool fed = last;

  r->request_body->bufs = NULL;
  for (; cl; cl = next) {
    ngx_buf_t *b = cl->buf;
    pxg_slice slice = {.ptr = b->pos, .len = (size_t)(b->last - b->pos), .lent = true};

    next = cl->next;
    ngx_free_chain(r->pool, cl);
    if (!ngx_buf_in_memory(b) || slice.len == 0) continue;
    fed = true;
    s->body_bytes[PXG_DIR_REQUEST] += (off_t)slice.len;
    pxg_stream_bytes(s->stream, PXG_DIR_REQUEST, &slice, 1);
    pxg_stream_keep(s->stream);
    b->pos = b->last; /* nginx may use the buffer again. */
  }
  if (last) pxg_stream_end(s->stream, PXG_DIR_REQUEST, false);
  if (fed) ngx_http_pxg_lua_settle(s);
  return fed;
}

int ngx_http_pxg_lua_read(uint64_t handle, ngx_http_request_t *r) {
  ngx_http_pxg_lua_stream_t *s = ngx_http_pxg_lua_enter(handle, PXG_DIR_REQUEST);
  ngx_http_pxg_lua_owner_t *o;
  ngx_int_t rc;

  if (s == NULL) return PXG_E_STALE;
  if (s->request != r || r != r->main) return PXG_E_STATE;
  o = ngx_http_pxg_lua_owner_of(r);
  if (o->ended || (!o->began && (r->request_body || r->discard_body))) return PXG_E_STATE;
  rc = o->began ? ngx_http_read_unbuffered_request_body(r) : ngx_http_pxg_lua_begin_body(r);
  o->began = 1;
  if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
    o->ended = 1;
    return r->connection->error ? -NGX_HTTP_CLIENT_CLOSED_REQUEST : -(int)rc;
  }
  if (rc == NGX_ERROR) return -NGX_HTTP_INTERNAL_SERVER_ERROR;
  o->ended = rc == NGX_OK;
  if (ngx_http_pxg_lua_feed_body(s, r, rc == NGX_OK)) {
    /* A client is too slow only while it is waited for, and not while a guest has its bytes. */
    if (r->connection->read->timer_set) ngx_del_timer(r->connection->read);
    return 1;
  }
  if (r->read_event_handler != ngx_http_pxg_lua_body_event) {
    o->read_handler = r->read_event_handler;
    r->read_event_handler = ngx_http_pxg_lua_body_event;
  }
  return 0;
}
