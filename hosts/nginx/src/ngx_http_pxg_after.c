/* SPDX-License-Identifier: Apache-2.0 */

/* What has to wait until nginx's own functions have returned: ending an exchange that one of them is busy with, and
 * taking back limits that they set behind a filter. */

#include "ngx_http_pxg.h"

void ngx_http_pxg_after(ngx_http_pxg_ctx_t *ctx) {
  if (!ctx->after.posted) { ngx_post_event(&ctx->after, &ngx_posted_events); }
}

/* ---- Replies ------------------------------------------------------------------------------------------------------- */

static ngx_uint_t ngx_http_pxg_has_exchange(ngx_http_request_t *r) {
  return r->upstream && r->upstream->cleanup && *r->upstream->cleanup;
}

/* Ends the exchange with the upstream, and nothing else: its part of the request's count stays with the caller. */
static void ngx_http_pxg_end_exchange(ngx_http_request_t *r) {
  if (!ngx_http_pxg_has_exchange(r)) return;
  r->main->count++;
  (*r->upstream->cleanup)(r);
}

void ngx_http_pxg_answer(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_uint_t exchange = ngx_http_pxg_has_exchange(r);
  ngx_int_t rc;

  ngx_http_pxg_end_exchange(r);
  if (r->connection->read->timer_set) ngx_del_timer(r->connection->read);
  if (!ctx->response_fed) {
    r->read_event_handler = ngx_http_block_reading;
    ngx_http_pxg_send_reply(ctx);
    return;
  }
  rc = ngx_http_pxg_move_response(ctx);
  if (exchange || rc == NGX_ERROR)
    ngx_http_finalize_request(r, rc);
  else
    r->write_event_handler(r);
}

/* ---- An upstream that ended short ---------------------------------------------------------------------------------- */

/* nginx gives up a response that began by closing the connection, without a last buffer: what guests hold of it would
 * wait for the rest. What came before goes its way first. */
static ngx_uint_t ngx_http_pxg_ended_short(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  if (r->subrequest_ranges) return 0; /* The end of slices comes when the last of them is there. */
  return r->upstream && r->upstream->header_sent && !ngx_http_pxg_has_exchange(r) && !ctx->response_end_fed &&
         !ctx->cut && !ctx->local && ctx->gate == NULL && ctx->reader.in == NULL &&
         ctx->flow[PXG_DIR_RESPONSE].in == NULL && !pxg_stream_pends(ctx->stream, PXG_DIR_RESPONSE);
}

static void ngx_http_pxg_cut(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;

  if (!ctx->head_sent) { /* Nothing is lost yet. */
    ngx_http_clean_header(r);
    ngx_http_finalize_request(r, NGX_HTTP_BAD_GATEWAY);
    return;
  }
  ctx->cut = 1;
  (void)ngx_http_pxg_move_response(ctx);
  r->write_event_handler(r);
}

/* ---- Limits of nginx that a guest must not meet -------------------------------------------------------------------- */

static void ngx_http_pxg_hold_reading(ngx_http_request_t *r) { ngx_http_test_reading(r); }

void ngx_http_pxg_read_on(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;

  if (r->read_event_handler == ngx_http_pxg_hold_reading) r->read_event_handler = ctx->read_handler;
  r->read_event_handler(r);
}

/* All that the client could send is here, or no more of it is wanted. */
static void ngx_http_pxg_hold_request(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_event_t *rev = r->connection->read;

  if (r->request_body == NULL || r->request_body->last_saved || ctx->request_ended || ctx->local) return;
  if (!(ctx->request_fed || ctx->flow[PXG_DIR_REQUEST].in) || !pxg_stream_holds(ctx->stream, PXG_DIR_REQUEST)) return;
  if (rev->timer_set) ngx_del_timer(rev);
  if (r->read_event_handler == ngx_http_pxg_hold_reading) return;
  ctx->read_handler = r->read_event_handler;
  r->read_event_handler = ngx_http_pxg_hold_reading;
  /* A client that went away together with its last bytes brings no further event. */
  if (rev->pending_eof && !rev->posted) { ngx_post_event(rev, &ngx_posted_events); }
}

/* The upstream's pipe does not call the filters again for a client that took what it was sent, if nothing of it is the
 * pipe's own. */
static void ngx_http_pxg_write(ngx_http_request_t *r) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r);

  r->write_event_handler = ctx->write_handler;
  if (!r->connection->write->timedout && !r->connection->write->delayed && ngx_http_output_filter(r, NULL) == NGX_ERROR)
    r->connection->error = 1;
  r->write_event_handler(r);
}

static void ngx_http_pxg_hold_response(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_connection_t *c = r->connection;
  ngx_event_t *ev = c->write;

  if (!ctx->buffered) return;
  if (c->buffered & (NGX_LOWLEVEL_BUFFERED | NGX_HTTP_WRITE_BUFFERED)) { /* It is the client who is slow. */
    if (ngx_http_pxg_has_exchange(r) && r->upstream->buffering && ctx->flow[PXG_DIR_RESPONSE].in &&
        r->write_event_handler != ngx_http_pxg_write) {
      ctx->write_handler = r->write_event_handler;
      r->write_event_handler = ngx_http_pxg_write;
    }
    return;
  }
  if (ev->timer_set && !ev->delayed) ngx_del_timer(ev);
  if (!ngx_http_pxg_has_exchange(r) || r->upstream->peer.connection == NULL) return;
  ev = r->upstream->peer.connection->read;
  if (ev->timer_set && ev->ready && !ev->delayed) ngx_del_timer(ev);
}

/* ---- The event ----------------------------------------------------------------------------------------------------- */

void ngx_http_pxg_after_handler(ngx_event_t *ev) {
  ngx_http_pxg_ctx_t *ctx = ev->data;
  ngx_http_request_t *r = ctx->request;
  ngx_connection_t *c = r->connection;

  if (ctx->finished || ngx_http_pxg_is_closed(r)) return;
  (void)ngx_http_pxg_worker();
  ngx_http_set_log_request(c->log, r);
  /* Each step may end the request; the count keeps its memory until all are done. */
  r->main->count++;
  if (ctx->reset) {
    c->error = 1;
    ngx_http_finalize_request(r, NGX_HTTP_CLOSE);
  } else if (ctx->local && !ctx->answered) {
    ngx_http_pxg_answer(ctx);
  } else if (ctx->refused) {
    ngx_int_t rc = ctx->refused;
    ngx_http_pxg_end_exchange(r);
    ngx_http_finalize_request(r, rc);
  } else if (ctx->abandon) {
    ctx->abandon = 0;
    if (ngx_http_pxg_has_exchange(r)) {
      ngx_http_pxg_end_exchange(r);
      ngx_http_finalize_request(r, NGX_OK);
    }
  } else if (ngx_http_pxg_ended_short(ctx)) {
    ngx_http_pxg_cut(ctx);
  } else {
    ngx_http_pxg_hold_request(ctx);
    ngx_http_pxg_hold_response(ctx);
  }
  ngx_http_finalize_request(r, NGX_DONE);
  ngx_http_run_posted_requests(c);
  ngx_http_pxg_batch();
}
