/* SPDX-License-Identifier: Apache-2.0 */

/* Calls of the loop-thread hooks: building events, lending scratch, taking what comes back (spec/05-phases, 5.1). */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stdlib.h>
#include <time.h>

#include "pxg_internal.h"
#include "pxg_loading.h"

enum { LIB_UP = 1, LIB_PENDED = 2 };

/* False: no memory to know it by; the hook is called all the same. */
static bool enter(pxg_worker *w, pxg_guest_lib *l) {
  if (l->ctx >= w->n_libs) {
    size_t n = (size_t)l->ctx + 8;
    uint8_t *more = realloc(w->libs, n);
    if (!more) return false;
    memset(more + w->n_libs, 0, n - w->n_libs);
    w->libs = more;
    w->n_libs = n;
  }
  if (w->libs[l->ctx] & LIB_UP) return true;
  w->libs[l->ctx] |= LIB_UP;
  if (l->table.on_worker) l->table.on_worker(l->table.ctx, w->index, 1);
  return true;
}

void pxg_worker_warm_up(pxg_worker *w, pxg_guest_lib *lib) { (void)enter(w, lib); }

bool pxg_worker_batch_due(const pxg_worker *w) { return w->batch_due; }

void pxg_worker_batch_end(pxg_worker *w) {
  w->batch_due = false;
  for (pxg_guest_lib *l = pxg_guest_first(); l; l = l->next) {
    if (l->ctx >= w->n_libs || !(w->libs[l->ctx] & LIB_PENDED)) continue;
    w->libs[l->ctx] &= (uint8_t)~LIB_PENDED;
    if (l->table.on_batch_end) l->table.on_batch_end(l->table.ctx, w->index);
  }
}

pxg_worker *pxg_worker_new(uint32_t index, void (*bell)(void *data), void *data) {
  void *room;
  if (posix_memalign(&room, 64, sizeof(pxg_worker))) return NULL;
  pxg_worker *w = room;
  memset(w, 0, sizeof *w);
  w->index = index;
  w->bell = bell;
  w->data = data;
  w->now = 1;
  w->ready_last = &w->ready;
  w->call =
      (pxg_call){.ops = w->ops, .ops_cap = PXG_SCRATCH_OPS, .scratch = w->scratch, .scratch_cap = PXG_SCRATCH_BYTES};
  return w;
}

void pxg_worker_clock(pxg_worker *w, uint64_t now_ns) { w->now = now_ns; }

void pxg_worker_free(pxg_worker *w) {
  for (pxg_guest_lib *l = pxg_guest_first(); l; l = l->next)
    if (l->ctx < w->n_libs && (w->libs[l->ctx] & LIB_UP) && l->table.on_worker)
      l->table.on_worker(l->table.ctx, w->index, 0);
  pxg_visitors_wait();
  pxg_collect(w);
  pxg_slots_leave(w);
  if (w->read) pxg_effect_free(w->read);
  free(w->libs);
  free(w->attrs);
  free(w);
}

/* ---- views ------------------------------------------------------------------------------------------------------- */

static bool show(pxg_stream *s, int d, bool trailers, const pxg_field **at, uint64_t *n) {
  pxg_view v = {NULL, 0};
  if (trailers && !s->trailers[d]) return true;
  if (!trailers && !s->began[d]) return true;
  if (!pxg_show(s, d, trailers, &v)) return false;
  *at = v.n ? v.at : NULL;
  *n = v.n;
  return true;
}

static bool show_fields(pxg_place *p, int d, pxg_event *ev) {
  pxg_stream *s = p->s;
  bool log = ev->phase == PXG_PHASE_LOG;
  int own = log ? RSP : d;
  if (own < 0) return true;
  bool heads = log || pxg_is_headers(ev->phase) || (ev->flags & PXG_EV_HEADERS_HELD);
  bool trailers = log || pxg_is_trailers(ev->phase) || (ev->flags & PXG_EV_WHOLE_BODY);
  if (heads && !show(s, own, false, &ev->fields, &ev->n_fields)) return false;
  if (trailers && !show(s, own, true, &ev->trailers, &ev->n_trailers)) return false;
  if (!log && !(own == RSP && heads && (p->c->flags & PXG_CFG_WANT_PEER_FIELDS))) return true;
  return show(s, REQ, false, &ev->peer_fields, &ev->n_peer_fields) &&
         show(s, REQ, true, &ev->peer_trailers, &ev->n_peer_trailers);
}

static void show_chunks(pxg_place *p, int d, pxg_event *ev, uint64_t len) {
  pxg_dir *x = &p->d[d];
  pxg_str *to = p->s->w->chunks;
  uint64_t n = 0;
  for (size_t i = 0; i < x->view.n && len; i++) {
    const pxg_slice *s = pxg_bytes_at(&x->view, i);
    uint64_t k = s->len < len ? s->len : len;
    to[n++] = (pxg_str){s->ptr, (uint32_t)k, 0};
    len -= k;
  }
  ev->chunks = n ? to : NULL;
  ev->n_chunks = n;
  ev->body_offset = x->offset;
}

static bool attribute(pxg_place *p, const pxg_attr *a, uint32_t phase, pxg_str *to) {
  pxg_stream *s = p->s;
  if (!(a->phases >> phase & 1)) return false;
  if (a->id == PXG_ATTR_METADATA) {
    const pxg_meta *m = pxg_meta_find(s, a->name, a->name_len);
    if (m) *to = (pxg_str){m->value, m->len, 0};
    return m != NULL;
  }
  return a->id >= 0 && s->ops->attribute && s->ops->attribute(s->data, a->id, phase, to);
}

static bool show_attributes(pxg_place *p, pxg_event *ev) {
  const pxg_config *c = p->c;
  pxg_worker *w = p->s->w;
  if (!(c->attr_phases >> ev->phase & 1)) return true;
  if (c->n_attrs > w->attrs_cap) {
    pxg_str *more = realloc(w->attrs, c->n_attrs * sizeof *more);
    if (!more) return false;
    w->attrs = more;
    w->attrs_cap = c->n_attrs;
  }
  for (size_t i = 0; i < c->n_attrs; i++) {
    w->attrs[i] = (pxg_str){NULL, 0, 0};
    if (!attribute(p, &c->attrs[i], ev->phase, &w->attrs[i])) w->attrs[i] = (pxg_str){NULL, 0, PXG_STR_ABSENT};
  }
  ev->attrs = w->attrs;
  ev->n_attrs = c->n_attrs;
  return true;
}

/* ---- the call ---------------------------------------------------------------------------------------------------- */

static uint64_t clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t pxg_cross(pxg_worker *w, const pxg_config *c, const pxg_speaker *speaker, const pxg_event *ev,
                   uint64_t start) {
  pxg_guest_lib *l = c->lib;
  pxg_call *lent = &w->call;
  w->out = (pxg_result){.size = sizeof w->out,
                        .user = ev->user,
                        .scratch_ops = lent->ops,
                        .scratch_ops_cap = lent->ops_cap,
                        .scratch = lent->scratch,
                        .scratch_cap = lent->scratch_cap};
  enter(w, l);
  pxg_call_begin(lent);
  lent->config = c, lent->speaker = speaker, lent->phase = ev->phase;
  uint64_t (*clock)(void) = pxg_host_driver()->clock;
  if (!start || !clock) start = clock ? clock() : clock_ns();
  l->table.on_event(l->table.ctx, ev, &w->out);
  uint64_t end = clock ? clock() : clock_ns(), took = end - start;
  lent->config = NULL, lent->speaker = NULL;
  pxg_count_call(c->counters, ev->phase, took);
  if (clock) w->now = end; /* A deadline counts from the return (PXG-ASY-011). */
  return took;
}

static bool is_pending(pxg_place *p, int dir, uint32_t phase, pxg_decision *d) {
  if (d->action != PXG_ACT_PENDING) return false;
  if (dir >= 0 && p->d[dir].observing) pxg_refuse(d, PXG_E_STATE, "PENDING: found in OBSERVE [PXG-BODY-007]");
  if (!(p->c->pend_phases >> phase & 1))
    pxg_refuse(d, PXG_E_STATE, "PENDING: found outside pend_phases [PXG-ACT-006]");
  else if (d->n_ops || d->has_reply || d->unsubscribe || d->mode[0] || d->mode[1] || d->flags || d->more_bytes ||
           d->text[0])
    pxg_refuse(d, PXG_E_ARG, "PENDING: found more than user and pend_ns [PXG-ACT-008]");
  return !d->status && dir >= 0;
}

uint64_t pxg_pending_begins(pxg_worker *w, pxg_config *c, uint32_t phase, uint64_t wish) {
  uint64_t most = c->policy.pend_limit_ns;
  if (!wish) wish = c->pend_ns ? c->pend_ns : c->policy.pend_default_ns;
  atomic_fetch_add_explicit(&c->pending[w->index], 1, memory_order_relaxed);
  pxg_count_pending(c->counters, 1);
  pxg_count(&c->counters->pendings[phase]);
  const pxg_guest_lib *l = c->lib;
  if (l->table.on_batch_end && l->ctx < w->n_libs && pxg_has(c->features, PXG_F_BATCH_END)) {
    w->libs[l->ctx] |= LIB_PENDED;
    w->batch_due = true;
  }
  return w->now + (wish < most ? wish : most);
}

void pxg_pending_ends(pxg_worker *w, pxg_config *c) {
  atomic_fetch_sub_explicit(&c->pending[w->index], 1, memory_order_relaxed);
  pxg_count_pending(c->counters, -1);
}

/* D04 */
static void start_pending(pxg_place *p, int d, const pxg_event *ev, uint64_t view, const pxg_decision *dec) {
  pxg_dir *x = &p->d[d];
  pxg_worker *w = p->s->w;
  x->state = S_PEND;
  x->token = ev->token;
  x->pend_phase = ev->phase;
  x->pend_flags = ev->flags;
  x->pend_len = view;
  if (pxg_is_headers(ev->phase)) {
    x->shown_fields = ev->n_fields;
    x->shown_bytes = pxg_view_bytes(&(pxg_view){ev->fields, ev->n_fields});
  }
  x->deadline = pxg_pending_begins(w, p->c, ev->phase, dec->pend_ns);
  if (!x->withheld) x->hold_since = w->now, x->withheld = true;
}

void pxg_conclude(pxg_place *p, int d, const pxg_event *ev, uint64_t len) {
  pxg_stream *s = p->s;
  pxg_worker *w = s->w;
  pxg_decision *dec = &w->decision;
  p->user = w->out.user;
  pxg_decision_init(dec, w->todos, PXG_INLINE_OPS, NULL, 0);
  pxg_decision_read(dec, &w->out, BY_EVENT, &w->call);
  if (w->call.over && dec->action == PXG_ACT_ERROR)
    pxg_refuse(dec, PXG_E_LIMIT, "scratch_more: found a request over the limit");
  bool pending = is_pending(p, d, ev->phase, dec);
  if (pending) start_pending(p, d, ev, len, dec);
  if (ev->token) pxg_token_returned(w, p->c, ev->token, pending);
  if (dec->no_memory) s->no_memory = true;
  if (!pending && !dec->no_memory) pxg_take_result(p, d, ev->phase, ev->flags, len, dec, BY_EVENT);
  pxg_keep_views(s, false);
  pxg_decision_free(dec);
  pxg_call_end(&w->call);
}

static uint32_t event_flags(const pxg_place *p, int d, uint32_t phase) {
  const pxg_stream *s = p->s;
  uint32_t flags = 0;
  if (phase != PXG_PHASE_LOG && pxg_can_reply(p)) flags |= PXG_EV_CAN_REPLY;
  if ((d == RSP || phase == PXG_PHASE_LOG) && s->local) flags |= PXG_EV_LOCAL_ORIGIN;
  if (s->upgraded && s->began[RSP]) flags |= PXG_EV_UPGRADED;
  if (s->redirected) flags |= PXG_EV_REDIRECTED;
  if (s->flags & PXG_STREAM_SUBREQUEST) flags |= PXG_EV_SUBREQUEST;
  if (d >= 0 && p->d[d].resumed) flags |= PXG_EV_RESUMED;
  return flags;
}

void pxg_deliver(pxg_place *p, int d, uint32_t phase, uint32_t flags, uint64_t len, uint64_t arg) {
  pxg_stream *s = p->s;
  pxg_worker *w = s->w;
  pxg_dir *x = d >= 0 ? &p->d[d] : NULL;
  bool pends = p->c->pend_phases >> phase & 1;
  if (pends && atomic_load_explicit(&p->c->pending[w->index], memory_order_relaxed) >= p->c->policy.max_pending)
    return pxg_failure(p, d, phase, PXG_R_CAP, "as many places are PENDING as the cap allows [PXG-SEC-002]");
  pxg_event ev = {.size = sizeof ev,
                  .phase = phase,
                  .flags = flags | event_flags(p, d, phase),
                  .worker = w->index,
                  .config = p->c->value,
                  .user = p->user,
                  .stream = p->handle,
                  .arg = arg};
  if (x && pxg_is_body(phase)) show_chunks(p, d, &ev, len);
  pxg_keep_views(s, true);
  bool ok = show_fields(p, d, &ev) && show_attributes(p, &ev);
  if (ok && pends) ok = (ev.token = pxg_token_new(w, p->c, p, NULL, phase, ev.flags)) != 0;
  if (!ok) {
    pxg_keep_views(s, false);
    s->no_memory = true;
    return;
  }
  if (x) x->resumed = false, x->last_event = w->now, x->shown_fields = 0;
  pxg_speaker speaker = pxg_stream_speaker(s);
  p->time_ns += pxg_cross(w, p->c, &speaker, &ev, 0);
  pxg_conclude(p, d, &ev, len);
}

/* ---- the other hooks --------------------------------------------------------------------------------------------- */

void pxg_cancel(pxg_worker *w, pxg_config *c, uint64_t user, uint64_t handle, uint64_t token) {
  pxg_guest_lib *l = c->lib;
  enter(w, l);
  pxg_count(&c->counters->cancels);
  l->table.on_cancel(l->table.ctx, c->value, user, handle, token, w->index);
}

void pxg_call_cancel(pxg_place *p, uint64_t token) { pxg_cancel(p->s->w, p->c, p->user, p->handle, token); }

void pxg_call_stream_end(pxg_place *p) {
  pxg_guest_lib *l = p->c->lib;
  enter(p->s->w, l);
  l->table.on_stream_end(l->table.ctx, p->c->value, p->user, p->handle, p->s->w->index);
}
