/* SPDX-License-Identifier: Apache-2.0 */
/* The probe: a guest without a runtime of its own that does what a script says and records every call.
 *
 *   script.c  the configuration: general lines, and cases with their steps
 *   record.c  one JSON object a line, one write(2) each
 *   act.c     steps: building results, calling the host, threads that call it later
 *   extra.c   steps beside results: metrics, signals, children, calls that are not legal
 *   probe.c   the hooks and the entry
 *
 * The schema of the records is conformance/src/hostcheck/record.rs; the script language is in README.md. */
#ifndef PXG_PROBE_H
#define PXG_PROBE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "proxy_golang.h"

/* ---- script.c ---- */

typedef struct {
  uint8_t *ptr; /* Decoded bytes, followed by a zero that does not count. */
  uint32_t len;
  int absent; /* The word was `~`. */
} word;

enum { MAX_WORDS = 10 };

typedef struct {
  word words[MAX_WORDS]; /* The verb first. */
  int n;
  int must;     /* `set!` */
  int trailers; /* `t.set` */
} step;

typedef struct {
  uint32_t phase; /* 0 for a named result. */
  uint32_t nth;   /* Only for the n-th event of the phase; 0 for each. */
  char *name;     /* Of a named result. */
  step *steps;
  int n;
} line;

typedef struct {
  char *id;
  line *lines;
  int n;
} script;

typedef struct config {
  uint64_t value;
  char *record;
  char *instance;
  int refuse; /* Status to answer, 0 for none. */
  word refuse_text;
  int subscribe_raw; /* `subscribe` and `pend` are used as they are, without a look at the features. */
  uint64_t subscribe, pend;
  uint32_t mode[2];
  uint64_t max_body[2];
  uint64_t pend_ns;
  uint32_t flags;
  pxg_attr_want attrs[32];
  uint64_t n_attrs;
  pxg_projection projection[32];
  uint64_t n_projection;
  int32_t answer;      /* A status beside an acceptance. */
  uint64_t null_attrs; /* A count without an array. */
  uint64_t scratch;    /* Bytes to ask scratch_more for, in pieces of 4 KiB. */
  uint64_t set_value;  /* The configuration's value, if `has_value`. */
  int has_value;
  uint32_t out_size; /* `size` to leave in the answer, 0 for the host's. */
  script *scripts;
  int n_scripts;
  uint64_t features[4];
  struct config *next;
} config;

config *config_parse(const uint8_t *text, size_t len, char **error);
script *config_script(config *c, const char *id, size_t len);
line *script_result(script *s, const char *name);
uint32_t phase_of(const char *name, size_t len);

/* ---- record.c ---- */

typedef struct {
  char *p;
  size_t n, cap;
} text;

extern const pxg_host *the_host;
extern _Thread_local uint64_t thread_now; /* `seq` of the hook that runs on this thread, 0 outside. */

extern _Thread_local const char *case_now; /* The case of the hook that runs on this thread. */

extern const char *record_library; /* In each record, for runs with two libraries. */

void record_to(const char *dir);
text *record_begin(const char *fn, int exit); /* The thread's line; one at a time. */
void record_end(text *t);
void j_u64(text *t, const char *key, uint64_t v);
void j_i32(text *t, const char *key, int32_t v);
void j_bytes(text *t, const char *key, const void *p, size_t n);
void j_text(text *t, const char *key, const char *s);
void j_raw(text *t, const char *s);
void j_event(text *t, const pxg_event *ev);
void j_fields(text *t, const char *key, const pxg_field *f, uint64_t n);
void j_sum(text *t, const char *key, uint64_t sum);
void j_result(text *t, const char *name, const pxg_result *r);
uint64_t sum_bytes(uint64_t h, const void *p, size_t n);
uint64_t sum_event(const pxg_event *ev);
#define SUM_START 0xcbf29ce484222325ull
void note(const char *rule, const char *format, ...);

/* ---- act.c ---- */

typedef struct job job;

/* A place of a stream. Never freed: a late call must still find what to do. */
typedef struct state {
  uint64_t config, stream;
  config *cfg;
  script *script;
  char id[96];
  uint32_t counts[32];
  uint64_t token, previous_token;
  uint64_t user;
  int quiet, quiet_next; /* Nothing more is recorded: now, or from the end of this event. */
  job *deferred;
  struct state *next;
} state;

/* Memory for borrowed results. */
typedef struct {
  uint8_t *base;
  size_t cap, used;
  int guarded; /* Everything is taken from the end, so that it borders on an inaccessible page. */
} arena;

void act_entered(void); /* A hook begins: what this thread lent before is overwritten. */
void act_event(state *s, const pxg_event *ev, pxg_result *out, line **lines, int n, text *owned);
void act_deferred(state *s, const char *when); /* `cancel`, `end`. */
int act_is_operation(const pxg_op *op);

#endif
