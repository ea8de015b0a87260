/* SPDX-License-Identifier: Apache-2.0 */
/* Steps of a script: they build results, call the host, and leave threads behind that call it later. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "probe.h"

#define ARENA ((size_t)64 << 20)
#define PAGE ((size_t)4096)
#define GATE_LIMIT_MS 30000

extern const char *record_directory(void);
extern int extra_effect(state *s, const step *st);
extern uint32_t extra_metric(const word *w);

/* ---- memory that is lent ---- */

static void *map(size_t n) {
  void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) abort();
  return p;
}

static void *take(arena *a, size_t n, size_t align) {
  if (a->guarded) {
    size_t end = a->cap - a->used;
    if (n > end) abort();
    size_t at = (end - n) & ~(align - 1);
    a->used = a->cap - at;
    return a->base + at;
  }
  size_t at = (a->used + align - 1) & ~(align - 1);
  if (at + n > a->cap) abort();
  a->used = at + n;
  return a->base + at;
}

static _Thread_local arena lent;
static _Thread_local uint8_t *edges[8];
static _Thread_local unsigned edges_used;

/* Operations outside scratch, in memory of the C library's allocator. A host that frees, moves or resizes it leaves its
 * traces there: the allocator writes into what is free. */
static _Thread_local struct {
  pxg_op *at, *is; /* Lent, and what was lent. */
  size_t len;
  const char *id; /* The case. */
} array;

static pxg_op *array_lend(const pxg_op *ops, size_t len, const char *id) {
  free(array.at);
  array.at = memcpy(malloc(len), ops, len);
  array.len = len, array.id = id;
  return array.at;
}

/* The result is whole. */
static void array_lent(const pxg_op *ops) {
  if (ops && ops == array.at) array.is = memcpy(malloc(array.len), array.at, array.len);
}

static void array_entered(void) {
  if (!array.is) return;
  if (memcmp(array.at, array.is, array.len)) {
    case_now = array.id;
    note("PXG-MEM-008", "an array of operations that was lent to the host was freed or written to");
    case_now = NULL;
    array.at = NULL; /* Whose it is now is not known. */
  } else {
    memset(array.at, 0xdd, array.len);
  }
  free(array.is), array.is = NULL;
}

void act_entered(void) {
  /* PXG-MEM-003: from here on nothing of the last result may be read. */
  array_entered();
  if (lent.used) memset(lent.base, 0xdd, lent.used);
  lent.used = 0;
  for (unsigned i = 0; i < edges_used && i < 8; i++) memset(edges[i], 0xdd, PAGE);
  edges_used = 0;
}

/* Memory of this thread that ends where a page ends, with an inaccessible one behind. */
static void *at_edge(size_t n) {
  uint8_t **p = &edges[edges_used++ % 8];
  if (!*p) {
    *p = map(2 * PAGE);
    mprotect(*p + PAGE, PAGE, PROT_NONE);
  }
  return *p + PAGE - n;
}

static arena *lent_here(void) {
  if (!lent.base) lent.base = map(ARENA), lent.cap = ARENA;
  return &lent;
}

/* Arenas for complete and apply: inaccessible as soon as the call has returned. They come round again late, so that a
 * late read of the host still finds a closed page. */
#define ROUND 64
static arena *closed[ROUND];
static unsigned closed_at;
static pthread_mutex_t closing = PTHREAD_MUTEX_INITIALIZER;

static arena *arena_open(void) {
  arena *a = calloc(1, sizeof *a);
  a->base = map(ARENA + PAGE);
  a->cap = ARENA, a->guarded = 1;
  mprotect(a->base + ARENA, PAGE, PROT_NONE);
  return a;
}

static arena *arena_get(void) {
  pthread_mutex_lock(&closing);
  arena *a = closed[closed_at];
  closed[closed_at] = NULL;
  closed_at = (closed_at + 1) % ROUND;
  pthread_mutex_unlock(&closing);
  if (!a) return arena_open();
  mprotect(a->base, a->cap, PROT_READ | PROT_WRITE);
  a->used = 0;
  return a;
}

static void arena_close(arena *a) {
  madvise(a->base, a->cap, MADV_DONTNEED);
  mprotect(a->base, a->cap, PROT_NONE);
  pthread_mutex_lock(&closing);
  unsigned at = (closed_at + ROUND - 1) % ROUND;
  if (!closed[at]) closed[at] = a, a = NULL;
  pthread_mutex_unlock(&closing);
  if (a) munmap(a->base, a->cap + PAGE), free(a);
}

/* ---- owned buffers ---- */

typedef struct {
  uint64_t id;
  atomic_int released;
  size_t len;
  uint8_t *p;
} owned;

#define MOST_OWNED 65536
#define OWNED_TAG 16
static owned *all_owned[MOST_OWNED];
static atomic_uint n_owned;

static void owned_release(uint64_t ctx) {
  owned *o = ctx && ctx < MOST_OWNED ? all_owned[ctx] : NULL;
  int times = o ? atomic_fetch_add(&o->released, 1) + 1 : 0;
  if (times == 1) {
    /* Of this library's making: a host that freed or moved it has destroyed the tag, or the process. */
    if (memcmp(o->p - OWNED_TAG, &o->id, sizeof o->id))
      note("PXG-MEM-008", "the memory before an owned buffer was written to");
    memset(o->p, 0xdd, o->len), free(o->p - OWNED_TAG);
  }
  text *t = record_begin("release", 0);
  j_u64(t, "owned", ctx);
  j_u64(t, "arg", (uint64_t)times);
  record_end(t);
}

static pxg_buf owned_make(const word *w) {
  owned *o = calloc(1, sizeof *o);
  o->id = atomic_fetch_add(&n_owned, 1) + 1;
  o->len = w->len;
  o->p = (uint8_t *)malloc(OWNED_TAG + w->len) + OWNED_TAG;
  memcpy(o->p - OWNED_TAG, &o->id, sizeof o->id);
  memcpy(o->p, w->ptr, w->len);
  if (o->id >= MOST_OWNED) abort();
  all_owned[o->id] = o;
  return (pxg_buf){{o->p, w->len, PXG_BUF_OWNED}, owned_release, o->id};
}

uint64_t owned_id(const pxg_buf *b) {
  return (b->bytes.flags & PXG_BUF_OWNED) && b->release == owned_release ? b->ctx : 0;
}

/* ---- jobs: calls into the host ---- */

enum { COMPLETE, APPLY, WAKE };

struct job {
  int kind;
  state *s;
  line *result;
  uint64_t value, arg, times;
  char when[64]; /* now, race, a number of ms, gate:NAME, cancel, end, end+MS */
  job *next;
};

static void build_result(state *s, line *l, pxg_result *r, const pxg_event *ev, arena *a, pxg_result *out);

static void pause_ms(uint64_t ms) {
  struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
  while (nanosleep(&t, &t) && errno == EINTR) {}
}

static void gate_wait(const char *id, const char *name) {
  char path[800];
  snprintf(path, sizeof path, "%s/gate.%s.%s", record_directory(), id, name);
  for (char *c = path + strlen(record_directory()) + 1; *c; c++)
    if (*c == '/') *c = '_';
  for (int i = 0; i < GATE_LIMIT_MS && access(path, F_OK); i++) pause_ms(1);
}

/* `tail N BYTE`: a result that is longer than the host knows. */
static uint64_t tail_of(const line *l, uint8_t *byte) {
  for (int i = 0; i < l->n; i++)
    if (l->steps[i].n == 3 && !strcmp((char *)l->steps[i].words[0].ptr, "tail")) {
      *byte = (uint8_t)strtoul((char *)l->steps[i].words[2].ptr, NULL, 0);
      return strtoull((char *)l->steps[i].words[1].ptr, NULL, 0);
    }
  return 0;
}

static void job_now(job *j) {
  static const char *names[] = {"complete", "apply", "wake"};
  for (uint64_t i = 0; i < j->times; i++) {
    arena *a = NULL;
    pxg_result *r = NULL;
    if (j->kind != WAKE) {
      a = arena_get();
      uint8_t byte = 0;
      uint64_t more = tail_of(j->result, &byte);
      r = take(a, sizeof *r + more, 8);
      memset(r, 0, sizeof *r);
      memset(r + 1, byte, more);
      r->size = (uint32_t)(sizeof *r + more);
      build_result(j->s, j->result, r, NULL, a, NULL);
    }
    int quiet = j->s->quiet;
    text *t;
    if (!quiet) {
      t = record_begin(names[j->kind], 0);
      if (j->s->cfg->instance) j_text(t, "instance", j->s->cfg->instance);
      j_text(t, "case", j->s->id);
      j_u64(t, "config", j->s->config);
      j_u64(t, j->kind == COMPLETE ? "token" : "stream", j->value);
      if (j->kind == WAKE) j_u64(t, "arg", j->arg);
      if (r) j_result(t, j->result->name, r);
      record_end(t);
    }
    int32_t status = PXG_E_UNSUPPORTED;
    if (j->kind == COMPLETE && the_host->complete) status = the_host->complete(the_host->ctx, j->value, r);
    if (j->kind == APPLY && the_host->apply) status = the_host->apply(the_host->ctx, j->value, r);
    if (j->kind == WAKE && the_host->wake) status = the_host->wake(the_host->ctx, j->value, j->arg);
    if (a) arena_close(a);
    if (!quiet) {
      t = record_begin(names[j->kind], 1);
      if (j->s->cfg->instance) j_text(t, "instance", j->s->cfg->instance);
      j_text(t, "case", j->s->id);
      j_u64(t, "config", j->s->config);
      j_u64(t, j->kind == COMPLETE ? "token" : "stream", j->value);
      if (j->kind == WAKE) j_u64(t, "arg", j->arg);
      if (j->result) j_text(t, "text", j->result->name);
      j_i32(t, "status", status);
      record_end(t);
    }
  }
}

static void *job_thread(void *p) {
  job *j = p;
  const char *w = j->when;
  if (!strncmp(w, "gate:", 5)) {
    gate_wait(j->s->id, w + 5);
  } else if (!strncmp(w, "end+", 4)) {
    pause_ms(strtoull(w + 4, NULL, 10));
  } else if (*w >= '0' && *w <= '9') {
    pause_ms(strtoull(w, NULL, 10));
  }
  job_now(j);
  free(j);
  return NULL;
}

static void job_spawn(job *j) {
  pthread_attr_t attr;
  pthread_t thread;
  pthread_attr_init(&attr);
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attr, 256 << 10);
  if (pthread_create(&thread, &attr, job_thread, j)) abort();
  pthread_attr_destroy(&attr);
}

static void job_start(job *j) {
  if (!strcmp(j->when, "now")) {
    job_now(j);
    free(j);
  } else if (!strcmp(j->when, "cancel") || !strncmp(j->when, "end", 3)) {
    j->next = j->s->deferred;
    j->s->deferred = j;
  } else {
    job_spawn(j);
  }
}

void act_deferred(state *s, const char *when) {
  job **at = &s->deferred;
  while (*at) {
    job *j = *at;
    if (strncmp(j->when, when, strlen(when))) {
      at = &j->next;
      continue;
    }
    *at = j->next;
    if (strchr(j->when, '+')) {
      job_spawn(j);
    } else {
      job_now(j);
      free(j);
    }
  }
}

/* ---- publishing handles to another library ---- */

static void published(char *path, size_t n, const char *name) {
  snprintf(path, n, "%s/pub.%s", record_directory(), name);
}

static void publish(const char *name, uint64_t token, uint64_t stream) {
  char path[700], hidden[710];
  published(path, sizeof path, name);
  snprintf(hidden, sizeof hidden, "%s.new", path);
  FILE *f = fopen(hidden, "w");
  if (!f) return;
  fprintf(f, "%llu %llu", (unsigned long long)token, (unsigned long long)stream);
  fclose(f);
  rename(hidden, path);
}

static uint64_t foreign(const char *name, int stream) {
  char path[700];
  unsigned long long v[2] = {0};
  published(path, sizeof path, name);
  for (int i = 0; i < GATE_LIMIT_MS && access(path, F_OK); i++) pause_ms(1);
  FILE *f = fopen(path, "r");
  if (!f) return 0;
  if (fscanf(f, "%llu %llu", &v[0], &v[1]) != 2) v[stream] = 0;
  fclose(f);
  return v[stream];
}

uint64_t act_foreign(const char *name) { return foreign(name, 0); }

void act_publish(const char *name, uint64_t value) { publish(name, value, 0); }

static uint64_t random64(void) {
  static atomic_ullong n = 0x9e3779b97f4a7c15ull;
  uint64_t x = atomic_fetch_add(&n, 0x9e3779b97f4a7c15ull);
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

uint64_t act_random(void) { return random64(); }

/* ---- building a result ---- */

enum { BORROWED, SCRATCH, STATIC_, OWNED_ };

typedef struct {
  state *s;
  const pxg_event *ev;
  pxg_result *r;
  arena *a;
  int lifetime;
  uint64_t used; /* Of the lent scratch. */
  int ops_at;    /* 0 lent operations while they suffice, 1 own memory, 2 scratch_more. */
  pxg_op *ops;
  uint64_t n, cap;
  pxg_field fields[64], trailers[16];
  uint64_t n_fields, n_trailers;
  pxg_buf body[64];
  uint64_t n_body;
  pxg_reply reply;
  int has_reply, reply_tail;
  uint8_t tail_byte;
} build;

static const char *cstr(const word *w) { return (const char *)w->ptr; }

static int is(const word *w, const char *s) { return w->len == strlen(s) && !memcmp(w->ptr, s, w->len); }

static uint64_t number(const word *w) { return strtoull(cstr(w), NULL, 0); }

static const uint8_t *place(build *b, const word *w) {
  if (b->lifetime == SCRATCH && b->r->scratch && b->used + w->len <= b->r->scratch_cap) {
    uint8_t *p = b->r->scratch + b->used;
    memcpy(p, w->ptr, w->len);
    b->used += w->len;
    return p;
  }
  if (b->lifetime == STATIC_) return w->ptr;
  uint8_t *p = take(b->a, w->len, 1);
  memcpy(p, w->ptr, w->len);
  return p;
}

static pxg_str string(build *b, const word *w) {
  if (w->absent) return (pxg_str){NULL, 0, PXG_STR_ABSENT};
  return (pxg_str){w->len ? place(b, w) : NULL, w->len, 0};
}

static pxg_buf buffer(build *b, const word *w) {
  if (b->lifetime == OWNED_) return owned_make(w);
  pxg_buf out = {string(b, w), NULL, 0};
  if (b->lifetime == STATIC_) out.bytes.flags |= PXG_BUF_STATIC;
  return out;
}

static pxg_op *op_new(build *b, uint16_t kind, const step *s) {
  if (b->n == b->cap) {
    b->cap = b->cap ? b->cap * 2 : 64;
    b->ops = realloc(b->ops, b->cap * sizeof *b->ops);
  }
  pxg_op *op = &b->ops[b->n++];
  memset(op, 0, sizeof *op);
  op->kind = kind;
  op->flags = s->must ? PXG_OPF_MUST : 0;
  op->target = s->trailers ? PXG_TARGET_TRAILERS : 0;
  return op;
}

static uint64_t view_len(const build *b) {
  uint64_t n = 0;
  for (uint64_t i = 0; b->ev && i < b->ev->n_chunks; i++) n += b->ev->chunks[i].len;
  return n;
}

static uint64_t amount(const build *b, const word *w) {
  if (!is(w, "all") && strncmp(cstr(w), "all-", 4) && strncmp(cstr(w), "all+", 4)) return number(w);
  uint64_t n = view_len(b);
  if (w->len > 4) n += cstr(w)[3] == '-' ? -strtoull(cstr(w) + 4, NULL, 0) : strtoull(cstr(w) + 4, NULL, 0);
  return n;
}

static const word none = {(uint8_t *)"", 0, 0};

/* Operations; 1 if it was one. `times=N` as the last word repeats. */
static int operation(build *b, const step *s) {
  static const struct {
    const char *verb;
    uint16_t kind;
  } verbs[] = {
      {"set", PXG_OP_HEADER_SET},
      {"add", PXG_OP_HEADER_ADD},
      {"delete", PXG_OP_HEADER_DELETE},
      {"set-at", PXG_OP_SET_AT},
      {"delete-at", PXG_OP_DELETE_AT},
      {"pass", PXG_OP_PASS},
      {"drop", PXG_OP_DROP},
      {"inject", PXG_OP_INJECT},
      {"write", PXG_OP_BODY_WRITE},
      {"write-end", PXG_OP_BODY_WRITE},
      {"meta", PXG_OP_METADATA_SET},
      {"metric", PXG_OP_METRIC},
      {"route", PXG_OP_ROUTE},
      {"recompute", PXG_OP_ROUTE},
      {"op", 0},
  };
  const word *w = s->words, *w1 = s->n > 1 ? &w[1] : &none, *w2 = s->n > 2 ? &w[2] : &none;
  size_t i = 0;
  while (i < sizeof verbs / sizeof *verbs && !is(&w[0], verbs[i].verb)) i++;
  if (i == sizeof verbs / sizeof *verbs) return 0;
  uint64_t times = 1;
  if (s->n > 1 && !strncmp(cstr(&w[s->n - 1]), "times=", 6)) times = strtoull(cstr(&w[s->n - 1]) + 6, NULL, 0);
  for (uint64_t k = 0; k < times; k++) {
    pxg_op *op = op_new(b, verbs[i].kind, s);
    switch (verbs[i].kind) {
    case PXG_OP_HEADER_SET:
    case PXG_OP_HEADER_ADD: op->key = string(b, w1), op->val = buffer(b, w2); break;
    case PXG_OP_HEADER_DELETE: op->key = string(b, w1); break;
    case PXG_OP_SET_AT: op->u0 = number(w1), op->val = buffer(b, w2); break;
    case PXG_OP_DELETE_AT: op->u0 = number(w1); break;
    case PXG_OP_PASS:
    case PXG_OP_DROP: op->u0 = amount(b, w1); break;
    case PXG_OP_INJECT: op->val = buffer(b, w1); break;
    case PXG_OP_BODY_WRITE:
      op->val = buffer(b, w1);
      if (is(&w[0], "write-end")) op->flags |= PXG_OPF_END;
      break;
    case PXG_OP_METADATA_SET: /* meta [NAMESPACE/]KEY VALUE */
      op->key = string(b, w1), op->val = buffer(b, w2);
      for (uint32_t c = 0; c < w1->len; c++)
        if (w1->ptr[c] == '/') {
          word joined = {malloc(w1->len), w1->len - 1, 0};
          memcpy(joined.ptr, w1->ptr, c), memcpy(joined.ptr + c, w1->ptr + c + 1, w1->len - c - 1);
          op->key = string(b, &joined), op->u0 = c;
          free(joined.ptr);
          break;
        }
      break;
    case PXG_OP_METRIC: op->target = extra_metric(w1), op->u0 = number(w2); break;
    case PXG_OP_ROUTE: {
      static const word cluster = {(uint8_t *)"cluster", 7, 0}, again = {(uint8_t *)"recompute", 9, 0};
      int re = is(&w[0], "recompute");
      op->key = string(b, re ? &again : &cluster);
      if (!re) op->val = buffer(b, w1);
      break;
    }
    default: /* op KIND FLAGS TARGET U0 KEY VAL */
      op->kind = (uint16_t)number(w1);
      op->flags = (uint16_t)(op->flags | number(w2));
      if (s->n > 3) op->target = (uint32_t)number(&w[3]);
      if (s->n > 4) op->u0 = number(&w[4]);
      if (s->n > 5) op->key = string(b, &w[5]);
      if (s->n > 6) op->val = buffer(b, &w[6]);
    }
  }
  return 1;
}

/* Actions and members of the result; 1 if it was one. */
static int member(build *b, const step *s) {
  static const char *actions[] = {"unset", "continue", "pending", "more", "reply", "reset", "error"};
  const word *w = s->words, *w1 = s->n > 1 ? &w[1] : &none, *w2 = s->n > 2 ? &w[2] : &none;
  pxg_result *r = b->r;
  for (uint32_t i = 0; i < 7; i++) {
    if (!is(&w[0], actions[i])) continue;
    r->action = i;
    if (i == PXG_ACT_PENDING && s->n > 1) r->pend_ns = number(w1) * 1000000u;
    if (i == PXG_ACT_MORE && s->n > 1) r->more_bytes = number(w1);
    if (i == PXG_ACT_ERROR && s->n > 1) r->error = string(b, w1);
    if (i == PXG_ACT_REPLY) b->has_reply = 1, b->reply.size = sizeof b->reply, b->reply.status = (uint32_t)number(w1);
    return 1;
  }
  if (is(&w[0], "action")) {
    r->action = (uint32_t)number(w1);
  } else if (is(&w[0], "mode")) {
    static const char *modes[] = {"unset", "skip", "stream", "whole", "observe"};
    uint32_t m = (uint32_t)number(w2);
    for (uint32_t i = 0; i < 5; i++)
      if (is(w2, modes[i])) m = i;
    r->body_mode[is(w1, "response")] = m;
  } else if (is(&w[0], "unsubscribe")) {
    for (int i = 1; i < s->n; i++) {
      uint32_t p = phase_of(cstr(&w[i]), w[i].len);
      r->unsubscribe |= p ? PXG_PHASE_BIT(p) : number(&w[i]);
    }
  } else if (is(&w[0], "resizes")) {
    r->flags |= PXG_RES_RESIZES;
  } else if (is(&w[0], "flush")) {
    r->flags |= PXG_RES_FLUSH;
  } else if (is(&w[0], "rflags")) {
    r->flags |= (uint32_t)number(w1);
  } else if (is(&w[0], "user")) {
    r->user = is(w1, "keep") && b->ev ? b->ev->user : number(w1);
  } else if (is(&w[0], "more-bytes")) {
    r->more_bytes = number(w1);
  } else if (is(&w[0], "pend-ns")) {
    r->pend_ns = number(w1);
  } else if (is(&w[0], "size")) {
    r->size = (uint32_t)number(w1);
  } else if (is(&w[0], "reserved")) {
    r->reserved0 = (uint32_t)number(w1);
  } else if (is(&w[0], "field")) {
    if (b->n_fields < 64) b->fields[b->n_fields++] = (pxg_field){string(b, w1), string(b, w2)};
  } else if (is(&w[0], "trailer")) {
    if (b->n_trailers < 16) b->trailers[b->n_trailers++] = (pxg_field){string(b, w1), string(b, w2)};
  } else if (is(&w[0], "body")) {
    if (b->n_body < 64) b->body[b->n_body++] = buffer(b, w1);
  } else if (is(&w[0], "details")) {
    b->reply.details = string(b, w1);
  } else if (is(&w[0], "grpc")) {
    b->reply.flags |= PXG_REPLY_GRPC, b->reply.grpc_status = (int32_t)strtol(cstr(w1), NULL, 0);
  } else if (is(&w[0], "open")) {
    b->reply.flags |= PXG_REPLY_OPEN;
  } else if (is(&w[0], "reply-flush")) {
    b->reply.flags |= PXG_REPLY_FLUSH;
  } else if (is(&w[0], "reply-flags")) {
    b->reply.flags |= (uint32_t)number(w1);
  } else if (is(&w[0], "reply-size")) {
    b->has_reply = 1, b->reply.size = (uint32_t)number(w1);
  } else if (is(&w[0], "tail")) {       /* Of the result itself; see tail_of. */
  } else if (is(&w[0], "reply-tail")) { /* A reply that is longer than the host knows. */
    b->reply_tail = (int)number(w1), b->tail_byte = (uint8_t)number(w2);
  } else if (is(&w[0], "reply-beside")) { /* A reply, whatever the action. */
    b->has_reply = 1, b->reply.size = sizeof b->reply, b->reply.status = (uint32_t)number(w1);
  } else if (is(&w[0], "reply-zero")) { /* REPLY with a struct of zeros. */
    r->action = PXG_ACT_REPLY, b->has_reply = 1;
  } else if (is(&w[0], "reply-null")) {
    r->action = PXG_ACT_REPLY, b->has_reply = 0;
  } else if (is(&w[0], "memory")) {
    b->lifetime = is(w1, "scratch") ? SCRATCH : is(w1, "static") ? STATIC_ : is(w1, "owned") ? OWNED_ : BORROWED;
  } else if (is(&w[0], "ops-at")) {
    b->ops_at = is(w1, "own") ? 1 : is(w1, "more") ? 2 : 0;
  } else {
    return 0;
  }
  return 1;
}

static void *scratch_more(const state *s, uint64_t n) {
  text *t = record_begin("scratch_more", 0);
  if (s) j_text(t, "case", s->id);
  j_u64(t, "arg", n);
  record_end(t);
  uint8_t *p = the_host->scratch_more(the_host->ctx, n);
  int dirty = 0;
  for (uint64_t i = 0; p && i < n; i++) dirty |= p[i] != 0;
  if (p) memset(p, 0xa5, n);
  t = record_begin("scratch_more", 1);
  if (s) j_text(t, "case", s->id);
  j_u64(t, "arg", n);
  j_i32(t, "status", p ? PXG_OK : PXG_E_NOTFOUND);
  j_u64(t, "misaligned", (uintptr_t)p & 15);
  if (dirty) j_raw(t, ",\"dirty\":true");
  record_end(t);
  return p;
}

/* Effects; 1 if it was one. */
static int effect(build *b, const step *s) {
  const word *w = s->words, *w1 = s->n > 1 ? &w[1] : &none;
  static const char *kinds[] = {"complete", "apply", "wake"};
  for (int k = 0; k < 3; k++) {
    if (!is(&w[0], kinds[k])) continue;
    job *j = calloc(1, sizeof *j);
    j->kind = k, j->s = b->s, j->times = 1;
    j->value = k == COMPLETE ? b->s->token : b->s->stream;
    if (k == WAKE) j->arg = number(w1);
    if (k != WAKE) j->result = script_result(b->s->script, cstr(w1));
    if (k != WAKE && !j->result) {
      note("PXG-PROBE", "the script %s has no result %s", b->s->id, cstr(w1));
      free(j);
      return 1;
    }
    snprintf(j->when, sizeof j->when, "now");
    for (int i = 2; i < s->n; i++) {
      const char *word = cstr(&w[i]);
      if (*word == '@') snprintf(j->when, sizeof j->when, "%s", word + 1);
      if (!strncmp(word, "times=", 6)) j->times = strtoull(word + 6, NULL, 0);
      if (!strncmp(word, "value=", 6)) {
        const char *v = word + 6;
        if (!strcmp(v, "previous")) {
          j->value = b->s->previous_token;
        } else if (!strcmp(v, "random")) {
          j->value = random64();
        } else if (!strncmp(v, "of:", 3)) {
          j->value = foreign(v + 3, k != COMPLETE);
        } else if (!strncmp(v, "flip:", 5)) { /* The right one, with one bit turned. */
          j->value ^= 1ull << strtoul(v + 5, NULL, 10);
        } else {
          j->value = strtoull(v, NULL, 0);
        }
      }
    }
    job_start(j);
    return 1;
  }
  if (is(&w[0], "sleep")) {
    pause_ms(number(w1));
  } else if (is(&w[0], "block")) {
    gate_wait(b->s->id, cstr(w1));
  } else if (is(&w[0], "publish")) {
    publish(cstr(w1), b->s->token, b->s->stream);
  } else if (is(&w[0], "quiet")) {
    b->s->quiet_next = 1;
  } else if (is(&w[0], "scratch-more")) {
    scratch_more(b->s, number(w1));
  } else if (is(&w[0], "fill-scratch")) {
    if (b->r->scratch) memset(b->r->scratch, 0x5a, b->r->scratch_cap);
    for (uint64_t i = 0; b->r->scratch_ops && i < b->r->scratch_ops_cap; i++)
      b->r->scratch_ops[i] = (pxg_op){.kind = PXG_OP_HEADER_DELETE, .key = {(const uint8_t *)"x-pxg-none", 10, 0}};
  } else if (is(&w[0], "log") && the_host->log) { /* log LEVEL TEXT */
    arena *a = arena_get();
    const word *line = s->n > 2 ? &w[2] : &none;
    uint8_t *p = take(a, line->len, 1);
    memcpy(p, line->ptr, line->len);
    the_host->log(the_host->ctx, (uint32_t)number(w1), p, line->len);
    arena_close(a);
  } else {
    return extra_effect(b->s, s);
  }
  return 1;
}

/* What can only be bent once the result is whole; 1 if it was such a step. */
static int bend(build *b, const step *s, int apply) {
  const word *w = s->words, *w1 = s->n > 1 ? &w[1] : &none;
  pxg_result *r = b->r;
  if (is(&w[0], "null-ops")) {
    if (apply) r->ops = NULL, r->n_ops = number(w1);
  } else if (is(&w[0], "past-scratch")) { /* The last operation's value begins in scratch and ends behind it. */
    if (apply && r->scratch && r->n_ops) {
      pxg_op *op = (pxg_op *)&r->ops[r->n_ops - 1];
      op->val.bytes.ptr = r->scratch + r->scratch_cap - 4;
      op->val.bytes.len = 4 + (uint32_t)number(w1);
    }
  } else if (is(&w[0], "null-reply-fields")) {
    if (apply && r->reply) ((pxg_reply *)r->reply)->fields = NULL, ((pxg_reply *)r->reply)->n_fields = number(w1);
  } else if (is(&w[0], "null-value")) { /* The last operation's value: no pointer, a length. */
    if (apply && r->n_ops) ((pxg_op *)&r->ops[r->n_ops - 1])->val.bytes = (pxg_str){NULL, (uint32_t)number(w1), 0};
  } else if (is(&w[0], "wild-empty")) { /* Length 0, and a pointer that nobody may follow. */
    if (apply && r->n_ops) ((pxg_op *)&r->ops[r->n_ops - 1])->val.bytes = (pxg_str){(const uint8_t *)1, 0, 0};
  } else if (is(&w[0], "value-flags")) {
    if (apply && r->n_ops) ((pxg_op *)&r->ops[r->n_ops - 1])->val.bytes.flags |= (uint32_t)number(w1);
  } else if (is(&w[0], "error-null")) {
    if (apply) r->error = (pxg_str){NULL, (uint32_t)number(w1), 0};
  } else {
    return 0;
  }
  return 1;
}

static void build_end(build *b) {
  pxg_result *r = b->r;
  if (b->n) {
    size_t bytes = b->n * sizeof *b->ops;
    pxg_op *to = NULL;
    if (b->ops_at == 0 && r->scratch_ops && b->n <= r->scratch_ops_cap) to = r->scratch_ops;
    if (b->ops_at == 2 && r->scratch_ops) to = scratch_more(b->s, bytes);
    if (!to && !b->a->guarded) to = array_lend(b->ops, bytes, b->s->id);
    if (!to) to = take(b->a, bytes, 8);
    if (to != array.at) memcpy(to, b->ops, bytes);
    r->ops = to, r->n_ops = b->n;
  }
  free(b->ops);
  if (!b->has_reply) return;
  /* In own memory each array ends where it ends: reading on is reading somebody else's, or faults. */
  size_t tail = (size_t)b->reply_tail;
  pxg_reply *reply = b->a->guarded ? take(b->a, sizeof *reply + tail, 8) : at_edge(sizeof *reply + tail);
  *reply = b->reply;
  memset(reply + 1, b->tail_byte, tail);
  reply->size += (uint32_t)tail;
  if (b->n_fields)
    reply->fields = memcpy(take(b->a, b->n_fields * sizeof *b->fields, 8), b->fields, b->n_fields * sizeof *b->fields);
  if (b->n_trailers)
    reply->trailers =
        memcpy(take(b->a, b->n_trailers * sizeof *b->trailers, 8), b->trailers, b->n_trailers * sizeof *b->trailers);
  if (b->n_body) reply->body = memcpy(take(b->a, b->n_body * sizeof *b->body, 8), b->body, b->n_body * sizeof *b->body);
  reply->n_fields = b->n_fields, reply->n_trailers = b->n_trailers, reply->n_body = b->n_body;
  r->reply = reply;
}

static void run(build *b, line **ls, int n) {
  for (int k = 0; k < n; k++)
    for (int i = 0; i < ls[k]->n; i++) {
      step *s = &ls[k]->steps[i];
      if (!operation(b, s) && !member(b, s) && !effect(b, s) && !bend(b, s, 0))
        note("PXG-PROBE", "case %s: %s is no step", b->s->id, cstr(&s->words[0]));
    }
  build_end(b);
  for (int k = 0; k < n; k++)
    for (int i = 0; i < ls[k]->n; i++) bend(b, &ls[k]->steps[i], 1);
  array_lent(b->r->ops);
}

static void build_result(state *s, line *l, pxg_result *r, const pxg_event *ev, arena *a, pxg_result *out) {
  (void)out;
  build *b = calloc(1, sizeof *b);
  b->s = s, b->ev = ev, b->r = r, b->a = a, b->ops_at = 1;
  run(b, &l, 1);
  free(b);
}

void act_event(state *s, const pxg_event *ev, pxg_result *out, line **lines, int n, text *owned) {
  (void)owned;
  build *b = calloc(1, sizeof *b);
  b->s = s, b->ev = ev, b->r = out, b->a = lent_here();
  out->action = PXG_ACT_CONTINUE;
  run(b, lines, n);
  free(b);
}

int act_is_operation(const pxg_op *op) {
  static const pxg_op zero;
  if (!op->kind) return !memcmp(op, &zero, sizeof zero);
  return op->kind <= PXG_OP_ROUTE || op->kind >= 60000;
}
