/* SPDX-License-Identifier: Apache-2.0 */

/* The layout of a zone: the memory in which processes add up what they count. Everything in it is an offset or an index,
 * and everything but `lock` is read without it: elements are written before the count that includes them. */

#ifndef PXG_ZONE_H
#define PXG_ZONE_H

#include <pthread.h>

#include "pxg_loading.h"

#define PXG_ZONE_MAGIC 0x31656e6f7a677870ull
#define PXG_ZONE_LABELS 1024      /* Room for guest, filter and config as labels. */
#define PXG_ZONE_TEXT 256         /* Bytes of names and labels for a series, on average. */
#define PXG_METRIC_BUCKETS 11     /* Powers of ten from 1 to 10^9, and +Inf. */
#define PXG_ZONE_SERIES_MAX 65536 /* For a set of ids in each library. */

typedef struct pxg_instance {
  char labels[PXG_ZONE_LABELS];
  pxg_counters counters;
} pxg_instance;

typedef struct pxg_series {
  uint32_t kind;
  uint32_t family, names, labels;     /* Offsets of NUL-terminated texts; `names` are those of the labels alone. */
  uint64_t hash;                      /* Of family and labels. */
  _Atomic int64_t value;              /* COUNTER, read as unsigned, and GAUGE. */
  _Atomic uint64_t sum;               /* HISTOGRAM: a double's bits. */
  pxg_counter in[PXG_METRIC_BUCKETS]; /* HISTOGRAM: observations in each bucket alone. */
} pxg_series;

struct pxg_zone {
  uint64_t magic, size;
  pthread_mutex_t lock;                     /* Robust: a process may be killed while it holds it. */
  _Atomic int32_t pids[PXG_ZONE_PROCESSES]; /* Column 0 belongs to nobody. */
  uint32_t max_instances, max_series, max_text, text_used;
  _Atomic uint32_t n_instances, n_series; /* Instance 0 is "other". */
  uint64_t instances, series, text;       /* Offsets. */
};

static inline pxg_instance *pxg_zone_instance(pxg_zone *z, uint32_t i) {
  return (pxg_instance *)(void *)((char *)z + z->instances) + i;
}

static inline pxg_series *pxg_zone_one_series(pxg_zone *z, uint32_t i) {
  return (pxg_series *)(void *)((char *)z + z->series) + i;
}

static inline const char *pxg_zone_text(const pxg_zone *z, uint32_t at) { return (const char *)z + z->text + at; }

extern const uint64_t pxg_call_bounds_ns[PXG_N_BUCKETS]; /* The last one is without an end. */

#endif
