/* A guest that does what its configuration says, and writes down each call: one JSON object a line, by one write(2).
 *
 *   record PATH                the file that calls are appended to
 *   refuse TEXT                the configuration is refused with TEXT
 *   sees parent                the configuration is refused unless it overrides another
 *   attr NAME                  an attribute, in all phases
 *   counter NAME               a metric; `metric N` adds to it
 *   flags duplex|resizes_request|resizes_response|peer ...
 *   max_body DIRECTION N
 *   mode DIRECTION MODE        a body mode for all streams
 *   watch KEY PATH             what pends until KEY is released once there is such a file
 *   features                   the features that the configuration has are written down
 *   case NAME                  begins the script of the streams whose request has the field `x-case: NAME`; `*`: of
 *                              all others, also of those whose request never came here. Without one they pass unseen
 *   PHASE [@N|@end] STEP ...   a step of it, in the N-th call of the phase, in that with BODY_END, or in each
 *
 * Steps: set|add|delete NAME VALUE, the same as tset.. on trailers, set_at|delete_at I VALUE, pass N, drop N, inject TEXT,
 * meta KEY VALUE, metric N, cluster NAME, recompute, mode DIRECTION MODE, resizes, more [N] (where the body has not ended),
 * reply STATUS TEXT (with rset NAME VALUE, rtrailer NAME VALUE, grpc N before it), stream STATUS PIECES SIZE, reset, error
 * TEXT, unset, garbage N, exhaust, log LEVEL TEXT, block MS, wake N, release KEY, owned NAME VALUE and owned_inject TEXT
 * (set and inject with buffers that the host releases), count (how many of those were given and released, and how many
 * batches have ended, is written down), and pend MS|early|forever|until KEY: the rest of the phase's steps goes with the
 * completion. `$N` in a value is the N-th attribute. */
#ifndef SCRIPT_H
#define SCRIPT_H

#include <pthread.h>
#include <stdlib.h>

#include "proxy_golang/ext/metrics.h"
#include "proxy_golang_guest.h"

enum { PHASES = 9, MAX_OPS = 64, MAX_STEPS = 64, MAX_ATTRS = 16 };

extern const char *const phase_names[PHASES];

typedef struct step {
  uint32_t phase;
  uint32_t nth; /* 0: each call; UINT32_MAX: that with BODY_END */
  pxg_str text; /* without the phase; lives as long as the process */
} step;

typedef struct script {
  pxg_str name;
  uint32_t n_steps;
  step *steps;
  struct config *config;
  struct script *next;
} script;

typedef struct config {
  pxg_str name;
  int record;
  uint32_t counter, n_attrs;
  pxg_str attrs[MAX_ATTRS];
  script *scripts;
} config;

typedef struct stream {
  const script *script;
  uint32_t calls[PHASES];
} stream;

extern const pxg_host *host;
extern const pxg_metrics_v1 *metrics;
/* Guards what waits, and the writers. */
extern pthread_mutex_t lock;

/* record.c: writing down */
void record_event(const script *s, const pxg_event *ev, uint32_t nth);
void record_status(const char *call, const script *s, uint32_t phase, int32_t status);
/* One line with text of the caller's: `,"name":value...`. */
void record_line(const char *call, const script *s, const char *format, ...) PXGG_PRINTF(3, 4);

/* config.c: reading a script */
int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out);
uint64_t number(pxg_str s);
uint32_t direction(pxg_str word);
uint32_t body_mode(pxg_str word);

/* steps.c: running it */

/* A result under construction. One for each thread: what it borrows stays until the next call on the thread. */
typedef struct result {
  pxg_op ops[MAX_OPS];
  pxg_reply reply;
  pxg_field rfields[8], rtrailers[8];
  pxg_buf rbody;
  uint64_t pieces, piece_size;
  char values[4096];
  size_t used;
} result;

extern _Thread_local result r;

/* Runs the steps of a phase from `at` on, for a view of `len` bytes. `ev` is null in a completion. Answers the step
 * after which it pends. */
const step *run(const script *s, const step *at, uint32_t phase, uint32_t flags, uint32_t nth, uint64_t len,
                const pxg_event *ev, pxg_result *out);

/* owned.c: buffers that change hands */
pxg_buf owned(pxg_str text);
uint64_t owned_given(void);
uint64_t owned_released(void);

/* script.c */
uint64_t batches_ended(void);

/* garbage.c: results that no guest may return */
void garbage(pxg_op *o, pxg_result *out, uint64_t which);

/* pending.c: deciding later */
void pend(const script *s, const step *at, const pxg_event *ev, uint32_t nth, pxg_str how);
void release_all(pxg_str key);
/* Releases `key` once there is the file `path`. */
void watch(pxg_str key, pxg_str path);
void detached(void *(*function)(void *), void *arg);
void sleep_ms(long ms);

/* replies.c: streamed replies */
void write_later(const script *s, uint64_t stream, uint64_t pieces, uint64_t size);
/* The stream's reply has room again, or the stream has ended. */
void tell_writer(uint64_t stream, int gone);

#endif
