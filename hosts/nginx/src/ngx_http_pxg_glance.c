/* SPDX-License-Identifier: Apache-2.0 */

/* Requests whose one filter looks at their head and at nothing else: they get no context and no stream, unless something
 * comes that only those can do. */

#include "ngx_http_pxg.h"

enum { NGX_HTTP_PXG_GLANCE_FIELDS = 64 };

static ngx_queue_t ngx_http_pxg_glances; /* Of this process. */

static void ngx_http_pxg_glance_cleanup(void *data) { ngx_http_pxg_glance_finish(data); }

ngx_http_pxg_glance_t *ngx_http_pxg_glance(ngx_http_request_t *r) {
  ngx_uint_t *kind = ngx_http_pxg_any(r);
  return kind && *kind == NGX_HTTP_PXG_GLANCE ? (ngx_http_pxg_glance_t *)(void *)kind : NULL;
}

ngx_http_pxg_glance_t *ngx_http_pxg_glance_of(ngx_pool_cleanup_t *cln) {
  return cln->handler == ngx_http_pxg_glance_cleanup ? cln->data : NULL;
}

void ngx_http_pxg_glance_finish(ngx_http_pxg_glance_t *g) {
  if (!pxg_glance_lives(&g->engine)) return;
  ngx_queue_remove(&g->queue);
  ngx_http_pxg_set_due(&g->due, 0);
  if (g->engine.user || g->engine.waiting) (void)ngx_http_pxg_worker();
  pxg_glance_close(&g->engine);
}

void ngx_http_pxg_glance_end_all(void) {
  while (ngx_http_pxg_glances.next && !ngx_queue_empty(&ngx_http_pxg_glances))
    ngx_http_pxg_glance_finish(ngx_queue_data(ngx_queue_head(&ngx_http_pxg_glances), ngx_http_pxg_glance_t, queue));
}

static void ngx_http_pxg_glance_log(void *data, uint32_t level, const char *line, size_t len) {
  ngx_http_pxg_glance_t *g = data;
  ngx_http_pxg_log_to(g->request->connection->log, level, line, len);
}

/* The one filter of a chain that can do without. */
static ngx_http_pxg_filter_t *ngx_http_pxg_glancer(ngx_http_request_t *r) {
  ngx_http_pxg_loc_conf_t *l = ngx_http_get_module_loc_conf(r, ngx_http_proxy_golang_module);
  ngx_http_pxg_filter_t *f;

  if (l->chain == NULL || l->chain->nelts != 1) return NULL;
  f = *(ngx_http_pxg_filter_t **)l->chain->elts;
  return f->config && !f->response_trailers && pxg_glance_suits(f->config) ? f : NULL;
}

ngx_int_t ngx_http_pxg_glance_start(ngx_http_request_t *r, ngx_http_pxg_ctx_t **ctx) {
  static pxg_field fields[NGX_HTTP_PXG_GLANCE_FIELDS]; /* For the time of the event. */
  ngx_http_pxg_filter_t *f = ngx_http_pxg_glancer(r);
  ngx_http_pxg_glance_t *g;
  ngx_pool_cleanup_t *cln;
  const pxg_op *edits;
  pxg_worker *w;
  pxg_speaker speaker;
  pxg_glanced way;
  size_t n;

  if (f == NULL) return NGX_DECLINED;
  if (ngx_http_pxg_fields_normalize(r) != NGX_OK) return NGX_ERROR;
  if (ngx_http_pxg_request_fields(r, fields, NGX_HTTP_PXG_GLANCE_FIELDS, &n) != NGX_OK) return NGX_DECLINED;
  cln = ngx_pool_cleanup_add(r->pool, sizeof(*g));
  if (cln == NULL) return NGX_ERROR;
  g = cln->data;
  g->kind = NGX_HTTP_PXG_GLANCE;
  g->due.of = &g->kind, g->due.at = 0;
  g->request = r;
  g->bodiless = r->headers_in.content_length_n <= 0 && !r->headers_in.chunked;
  g->request_ended = g->response_fed = g->reset = 0;
  g->passed = 0;
  w = ngx_http_pxg_worker();
  if (w == NULL) return NGX_ERROR;
  speaker = (pxg_speaker){ngx_http_pxg_glance_log, g, r->connection->number};
  way = pxg_glance_head(&g->engine, w, f->config, &speaker, fields, n, g->bodiless ? PXG_HEAD_ENDS : 0, &edits, &n);
  if (way == PXG_GLANCE_NONE) return NGX_DECLINED;

  cln->handler = ngx_http_pxg_glance_cleanup;
  if (ngx_http_pxg_glances.next == NULL) { ngx_queue_init(&ngx_http_pxg_glances); }
  ngx_queue_insert_tail(&ngx_http_pxg_glances, &g->queue);
  ngx_http_set_ctx(r, g, ngx_http_proxy_golang_module);
  if (way == PXG_GLANCE_WAITS) {
    ngx_http_pxg_set_due(&g->due, pxg_glance_deadline(&g->engine));
    ngx_http_pxg_batch();
    return NGX_AGAIN;
  }
  if (way == PXG_GLANCE_MORE) {
    *ctx = ngx_http_pxg_glance_stream(g);
    return *ctx ? ngx_http_pxg_pump(*ctx) : NGX_ERROR;
  }
  if (n && ngx_http_pxg_request_edits(r, edits, n) != NGX_OK) g->reset = 1;
  return NGX_OK;
}

/* What of a glance has gone on without the engine is done for the stream, too. */
ngx_http_pxg_ctx_t *ngx_http_pxg_glance_stream(ngx_http_pxg_glance_t *g) {
  ngx_http_request_t *r = g->request;
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx_new(r);
  uint32_t gone = 0;
  ngx_uint_t answered = g->engine.answered, waiting = g->engine.waiting;

  if (ctx == NULL) {
    ngx_http_pxg_glance_finish(g);
    return NULL;
  }
  if (g->request_ended) gone |= PXG_GLANCE_REQUEST_END;
  if (g->response_fed) gone |= PXG_GLANCE_RESPONSE_HEAD | PXG_GLANCE_RESPONSE_END;
  ngx_queue_remove(&g->queue);
  ngx_http_pxg_set_due(&g->due, 0);
  ctx->stream = pxg_glance_stream(&g->engine, &ngx_http_pxg_ops, ctx, r->connection->number,
                                  ngx_http_pxg_stream_flags(r), gone, ngx_http_pxg_response_flags(r));
  if (ctx->stream == NULL) return NULL;
  ngx_http_pxg_ctx_ready(ctx);
  ctx->in_access = waiting;
  ctx->request_fed = g->bodiless || g->request_ended;
  if (answered) {
    ctx->request_head = 1;
    ctx->request_ended = ctx->request_fed;
    ctx->flow[PXG_DIR_REQUEST].passed = g->passed;
  }
  if (g->response_fed)
    ctx->response_fed = ctx->response_head = ctx->head_sent = ctx->response_end_fed = ctx->response_ended = ctx->aside =
        1;
  return ctx;
}

/* nginx has answered in spite of a guest that had not decided, which then need not. */
static ngx_uint_t ngx_http_pxg_glance_overtaken(ngx_http_pxg_glance_t *g) {
  if (!g->engine.waiting || !g->response_fed) return 0;
  ngx_http_pxg_glance_finish(g);
  return 1;
}

ngx_http_pxg_ctx_t *ngx_http_pxg_glance_stream_or_reset(ngx_http_pxg_glance_t *g) {
  ngx_http_pxg_ctx_t *ctx;

  if (ngx_http_pxg_glance_overtaken(g)) return NULL;
  ctx = ngx_http_pxg_glance_stream(g);
  if (ctx) return ctx;
  ngx_log_error(NGX_LOG_ERR, g->request->connection->log, 0, "proxy_golang: a request is reset: no memory");
  g->reset = 1;
  g->request->main->count++;
  g->request->connection->error = 1;
  g->request->keepalive = 0;
  ngx_http_finalize_request(g->request, NGX_HTTP_CLOSE);
  ngx_http_finalize_request(g->request, NGX_DONE);
  return NULL;
}

/* The guest has decided, and the head may go on. */
static void ngx_http_pxg_glance_resume(ngx_http_pxg_glance_t *g, const pxg_op *edits, size_t n) {
  ngx_http_request_t *r = g->request;
  ngx_connection_t *c = r->connection;

  (void)ngx_atomic_fetch_add(&ngx_http_pxg_totals->mails, 1);
  ngx_http_pxg_set_due(&g->due, 0);
  ngx_http_set_log_request(c->log, r);
  if (n && ngx_http_pxg_request_edits(r, edits, n) != NGX_OK) g->reset = 1;
  /* The count keeps the request's memory until all is done. */
  r->main->count++;
  r->read_event_handler = ngx_http_block_reading;
  ngx_http_core_run_phases(r);
  ngx_http_finalize_request(r, NGX_DONE);
  ngx_http_run_posted_requests(c);
}

void ngx_http_pxg_glance_mail(pxg_worker *w) {
  ngx_http_pxg_glance_t *g;
  const pxg_op *edits;
  pxg_glance *e;
  size_t n;

  while ((e = pxg_worker_next_glance(w)) != NULL) {
    g = e->data;
    if (ngx_http_pxg_glance_overtaken(g)) continue;
    if (pxg_glance_decided(e, &edits, &n) == PXG_GLANCE_PASSED)
      ngx_http_pxg_glance_resume(g, edits, n);
    else
      (void)ngx_http_pxg_glance_stream_or_reset(g);
  }
}

void ngx_http_pxg_glance_request_body(ngx_http_pxg_glance_t *g, const ngx_chain_t *in) {
  for (; in; in = in->next) {
    g->passed += ngx_buf_size(in->buf);
    if (in->buf->last_buf) g->request_ended = 1;
  }
}
