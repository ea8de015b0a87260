/* SPDX-License-Identifier: Apache-2.0 */

#include "ngx_http_pxg.h"

static ngx_http_request_body_filter_pt ngx_http_pxg_next_request_body_filter;

/* nginx calls with NULL to hear whether something moved, and does not end its reading before the last buffer has come
 * out: so bytes can be withheld here, with buffering and without. */
static ngx_int_t ngx_http_pxg_request_body_filter(ngx_http_request_t *r, ngx_chain_t *in) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r);
  ngx_chain_t *out;
  ngx_uint_t ended = 0;
  ngx_int_t rc;

  if (ctx == NULL || ctx->finished) return ngx_http_pxg_next_request_body_filter(r, in);
  ngx_http_pxg_count_body(ctx, PXG_DIR_REQUEST, in);
  if (ctx->local || ctx->reset) { /* Drained unseen. */
    return ngx_http_pxg_next_request_body_filter(r, in);
  }
  if (ctx->request_fed && in && in->buf->last_buf && ngx_buf_size(in->buf) == 0 && !ctx->out[PXG_DIR_REQUEST])
    return ngx_http_pxg_next_request_body_filter(r, in); /* content-length: 0 */

  r->request_body->filter_need_buffering = 1;
  if (ngx_http_pxg_feed(ctx, PXG_DIR_REQUEST, in, &ended) != NGX_OK) return NGX_HTTP_INTERNAL_SERVER_ERROR;
  if (ended && !ctx->request_fed) {
    ctx->request_fed = 1;
    pxg_stream_end(ctx->stream, PXG_DIR_REQUEST, false);
    if (ngx_http_pxg_pump(ctx) != NGX_OK) return NGX_HTTP_INTERNAL_SERVER_ERROR;
  }
  if (ctx->reset) return NGX_HTTP_CLOSE;

  out = ctx->out[PXG_DIR_REQUEST];
  ctx->out[PXG_DIR_REQUEST] = NULL;
  if (ctx->local && out == NULL && ctx->reading) {
    /* A reply instead of a body that was waited for: nothing of it leaves, but the reading has to end. */
    out = ngx_alloc_chain_link(r->pool);
    if (out == NULL || (out->buf = ngx_calloc_buf(r->pool)) == NULL) return NGX_HTTP_INTERNAL_SERVER_ERROR;
    out->buf->last_buf = 1;
    out->next = NULL;
  }
  if (ctx->request_ended && !r->request_body_no_buffering && r->headers_in.content_length_n != ctx->passed[0] &&
      ngx_http_pxg_fields_length(r, PXG_DIR_REQUEST, ctx->passed[PXG_DIR_REQUEST]) != NGX_OK)
    return NGX_HTTP_INTERNAL_SERVER_ERROR;

  rc = ngx_http_pxg_next_request_body_filter(r, out);
  ngx_chain_update_chains(r->pool, &ctx->free[PXG_DIR_REQUEST], &ctx->busy[PXG_DIR_REQUEST], &out,
                          (ngx_buf_tag_t)&ngx_http_proxy_golang_module);
  return rc;
}

void ngx_http_pxg_request_body_init(void) {
  ngx_http_pxg_next_request_body_filter = ngx_http_top_request_body_filter;
  ngx_http_top_request_body_filter = ngx_http_pxg_request_body_filter;
}
