/* SPDX-License-Identifier: Apache-2.0 */

/* The response. The filter of headers stands where modules outside nginx stand, behind that of conditions and before
 * all that nginx makes of a response; the filter of bodies is the first of all, so that ranges are cut from what guests
 * let go, and nothing of a body passes a filter before its head. A filter of headers cannot make its caller wait: while
 * a guest holds the head, the caller goes on with the body, which is stopped here (the gate). */

#include "ngx_http_pxg.h"

static ngx_http_output_header_filter_pt ngx_http_pxg_next_header_filter;
static ngx_http_output_body_filter_pt ngx_http_pxg_next_body_filter;

/* Room to read files for guests, as nginx's output_buffers are preset. */
static const ngx_bufs_t ngx_http_pxg_buffers = {2, 32 << 10};

static ngx_uint_t ngx_http_pxg_bodiless(ngx_http_request_t *r) {
  return r->method == NGX_HTTP_HEAD || r->headers_out.status == NGX_HTTP_NO_CONTENT ||
         r->headers_out.status == NGX_HTTP_NOT_MODIFIED;
}

/* An error page may be another upstream's, or of its cache: then nginx only gives the status. */
static ngx_uint_t ngx_http_pxg_is_local(const ngx_http_request_t *r) {
  return r->err_status && !(r->upstream && (r->upstream->cleanup || r->cached));
}

uint32_t ngx_http_pxg_response_flags(ngx_http_request_t *r) {
  uint32_t local = ngx_http_pxg_is_local(r) ? PXG_HEAD_LOCAL : 0;

  if (r->headers_out.status == NGX_HTTP_SWITCHING_PROTOCOLS) return local | PXG_HEAD_UPGRADED;
  return ngx_http_pxg_bodiless(r) || r->headers_out.content_length_n == 0 ? local | PXG_HEAD_ENDS : local;
}

static ngx_int_t ngx_http_pxg_fail(ngx_http_pxg_ctx_t *ctx) {
  ctx->reset = 1;
  ctx->request->connection->error = 1;
  ngx_http_pxg_after(ctx);
  return NGX_ERROR;
}

/* ---- The head ------------------------------------------------------------------------------------------------------ */

/* Whether a body follows is what the client asked, whatever a guest made of the method: its answer to HEAD has none, and
 * what was asked with a guest's HEAD has none to send, whatever length it names. */
static void ngx_http_pxg_as_asked(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;

  if (ctx->method == NGX_HTTP_HEAD) {
    r->method = NGX_HTTP_HEAD;
  } else if (r->method == NGX_HTTP_HEAD) {
    ngx_http_clear_content_length(r);
    ngx_http_clear_accept_ranges(r);
    r->headers_out.content_length_n = 0;
  }
}

/* A message that ended at its head does so with any status that a guest gives it: nobody has a body for it. */
static void ngx_http_pxg_end_at_head(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;

  if (!ctx->end_at_head || ctx->local || ctx->upgraded || ngx_http_pxg_bodiless(r) ||
      r->headers_out.content_length_n == 0)
    return;
  ngx_http_clear_content_length(r);
  ngx_http_clear_accept_ranges(r);
  r->headers_out.content_length_n = 0;
  r->expect_trailers = 0;
  r->header_only = 1;
}

static ngx_int_t ngx_http_pxg_send_head(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_http_pxg_flow_t *f = &ctx->flow[PXG_DIR_RESPONSE];

  ctx->head_sent = 1;
  if (ctx->header_only) r->header_only = ctx->header_only = 0;
  ngx_http_pxg_end_at_head(ctx);
  if (ctx->send) {
    r->connection->send = ctx->send;
    r->connection->write->ready = 1;
    ctx->send = NULL;
  }
  /* A message that ends at its head still has nginx's own last buffer. */
  if (!ctx->local && ctx->end_at_head && f->out && f->out == f->last_out && ngx_buf_size(&f->out->buf) == 0) {
    ngx_http_pxg_drop(ctx, PXG_DIR_RESPONSE, 1);
    ctx->aside = 1;
  }
  /* Several ranges need the body in one buffer, and not in the pieces that guests let go, before this or later. */
  if (f->out || pxg_stream_sees_body(ctx->stream, PXG_DIR_RESPONSE)) r->single_range = 1;
  return ngx_http_pxg_next_header_filter(r);
}

/* The tunnel that follows an upgrade does not pass the filters: while the head is held, nothing may be written past it. */
static ssize_t ngx_http_pxg_no_send(ngx_connection_t *c, u_char *buf, size_t size) {
  c->write->ready = 0;
  return NGX_AGAIN;
}

static void ngx_http_pxg_discard(ngx_chain_t *cl) {
  for (; cl; cl = cl->next) cl->buf->pos = cl->buf->last, cl->buf->file_pos = cl->buf->file_last;
}

/* What came of the body and has not been looked at. */
static void ngx_http_pxg_discard_body(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_pxg_discard(ctx->gate);
  ngx_http_pxg_discard(ctx->reader.in);
  ctx->gate = ctx->reader.in = NULL;
  ngx_http_pxg_drop(ctx, PXG_DIR_RESPONSE, 0);
}

/* nginx answers in another's stead, by an error page for example. */
static void ngx_http_pxg_head_again(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_pxg_discard_body(ctx);
  ngx_http_pxg_drop(ctx, PXG_DIR_RESPONSE, 1);
  ctx->response_head = ctx->head_sent = ctx->response_ended = ctx->response_end_fed = 0;
  ctx->cut = ctx->upgraded = ctx->aside = ctx->end_at_head = ctx->handing = 0;
  ctx->refused = NGX_OK;
}

static ngx_int_t ngx_http_pxg_header_filter(ngx_http_request_t *r) {
  ngx_uint_t *kind = ngx_http_pxg_any(r);
  ngx_http_pxg_ctx_t *ctx = (ngx_http_pxg_ctx_t *)(void *)kind;
  uint32_t flags;

  if (kind && *kind == NGX_HTTP_PXG_GLANCE) {
    ((ngx_http_pxg_glance_t *)(void *)kind)->response_fed = 1;
    return ngx_http_pxg_next_header_filter(r);
  }
  if (ctx == NULL || ctx->finished || ctx->answered) return ngx_http_pxg_next_header_filter(r);

  if (ctx->response_fed) ngx_http_pxg_head_again(ctx);
  ctx->response_fed = 1;
  ngx_http_pxg_as_asked(ctx);
  flags = ngx_http_pxg_response_flags(r);
  if (flags & PXG_HEAD_UPGRADED) ctx->upgraded = 1;
  if (flags & (PXG_HEAD_UPGRADED | PXG_HEAD_ENDS)) ctx->response_end_fed = ctx->end_at_head = 1;
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
  if (!r->header_only &&
      (r->method == NGX_HTTP_HEAD || (ngx_http_pxg_bodiless(r) && r->headers_out.status_line.len == 0)))
    r->header_only = ctx->header_only = 1;
  if (ctx->upgraded && ctx->send == NULL) {
    ctx->send = r->connection->send;
    r->connection->send = ngx_http_pxg_no_send;
  }
  r->buffered |= NGX_HTTP_PXG_BUFFERED;
  ctx->buffered = 1;
  ngx_http_pxg_after(ctx);
  return NGX_OK;
}

/* ---- The body ------------------------------------------------------------------------------------------------------ */

static ngx_uint_t ngx_http_pxg_withheld(ngx_http_pxg_ctx_t *ctx) {
  if (!ctx->response_fed || ctx->cut) return 0;
  if (!ctx->head_sent || ctx->refused) return 1;
  if (ctx->response_ended) return 0;
  return ctx->flow[PXG_DIR_RESPONSE].in || ctx->reader.in || ctx->gate || ctx->local || ctx->response_end_fed ||
         pxg_stream_holds(ctx->stream, PXG_DIR_RESPONSE);
}

/* A filter that is called without bytes sends what it has; nginx's last one takes it amiss if that is nothing. */
static ngx_uint_t ngx_http_pxg_below(ngx_http_request_t *r) {
  return r->out || r->connection->buffered || r->postponed || r->subrequest_ranges ||
         (r->buffered & ~NGX_HTTP_PXG_BUFFERED);
}

static ngx_int_t ngx_http_pxg_next_body(ngx_http_pxg_ctx_t *ctx, ngx_chain_t *in) {
  ngx_http_request_t *r = ctx->request;
  ngx_int_t rc = NGX_OK;

  ngx_http_pxg_count_body(ctx, PXG_DIR_RESPONSE, in);
  /* An upstream may answer before guests have let the end of the request go. All that the client sent is here, so nginx
   * need not close the connection to be rid of the rest. */
  if (ctx->response_ended && ctx->request_fed) r->reading_body = 0;
  ctx->handing = 1;
  if (in || ngx_http_pxg_below(r)) rc = ngx_http_pxg_next_body_filter(r, in);
  ctx->handing = 0;
  ngx_http_pxg_reap(ctx, PXG_DIR_RESPONSE);
  return rc;
}

static ngx_int_t ngx_http_pxg_lend_response(void *data, ngx_chain_t *in) {
  return ngx_http_pxg_lend(data, PXG_DIR_RESPONSE, in) == NGX_OK ? NGX_AGAIN : NGX_ERROR;
}

/* Lends the engine what it can have in memory: files are read as there is room. */
static ngx_int_t ngx_http_pxg_read(ngx_http_pxg_ctx_t *ctx, ngx_chain_t *in) {
  ngx_http_core_loc_conf_t *clcf;
  ngx_chain_t *cl;

  if (ctx->reader.pool == NULL) {
    for (cl = in; cl && (ngx_buf_in_memory(cl->buf) || !cl->buf->in_file); cl = cl->next) { /* void */
    }
    if (cl == NULL) return ngx_http_pxg_lend(ctx, PXG_DIR_RESPONSE, in);
    clcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_core_module);
    ctx->reader.pool = ctx->request->pool;
    ctx->reader.bufs = ngx_http_pxg_buffers;
    ctx->reader.need_in_memory = 1;
    ctx->reader.alignment = clcf->directio_alignment;
    ctx->reader.tag = (ngx_buf_tag_t)&ngx_http_proxy_golang_module;
    ctx->reader.output_filter = ngx_http_pxg_lend_response;
    ctx->reader.filter_ctx = ctx;
  }
  return ngx_output_chain(&ctx->reader, in) == NGX_ERROR ? NGX_ERROR : NGX_OK;
}

/* One round: from what was lent to the engine, and what left that to the next filters. NGX_DECLINED: no more to do. */
static ngx_int_t ngx_http_pxg_move_some(ngx_http_pxg_ctx_t *ctx, ngx_int_t *rc) {
  ngx_http_pxg_flow_t *f = &ctx->flow[PXG_DIR_RESPONSE];
  ngx_chain_t *out;
  ngx_int_t fed;

  if (ctx->answered || ctx->cut || ctx->refused) ngx_http_pxg_discard_body(ctx);
  if (ctx->refused) return NGX_DECLINED;
  if (f->in == NULL && ctx->reader.in && ngx_http_pxg_read(ctx, NULL) != NGX_OK) return NGX_ERROR;
  fed = ngx_http_pxg_feed(ctx, PXG_DIR_RESPONSE);
  if (fed == NGX_ERROR || ctx->reset) return ngx_http_pxg_fail(ctx);
  if (ctx->local && !ctx->answered) {
    ctx->answered = ctx->abandon = 1;
    ngx_http_pxg_discard_body(ctx);
    ngx_http_pxg_after(ctx);
  }
  if (!ctx->head_sent) {
    if (!ctx->response_head) return fed == NGX_OK && (f->in || ctx->reader.in) ? NGX_OK : NGX_DECLINED;
    *rc = ngx_http_pxg_send_head(ctx);
    if (*rc == NGX_ERROR) return NGX_ERROR;
    if (*rc > NGX_OK) { /* A range that cannot be satisfied, for example. */
      ctx->refused = *rc;
      ngx_http_pxg_discard_body(ctx);
      ngx_http_pxg_drop(ctx, PXG_DIR_RESPONSE, 1);
      return NGX_DECLINED;
    }
  }
  if (ctx->request->header_only || ctx->upgraded || ctx->cut) ngx_http_pxg_drop(ctx, PXG_DIR_RESPONSE, 1);
  if (ctx->request->header_only || ctx->upgraded) return NGX_DECLINED;
  ngx_http_pxg_hand_on(ctx, PXG_DIR_RESPONSE, &out);
  *rc = ngx_http_pxg_next_body(ctx, out);
  if (*rc == NGX_ERROR) return NGX_ERROR;
  if (ctx->response_ended && !ctx->answered) ctx->aside = 1;
  if (ctx->open && !ctx->response_ended) {
    pxg_stream_waiting(ctx->stream, ngx_http_pxg_waiting(ctx));
    if (ngx_http_pxg_pump(ctx) != NGX_OK || ctx->reset) return ngx_http_pxg_fail(ctx);
    if (f->out) return NGX_OK;
  }
  if (f->in == NULL && ctx->reader.in && ngx_http_pxg_read(ctx, NULL) != NGX_OK) return NGX_ERROR;
  return ngx_http_pxg_can_feed(ctx, PXG_DIR_RESPONSE) ? NGX_OK : NGX_DECLINED;
}

static ngx_int_t ngx_http_pxg_wait(ngx_http_pxg_ctx_t *ctx) {
  ctx->request->buffered |= NGX_HTTP_PXG_BUFFERED;
  ctx->buffered = 1;
  ngx_http_pxg_after(ctx);
  return NGX_AGAIN;
}

static void ngx_http_pxg_no_wait(ngx_http_pxg_ctx_t *ctx) {
  if (ctx->buffered) ctx->request->buffered &= ~NGX_HTTP_PXG_BUFFERED;
  ctx->buffered = 0;
}

ngx_int_t ngx_http_pxg_move_response(ngx_http_pxg_ctx_t *ctx) {
  ngx_int_t rc = NGX_OK, more;

  ngx_http_pxg_no_wait(ctx);
  do more = ngx_http_pxg_move_some(ctx, &rc);
  while (more == NGX_OK);
  if (more == NGX_ERROR) return NGX_ERROR;
  return ngx_http_pxg_withheld(ctx) ? ngx_http_pxg_wait(ctx) : rc;
}

/* Whether the body has to wait for the head. */
static ngx_uint_t ngx_http_pxg_shut(ngx_http_pxg_ctx_t *ctx) {
  return !ctx->response_head && !ctx->head_sent && !ctx->answered && !ctx->reset &&
         !pxg_stream_wants_body_first(ctx->stream, PXG_DIR_RESPONSE);
}

/* The head said that no body follows, and what follows was made before a guest decided so. */
static ngx_int_t ngx_http_pxg_has_no_body(ngx_http_pxg_ctx_t *ctx, ngx_chain_t *in) {
  ngx_chain_t *cl;

  if (!ctx->head_sent || ctx->answered || !ctx->request->header_only) return 0;
  for (cl = in; cl && ngx_buf_size(cl->buf) == 0; cl = cl->next) { /* void */
  }
  if (cl == NULL) return 0;
  ngx_http_pxg_discard(in);
  ngx_http_pxg_discard_body(ctx);
  ngx_http_pxg_drop(ctx, PXG_DIR_RESPONSE, 1);
  ctx->aside = ctx->cut = ctx->response_ended = 1;
  return 1;
}

static ngx_int_t ngx_http_pxg_body_filter(ngx_http_request_t *r, ngx_chain_t *in) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r);
  ngx_int_t rc;

  if (ctx == NULL || ctx->finished || !ctx->response_fed) return ngx_http_pxg_next_body_filter(r, in);
  if (ctx->handing) { /* A filter below adds something of its own, such as the end behind add_after_body. */
    ngx_http_pxg_count_body(ctx, PXG_DIR_RESPONSE, in);
    return ngx_http_pxg_next_body_filter(r, in);
  }

  if (ctx->gate || ngx_http_pxg_shut(ctx)) {
    if (in && ngx_chain_add_copy(r->pool, &ctx->gate, in) != NGX_OK) return NGX_ERROR;
    if (ngx_http_pxg_shut(ctx)) return ngx_http_pxg_wait(ctx);
    in = ctx->gate;
    ctx->gate = NULL;
  }
  if (ngx_http_pxg_has_no_body(ctx, in)) in = NULL;
  if (ctx->aside || ctx->upgraded) {
    ngx_http_pxg_no_wait(ctx);
    return ngx_http_pxg_next_body(ctx, in);
  }

  if (ctx->head_sent && !ctx->answered && !ctx->reset && !ctx->cut && ctx->reader.in == NULL &&
      ngx_http_pxg_unseen(ctx, PXG_DIR_RESPONSE)) {
    (void)ngx_http_pxg_worker();
    rc = ngx_http_pxg_pass_by(ctx, PXG_DIR_RESPONSE, in);
    if (rc == NGX_ERROR || ctx->reset) return ngx_http_pxg_fail(ctx);
    if (rc == NGX_DECLINED) {
      ngx_http_pxg_no_wait(ctx);
      ctx->aside = ctx->response_ended;
      return ngx_http_pxg_next_body(ctx, in);
    }
  } else if (ngx_http_pxg_read(ctx, in) != NGX_OK) {
    return NGX_ERROR;
  }
  return ngx_http_pxg_move_response(ctx);
}

void ngx_http_pxg_response_gate(void) {
  if (ngx_http_top_body_filter == ngx_http_pxg_body_filter) return;
  ngx_http_pxg_next_body_filter = ngx_http_top_body_filter;
  ngx_http_top_body_filter = ngx_http_pxg_body_filter;
}

/* ---- Outside the filters ------------------------------------------------------------------------------------------- */

/* Whoever waits for the response to leave looks again: nginx's writer, or the upstream's pipe. They begin `send_timeout`
 * anew, which only a client that takes something may have. */
static void ngx_http_pxg_write_on(ngx_http_request_t *r) {
  ngx_connection_t *c = r->connection;
  ngx_event_t *ev = c->write;
  ngx_uint_t waits = ev->timer_set && !ev->delayed;
  ngx_msec_t at = ev->timer.key;
  ngx_msec_int_t left;
  off_t sent = c->sent;

  r->write_event_handler(r);
  if (!waits || !ev->timer_set || ev->delayed || c->sent != sent || ev->timer.key == at) return;
  left = (ngx_msec_int_t)(at - ngx_current_msec);
  ngx_del_timer(ev);
  ngx_add_timer(ev, left > 0 ? (ngx_msec_t)left : 1);
}

void ngx_http_pxg_response_resume(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_int_t rc = ngx_http_pxg_move_response(ctx);

  if (rc != NGX_ERROR && ctx->gate) rc = ngx_http_pxg_body_filter(r, NULL);
  if (rc == NGX_ERROR) {
    if (!ctx->reset) ngx_http_finalize_request(r, NGX_ERROR);
    return;
  }
  ngx_http_pxg_write_on(r);
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
}
