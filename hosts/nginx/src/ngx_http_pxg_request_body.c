/* SPDX-License-Identifier: Apache-2.0 */

/* The request's body, as a filter. nginx calls with NULL to hear whether something moved, waits while buffers that it
 * filled are not consumed, and does not end its reading before the last buffer has come out: so bytes can be withheld
 * here, with its buffering and without. */

#include "ngx_http_pxg.h"

static ngx_http_request_body_filter_pt ngx_http_pxg_next_request_body_filter;

static ngx_int_t ngx_http_pxg_body_length(ngx_http_pxg_ctx_t *ctx) {
  off_t passed = ctx->flow[PXG_DIR_REQUEST].passed;

  if (ctx->request->headers_in.content_length_n == passed) return NGX_OK;
  return ngx_http_pxg_fields_length(ctx->request, PXG_DIR_REQUEST, passed);
}

static void ngx_http_pxg_body_complete(ngx_http_request_t *r) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r);

  if (ngx_http_pxg_body_length(ctx) != NGX_OK) {
    ngx_http_finalize_request(r, NGX_HTTP_INTERNAL_SERVER_ERROR);
    return;
  }
  ctx->body_handler(r);
}

/* The body is complete before anything was asked of an upstream: its length is what left the engine. HTTP/2 sets it to
 * what it received after the filters. */
static ngx_int_t ngx_http_pxg_watch_end(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;

  if (!ctx->request_ended || r->reading_body) return NGX_OK;
  if (r->http_version < NGX_HTTP_VERSION_20) return ngx_http_pxg_body_length(ctx);
  if (ctx->body_handler || r->request_body_no_buffering) return NGX_OK;
  ctx->body_handler = r->request_body->post_handler;
  r->request_body->post_handler = ngx_http_pxg_body_complete;
  return NGX_OK;
}

static ngx_int_t ngx_http_pxg_request_body_filter(ngx_http_request_t *r, ngx_chain_t *in) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r);
  ngx_http_pxg_glance_t *glance = ctx ? NULL : ngx_http_pxg_glance(r);
  ngx_chain_t *out;
  ngx_int_t rc, fed;

  if (glance) ngx_http_pxg_glance_request_body(glance, in);
  if (ctx == NULL || ctx->finished) return ngx_http_pxg_next_request_body_filter(r, in);
  ngx_http_pxg_count_body(ctx, PXG_DIR_REQUEST, in);

  if (ctx->request_head && !ctx->local && !ctx->reset && ngx_http_pxg_unseen(ctx, PXG_DIR_REQUEST)) {
    (void)ngx_http_pxg_worker();
    rc = ngx_http_pxg_pass_by(ctx, PXG_DIR_REQUEST, in);
    if (rc == NGX_ERROR) return NGX_HTTP_INTERNAL_SERVER_ERROR;
    if (rc == NGX_DECLINED) {
      rc = ngx_http_pxg_next_request_body_filter(r, in);
      ngx_http_pxg_reap(ctx, PXG_DIR_REQUEST);
      return rc;
    }
  } else if (ngx_http_pxg_lend(ctx, PXG_DIR_REQUEST, in) != NGX_OK) {
    return NGX_HTTP_INTERNAL_SERVER_ERROR;
  }

  r->request_body->filter_need_buffering = 1;
  do {
    fed = ctx->local || ctx->reset ? NGX_DECLINED : ngx_http_pxg_feed(ctx, PXG_DIR_REQUEST);
    if (fed == NGX_ERROR) return NGX_HTTP_INTERNAL_SERVER_ERROR;
    if (ctx->local || ctx->reset) { /* The reading ends there. */
      ngx_http_pxg_drop(ctx, PXG_DIR_REQUEST, 1);
      ngx_http_pxg_after(ctx);
      return NGX_OK;
    }
    if (ngx_http_pxg_watch_end(ctx) != NGX_OK) return NGX_HTTP_INTERNAL_SERVER_ERROR;
    ngx_http_pxg_hand_on(ctx, PXG_DIR_REQUEST, &out);
    rc = ngx_http_pxg_next_request_body_filter(r, out);
    if (rc != NGX_OK) return rc;
    ngx_http_pxg_reap(ctx, PXG_DIR_REQUEST);
  } while (ngx_http_pxg_can_feed(ctx, PXG_DIR_REQUEST));
  if (!ctx->request_ended) ngx_http_pxg_after(ctx);
  return NGX_OK;
}

void ngx_http_pxg_request_body_init(void) {
  ngx_http_pxg_next_request_body_filter = ngx_http_top_request_body_filter;
  ngx_http_top_request_body_filter = ngx_http_pxg_request_body_filter;
}
