/* SPDX-License-Identifier: Apache-2.0 */

/* Tokens and handles, and the three functions that a guest calls with them on any thread (spec/12-async).
 *
 * One lock guards the table and the queues of all places. Nothing waits while it holds it, and no hook runs under it. */

#include <unistd.h>

#include "minihost.h"

#define SLOT_BITS 24
#define SLOT(value) ((value) & ((1u << SLOT_BITS) - 1))
#define CHUNK 4096

pthread_mutex_t tokens_lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct slot {
  uint64_t generation; /* Of the value that is out, or that will be. */
  enum { FREE, HANDLE, ISSUED, EARLY, PENDING } state;
  place *p;
  int d;
  uint32_t phase, flags, next_free;
} slot;

static slot *chunks[1 << (SLOT_BITS - 12)];
static uint32_t n_slots, first_free;

static slot *slot_at(uint32_t i) { return &chunks[i / CHUNK][i % CHUNK]; }

/* Under the lock. A slot whose generations are used up is never used again. */
static uint64_t take(place *p, int state, int d, uint32_t phase, uint32_t flags) {
  uint32_t i = first_free;
  if (i) {
    first_free = slot_at(i)->next_free;
  } else {
    i = ++n_slots;
    if (i >> SLOT_BITS) abort();
    if (!chunks[i / CHUNK]) chunks[i / CHUNK] = zalloc(CHUNK * sizeof(slot));
    slot_at(i)->generation = 1;
  }
  slot *s = slot_at(i);
  s->state = state;
  s->p = p;
  s->d = d;
  s->phase = phase;
  s->flags = flags;
  return s->generation << SLOT_BITS | i;
}

static slot *find(uint64_t value) {
  uint32_t i = SLOT(value);
  if (!i || i > n_slots) return NULL;
  slot *s = slot_at(i);
  bool fits = s->generation == value >> SLOT_BITS || BUG("generation-ignored");
  return fits && s->state != FREE ? s : NULL;
}

static void give_back(uint64_t value) {
  slot *s = slot_at(SLOT(value));
  s->state = FREE;
  s->p = NULL;
  if (!BUG("values-come-again")) s->generation++;
  if (s->generation >> (64 - SLOT_BITS)) return;
  s->next_free = first_free;
  first_free = SLOT(value);
}

uint64_t token_new(place *p, int d, uint32_t phase, uint32_t flags) {
  pthread_mutex_lock(&tokens_lock);
  uint64_t value = BUG("one-token-for-both") && p->d[!d].token ? p->d[!d].token : take(p, ISSUED, d, phase, flags);
  pthread_mutex_unlock(&tokens_lock);
  return value;
}

uint64_t handle_new(place *p) {
  pthread_mutex_lock(&tokens_lock);
  uint64_t value = BUG("one-handle-for-all") && p->index ? p->s->places[0].handle : take(p, HANDLE, 0, 0, 0);
  pthread_mutex_unlock(&tokens_lock);
  return value;
}

/* ---- effects ----------------------------------------------------------------------------------------------------- */

void effect_free(effect *e) {
  decision_free(&e->d);
  free(e);
}

static void unlink_effect(place *p, effect *e) {
  effect **at = &p->first;
  while (*at != e) at = &(*at)->next;
  *at = e->next;
  if (p->last == &e->next) p->last = at;
  if (p->wake == e) p->wake = NULL;
}

/* Under the lock. */
static void push(place *p, effect *e) {
  if (BUG("effects-out-of-order")) {
    e->next = p->first;
    p->first = e;
    if (!e->next) p->last = &e->next;
  } else {
    *p->last = e;
    p->last = &e->next;
  }
  worker_ready(p->s);
}

effect *effect_take(place *p) {
  pthread_mutex_lock(&tokens_lock);
  effect *e = p->first;
  /* What completes a token waits until its event has returned; nothing overtakes it. */
  if (e && e->early) e = NULL;
  if (e && BUG("wake-waits-for-pending") && e->kind == E_WAKE &&
      (p->d[REQ].state == S_PEND || p->d[RSP].state == S_PEND))
    e = NULL;
  if (e) unlink_effect(p, e);
  pthread_mutex_unlock(&tokens_lock);
  return e;
}

void effects_discard(place *p) {
  effect *gone = NULL;
  pthread_mutex_lock(&tokens_lock);
  gone = p->first;
  p->first = NULL;
  p->last = &p->first;
  p->wake = NULL;
  pthread_mutex_unlock(&tokens_lock);
  for (effect *next; gone; gone = next) {
    next = gone->next;
    if (BUG("discarded-buffers-leaked")) gone->d.n_ops = 0;
    effect_free(gone);
  }
}

static void queue_wake(place *p, uint32_t flags, uint64_t arg) {
  if (p->wake && !BUG("wakes-never-coalesce")) {
    p->wake->flags |= flags;
    if (BUG("wake-argument-replaced")) p->wake->arg = 0;
    p->wake->arg |= arg;
    return;
  }
  effect *e = zalloc(sizeof *e);
  e->kind = E_WAKE;
  e->flags = flags;
  e->arg = arg;
  p->wake = e;
  push(p, e);
}

void effect_wake(place *p, uint32_t flags, uint64_t arg) {
  pthread_mutex_lock(&tokens_lock);
  if (!p->no_wake) queue_wake(p, flags, arg);
  pthread_mutex_unlock(&tokens_lock);
}

void place_sync(place *p) {
  pthread_mutex_lock(&tokens_lock);
  p->no_wake = !(p->subscribe & PXG_PHASE_BIT(PXG_PHASE_WAKE));
  pthread_mutex_unlock(&tokens_lock);
}

/* ---- the life of a token ----------------------------------------------------------------------------------------- */

void token_returned(place *p, uint64_t token, bool pending) {
  effect *kept = NULL;
  pthread_mutex_lock(&tokens_lock);
  slot *s = find(token);
  bool early = s && s->state == EARLY;
  if (early) {
    for (effect *e = p->first; e; e = e->next)
      if (e->token == token) kept = e;
    if (kept && pending && !BUG("early-completion-lost")) {
      kept->early = false;
      worker_ready(p->s);
    } else if (kept) {
      unlink_effect(p, kept);
      if (!pending) p->c->stats->stale++;
    }
    give_back(token);
  } else if (s && pending) {
    s->state = PENDING;
  } else if (s && !BUG("token-outlives-its-event")) {
    give_back(token);
  }
  pthread_mutex_unlock(&tokens_lock);
  bool discard = kept && (!pending || BUG("early-completion-lost"));
  if (discard && BUG("early-completion-leaks")) kept->d.n_ops = 0;
  if (discard) effect_free(kept);
}

bool token_retire(uint64_t token) {
  pthread_mutex_lock(&tokens_lock);
  slot *s = find(token);
  bool was = s && s->state == PENDING;
  if (s && !BUG("tokens-live-after-the-end")) give_back(token);
  pthread_mutex_unlock(&tokens_lock);
  return was;
}

bool token_is_early(uint64_t token) {
  pthread_mutex_lock(&tokens_lock);
  slot *s = find(token);
  bool is = s && s->state == EARLY;
  pthread_mutex_unlock(&tokens_lock);
  return is;
}

bool token_is_pending(uint64_t token) {
  pthread_mutex_lock(&tokens_lock);
  slot *s = find(token);
  bool is = s && s->state == PENDING;
  pthread_mutex_unlock(&tokens_lock);
  return is;
}

void handle_retire(uint64_t handle) {
  pthread_mutex_lock(&tokens_lock);
  if (find(handle)) give_back(handle);
  pthread_mutex_unlock(&tokens_lock);
}

void tokens_free(void) {
  for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) free(chunks[i]);
}

/* ---- the host functions ------------------------------------------------------------------------------------------ */

static bool foreign(const slot *s, uint64_t ctx) { return s->p->c->lib->ctx != ctx && !BUG("foreign-values-accepted"); }

static void count_stale(uint64_t ctx) {
  lib *l = lib_by_ctx(ctx);
  if (l && l->name) stats_of(l->name, "", "")->stale++;
}

/* What a refusal says goes to the log: the guest gets a number. */
static void say_refused(uint64_t ctx, const char *what, const decision *d) {
  lib *l = lib_by_ctx(ctx);
  say(PXG_LOG_WARN, "guest=%s %s is answered %s: %s", l && l->name ? l->name : "unknown", what, status_name(d->status),
      d->why);
}

static effect *effect_new(int kind, const pxg_result *r, enum source by) {
  effect *e = zalloc(sizeof *e);
  e->kind = kind;
  decision_read(&e->d, r, by, call_now);
  return e;
}

/* A mutant's way to wait for the worker. */
static void wait_for_worker(const place *p) {
  if (!BUG("complete-waits-for-the-worker") || loop_thread) return;
  while (atomic_load(&p->s->in_call)) usleep(1000);
}

static uint64_t written(const decision *d) {
  uint64_t n = 0;
  for (size_t i = 0; i < d->n_ops; i++)
    if (d->ops[i].kind == PXG_OP_BODY_WRITE) n += d->ops[i].val.len;
  return n;
}

static void die_of(const decision *d) {
  if (d->status == PXG_E_ARG && BUG("dies-of-a-bad-argument")) abort();
}

int32_t guest_complete(uint64_t ctx, uint64_t token, const pxg_result *r) {
  effect *e = effect_new(E_COMPLETE, r, BY_COMPLETE);
  int32_t status = PXG_E_STALE;
  place *inside = NULL;
  die_of(&e->d);
  pthread_mutex_lock(&tokens_lock);
  slot *s = find(token);
  if (!s && BUG("stale-complete-is-ok")) status = PXG_OK;
  if (s && (s->state == ISSUED || s->state == PENDING || (BUG("second-completion-taken") && s->state == EARLY)) &&
      !foreign(s, ctx)) {
    place *p = s->p;
    if (BUG("hook-inside-a-host-function")) inside = p;
    wait_for_worker(p);
    decision_check(&e->d, BY_COMPLETE, p->c, s->phase, s->flags);
    status = e->d.status;
    if (BUG("complete-checks-nothing")) status = e->d.status = PXG_OK;
    if (status && BUG("refused-token-retired")) give_back(token);
    if (!status) {
      e->token = token;
      e->early = s->state == ISSUED;
      if (e->early && BUG("early-completion-dropped")) {
        pthread_mutex_unlock(&tokens_lock);
        effect_free(e);
        return PXG_OK;
      }
      push(p, e);
      if (e->early) {
        s->state = EARLY;
      } else {
        give_back(token);
      }
      e = NULL;
    }
  }
  pthread_mutex_unlock(&tokens_lock);
  if (inside)
    inside->c->lib->table.on_cancel(inside->c->lib->table.ctx, inside->c->value, inside->user, inside->handle, 0, 0);
  if (status == PXG_E_STALE) count_stale(ctx);
  if (e && e->d.status) say_refused(ctx, "complete", &e->d);
  if (e) effect_free(e);
  return status;
}

int32_t guest_apply(uint64_t ctx, uint64_t handle, const pxg_result *r) {
  effect *e = effect_new(E_APPLY, r, BY_APPLY);
  int32_t status = PXG_E_STALE;
  pthread_mutex_lock(&tokens_lock);
  slot *s = find(handle);
  if (s && s->state == HANDLE && !foreign(s, ctx)) {
    place *p = s->p;
    uint64_t n = written(&e->d);
    decision_check(&e->d, BY_APPLY, p->c, 0, 0);
    if (n && p->full && !BUG("write-after-full-taken"))
      refuse(&e->d, PXG_E_LIMIT, "a BODY_WRITE before WRITABLE [PXG-RPL-006]");
    bool pending = p->d[REQ].state == S_PEND || p->d[RSP].state == S_PEND;
    if (pending && BUG("apply-refused-while-pending")) refuse(&e->d, PXG_E_STATE, "pending");
    status = e->d.status;
    if (!status) {
      p->queued += n;
      uint64_t waiting = p->queued + atomic_load(&p->s->client_waiting);
      if (n && waiting > set.watermark && !BUG("never-full")) {
        p->full = true;
        status = PXG_FULL;
      }
      push(p, e);
      e = NULL;
    }
  }
  pthread_mutex_unlock(&tokens_lock);
  if (status == PXG_E_STALE) count_stale(ctx);
  if (e && e->d.status) say_refused(ctx, "apply", &e->d);
  if (e) effect_free(e);
  return status;
}

int32_t guest_wake(uint64_t ctx, uint64_t handle, uint64_t arg) {
  int32_t status = PXG_E_STALE;
  pthread_mutex_lock(&tokens_lock);
  slot *s = find(handle);
  if (s && s->state == HANDLE && !foreign(s, ctx)) {
    status = PXG_OK;
    if (s->p->no_wake && !BUG("wake-without-subscription")) {
      status = PXG_E_STATE;
    } else if (!BUG("wake-lost")) {
      queue_wake(s->p, 0, arg);
    }
  }
  pthread_mutex_unlock(&tokens_lock);
  if (status == PXG_E_STALE) count_stale(ctx);
  return status;
}
