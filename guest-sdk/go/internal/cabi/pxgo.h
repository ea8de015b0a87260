/* The C half of the Go SDK: what has to happen without entering Go. */
#ifndef PXGO_H
#define PXGO_H

#include "proxy_golang.h"
#include "proxy_golang_metrics.h"

#define PXGO_MAX_HOSTS 16
#define PXGO_MAX_WORKERS 256
#define PXGO_USER_INTEREST 1ull /* bridge.UserInterest */

/* Go's headers of slices and strings, for what Go reads in place. */
typedef struct pxgo_slice {
  const void *ptr;
  uint64_t len, cap;
} pxgo_slice;
typedef struct pxgo_attr {
  const uint8_t *ptr;
  uint64_t len;
  uint64_t present; /* a bool and its padding */
} pxgo_attr;

/* An event copied on the loop thread, for a filter that takes its phase
 * asynchronously only. One allocation; all pointers point into it. Up to where it
 * says otherwise this is bridge.Job, which Go only reads. */
typedef struct pxgo_job {
  struct pxgo_job *next;
  pxg_event ev; /* its pointers are NULL */
  pxgo_slice fields, trailers, attrs, body;
  /* Not Go's: */
  struct pxgo_ring *home; /* NULL: not one of the ring's blocks */
} pxgo_job;

/* A worker's way into Go. Loop threads push, one consumer takes. */
typedef struct pxgo_ring {
  pxgo_job *head;     /* atomic; newest first */
  uint32_t go_jobs;   /* atomic; jobs that wait on the Go side */
  uint32_t need_kick; /* atomic; something was pushed since the last kick */
  uint32_t sleeping;  /* atomic, futex; the consumer waits or is about to */
  uint32_t running;   /* atomic; there is a consumer */
  uint32_t kicks;     /* atomic; futex wake-ups, for the tests */
  uint32_t blocks;    /* atomic; that the ring has in all */
  pxgo_job *spare;    /* what the loop thread has taken of spent; under taking */
  uint32_t taking;    /* atomic */
  uint32_t reserved0;
  uint64_t pad[2];
  pxgo_job *spent; /* atomic; blocks that came back, from any thread */
  uint64_t pad2[7];
} pxgo_ring;

typedef struct pxgo_host {
  const pxg_host *table;
  const pxg_metrics_v1 *metrics; /* NULL: the host has none */
  uint64_t ctx;                  /* what the guest table answers: index + 1 */
  uint32_t batch_end;            /* the host calls on_batch_end, for all configurations so far */
  uint32_t ring_on;
  uint32_t yield_on;
  uint32_t interest;         /* atomic; see bridge.Host.AddInterest */
  struct pxgo_cfg *cfg[256]; /* atomic; chunks of 256 */
  pxgo_ring ring[PXGO_MAX_WORKERS];
} pxgo_host;

typedef struct pxgo_cfg {
  uint64_t id, async_only;
} pxgo_cfg;

typedef struct pxgo_done {
  uint64_t token;
  const pxg_result *result;
  int32_t code;
  uint32_t reserved0;
} pxgo_done;

/* entry.c */
pxgo_host *pxgo_host_at(uint64_t ctx);
void pxgo_cfg_set(pxgo_host *h, uint64_t id, uint64_t async_only);
uint8_t *pxgo_scratch_more(pxgo_host *h, uint64_t n);
int32_t pxgo_complete(pxgo_host *h, uint64_t token, const pxg_result *r);
void pxgo_complete_many(pxgo_host *h, pxgo_done *d, uint64_t n);
int32_t pxgo_apply(pxgo_host *h, uint64_t stream, const pxg_result *r);
int32_t pxgo_wake(pxgo_host *h, uint64_t stream, uint64_t arg);
int32_t pxgo_metric_define(pxgo_host *h, uint32_t kind, const pxg_str *name, const pxg_field *labels, uint64_t n,
                           uint32_t *id);
int32_t pxgo_metric_record(pxgo_host *h, uint32_t id, int64_t value);
void pxgo_log(pxgo_host *h, uint32_t level, const uint8_t *p, uint64_t n);
void pxgo_release(uint64_t ctx);
void *pxgo_release_fn(void);

/* ring.c */
int pxgo_push_event(pxgo_host *h, const pxg_event *ev);
void pxgo_kick(pxgo_ring *r);
int pxgo_work_left(pxgo_ring *r);
pxgo_job *pxgo_wait(pxgo_ring *r);
void pxgo_job_free(pxgo_job *j);

/* recipe.c. The steps in the order of bridge.RecipeSteps. */
enum { PXGO_BATCH, PXGO_SYSMON, PXGO_PROCS, PXGO_RING, PXGO_YIELD, PXGO_STEPS };
enum { PXGO_UNKNOWN, PXGO_DONE, PXGO_OFF, PXGO_SKIPPED, PXGO_FAILED };
typedef struct pxgo_step {
  int state;
  char detail[192];
} pxgo_step;
extern pxgo_step pxgo_steps[PXGO_STEPS];
void pxgo_step_set(int step, int state, const char *detail);
void pxgo_recipe_init(int host_batch_end);
void pxgo_thread_policy(void);

#endif
