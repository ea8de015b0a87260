/* SPDX-License-Identifier: Apache-2.0 */

#include "ngx_http_pxg.h"

static void ngx_http_pxg_body_read(ngx_http_request_t *r) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r);

  if (ctx) ctx->reading = 0;
  r->write_event_handler = ngx_http_core_run_phases;
  ngx_http_core_run_phases(r);
}

static ngx_int_t ngx_http_pxg_start_stream(ngx_http_request_t *r, ngx_http_pxg_ctx_t **to) {
  ngx_http_pxg_ctx_t *ctx;
  ngx_int_t rc = ngx_http_pxg_open(r, to);

  if (rc != NGX_OK) return rc;
  ctx = *to;
  ngx_http_pxg_attributes_open(ctx);
  if (ngx_http_pxg_fields_normalize(r) != NGX_OK) return NGX_ERROR;
  ngx_uint_t bodiless = r->headers_in.content_length_n <= 0 && !r->headers_in.chunked;
  ctx->request_fed = bodiless;
  pxg_stream_head(ctx->stream, PXG_DIR_REQUEST, bodiless ? PXG_HEAD_ENDS : 0);
  return ngx_http_pxg_pump(ctx);
}

/* Until the guest has decided. */
static ngx_int_t ngx_http_pxg_hold(ngx_http_request_t *r) {
  r->read_event_handler = ngx_http_test_reading;
  /* A client that went away together with its last bytes brings no further event. */
  if (r->connection->read->pending_eof && !r->connection->read->posted) {
    ngx_post_event(r->connection->read, &ngx_posted_events);
  }
  return NGX_AGAIN;
}

static ngx_int_t ngx_http_pxg_past_glance(ngx_http_pxg_glance_t *g) {
  if (g->engine.waiting) return ngx_http_pxg_hold(g->request);
  return g->reset ? NGX_HTTP_CLOSE : NGX_DECLINED;
}

/* Runs again each time the stream moves on, and for the new location after an internal redirect. */
ngx_int_t ngx_http_pxg_access_handler(ngx_http_request_t *r) {
  ngx_http_pxg_ctx_t *ctx;
  ngx_uint_t *kind;
  ngx_int_t rc;

  if (r != r->main) return NGX_DECLINED;
  kind = ngx_http_pxg_any(r);
  if (kind && *kind == NGX_HTTP_PXG_GLANCE) return ngx_http_pxg_past_glance((ngx_http_pxg_glance_t *)(void *)kind);
  ctx = (ngx_http_pxg_ctx_t *)(void *)kind;
  if (ctx == NULL) {
    rc = ngx_http_pxg_glance_start(r, &ctx);
    if (rc == NGX_AGAIN || (rc == NGX_OK && ctx == NULL)) return ngx_http_pxg_past_glance(ngx_http_pxg_any(r));
    if (rc == NGX_DECLINED) rc = ngx_http_pxg_start_stream(r, &ctx);
    if (rc == NGX_DECLINED) return rc;
    if (rc != NGX_OK) return NGX_HTTP_INTERNAL_SERVER_ERROR;
  } else if (ctx->request_head && !ctx->in_access) {
    if (r->internal) pxg_stream_redirected(ctx->stream);
    return ngx_http_pxg_reroute(ctx);
  } else if (ctx->reading) {
    /* An error page for a body that nginx would not read on: guests that wait for its end do not keep that back. */
    return NGX_DECLINED;
  }

  ctx->in_access = 0;
  if (ctx->reset) return NGX_HTTP_CLOSE;
  if (ctx->local) {
    ngx_http_pxg_send_reply(ctx);
    return NGX_DONE;
  }
  /* A client's framing is not that of a request which a guest resizes: nginx gets it whole, with its new length. */
  ngx_uint_t resized = ctx->request_head && ctx->resized;
  if (ctx->request_head && !(resized && !ctx->request_fed && r->request_body == NULL)) return ngx_http_pxg_reroute(ctx);

  if (!ctx->request_fed && r->request_body == NULL &&
      (resized || pxg_stream_wants_body_first(ctx->stream, PXG_DIR_REQUEST))) {
    ctx->reading = 1;
    rc = ngx_http_read_client_request_body(r, ngx_http_pxg_body_read);
    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) return rc;
    ngx_http_finalize_request(r, NGX_DONE);
    return NGX_DONE;
  }

  ctx->in_access = 1;
  return ngx_http_pxg_hold(r);
}

static uint32_t ngx_http_pxg_why(ngx_http_request_t *r, ngx_http_pxg_ctx_t *ctx) {
  if (ctx->local) return PXG_END_REPLIED;
  if (r->headers_out.status == NGX_HTTP_CLIENT_CLOSED_REQUEST) return PXG_END_CLIENT_ABORT;
  if (r->connection->timedout) return PXG_END_TIMEOUT;
  if (r->connection->error && !ctx->response_ended) return PXG_END_CLIENT_ABORT;
  if (r->upstream && !ctx->response_ended) return PXG_END_UPSTREAM_RESET;
  return PXG_END_COMPLETE;
}

/* Subrequests that are logged come here, too; they are no streams. */
ngx_int_t ngx_http_pxg_log_handler(ngx_http_request_t *r) {
  ngx_uint_t *kind = ngx_http_pxg_any(r);
  ngx_http_pxg_ctx_t *ctx = (ngx_http_pxg_ctx_t *)(void *)kind;

  if (kind == NULL) return NGX_OK;
  if (*kind == NGX_HTTP_PXG_GLANCE) {
    ngx_http_pxg_glance_finish((ngx_http_pxg_glance_t *)(void *)kind);
    return NGX_OK;
  }
  ngx_http_pxg_check_route(ctx);
  ngx_http_pxg_finish(ctx, ngx_http_pxg_why(r, ctx));
  return NGX_OK;
}
