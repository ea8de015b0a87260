/* SPDX-License-Identifier: Apache-2.0 */

/* How what was accepted on any thread reaches its place: one list of letters per worker, pushed with one exchange and
 * taken whole with another; from there a queue per place, and a list of the streams that have something in theirs, both
 * the worker's alone. */

#include "pxg_internal.h"

/* The bell is rung by whoever finds the box empty, as the worker takes all of it later than that, and finds the worker
 * asleep. One that is awake looks into the box after it has said that it is not: it sees the letter, or the sender sees
 * that. */
void pxg_post(pxg_worker *w, pxg_effect *e) {
  pxg_effect *head = atomic_load_explicit(&w->box, memory_order_relaxed);
  do e->next = head;
  while (!atomic_compare_exchange_weak_explicit(&w->box, &head, e, memory_order_seq_cst, memory_order_relaxed));
  if (!head && w->bell && !atomic_load(&w->awake)) w->bell(w->data);
}

void pxg_worker_awake(pxg_worker *w, bool awake) { atomic_store(&w->awake, awake); }

/* ---- ready streams ----------------------------------------------------------------------------------------------- */

void pxg_mail_ready(pxg_stream *s) {
  if (s->ready || s->finished) return;
  pxg_worker *w = s->w;
  s->ready = w->ready_last;
  s->ready_next = NULL;
  *w->ready_last = s;
  w->ready_last = &s->ready_next;
}

void pxg_mail_forget(pxg_stream *s) {
  if (!s->ready) return;
  *s->ready = s->ready_next;
  if (s->ready_next)
    s->ready_next->ready = s->ready;
  else
    s->w->ready_last = s->ready;
  s->ready = NULL;
}

/* ---- the queue of a place ---------------------------------------------------------------------------------------- */

void pxg_effect_append(pxg_place *p, pxg_effect *e) {
  e->next = NULL;
  *p->last = e;
  p->last = &e->next;
  pxg_mail_ready(p->s);
}

static void append_wake(pxg_place *p, uint32_t flags, uint64_t arg) {
  if (!p->wake_queued) {
    p->wake = (pxg_effect){.kind = E_WAKE};
    p->wake_queued = true;
    pxg_effect_append(p, &p->wake);
  }
  p->wake.flags |= flags;
  p->wake.arg |= arg;
}

void pxg_effect_wake(pxg_place *p, uint32_t flags) {
  if (pxg_subscribed(p, PXG_PHASE_WAKE)) append_wake(p, flags, 0);
}

pxg_effect *pxg_effect_take(pxg_place *p) {
  pxg_effect *e = p->first;
  if (!e) return NULL;
  p->first = e->next;
  if (!p->first) p->last = &p->first;
  if (e != &p->wake) return e;
  p->wake_queued = false;
  p->woken = *e;
  return &p->woken;
}

void pxg_effects_discard(pxg_place *p) {
  for (pxg_effect *e; (e = pxg_effect_take(p));) pxg_effect_free(e);
}

/* ---- the box ----------------------------------------------------------------------------------------------------- */

static void receive(pxg_worker *w, pxg_effect *e) {
  uint64_t arg = 0;
  int kind = e->kind; /* A wake is its sender's again after this. */
  pxg_glance *g;
  pxg_place *p = pxg_addressee(w, e, &arg, &g);
  if (g) {
    pxg_glance_receive(g, kind == E_LOST ? NULL : e);
  } else if (!p) {
    if (kind != E_WAKE) pxg_effect_free(e);
  } else if (kind == E_WAKE) {
    append_wake(p, 0, arg);
  } else if (kind == E_LOST) {
    p->s->no_memory = true;
    pxg_mail_ready(p->s);
  } else {
    pxg_effect_append(p, e);
  }
}

void pxg_collect(pxg_worker *w) {
  if (!atomic_load(&w->box)) return;
  pxg_effect *newest = atomic_exchange_explicit(&w->box, NULL, memory_order_acq_rel), *oldest = NULL;
  for (pxg_effect *next; newest; newest = next) {
    next = newest->next;
    newest->next = oldest;
    oldest = newest;
  }
  for (pxg_effect *next; oldest; oldest = next) {
    next = oldest->next;
    receive(w, oldest);
  }
}

pxg_stream *pxg_worker_next(pxg_worker *w) {
  pxg_collect(w);
  pxg_stream *s = w->ready;
  if (!s) return NULL;
  pxg_mail_forget(s);
  pxg_run(s);
  return s;
}
