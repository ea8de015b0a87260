/* SPDX-License-Identifier: Apache-2.0 */

/* Streams: what is fed to them, what moves them, what leaves them, and their end (spec/05-phases). */

#include <stdlib.h>

#include "pxg_internal.h"

bool pxg_show(pxg_stream *s, int d, bool trailers, pxg_view *v) {
  bool keep = s->keeps_views && !trailers;
  *v = keep && s->kept[d] ? s->views[d] : (pxg_view){NULL, 0};
  if (keep && s->kept[d]) return true;
  if (s->ops->view(s->data, d, trailers, &v->at, &v->n)) {
    if (keep) s->kept[d] = true, s->views[d] = *v;
    return true;
  }
  s->no_memory = true;
  return false;
}

void *pxg_stream_data(const pxg_stream *s) { return s->data; }

static void place_init(pxg_stream *s, int i, pxg_config *c) {
  pxg_place *p = &s->places[i];
  p->s = s;
  p->c = pxg_config_ref(c);
  p->index = i;
  p->subscribe = c->subscribe;
  p->last = &p->first;
  for (int d = 0; d < 2; d++) {
    p->d[d].room = -1;
    p->d[d].mode = c->body_mode[d];
    p->d[d].resizes = c->flags & (d == REQ ? PXG_CFG_RESIZES_REQUEST : PXG_CFG_RESIZES_RESPONSE);
  }
}

pxg_stream *pxg_stream_make(pxg_worker *w, pxg_config *const *chain, size_t n, const pxg_stream_ops *ops, void *data,
                            uint64_t id, uint32_t flags) {
  if (n > PXG_MAX_PLACES) return NULL;
  pxg_stream *s = calloc(1, sizeof *s + n * sizeof s->places[0]);
  if (!s) return NULL;
  s->w = w;
  s->ops = ops;
  s->data = data;
  s->id = id;
  s->flags = flags;
  s->redirected = flags & PXG_STREAM_REDIRECTED;
  for (size_t i = 0; i < n; i++)
    if (!(flags & PXG_STREAM_SUBREQUEST) || (chain[i]->flags & PXG_CFG_SUBREQUESTS)) place_init(s, s->n++, chain[i]);
  return s;
}

pxg_stream *pxg_stream_open(pxg_worker *w, pxg_config *const *chain, size_t n, const pxg_stream_ops *ops, void *data,
                            uint64_t id, uint32_t flags) {
  pxg_stream *s = pxg_stream_make(w, chain, n, ops, data, id, flags);
  bool ok = true;
  for (int i = 0; s && i < s->n; i++) {
    s->places[i].handle = pxg_handle_new(w, s->places[i].c, &s->places[i], NULL);
    ok = ok && s->places[i].handle;
  }
  if (ok) return s;
  for (int i = 0; i < s->n; i++) pxg_handle_retire(w, s->places[i].handle);
  s->finished = true; /* No guest has heard of it. */
  pxg_stream_free(s);
  return NULL;
}

/* ---- feeding ----------------------------------------------------------------------------------------------------- */

/* A response of the host's in the place of one that was on its way. */
static void head_again(pxg_stream *s) {
  uint64_t tokens[PXG_MAX_PLACES] = {0};
  for (int i = 0; i < s->n; i++) {
    pxg_place *p = &s->places[i];
    if (!p->d[RSP].head_in) continue;
    tokens[i] = pxg_cut(p, RSP);
    p->skip_response = true;
  }
  pxg_bytes_free(&s->out[RSP].bytes);
  s->out[RSP] = (pxg_sink){0};
  s->trailers[RSP] = s->in_done[RSP] = false;
  for (int i = 0; i < s->n; i++)
    if (tokens[i]) pxg_call_cancel(&s->places[i], tokens[i]);
}

/* Who sees a response from upstream: 5.6. */
static void choose_viewers(pxg_stream *s, bool local) {
  for (int i = 0; i < s->n; i++) {
    pxg_place *p = &s->places[i];
    bool unseen = local && !pxg_has(p->c->features, PXG_F_REPLY_REFILTER);
    bool reached = p->reached || (p->c->flags & PXG_CFG_ORPHAN);
    if (unseen || !reached) p->skip_response = true;
  }
}

static bool sees(const pxg_place *p, int d) {
  uint32_t headers = pxg_phase(d, PXG_PHASE_REQUEST_HEADERS);
  return p->subscribe >> headers & 7; /* Headers, body, trailers. */
}

/* Whether all places are in `state` and have nothing to do with what comes next of a direction, nor before it. */
static bool passes_by(const pxg_stream *s, int d, pxg_state state) {
  for (int i = 0; i < s->n; i++) {
    const pxg_place *p = &s->places[i];
    const pxg_dir *x = &p->d[d];
    if (d == RSP && p->skip_response) continue;
    bool busy = p->failed || p->first || x->view.len || pxg_parked(p, d);
    if (busy || x->state != state || x->room >= 0 || sees(p, d)) return false;
  }
  bool mail = atomic_load_explicit(&s->w->box, memory_order_relaxed);
  return !mail && !s->no_memory && !s->out[d].bytes.n;
}

void pxg_head_passes_by(pxg_stream *s, int d, bool ends) {
  for (int i = 0; i < s->n; i++) {
    pxg_dir *x = &s->places[i].d[d];
    if (d == RSP && s->places[i].skip_response) continue;
    if (d == REQ) s->places[i].reached = true;
    x->head_in = x->head_out = true;
    x->ended = x->end_out = x->end_at_head = ends;
    x->state = ends ? S_DONE : S_FLOW;
  }
  if (d == REQ) s->route_final = true;
  s->out[d].head = true;
  s->out[d].head_ends = s->out[d].end = ends;
}

void pxg_end_passes_by(pxg_stream *s, int d) {
  for (int i = 0; i < s->n; i++) {
    pxg_dir *x = &s->places[i].d[d];
    if (d == RSP && s->places[i].skip_response) continue;
    x->ended = x->end_out = true;
    x->state = S_DONE;
  }
  s->out[d].end = true;
}

bool pxg_begin_head(pxg_stream *s, int d, uint32_t flags) {
  bool ends = flags & (PXG_HEAD_ENDS | PXG_HEAD_UPGRADED);
  if (d == RSP) {
    if (s->began[RSP]) head_again(s);
    s->local = flags & PXG_HEAD_LOCAL;
    s->upgraded = flags & PXG_HEAD_UPGRADED;
    if (s->local) pxg_why(s, PXG_END_REPLIED);
    choose_viewers(s, s->local);
  }
  s->began[d] = true;
  s->in_done[d] = ends;
  s->eos_unknown[d] = flags & PXG_HEAD_EOS_UNKNOWN;
  return ends;
}

void pxg_stream_head(pxg_stream *s, int d, uint32_t flags) {
  if (s->dead || s->finished || (d == RSP && s->replied)) return;
  bool ends = pxg_begin_head(s, d, flags);
  if (!s->running && passes_by(s, d, S_WAIT)) return pxg_head_passes_by(s, d, ends);
  pxg_enter_head(s, d, ends);
  if (ends) pxg_enter_end(s, d);
  pxg_run(s);
}

static bool closed(const pxg_stream *s, int d) {
  return s->dead || s->finished || s->in_done[d] || s->replied || !s->began[d];
}

void pxg_stream_bytes(pxg_stream *s, int d, const pxg_slice *slices, size_t n) {
  if (closed(s, d)) return;
  pxg_bytes b = {0};
  for (size_t i = 0; i < n; i++)
    if (!pxg_bytes_add(&b, (pxg_slice){slices[i].ptr, slices[i].len, NULL, slices[i].tag, true})) s->no_memory = true;
  pxg_enter_bytes(s, d, &b);
  pxg_bytes_free(&b);
  pxg_run(s);
}

void pxg_stream_end(pxg_stream *s, int d, bool trailers) {
  if (closed(s, d)) return;
  s->trailers[d] = trailers;
  s->in_done[d] = true;
  if (!s->running && passes_by(s, d, S_FLOW)) return pxg_end_passes_by(s, d);
  pxg_enter_end(s, d);
  pxg_run(s);
}

void pxg_stream_redirected(pxg_stream *s) { s->redirected = true; }

void pxg_stream_waiting(pxg_stream *s, uint64_t bytes) {
  s->waiting = bytes;
  for (int i = 0; i < s->n; i++) pxg_handle_waiting(s->places[i].handle, bytes);
  pxg_run(s);
}

bool pxg_stream_wants(const pxg_stream *s, int d) {
  if (closed(s, d)) return false;
  for (int i = 0; i < s->n; i++) {
    const pxg_dir *x = &s->places[i].d[d];
    if (x->state != S_DONE && x->state != S_CUT && x->view.len > s->places[i].c->max_body[d]) return false;
  }
  return true;
}

bool pxg_stream_wants_body_first(const pxg_stream *s, int d) {
  if (closed(s, d)) return false;
  for (int i = 0; i < s->n; i++) {
    const pxg_dir *x = &s->places[i].d[d];
    if (x->state == S_HOLD && x->held && !x->ended) return true;
  }
  return false;
}

void pxg_stream_skip(pxg_stream *s, int d, uint64_t n) {
  for (int i = 0; i < s->n; i++) {
    pxg_dir *x = &s->places[i].d[d];
    x->offset += n;
    if (x->room > 0) x->room = (uint64_t)x->room < n ? 0 : x->room - (int64_t)n;
  }
}

bool pxg_stream_sees_body(const pxg_stream *s, int d) {
  for (int i = 0; i < s->n && !s->dead; i++) {
    const pxg_place *p = &s->places[i];
    const pxg_dir *x = &p->d[d];
    bool bound = x->head_out && pxg_bound(x) && x->state != S_DONE && x->state != S_CUT;
    bool over = p->failed || x->state == S_DONE || x->state == S_CUT || (d == RSP && p->skip_response);
    if (bound) return true;
    if (over && !x->view.len) continue;
    bool shown = pxg_subscribed(p, pxg_phase(d, PXG_PHASE_REQUEST_BODY)) && x->mode != PXG_BODY_SKIP;
    bool may_yet = !x->modes_final && pxg_subscribed(p, pxg_phase(d, PXG_PHASE_REQUEST_BODY));
    if (shown || may_yet || x->view.len) return true;
  }
  return false;
}

bool pxg_stream_holds(const pxg_stream *s, int d) {
  for (int i = 0; i < s->n && !s->dead; i++) {
    const pxg_dir *x = &s->places[i].d[d];
    bool waits = x->state == S_WAIT && x->head_in && !s->places[i].skip_response;
    if (x->state == S_PEND || x->state == S_HOLD || waits || (x->state != S_CUT && x->view.len)) return true;
  }
  return false;
}

bool pxg_stream_pends(const pxg_stream *s, int d) {
  for (int i = 0; i < s->n && !s->dead && !s->finished; i++) {
    const pxg_place *p = &s->places[i];
    const pxg_dir *x = &p->d[d];
    if (!x->head_in || x->state == S_DONE || x->state == S_CUT || (d == RSP && p->skip_response)) continue;
    if (x->state == S_PEND || (x->state != S_BYPASS && pxg_parked(p, d))) return true;
  }
  return false;
}

void pxg_stream_keep(pxg_stream *s) {
  bool ok = true;
  for (int d = 0; d < 2; d++) {
    ok = pxg_bytes_own(&s->out[d].bytes) && ok;
    for (int i = 0; i < s->n; i++) ok = pxg_bytes_own(&s->places[i].d[d].view) && ok;
  }
  if (ok || s->dead) return;
  pxg_stream_say(s, PXG_LOG_ERROR, "stream=%llu is reset: no memory", (unsigned long long)s->id);
  pxg_reset(s, PXG_END_ERROR);
}

/* ---- the run ----------------------------------------------------------------------------------------------------- */

void pxg_why(pxg_stream *s, uint32_t why) {
  if (!s->why) s->why = why;
}

void pxg_reset(pxg_stream *s, uint32_t why) {
  pxg_why(s, why);
  s->dead = true;
}

static void complete(pxg_place *p, pxg_effect *e) {
  for (int d = 0; d < 2; d++) {
    pxg_dir *x = &p->d[d];
    if (x->state != S_PEND || x->token != e->token) continue;
    x->token = 0;
    x->resumed = true;
    pxg_unpend(p);
    return pxg_take_result(p, d, x->pend_phase, x->pend_flags, x->pend_len, e->d, BY_COMPLETE);
  }
}

static bool take_effect(pxg_place *p) {
  pxg_effect *e = pxg_effect_take(p);
  if (!e) return false;
  if (p->failed) {
    pxg_effect_free(e);
    return true;
  }
  if (e->kind == E_WAKE) {
    if (pxg_subscribed(p, PXG_PHASE_WAKE)) pxg_deliver(p, -1, PXG_PHASE_WAKE, e->flags, 0, e->arg);
  } else if (e->kind == E_APPLY) {
    pxg_take_apply(p, e->d);
  } else {
    complete(p, e);
  }
  pxg_effect_free(e);
  return true;
}

/* One step of one place; the places nearest to the receiver come first, so that what was passed leaves before more is
 * brought. */
static bool step(pxg_stream *s) {
  pxg_collect(s->w);
  for (int i = 0; i < s->n; i++)
    if (take_effect(&s->places[i])) return true;
  for (int d = 0; d < 2; d++)
    for (int k = 0; k < s->n; k++) {
      pxg_place *p = &s->places[d == REQ ? s->n - 1 - k : k];
      if ((!p->failed || p->d[d].state == S_BYPASS) && pxg_step(p, d)) return true;
    }
  return false;
}

void pxg_run(pxg_stream *s) {
  if (s->finished || s->running) return;
  s->running = true;
  do {
    s->again = false;
    while (!s->dead && !s->no_memory && step(s))
      if (s->spent) pxg_meta_free(&s->spent);
    if (s->no_memory && !s->dead) {
      pxg_stream_say(s, PXG_LOG_ERROR, "stream=%llu is reset: no memory", (unsigned long long)s->id);
      pxg_reset(s, PXG_END_ERROR);
    }
    if (!s->dead) pxg_reply_room(s);
  } while (s->again && !s->dead);
  s->running = false;
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

static void soonest(uint64_t *at, uint64_t due) {
  if (due && (!*at || due < *at)) *at = due;
}

static uint64_t span_end(const pxg_place *p, const pxg_dir *x) {
  bool holds = x->state == S_HOLD || x->state == S_PEND;
  return x->withheld && holds ? x->hold_since + p->c->policy.hold_limit_ns : 0;
}

static uint64_t hold_end(const pxg_place *p, const pxg_dir *x) {
  bool grown = x->state == S_HOLD && x->mode == PXG_BODY_STREAM && x->view.len > x->kept;
  return grown ? x->last_event + p->c->policy.hold_time_ns : 0;
}

uint64_t pxg_stream_deadline(const pxg_stream *s) {
  uint64_t at = 0;
  for (int i = 0; i < s->n && !s->dead && !s->finished; i++) {
    const pxg_place *p = &s->places[i];
    if (p->open) soonest(&at, pxg_reply_idle(p));
    for (int d = 0; d < 2; d++) {
      const pxg_dir *x = &p->d[d];
      if (!x->withheld) continue; /* Who waits or is held is withheld. */
      soonest(&at, span_end(p, x));
      if (x->state == S_PEND) soonest(&at, x->deadline);
      if (!pxg_parked(p, d)) soonest(&at, hold_end(p, x));
    }
  }
  return at;
}

/* D17, D18 */
static void expire(pxg_place *p, int d) {
  pxg_dir *x = &p->d[d];
  uint64_t now = p->s->w->now, span = span_end(p, x);
  bool over = span && span <= now, late = x->state == S_PEND && x->deadline <= now;
  if (!over && !late) return;
  if (x->state == S_PEND && !pxg_token_is_pending(x->token)) return;
  pxg_failure(p, d, x->state == S_PEND ? x->pend_phase : 0, PXG_R_DEADLINE,
              over ? "the hold span is used up" : "the deadline of a PENDING");
}

void pxg_stream_timer(pxg_stream *s) {
  for (int i = 0; i < s->n && !s->dead && !s->finished; i++) {
    pxg_place *p = &s->places[i];
    for (int d = 0; d < 2 && !s->dead; d++) expire(p, d);
    if (!p->open || s->dead || pxg_reply_idle(p) > s->w->now) continue;
    if (s->waiting) {
      p->open_since = s->w->now;
    } else {
      pxg_count(&p->c->counters->failures[PXG_R_DEADLINE]);
      pxg_reset(s, PXG_END_ERROR);
    }
  }
  pxg_run(s);
}

/* ---- taking ------------------------------------------------------------------------------------------------------ */

static bool has_some(const pxg_sink *k) {
  return k->head_taken ? k->bytes.n || (!k->end_taken && (k->end || k->flush)) : k->head;
}

static void take_from(pxg_stream *s, int d, pxg_out *out) {
  pxg_sink *k = &s->out[d];
  *out = (pxg_out){.direction = d};
  if (!k->head_taken) {
    k->head_taken = true;
    out->kind = PXG_OUT_HEAD;
    out->flags = k->head_ends ? PXG_OUT_ENDS : 0;
    if (d == RSP && s->replied) out->flags |= PXG_OUT_LOCAL;
    for (int i = 0; i < s->n && d == RSP; i++)
      if (s->places[i].open) out->flags |= PXG_OUT_OPEN;
  } else if (k->bytes.n) {
    out->kind = PXG_OUT_BYTES;
    out->slice = *pxg_bytes_at(&k->bytes, 0);
    pxg_block_ref(out->slice.owner);
    pxg_bytes_drop(&k->bytes, out->slice.len);
  } else if (k->end) {
    k->end_taken = true;
    out->kind = PXG_OUT_END;
    if (s->trailers[d]) out->flags |= PXG_OUT_TRAILERS;
  } else {
    out->kind = PXG_OUT_BYTES;
  }
  if (k->flush && !k->bytes.n) {
    out->flags |= PXG_OUT_FLUSH;
    k->flush = false;
  }
}

bool pxg_take(pxg_stream *s, pxg_out *out) {
  if (s->finished) return false;
  if (s->dead) {
    if (s->reset_taken) return false;
    s->reset_taken = true;
    *out = (pxg_out){.kind = PXG_OUT_RESET};
    return true;
  }
  int d = !s->replied && has_some(&s->out[REQ]) ? REQ : RSP;
  if (d == RSP && !has_some(&s->out[RSP])) return false;
  take_from(s, d, out);
  return true;
}

const char *pxg_stream_details(const pxg_stream *s) { return s->details; }

bool pxg_stream_place(const pxg_stream *s, size_t i, pxg_place_info *info) {
  if (i >= (size_t)s->n) return false;
  const pxg_place *p = &s->places[i];
  *info = (pxg_place_info){.config = p->c, .time_ns = p->time_ns, .failed = p->failed, .replied = p->replied};
  return true;
}

const char *pxg_stream_cluster(const pxg_stream *s, bool *recompute) {
  if (recompute) *recompute = s->recompute;
  return s->cluster;
}

/* ---- the end: 5.7 ------------------------------------------------------------------------------------------------ */

static uint32_t how_ended(const pxg_stream *s, int d) {
  if (!s->began[d]) return PXG_DIREND_NEVER_BEGAN;
  bool complete = s->replied && d == REQ ? s->in_done[REQ] : s->out[d].end_taken;
  if (complete) return PXG_DIREND_COMPLETE;
  if (s->why == PXG_END_CLIENT_ABORT) return d == REQ ? PXG_DIREND_SENDER : PXG_DIREND_RECEIVER;
  if (s->why == PXG_END_UPSTREAM_RESET) return d == REQ ? PXG_DIREND_RECEIVER : PXG_DIREND_SENDER;
  return PXG_DIREND_PROXY;
}

static void retire_tokens(pxg_stream *s, uint64_t (*cancelled)[2]) {
  for (int i = 0; i < s->n; i++)
    for (int d = 0; d < 2; d++) {
      pxg_dir *x = &s->places[i].d[d];
      if (x->state != S_PEND || !x->token) continue;
      pxg_unpend(&s->places[i]);
      if (pxg_token_retire(x->token)) cancelled[i][d] = x->token;
      x->token = 0;
      x->state = S_CUT;
    }
}

void pxg_stream_finish(pxg_stream *s, uint32_t why) {
  if (s->finished) return;
  uint64_t cancelled[PXG_MAX_PLACES][2] = {{0}};
  pxg_why(s, why ? why : PXG_END_COMPLETE);
  s->dead = true;
  uint64_t arg = s->why | (uint64_t)how_ended(s, REQ) << 8 | (uint64_t)how_ended(s, RSP) << 12;
  retire_tokens(s, cancelled);
  for (int i = 0; i < s->n; i++)
    for (int d = 0; d < 2; d++)
      if (cancelled[i][d]) pxg_call_cancel(&s->places[i], cancelled[i][d]);
  for (int i = 0; i < s->n; i++) {
    pxg_place *p = &s->places[i];
    if (pxg_subscribed(p, PXG_PHASE_LOG) && !p->failed) pxg_deliver(p, -1, PXG_PHASE_LOG, 0, 0, arg);
  }
  for (int i = 0; i < s->n; i++) pxg_handle_retire(s->w, s->places[i].handle);
  s->finished = true;
  pxg_collect(s->w);
  pxg_mail_forget(s);
  for (int i = 0; i < s->n; i++) {
    pxg_place *p = &s->places[i];
    pxg_effects_discard(p);
    if (p->user) pxg_call_stream_end(p);
  }
}

void pxg_stream_free(pxg_stream *s) {
  pxg_stream_finish(s, PXG_END_ERROR);
  for (int i = 0; i < s->n; i++) {
    pxg_place *p = &s->places[i];
    for (int d = 0; d < 2; d++) pxg_bytes_free(&p->d[d].view);
    pxg_config_unref(p->c);
  }
  for (int d = 0; d < 2; d++) pxg_bytes_free(&s->out[d].bytes);
  pxg_meta_free(&s->meta);
  pxg_meta_free(&s->spent);
  free(s->cluster);
  free(s->details);
  free(s);
}
