/* SPDX-License-Identifier: Apache-2.0 */

/* Tokens and handles, and the three functions that guests call with them on any thread (spec/12-async, A01 to A10).
 *
 * The table is the process's, as all that these functions are given is the number of a library. One lock guards it, the
 * queues of the places and the boxes of the workers. Nothing waits while it holds it, and no hook runs under it. */

#include <stdlib.h>

#include "pxg_internal.h"

#define SLOT_BITS 24
#define CHUNK_BITS 12

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct slot {
  uint64_t generation; /* Of the value that is out, or that will be. */
  enum { FREE, HANDLE, ISSUED, EARLY, PENDING } state;
  pxg_place *p;
  int d;
  uint32_t phase, flags, next_free;
} slot;

static slot *chunks[1 << (SLOT_BITS - CHUNK_BITS)];
static uint32_t n_slots, first_free;

static slot *slot_at(uint32_t i) { return &chunks[i >> CHUNK_BITS][i & ((1u << CHUNK_BITS) - 1)]; }

/* Under the lock. A slot whose generations are used up is never used again. */
static uint64_t take(pxg_place *p, int state, int d, uint32_t phase, uint32_t flags) {
  uint32_t i = first_free;
  if (i) {
    first_free = slot_at(i)->next_free;
  } else {
    i = n_slots + 1;
    if (i >> SLOT_BITS) return 0;
    slot **chunk = &chunks[i >> CHUNK_BITS];
    if (!*chunk && !(*chunk = calloc(1u << CHUNK_BITS, sizeof(slot)))) return 0;
    n_slots = i;
    slot_at(i)->generation = 1;
  }
  slot *s = slot_at(i);
  *s = (slot){.generation = s->generation, .state = state, .p = p, .d = d, .phase = phase, .flags = flags};
  return s->generation << SLOT_BITS | i;
}

static slot *find(uint64_t value) {
  uint32_t i = value & ((1u << SLOT_BITS) - 1);
  if (!i || i > n_slots) return NULL;
  slot *s = slot_at(i);
  return s->generation == value >> SLOT_BITS && s->state != FREE ? s : NULL;
}

static void give_back(slot *s, uint64_t value) {
  s->state = FREE;
  s->p = NULL;
  if (++s->generation >> (64 - SLOT_BITS)) return;
  s->next_free = first_free;
  first_free = value & ((1u << SLOT_BITS) - 1);
}

uint64_t pxg_token_new(pxg_place *p, int d, uint32_t phase, uint32_t flags) {
  pthread_mutex_lock(&lock);
  uint64_t value = take(p, ISSUED, d, phase, flags);
  pthread_mutex_unlock(&lock);
  return value;
}

uint64_t pxg_handle_new(pxg_place *p) {
  pthread_mutex_lock(&lock);
  uint64_t value = take(p, HANDLE, 0, 0, 0);
  pthread_mutex_unlock(&lock);
  return value;
}

/* ---- mail -------------------------------------------------------------------------------------------------------- */

/* Under the lock. True: the bell is to be rung, after it. */
static bool mail(pxg_stream *s) {
  if (s->ready || s->finished) return false;
  pxg_worker *w = s->w;
  bool first = !w->ready;
  s->ready = true;
  s->ready_next = NULL;
  *w->ready_last = s;
  w->ready_last = &s->ready_next;
  return first;
}

static void unlink_mail(pxg_stream *s) {
  pxg_worker *w = s->w;
  for (pxg_stream **at = &w->ready; *at; at = &(*at)->ready_next)
    if (*at == s) {
      *at = s->ready_next;
      if (w->ready_last == &s->ready_next) w->ready_last = at;
      break;
    }
  s->ready = false;
}

void pxg_mail_forget(pxg_stream *s) {
  pthread_mutex_lock(&lock);
  if (s->ready) unlink_mail(s);
  pthread_mutex_unlock(&lock);
}

pxg_stream *pxg_worker_next(pxg_worker *w) {
  pthread_mutex_lock(&lock);
  pxg_stream *s = w->ready;
  if (s) unlink_mail(s);
  pthread_mutex_unlock(&lock);
  if (s) pxg_run(s);
  return s;
}

/* ---- effects ----------------------------------------------------------------------------------------------------- */

typedef struct letter {
  pxg_effect e;
  pxg_decision d;
} letter;

static letter *letter_new(int kind, const pxg_result *r, pxg_source by) {
  letter *l = malloc(sizeof *l);
  if (!l) return NULL;
  l->e = (pxg_effect){.kind = kind, .d = &l->d};
  pxg_decision_init(&l->d);
  pxg_decision_read(&l->d, r, by, NULL);
  return l;
}

static void letter_free(pxg_effect *e) {
  pxg_decision_free(e->d);
  free(e);
}

void pxg_effect_free(pxg_effect *e) {
  if (e->kind != E_WAKE) letter_free(e);
}

static void unlink_effect(pxg_place *p, pxg_effect *e) {
  pxg_effect **at = &p->first;
  while (*at != e) at = &(*at)->next;
  *at = e->next;
  if (p->last == &e->next) p->last = at;
  if (p->wake_queued == e) p->wake_queued = NULL;
}

static bool push(pxg_place *p, pxg_effect *e) {
  e->next = NULL;
  *p->last = e;
  p->last = &e->next;
  return mail(p->s);
}

pxg_effect *pxg_effect_take(pxg_place *p, uint64_t *no_memory) {
  pxg_effect *e = NULL;
  pthread_mutex_lock(&lock);
  *no_memory = 0;
  for (int d = 0; d < 2; d++)
    if (p->d[d].no_memory) *no_memory = p->d[d].token, p->d[d].no_memory = false;
  /* What completes a token waits until its event has returned; nothing overtakes it. */
  if (p->first && !p->first->early && !*no_memory) unlink_effect(p, e = p->first);
  if (e == &p->wake) p->woken = *e, e = &p->woken;
  pthread_mutex_unlock(&lock);
  return e;
}

void pxg_effects_discard(pxg_place *p) {
  pthread_mutex_lock(&lock);
  pxg_effect *gone = p->first;
  p->first = p->wake_queued = NULL;
  p->last = &p->first;
  pthread_mutex_unlock(&lock);
  for (pxg_effect *next; gone; gone = next) {
    next = gone->next;
    pxg_effect_free(gone);
  }
}

static bool queue_wake(pxg_place *p, uint32_t flags, uint64_t arg) {
  pxg_effect *e = &p->wake;
  if (p->wake_queued) {
    e->flags |= flags;
    e->arg |= arg;
    return false;
  }
  *e = (pxg_effect){.kind = E_WAKE, .flags = flags, .arg = arg};
  p->wake_queued = e;
  return push(p, e);
}

static void ring(pxg_worker *w, bool bell) {
  if (bell && w->bell) w->bell(w->data);
}

void pxg_effect_wake(pxg_place *p, uint32_t flags) {
  pthread_mutex_lock(&lock);
  bool bell = !p->no_wake && queue_wake(p, flags, 0);
  pthread_mutex_unlock(&lock);
  ring(p->s->w, bell);
}

void pxg_place_sync(pxg_place *p) {
  pthread_mutex_lock(&lock);
  p->no_wake = !(p->subscribe & PXG_PHASE_BIT(PXG_PHASE_WAKE));
  pthread_mutex_unlock(&lock);
}

void pxg_written(pxg_place *p, uint64_t n) {
  pthread_mutex_lock(&lock);
  p->queued = p->queued > n ? p->queued - n : 0;
  pthread_mutex_unlock(&lock);
}

bool pxg_has_room(pxg_place *p, uint64_t waiting) {
  pthread_mutex_lock(&lock);
  bool room = p->full && p->queued + waiting <= PXG_WATERMARK / 2;
  if (room) p->full = false;
  pthread_mutex_unlock(&lock);
  return room;
}

/* ---- the life of a token ----------------------------------------------------------------------------------------- */

void pxg_token_returned(pxg_place *p, uint64_t token, bool pending) {
  pxg_effect *kept = NULL;
  bool bell = false, discard = false;
  pthread_mutex_lock(&lock);
  slot *s = find(token);
  if (s && s->state == EARLY) {
    for (pxg_effect *e = p->first; e && !kept; e = e->next)
      if (e->kind == E_COMPLETE && e->token == token) kept = e;
    if (kept && pending) { /* A05 */
      kept->early = false;
    } else if (kept) { /* A06 */
      unlink_effect(p, kept);
      discard = true;
    } else if (!pending) {
      p->d[s->d].no_memory = false;
    }
    if (pending) bell = mail(p->s);
    if (!pending) pxg_count(&p->c->counters->stale);
    give_back(s, token);
  } else if (s && pending) { /* A03 */
    s->state = PENDING;
  } else if (s) { /* A04 */
    give_back(s, token);
  }
  pthread_mutex_unlock(&lock);
  if (discard) letter_free(kept);
  ring(p->s->w, bell);
}

bool pxg_token_retire(uint64_t token) {
  pthread_mutex_lock(&lock);
  slot *s = find(token);
  bool was = s && s->state == PENDING;
  if (s) give_back(s, token);
  pthread_mutex_unlock(&lock);
  return was;
}

bool pxg_token_is_pending(uint64_t token) {
  pthread_mutex_lock(&lock);
  slot *s = find(token);
  bool is = s && s->state == PENDING;
  pthread_mutex_unlock(&lock);
  return is;
}

void pxg_handle_retire(uint64_t handle) {
  pthread_mutex_lock(&lock);
  slot *s = find(handle);
  if (s) give_back(s, handle);
  pthread_mutex_unlock(&lock);
}

/* ---- the host functions ------------------------------------------------------------------------------------------ */

static bool is_its(const slot *s, uint64_t ctx) { return s->p->c->lib->ctx == ctx; }

/* What a late answer is counted under: its stream is gone, and with it the configuration. */
static void count_stale(uint64_t ctx) {
  const pxg_guest_lib *l = pxg_guest_by_ctx(ctx);
  const pxg_driver *driver = pxg_host_driver();
  if (l && driver) pxg_count(&pxg_zone_counters(driver->zone, l->name, "", "")->stale);
}

/* A refusal goes to the log: the guest gets a number. */
static void say_refused(uint64_t ctx, const char *what, const pxg_decision *d) {
  const pxg_guest_lib *l = pxg_guest_by_ctx(ctx);
  pxg_say(PXG_LOG_WARN, "guest=%s %s is answered %s: %s", l ? l->name : "unknown", what, pxg_status_name(d->status),
          d->why);
}

static void release_all(const pxg_result *r) {
  pxg_decision d;
  pxg_decision_init(&d);
  pxg_decision_read(&d, r, BY_EVENT, NULL);
  pxg_decision_free(&d);
}

int32_t pxg_complete(uint64_t ctx, uint64_t token, const pxg_result *r) {
  letter *l = letter_new(E_COMPLETE, r, BY_COMPLETE);
  bool lost = !l || l->d.no_memory, bell = false, refused = false;
  int32_t status = PXG_E_STALE;
  pxg_worker *w = NULL;
  if (!l) release_all(r);
  pthread_mutex_lock(&lock);
  slot *s = find(token);
  if (s && (s->state == ISSUED || s->state == PENDING) && is_its(s, ctx)) {
    pxg_place *p = s->p;
    w = p->s->w;
    status = PXG_OK;
    if (!lost) pxg_judge(&l->d, BY_COMPLETE, p->c, s->phase, s->flags);
    if (!lost) status = l->d.status;
    refused = status != PXG_OK;
    if (!refused) { /* A02, A07 */
      if (lost) {
        p->d[s->d].no_memory = true;
        bell = mail(p->s);
      } else {
        l->e.token = token;
        l->e.early = s->state == ISSUED;
        bell = push(p, &l->e);
        l = NULL;
      }
      if (s->state == ISSUED)
        s->state = EARLY;
      else
        give_back(s, token);
    }
  }
  pthread_mutex_unlock(&lock);
  if (w) ring(w, bell);
  if (status == PXG_E_STALE) count_stale(ctx);
  if (refused) say_refused(ctx, "complete", &l->d);
  if (l) letter_free(&l->e);
  return status;
}

static uint64_t written(const pxg_decision *d) {
  uint64_t n = 0;
  for (size_t i = 0; i < d->n_ops; i++)
    if (d->ops[i].kind == PXG_OP_BODY_WRITE) n += d->ops[i].val.len;
  return n;
}

int32_t pxg_apply(uint64_t ctx, uint64_t handle, const pxg_result *r) {
  letter *l = letter_new(E_APPLY, r, BY_APPLY);
  if (!l) return release_all(r), PXG_E_LIMIT;
  int32_t status = PXG_E_STALE;
  bool bell = false;
  pxg_worker *w = NULL;
  pthread_mutex_lock(&lock);
  slot *s = find(handle);
  if (s && s->state == HANDLE && is_its(s, ctx)) {
    pxg_place *p = s->p;
    uint64_t n = written(&l->d);
    w = p->s->w;
    if (!l->d.no_memory) pxg_judge(&l->d, BY_APPLY, p->c, 0, 0);
    if (n && p->full) pxg_refuse(&l->d, PXG_E_LIMIT, "found a BODY_WRITE before WRITABLE [PXG-RPL-006]");
    if (l->d.no_memory) pxg_refuse(&l->d, PXG_E_LIMIT, "no memory");
    status = l->d.status;
    if (!status) {
      p->queued += n;
      if (n && p->queued + p->s->waiting > PXG_WATERMARK) p->full = true, status = PXG_FULL;
      bell = push(p, &l->e);
      l = NULL;
    }
  }
  pthread_mutex_unlock(&lock);
  if (w) ring(w, bell);
  if (status == PXG_E_STALE) count_stale(ctx);
  if (l && l->d.status && status != PXG_E_STALE) say_refused(ctx, "apply", &l->d);
  if (l) letter_free(&l->e);
  return status;
}

int32_t pxg_wake(uint64_t ctx, uint64_t handle, uint64_t arg) {
  int32_t status = PXG_E_STALE;
  bool bell = false;
  pxg_worker *w = NULL;
  pthread_mutex_lock(&lock);
  slot *s = find(handle);
  if (s && s->state == HANDLE && is_its(s, ctx)) {
    status = s->p->no_wake ? PXG_E_STATE : PXG_OK;
    w = s->p->s->w;
    if (!status) bell = queue_wake(s->p, 0, arg);
  }
  pthread_mutex_unlock(&lock);
  if (w) ring(w, bell);
  if (status == PXG_E_STALE) count_stale(ctx);
  return status;
}
