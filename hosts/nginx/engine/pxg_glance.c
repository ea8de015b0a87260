/* SPDX-License-Identifier: Apache-2.0 */

/* The life of a stream whose only filter looks at the request's head, without a stream.
 *
 * Such a filter has one event, and nearly always answers it at once with CONTINUE and edits of the head or none. What the
 * state machine would then do is known: the head goes on, everything else passes unseen, at the end the handle dies and
 * on_stream_end comes if the guest has set its slot. That is done here. For all else the stream is made where it would be
 * by now, and goes on by the functions that follow on any event: with the result as the guest gave it, or, when `apply`
 * comes later, as one whose head has passed. A test runs every kind of result both ways. */

#include "pxg_internal.h"

/* Edits of one result that are looked at here. */
enum { MOST_EDITS = 16 };

/* ---- results ----------------------------------------------------------------------------------------------------- */

/* What lies outside of the worker, where lent memory is, cannot leave it. */
static bool overruns(const pxg_worker *w, const void *ptr, uint64_t len) {
  return (uintptr_t)ptr - (uintptr_t)w < sizeof *w && pxg_call_overruns(&w->call, ptr, len);
}

static bool is_text(const pxg_worker *w, const pxg_str *s, uint32_t flags) {
  return !(s->flags & ~flags) && (!s->len || (s->ptr && !overruns(w, s->ptr, s->len)));
}

/* An edit that needs no state to be judged, and is legal. */
static bool is_edit(const pxg_worker *w, const pxg_op *o) {
  bool deletes = o->kind == PXG_OP_HEADER_DELETE;
  const pxg_str *value = &o->val.bytes;
  if (!deletes && o->kind != PXG_OP_HEADER_SET && o->kind != PXG_OP_HEADER_ADD) return false;
  if ((o->flags & ~PXG_OPF_MUST) || o->target != PXG_TARGET_HEADERS || o->u0 || !o->key.len) return false;
  if (!is_text(w, &o->key, 0) || !is_text(w, value, deletes ? 0 : PXG_STR_SENSITIVE | PXG_BUF_STATIC)) return false;
  if (deletes && value->len) return false;
  return o->key.ptr[0] != ':' && !pxg_field_fault(o->key.ptr, o->key.len, value->ptr, value->len, true, false, REQ);
}

/* Within the limits of a message. */
static bool fits(const pxg_config *c, const pxg_result *r, const pxg_field *fields, size_t n) {
  uint64_t len = 0, added = 0;
  for (uint64_t i = 0; i < r->n_ops; i++) {
    const pxg_op *o = &r->ops[i];
    if (o->kind != PXG_OP_HEADER_DELETE) len += o->key.len + (uint64_t)o->val.bytes.len;
    added += o->kind == PXG_OP_HEADER_ADD;
  }
  for (size_t i = 0; i < n; i++) len += fields[i].name.len + (uint64_t)fields[i].value.len;
  return n + added <= c->policy.max_fields && len <= c->policy.max_bytes;
}

/* CONTINUE with edits by name or none: what a stream would do nothing else with than make them and pass the head. */
static bool is_plain(const pxg_worker *w, const pxg_config *c, const pxg_field *fields, size_t n) {
  const pxg_result *r = &w->out;
  if (r->action != PXG_ACT_CONTINUE || r->size < sizeof *r || r->reply) return false;
  if (r->flags | r->reserved0 | r->unsubscribe | r->body_mode[0] | r->body_mode[1] | r->error.len | r->error.flags)
    return false;
  if (!r->n_ops) return true;
  if (r->n_ops > MOST_EDITS || r->n_ops > c->policy.max_ops || !r->ops || w->call.more) return false;
  if (overruns(w, r->ops, r->n_ops * sizeof *r->ops)) return false;
  for (uint64_t i = 0; i < r->n_ops; i++)
    if (!is_edit(w, &r->ops[i])) return false;
  return fits(c, r, fields, n);
}

/* PENDING and nothing else. */
static bool is_wait(const pxg_glance *g, const pxg_result *r) {
  return r->action == PXG_ACT_PENDING && g->token && r->size >= sizeof *r && !r->reply && !r->n_ops && !r->more_bytes &&
         !(r->flags | r->reserved0 | r->unsubscribe | r->body_mode[0] | r->body_mode[1] | r->error.len |
           r->error.flags);
}

/* The same as is_plain, of a completion, which `complete` has judged as far as that needs no state. */
static bool is_plain_completion(const pxg_glance *g, const pxg_decision *d) {
  uint64_t len = g->shown_bytes, n = g->n_fields, added = 0;
  if (d->action != PXG_ACT_CONTINUE || d->status || d->no_memory || d->has_reply || d->text[0]) return false;
  if (d->flags || d->unsubscribe || d->mode[0] || d->mode[1] || d->n_ops > MOST_EDITS) return false;
  for (size_t i = 0; i < d->n_ops; i++) {
    const pxg_todo *o = &d->ops[i];
    bool deletes = o->kind == PXG_OP_HEADER_DELETE;
    if (!deletes && o->kind != PXG_OP_HEADER_SET && o->kind != PXG_OP_HEADER_ADD) return false;
    if (o->skip || o->val.owner || o->target != PXG_TARGET_HEADERS || !o->key.len || o->key.ptr[0] == ':') return false;
    if (deletes) continue;
    added++;
    n += o->kind == PXG_OP_HEADER_ADD;
    len += o->key.len + (uint64_t)o->val.len;
  }
  return !added || (n <= g->config->policy.max_fields && len <= g->config->policy.max_bytes);
}

/* ---- the event --------------------------------------------------------------------------------------------------- */

static bool may_begin(const pxg_worker *w, const pxg_config *c, uint32_t head_flags) {
  bool pends = c->pend_phases >> PXG_PHASE_REQUEST_HEADERS & 1;
  if (head_flags & ~(PXG_HEAD_ENDS | PXG_HEAD_EOS_UNKNOWN)) return false;
  return !pends || atomic_load_explicit(&c->pending[w->index], memory_order_relaxed) < c->policy.max_pending;
}

static uint32_t event_flags(uint32_t head_flags) {
  if (head_flags & PXG_HEAD_ENDS) return PXG_EV_CAN_REPLY | PXG_EV_END_STREAM;
  return PXG_EV_CAN_REPLY | (head_flags & PXG_HEAD_EOS_UNKNOWN ? PXG_EV_EOS_UNKNOWN : 0);
}

static void wait(pxg_glance *g) {
  pxg_worker *w = g->w;
  g->waiting = true;
  g->user = w->out.user;
  g->since = w->now;
  g->shown_bytes = pxg_view_bytes(&(pxg_view){g->fields, g->n_fields});
  g->fields = NULL;
  g->deadline = pxg_pending_begins(w, g->config, PXG_PHASE_REQUEST_HEADERS, w->out.pend_ns);
  pxg_token_returned(w, g->config, g->token, true);
  pxg_call_end(&w->call);
}

pxg_glanced pxg_glance_head(pxg_glance *g, pxg_worker *w, pxg_config *c, const pxg_speaker *speaker,
                            const pxg_field *fields, size_t n, uint32_t head_flags, const pxg_op **edits,
                            size_t *n_edits) {
  const uint32_t phase = PXG_PHASE_REQUEST_HEADERS;
  if (!may_begin(w, c, head_flags)) return PXG_GLANCE_NONE;
  *g = (pxg_glance){.w = w, .config = c, .data = speaker->data, .head = head_flags};
  g->handle = pxg_handle_new(w, c, NULL, g);
  if (!g->handle) return PXG_GLANCE_NONE;
  pxg_event ev = {.size = sizeof ev,
                  .phase = phase,
                  .flags = event_flags(head_flags),
                  .worker = w->index,
                  .config = c->value,
                  .stream = g->handle,
                  .fields = n ? fields : NULL,
                  .n_fields = n};
  if (c->pend_phases >> phase & 1) {
    ev.token = g->token = pxg_token_new(w, c, NULL, g, phase, ev.flags);
    if (!ev.token) {
      pxg_handle_retire(w, g->handle);
      g->handle = 0;
      return PXG_GLANCE_NONE;
    }
  }
  g->time_ns = pxg_cross(w, c, speaker, &ev, w->now);
  /* What came by mail meanwhile may be for it, and comes before the head leaves. */
  bool mail = atomic_load_explicit(&w->box, memory_order_relaxed);
  g->fields = fields;
  g->n_fields = n;
  if (!mail && is_wait(g, &w->out)) {
    wait(g);
    return PXG_GLANCE_WAITS;
  }
  if (mail || !is_plain(w, c, fields, n)) return PXG_GLANCE_MORE;
  g->answered = true;
  g->user = w->out.user;
  g->edited = w->out.n_ops;
  *edits = w->out.ops;
  *n_edits = (size_t)w->out.n_ops;
  if (g->token) pxg_token_returned(w, c, g->token, false);
  g->token = 0;
  pxg_call_end(&w->call);
  return PXG_GLANCE_PASSED;
}

/* ---- the stream in its stead ------------------------------------------------------------------------------------- */

/* As the state machine has a place whose event of the head has returned. */
static void go_on_from_event(pxg_glance *g, pxg_stream *s) {
  pxg_place *p = &s->places[0];
  pxg_dir *x = &p->d[REQ];
  pxg_event ev = {.phase = PXG_PHASE_REQUEST_HEADERS,
                  .flags = event_flags(g->head),
                  .token = g->token,
                  .fields = g->fields,
                  .n_fields = g->n_fields};
  bool ends = pxg_begin_head(s, REQ, g->head);
  pxg_enter_head(s, REQ, ends);
  if (ends) pxg_enter_end(s, REQ);
  x->held = true;
  x->body_end_seen = ends;
  x->last_event = s->w->now;
  if (g->token) pxg_slot_moves(g->token, p);
  s->running = true;
  pxg_conclude(p, REQ, &ev, 0);
  s->running = false;
  pxg_run(s);
}

/* One whose event was answered by PENDING. */
static void go_on_waiting(const pxg_glance *g, pxg_stream *s) {
  pxg_place *p = &s->places[0];
  pxg_dir *x = &p->d[REQ];
  bool ends = pxg_begin_head(s, REQ, g->head);
  pxg_enter_head(s, REQ, ends);
  if (ends) pxg_enter_end(s, REQ);
  p->user = g->user;
  x->held = true;
  x->body_end_seen = ends;
  x->last_event = g->since;
  x->state = S_PEND;
  x->token = g->token;
  x->pend_phase = PXG_PHASE_REQUEST_HEADERS;
  x->pend_flags = event_flags(g->head);
  x->shown_fields = g->n_fields;
  x->shown_bytes = g->shown_bytes;
  x->deadline = g->deadline;
  x->hold_since = g->since;
  x->withheld = true;
  pxg_slot_moves(g->token, p);
  if (!g->lost) return;
  s->no_memory = true;
  pxg_mail_ready(s);
}

/* And one whose head has passed, and what else has gone by. */
static void go_on_behind(const pxg_glance *g, pxg_stream *s, uint32_t gone, uint32_t response_flags) {
  pxg_place *p = &s->places[0];
  pxg_dir *x = &p->d[REQ];
  pxg_out out;
  bool ends = pxg_begin_head(s, REQ, g->head);
  pxg_head_passes_by(s, REQ, ends);
  p->user = g->user;
  x->body_end_seen = ends;
  x->modes_final = true;
  x->changed = g->edited;
  x->last_event = s->w->now;
  if ((gone & PXG_GLANCE_REQUEST_END) && !ends) {
    s->in_done[REQ] = true;
    pxg_end_passes_by(s, REQ);
  }
  if (gone & PXG_GLANCE_RESPONSE_HEAD) {
    ends = pxg_begin_head(s, RSP, response_flags);
    pxg_head_passes_by(s, RSP, ends);
  }
  if ((gone & PXG_GLANCE_RESPONSE_END) && !ends) {
    s->in_done[RSP] = true;
    pxg_end_passes_by(s, RSP);
  }
  while (pxg_take(s, &out)) { /* The driver has had it. */
  }
}

static pxg_effect *next_letter(pxg_glance *g) {
  pxg_effect *e = g->first;
  if (e) g->first = e->next;
  return e;
}

static void forget(pxg_glance *g) {
  if (!g->called) return;
  g->called = false;
  for (pxg_glance **at = &g->w->called; *at; at = &(*at)->next)
    if (*at == g) {
      *at = g->next;
      if (!*at) g->w->last_called = at;
      return;
    }
}

pxg_stream *pxg_glance_stream(pxg_glance *g, const pxg_stream_ops *ops, void *data, uint64_t id, uint32_t flags,
                              uint32_t gone, uint32_t response_flags) {
  pxg_worker *w = g->w;
  pxg_stream *s = pxg_stream_make(w, &g->config, 1, ops, data, id, flags);
  if (!s) {
    pxg_glance_close(g);
    return NULL;
  }
  pxg_place *p = &s->places[0];
  p->handle = g->handle;
  p->time_ns = g->time_ns;
  pxg_slot_moves(g->handle, p);
  if (g->answered)
    go_on_behind(g, s, gone, response_flags);
  else if (g->waiting)
    go_on_waiting(g, s);
  else
    go_on_from_event(g, s);
  forget(g);
  for (pxg_effect *e; (e = next_letter(g));) pxg_effect_append(p, e);
  g->handle = 0;
  g->waiting = false;
  return s;
}

/* ---- later ------------------------------------------------------------------------------------------------------- */

void pxg_glance_receive(pxg_glance *g, pxg_effect *e) {
  pxg_worker *w = g->w;
  if (!g->called) {
    g->called = true;
    g->next = NULL;
    *(w->called ? w->last_called : &w->called) = g;
    w->last_called = &g->next;
  }
  if (!e) {
    g->lost = true;
    return;
  }
  if (!g->first) g->last = &g->first;
  e->next = NULL;
  *g->last = e;
  g->last = &e->next;
}

pxg_glance *pxg_worker_next_glance(pxg_worker *w) {
  pxg_collect(w);
  return w->called;
}

/* `e` as edits, which live as long as its strings. */
static size_t edits_of(pxg_worker *w, const pxg_decision *d) {
  for (size_t i = 0; i < d->n_ops; i++) {
    const pxg_todo *o = &d->ops[i];
    w->ops[i] = (pxg_op){.kind = o->kind, .target = o->target, .key = o->key};
    w->ops[i].val.bytes = (pxg_str){o->val.ptr, (uint32_t)o->val.len, o->val_flags & PXG_STR_SENSITIVE};
  }
  return d->n_ops;
}

pxg_glanced pxg_glance_decided(pxg_glance *g, const pxg_op **edits, size_t *n_edits) {
  pxg_worker *w = g->w;
  pxg_effect *e = g->first;
  bool alone = g->waiting && !g->lost && e && !e->next && e->kind == E_COMPLETE && e->token == g->token;
  if (!alone || !is_plain_completion(g, e->d)) return PXG_GLANCE_MORE;
  if (w->read) pxg_effect_free(w->read);
  w->read = e;
  g->first = NULL;
  forget(g);
  pxg_pending_ends(w, g->config);
  g->waiting = false;
  g->answered = true;
  g->token = 0;
  *edits = w->ops;
  *n_edits = edits_of(w, e->d);
  g->edited = *n_edits > 0;
  return PXG_GLANCE_PASSED;
}

uint64_t pxg_glance_deadline(const pxg_glance *g) {
  uint64_t held = g->since + g->config->policy.hold_limit_ns;
  return !g->waiting ? 0 : held < g->deadline ? held : g->deadline;
}

/* An event whose result nobody can take. */
static void drop_event(pxg_glance *g) {
  pxg_worker *w = g->w;
  pxg_result_release(&w->out);
  g->user = w->out.user;
  bool cancelled = g->token && pxg_token_returned(w, g->config, g->token, false);
  pxg_call_end(&w->call);
  if (cancelled && w->out.action == PXG_ACT_PENDING) pxg_cancel(w, g->config, g->user, g->handle, g->token);
}

void pxg_glance_close(pxg_glance *g) {
  if (!g->handle) return;
  pxg_worker *w = g->w;
  if (!g->answered && !g->waiting) drop_event(g);
  uint64_t handle = g->handle;
  if (g->waiting) {
    pxg_pending_ends(w, g->config);
    g->waiting = false;
    if (pxg_token_retire(g->token)) pxg_cancel(w, g->config, g->user, handle, g->token);
  }
  pxg_handle_retire(w, handle);
  g->handle = 0;
  forget(g);
  for (pxg_effect *e; (e = next_letter(g));) pxg_effect_free(e);
  if (!g->user) return;
  const pxg_guest *table = &g->config->lib->table;
  table->on_stream_end(table->ctx, g->config->value, g->user, handle, w->index);
}
