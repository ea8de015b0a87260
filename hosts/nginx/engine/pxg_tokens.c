/* SPDX-License-Identifier: Apache-2.0 */

/* Tokens and handles, and the three functions that guests call with them on any thread (spec/12-async, A01 to A10).
 *
 * A value is the number of a slot and a generation. One atomic word in the slot says which generation it is in and in
 * which state; whoever changes the word with that generation in it has the token. Slots are never freed, so a value of
 * long ago finds a slot whose word differs. What is behind the word belongs to the worker, but for the atomic members:
 * these are written before the word that makes them valid, and trusted once the word is seen unchanged.
 *
 * A caller counts as a visitor of the process while it may hold a configuration or a worker that a slot named; those are
 * freed only when there is no visitor. */

#include <sched.h>
#include <stdlib.h>

#include "pxg_internal.h"

#define SLOT_BITS 24
#define CHUNK_BITS 8
#define CHUNK (1u << CHUNK_BITS)

/* The lower bits of a word. A token is TAKEN from its completion until the worker has the letter; a handle that is DEAD
 * is used again once its visitors are gone and its wake is out of the box. */
enum { FREE, ISSUED, PENDING, TAKEN, HANDLE, DEAD, STATE = 7, WAKE_QUEUED = 8, VISITOR = 256, VISITORS = 0xffff00 };

struct pxg_slot {
  _Atomic uint64_t word; /* Above SLOT_BITS: the generation. */
  _Atomic(pxg_config *) config;
  _Atomic(pxg_worker *) w;
  _Atomic uint32_t phase, flags; /* Of a token's event. */
  _Atomic bool no_wake;
  _Atomic uint64_t wake_arg;
  _Atomic uint64_t
      written; /* Twice the bytes of BODY_WRITE that were accepted and not applied; the lowest bit: FULL. */
  _Atomic uint64_t waiting; /* pxg_stream_waiting. */
  pxg_effect own;           /* A wake, or a completion that could not be kept, for want of memory. */
  /* The worker's. */
  pxg_place *p;  /* Null: nobody waits for it any more, */
  pxg_glance *g; /* or there is no stream yet. */
  uint32_t index, next_free;
};

static _Atomic(pxg_slot *) chunks[1 << (SLOT_BITS - CHUNK_BITS)];
static _Atomic uint32_t n_chunks, visitors;

/* Slots of workers that are no more. */
static pthread_mutex_t spare_lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t spare;

static uint64_t generation(uint64_t word) { return word >> SLOT_BITS; }

/* Null: there has never been such a slot. */
static pxg_slot *find(uint64_t value) {
  uint32_t i = value & ((1u << SLOT_BITS) - 1);
  pxg_slot *chunk = atomic_load_explicit(&chunks[i >> CHUNK_BITS], memory_order_acquire);
  return chunk ? chunk + (i & (CHUNK - 1)) : NULL;
}

/* ---- visitors ---------------------------------------------------------------------------------------------------- */

static void enter(void) { atomic_fetch_add(&visitors, 1); }
static void leave(void) { atomic_fetch_sub_explicit(&visitors, 1, memory_order_release); }

/* A visit is short, and nobody comes with a value that is retired, so this ends soon. */
void pxg_visitors_wait(void) {
  while (atomic_load(&visitors)) sched_yield();
}

/* ---- the slots of a worker --------------------------------------------------------------------------------------- */

static bool more_slots(pxg_worker *w) {
  pthread_mutex_lock(&spare_lock);
  w->free_slots = spare;
  spare = 0;
  pthread_mutex_unlock(&spare_lock);
  if (w->free_slots) return true;
  pxg_slot *chunk = calloc(CHUNK, sizeof *chunk);
  uint32_t c = chunk ? atomic_fetch_add(&n_chunks, 1) : 0;
  if (!chunk || c >= sizeof chunks / sizeof *chunks) {
    if (chunk) atomic_fetch_sub(&n_chunks, 1);
    free(chunk);
    return false;
  }
  /* The very first one is not used: 0 is no slot. */
  for (uint32_t i = CHUNK; i-- > (c == 0);) {
    chunk[i].index = c << CHUNK_BITS | i;
    chunk[i].next_free = w->free_slots;
    w->free_slots = chunk[i].index;
    atomic_init(&chunk[i].word, 1ull << SLOT_BITS | FREE);
  }
  atomic_store_explicit(&chunks[c], chunk, memory_order_release);
  return true;
}

void pxg_slots_leave(pxg_worker *w) {
  uint32_t *last = &w->free_slots;
  while (*last) last = &find(*last)->next_free;
  pthread_mutex_lock(&spare_lock);
  *last = spare;
  spare = w->free_slots;
  pthread_mutex_unlock(&spare_lock);
}

/* 0: no memory. */
static uint64_t take(pxg_worker *w, pxg_config *c, pxg_place *p, pxg_glance *g, int state, uint32_t phase,
                     uint32_t flags) {
  if (!w->free_slots && !more_slots(w)) return 0;
  pxg_slot *s = find(w->free_slots);
  w->free_slots = s->next_free;
  s->p = p;
  s->g = g;
  atomic_store_explicit(&s->config, c, memory_order_relaxed);
  atomic_store_explicit(&s->w, w, memory_order_relaxed);
  atomic_store_explicit(&s->phase, phase, memory_order_relaxed);
  atomic_store_explicit(&s->flags, flags, memory_order_relaxed);
  uint64_t word = atomic_load_explicit(&s->word, memory_order_relaxed) | (uint64_t)state;
  atomic_store_explicit(&s->word, word, memory_order_release);
  return generation(word) << SLOT_BITS | s->index;
}

static void abandon(pxg_slot *s) {
  s->p = NULL;
  s->g = NULL;
}

/* Ends a generation, if the word is still `*word`. A slot whose generations are used up is never used again. */
static bool give_back(pxg_worker *w, pxg_slot *s, uint64_t *word) {
  uint64_t next = (generation(*word) + 1) << SLOT_BITS;
  if (!atomic_compare_exchange_strong(&s->word, word, next | FREE)) return false;
  abandon(s);
  if (!next) return true;
  s->next_free = w->free_slots;
  w->free_slots = s->index;
  return true;
}

/* The slot of a value that this worker gave out and that is in use. */
static pxg_slot *in_use(uint64_t value, uint64_t *word) {
  pxg_slot *s = value ? find(value) : NULL;
  *word = s ? atomic_load_explicit(&s->word, memory_order_relaxed) : 0;
  return s && generation(*word) == generation(value) && (*word & STATE) != FREE ? s : NULL;
}

/* ---- the life of a token, on its worker -------------------------------------------------------------------------- */

uint64_t pxg_token_new(pxg_worker *w, pxg_config *c, pxg_place *p, pxg_glance *g, uint32_t phase, uint32_t flags) {
  return take(w, c, p, g, ISSUED, phase, flags);
}

bool pxg_token_returned(pxg_worker *w, pxg_config *c, uint64_t token, bool pending) {
  uint64_t word;
  pxg_slot *s = in_use(token, &word);
  if (!s) return false;
  if ((word & STATE) == ISSUED) {
    bool first = pending ? atomic_compare_exchange_strong(&s->word, &word, word - ISSUED + PENDING) /* A03 */
                         : give_back(w, s, &word);                                                  /* A04 */
    if (first) return true;
  }
  if (pending) return false; /* A05 */
  abandon(s);                /* A06 */
  pxg_count(&c->counters->stale);
  return false;
}

bool pxg_token_retire(uint64_t token) {
  uint64_t word;
  pxg_slot *s = in_use(token, &word);
  if (!s) return false;
  pxg_worker *w = s->p ? s->p->s->w : s->g ? s->g->w : NULL;
  if (w && (word & STATE) == PENDING && give_back(w, s, &word)) return true;
  abandon(s);
  return false;
}

bool pxg_token_is_pending(uint64_t token) {
  uint64_t word;
  return in_use(token, &word) && (word & STATE) == PENDING;
}

/* ---- handles, on their worker ------------------------------------------------------------------------------------ */

uint64_t pxg_handle_new(pxg_worker *w, pxg_config *c, pxg_place *p, pxg_glance *g) {
  uint64_t handle = take(w, c, p, g, HANDLE, 0, 0);
  if (!handle) return 0;
  pxg_slot *s = find(handle);
  atomic_store_explicit(&s->wake_arg, 0, memory_order_relaxed);
  atomic_store_explicit(&s->written, 0, memory_order_relaxed);
  atomic_store_explicit(&s->waiting, 0, memory_order_relaxed);
  atomic_store_explicit(&s->no_wake, !(c->subscribe >> PXG_PHASE_WAKE & 1), memory_order_relaxed);
  return handle;
}

void pxg_slot_moves(uint64_t value, pxg_place *p) {
  uint64_t word;
  pxg_slot *s = in_use(value, &word);
  if (s) s->p = p, s->g = NULL;
}

void pxg_handle_retire(pxg_worker *w, uint64_t handle) {
  uint64_t word;
  pxg_slot *s = in_use(handle, &word);
  if (!s) return;
  abandon(s);
  while ((word & STATE) == HANDLE) {
    bool busy = word & (VISITORS | WAKE_QUEUED);
    if (busy ? atomic_compare_exchange_weak(&s->word, &word, word - HANDLE + DEAD) : give_back(w, s, &word)) return;
  }
}

void pxg_handle_subscribes(pxg_place *p) {
  uint64_t word;
  pxg_slot *s = in_use(p->handle, &word);
  if (s) atomic_store(&s->no_wake, !pxg_subscribed(p, PXG_PHASE_WAKE));
}

void pxg_handle_waiting(uint64_t handle, uint64_t bytes) {
  uint64_t word;
  pxg_slot *s = in_use(handle, &word);
  if (s) atomic_store_explicit(&s->waiting, bytes, memory_order_relaxed);
}

void pxg_written(pxg_place *p, uint64_t n) {
  uint64_t word;
  pxg_slot *s = in_use(p->handle, &word);
  if (!s || !n) return;
  p->wrote = true;
  uint64_t was = atomic_load_explicit(&s->written, memory_order_relaxed), less;
  do less = (was >> 1 > n ? (was >> 1) - n : 0) << 1 | (was & 1);
  while (!atomic_compare_exchange_weak(&s->written, &was, less));
}

bool pxg_has_room(pxg_place *p, uint64_t waiting) {
  uint64_t word;
  pxg_slot *s = in_use(p->handle, &word);
  uint64_t was = s ? atomic_load_explicit(&s->written, memory_order_relaxed) : 0;
  while ((was & 1) && (was >> 1) + waiting <= PXG_WATERMARK / 2)
    if (atomic_compare_exchange_weak(&s->written, &was, was - 1)) return true;
  return false;
}

/* ---- letters ----------------------------------------------------------------------------------------------------- */

pxg_place *pxg_addressee(pxg_worker *w, pxg_effect *e, uint64_t *arg, pxg_glance **g) {
  pxg_slot *s = e->to;
  pxg_place *p = s->p;
  uint64_t word = atomic_load(&s->word);
  *g = NULL;
  if (e->kind == E_APPLY) {
    if (generation(word) != generation(e->token) || (word & STATE) != HANDLE) return NULL;
    *g = s->g;
    return p;
  }
  if (e->kind != E_WAKE) {
    *g = s->g;
    (void)give_back(w, s, &word);
    return p;
  }
  word = atomic_fetch_and(&s->word, ~(uint64_t)WAKE_QUEUED) & ~(uint64_t)WAKE_QUEUED;
  *arg = atomic_exchange(&s->wake_arg, 0);
  if ((word & STATE) == HANDLE) return p;
  if (!(word & VISITORS)) (void)give_back(w, s, &word);
  return NULL;
}

typedef struct letter {
  pxg_effect e;
  bool kept; /* It is one of those that are used again. */
  pxg_decision d;
  pxg_todo near[PXG_LETTER_OPS];
  uint8_t room[PXG_LETTER_BYTES] __attribute__((aligned(16)));
} letter;

/* Letters are taken by guests' threads and given back by workers, which allocators are slow at: some are used again.
 * Whoever finds another one at `idle` does not wait. */
enum { MOST_KEPT = 128 };
static _Atomic(pxg_effect *) spent; /* Given back, from any thread. */
static _Atomic bool taking;
static pxg_effect *idle; /* Under `taking`. */
static _Atomic uint32_t n_kept;

static letter *letter_alloc(void) {
  letter *l = NULL;
  if (!atomic_exchange_explicit(&taking, true, memory_order_acquire)) {
    if (!idle) idle = atomic_exchange_explicit(&spent, NULL, memory_order_acquire);
    l = (letter *)(void *)idle;
    if (idle) idle = idle->next;
    atomic_store_explicit(&taking, false, memory_order_release);
  }
  if (l) return l;
  l = malloc(sizeof *l);
  if (!l) return NULL;
  l->kept = atomic_fetch_add_explicit(&n_kept, 1, memory_order_relaxed) < MOST_KEPT;
  if (!l->kept) atomic_fetch_sub_explicit(&n_kept, 1, memory_order_relaxed);
  return l;
}

/* In a hook, what is lent to the hook may be given here, too. */
static letter *letter_new(int kind, const pxg_result *r, pxg_source by) {
  letter *l = letter_alloc();
  if (!l) return NULL;
  l->e = (pxg_effect){.kind = kind, .d = &l->d};
  pxg_decision_init(&l->d, l->near, PXG_LETTER_OPS, l->room, PXG_LETTER_BYTES);
  pxg_decision_read(&l->d, r, by, pxg_call_current());
  return l;
}

void pxg_effect_free(pxg_effect *e) {
  if (!e->d) return;
  pxg_decision_free(e->d);
  if (!((letter *)(void *)e)->kept) return free(e);
  e->next = atomic_load_explicit(&spent, memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(&spent, &e->next, e, memory_order_release, memory_order_relaxed)) {}
}

/* ---- the host functions ------------------------------------------------------------------------------------------ */

/* What a late answer is counted under: its stream is gone, and with it the configuration. */
static int32_t stale(uint64_t ctx, const pxg_result *r) {
  const pxg_guest_lib *l = pxg_guest_by_ctx(ctx);
  const pxg_driver *driver = pxg_host_driver();
  if (l && driver) pxg_count(&pxg_zone_counters(driver->zone, l->name, "", "")->stale);
  if (r) pxg_result_release(r);
  return PXG_E_STALE;
}

/* A refusal goes to the log: the guest gets a number. */
static int32_t refused(uint64_t ctx, const char *what, letter *l) {
  const pxg_guest_lib *lib = pxg_guest_by_ctx(ctx);
  int32_t status = l->d.status;
  pxg_say(PXG_LOG_WARN, "guest=%s %s is answered %s: %s", lib ? lib->name : "unknown", what, pxg_status_name(status),
          l->d.why);
  pxg_effect_free(&l->e);
  return status;
}

static bool completable(uint64_t token, uint64_t word) {
  return generation(word) == generation(token) && ((word & STATE) == ISSUED || (word & STATE) == PENDING);
}

/* As a visitor. Null: it is another library's. */
static pxg_config *config_of(pxg_slot *s, uint64_t ctx) {
  pxg_config *c = atomic_load_explicit(&s->config, memory_order_relaxed);
  return c->lib->ctx == ctx ? c : NULL;
}

/* As a visitor. The letter is the worker's after OK. */
static int32_t complete(uint64_t ctx, uint64_t token, pxg_slot *s, letter *l) {
  uint64_t word = atomic_load(&s->word);
  pxg_config *c = completable(token, word) ? config_of(s, ctx) : NULL;
  if (!c) return PXG_E_STALE;
  uint32_t phase = atomic_load_explicit(&s->phase, memory_order_relaxed);
  uint32_t flags = atomic_load_explicit(&s->flags, memory_order_relaxed);
  pxg_worker *w = atomic_load_explicit(&s->w, memory_order_relaxed);
  if (l) pxg_judge(&l->d, BY_COMPLETE, c, phase, flags);
  if (l && l->d.status) return completable(token, atomic_load(&s->word)) ? l->d.status : PXG_E_STALE; /* A10 */
  do
    if (!completable(token, word)) return PXG_E_STALE;
  while (!atomic_compare_exchange_weak(&s->word, &word, (word & ~(uint64_t)STATE) | TAKEN)); /* A02, A07 */
  pxg_effect *e = l ? &l->e : &s->own;
  if (!l) *e = (pxg_effect){.kind = E_LOST};
  e->to = s;
  e->token = token;
  pxg_post(w, e);
  return PXG_OK;
}

int32_t pxg_complete(uint64_t ctx, uint64_t token, const pxg_result *r) {
  pxg_slot *s = find(token);
  if (!s || !completable(token, atomic_load(&s->word))) return stale(ctx, r);
  letter *l = letter_new(E_COMPLETE, r, BY_COMPLETE);
  if (!l) pxg_result_release(r);
  if (l && l->d.no_memory) pxg_effect_free(&l->e), l = NULL;
  enter();
  int32_t status = complete(ctx, token, s, l);
  leave();
  if (status == PXG_OK) return status;
  if (status == PXG_E_STALE) {
    if (l) pxg_effect_free(&l->e);
    return stale(ctx, NULL);
  }
  return refused(ctx, "complete", l);
}

static bool lives(uint64_t handle, uint64_t word) {
  return generation(word) == generation(handle) && (word & STATE) == HANDLE;
}

/* As a visitor of the process: keeps a handle from being used again until `depart`. */
static pxg_slot *visit(uint64_t ctx, uint64_t handle, pxg_slot *s) {
  uint64_t word = atomic_load(&s->word);
  do
    if (!lives(handle, word) || !config_of(s, ctx)) return NULL;
  while (!atomic_compare_exchange_weak(&s->word, &word, word + VISITOR));
  return s;
}

/* The last visitor of a dead handle sends its wake, so that the worker looks at it once more. */
static void depart(pxg_slot *s, bool wake) {
  pxg_worker *w = atomic_load_explicit(&s->w, memory_order_relaxed);
  uint64_t word = atomic_load(&s->word), next;
  bool post;
  do {
    next = word - VISITOR;
    bool last = (word & STATE) == DEAD && !(next & VISITORS);
    post = (wake || last) && !(word & WAKE_QUEUED);
    if (post) next |= WAKE_QUEUED;
  } while (!atomic_compare_exchange_weak(&s->word, &word, next));
  if (!post) return;
  s->own = (pxg_effect){.kind = E_WAKE, .to = s};
  pxg_post(w, &s->own);
}

static uint64_t written(const pxg_decision *d) {
  uint64_t n = 0;
  for (size_t i = 0; i < d->n_ops; i++)
    if (d->ops[i].kind == PXG_OP_BODY_WRITE) n += d->ops[i].val.len;
  return n;
}

/* Room for `n` bytes: OK, FULL if there is none behind them, LIMIT if there is none. */
static int32_t reserve(pxg_slot *s, uint64_t n) {
  uint64_t waiting = atomic_load_explicit(&s->waiting, memory_order_relaxed);
  uint64_t was = atomic_load_explicit(&s->written, memory_order_relaxed), now;
  do {
    if (was & 1) return PXG_E_LIMIT;
    now = was + 2 * n;
    if (n && (now >> 1) + waiting > PXG_WATERMARK) now |= 1;
  } while (!atomic_compare_exchange_weak(&s->written, &was, now));
  return now & 1 ? PXG_FULL : PXG_OK;
}

/* As a visitor of the handle. */
static int32_t apply(uint64_t handle, pxg_slot *s, letter *l) {
  pxg_decision *d = &l->d;
  if (d->no_memory) pxg_refuse(d, PXG_E_LIMIT, "no memory");
  if (!d->no_memory) pxg_judge(d, BY_APPLY, atomic_load_explicit(&s->config, memory_order_relaxed), 0, 0);
  if (d->status) return d->status;
  uint64_t n = written(d); /* Without what the judge left out. */
  int32_t status = n ? reserve(s, n) : PXG_OK;
  if (status < 0) {
    pxg_refuse(d, status, "found a BODY_WRITE before WRITABLE [PXG-RPL-006]");
    return d->status;
  }
  l->e.to = s;
  l->e.token = handle;
  pxg_post(atomic_load_explicit(&s->w, memory_order_relaxed), &l->e);
  return status;
}

int32_t pxg_apply(uint64_t ctx, uint64_t handle, const pxg_result *r) {
  pxg_slot *s = find(handle);
  if (!s || !lives(handle, atomic_load(&s->word))) return stale(ctx, r);
  letter *l = letter_new(E_APPLY, r, BY_APPLY);
  if (!l) return pxg_result_release(r), PXG_E_LIMIT;
  enter();
  s = visit(ctx, handle, s);
  int32_t status = s ? apply(handle, s, l) : PXG_E_STALE;
  if (s) depart(s, false);
  leave();
  if (status == PXG_E_STALE) {
    pxg_effect_free(&l->e);
    return stale(ctx, NULL);
  }
  return status < 0 ? refused(ctx, "apply", l) : status;
}

int32_t pxg_wake(uint64_t ctx, uint64_t handle, uint64_t arg) {
  pxg_slot *s = find(handle);
  if (!s || !lives(handle, atomic_load(&s->word))) return stale(ctx, NULL);
  enter();
  s = visit(ctx, handle, s);
  int32_t status = !s ? PXG_E_STALE : atomic_load(&s->no_wake) ? PXG_E_STATE : PXG_OK;
  if (status == PXG_OK) atomic_fetch_or(&s->wake_arg, arg);
  if (s) depart(s, status == PXG_OK);
  leave();
  return s ? status : stale(ctx, NULL);
}
