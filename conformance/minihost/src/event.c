/* SPDX-License-Identifier: Apache-2.0 */

/* Calls of the loop-thread hooks: building events, lending scratch, taking what comes back (spec/05-phases, 5.1). */

#include <unistd.h>

#include "minihost.h"

void loop_enter(worker *w, lib *l) {
  if (l->ctx >= w->n_libs) {
    size_t n = (size_t)l->ctx + 8;
    w->lib_up = must(realloc(w->lib_up, n * sizeof *w->lib_up));
    w->lib_pended = must(realloc(w->lib_pended, n * sizeof *w->lib_pended));
    memset(w->lib_up + w->n_libs, 0, (n - w->n_libs) * sizeof *w->lib_up);
    memset(w->lib_pended + w->n_libs, 0, (n - w->n_libs) * sizeof *w->lib_pended);
    w->n_libs = n;
  }
  if (w->lib_up[l->ctx] && !BUG("worker-up-again")) return;
  w->lib_up[l->ctx] = true;
  if (l->table.on_worker && !BUG("worker-never-up")) l->table.on_worker(l->table.ctx, w->index, 1);
}

/* ---- views ------------------------------------------------------------------------------------------------------- */

typedef struct view {
  pxg_event ev;
  pxg_str chunks[64], *many, *attrs;
  char (*rooms)[128];
} view;

/* The worker's array holds the views of all lists of an event. */
static void reserve(worker *w, size_t n) {
  if (n <= w->fields_cap) return;
  w->fields_cap = n * 2;
  w->fields = must(realloc(w->fields, w->fields_cap * sizeof *w->fields));
}

static const pxg_field *show(worker *w, size_t *used, fields *list, bool mark, const place *p, uint32_t phase,
                             uint64_t *count) {
  pxg_field *to = w->fields + *used;
  size_t n = 0;
  bool projected = false;
  for (size_t k = 0; k < p->c->n_projection; k++) projected |= p->c->projection_phases[k] >> phase & 1;
  for (size_t i = 0; i < list->n; i++) {
    field *f = &list->at[i];
    bool wanted = !projected || !BUG("projection-too-narrow");
    if (BUG("empty-values-left-out") && !f->value_len) wanted = false;
    if (BUG("fields-as-they-came") && f->changed) wanted = false;
    if (mark) f->seen = wanted ? (int64_t)n : -1;
    if (!wanted) continue;
    if (BUG("upper-case-names") && !strncmp(f->name, "x-", 2) && strcmp(f->name, "x-pxg-case"))
      for (char *c = f->name; *c; c++)
        if (*c >= 'a' && *c <= 'z') *c -= 32;
    to[n].name = (pxg_str){(uint8_t *)f->name, f->name_len, 0};
    to[n++].value = (pxg_str){(uint8_t *)f->value, f->value_len, f->flags};
  }
  if (BUG("order-of-values-lost") && n > 1)
    for (size_t i = 0; i < n / 2; i++) {
      pxg_field t = to[i];
      to[i] = to[n - 1 - i];
      to[n - 1 - i] = t;
    }
  *used += n;
  *count = n;
  return n ? to : NULL;
}

static void show_fields(place *p, int d, pxg_event *ev) {
  stream *s = p->s;
  worker *w = s->w;
  uint32_t phase = ev->phase;
  bool log = phase == PXG_PHASE_LOG;
  int own = log ? RSP : d;
  size_t used = 0;
  reserve(w, s->m[0].head.n + s->m[0].trailers.n + s->m[1].head.n + s->m[1].trailers.n);
  if (own < 0 || s->l4) return;
  bool heads = log || is_headers_phase(phase) || (ev->flags & PXG_EV_HEADERS_HELD);
  if (BUG("fields-in-every-event")) heads = true;
  bool trailers = log || phase == PXG_PHASE_REQUEST_TRAILERS || phase == PXG_PHASE_RESPONSE_TRAILERS ||
                  (ev->flags & PXG_EV_WHOLE_BODY);
  if (BUG("whole-without-trailers") && (ev->flags & PXG_EV_WHOLE_BODY)) trailers = false;
  message *m = &s->m[own];
  for (size_t i = 0; i < m->trailers.n; i++) m->trailers.at[i].seen = -1;
  if (heads) ev->fields = show(w, &used, &m->head, true, p, phase, &ev->n_fields);
  if (trailers) ev->trailers = show(w, &used, &m->trailers, true, p, 0, &ev->n_trailers);
  if (log || (own == RSP && heads && (p->c->flags & PXG_CFG_WANT_PEER_FIELDS))) {
    ev->peer_fields = show(w, &used, &s->m[REQ].head, false, p, 0, &ev->n_peer_fields);
    ev->peer_trailers = show(w, &used, &s->m[REQ].trailers, false, p, 0, &ev->n_peer_trailers);
  }
}

static void show_chunks(place *p, int d, view *v, uint64_t len) {
  struct dir *x = &p->d[d];
  pxg_str *to = v->chunks;
  if (x->view.n > 64) to = v->many = must(malloc(x->view.n * sizeof *to));
  uint64_t left = len, n = 0;
  for (size_t i = 0; i < x->view.n && left; i++) {
    slice s = x->view.at[x->view.first + i];
    uint64_t k = s.len < left ? s.len : left;
    to[n++] = (pxg_str){s.ptr, (uint32_t)k, 0};
    left -= k;
  }
  if (BUG("empty-chunk") && n && n < 64) to[n++] = (pxg_str){to[0].ptr, 0, 0};
  v->ev.chunks = n ? to : NULL;
  v->ev.n_chunks = n;
  v->ev.body_offset = BUG("offset-from-zero") ? 0 : x->offset;
}

static void show_attributes(place *p, view *v) {
  const config *c = p->c;
  uint64_t asked = 0;
  for (size_t i = 0; i < c->n_attrs; i++) asked |= c->attrs[i].phases >> v->ev.phase & 1;
  if (!asked && !BUG("attributes-in-every-phase")) return;
  v->attrs = zalloc(c->n_attrs * sizeof *v->attrs);
  v->rooms = zalloc(c->n_attrs * sizeof *v->rooms);
  for (size_t i = 0; i < c->n_attrs; i++) {
    size_t len = 0;
    bool wants = c->attrs[i].phases >> v->ev.phase & 1;
    const char *text =
        wants || BUG("attributes-unasked") ? attribute_get(p->s, &c->attrs[i], v->ev.phase, v->rooms[i], &len) : NULL;
    size_t at = BUG("attributes-in-reverse") ? c->n_attrs - 1 - i : i;
    v->attrs[at] = text ? (pxg_str){(const uint8_t *)text, (uint32_t)len, 0}
                        : (pxg_str){NULL, 0, BUG("absent-attribute-is-empty") ? 0 : PXG_STR_ABSENT};
  }
  v->ev.attrs = v->attrs;
  v->ev.n_attrs = c->n_attrs;
}

/* ---- the call ---------------------------------------------------------------------------------------------------- */

/* Mutants only: a thread that changes a view while the guest looks at it. */
static atomic_bool scribbling;

static void *scribble(void *at) {
  for (volatile uint8_t *p = at; atomic_load(&scribbling); usleep(50)) *p ^= 0x55;
  return NULL;
}

static void *on_thread(void *of) {
  void **a = of;
  const pxg_guest *g = a[0];
  call_now = a[3];
  g->on_event(g->ctx, a[1], a[2]);
  return NULL;
}

static atomic_bool first_is_back;

/* A mutant's further events of the same place, until the first one has returned. */
static void *beside(void *of) {
  void **a = of;
  const pxg_guest *g = a[0];
  pxg_event ev = *(const pxg_event *)a[1];
  pxg_op ops[32] = {{0}};
  _Alignas(16) uint8_t scratch[4096];
  call lent = {.ops = ops, .ops_cap = 32, .scratch = scratch, .scratch_cap = sizeof scratch};
  ev.phase = PXG_PHASE_WAKE;
  ev.token = ev.n_fields = 0;
  ev.fields = NULL;
  int left = 50;
  do {
    pxg_result out = {.size = sizeof out,
                      .user = ev.user,
                      .scratch_ops = ops,
                      .scratch_ops_cap = 32,
                      .scratch = scratch,
                      .scratch_cap = sizeof scratch};
    call_begin(&lent);
    g->on_event(g->ctx, &ev, &out);
    call_end(&lent);
    usleep(1000);
  } while (!atomic_load(&first_is_back) && --left);
  return NULL;
}

static void cross(lib *l, const pxg_event *ev, pxg_result *out, call *lent) {
  pthread_t t;
  bool scribbled = BUG("view-changes-during-the-call") && ev->n_chunks;
  if (scribbled) {
    atomic_store(&scribbling, true);
    if (pthread_create(&t, NULL, scribble, (void *)(uintptr_t)ev->chunks[0].ptr)) abort();
  }
  bool twice = BUG("concurrent-events") && ev->phase == PXG_PHASE_REQUEST_HEADERS;
  pthread_t second;
  atomic_store(&first_is_back, false);
  if (twice && pthread_create(&second, NULL, beside, (void *[]){&l->table, (void *)(uintptr_t)ev})) abort();
  if (BUG("event-on-another-thread") && ev->phase >= PXG_PHASE_RESPONSE_HEADERS) {
    if (pthread_create(&t, NULL, on_thread, (void *[]){&l->table, (void *)(uintptr_t)ev, out, lent})) abort();
    pthread_join(t, NULL);
  } else {
    l->table.on_event(l->table.ctx, ev, out);
  }
  atomic_store(&first_is_back, true);
  if (twice) pthread_join(second, NULL);
  if (scribbled) {
    atomic_store(&scribbling, false);
    pthread_join(t, NULL);
  }
}

static void emit(place *p, const pxg_event *ev, decision *dec, uint32_t *action, bool *over) {
  worker *w = p->s->w;
  lib *l = p->c->lib;
  call lent = {w->scratch_ops, SCRATCH_OPS, w->scratch, SCRATCH_BYTES, {0}, {0}, 0, 0, false};
  if (BUG("scratch-ops-dirty")) memset(w->scratch_ops, 0xa5, SCRATCH_OPS * sizeof *w->scratch_ops);
  if (BUG("little-scratch")) lent.ops_cap = 16;
  if (BUG("scratch-not-aligned")) lent.scratch += 8, lent.scratch_cap -= 8;
  pxg_result out = {.size = sizeof out,
                    .user = ev->user,
                    .scratch_ops = lent.ops,
                    .scratch_ops_cap = lent.ops_cap,
                    .scratch = lent.scratch,
                    .scratch_cap = lent.scratch_cap};
  if (BUG("user-not-preset")) out.user = 0;
  if (BUG("action-preset-continue")) out.action = PXG_ACT_CONTINUE;
  loop_enter(w, l);
  p->s->in_call = true;
  call_begin(&lent);
  uint64_t start = now_ns();
  cross(l, ev, &out, &lent);
  uint64_t ns = now_ns() - start;
  p->s->in_call = false;
  p->c->stats->calls[ev->phase] += !BUG("calls-uncounted");
  stats_time(p->c->stats, ev->phase, ns);
  if (!BUG("user-kept-from-the-first-event") || !p->user) p->user = out.user;
  if (BUG("user-of-the-first-place"))
    for (int i = 0; i < p->s->n; i++) p->s->places[i].user = p->user;
  if (BUG("user-is-a-pointer")) p->user &= ~7ull;
  *action = out.action;
  *over = lent.over;
  if (BUG("borrowed-read-after-the-next-call") && out.action == PXG_ACT_CONTINUE &&
      ev->phase == PXG_PHASE_REQUEST_HEADERS && l->table.on_worker)
    l->table.on_worker(l->table.ctx, w->index, 0);
  decision_read(dec, &out, BY_EVENT, &lent);
  call_end(&lent);
}

static bool pending_is_legal(const place *p, int dir, uint32_t phase, decision *d) {
  if (d->action != PXG_ACT_PENDING) return false;
  if (dir >= 0 && is_observing(&p->d[dir])) refuse(d, PXG_E_STATE, "PENDING: found in OBSERVE [PXG-BODY-007]");
  if (!(p->c->pend_phases >> phase & 1) && !BUG("pending-anywhere")) {
    refuse(d, PXG_E_STATE, "PENDING: found outside pend_phases [PXG-ACT-006]");
  } else if (d->n_ops || d->has_reply || d->unsubscribe || d->mode[0] || d->mode[1] || d->flags || d->more_bytes ||
             (d->error && *d->error)) {
    if (!BUG("pending-with-operations"))
      refuse(d, PXG_E_ARG, "PENDING: found more than user and pend_ns [PXG-ACT-008]");
  }
  return !d->status;
}

static void start_pending(place *p, int d, const pxg_event *ev, uint64_t view, const decision *dec) {
  struct dir *x = &p->d[d];
  uint64_t wish = dec->pend_ns ? dec->pend_ns : p->c->pend_ns, most = p->c->spec->pend_limit_ms * 1000000;
  x->state = S_PEND;
  x->token = ev->token;
  x->pend_phase = ev->phase;
  x->pend_flags = ev->flags;
  x->pend_len = view;
  x->deadline = now_ns() + (wish < most ? wish : most);
  if (!x->hold_since) x->hold_since = now_ns();
  stream_later(p->s, x->deadline);
  stream_later(p->s, x->hold_since + p->c->spec->hold_span_ms * 1000000);
  p->c->pending[p->s->w->index]++;
  p->c->stats->pending++;
  p->c->stats->pendings[ev->phase]++;
  p->s->w->lib_pended[p->c->lib->ctx] = true;
}

static uint32_t event_flags(const place *p, int d, uint32_t phase) {
  const stream *s = p->s;
  uint32_t flags = 0;
  bool ends = phase == PXG_PHASE_LOG || phase >= PXG_PHASE_L4_OPEN;
  bool response = d == RSP && !s->l4;
  bool behind = BUG("can-reply-behind-a-reply") && p->s->replied && !p->s->m[RSP].sent;
  if (!ends && (BUG("can-reply-always") || behind || can_reply(p))) flags |= PXG_EV_CAN_REPLY;
  if (response && s->m[RSP].local && !BUG("local-origin-unsaid")) flags |= PXG_EV_LOCAL_ORIGIN;
  if (s->upgraded && s->began[RSP] && !BUG("upgrade-unsaid")) flags |= PXG_EV_UPGRADED;
  if (d >= 0 && p->d[d].resumed && !BUG("resumed-never-said")) flags |= PXG_EV_RESUMED;
  return flags;
}

/* A mutant. */
static void take_newest(place *p) {
  config *chain[MAX_PLACES];
  size_t n = world_take(p->s->raw_path, chain);
  for (size_t i = 0; i < n; i++) {
    config *c = chain[i];
    if (!strcmp(c->instance, p->c->instance)) chain[i] = p->c, p->c = c;
  }
  for (size_t i = 0; i < n; i++) config_unref(chain[i]);
}

void deliver(place *p, int d, uint32_t phase, uint32_t flags, uint64_t len, uint64_t arg) {
  stream *s = p->s;
  struct dir *x = d >= 0 ? &p->d[d] : NULL;
  if (BUG("newest-configuration-for-all")) take_newest(p);
  bool pends = p->c->pend_phases >> phase & 1;
  if (pends && (uint64_t)atomic_load(&p->c->pending[s->w->index]) >= p->c->spec->pending_cap &&
      !BUG("pending-uncapped"))
    return fail(p, d, phase, R_CAP, "as many places are PENDING as the cap allows [PXG-SEC-002]");
  view v = {.ev = {.size = sizeof v.ev,
                   .phase = phase,
                   .flags = flags | event_flags(p, d, phase),
                   .worker = s->w->index,
                   .config = p->c->value,
                   .user = p->user,
                   .stream = p->handle,
                   .arg = arg}};
  pxg_event *ev = &v.ev;
  if (BUG("event-size-zero")) ev->size = 0;
  if (BUG("worker-out-of-range")) ev->worker += set.workers;
  if (BUG("undefined-bits-sent")) ev->flags |= 1u << 20;
  if (pends) ev->token = token_new(p, d, phase, ev->flags);
  show_fields(p, d, ev);
  if (x && is_body_phase(phase)) show_chunks(p, d, &v, len);
  show_attributes(p, &v);
  if (x) x->resumed = false, x->last_event = now_ns();
  decision dec = {0};
  uint32_t action;
  bool over;
  emit(p, ev, &dec, &action, &over);
  bool pending = pending_is_legal(p, d, phase, &dec);
  if (!ev->token && pending && d < 0) pending = false;
  if (BUG("early-completion-wins") && x && ev->token && token_is_early(ev->token)) pending = true;
  if (pending) start_pending(p, d, ev, len, &dec);
  if (pending && BUG("leaves-while-pending") && d == REQ && is_headers_phase(phase) && x->held) pass_headers(p, d);
  if (ev->token) token_returned(p, ev->token, pending);
  if (!pending) take_result(p, d, phase, ev->flags, len, &dec, BY_EVENT);
  decision_free(&dec);
  free(v.many);
  free(v.attrs);
  free(v.rooms);
}

void deliver_wake(place *p, uint32_t flags, uint64_t arg) {
  if (subscribed(p, PXG_PHASE_WAKE)) deliver(p, -1, PXG_PHASE_WAKE, flags, 0, arg);
}

/* ---- the other hooks --------------------------------------------------------------------------------------------- */

void call_cancel(place *p, uint64_t token) {
  lib *l = p->c->lib;
  loop_enter(p->s->w, l);
  uint64_t user = BUG("cancel-without-user") ? 0 : p->user;
  p->c->stats->cancels += !BUG("cancels-uncounted");
  l->table.on_cancel(l->table.ctx, p->c->value, user, p->handle, token, p->s->w->index);
  if (BUG("cancel-twice")) l->table.on_cancel(l->table.ctx, p->c->value, user, p->handle, token, p->s->w->index);
}

void call_stream_end(place *p) {
  lib *l = p->c->lib;
  loop_enter(p->s->w, l);
  l->table.on_stream_end(l->table.ctx, p->c->value, p->user, p->handle, p->s->w->index);
}
