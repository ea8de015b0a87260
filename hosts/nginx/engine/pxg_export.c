/* SPDX-License-Identifier: Apache-2.0 */

/* The numbers of a zone, one after the other, and as text for Prometheus. */

#define _XOPEN_SOURCE 700

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pxg_zone.h"

typedef struct walk {
  pxg_zone *z;
  bool (*each)(void *data, const pxg_sample *s);
  void *data;
  char labels[PXG_ZONE_LABELS + 64];
} walk;

typedef struct family {
  const char *name, *type, *help;
} family;

static bool emit(walk *w, const family *f, const char *labels, uint64_t value) {
  pxg_sample s = {.family = f->name, .suffix = "", .type = f->type, .help = f->help, .labels = labels, .i = value};
  return w->each(w->data, &s);
}

static uint64_t load(const pxg_counter *c) { return atomic_load_explicit(c, memory_order_relaxed); }

static const char *with(walk *w, const char *labels, const char *name, const char *value) {
  snprintf(w->labels, sizeof w->labels, "%s,%s=\"%s\"", labels, name, value);
  return w->labels;
}

/* ---- 15.4 -------------------------------------------------------------------------------------------------------- */

static const family calls = {"pxg_guest_calls_total", "counter", "Calls of on_event."};
static const family errors = {"pxg_guest_errors_total", "counter", "Events that ended in a failure."};
static const family panics = {"pxg_guest_panics_total", "counter", "Events that ended in a panic."};
static const family pendings = {"pxg_guest_pending_total", "counter", "Events that answered PENDING."};
static const family call_time = {"pxg_guest_call_seconds", "histogram", "Time inside on_event."};
static const family failed = {"pxg_guest_failures_total", "counter", "Failures of guests, by reason."};
static const family pending_now = {"pxg_guest_pending", "gauge", "Places that wait for a guest now."};
static const family stale = {"pxg_guest_stale_completions_total", "counter", "Answers that came too late."};
static const family cancels = {"pxg_guest_cancels_total", "counter", "Calls of on_cancel."};
static const family skipped = {"pxg_guest_operations_skipped_total", "counter",
                               "Operations that could not be applied."};
static const family late_replies = {"pxg_guest_late_replies_total", "counter",
                                    "Replies that came after a response had begun."};
static const family bypassed = {"pxg_guest_bypassed_total", "counter", "Streams that went on without a failed guest."};

#define EACH_INSTANCE(w, i)                                               \
  for (uint32_t k = 0, n = atomic_load(&(w)->z->n_instances); k < n; k++) \
    for (pxg_instance *i = pxg_zone_instance((w)->z, k); i; i = NULL)

static bool by_phase(walk *w, const family *f, size_t offset) {
  EACH_INSTANCE(w, i) for (uint32_t p = 1; p < PXG_N_PHASES; p++) {
    uint64_t v = load((const pxg_counter *)(const void *)((const char *)&i->counters + offset) + p);
    if (v && !emit(w, f, with(w, i->labels, "phase", pxg_phase_name(p)), v)) return false;
  }
  return true;
}

static bool plain(walk *w, const family *f, size_t offset) {
  EACH_INSTANCE(w, i) {
    uint64_t v = load((const pxg_counter *)(const void *)((const char *)&i->counters + offset));
    if (!emit(w, f, i->labels, v)) return false;
  }
  return true;
}

static bool call_seconds(walk *w) {
  static const char *const le[PXG_N_BUCKETS] = {"1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1", "+Inf"};
  pxg_sample s = {.family = call_time.name, .type = call_time.type, .help = call_time.help};
  EACH_INSTANCE(w, i) for (uint32_t p = 1; p < PXG_N_PHASES; p++) {
    if (!load(&i->counters.calls[p])) continue;
    char labels[PXG_ZONE_LABELS + 64];
    snprintf(labels, sizeof labels, "%s,phase=\"%s\"", i->labels, pxg_phase_name(p));
    uint64_t count = 0;
    s.real = false;
    s.suffix = "_bucket";
    for (int b = 0; b < PXG_N_BUCKETS; b++) {
      char bucket[sizeof labels + 16];
      s.i = count += load(&i->counters.call_buckets[p][b]);
      snprintf(bucket, sizeof bucket, "%s,le=\"%s\"", labels, le[b]);
      s.labels = bucket;
      if (!w->each(w->data, &s)) return false;
    }
    s.labels = labels;
    s.suffix = "_count";
    if (!w->each(w->data, &s)) return false;
    s.suffix = "_sum";
    s.real = true;
    s.f = (double)load(&i->counters.call_ns[p]) / 1e9;
    if (!w->each(w->data, &s)) return false;
  }
  return true;
}

static bool failures(walk *w) {
  EACH_INSTANCE(w, i)
  for (int r = 0; r < PXG_N_REASONS; r++)
    if (!emit(w, &failed, with(w, i->labels, "reason", pxg_reason_name((pxg_reason)r)), load(&i->counters.failures[r])))
      return false;
  return true;
}

/* What a process that was killed had pending is gone with it. */
static bool pending(walk *w) {
  bool alive[PXG_ZONE_PROCESSES] = {true};
  for (int p = 1; p < PXG_ZONE_PROCESSES; p++) {
    int32_t pid = atomic_load(&w->z->pids[p]);
    alive[p] = pid && (!kill(pid, 0) || errno != ESRCH);
  }
  EACH_INSTANCE(w, i) {
    int64_t sum = 0;
    for (int p = 0; p < PXG_ZONE_PROCESSES; p++)
      if (alive[p]) sum += atomic_load_explicit(&i->counters.pending[p], memory_order_relaxed);
    if (!emit(w, &pending_now, i->labels, sum > 0 ? (uint64_t)sum : 0)) return false;
  }
  return true;
}

/* ---- Metrics of guests ------------------------------------------------------------------------------------------- */

static bool histogram(walk *w, const pxg_series *m, pxg_sample *s) {
  char labels[8192 + 64];
  const char *own = pxg_zone_text(w->z, m->labels), *comma = *own ? "," : "";
  uint64_t count = 0, bound = 1, bits = atomic_load(&m->sum);
  s->suffix = "_bucket";
  s->labels = labels;
  for (int b = 0; b < PXG_METRIC_BUCKETS; b++, bound *= 10) {
    s->i = count += load(&m->in[b]);
    if (b < PXG_METRIC_BUCKETS - 1) {
      snprintf(labels, sizeof labels, "%s%sle=\"%llu\"", own, comma, (unsigned long long)bound);
    } else {
      snprintf(labels, sizeof labels, "%s%sle=\"+Inf\"", own, comma);
    }
    if (!w->each(w->data, s)) return false;
  }
  s->suffix = "_count";
  s->labels = own;
  if (!w->each(w->data, s)) return false;
  s->suffix = "_sum";
  s->real = true;
  memcpy(&s->f, &bits, sizeof s->f);
  return w->each(w->data, s);
}

static bool one_series(walk *w, const pxg_series *m) {
  static const char *const types[] = {"", "counter", "gauge", "histogram"};
  pxg_sample s = {.family = pxg_zone_text(w->z, m->family),
                  .suffix = "",
                  .type = types[m->kind],
                  .labels = pxg_zone_text(w->z, m->labels)};
  if (m->kind == PXG_METRIC_HISTOGRAM) return histogram(w, m, &s);
  s.i = (uint64_t)atomic_load_explicit(&m->value, memory_order_relaxed);
  s.is_signed = m->kind == PXG_METRIC_GAUGE;
  return w->each(w->data, &s);
}

/* Series of one family together, in the order of their first definition. */
static bool user(walk *w) {
  uint32_t n = atomic_load_explicit(&w->z->n_series, memory_order_acquire);
  for (uint32_t i = 0; i < n; i++) {
    const char *family = pxg_zone_text(w->z, pxg_zone_one_series(w->z, i)->family);
    bool first = true;
    for (uint32_t k = 0; k < i && first; k++)
      first = strcmp(pxg_zone_text(w->z, pxg_zone_one_series(w->z, k)->family), family);
    for (uint32_t k = i; first && k < n; k++) {
      const pxg_series *m = pxg_zone_one_series(w->z, k);
      if (!strcmp(pxg_zone_text(w->z, m->family), family) && !one_series(w, m)) return false;
    }
  }
  return true;
}

#define AT(member) offsetof(pxg_counters, member)

bool pxg_zone_walk(pxg_zone *z, bool (*each)(void *data, const pxg_sample *s), void *data) {
  walk w = {.z = z, .each = each, .data = data};
  if (!z) return true;
  return by_phase(&w, &calls, AT(calls)) && by_phase(&w, &errors, AT(errors)) && by_phase(&w, &panics, AT(panics)) &&
         by_phase(&w, &pendings, AT(pendings)) && call_seconds(&w) && failures(&w) && pending(&w) &&
         plain(&w, &stale, AT(stale)) && plain(&w, &cancels, AT(cancels)) && plain(&w, &skipped, AT(skipped)) &&
         plain(&w, &late_replies, AT(late_replies)) && plain(&w, &bypassed, AT(bypassed)) && user(&w);
}

/* ---- Text -------------------------------------------------------------------------------------------------------- */

typedef struct text {
  bool (*put)(void *data, const char *text, size_t len);
  void *data;
  const char *family; /* Of the last sample. */
} text;

static bool put(text *t, const char *s) { return t->put(t->data, s, strlen(s)); }

/* The shortest of two forms that reads as the same number. */
static void print_real(char *to, size_t room, double value) {
  snprintf(to, room, " %.15g\n", value);
  if (strtod(to, NULL) != value) snprintf(to, room, " %.17g\n", value);
}

static bool print(void *data, const pxg_sample *s) {
  text *t = data;
  char number[64];
  if (s->real) {
    print_real(number, sizeof number, s->f);
  } else if (s->is_signed) {
    snprintf(number, sizeof number, " %lld\n", (long long)s->i);
  } else {
    snprintf(number, sizeof number, " %llu\n", (unsigned long long)s->i);
  }
  if (!t->family || strcmp(t->family, s->family)) {
    t->family = s->family;
    if (s->help && (!put(t, "# HELP ") || !put(t, s->family) || !put(t, " ") || !put(t, s->help) || !put(t, "\n")))
      return false;
    if (!put(t, "# TYPE ") || !put(t, s->family) || !put(t, " ") || !put(t, s->type) || !put(t, "\n")) return false;
  }
  if (!put(t, s->family) || !put(t, s->suffix)) return false;
  if (*s->labels && (!put(t, "{") || !put(t, s->labels) || !put(t, "}"))) return false;
  return put(t, number);
}

bool pxg_zone_prometheus(pxg_zone *z, bool (*out)(void *data, const char *text, size_t len), void *data) {
  text t = {.put = out, .data = data};
  return pxg_zone_walk(z, print, &t);
}
