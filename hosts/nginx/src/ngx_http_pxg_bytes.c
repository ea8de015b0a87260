/* SPDX-License-Identifier: Apache-2.0 */

/* Bytes of bodies between nginx's chains and the engine. */

#include "ngx_http_pxg.h"

static const ngx_buf_tag_t ngx_http_pxg_tag = (ngx_buf_tag_t)&ngx_http_proxy_golang_module;

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

ngx_int_t ngx_http_pxg_take_one(ngx_http_pxg_ctx_t *ctx, pxg_out *out) {
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
