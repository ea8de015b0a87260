/* SPDX-License-Identifier: Apache-2.0 */

/* Bytes of bodies between nginx's chains and the engine.
 *
 * Nothing is copied here. What nginx lends goes to the engine as it lies there, and what the engine lets go is handed on
 * by buffers of this module, pieces, that point to nginx's memory or to a block of the engine. A buffer of nginx counts
 * as consumed once its last piece is, or at once if the engine kept a copy or nothing of it. So whoever filled it sees
 * what it would see without this module: a client that is slow, or a guest that holds, makes it wait. */

#include "ngx_http_pxg.h"

enum {
  NGX_HTTP_PXG_BATCH = 32,             /* Buffers lent in one call, */
  NGX_HTTP_PXG_BATCH_BYTES = 64 << 10, /* and about the bytes. */
  NGX_HTTP_PXG_OWNED = 64 << 10        /* Bytes of blocks that may wait for the receiver before no more is lent. */
};

/* One lent buffer: the tag of its slices. */
typedef struct {
  ngx_buf_t *buf;
  ngx_http_pxg_piece_t *last; /* The last piece of it. */
} ngx_http_pxg_lent_t;

static void ngx_http_pxg_consume(ngx_buf_t *b) {
  b->pos = b->last;
  if (b->in_file) b->file_pos = b->file_last;
}

static ngx_http_pxg_piece_t *ngx_http_pxg_piece(ngx_http_pxg_ctx_t *ctx, int d) {
  ngx_http_pxg_flow_t *f = &ctx->flow[d];
  ngx_http_pxg_piece_t *p = f->free;

  if (p) {
    f->free = p->next;
    ngx_memzero(p, sizeof(*p));
  } else {
    p = ngx_pcalloc(ctx->request->pool, sizeof(*p));
    if (p == NULL) return NULL;
  }
  p->buf.tag = (ngx_buf_tag_t)&ngx_http_proxy_golang_module;
  p->link.buf = &p->buf;
  *(f->out ? &f->last_out->next : &f->out) = p;
  f->last_out = p;
  return p;
}

static ngx_int_t ngx_http_pxg_take_bytes(ngx_http_pxg_ctx_t *ctx, pxg_out *out) {
  ngx_http_pxg_flow_t *f = &ctx->flow[out->direction];
  ngx_http_pxg_lent_t *lent = out->slice.tag;
  ngx_http_pxg_piece_t *p;
  ngx_buf_t *b;

  if (out->slice.len == 0) {
    pxg_slice_drop(&out->slice);
    return NGX_OK;
  }
  p = ngx_http_pxg_piece(ctx, out->direction);
  if (p == NULL) {
    pxg_slice_drop(&out->slice);
    return NGX_ERROR;
  }
  b = &p->buf;
  /* nginx goes back to `start` when it sends a request to another upstream. */
  b->start = b->pos = (u_char *)(uintptr_t)out->slice.ptr;
  b->end = b->last = b->pos + out->slice.len;
  f->passed += (off_t)out->slice.len;
  if (out->slice.lent) {
    b->temporary = lent->buf->temporary;
    b->memory = lent->buf->memory;
    b->mmap = lent->buf->mmap;
    b->recycled = lent->buf->recycled;
    b->flush = lent->buf->flush;
    if (lent->last) lent->last->lender = NULL;
    lent->last = p;
    p->lender = lent->buf;
    return NGX_OK;
  }
  b->memory = 1;
  p->slice = out->slice;
  f->owned += p->slice.len;
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_take_one(ngx_http_pxg_ctx_t *ctx, pxg_out *out) {
  ngx_http_pxg_flow_t *f = &ctx->flow[out->direction];
  ngx_http_pxg_piece_t *p;

  if (out->flags & PXG_OUT_FLUSH) f->flush = 1;
  switch (out->kind) {
  case PXG_OUT_RESET: ctx->reset = 1; return NGX_OK;
  case PXG_OUT_HEAD:
    if (out->direction == PXG_DIR_REQUEST) {
      ctx->request_head = 1;
    } else {
      ctx->response_head = 1;
      if (out->flags & PXG_OUT_LOCAL) ctx->local = 1;
      if (out->flags & PXG_OUT_OPEN) ctx->open = f->flush = 1;
    }
    return NGX_OK;
  case PXG_OUT_BYTES: return out->slice.len ? ngx_http_pxg_take_bytes(ctx, out) : NGX_OK;
  case PXG_OUT_END:
    if (out->direction == PXG_DIR_REQUEST)
      ctx->request_ended = 1;
    else
      ctx->response_ended = 1;
    p = f->out ? f->last_out : ngx_http_pxg_piece(ctx, out->direction);
    if (p == NULL) return NGX_ERROR;
    p->buf.last_buf = 1;
    return NGX_OK;
  }
  return NGX_ERROR;
}

ngx_int_t ngx_http_pxg_lend(ngx_http_pxg_ctx_t *ctx, int d, ngx_chain_t *in) {
  return in ? ngx_chain_add_copy(ctx->request->pool, &ctx->flow[d].in, in) : NGX_OK;
}

static void ngx_http_pxg_unlink(ngx_http_pxg_ctx_t *ctx, int d) {
  ngx_chain_t *cl = ctx->flow[d].in;
  ctx->flow[d].in = cl->next;
  ngx_free_chain(ctx->request->pool, cl);
}

/* The end of a message has come out of nginx's chain. */
static ngx_int_t ngx_http_pxg_feed_end(ngx_http_pxg_ctx_t *ctx, int d) {
  ngx_list_part_t *trailers = &ctx->request->headers_out.trailers.part;

  if (d == PXG_DIR_REQUEST ? ctx->request_fed : ctx->response_end_fed) return NGX_OK;
  if (d == PXG_DIR_REQUEST)
    ctx->request_fed = 1;
  else
    ctx->response_end_fed = 1;
  pxg_stream_end(ctx->stream, d, d == PXG_DIR_RESPONSE && trailers->elts && trailers->nelts);
  return ngx_http_pxg_pump(ctx);
}

/* What nginx stores before it asks an upstream does not wait for a receiver. */
static ngx_uint_t ngx_http_pxg_crowded(ngx_http_pxg_ctx_t *ctx, int d) {
  return ctx->flow[d].owned >= NGX_HTTP_PXG_OWNED && (d == PXG_DIR_RESPONSE || ctx->request->request_body_no_buffering);
}

ngx_uint_t ngx_http_pxg_can_feed(ngx_http_pxg_ctx_t *ctx, int d) {
  ngx_chain_t *in = ctx->flow[d].in;
  return in && !ngx_http_pxg_crowded(ctx, d) && (ngx_buf_size(in->buf) == 0 || pxg_stream_wants(ctx->stream, d));
}

ngx_int_t ngx_http_pxg_feed(ngx_http_pxg_ctx_t *ctx, int d) {
  ngx_http_pxg_flow_t *f = &ctx->flow[d];
  ngx_http_pxg_lent_t lent[NGX_HTTP_PXG_BATCH];
  pxg_slice slices[NGX_HTTP_PXG_BATCH];
  size_t n = 0, len = 0, i;
  ngx_uint_t moved = 0, last = 0;
  ngx_buf_t *b;

  if (f->in == NULL) return NGX_DECLINED;
  (void)ngx_http_pxg_worker();
  if (ngx_http_pxg_crowded(ctx, d)) return NGX_DECLINED;
  while (f->in && n < NGX_HTTP_PXG_BATCH && len < NGX_HTTP_PXG_BATCH_BYTES && !last) {
    b = f->in->buf;
    if (ngx_buf_size(b) > 0) {
      if (!ngx_buf_in_memory(b)) {
        ngx_log_error(NGX_LOG_ALERT, ctx->request->connection->log, 0, "proxy_golang: a body buffer is not in memory");
        return NGX_ERROR;
      }
      if (!pxg_stream_wants(ctx->stream, d)) break;
      lent[n] = (ngx_http_pxg_lent_t){.buf = b};
      slices[n] = (pxg_slice){.ptr = b->pos, .len = (size_t)(b->last - b->pos), .tag = &lent[n], .lent = true};
      len += slices[n++].len;
    }
    if (b->flush) f->flush = 1;
    last = b->last_buf;
    moved = 1;
    ngx_http_pxg_unlink(ctx, d);
  }
  if (n) {
    pxg_stream_bytes(ctx->stream, d, slices, n);
    if (ngx_http_pxg_pump(ctx) != NGX_OK) return NGX_ERROR;
    for (i = 0; i < n; i++)
      if (lent[i].last == NULL) ngx_http_pxg_consume(lent[i].buf);
  }
  if (last && ngx_http_pxg_feed_end(ctx, d) != NGX_OK) return NGX_ERROR;
  return moved ? NGX_OK : NGX_DECLINED;
}

ngx_uint_t ngx_http_pxg_unseen(ngx_http_pxg_ctx_t *ctx, int d) {
  ngx_http_pxg_flow_t *f = &ctx->flow[d];
  return f->in == NULL && f->out == NULL && !pxg_stream_holds(ctx->stream, d) && !pxg_stream_sees_body(ctx->stream, d);
}

ngx_int_t ngx_http_pxg_pass_by(ngx_http_pxg_ctx_t *ctx, int d, ngx_chain_t *in) {
  ngx_http_pxg_flow_t *f = &ctx->flow[d];
  ngx_http_pxg_piece_t *p;
  ngx_chain_t *cl;
  off_t n = 0;
  ngx_uint_t last = 0;

  for (cl = in; cl; cl = cl->next) {
    n += ngx_buf_size(cl->buf);
    if (cl->buf->last_buf) last = 1;
  }
  f->passed += n;
  pxg_stream_skip(ctx->stream, d, (uint64_t)n);
  if (!last) return NGX_DECLINED;
  if (ngx_http_pxg_feed_end(ctx, d) != NGX_OK) return NGX_ERROR;
  if (d == PXG_DIR_REQUEST ? ctx->request_ended : ctx->response_ended) {
    f->out = NULL; /* The end goes with nginx's own last buffer. */
    return NGX_DECLINED;
  }
  /* Something is done at the end: it waits, and the bytes go by pieces without it. */
  for (cl = in; cl; cl = cl->next) {
    if (ngx_buf_size(cl->buf) == 0) continue;
    p = ngx_http_pxg_piece(ctx, d);
    if (p == NULL) return NGX_ERROR;
    p->buf = *cl->buf;
    p->buf.tag = (ngx_buf_tag_t)&ngx_http_proxy_golang_module;
    p->buf.last_buf = 0;
    p->lender = cl->buf;
  }
  return NGX_OK;
}

void ngx_http_pxg_hand_on(ngx_http_pxg_ctx_t *ctx, int d, ngx_chain_t **chain) {
  ngx_http_pxg_flow_t *f = &ctx->flow[d];
  ngx_http_pxg_piece_t *p;

  *chain = NULL;
  if (f->flush) {
    /* What it came behind may still be held: then it stays due. */
    ngx_uint_t due = f->in || pxg_stream_holds(ctx->stream, d);
    if (f->out == NULL && d == PXG_DIR_RESPONSE && !due) (void)ngx_http_pxg_piece(ctx, d);
    if (f->out) f->last_out->buf.flush = 1;
    f->flush = due;
  }
  if (f->out == NULL) return;
  /* What a guest streams does not wait for `postpone_output`: more of it may come late. */
  if (ctx->open && d == PXG_DIR_RESPONSE) f->last_out->buf.flush = 1;
  *chain = &f->out->link;
  for (p = f->out; p; p = p->next) p->link.next = p->next ? &p->next->link : NULL;
  *(f->busy ? &f->last_busy->next : &f->busy) = f->out;
  f->last_busy = f->last_out;
  f->out = NULL;
}

/* Takes the first piece off the queue: what it pointed to is not needed any more. */
static void ngx_http_pxg_done(ngx_http_pxg_flow_t *f, ngx_http_pxg_piece_t **at) {
  ngx_http_pxg_piece_t *p = *at;

  *at = p->next;
  if (p->lender) ngx_http_pxg_consume(p->lender);
  p->lender = NULL;
  if (p->slice.len) {
    f->owned -= p->slice.len;
    pxg_slice_drop(&p->slice);
  }
}

void ngx_http_pxg_reap(ngx_http_pxg_ctx_t *ctx, int d) {
  ngx_http_pxg_flow_t *f = &ctx->flow[d];
  ngx_http_pxg_piece_t *p;
  ngx_uint_t again;

  while ((p = f->busy) != NULL && ngx_buf_size(&p->buf) == 0) {
    /* One without bytes, or at the end, may still be in a filter's hands. */
    again = p->buf.start != NULL && !p->buf.last_buf;
    ngx_http_pxg_done(f, &f->busy);
    if (!again) continue;
    p->next = f->free;
    f->free = p;
  }
}

void ngx_http_pxg_drop(ngx_http_pxg_ctx_t *ctx, int d, ngx_uint_t out) {
  ngx_http_pxg_flow_t *f = &ctx->flow[d];

  while (f->in) {
    ngx_http_pxg_consume(f->in->buf);
    ngx_http_pxg_unlink(ctx, d);
  }
  while (out && f->out) ngx_http_pxg_done(f, &f->out);
}

void ngx_http_pxg_give_back(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_pxg_piece_t *p;
  int d;

  for (d = 0; d < 2; d++) {
    for (p = ctx->flow[d].out; p; p = p->next) pxg_slice_drop(&p->slice);
    for (p = ctx->flow[d].busy; p; p = p->next) pxg_slice_drop(&p->slice);
  }
}

uint64_t ngx_http_pxg_waiting(const ngx_http_pxg_ctx_t *ctx) {
  const ngx_http_pxg_piece_t *p;
  uint64_t n = 0;

  for (p = ctx->flow[PXG_DIR_RESPONSE].busy; p; p = p->next) n += (uint64_t)ngx_buf_size(&p->buf);
  for (p = ctx->flow[PXG_DIR_RESPONSE].out; p; p = p->next) n += (uint64_t)ngx_buf_size(&p->buf);
  return n;
}
