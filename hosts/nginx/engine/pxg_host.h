/* SPDX-License-Identifier: Apache-2.0 */

/* The host's side of proxy_golang before the first stream: libraries, configurations, metrics and log.
 *
 * Nothing in engine/ knows a proxy: whoever embeds it (the driver) describes itself once with pxg_host_start and is
 * called back only for lines of the log and names of attributes. Out of memory is an answer, never an abort.
 *
 * Threads: functions tagged [config-thread] take one lock of their own, so any thread may call them, but none that is
 * inside a hook of a guest; where the driver has CONFIG_THREAD they refuse to run on a loop thread. */

#ifndef PXG_HOST_H
#define PXG_HOST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proxy_golang.h"
#include "proxy_golang/ext/metrics.h"

/* Why something was refused: a code of 1.5 and a text for the operator, cut at its capacity. */
typedef struct pxg_error {
  int32_t status; /* PXG_E_*; PXG_OK: nothing is wrong. */
  char text[1536];
} pxg_error;

/* Fills `*e` (which may be null) and answers false, so that a check can end with it. */
bool pxg_fail(pxg_error *e, int32_t status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- The driver -------------------------------------------------------------------------------------------------- */

typedef struct pxg_zone pxg_zone;
typedef struct pxg_config pxg_config;

enum { PXG_ATTR_NONE = -1, PXG_ATTR_METADATA = -2 };

/* What embeds the engine. Copied by pxg_host_start; the strings and `data` live as long as the process. */
typedef struct pxg_driver {
  const char *name, *version; /* For pxg_host. */
  uint32_t n_workers;         /* Upper bound of worker indices of this process, at least 1. */
  uint64_t features[4];       /* What the driver can do at all. */
  uint64_t scratch_limit;     /* Most bytes that scratch_more grants in one call; 0: 1 MiB. */
  pxg_zone *zone;             /* Counters and metrics of guests; null: none, get_ext then answers null. */
  uint32_t log_level;         /* PXG_LOG_*; see pxg_log_level. */

  /* The clock of pxg_worker_clock, asked before and after a guest's event. Null: what a call took is not seen before
   * the next pxg_worker_clock. */
  uint64_t (*clock)(void);
  /* [any-thread] One record, escaped and without a line end; not those that pxg_stream_ops.log gets. */
  void (*log)(void *data, uint32_t level, const char *line, size_t len);
  /* [config-thread] The driver's number (0 or more) for an attribute, or PXG_ATTR_NONE. Names of metadata are not asked
   * for. Null: the driver has none. */
  int32_t (*attribute)(void *data, const char *name, size_t len);
  void *data;

  /* Entries of pxg_host; null where the features allow it (3.3). The engine of streams has them: pxg_complete,
   * pxg_apply, pxg_wake. */
  int32_t (*complete)(uint64_t ctx, uint64_t token, const pxg_result *r);
  int32_t (*apply)(uint64_t ctx, uint64_t stream, const pxg_result *r);
  int32_t (*wake)(uint64_t ctx, uint64_t stream, uint64_t arg);
} pxg_driver;

/* Once per process, before everything else. False with the cause: a table that 3.3 does not allow, started twice. */
bool pxg_host_start(const pxg_driver *driver, pxg_error *why);
const pxg_driver *pxg_host_driver(void);

/* The page (15.2). The driver calls pxg_page_clock at each look at the clock. */
void pxg_page_clock(uint64_t monotonic_ns, uint64_t realtime_ns);
void pxg_page_draining(bool draining);

/* Whether this thread is a loop thread; THREAD is told by it. */
void pxg_loop_thread(bool is);
bool pxg_is_loop_thread(void);

/* ---- Log: pxg_log.c ---------------------------------------------------------------------------------------------- */

#define PXG_LOG_RECORD_MAX 8192 /* Bytes of a guest's text that are kept; a longer one ends with " [cut]". */

void pxg_log_level(uint32_t level); /* Of the page, too. */
bool pxg_log_wants(uint32_t level);
void pxg_say(uint32_t level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Escapes control bytes, backslashes and what is not UTF-8 as \xNN and caps. Writes at most `room` bytes with the NUL
 * (room >= 16) and answers the length without it. */
size_t pxg_clean(char *to, size_t room, const void *text, uint64_t len);
const char *pxg_phase_name(uint32_t phase);
const char *pxg_status_name(int32_t status);

/* ---- What is lent during a hook: pxg_guest.c ----------------------------------------------------------------------- */

typedef struct pxg_more pxg_more;

/* Whose a record is: of a stream, `id` in logs. */
typedef struct pxg_speaker {
  void (*log)(void *data, uint32_t level, const char *line, size_t len); /* Null: pxg_driver.log. */
  void *data;
  uint64_t id;
} pxg_speaker;

/* Lent memory of one call of on_event or on_config_new. Its owner sets the first seven members and zeroes the rest
 * once; `config`, `speaker` and `phase` are for the log and may be 0. */
typedef struct pxg_call {
  pxg_op *ops; /* Zeros or earlier operations only (PXG-MEM-010). */
  uint64_t ops_cap;
  uint8_t *scratch; /* 16-aligned. */
  uint64_t scratch_cap;
  const pxg_config *config;
  const pxg_speaker *speaker;
  uint32_t phase;
  bool over;      /* scratch_more was refused: a failure of this call may be told as LIMIT. */
  pxg_more *more; /* What scratch_more granted. */
  uint64_t more_sum, more_cost;
} pxg_call;

/* Between the two, scratch_more on this thread serves this call. Whatever borrows from scratch has to be copied before
 * pxg_call_end. */
void pxg_call_begin(pxg_call *c);
void pxg_call_end(pxg_call *c);
const pxg_call *pxg_call_current(void); /* Of this thread, or null. */
/* Begins in a lent region and ends outside of it: ARG (PXG-MEM-012). */
bool pxg_call_overruns(const pxg_call *c, const void *ptr, uint64_t len);

/* ---- Libraries: pxg_elf.c, pxg_guest.c ----------------------------------------------------------------------------- */

typedef struct pxg_guest_lib {
  struct pxg_guest_lib *next; /* Never changes once published. */
  uint64_t ctx;               /* 1, 2, ... in the order of loading; pxg_host.ctx. */
  char *path;                 /* Absolute. */
  char *name;                 /* Cleaned, for logs and metrics; the file's name if the guest has none. */
  dev_t device;
  ino_t inode;
  bool go;         /* Has a Go runtime. */
  bool usable;     /* Init was accepted. */
  pxg_guest table; /* The guest's, checked by 2.2 step 6. */
  pxg_host host;   /* What the guest holds: never changes, never freed. */
  void *so;
  _Atomic uint64_t *metrics; /* Bit set of the ids that this library defined. */
  const char *metrics_name;  /* <library> in its metrics' names. */
} pxg_guest_lib;

/* What is wrong with the file, by 2.2 step 1; true if nothing. Loads nothing, so any process may ask. */
bool pxg_elf_check(const char *path, bool *go, pxg_error *why);

/* [config-thread] The library of a file: the one that is loaded, if it is the same file by device and inode. Null with
 * the cause. Blocks signals of this thread meanwhile; the driver widens affinity around it if it pins. */
pxg_guest_lib *pxg_guest_load(const char *path, pxg_error *why);
pxg_guest_lib *pxg_guest_first(void);
pxg_guest_lib *pxg_guest_by_ctx(uint64_t ctx); /* [any-thread] */

static inline bool pxg_has(const uint64_t features[4], unsigned f) { return features[f / 64] >> (f % 64) & 1; }
const char *pxg_feature_name(unsigned feature); /* Null if it has none. */
/* The names of those in `want` and not in `have`, ", " between them; "" if none. */
void pxg_features_missing(char *to, size_t room, const uint64_t want[4], const uint64_t have[4]);

/* ---- Counters and metrics: pxg_metrics.c --------------------------------------------------------------------------- */

typedef enum pxg_reason {
  PXG_R_ERROR,
  PXG_R_PANIC,
  PXG_R_INVALID,
  PXG_R_DEADLINE,
  PXG_R_LIMIT,
  PXG_R_CAP,
  PXG_N_REASONS
} pxg_reason;

const char *pxg_reason_name(pxg_reason r);

enum { PXG_N_PHASES = 20, PXG_N_BUCKETS = 8, PXG_ZONE_PROCESSES = 128 };

typedef _Atomic uint64_t pxg_counter;

/* The counters of 15.4 for one instance. They lie in the zone, are shared by processes and outlive configurations. */
typedef struct pxg_counters {
  pxg_counter calls[PXG_N_PHASES], errors[PXG_N_PHASES], panics[PXG_N_PHASES], pendings[PXG_N_PHASES];
  pxg_counter call_ns[PXG_N_PHASES], call_buckets[PXG_N_PHASES][PXG_N_BUCKETS];
  pxg_counter failures[PXG_N_REASONS], stale, cancels, skipped, late_replies, bypassed;
  _Atomic int32_t pending[PXG_ZONE_PROCESSES]; /* By process, so that one that was killed can be left out. */
} pxg_counters;

static inline void pxg_count(pxg_counter *c) { atomic_fetch_add_explicit(c, 1, memory_order_relaxed); }

/* A call of on_event that took `ns`: calls_total and call_seconds. */
void pxg_count_call(pxg_counters *c, uint32_t phase, uint64_t ns);
/* +1: a token has become PENDING; -1: no longer. */
void pxg_count_pending(pxg_counters *c, int32_t by);

/* Bytes that a zone for so many instances and series takes. */
size_t pxg_zone_size(uint32_t instances, uint32_t series);
/* Makes a zone in zeroed memory, aligned to 64, that the driver keeps; null if it is too small for one instance. What a
 * zone of the same layout holds already is kept, so a reload goes on counting. */
pxg_zone *pxg_zone_open(void *memory, size_t size);
/* Once per process that counts (after the fork): takes a column for the gauges. */
void pxg_zone_attach(pxg_zone *z);
/* The counters of an instance; when the zone is full, those of the instance "other". Never null with a zone; without
 * one, counters that nobody sees. */
pxg_counters *pxg_zone_counters(pxg_zone *z, const char *guest, const char *filter, const char *instance);

/* METRIC: whether `id` is one of this library's, and a record as pxg_metrics_v1.record answers it. */
bool pxg_metric_known(const pxg_guest_lib *lib, uint32_t id);
int32_t pxg_metric_record(const pxg_guest_lib *lib, uint32_t id, int64_t value);

/* One number of the zone. `labels` is in Prometheus' form without braces, "" for none. */
typedef struct pxg_sample {
  const char *family; /* pxg_guest_calls_total, pxg_user_<library>_<name>. */
  const char *suffix; /* "", "_bucket", "_sum", "_count". */
  const char *type;   /* counter, gauge, histogram. */
  const char *help;   /* What it counts, in a few words; null for metrics of guests. */
  const char *labels;
  bool real;      /* `f` holds it, not `i`. */
  bool is_signed; /* `i` is an int64_t. */
  uint64_t i;
  double f;
} pxg_sample;

/* Calls `each` for every number, those of one family one after the other; stops when it answers false. Counts that are 0
 * and have a phase are left out. */
bool pxg_zone_walk(pxg_zone *z, bool (*each)(void *data, const pxg_sample *s), void *data);
/* The text form of Prometheus; `put` takes pieces and answers false to stop. */
bool pxg_zone_prometheus(pxg_zone *z, bool (*put)(void *data, const char *text, size_t len), void *data);

/* ---- Configurations: pxg_config.c ---------------------------------------------------------------------------------- */

/* What the operator allows a configuration. pxg_policy_default fills in the documented values. */
typedef struct pxg_policy {
  bool fail_open;
  uint32_t fail_status;                      /* 500 to 599. */
  uint64_t pend_default_ns, pend_limit_ns;   /* 12.7. */
  uint64_t hold_limit_ns;                    /* 14.3, the hold span. */
  uint64_t hold_time_ns;                     /* 7.4. */
  uint32_t max_pending;                      /* 14.4: places PENDING on one worker. */
  uint64_t max_body_default, max_body_limit; /* Bytes held per direction. */
  uint64_t max_ops, max_fields, max_bytes;   /* Of one result: operations, fields of a reply, bytes of names, values. */
  const char *const *clusters;               /* That ROUTE may choose; n_clusters 0: any. */
  size_t n_clusters;
  const char *const *namespaces; /* Of METADATA_SET, besides the instance's own. */
  size_t n_namespaces;
} pxg_policy;

void pxg_policy_default(pxg_policy *p);

typedef struct pxg_config_spec {
  const char *library;  /* Path of the file. */
  const char *filter;   /* One of the library's. */
  const char *instance; /* 1 to 128 characters of 4.1; an override carries its parent's. */
  const void *bytes;    /* The operator's, exactly; may hold NUL. */
  uint32_t n_bytes;
  pxg_config *parent; /* For an override; else null. */
  uint64_t features[4];
  pxg_policy policy; /* Its lists are copied. */
  bool validate_only;
  bool no_attributes; /* Its streams have none of the driver's. */
} pxg_config_spec;

typedef struct pxg_attr {
  const char *name; /* For metadata: behind "metadata.". */
  uint32_t name_len;
  int32_t id; /* The driver's, PXG_ATTR_NONE or PXG_ATTR_METADATA. */
  uint64_t phases;
} pxg_attr;

typedef struct pxg_projected {
  const char *name; /* Lower case; pseudo-headers with their colon. */
  uint32_t name_len;
  uint64_t phases;
} pxg_projected;

/* A configuration that was judged and copied. All members but the counts are constant from pxg_config_new on. */
struct pxg_config {
  _Atomic uint32_t refs;
  pxg_guest_lib *lib;
  const char *filter, *instance;
  uint64_t value; /* pxg_event.config. */
  uint64_t features[4];
  uint64_t subscribe, pend_phases;
  uint32_t flags;        /* PXG_CFG_*. */
  bool no_attributes;    /* As in the spec. */
  uint32_t body_mode[2]; /* Never UNSET. */
  uint64_t max_body[2];  /* Limited. */
  uint64_t pend_ns;      /* Limited. */
  uint64_t attr_phases;  /* The union of the attributes' phases. */
  pxg_attr *attrs;
  size_t n_attrs;
  uint64_t projected_phases; /* Phases that an entry names; others get all fields. */
  pxg_projected *projection;
  size_t n_projection;
  pxg_policy policy;
  pxg_config *parent; /* Holds a reference. */
  pxg_counters *counters;
  _Atomic uint32_t *pending; /* PENDING places by worker, for max_pending. */
  pxg_config *next_live, *next_drop;
};

/* [config-thread] Loads the library if need be and makes a configuration, with one reference for the caller. Null with
 * the cause, which is logged as well: the file, the status and the guest's text. One with validate_only may be a parent
 * of others and is given back without being used; a refusal of it is not logged. */
pxg_config *pxg_config_new(const pxg_config_spec *spec, pxg_error *why);
pxg_config *pxg_config_ref(pxg_config *c); /* [any-thread] */
/* [any-thread] The last one puts it on the queue of those to drop. */
void pxg_config_unref(pxg_config *c);
bool pxg_config_may_cluster(const pxg_config *c, const void *name, size_t len);
bool pxg_config_may_namespace(const pxg_config *c, const void *name, size_t len);

bool pxg_configs_to_drop(void); /* [any-thread] Cheap: whether pxg_configs_drop has work. */
/* [config-thread] Calls on_config_drop for what has no reference left, a child before its parent. Answers how many
 * configurations are left alive. */
size_t pxg_configs_drop(void);

/* ---- Validation in a child: pxg_validate.c ------------------------------------------------------------------------- */

typedef struct pxg_validation {
  const pxg_config_spec *specs; /* `parent` is null in all; see `parents`. */
  const int *parents;           /* Index of the parent among `specs`, or -1; null: none has one. */
  size_t n;
  uint64_t timeout_ns; /* 0: 10 s. */
  /* In the child, before anything is loaded: what a worker does (user, root, limits), and pxg_host_start if this process
   * has not called it. False with the cause. May be null. */
  bool (*become)(void *data, pxg_error *why);
  void *data;
} pxg_validation;

/* Checks the files here and loads them, with each configuration, in a child process that ends without cleaning up.
 * True if all are accepted; else the cause, and in `*which` (may be null) the index of the configuration. A child that
 * crashes or takes too long is a refusal. What guests log there reaches the driver's log in the child. A process that
 * has loaded guests itself cannot fork one (PXG-LOAD-004): there it happens in the process. */
bool pxg_validate(const pxg_validation *v, size_t *which, pxg_error *why);

#endif
