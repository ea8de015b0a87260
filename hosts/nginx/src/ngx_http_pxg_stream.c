/* SPDX-License-Identifier: Apache-2.0 */

#include "ngx_http_pxg.h"

static const ngx_buf_tag_t ngx_http_pxg_tag = (ngx_buf_tag_t)&ngx_http_proxy_golang_module;

/* ---- What the engine asks ------------------------------------------------------------------------------------------ */

static pxg_edit ngx_http_pxg_edit(ngx_int_t rc) {
  return rc == NGX_OK ? PXG_EDIT_DONE : rc == NGX_DECLINED ? PXG_EDIT_GONE : PXG_EDIT_NO_MEMORY;
}

static bool ngx_http_pxg_op_view(void *data, int d, bool trailers, const pxg_field **at, size_t *n) {
  ngx_http_pxg_ctx_t *ctx = data;
  ngx_http_pxg_fields_t *f = &ctx->fields[d];

  *at = NULL, *n = 0;
  if (trailers) return true;
  if (ngx_http_pxg_fields_view(f, ctx->request, (ngx_uint_t)d) != NGX_OK) return false;
  *at = f->fields, *n = f->n;
  return true;
}

/* An operation may come before any view was asked for. */
static ngx_http_pxg_fields_t *ngx_http_pxg_edited(void *data, int d) {
  ngx_http_pxg_ctx_t *ctx = data;
  ctx->fields[d].request = ctx->request;
  ctx->fields[d].direction = (ngx_uint_t)d;
  return &ctx->fields[d];
}

static pxg_edit ngx_http_pxg_op_set(void *data, int d, bool trailers, const pxg_str *name, const pxg_str *value) {
  return trailers ? PXG_EDIT_GONE
                  : ngx_http_pxg_edit(ngx_http_pxg_fields_set(ngx_http_pxg_edited(data, d), name, value));
}

static pxg_edit ngx_http_pxg_op_add(void *data, int d, bool trailers, const pxg_str *name, const pxg_str *value) {
  return trailers ? PXG_EDIT_GONE
                  : ngx_http_pxg_edit(ngx_http_pxg_fields_add(ngx_http_pxg_edited(data, d), name, value));
}

static pxg_edit ngx_http_pxg_op_remove(void *data, int d, bool trailers, const pxg_str *name) {
  return trailers ? PXG_EDIT_GONE : ngx_http_pxg_edit(ngx_http_pxg_fields_delete(ngx_http_pxg_edited(data, d), name));
}

static pxg_edit ngx_http_pxg_op_set_at(void *data, int d, bool trailers, size_t index, const pxg_str *value) {
  return trailers ? PXG_EDIT_GONE
                  : ngx_http_pxg_edit(ngx_http_pxg_fields_set_at(ngx_http_pxg_edited(data, d), index, value));
}

static pxg_edit ngx_http_pxg_op_remove_at(void *data, int d, bool trailers, size_t index) {
  return trailers ? PXG_EDIT_GONE
                  : ngx_http_pxg_edit(ngx_http_pxg_fields_delete_at(ngx_http_pxg_edited(data, d), index));
}

static bool ngx_http_pxg_op_commit(void *data, int d, bool trailers) {
  return trailers || ngx_http_pxg_fields_commit(ngx_http_pxg_edited(data, d)) == NGX_OK;
}

static bool ngx_http_pxg_op_length(void *data, int d, int64_t length) {
  ngx_http_pxg_ctx_t *ctx = data;
  return ngx_http_pxg_fields_length(ctx->request, (ngx_uint_t)d, (off_t)length) == NGX_OK;
}

static bool ngx_http_pxg_op_replace(void *data, uint32_t status, const pxg_field *fields, size_t n) {
  ngx_http_pxg_fields_t *f = ngx_http_pxg_edited(data, PXG_DIR_RESPONSE);
  ngx_http_request_t *r = f->request;
  size_t i;

  ngx_http_clean_header(r);
  r->headers_out.status = status;
  r->headers_out.content_type_len = 0;
  r->headers_out.content_type_lowcase = NULL;
  r->allow_ranges = 0;
  if (ngx_list_init(&r->headers_out.headers, r->pool, 20, sizeof(ngx_table_elt_t)) != NGX_OK) return false;
  for (i = 0; i < n; i++)
    if (ngx_http_pxg_fields_add(f, &fields[i].name, &fields[i].value) == NGX_ERROR) return false;
  return ngx_http_pxg_fields_commit(f) == NGX_OK;
}

static const pxg_stream_ops ngx_http_pxg_ops = {
    .view = ngx_http_pxg_op_view,
    .set = ngx_http_pxg_op_set,
    .add = ngx_http_pxg_op_add,
    .remove = ngx_http_pxg_op_remove,
    .set_at = ngx_http_pxg_op_set_at,
    .remove_at = ngx_http_pxg_op_remove_at,
    .commit = ngx_http_pxg_op_commit,
    .length = ngx_http_pxg_op_length,
    .replace = ngx_http_pxg_op_replace,
};

/* ---- Contexts ------------------------------------------------------------------------------------------------------ */

static void ngx_http_pxg_cleanup(void *data) {
  ngx_http_pxg_ctx_t *ctx = data;
  if (ctx->timer.timer_set) ngx_del_timer(&ctx->timer);
  ngx_http_pxg_finish(ctx, PXG_END_ERROR);
  if (ctx->stream) pxg_stream_free(ctx->stream);
  ctx->stream = NULL;
}

ngx_http_pxg_ctx_t *ngx_http_pxg_ctx(ngx_http_request_t *r) {
  ngx_http_pxg_ctx_t *ctx;
  ngx_pool_cleanup_t *cln;

  if (r != r->main) return NULL;
  ctx = ngx_http_get_module_ctx(r, ngx_http_proxy_golang_module);
  if (ctx || !(r->internal || r->filter_finalize || r->error_page || r->uri_changes != NGX_HTTP_MAX_URI_CHANGES + 1))
    return ctx;
  for (cln = r->pool->cleanup; cln; cln = cln->next)
    if (cln->handler == ngx_http_pxg_cleanup) {
      ctx = cln->data;
      ngx_http_set_ctx(r, ctx, ngx_http_proxy_golang_module);
      return ctx;
    }
  return NULL;
}

static void ngx_http_pxg_timer(ngx_event_t *ev) {
  ngx_http_pxg_ctx_t *ctx = ev->data;
  (void)ngx_http_pxg_worker();
  if (ctx->stream == NULL || ctx->finished) return;
  pxg_stream_timer(ctx->stream);
  ngx_http_pxg_resume(ctx);
  ngx_http_pxg_batch();
}

ngx_int_t ngx_http_pxg_open(ngx_http_request_t *r, ngx_http_pxg_ctx_t **to) {
  ngx_http_pxg_loc_conf_t *l = ngx_http_get_module_loc_conf(r, ngx_http_proxy_golang_module);
  pxg_config *chain[PXG_MAX_PLACES];
  ngx_http_pxg_filter_t **f;
  ngx_http_pxg_ctx_t *ctx;
  ngx_pool_cleanup_t *cln;
  pxg_worker *w;
  ngx_uint_t i;

  if (l->chain == NULL) return NGX_DECLINED;
  w = ngx_http_pxg_worker();
  if (w == NULL) return NGX_ERROR;
  f = l->chain->elts;
  for (i = 0; i < l->chain->nelts; i++) {
    chain[i] = f[i]->config;
    if (chain[i] == NULL) {
      ngx_log_error(NGX_LOG_ERR, r->connection->log, 0, "proxy_golang_filter \"%V\" was refused by this worker",
                    &f[i]->name);
      return NGX_ERROR;
    }
  }

  ctx = ngx_pcalloc(r->pool, sizeof(*ctx));
  cln = ngx_pool_cleanup_add(r->pool, 0);
  if (ctx == NULL || cln == NULL) return NGX_ERROR;
  ctx->request = r;
  ctx->stream = pxg_stream_open(w, chain, l->chain->nelts, &ngx_http_pxg_ops, ctx, r->connection->number,
                                r->method == NGX_HTTP_HEAD ? PXG_STREAM_HEAD_METHOD : 0);
  if (ctx->stream == NULL) return NGX_ERROR;
  cln->handler = ngx_http_pxg_cleanup;
  cln->data = ctx;
  ctx->timer.handler = ngx_http_pxg_timer;
  ctx->timer.data = ctx;
  ctx->timer.log = r->connection->log;
  ngx_http_set_ctx(r, ctx, ngx_http_proxy_golang_module);
  *to = ctx;
  return NGX_OK;
}

void ngx_http_pxg_finish(ngx_http_pxg_ctx_t *ctx, uint32_t why) {
  if (ctx->finished || ctx->stream == NULL) return;
  ctx->finished = 1;
  (void)ngx_http_pxg_worker();
  pxg_stream_finish(ctx->stream, why);
}

/* ---- Bytes --------------------------------------------------------------------------------------------------------- */

/* A buffer at the end of what may leave, with `size` bytes of room. */
static ngx_buf_t *ngx_http_pxg_buffer(ngx_http_pxg_ctx_t *ctx, int d, size_t size) {
  ngx_pool_t *pool = ctx->request->pool;
  ngx_chain_t *cl, **ll;
  ngx_buf_t *b;
  u_char *start, *end;

  cl = ngx_chain_get_free_buf(pool, &ctx->free[d]);
  if (cl == NULL) return NULL;
  b = cl->buf;
  start = b->start, end = b->end;
  ngx_memzero(b, sizeof(*b));
  b->start = start, b->end = end;
  b->tag = ngx_http_pxg_tag;
  if (size) {
    if ((size_t)(end - start) < size) {
      b->start = ngx_palloc(pool, size);
      if (b->start == NULL) return NULL;
      b->end = b->start + size;
    }
    b->temporary = 1;
  }
  b->pos = b->last = b->start;
  for (ll = &ctx->out[d]; *ll; ll = &(*ll)->next) { /* void */
  }
  *ll = cl;
  return b;
}

static ngx_int_t ngx_http_pxg_take_bytes(ngx_http_pxg_ctx_t *ctx, pxg_out *out) {
  ngx_buf_t *b;

  if (out->slice.len == 0) return NGX_OK;
  b = ngx_http_pxg_buffer(ctx, out->direction, out->slice.len);
  if (b == NULL) return NGX_ERROR;
  b->last = ngx_cpymem(b->pos, out->slice.ptr, out->slice.len);
  ctx->passed[out->direction] += (off_t)out->slice.len;
  return NGX_OK;
}

static ngx_int_t ngx_http_pxg_take_one(ngx_http_pxg_ctx_t *ctx, pxg_out *out) {
  ngx_buf_t *b;
  ngx_int_t rc;

  if (out->flags & PXG_OUT_FLUSH) ctx->flush = 1;
  switch (out->kind) {
  case PXG_OUT_RESET: ctx->reset = 1; return NGX_OK;
  case PXG_OUT_HEAD:
    if (out->direction == PXG_DIR_REQUEST) {
      ctx->request_head = 1;
    } else {
      ctx->response_head = 1;
      if (out->flags & PXG_OUT_LOCAL) ctx->local = 1;
    }
    return NGX_OK;
  case PXG_OUT_BYTES:
    rc = ngx_http_pxg_take_bytes(ctx, out);
    pxg_slice_drop(&out->slice);
    return rc;
  case PXG_OUT_END:
    if (out->direction == PXG_DIR_REQUEST)
      ctx->request_ended = 1;
    else
      ctx->response_ended = 1;
    b = ngx_http_pxg_buffer(ctx, out->direction, 0);
    if (b == NULL) return NGX_ERROR;
    b->last_buf = 1;
    return NGX_OK;
  }
  return NGX_ERROR;
}

static void ngx_http_pxg_set_timer(ngx_http_pxg_ctx_t *ctx) {
  uint64_t at = pxg_stream_deadline(ctx->stream), now;

  if (at == 0) {
    if (ctx->timer.timer_set) ngx_del_timer(&ctx->timer);
    return;
  }
  now = ngx_http_pxg_now();
  ngx_add_timer(&ctx->timer, at > now ? (ngx_msec_t)((at - now + 999999) / 1000000) : 1);
}

ngx_int_t ngx_http_pxg_pump(ngx_http_pxg_ctx_t *ctx) {
  ngx_int_t rc = NGX_OK;
  pxg_out out;

  while (rc == NGX_OK && pxg_take(ctx->stream, &out)) rc = ngx_http_pxg_take_one(ctx, &out);
  pxg_stream_keep(ctx->stream);
  ngx_http_pxg_set_timer(ctx);
  ngx_http_pxg_batch();
  return rc;
}

ngx_int_t ngx_http_pxg_feed(ngx_http_pxg_ctx_t *ctx, int direction, ngx_chain_t *in, ngx_uint_t *ended) {
  enum { NGX_HTTP_PXG_SLICES = 32 };
  pxg_slice slices[NGX_HTTP_PXG_SLICES];
  ngx_chain_t *cl, *from = in;
  size_t n = 0;

  (void)ngx_http_pxg_worker();
  for (cl = in; cl; cl = cl->next) {
    ngx_buf_t *b = cl->buf;
    if (ngx_buf_in_memory(b) && b->last > b->pos)
      slices[n++] = (pxg_slice){.ptr = b->pos, .len = (size_t)(b->last - b->pos), .lent = true};
    else if (ngx_buf_size(b) > 0) {
      ngx_log_error(NGX_LOG_ALERT, ctx->request->connection->log, 0, "proxy_golang: a body buffer is not in memory");
      return NGX_ERROR;
    }
    if (b->flush) ctx->flush = 1;
    if (b->last_buf) *ended = 1;
    if (n == NGX_HTTP_PXG_SLICES || cl->next == NULL) {
      if (n) {
        pxg_stream_bytes(ctx->stream, direction, slices, n);
        if (ngx_http_pxg_pump(ctx) != NGX_OK) return NGX_ERROR;
      }
      n = 0;
      for (; from != cl->next; from = from->next) {
        from->buf->pos = from->buf->last;
        from->buf->file_pos = from->buf->file_last;
      }
    }
  }
  return NGX_OK;
}

/* ---- Resumption ---------------------------------------------------------------------------------------------------- */

void ngx_http_pxg_resume(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_connection_t *c = r->connection;

  if (ctx->finished) return;
  ngx_http_set_log_request(c->log, r);
  if (ngx_http_pxg_pump(ctx) != NGX_OK) ctx->reset = 1;

  /* Each step may end the request; the count keeps its memory until all are done. */
  r->main->count++;
  if (ctx->reset && !ctx->in_access) {
    c->error = 1;
    ngx_http_finalize_request(r, NGX_HTTP_CLOSE);
    ngx_http_finalize_request(r, NGX_DONE);
    ngx_http_run_posted_requests(c);
    return;
  }
  if (ctx->in_access) {
    if (ctx->request_head || ctx->local || ctx->reset || pxg_stream_wants_body_first(ctx->stream)) {
      r->read_event_handler = ngx_http_block_reading;
      ngx_http_core_run_phases(r);
    }
  } else {
    if (r->request_body && !r->request_body->last_saved && (ctx->out[PXG_DIR_REQUEST] || ctx->local))
      r->read_event_handler(r);
    if (!ctx->finished && ctx->response_fed) ngx_http_pxg_response_resume(ctx);
  }
  ngx_http_finalize_request(r, NGX_DONE);
  ngx_http_run_posted_requests(c);
}
