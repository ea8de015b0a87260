/* SPDX-License-Identifier: Apache-2.0 */

/* Ranges of responses whose bodies guests see. nginx's own filter cuts a body before any other module gets it, by the
 * head that all have let go; a guest would see the head of the whole, and a part of the body. So nginx decides as ever,
 * and its decision is carried out here, behind the guests. Several ranges it can only cut out of one buffer: such a
 * request is answered by the whole, as if the client had asked for no range. */

#include "ngx_http_pxg.h"

extern ngx_module_t ngx_http_range_body_filter_module;

void ngx_http_pxg_range_allow(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;

  if (r->subrequest_ranges) return; /* Slices cut theirs by themselves, each request of them a part. */
  r->single_range = 1;
  ctx->ranges = 1;
}

/* FIRST-LAST of "bytes FIRST-LAST/LENGTH". */
static ngx_int_t ngx_http_pxg_range_read(ngx_http_pxg_ctx_t *ctx, ngx_str_t *value) {
  u_char *p = value->data + sizeof("bytes ") - 1, *end = value->data + value->len, *dash, *slash;

  if (value->len < sizeof("bytes 0-0/0") - 1) return NGX_ERROR;
  dash = ngx_strlchr(p, end, '-');
  slash = dash ? ngx_strlchr(dash, end, '/') : NULL;
  if (slash == NULL) return NGX_ERROR;
  ctx->range_first = ngx_atoof(p, (size_t)(dash - p));
  ctx->range_end = ngx_atoof(dash + 1, (size_t)(slash - dash - 1));
  if (ctx->range_first == NGX_ERROR || ctx->range_end == NGX_ERROR) return NGX_ERROR;
  ctx->range_end++;
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_range_take(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;

  ctx->ranged = 0;
  if (!ctx->ranges || ngx_http_get_module_ctx(r, ngx_http_range_body_filter_module) == NULL) return NGX_OK;
  if (r->headers_out.content_range == NULL ||
      ngx_http_pxg_range_read(ctx, &r->headers_out.content_range->value) != NGX_OK) {
    ngx_log_error(NGX_LOG_ALERT, r->connection->log, 0, "proxy_golang: nginx cut a range and did not say which");
    return NGX_ERROR;
  }
  ngx_http_set_ctx(r, NULL, ngx_http_range_body_filter_module);
  ctx->ranged = 1;
  ctx->range_at = 0;
  return NGX_OK;
}

/* What of a buffer is in the range: the buffer itself, narrowed, or one without bytes if it says more than bytes do. */
static ngx_int_t ngx_http_pxg_range_narrow(ngx_http_pxg_ctx_t *ctx, ngx_buf_t **to) {
  ngx_buf_t *b = *to;
  off_t size = ngx_buf_size(b), first = ctx->range_at, end = first + size, over;

  ctx->range_at = end;
  if (size == 0) return NGX_OK;
  if (end <= ctx->range_first || first >= ctx->range_end) {
    b->pos = b->last;
    if (b->in_file) b->file_pos = b->file_last;
    *to = NULL;
    if (!b->last_buf && !b->last_in_chain && !b->flush) return NGX_OK;
    *to = ngx_calloc_buf(ctx->request->pool);
    if (*to == NULL) return NGX_ERROR;
    (*to)->last_buf = b->last_buf;
    (*to)->last_in_chain = b->last_in_chain;
    (*to)->flush = b->flush;
    (*to)->sync = 1;
    return NGX_OK;
  }
  over = ctx->range_first - first;
  if (over > 0) {
    if (b->in_file) b->file_pos += over;
    if (ngx_buf_in_memory(b)) b->pos += over;
  }
  over = end - ctx->range_end;
  if (over > 0) {
    if (b->in_file) b->file_last -= over;
    if (ngx_buf_in_memory(b)) b->last -= over;
  }
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_range_cut(ngx_http_pxg_ctx_t *ctx, ngx_chain_t **chain) {
  ngx_chain_t *in = *chain, *cl, **last = chain;
  ngx_buf_t *b;

  if (!ctx->ranged || ctx->local) return NGX_OK;
  *chain = NULL;
  for (; in; in = in->next) {
    b = in->buf;
    if (ngx_http_pxg_range_narrow(ctx, &b) != NGX_OK) return NGX_ERROR;
    if (b == NULL) continue;
    cl = ngx_alloc_chain_link(ctx->request->pool);
    if (cl == NULL) return NGX_ERROR;
    cl->buf = b;
    cl->next = NULL;
    *last = cl;
    last = &cl->next;
  }
  return NGX_OK;
}
