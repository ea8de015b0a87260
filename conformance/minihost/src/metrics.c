/* SPDX-License-Identifier: Apache-2.0 */

/* The host's counters of 15.4, and the extension pxg.metrics/1. */

#include <ctype.h>

#include "minihost.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static stats *all_stats;

stats *stats_of(const char *guest, const char *filter, const char *instance) {
  pthread_mutex_lock(&lock);
  stats *s = all_stats;
  while (s && (strcmp(s->guest, guest) || strcmp(s->filter, filter) || strcmp(s->instance, instance))) s = s->next;
  if (!s) {
    s = zalloc(sizeof *s);
    s->guest = copy_text(guest, strlen(guest));
    s->filter = copy_text(filter, strlen(filter));
    s->instance = copy_text(instance, strlen(instance));
    s->next = all_stats;
    all_stats = s;
  }
  pthread_mutex_unlock(&lock);
  return s;
}

/* One series: a name with its labels. */
typedef struct series {
  struct series *next;
  uint64_t lib;
  uint32_t id, kind;
  char *name, *names, *labels; /* `names`: the label names alone, `labels`: as they are exported. */
  int64_t value;
  double sum;
  uint64_t buckets[8], count;
} series;

static series *all_series;
static uint32_t n_series;

static const int64_t bounds[8] = {1, 10, 100, 1000, 10000, 100000, 1000000, INT64_MAX};

static bool identifier(const pxg_str *s) {
  for (uint32_t i = 0; i < s->len; i++) {
    uint8_t c = s->ptr[i];
    if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (i && c >= '0' && c <= '9'))) return false;
  }
  return s->len && s->ptr;
}

static int by_name(const void *a, const void *b) {
  const pxg_str *x = &(*(const pxg_field *const *)a)->name, *y = &(*(const pxg_field *const *)b)->name;
  uint32_t n = x->len < y->len ? x->len : y->len;
  int c = memcmp(x->ptr, y->ptr, n);
  return c ? c : (x->len > y->len) - (x->len < y->len);
}

static char *escape_label(const pxg_str *v) {
  char *out = must(malloc(v->len * 4 + 1));
  size_t n = 0;
  for (uint32_t i = 0; i < v->len; i++) {
    uint8_t c = v->ptr[i];
    if (c == '"' || c == '\\') out[n++] = '\\';
    if (c == '\n') out[n++] = '\\', c = 'n';
    out[n++] = (char)c;
  }
  out[n] = 0;
  return out;
}

static int32_t define(uint64_t ctx, uint32_t kind, const pxg_str *name, const pxg_field *labels, uint64_t n_labels,
                      uint32_t *id) {
  lib *l = lib_by_ctx(ctx);
  if (!l || !name || !id || !identifier(name) || (n_labels && !labels) || n_labels > 32) return PXG_E_ARG;
  if (kind < PXG_METRIC_COUNTER || kind > PXG_METRIC_HISTOGRAM) return PXG_E_ARG;
  const pxg_field *sorted[32];
  for (uint64_t i = 0; i < n_labels; i++) {
    sorted[i] = &labels[i];
    if (!identifier(&labels[i].name) || (labels[i].value.len && !labels[i].value.ptr)) return PXG_E_ARG;
  }
  qsort(sorted, n_labels, sizeof *sorted, by_name);
  char *names = NULL, *text = NULL;
  size_t nn = 0, tn = 0;
  FILE *fn = must(open_memstream(&names, &nn)), *ft = must(open_memstream(&text, &tn));
  int32_t status = PXG_OK;
  for (uint64_t i = 0; i < n_labels; i++) {
    if (i && !by_name(&sorted[i - 1], &sorted[i])) status = PXG_E_ARG;
    char *v = escape_label(&sorted[i]->value);
    fprintf(fn, "%.*s,", (int)sorted[i]->name.len, (const char *)sorted[i]->name.ptr);
    fprintf(ft, "%s%.*s=\"%s\"", i ? "," : "", (int)sorted[i]->name.len, (const char *)sorted[i]->name.ptr, v);
    free(v);
  }
  fclose(fn);
  fclose(ft);
  pthread_mutex_lock(&lock);
  series *found = NULL;
  for (series *s = all_series; s && status == PXG_OK; s = s->next) {
    if (s->lib != ctx || strlen(s->name) != name->len || memcmp(s->name, name->ptr, name->len)) continue;
    if ((s->kind != kind || strcmp(s->names, names)) && !BUG("metric-kind-ignored")) {
      status = PXG_E_ARG;
    } else if (!strcmp(s->labels, text) && !BUG("metric-defined-anew")) {
      found = s;
    }
  }
  if (status == PXG_OK && !found && n_series >= set.max_series) status = PXG_E_LIMIT;
  if (status == PXG_OK && !found) {
    found = zalloc(sizeof *found);
    found->lib = ctx;
    found->id = ++n_series;
    found->kind = kind;
    found->name = copy_text(name->ptr, name->len);
    found->names = names;
    found->labels = text;
    names = text = NULL;
    found->next = all_series;
    all_series = found;
  }
  if (status == PXG_OK) *id = found->id;
  if (status == PXG_OK && BUG("writes-past-the-end")) id[1] = 0;
  pthread_mutex_unlock(&lock);
  free(names);
  free(text);
  return status;
}

/* OK, NOTFOUND, or ARG for a counter that would fall. */
static int32_t record(uint64_t ctx, uint32_t id, int64_t value) {
  int32_t status = PXG_E_NOTFOUND;
  if (BUG("metrics-on-loop-threads-only") && !loop_thread) return status;
  pthread_mutex_lock(&lock);
  for (series *s = all_series; s; s = s->next) {
    if (s->id != id || (s->lib != ctx && !BUG("foreign-metric-recorded"))) continue;
    status = PXG_OK;
    if (s->kind == PXG_METRIC_COUNTER) {
      if (value < 0) {
        status = PXG_E_ARG;
      } else {
        s->value += value;
      }
    } else if (s->kind == PXG_METRIC_GAUGE) {
      s->value = value;
    } else {
      s->sum += (double)value;
      s->count++;
      for (int i = 0; i < 8; i++) s->buckets[i] += value <= bounds[i];
    }
  }
  pthread_mutex_unlock(&lock);
  return status == PXG_E_NOTFOUND && BUG("unknown-metric-accepted") ? PXG_OK : status;
}

const pxg_metrics_v1 metrics_table = {.size = sizeof(pxg_metrics_v1), .define = define, .record = record};

bool metric_known(uint64_t ctx, uint32_t id) {
  pthread_mutex_lock(&lock);
  const series *s = all_series;
  while (s && (s->id != id || (s->lib != ctx && !BUG("foreign-metric-recorded")))) s = s->next;
  pthread_mutex_unlock(&lock);
  return s;
}

bool metric_record(uint64_t ctx, uint32_t id, int64_t value) { return record(ctx, id, value) == PXG_OK; }

static void type_of(FILE *to, const char *name, const char *type) { fprintf(to, "# TYPE %s %s\n", name, type); }

typedef _Atomic uint64_t counter;

static void by_phase(FILE *to, const char *name, size_t offset) {
  type_of(to, name, "counter");
  for (stats *s = all_stats; s; s = s->next)
    for (uint32_t p = 1; p < 32; p++) {
      uint64_t v = ((counter *)((char *)s + offset))[p];
      if (v)
        fprintf(to, "%s{guest=\"%s\",filter=\"%s\",config=\"%s\",phase=\"%s\"} %llu\n", name, s->guest, s->filter,
                s->instance, phase_name(p), (unsigned long long)v);
    }
}

static void plain(FILE *to, const char *name, size_t offset) {
  type_of(to, name, "counter");
  for (stats *s = all_stats; s; s = s->next)
    fprintf(to, "%s{guest=\"%s\",filter=\"%s\",config=\"%s\"} %llu\n", name, s->guest, s->filter, s->instance,
            (unsigned long long)*(counter *)((char *)s + offset));
}

static const uint64_t call_bounds[8] = {1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000, UINT64_MAX};
static const char *const call_names[8] = {"1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1", "+Inf"};

static void seconds(FILE *to) {
  type_of(to, "pxg_guest_call_seconds", "histogram");
  for (stats *s = all_stats; s; s = s->next)
    for (uint32_t p = 1; p < 32; p++) {
      if (!s->calls[p]) continue;
      char labels[512];
      snprintf(labels, sizeof labels, "guest=\"%s\",filter=\"%s\",config=\"%s\",phase=\"%s\"", s->guest, s->filter,
               s->instance, phase_name(p));
      uint64_t sum = 0;
      for (int i = 0; i < 8; i++) {
        sum += s->buckets[p][i];
        fprintf(to, "pxg_guest_call_seconds_bucket{%s,le=\"%s\"} %llu\n", labels, call_names[i],
                (unsigned long long)sum);
      }
      fprintf(to, "pxg_guest_call_seconds_sum{%s} %g\npxg_guest_call_seconds_count{%s} %llu\n", labels,
              (double)s->ns[p] / 1e9, labels, (unsigned long long)sum);
    }
}

void stats_time(stats *s, uint32_t phase, uint64_t ns) {
  int i = 0;
  while (ns > call_bounds[i]) i++;
  s->buckets[phase][i]++;
  s->ns[phase] += ns;
}

void metrics_print(FILE *to) {
  pthread_mutex_lock(&lock);
  by_phase(to, "pxg_guest_calls_total", offsetof(stats, calls));
  by_phase(to, "pxg_guest_errors_total", offsetof(stats, errors));
  by_phase(to, "pxg_guest_panics_total", offsetof(stats, panics));
  by_phase(to, "pxg_guest_pending_total", offsetof(stats, pendings));
  seconds(to);
  type_of(to, "pxg_guest_failures_total", "counter");
  for (stats *s = all_stats; s; s = s->next)
    for (int r = 0; r < N_REASONS; r++)
      fprintf(to, "pxg_guest_failures_total{guest=\"%s\",filter=\"%s\",config=\"%s\",reason=\"%s\"} %llu\n", s->guest,
              s->filter, s->instance, reason_names[r], (unsigned long long)s->failures[r]);
  type_of(to, "pxg_guest_pending", "gauge");
  for (stats *s = all_stats; s; s = s->next)
    fprintf(to, "pxg_guest_pending{guest=\"%s\",filter=\"%s\",config=\"%s\"} %d\n", s->guest, s->filter, s->instance,
            (int)s->pending);
  plain(to, "pxg_guest_stale_completions_total", offsetof(stats, stale));
  plain(to, "pxg_guest_cancels_total", offsetof(stats, cancels));
  plain(to, "pxg_guest_operations_skipped_total", offsetof(stats, skipped));
  plain(to, "pxg_guest_late_replies_total", offsetof(stats, late));
  plain(to, "pxg_guest_bypassed_total", offsetof(stats, bypassed));
  for (series *s = all_series; s; s = s->next) {
    lib *l = lib_by_ctx(s->lib);
    char name[256];
    int n = snprintf(name, sizeof name, "pxg_user_%s_", l && l->name ? l->name : "unknown");
    for (int i = 9; i < n && i < (int)sizeof name; i++)
      if (!isalnum((unsigned char)name[i])) name[i] = '_';
    const char *open = *s->labels ? "{" : "", *close = *s->labels ? "}" : "";
    if (s->kind != PXG_METRIC_HISTOGRAM) {
      fprintf(to, "%s%s%s%s%s %lld\n", name, s->name, open, s->labels, close, (long long)s->value);
      continue;
    }
    for (int i = 0; i < 7; i++)
      fprintf(to, "%s%s_bucket{%s%sle=\"%lld\"} %llu\n", name, s->name, s->labels, *s->labels ? "," : "",
              (long long)bounds[i], (unsigned long long)s->buckets[i]);
    fprintf(to, "%s%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, s->name, s->labels, *s->labels ? "," : "",
            (unsigned long long)s->count);
    fprintf(to, "%s%s_sum%s%s%s %g\n%s%s_count%s%s%s %llu\n", name, s->name, open, s->labels, close, s->sum, name,
            s->name, open, s->labels, close, (unsigned long long)s->count);
  }
  pthread_mutex_unlock(&lock);
}

void metrics_free(void) {
  for (stats *s = all_stats, *next; s; s = next) {
    next = s->next;
    free(s->guest);
    free(s->filter);
    free(s->instance);
    free(s);
  }
  for (series *s = all_series, *next; s; s = next) {
    next = s->next;
    free(s->name);
    free(s->names);
    free(s->labels);
    free(s);
  }
}
