/* SPDX-License-Identifier: Apache-2.0 */

/* Counters of 15.4 and the extension pxg.metrics/1, in memory that processes share. */

#define _XOPEN_SOURCE 700

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pxg_zone.h"

#define LABELS_MAX 32
#define TEXT_MAX 8192 /* Names and labels of one series. */

const uint64_t pxg_call_bounds_ns[PXG_N_BUCKETS] = {1000,     10000,     100000,     1000000,
                                                    10000000, 100000000, 1000000000, UINT64_MAX};

static pxg_counters nobody; /* Where there is no zone. */
static uint32_t column;     /* This process's, in the gauges. */

const char *pxg_reason_name(pxg_reason r) {
  static const char *const names[PXG_N_REASONS] = {"error", "panic", "invalid", "deadline", "limit", "cap"};
  return r < PXG_N_REASONS ? names[r] : "unknown";
}

/* ---- The zone ---------------------------------------------------------------------------------------------------- */

static uint64_t aligned(uint64_t n) { return (n + 63) & ~63ull; }

size_t pxg_zone_size(uint32_t instances, uint32_t series) {
  return aligned(sizeof(pxg_zone)) + aligned((instances + 1ull) * sizeof(pxg_instance)) +
         aligned((uint64_t)series * sizeof(pxg_series)) + (uint64_t)series * PXG_ZONE_TEXT;
}

/* A quarter for instances, the rest for series with their texts. */
static bool lay_out(pxg_zone *z, size_t size) {
  uint64_t head = aligned(sizeof *z);
  if (size < head + 2 * sizeof(pxg_instance)) return false;
  uint64_t room = size - head, instances = room / 4 / sizeof(pxg_instance);
  if (instances < 2) instances = 2;
  z->instances = head;
  z->series = head + aligned(instances * sizeof(pxg_instance));
  uint64_t left = size > z->series ? size - z->series : 0;
  uint64_t series = left > 64 ? (left - 64) / (sizeof(pxg_series) + PXG_ZONE_TEXT) : 0;
  if (series > PXG_ZONE_SERIES_MAX) series = PXG_ZONE_SERIES_MAX;
  z->text = z->series + aligned(series * sizeof(pxg_series));
  z->max_instances = (uint32_t)instances;
  z->max_series = (uint32_t)series;
  z->max_text = (uint32_t)(series * PXG_ZONE_TEXT);
  z->size = size;
  return true;
}

pxg_zone *pxg_zone_open(void *memory, size_t size) {
  pxg_zone *z = memory;
  if (!memory || size < sizeof *z) return NULL;
  if (z->magic == PXG_ZONE_MAGIC && z->size == size) return z;
  memset(z, 0, sizeof *z);
  if (!lay_out(z, size)) return NULL;
  pthread_mutexattr_t shared;
  bool ok = !pthread_mutexattr_init(&shared) && !pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED) &&
            !pthread_mutexattr_setrobust(&shared, PTHREAD_MUTEX_ROBUST) && !pthread_mutex_init(&z->lock, &shared);
  if (!ok) return NULL;
  pthread_mutexattr_destroy(&shared);
  memset(pxg_zone_instance(z, 0), 0, sizeof(pxg_instance));
  strcpy(pxg_zone_instance(z, 0)->labels, "guest=\"other\",filter=\"other\",config=\"other\"");
  atomic_store(&z->n_instances, 1);
  z->magic = PXG_ZONE_MAGIC;
  return z;
}

/* All that happens under the lock is published by one store at its end: a process that dies inside leaves nothing half
 * done. */
static bool lock(pxg_zone *z) {
  int e = pthread_mutex_lock(&z->lock);
  return !e || (e == EOWNERDEAD && !pthread_mutex_consistent(&z->lock));
}

static void unlock(pxg_zone *z) { pthread_mutex_unlock(&z->lock); }

void pxg_zone_attach(pxg_zone *z) {
  if (!z || !lock(z)) return;
  int32_t own = (int32_t)getpid();
  uint32_t found = 0;
  for (uint32_t i = 1; i < PXG_ZONE_PROCESSES && !found; i++)
    if (atomic_load(&z->pids[i]) == own) found = i;
  for (uint32_t i = 1; i < PXG_ZONE_PROCESSES && !found; i++) {
    int32_t pid = atomic_load(&z->pids[i]);
    if (!pid || (kill(pid, 0) && errno == ESRCH)) found = i;
  }
  if (found && atomic_load(&z->pids[found]) != own) {
    for (uint32_t k = 0; k < z->n_instances; k++) atomic_store(&pxg_zone_instance(z, k)->counters.pending[found], 0);
    atomic_store(&z->pids[found], own);
  }
  column = found;
  unlock(z);
}

/* ---- Instances --------------------------------------------------------------------------------------------------- */

/* Escapes for a label's value. Answers the length, cut where the room ends. */
static size_t label_value(char *to, size_t room, const uint8_t *p, uint64_t len) {
  size_t n = 0;
  for (uint64_t i = 0; i < len;) {
    size_t whole = pxg_utf8(p + i, len - i);
    if (n + 6 > room) break;
    if (!whole) {
      n += (size_t)snprintf(to + n, 6, "\\\\x%02x", p[i++]);
    } else if (p[i] == '"' || p[i] == '\\' || p[i] == '\n') {
      to[n++] = '\\';
      to[n++] = p[i] == '\n' ? 'n' : (char)p[i];
      i++;
    } else {
      memcpy(to + n, p + i, whole);
      n += whole;
      i += whole;
    }
  }
  to[n] = 0;
  return n;
}

static void instance_labels(char *to, const char *guest, const char *filter, const char *instance) {
  const char *const parts[3][2] = {{"guest=\"", guest}, {"\",filter=\"", filter}, {"\",config=\"", instance}};
  size_t n = 0;
  for (int i = 0; i < 3; i++) {
    n += strlen(strcpy(to + n, parts[i][0]));
    n += label_value(to + n, PXG_ZONE_LABELS / 3 - 16, (const uint8_t *)parts[i][1], strlen(parts[i][1]));
  }
  strcpy(to + n, "\"");
}

pxg_counters *pxg_zone_counters(pxg_zone *z, const char *guest, const char *filter, const char *instance) {
  char labels[PXG_ZONE_LABELS];
  if (!z || !lock(z)) return &nobody;
  instance_labels(labels, guest, filter, instance);
  uint32_t n = atomic_load(&z->n_instances), i = 1;
  while (i < n && strcmp(pxg_zone_instance(z, i)->labels, labels)) i++;
  if (i == n && n == z->max_instances) {
    i = 0;
  } else if (i == n) {
    pxg_instance *new = pxg_zone_instance(z, i);
    memset(new, 0, sizeof *new);
    strcpy(new->labels, labels);
    atomic_store(&z->n_instances, n + 1);
  }
  unlock(z);
  return &pxg_zone_instance(z, i)->counters;
}

void pxg_count_call(pxg_counters *c, uint32_t phase, uint64_t ns) {
  uint32_t i = 0;
  while (ns > pxg_call_bounds_ns[i]) i++;
  pxg_count(&c->calls[phase]);
  pxg_count(&c->call_buckets[phase][i]);
  atomic_fetch_add_explicit(&c->call_ns[phase], ns, memory_order_relaxed);
}

void pxg_count_pending(pxg_counters *c, int32_t by) {
  atomic_fetch_add_explicit(&c->pending[column], by, memory_order_relaxed);
}

/* ---- pxg.metrics/1 ----------------------------------------------------------------------------------------------- */

uint32_t pxg_zone_series(const pxg_zone *z) { return z->max_series; }

static bool identifier(const pxg_str *s) {
  for (uint32_t i = 0; s->ptr && i < s->len; i++) {
    uint8_t c = s->ptr[i];
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    if (!letter && (!i || c < '0' || c > '9')) return false;
  }
  return s->len && s->ptr;
}

static int by_name(const void *a, const void *b) {
  const pxg_str *x = &(*(const pxg_field *const *)a)->name, *y = &(*(const pxg_field *const *)b)->name;
  int c = memcmp(x->ptr, y->ptr, x->len < y->len ? x->len : y->len);
  return c ? c : (x->len > y->len) - (x->len < y->len);
}

/* The three texts of a series, one behind the other: the family, the labels' names, the labels. */
typedef struct texts {
  char at[TEXT_MAX];
  uint32_t names, labels, len;
} texts;

static bool put(texts *t, const void *bytes, size_t len) {
  if (len > sizeof t->at - 1 - t->len) return false;
  memcpy(t->at + t->len, bytes, len);
  t->len += (uint32_t)len;
  return true;
}

static bool put_family(texts *t, const char *library, const pxg_str *name) {
  if (!put(t, "pxg_user_", 9)) return false;
  for (const char *c = library; *c; c++) {
    bool fits = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || *c == '_';
    if (!put(t, fits ? c : "_", 1)) return false;
  }
  return put(t, "_", 1) && put(t, name->ptr, name->len) && put(t, "", 1);
}

static bool put_labels(texts *t, const pxg_field *const *sorted, uint64_t n) {
  t->names = t->len;
  for (uint64_t i = 0; i < n; i++)
    if (!put(t, sorted[i]->name.ptr, sorted[i]->name.len) || !put(t, ",", 1)) return false;
  if (!put(t, "", 1)) return false;
  t->labels = t->len;
  for (uint64_t i = 0; i < n; i++) {
    const pxg_field *f = sorted[i];
    if ((i && !put(t, ",", 1)) || !put(t, f->name.ptr, f->name.len) || !put(t, "=\"", 2)) return false;
    size_t room = sizeof t->at - t->len;
    if (f->value.len > room / 5) return false;
    t->len += (uint32_t)label_value(t->at + t->len, room, f->value.ptr, f->value.len);
    if (!put(t, "\"", 1)) return false;
  }
  return put(t, "", 1);
}

static uint64_t hash_of(const texts *t) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (uint32_t i = 0; i < t->len; i++) h = (h ^ (uint8_t)t->at[i]) * 0x100000001b3ull;
  return h;
}

/* Inside the lock. Libraries whose names and metrics make the same family share it: the exposition has one type and one
 * sum for a name, and a library that replaces another one goes on counting. */
static int32_t find_or_add(pxg_zone *z, uint32_t kind, const texts *t, uint32_t *id) {
  uint64_t hash = hash_of(t);
  uint32_t n = atomic_load(&z->n_series);
  for (uint32_t i = 0; i < n; i++) {
    const pxg_series *s = pxg_zone_one_series(z, i);
    if (strcmp(pxg_zone_text(z, s->family), t->at)) continue;
    if (s->kind != kind || strcmp(pxg_zone_text(z, s->names), t->at + t->names)) return PXG_E_ARG;
    if (s->hash == hash && !strcmp(pxg_zone_text(z, s->labels), t->at + t->labels)) {
      *id = i + 1;
      return PXG_OK;
    }
  }
  if (n == z->max_series || t->len > z->max_text - z->text_used) return PXG_E_LIMIT;
  pxg_series *s = pxg_zone_one_series(z, n);
  memset(s, 0, sizeof *s);
  memcpy((char *)z + z->text + z->text_used, t->at, t->len);
  s->kind = kind;
  s->hash = hash;
  s->family = z->text_used;
  s->names = s->family + t->names;
  s->labels = s->family + t->labels;
  z->text_used += t->len;
  atomic_store_explicit(&z->n_series, n + 1, memory_order_release);
  *id = n + 1;
  return PXG_OK;
}

/* Inside init a guest has not told its name yet; the name that its first metric got stays, so that a definition always
 * answers the same id. */
static const char *library_name(pxg_guest_lib *l) {
  const char *name = __atomic_load_n(&l->name, __ATOMIC_ACQUIRE), *base = strrchr(l->path, '/');
  const char *first = NULL;
  if (!name) name = base ? base + 1 : l->path;
  return __atomic_compare_exchange_n(&l->metrics_name, &first, name, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE) ? name
                                                                                                                : first;
}

static int32_t define(uint64_t ctx, uint32_t kind, const pxg_str *name, const pxg_field *labels, uint64_t n_labels,
                      uint32_t *id) {
  pxg_zone *z = pxg_host_driver()->zone;
  pxg_guest_lib *l = pxg_guest_by_ctx(ctx);
  if (!l || !l->metrics || !name || !id || !identifier(name) || (n_labels && !labels)) return PXG_E_ARG;
  if (kind < PXG_METRIC_COUNTER || kind > PXG_METRIC_HISTOGRAM) return PXG_E_ARG;
  if (n_labels > LABELS_MAX) return PXG_E_LIMIT;
  const pxg_field *sorted[LABELS_MAX + 1];
  for (uint64_t i = 0; i < n_labels; i++) {
    sorted[i] = &labels[i];
    if (!identifier(&labels[i].name) || (labels[i].value.len && !labels[i].value.ptr)) return PXG_E_ARG;
  }
  qsort(sorted, n_labels, sizeof *sorted, by_name);
  for (uint64_t i = 1; i < n_labels; i++)
    if (!by_name(&sorted[i - 1], &sorted[i])) return PXG_E_ARG;
  texts t;
  t.len = 0;
  if (!put_family(&t, library_name(l), name) || !put_labels(&t, sorted, n_labels)) return PXG_E_LIMIT;
  if (!lock(z)) return PXG_E_INTERNAL;
  uint32_t found;
  int32_t status = find_or_add(z, kind, &t, &found);
  unlock(z);
  if (status != PXG_OK) return status;
  atomic_fetch_or(&l->metrics[found / 64], 1ull << (found % 64));
  *id = found;
  return PXG_OK;
}

bool pxg_metric_known(const pxg_guest_lib *lib, uint32_t id) {
  const pxg_zone *z = pxg_host_driver()->zone;
  return z && lib->metrics && id && id <= z->max_series &&
         (atomic_load_explicit(&lib->metrics[id / 64], memory_order_acquire) >> (id % 64) & 1);
}

static void observe(pxg_series *s, int64_t value) {
  uint32_t i = 0;
  for (int64_t bound = 1; i < PXG_METRIC_BUCKETS - 1 && value > bound; bound *= 10) i++;
  uint64_t before = atomic_load(&s->sum), after;
  do {
    double sum;
    memcpy(&sum, &before, sizeof sum);
    sum += (double)value;
    memcpy(&after, &sum, sizeof after);
  } while (!atomic_compare_exchange_weak(&s->sum, &before, after));
  pxg_count(&s->in[i]);
}

int32_t pxg_metric_record(const pxg_guest_lib *lib, uint32_t id, int64_t value) {
  if (!pxg_metric_known(lib, id)) return PXG_E_NOTFOUND;
  pxg_series *s = pxg_zone_one_series(pxg_host_driver()->zone, id - 1);
  if (s->kind == PXG_METRIC_COUNTER) {
    if (value < 0) return PXG_E_ARG;
    atomic_fetch_add_explicit(&s->value, value, memory_order_relaxed);
  } else if (s->kind == PXG_METRIC_GAUGE) {
    atomic_store_explicit(&s->value, value, memory_order_relaxed);
  } else {
    observe(s, value);
  }
  return PXG_OK;
}

static int32_t record(uint64_t ctx, uint32_t id, int64_t value) {
  const pxg_guest_lib *l = pxg_guest_by_ctx(ctx);
  return l ? pxg_metric_record(l, id, value) : PXG_E_NOTFOUND;
}

const pxg_metrics_v1 pxg_metrics_table = {.size = sizeof(pxg_metrics_v1), .define = define, .record = record};
