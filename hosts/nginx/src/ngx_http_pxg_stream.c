/* SPDX-License-Identifier: Apache-2.0 */

#include "ngx_http_pxg.h"

static ngx_queue_t ngx_http_pxg_streams; /* Of this process. */

/* ---- Deadlines ----------------------------------------------------------------------------------------------------- */

/* One timer of nginx's for all streams. Nearly every guest answers in time: so a deadline is a place in a list, the timer
 * stays where it is when the stream goes on, and who is late is looked for when it has expired. */
static ngx_queue_t ngx_http_pxg_dues;
static ngx_event_t ngx_http_pxg_timer;
static uint64_t ngx_http_pxg_timer_at;

static void ngx_http_pxg_arm(uint64_t at) {
  uint64_t now;

  if (ngx_http_pxg_timer.timer_set && ngx_http_pxg_timer_at <= at) return;
  /* nginx leaves a timer that is set where it is, if the new time is near. */
  if (ngx_http_pxg_timer.timer_set) ngx_del_timer(&ngx_http_pxg_timer);
  now = ngx_http_pxg_now();
  ngx_http_pxg_timer_at = at;
  ngx_add_timer(&ngx_http_pxg_timer, at > now ? (ngx_msec_t)((at - now + 999999) / 1000000) : 1);
}

static void ngx_http_pxg_late(ngx_http_pxg_due_t *due) {
  ngx_http_pxg_ctx_t *ctx;

  ngx_http_pxg_set_due(due, 0);
  (void)ngx_http_pxg_worker();
  ctx = (ngx_http_pxg_ctx_t *)(void *)due->of;
  if (*due->of == NGX_HTTP_PXG_GLANCE)
    ctx = ngx_http_pxg_glance_stream_or_reset((ngx_http_pxg_glance_t *)(void *)due->of);
  if (ctx == NULL || ctx->stream == NULL || ctx->finished) return;
  pxg_stream_timer(ctx->stream);
  ngx_http_pxg_resume(ctx);
}

static void ngx_http_pxg_expired(ngx_event_t *ev) {
  uint64_t now = ngx_http_pxg_now(), soonest = 0;
  ngx_http_pxg_due_t *due;
  ngx_queue_t late, *q, *next;

  ngx_queue_init(&late);
  for (q = ngx_queue_head(&ngx_http_pxg_dues); q != &ngx_http_pxg_dues; q = next) {
    next = ngx_queue_next(q);
    due = ngx_queue_data(q, ngx_http_pxg_due_t, queue);
    if (due->at <= now) {
      ngx_queue_remove(q);
      ngx_queue_insert_tail(&late, q);
    } else if (soonest == 0 || due->at < soonest) {
      soonest = due->at;
    }
  }
  if (soonest) ngx_http_pxg_arm(soonest);
  /* Each of them may end others, which then leave this list. */
  while (!ngx_queue_empty(&late)) ngx_http_pxg_late(ngx_queue_data(ngx_queue_head(&late), ngx_http_pxg_due_t, queue));
  ngx_http_pxg_batch();
}

void ngx_http_pxg_set_due(ngx_http_pxg_due_t *due, uint64_t at) {
  static ngx_connection_t none = {.fd = (ngx_socket_t)-1}; /* nginx's debug log looks at it. */

  if (at == due->at) return;
  if (ngx_http_pxg_timer.handler == NULL) {
    ngx_queue_init(&ngx_http_pxg_dues);
    ngx_http_pxg_timer.handler = ngx_http_pxg_expired;
    ngx_http_pxg_timer.data = &none;
  }
  if (due->at == 0) { ngx_queue_insert_tail(&ngx_http_pxg_dues, &due->queue); }
  if (at == 0) { ngx_queue_remove(&due->queue); }
  due->at = at;
  /* A worker that is to end waits for requests with deadlines, and not for a timer that is left over. */
  ngx_http_pxg_timer.cancelable = ngx_queue_empty(&ngx_http_pxg_dues);
  ngx_http_pxg_timer.log = ngx_cycle->log;
  if (at) ngx_http_pxg_arm(at);
}

/* ---- Contexts ------------------------------------------------------------------------------------------------------ */

static void ngx_http_pxg_cleanup(void *data) {
  ngx_http_pxg_ctx_t *ctx = data;
  if (ctx->stream) { ngx_queue_remove(&ctx->queue); }
  ngx_http_pxg_set_due(&ctx->due, 0);
  if (ctx->after.posted) { ngx_delete_posted_event(&ctx->after); }
  if (ctx->send) ctx->request->connection->send = ctx->send;
  ngx_http_pxg_finish(ctx, PXG_END_ERROR);
  ngx_http_pxg_give_back(ctx);
  if (ctx->stream) pxg_stream_free(ctx->stream);
  ctx->stream = NULL;
}

void *ngx_http_pxg_search(ngx_http_request_t *r) {
  ngx_pool_cleanup_t *cln;
  void *found = NULL;

  /* The newest comes first: a context before the glance in whose stead it is. */
  for (cln = r->pool->cleanup; cln && found == NULL; cln = cln->next)
    found = cln->handler == ngx_http_pxg_cleanup ? cln->data : (void *)ngx_http_pxg_glance_of(cln);
  if (found) ngx_http_set_ctx(r, found, ngx_http_proxy_golang_module);
  return found;
}

ngx_http_pxg_ctx_t *ngx_http_pxg_ctx_new(ngx_http_request_t *r) {
  ngx_http_pxg_ctx_t *ctx = ngx_pcalloc(r->pool, sizeof(*ctx));

  if (ctx == NULL) return NULL;
  ctx->kind = NGX_HTTP_PXG_CTX;
  ctx->due.of = &ctx->kind;
  ctx->request = r;
  ctx->method = r->method;
  ctx->cleanup = ngx_pool_cleanup_add(r->pool, 0);
  return ctx->cleanup ? ctx : NULL;
}

void ngx_http_pxg_ctx_ready(ngx_http_pxg_ctx_t *ctx) {
  ngx_log_t *log = ctx->request->connection->log;

  if (ngx_http_pxg_streams.next == NULL) { ngx_queue_init(&ngx_http_pxg_streams); }
  ngx_queue_insert_tail(&ngx_http_pxg_streams, &ctx->queue);
  ctx->cleanup->handler = ngx_http_pxg_cleanup;
  ctx->cleanup->data = ctx;
  ctx->after.handler = ngx_http_pxg_after_handler;
  ctx->after.data = ctx;
  ctx->after.log = log;
  ngx_http_set_ctx(ctx->request, ctx, ngx_http_proxy_golang_module);
}

uint32_t ngx_http_pxg_stream_flags(ngx_http_request_t *r) {
  return (r->method == NGX_HTTP_HEAD ? PXG_STREAM_HEAD_METHOD : 0) |
         (ngx_http_pxg_receives_trailers(r) ? PXG_STREAM_RECEIVES_TRAILERS : 0);
}

ngx_int_t ngx_http_pxg_open(ngx_http_request_t *r, ngx_http_pxg_ctx_t **to) {
  ngx_http_pxg_loc_conf_t *l = ngx_http_get_module_loc_conf(r, ngx_http_proxy_golang_module);
  pxg_config *chain[PXG_MAX_PLACES];
  ngx_http_pxg_filter_t **f;
  ngx_http_pxg_ctx_t *ctx;
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

  ctx = ngx_http_pxg_ctx_new(r);
  if (ctx == NULL) return NGX_ERROR;
  ctx->stream = pxg_stream_open(w, chain, l->chain->nelts, &ngx_http_pxg_ops, ctx, r->connection->number,
                                ngx_http_pxg_stream_flags(r));
  if (ctx->stream == NULL) return NGX_ERROR;
  for (i = 0; i < l->chain->nelts; i++)
    if (f[i]->response_trailers) ctx->may_trail = 1;
  ngx_http_pxg_ctx_ready(ctx);
  *to = ctx;
  return NGX_OK;
}

void ngx_http_pxg_finish(ngx_http_pxg_ctx_t *ctx, uint32_t why) {
  if (ctx->finished || ctx->stream == NULL) return;
  ctx->finished = 1;
  (void)ngx_http_pxg_worker();
  pxg_stream_finish(ctx->stream, why);
}

ngx_int_t ngx_http_pxg_pump(ngx_http_pxg_ctx_t *ctx) {
  ngx_int_t rc = NGX_OK;
  pxg_out out;

  while (rc == NGX_OK && pxg_take(ctx->stream, &out)) rc = ngx_http_pxg_take_one(ctx, &out);
  pxg_stream_keep(ctx->stream);
  /* Without memory for what stays the stream was reset. */
  while (rc == NGX_OK && pxg_take(ctx->stream, &out)) rc = ngx_http_pxg_take_one(ctx, &out);
  ngx_http_pxg_set_due(&ctx->due, pxg_stream_deadline(ctx->stream));
  ngx_http_pxg_batch();
  return rc;
}

void ngx_http_pxg_end_all(void) {
  ngx_queue_t *q;

  ngx_http_pxg_glance_end_all();
  while (ngx_http_pxg_streams.next && !ngx_queue_empty(&ngx_http_pxg_streams)) {
    q = ngx_queue_head(&ngx_http_pxg_streams);
    ngx_http_pxg_cleanup(ngx_queue_data(q, ngx_http_pxg_ctx_t, queue));
  }
}

/* ---- Resumption ---------------------------------------------------------------------------------------------------- */

void ngx_http_pxg_resume(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_connection_t *c = r->connection;

  if (ctx->finished || ngx_http_pxg_is_closed(r)) return;
  ngx_http_set_log_request(c->log, r);
  if (ngx_http_pxg_pump(ctx) != NGX_OK) ctx->reset = 1;

  /* Each step may end the request; the count keeps its memory until all are done. */
  r->main->count++;
  if (ctx->reset) {
    c->error = 1;
    r->keepalive = 0; /* The end of an upstream's request leaves this one to be finalized as if it had been answered. */
    ngx_http_finalize_request(r, NGX_HTTP_CLOSE);
  } else if (ctx->local && !ctx->answered) {
    ngx_http_pxg_answer(ctx);
  } else if (ctx->in_access) {
    if (ctx->request_head || pxg_stream_wants_body_first(ctx->stream, PXG_DIR_REQUEST)) {
      r->read_event_handler = ngx_http_block_reading;
      ngx_http_core_run_phases(r);
    }
  } else {
    if (r->request_body && !r->request_body->last_saved && !ctx->answered) ngx_http_pxg_read_on(ctx);
    if (!ctx->finished && !ctx->reset && ctx->response_fed && !ngx_http_pxg_is_closed(r))
      ngx_http_pxg_response_resume(ctx);
  }
  ngx_http_finalize_request(r, NGX_DONE);
  ngx_http_run_posted_requests(c);
}
