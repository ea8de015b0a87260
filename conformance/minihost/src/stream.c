/* SPDX-License-Identifier: Apache-2.0 */

/* Streams: their life from the head of the request to on_stream_end (spec/05-phases), and what moves them. */

#include <unistd.h>

#include "minihost.h"

static atomic_ullong next_id;

stream *stream_new(worker *w, struct client *c, bool l4) {
  stream *s = zalloc(sizeof *s);
  s->w = w;
  s->client = c;
  s->l4 = l4;
  atomic_init(&s->refs, 1);
  s->id = atomic_fetch_add(&next_id, 1) + 1;
  s->start = now_ns();
  s->start_wall = wall_ns();
  s->next = w->streams;
  s->link = &w->streams;
  if (s->next) s->next->link = &s->next;
  w->streams = s;
  atomic_fetch_add(&w->live, 1);
  return s;
}

void stream_begin(stream *s, config **chain, size_t n) {
  s->n = (int)n;
  s->places = zalloc(n * sizeof *s->places);
  s->began[REQ] = true;
  s->trailers_ok[REQ] = true;
  s->trailers_ok[RSP] = s->l4 || s->client->minor > 0;
  for (int i = 0; i < s->n; i++) {
    place *p = &s->places[i];
    p->s = s;
    p->c = chain[i];
    p->index = i;
    p->subscribe = p->c->subscribe;
    p->last = &p->first;
    p->handle = handle_new(p);
    place_sync(p);
    for (int d = 0; d < 2; d++) {
      struct dir *x = &p->d[d];
      x->room = -1;
      x->credits_end = &x->credits;
      x->mode = p->c->mode[d];
      x->resizes = p->c->flags & (d == REQ ? PXG_CFG_RESIZES_REQUEST : PXG_CFG_RESIZES_RESPONSE);
      if (s->l4)
        x->mode = p->subscribe & PXG_PHASE_BIT(d ? PXG_PHASE_L4_UPSTREAM : PXG_PHASE_L4_DOWNSTREAM) ? PXG_BODY_STREAM
                                                                                                    : PXG_BODY_SKIP;
    }
    if (s->l4) p->d[RSP].head_in = p->d[RSP].head_out = true, p->d[RSP].state = S_FLOW;
  }
  s->in_done[REQ] = !s->l4 && s->m[REQ].ends;
  enter_head(s, REQ, s->in_done[REQ]);
  if (s->in_done[REQ]) enter_end(s, REQ);
}

void stream_unref(stream *s) {
  if (atomic_fetch_sub(&s->refs, 1) != 1) return;
  for (int i = 0; i < s->n; i++) {
    place *p = &s->places[i];
    for (int d = 0; d < 2; d++) bytes_free(&p->d[d].view), bytes_free(&p->d[d].late);
    fields_free(&p->open_trailers);
  }
  free(s->places);
  for (int d = 0; d < 2; d++) {
    fields_free(&s->m[d].head);
    fields_free(&s->m[d].trailers);
    free(s->m[d].details);
  }
  for (meta *m = s->meta, *next; m; m = next) {
    next = m->next;
    free(m->key);
    free(m->value);
    free(m);
  }
  free(s->raw_path);
  free(s->protocol);
  free(s);
}

/* ---- from the network -------------------------------------------------------------------------------------------- */

void stream_response(stream *s, fields *head, bool ends) {
  s->m[RSP].head = *head;
  s->m[RSP].ends = ends;
  *head = (fields){0};
  s->began[RSP] = true;
  s->in_done[RSP] = ends;
  enter_head(s, RSP, ends);
  if (ends) enter_end(s, RSP);
}

void stream_bytes(stream *s, int d, bytes *b) {
  s->bytes_in[d] += b->len;
  enter_bytes(s, d, b);
}

void stream_ended(stream *s, int d, fields *trailers) {
  if (trailers && !BUG("trailers-lost") && !(d == RSP && BUG("response-trailers-lost"))) {
    fields_free(&s->m[d].trailers);
    s->m[d].trailers = *trailers;
    *trailers = (fields){0};
  }
  s->in_done[d] = true;
  enter_end(s, d);
}

bool stream_wants(const stream *s, int d) {
  if (s->dead || s->over[d] || s->in_done[d]) return false;
  if (s->replied && d == REQ) return false;
  for (int i = 0; i < s->n; i++) {
    const place *p = &s->places[i];
    const struct dir *x = &p->d[d];
    if (x->state != S_DONE && x->state != S_CUT && x->view.len > p->c->max_body[d] && !BUG("reads-without-bound") &&
        !BUG("more-over-the-limit"))
      return false;
  }
  uint64_t out = d == REQ ? s->up ? s->up->out.len : 0 : s->client ? s->client->out.len : 0;
  if (d == REQ && s->l4 && !s->up) return !s->n || s->places[0].d[REQ].head_out;
  return out <= set.watermark || BUG("watermark-ignored");
}

static void set_why(stream *s, uint32_t why) {
  if (!s->why || BUG("last-cause-wins")) s->why = why;
}

void stream_why(stream *s, uint32_t why) { set_why(s, why); }

void stream_over(stream *s, int d, uint8_t how) {
  if (s->over[d]) return;
  s->over[d] = true;
  /* A connection has no head that begins its answer. */
  s->dirend[d] = s->began[d] || (s->l4 && s->up) ? how : PXG_DIREND_NEVER_BEGAN;
}

void stream_reset(stream *s, uint32_t why) {
  if (s->dead) return;
  s->dead = true;
  set_why(s, why);
  uint8_t how[2] = {PXG_DIREND_PROXY, PXG_DIREND_PROXY};
  if (why == PXG_END_CLIENT_ABORT) how[REQ] = PXG_DIREND_SENDER, how[RSP] = PXG_DIREND_RECEIVER;
  if (why == PXG_END_UPSTREAM_RESET) how[REQ] = PXG_DIREND_RECEIVER, how[RSP] = PXG_DIREND_SENDER;
  for (int d = 0; d < 2; d++) stream_over(s, d, how[d]);
  if (why == PXG_END_ERROR && BUG("reset-answers-500") && !s->m[RSP].sent && s->client) {
    static const char text[] = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
    bytes_copy(&s->client->out, text, sizeof text - 1);
    client_flush(s->client);
  }
  stream_run(s);
}

void stream_drained(stream *s, int d) {
  if (s->dead || s->over[d]) return;
  stream_over(s, d, PXG_DIREND_COMPLETE);
  if (s->l4 || s->upgraded) {
    if (s->over[!d]) set_why(s, PXG_END_COMPLETE);
  } else if (d == RSP) {
    set_why(s, s->m[RSP].local ? PXG_END_REPLIED : PXG_END_COMPLETE);
    /* A response that ends before its request does cuts it. */
    if (!s->over[REQ]) {
      cut_all(s, REQ);
      stream_over(s, REQ, PXG_DIREND_PROXY);
    }
  }
  stream_run(s);
}

/* ---- the run ----------------------------------------------------------------------------------------------------- */

static bool take_effect(place *p) {
  effect *e = effect_take(p);
  if (!e) return false;
  if (p->failed || p->s->dead) {
    effect_free(e);
    return true;
  }
  if (e->kind == E_WAKE) {
    deliver_wake(p, e->flags, e->arg);
  } else if (e->kind == E_APPLY) {
    take_apply(p, &e->d);
  } else {
    for (int d = 0; d < 2; d++) {
      struct dir *x = &p->d[d];
      if (x->state != S_PEND || x->token != e->token) continue;
      if (BUG("completion-takes-user")) p->user = e->d.user;
      x->token = 0;
      unpend(p);
      x->resumed = true;
      if (BUG("pending-bytes-pass-unseen") && is_body_phase(x->pend_phase)) x->pend_len = x->view.len;
      take_result(p, d, x->pend_phase, x->pend_flags, x->pend_len, &e->d, BY_COMPLETE);
      break;
    }
  }
  effect_free(e);
  return true;
}

/* One step of one place; the places nearest to the receiver come first, so that what was passed leaves before more is
 * brought. */
static bool step(stream *s) {
  for (int i = 0; i < s->n; i++)
    if (take_effect(&s->places[i])) return true;
  for (int d = 0; d < 2; d++)
    for (int k = 0; k < s->n; k++) {
      place *p = &s->places[d == REQ ? s->n - 1 - k : k];
      if (!p->failed || p->d[d].state == S_BYPASS)
        if (node_step(p, d)) return true;
    }
  return false;
}

void stream_run(stream *s) {
  if (s->finished) return;
  s->again = true;
  if (s->running) return;
  s->running = true;
  atomic_fetch_add(&s->refs, 1);
  while (s->again) {
    s->again = false;
    do {
      if (s->tunnel_due) tunnel_start(s);
    } while (!s->dead && (step(s) || s->tunnel_due));
    if (s->dead) break;
    if (s->client) client_flush(s->client);
    if (!s->dead) reply_room(s);
  }
  s->running = false;
  if (s->dead || (s->over[REQ] && s->over[RSP])) {
    finish(s);
  } else {
    if (s->up) s->up->kick = true;
    upstream_update(s);
    if (s->client) {
      s->client->kick = true;
      client_update(s->client);
    }
  }
  stream_unref(s);
}

void stream_later(stream *s, uint64_t at) {
  if (!s->w->next_timer || at < s->w->next_timer) s->w->next_timer = at;
}

void stream_timers(stream *s, uint64_t now) {
  bool run = false;
  atomic_fetch_add(&s->refs, 1);
  for (int i = 0; i < s->n && !s->dead && !s->finished; i++) {
    place *p = &s->places[i];
    for (int d = 0; d < 2 && !s->dead; d++) {
      struct dir *x = &p->d[d];
      bool holds = x->state == S_HOLD || x->state == S_PEND;
      uint64_t span = x->hold_since && holds ? x->hold_since + p->c->spec->hold_span_ms * 1000000 : 0;
      uint64_t due = x->state == S_PEND && !BUG("no-deadline") ? x->deadline : 0;
      if (BUG("no-hold-span")) span = 0;
      if ((span && span <= now) || (due && due <= now)) {
        if (x->state == S_PEND && !token_is_pending(x->token)) continue;
        fail(p, d, x->state == S_PEND ? x->pend_phase : 0, R_DEADLINE,
             span && span <= now ? "the hold span is used up" : "the deadline of a PENDING");
        run = true;
        continue;
      }
      if (span) stream_later(s, span);
      if (due) stream_later(s, due);
      if (x->state == S_HOLD && x->view.len > x->kept) {
        uint64_t hold = x->last_event + set.hold_time_ms * 1000000;
        if (hold <= now) {
          run = true;
        } else {
          stream_later(s, hold);
        }
      }
    }
    if (p->open && !s->dead && !BUG("idle-reply-forever")) {
      bool could = s->client && !s->client->out.len;
      uint64_t idle = reply_idle(p);
      if (could && idle <= now) {
        p->c->stats->failures[R_DEADLINE]++;
        stream_reset(s, PXG_END_ERROR);
        break;
      }
      /* A client that takes nothing is looked at again. */
      stream_later(s, idle > now ? idle : now + 10000000);
    }
  }
  if (run) stream_run(s);
  stream_unref(s);
}

/* ---- the end: 5.7 ------------------------------------------------------------------------------------------------ */

static void finish_place_tokens(stream *s, uint64_t (*cancelled)[2]) {
  for (int i = 0; i < s->n; i++)
    for (int d = 0; d < 2; d++) {
      struct dir *x = &s->places[i].d[d];
      if (x->state != S_PEND || !x->token) continue;
      unpend(&s->places[i]);
      if (BUG("cancel-before-retire") && token_is_pending(x->token)) call_cancel(&s->places[i], x->token);
      s->w->bereft = true;
      if (token_retire(x->token) && !BUG("cancel-before-retire")) cancelled[i][d] = x->token;
      if (BUG("cancel-after-complete")) cancelled[i][d] = x->token;
      x->token = 0;
    }
}

void finish(stream *s) {
  if (s->finished) return;
  s->finished = true;
  uint64_t cancelled[MAX_PLACES][2] = {{0}};
  if (!s->why) s->why = PXG_END_COMPLETE;
  upstream_close(s);
  if (BUG("stream-end-before-log"))
    for (int i = 0; i < s->n; i++)
      if (s->places[i].user) call_stream_end(&s->places[i]);
  finish_place_tokens(s, cancelled);
  for (int i = 0; i < s->n; i++)
    for (int d = 0; d < 2; d++)
      if (cancelled[i][d] && !BUG("no-cancel-at-the-end")) call_cancel(&s->places[i], cancelled[i][d]);
  for (int i = 0; i < s->n; i++) {
    place *p = &s->places[BUG("log-in-reverse") ? s->n - 1 - i : i];
    uint32_t phase = s->l4 ? PXG_PHASE_L4_CLOSE : PXG_PHASE_LOG;
    bool skipped =
        (BUG("log-only-where-reached") && !p->reached) || (BUG("no-log-after-abort") && s->why == PXG_END_CLIENT_ABORT);
    if (((p->subscribe >> phase & 1) || BUG("unsubscribed-phase-delivered")) && !p->failed && !skipped)
      deliver(p, -1, phase, s->m[RSP].local ? PXG_EV_LOCAL_ORIGIN : 0, 0, end_arg(s));
  }
  for (int i = 0; i < s->n; i++)
    if (!BUG("handle-outlives-the-stream")) handle_retire(s->places[i].handle);
  if (BUG("handle-outlives-the-stream") || BUG("token-outlives-its-event")) atomic_fetch_add(&s->refs, 1);
  for (int i = 0; i < s->n; i++) {
    place *p = &s->places[i];
    effects_discard(p);
    if ((p->user || BUG("stream-end-without-user")) && !BUG("stream-end-before-log") && !BUG("no-stream-end"))
      call_stream_end(p);
    if (p->user && BUG("stream-end-twice")) call_stream_end(p);
  }
  for (int i = 0; i < s->n; i++) {
    effects_discard(&s->places[i]);
    credits_free(&s->places[i]);
    config_unref(s->places[i].c);
  }
  *s->link = s->next;
  if (s->next) s->next->link = s->link;
  atomic_fetch_sub(&s->w->live, 1);
  client_done(s);
  stream_unref(s);
}

uint64_t end_arg(const stream *s) {
  uint64_t why = BUG("why-always-complete") ? PXG_END_COMPLETE : s->why;
  uint64_t how = BUG("how-always-complete") ? 0x11 : (uint64_t)s->dirend[REQ] | (uint64_t)s->dirend[RSP] << 4;
  return why | how << 8;
}
