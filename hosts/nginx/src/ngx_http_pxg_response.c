/* SPDX-License-Identifier: Apache-2.0 */

/* The response, as a filter of headers and bodies. A filter of headers cannot make its caller wait: while a guest holds
 * the head, the caller goes on with the body, which is stopped before the first filter of all (the gate), so that
 * ranges, copies of files and whatever else is decided by the head come after it. */

#include "ngx_http_pxg.h"

static ngx_http_output_header_filter_pt ngx_http_pxg_next_header_filter;
static ngx_http_output_body_filter_pt ngx_http_pxg_next_body_filter;
static ngx_http_output_body_filter_pt ngx_http_pxg_first_body_filter;

static ngx_uint_t ngx_http_pxg_bodiless(ngx_http_request_t *r) {
  return r->method == NGX_HTTP_HEAD || r->headers_out.status == NGX_HTTP_NO_CONTENT ||
         r->headers_out.status == NGX_HTTP_NOT_MODIFIED;
}

static ngx_int_t ngx_http_pxg_fail(ngx_http_pxg_ctx_t *ctx) {
  ctx->reset = 1;
  ctx->request->connection->error = 1;
  ngx_http_pxg_after(ctx);
  return NGX_ERROR;
}

/* ---- The head ------------------------------------------------------------------------------------------------------ */

/* Guests see bodies in memory. */
static void ngx_http_pxg_in_memory(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;

  if (!pxg_stream_sees_body(ctx->stream, PXG_DIR_RESPONSE)) return;
  r->filter_need_in_memory = 1;
  ngx_http_pxg_range_allow(ctx);
}

static ngx_int_t ngx_http_pxg_send_head(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_int_t rc;

  ctx->head_sent = 1;
  if (ctx->header_only) r->header_only = ctx->header_only = 0; /* Filters of the head go by it. */
  if (!ctx->local) ngx_http_pxg_in_memory(ctx);
  if (ctx->send) {
    r->connection->send = ctx->send;
    r->connection->write->ready = 1;
    ctx->send = NULL;
  }
  rc = ngx_http_pxg_next_header_filter(r);
  return ngx_http_pxg_range_take(ctx) == NGX_OK ? rc : NGX_ERROR;
}

/* The tunnel that follows an upgrade does not pass the filters: while the head is held, nothing may be written past it. */
static ssize_t ngx_http_pxg_no_send(ngx_connection_t *c, u_char *buf, size_t size) {
  c->write->ready = 0;
  return NGX_AGAIN;
}

/* nginx answers in another's stead, by an error page for example. */
static void ngx_http_pxg_head_again(ngx_http_pxg_ctx_t *ctx) {
  ngx_chain_t *cl;

  ngx_http_pxg_drop(ctx, PXG_DIR_RESPONSE, 1);
  for (cl = ctx->gate; cl; cl = cl->next) cl->buf->pos = cl->buf->last, cl->buf->file_pos = cl->buf->file_last;
  ctx->gate = NULL;
  ctx->response_head = ctx->head_sent = ctx->response_ended = ctx->response_end_fed = 0;
  ctx->cut = ctx->upgraded = ctx->aside = ctx->ranges = ctx->ranged = 0;
  ctx->refused = 0;
}

static ngx_int_t ngx_http_pxg_header_filter(ngx_http_request_t *r) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r);
  uint32_t flags = 0;

  if (ctx == NULL || ctx->finished || ctx->answered) return ngx_http_pxg_next_header_filter(r);

  if (ctx->response_fed) ngx_http_pxg_head_again(ctx);
  ctx->response_fed = 1;
  if (r->headers_out.status == NGX_HTTP_SWITCHING_PROTOCOLS)
    flags |= PXG_HEAD_UPGRADED, ctx->upgraded = 1;
  else if (ngx_http_pxg_bodiless(r) || r->headers_out.content_length_n == 0)
    flags |= PXG_HEAD_ENDS;
  if (flags & (PXG_HEAD_UPGRADED | PXG_HEAD_ENDS)) ctx->response_end_fed = 1;
  if (r->err_status) flags |= PXG_HEAD_LOCAL;
  if (ctx->may_trail && !(flags & PXG_HEAD_ENDS) && ngx_http_pxg_receives_trailers(r)) r->expect_trailers = 1;
  (void)ngx_http_pxg_worker();
  pxg_stream_head(ctx->stream, PXG_DIR_RESPONSE, flags);
  if (ngx_http_pxg_pump(ctx) != NGX_OK || ctx->reset) return ngx_http_pxg_fail(ctx);
  if (ctx->local) {
    /* Whoever sent the head ends what it does at a status above NGX_OK. */
    return ngx_http_pxg_move_response(ctx) == NGX_ERROR ? NGX_ERROR : NGX_HTTP_OK;
  }
  if (ctx->response_head) return ngx_http_pxg_send_head(ctx);

  /* Held. Callers look at header_only next, which the last header filter would have set. */
  if (ngx_http_pxg_bodiless(r) && !r->header_only) r->header_only = ctx->header_only = 1;
  if (ctx->upgraded && ctx->send == NULL) {
    ctx->send = r->connection->send;
    r->connection->send = ngx_http_pxg_no_send;
  }
  if (pxg_stream_wants_body_first(ctx->stream, PXG_DIR_RESPONSE)) ngx_http_pxg_in_memory(ctx);
  r->buffered |= NGX_HTTP_PXG_BUFFERED;
  ctx->buffered = 1;
  ngx_http_pxg_after(ctx);
  return NGX_OK;
}

/* ---- The body ------------------------------------------------------------------------------------------------------ */

static ngx_uint_t ngx_http_pxg_withheld(ngx_http_pxg_ctx_t *ctx) {
  if (!ctx->response_fed || ctx->cut) return 0;
  if (!ctx->head_sent) return 1;
  if (ctx->response_ended) return 0;
  return ctx->flow[PXG_DIR_RESPONSE].in || ctx->gate || ctx->local || ctx->response_end_fed ||
         pxg_stream_holds(ctx->stream, PXG_DIR_RESPONSE);
}

/* A filter that is called without bytes sends what it has; nginx's last one takes it amiss if that is nothing. */
static ngx_uint_t ngx_http_pxg_below(ngx_http_request_t *r) {
  return r->out || r->connection->buffered || r->postponed || (r->buffered & ~(NGX_HTTP_PXG_BUFFERED | NGX_HTTP_COPY_BUFFERED));
}

static ngx_int_t ngx_http_pxg_next_body(ngx_http_pxg_ctx_t *ctx, ngx_chain_t *in) {
  ngx_http_request_t *r = ctx->request;
  ngx_int_t rc = NGX_OK;

  ngx_http_pxg_count_body(ctx, PXG_DIR_RESPONSE, in);
  if (ngx_http_pxg_range_cut(ctx, &in) != NGX_OK) return NGX_ERROR;
  /* An upstream may answer before guests have let the end of the request go. All that the client sent is here, so nginx
   * need not close the connection to be rid of the rest. */
  if (ctx->response_ended && ctx->request_fed) r->reading_body = 0;
  if (in || ngx_http_pxg_below(r)) rc = ngx_http_pxg_next_body_filter(r, in);
  ngx_http_pxg_reap(ctx, PXG_DIR_RESPONSE);
  return rc;
}

/* One round: from what was lent to the engine, and what left that to the next filters. NGX_DECLINED: no more to do. */
static ngx_int_t ngx_http_pxg_move_some(ngx_http_pxg_ctx_t *ctx, ngx_int_t *rc) {
  ngx_http_request_t *r = ctx->request;
  ngx_chain_t *out;
  ngx_int_t fed;

  if (ctx->refused || ctx->answered || ctx->cut || ctx->response_ended) ngx_http_pxg_drop(ctx, PXG_DIR_RESPONSE, ctx->cut);
  fed = ngx_http_pxg_feed(ctx, PXG_DIR_RESPONSE);
  if (fed == NGX_ERROR || ctx->reset) return ngx_http_pxg_fail(ctx);
  if (ctx->local && !ctx->answered) {
    ctx->answered = ctx->abandon = 1;
    ngx_http_pxg_drop(ctx, PXG_DIR_RESPONSE, 0);
    ngx_http_pxg_after(ctx);
  }
  if (!ctx->head_sent && !ctx->refused) {
    if (!ctx->response_head) return fed;
    *rc = ngx_http_pxg_send_head(ctx);
    if (*rc == NGX_ERROR) return NGX_ERROR;
    if (*rc > NGX_OK) { /* A range that is not there. Whoever sent the head has gone on, so this is said later. */
      ctx->refused = *rc;
      ctx->head_sent = 0;
      ngx_http_pxg_after(ctx);
    }
  }
  if (ctx->refused) {
    ngx_http_pxg_drop(ctx, PXG_DIR_RESPONSE, 1);
    return NGX_DECLINED;
  }
  if (r->header_only || ctx->upgraded) {
    ngx_http_pxg_drop(ctx, PXG_DIR_RESPONSE, 1);
    return NGX_DECLINED;
  }
  ngx_http_pxg_hand_on(ctx, PXG_DIR_RESPONSE, &out);
  *rc = ngx_http_pxg_next_body(ctx, out);
  if (*rc == NGX_ERROR) return NGX_ERROR;
  if (ctx->open && !ctx->response_ended) {
    pxg_stream_waiting(ctx->stream, ngx_http_pxg_waiting(ctx));
    if (ngx_http_pxg_pump(ctx) != NGX_OK || ctx->reset) return ngx_http_pxg_fail(ctx);
    if (ctx->flow[PXG_DIR_RESPONSE].out) return NGX_OK;
  }
  return ctx->flow[PXG_DIR_RESPONSE].in ? fed : NGX_DECLINED;
}

ngx_int_t ngx_http_pxg_move_response(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_int_t rc = NGX_OK, more;

  if (ctx->buffered) r->buffered &= ~NGX_HTTP_PXG_BUFFERED;
  ctx->buffered = 0;
  do more = ngx_http_pxg_move_some(ctx, &rc);
  while (more == NGX_OK);
  if (more == NGX_ERROR) return NGX_ERROR;
  if (!ngx_http_pxg_withheld(ctx)) return rc;
  r->buffered |= NGX_HTTP_PXG_BUFFERED;
  ctx->buffered = 1;
  ngx_http_pxg_after(ctx);
  return NGX_AGAIN;
}

/* What comes after the end is a later filter's own, which takes the way of all bodies. */
static ngx_uint_t ngx_http_pxg_behind(ngx_http_pxg_ctx_t *ctx) {
  return ctx->head_sent && ctx->response_end_fed && ctx->response_ended && ctx->flow[PXG_DIR_RESPONSE].in == NULL &&
         !ctx->local && !ctx->answered && !ctx->reset && !ctx->cut;
}

static ngx_int_t ngx_http_pxg_body_filter(ngx_http_request_t *r, ngx_chain_t *in) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r);
  ngx_int_t rc;

  if (ctx == NULL || ctx->finished || !ctx->response_fed || (ctx->upgraded && ctx->head_sent))
    return ngx_http_pxg_next_body_filter(r, in);
  if (ctx->aside || ngx_http_pxg_behind(ctx)) return ngx_http_pxg_next_body(ctx, in);

  if (ctx->head_sent && !ctx->answered && !ctx->response_ended && !ctx->reset && !ctx->cut &&
      ngx_http_pxg_unseen(ctx, PXG_DIR_RESPONSE)) {
    (void)ngx_http_pxg_worker();
    rc = ngx_http_pxg_pass_by(ctx, PXG_DIR_RESPONSE, in);
    if (rc == NGX_ERROR || ctx->reset) return ngx_http_pxg_fail(ctx);
    if (rc == NGX_DECLINED) {
      if (ctx->buffered) r->buffered &= ~NGX_HTTP_PXG_BUFFERED;
      ctx->buffered = 0;
      ctx->aside = ctx->response_ended;
      return ngx_http_pxg_next_body(ctx, in);
    }
  } else if (ngx_http_pxg_lend(ctx, PXG_DIR_RESPONSE, in) != NGX_OK) {
    return NGX_ERROR;
  }
  return ngx_http_pxg_move_response(ctx);
}

/* ---- The gate ------------------------------------------------------------------------------------------------------ */

static ngx_uint_t ngx_http_pxg_shut(ngx_http_pxg_ctx_t *ctx) {
  return ctx->response_fed && !ctx->response_head && !ctx->head_sent && !ctx->answered && !ctx->reset &&
         !pxg_stream_wants_body_first(ctx->stream, PXG_DIR_RESPONSE);
}

static ngx_int_t ngx_http_pxg_gate(ngx_http_request_t *r, ngx_chain_t *in) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r);

  if (ctx == NULL || ctx->finished || !ctx->response_fed || (ctx->gate == NULL && ctx->head_sent))
    return ngx_http_pxg_first_body_filter(r, in);
  if (in && ngx_chain_add_copy(r->pool, &ctx->gate, in) != NGX_OK) return NGX_ERROR;
  if (ngx_http_pxg_shut(ctx)) {
    ngx_http_pxg_after(ctx);
    return NGX_AGAIN;
  }
  if (!ctx->head_sent) ngx_http_pxg_in_memory(ctx);
  in = ctx->gate;
  ctx->gate = NULL;
  return ngx_http_pxg_first_body_filter(r, in);
}

void ngx_http_pxg_response_gate(void) {
  if (ngx_http_top_body_filter == ngx_http_pxg_gate) return;
  ngx_http_pxg_first_body_filter = ngx_http_top_body_filter;
  ngx_http_top_body_filter = ngx_http_pxg_gate;
}

/* ---- Outside the filters ------------------------------------------------------------------------------------------- */

void ngx_http_pxg_response_resume(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_int_t rc = ngx_http_pxg_move_response(ctx);

  if (rc != NGX_ERROR && ctx->gate) rc = ngx_http_pxg_gate(r, NULL);
  if (rc == NGX_ERROR) {
    if (!ctx->reset) ngx_http_finalize_request(r, NGX_ERROR);
    return;
  }
  /* Whoever waits for the response to leave looks again: nginx's writer, or the upstream's pipe. */
  r->write_event_handler(r);
}

/* What is left of the body is discarded, or, where its reading had begun, left to the closing of the connection. */
static ngx_int_t ngx_http_pxg_leave_body(ngx_http_request_t *r) {
  ngx_http_request_body_t *rb = r->request_body;

  if (rb == NULL) {
    /* nginx would ask for the body with 100 Continue, to discard it. Whether it comes now is the client's choice. */
    if (r->headers_in.expect && !r->expect_tested) { r->keepalive = 0, r->expect_tested = 1; }
    return ngx_http_discard_request_body(r);
  }
  if (rb->last_saved || (rb->rest == 0 && (rb->buf == NULL || rb->buf->pos == rb->buf->last))) return NGX_OK;
  r->keepalive = 0;
  r->lingering_close = 1;
#if (NGX_HTTP_V2)
  if (r->stream) r->stream->skip_data = 1;
#endif
  return NGX_OK;
}

void ngx_http_pxg_send_reply(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_int_t rc = ngx_http_pxg_leave_body(r);

  ctx->in_access = ctx->reading = 0;
  if (rc == NGX_OK) {
    ctx->response_fed = ctx->response_end_fed = ctx->head_sent = ctx->answered = 1;
    rc = ngx_http_send_header(r);
    if (rc == NGX_OK || rc == NGX_AGAIN) rc = ngx_http_pxg_move_response(ctx);
  }
  ngx_http_finalize_request(r, rc);
}

void ngx_http_pxg_response_init(void) {
  ngx_http_pxg_next_header_filter = ngx_http_top_header_filter;
  ngx_http_top_header_filter = ngx_http_pxg_header_filter;
  ngx_http_pxg_next_body_filter = ngx_http_top_body_filter;
  ngx_http_top_body_filter = ngx_http_pxg_body_filter;
}
