/* SPDX-License-Identifier: Apache-2.0 */

#include "ngx_http_pxg.h"

static ngx_http_output_header_filter_pt ngx_http_pxg_next_header_filter;
static ngx_http_output_body_filter_pt ngx_http_pxg_next_body_filter;

static ngx_uint_t ngx_http_pxg_bodiless(ngx_http_request_t *r) {
  return r->method == NGX_HTTP_HEAD || r->headers_out.status == NGX_HTTP_NO_CONTENT ||
         r->headers_out.status == NGX_HTTP_NOT_MODIFIED;
}

static ngx_int_t ngx_http_pxg_send_head(ngx_http_pxg_ctx_t *ctx) {
  ctx->head_sent = 1;
  return ngx_http_pxg_next_header_filter(ctx->request);
}

/* Hands on what left the engine, and tells nginx whether more is to come from here. */
static ngx_int_t ngx_http_pxg_send_body(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_chain_t *out = ctx->out[PXG_DIR_RESPONSE], *cl;
  ngx_int_t rc;

  if (!ctx->head_sent) {
    r->buffered |= NGX_HTTP_PXG_BUFFERED;
    return NGX_OK;
  }
  ctx->out[PXG_DIR_RESPONSE] = NULL;
  if (ctx->response_ended)
    r->buffered &= ~NGX_HTTP_PXG_BUFFERED;
  else if (pxg_stream_holds(ctx->stream, PXG_DIR_RESPONSE) || ctx->response_end_fed)
    r->buffered |= NGX_HTTP_PXG_BUFFERED;
  else
    r->buffered &= ~NGX_HTTP_PXG_BUFFERED;

  if (ctx->flush && out) {
    for (cl = out; cl->next; cl = cl->next) { /* void */
    }
    cl->buf->flush = 1;
    ctx->flush = 0;
  }
  if (r->header_only) return NGX_OK;
  ngx_http_pxg_count_body(ctx, PXG_DIR_RESPONSE, out);
  rc = ngx_http_pxg_next_body_filter(r, out);
  ngx_chain_update_chains(r->pool, &ctx->free[PXG_DIR_RESPONSE], &ctx->busy[PXG_DIR_RESPONSE], &out,
                          (ngx_buf_tag_t)&ngx_http_proxy_golang_module);
  return rc;
}

static ngx_int_t ngx_http_pxg_header_filter(ngx_http_request_t *r) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r);
  uint32_t flags = 0;

  if (ctx == NULL || ctx->finished || ctx->local) return ngx_http_pxg_next_header_filter(r);

  if (ctx->response_fed) { /* nginx answers in another's stead, an error page for example. */
    ctx->response_head = ctx->head_sent = ctx->response_ended = ctx->response_end_fed = 0;
    ctx->out[PXG_DIR_RESPONSE] = NULL;
  }
  ctx->response_fed = 1;
  if (ngx_http_pxg_bodiless(r)) {
    flags |= PXG_HEAD_ENDS;
    ctx->response_end_fed = 1;
  }
  if (r->err_status) flags |= PXG_HEAD_LOCAL;
  (void)ngx_http_pxg_worker();
  pxg_stream_head(ctx->stream, PXG_DIR_RESPONSE, flags);
  if (ngx_http_pxg_pump(ctx) != NGX_OK) return NGX_ERROR;
  if (ctx->reset) {
    r->connection->error = 1;
    return NGX_ERROR;
  }
  if (ctx->local) ctx->swallow = 1;

  if (pxg_stream_sees_body(ctx->stream, PXG_DIR_RESPONSE) || pxg_stream_holds(ctx->stream, PXG_DIR_RESPONSE)) {
    r->filter_need_in_memory = 1;
    /* Ranges of what a guest may change are not those of the file. */
    ngx_http_clear_accept_ranges(r);
    r->allow_ranges = 0;
  }
  if (ctx->response_head) {
    ngx_int_t rc = ngx_http_pxg_send_head(ctx);
    if (ctx->local && (rc == NGX_OK || rc == NGX_AGAIN)) return ngx_http_pxg_send_body(ctx);
    return rc;
  }
  /* Held. Callers look at header_only next, which the last header filter would have set. */
  if (ngx_http_pxg_bodiless(r)) r->header_only = 1;
  r->buffered |= NGX_HTTP_PXG_BUFFERED;
  return NGX_OK;
}

/* Whether the engine has no use for the bytes, now and from here on. */
static ngx_uint_t ngx_http_pxg_unseen(ngx_http_pxg_ctx_t *ctx) {
  return ctx->head_sent && ctx->out[PXG_DIR_RESPONSE] == NULL && !pxg_stream_holds(ctx->stream, PXG_DIR_RESPONSE) &&
         !pxg_stream_sees_body(ctx->stream, PXG_DIR_RESPONSE);
}

static ngx_int_t ngx_http_pxg_body_filter(ngx_http_request_t *r, ngx_chain_t *in) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r);
  ngx_chain_t *cl;
  ngx_uint_t ended = 0;

  if (ctx == NULL || ctx->finished || !ctx->response_fed) return ngx_http_pxg_next_body_filter(r, in);

  if (ctx->swallow) {
    for (cl = in; cl; cl = cl->next) cl->buf->pos = cl->buf->last, cl->buf->file_pos = cl->buf->file_last;
    return ngx_http_pxg_send_body(ctx);
  }
  if (ngx_http_pxg_unseen(ctx)) {
    for (cl = in; cl; cl = cl->next)
      if (cl->buf->last_buf) ended = 1;
    if (ended && !ctx->response_end_fed) {
      ctx->response_end_fed = 1;
      (void)ngx_http_pxg_worker();
      pxg_stream_end(ctx->stream, PXG_DIR_RESPONSE, false);
      if (ngx_http_pxg_pump(ctx) != NGX_OK) return NGX_ERROR;
      ctx->out[PXG_DIR_RESPONSE] = NULL; /* The end goes with nginx's own last buffer. */
    }
    ngx_http_pxg_count_body(ctx, PXG_DIR_RESPONSE, in);
    return ngx_http_pxg_next_body_filter(r, in);
  }

  if (ngx_http_pxg_feed(ctx, PXG_DIR_RESPONSE, in, &ended) != NGX_OK) return NGX_ERROR;
  if (ended && !ctx->response_end_fed) {
    ctx->response_end_fed = 1;
    pxg_stream_end(ctx->stream, PXG_DIR_RESPONSE, false);
    if (ngx_http_pxg_pump(ctx) != NGX_OK) return NGX_ERROR;
  }
  if (ctx->reset) {
    r->connection->error = 1;
    return NGX_ERROR;
  }
  if (ctx->local) ctx->swallow = 1;
  if (ctx->response_head && !ctx->head_sent) {
    ngx_int_t rc = ngx_http_pxg_send_head(ctx);
    if (rc == NGX_ERROR || rc > NGX_OK) return NGX_ERROR;
  }
  return ngx_http_pxg_send_body(ctx);
}

void ngx_http_pxg_response_resume(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_int_t rc;

  if (!ctx->response_head) return;
  if (ctx->local) ctx->swallow = 1;
  if (!ctx->head_sent) {
    rc = ngx_http_pxg_send_head(ctx);
    if (rc == NGX_ERROR || rc > NGX_OK) {
      ngx_http_finalize_request(r, rc);
      return;
    }
  }
  if (ngx_http_pxg_send_body(ctx) == NGX_ERROR) {
    ngx_http_finalize_request(r, NGX_ERROR);
    return;
  }
  /* Whoever waits for the response to leave looks again: nginx's writer, or the upstream's pipe. */
  r->write_event_handler(r);
}

ngx_int_t ngx_http_pxg_send_reply(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_int_t rc;

  if (r->request_body == NULL) {
    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) return rc;
  }
  ctx->response_fed = ctx->response_end_fed = ctx->head_sent = ctx->swallow = 1;
  rc = ngx_http_send_header(r);
  if (rc == NGX_OK || rc == NGX_AGAIN) {
    if (!r->header_only) rc = ngx_http_output_filter(r, NULL);
  }
  ngx_http_finalize_request(r, rc);
  return NGX_DONE;
}

void ngx_http_pxg_response_init(void) {
  ngx_http_pxg_next_header_filter = ngx_http_top_header_filter;
  ngx_http_top_header_filter = ngx_http_pxg_header_filter;
  ngx_http_pxg_next_body_filter = ngx_http_top_body_filter;
  ngx_http_top_body_filter = ngx_http_pxg_body_filter;
}
