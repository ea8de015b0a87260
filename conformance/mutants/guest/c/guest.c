/* The C guest of the self-test: it does a little of everything that version 1.0 has, by the book. Compiled as it is it
 * must be found clean; compiled with -DM_name it has one defect, which the rule beside it must find.
 *
 * clean c-guest: every phase, body mode STREAM with RESIZES, WHOLE, OWNED buffers, metrics, async completion, DUPLEX, L4
 *
 * mutant reply-size-8 PXG-ABI-002: a reply whose size is below that of version 1.0
 * mutant result-size-0 PXG-ABI-002 also PXG-ASY-001: hands complete a result without its size
 * mutant reads-past-event PXG-ABI-003: reads a member behind the event's size
 * mutant writes-past-result PXG-ABI-004: clears more than the result's size
 * mutant undefined-result-flag PXG-ABI-005: sets a bit of result.flags that does not exist
 * mutant reserved-member PXG-ABI-005: leaves something in reserved0
 * mutant refuses-longer-event PXG-ABI-005: answers ERROR to an event that is longer than it knows
 * mutant refuses-undefined-flags PXG-ABI-005: answers ERROR to an event flag that it does not know
 * mutant strlen-of-value PXG-ABI-008: takes a header's value for a C string
 * mutant follows-empty-string PXG-ABI-008: reads the first byte of an empty string
 * mutant reads-before-value PXG-ABI-008: looks at the byte before a value
 * mutant handle-is-pointer PXG-ABI-009: follows the stream's handle as if it were a pointer
 * mutant zeroed-operation PXG-ABI-011: counts one operation more than it filled
 * mutant zeroed-reply PXG-ABI-011: replies with a struct that it never filled
 * mutant null-operations PXG-ABI-012 also PXG-CFG-005: one operation at NULL
 * mutant absent-with-length PXG-ABI-012: an ABSENT string with a pointer and a length
 * mutant retries-unknown-status PXG-ABI-013: calls complete until it answers 0
 * mutant unset-action PXG-ACT-001: returns without an action
 * mutant unknown-action PXG-ACT-001: answers with the action 9
 * mutant more-at-end PXG-ACT-003: wants more of a body that has ended
 * mutant pends-undeclared PXG-ACT-006: answers PENDING in a phase that it did not declare
 * mutant pending-with-operation PXG-ACT-008: sends an operation with PENDING
 * mutant log-resets PXG-ACT-009: answers LOG with RESET
 * mutant l4-close-resets PXG-ACT-009: answers L4_CLOSE with RESET
 * mutant forgets-token PXG-ASY-001: never completes
 * mutant one-token-per-stream PXG-ASY-001: with both directions PENDING it remembers the later token only
 * mutant waits-for-parked-peer PXG-ASY-001: completes the request when the response comes, without DUPLEX
 * mutant reload-forgets PXG-ASY-001: a new configuration throws away what waits under the old one
 * mutant completes-and-continues PXG-ASY-005: completes its token and returns CONTINUE
 * mutant completes-with-pending PXG-ASY-010: completes with the action PENDING first
 * mutant cancel-waits PXG-ASY-014: on_cancel waits for its worker
 * mutant passes-too-much PXG-BODY-006: passes a byte more than the view has
 * mutant one-length PXG-BODY-006 also PXG-HDR-007: keeps one length for both directions
 * mutant sixteen-chunks PXG-BODY-008: has room for 16 chunks
 * mutant passes-while-held PXG-BODY-013: passes bytes while it holds the headers
 * mutant any-filter PXG-CFG-001: makes a configuration of a filter that it does not have
 * mutant validates-with-thread PXG-CFG-004: starts a thread under VALIDATE_ONLY
 * mutant validates-with-socket PXG-CFG-004: opens a socket under VALIDATE_ONLY
 * mutant leaks-configuration PXG-CFG-005: frees nothing in on_config_drop
 * mutant leaks-requests PXG-CFG-005: each request leaves a block behind
 * mutant one-configuration PXG-CFG-008: answers the same value for every configuration
 * mutant zero-configuration PXG-CFG-008: answers 0 for a configuration
 * mutant pends-in-log PXG-CFG-009: declares that LOG may pend
 * mutant undefined-config-flag PXG-CFG-009: sets a flag of config_out that does not exist
 * mutant extension-without-revision PXG-EXT-001: asks for an extension by its bare name
 * mutant extension-without-size PXG-EXT-002: offers a table that does not begin with its size
 * mutant extension-changes PXG-NEG-007: get_ext answers another table each time
 * mutant absent-value PXG-HDR-002: sets a field to ABSENT to say empty
 * mutant index-of-nothing PXG-HDR-004: replaces the field behind the last one
 * mutant adds-pseudo-header PXG-HDR-006: appends a second :path
 * mutant sets-content-length PXG-HDR-008: sets a field that the host owns
 * mutant upper-case-name PXG-HDR-010: sets X-Upper
 * mutant odd-entry-symbol PXG-LOAD-001: exports pxg_guest_init_v1_debug
 * mutant needs-the-host PXG-LOAD-002: calls a function of the host's executable
 * mutant new-table-each-time PXG-LOAD-006: init answers another ctx to the same host
 * mutant one-ctx-for-all PXG-LOAD-006: init answers the same ctx to two hosts
 * mutant completes-at-first-host PXG-LOAD-006 also PXG-ASY-001: completes all tokens at the host that came first
 * mutant no-cancel PXG-LOAD-010: has no on_cancel
 * mutant same-name-twice PXG-LOAD-010: two filters of one name
 * mutant renames-filter PXG-LOAD-012: changes a filter's name after init
 * mutant keeps-table PXG-LOAD-012: reads the host's copy of its table later
 * mutant exports-helper PXG-LOAD-013: exports a helper
 * mutant late-read PXG-MEM-002: a thread reads a header after the return
 * mutant late-system-call PXG-MEM-002 needs mem/late-system-call: a thread has write(2) read a header after the return
 * mutant late-write PXG-MEM-002 also PXG-MEM-009: a thread writes to a header after the return
 * mutant reads-after-pending PXG-MEM-002: its worker reads the event's headers while it is PENDING
 * mutant reuses-borrowed PXG-MEM-004: a thread writes to borrowed memory after the return
 * mutant release-blocks PXG-MEM-007: release sleeps
 * mutant release-calls PXG-MEM-007: release calls the host
 * mutant frees-view PXG-MEM-008: frees the array of fields
 * mutant resizes-scratch PXG-MEM-008: reallocates the scratch that it was lent
 * mutant writes-view PXG-MEM-009: makes a header's value lower case in place
 * mutant overruns-scratch PXG-MEM-010: writes one byte behind scratch
 * mutant forty-operations PXG-MEM-010 also PXG-MEM-012: writes 40 operations into room for 32
 * mutant trusts-scratch-more PXG-MEM-010: uses what scratch_more answered without a look
 * mutant value-leaves-scratch PXG-MEM-012: a value begins in scratch and ends behind it
 * mutant late-scratch PXG-MEM-013: a thread writes to scratch after the return
 * mutant unused-member PXG-MUT-006: leaves a value in HEADER_DELETE
 * mutant l4-header PXG-MUT-006: changes a header of a connection
 * mutant pass-at-headers PXG-MUT-006: PASS where there is no view
 * mutant any-major PXG-NEG-002: initialises with a host of any major
 * mutant holds-without-feature PXG-NEG-003: answers MORE at headers without looking for HOLD
 * mutant calls-null-log PXG-NEG-004: calls log without looking
 * mutant calls-null-get-ext PXG-NEG-004: calls get_ext without looking
 * mutant reads-null-page PXG-NEG-004: reads the page without looking
 * mutant logs-at-off PXG-OBS-002: logs each request whatever the level is
 * mutant status-101 PXG-RPL-001: replies 101
 * mutant reply-without-reply PXG-RPL-001: REPLY, and no reply
 * mutant l4-replies PXG-RPL-001: replies to a connection
 * mutant preempting-thread PXG-RT-004: starts its worker with the host's policy
 * mutant blocks-signal PXG-RT-006: blocks SIGUSR1 in the loop thread
 * mutant loads-with-batch PXG-RT-006: leaves SCHED_BATCH on the thread that loaded it
 * mutant ends-the-process PXG-RT-007: calls exit in an event
 * mutant closes-output PXG-RT-007: closes its standard output at load
 * mutant redirects-output PXG-RT-007: puts a file of its own at the host's standard error
 * mutant forks PXG-RT-008: starts a process in on_config_new
 * mutant forks-and-waits PXG-RT-008: runs a command at load and waits for it
 * mutant daemon PXG-RT-008: starts a process that leaves its group and its parent
 * mutant scratch-on-worker PXG-THR-001: its worker asks for scratch
 * mutant scratch-in-cancel PXG-THR-001: asks for scratch in on_cancel
 * mutant sleeps PXG-THR-002: sleeps 5 ms in on_event
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "proxy_golang.h"
#include "proxy_golang/ext/metrics.h"

static pxg_str str(const void *p, size_t n) {
  pxg_str s = {(const uint8_t *)p, (uint32_t)n, 0};
  return s;
}
#define LIT(text) str(text, sizeof text - 1)

static int eq(pxg_str a, pxg_str b) { return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0); }

/* ---- one per host */

typedef struct host_state {
  const pxg_host *host;
  const pxg_metrics_v1 *metrics;
  uint32_t metric;
} host_state;

static host_state hosts[16];
static pthread_mutex_t hosts_lock = PTHREAD_MUTEX_INITIALIZER;

static host_state *state_of(uint64_t ctx) { return (host_state *)(uintptr_t)ctx; }

static void say(host_state *h, const char *text) {
#if defined(M_calls_null_log)
  if (!h->host->page || __atomic_load_n(&h->host->page->log_level, __ATOMIC_RELAXED) > PXG_LOG_INFO) return;
  h->host->log(h->host->ctx, PXG_LOG_INFO, (const uint8_t *)text, strlen(text));
#else
#if !defined(M_logs_at_off)
  if (h->host->page && __atomic_load_n(&h->host->page->log_level, __ATOMIC_RELAXED) > PXG_LOG_INFO) return;
#endif
  if (h->host->log) h->host->log(h->host->ctx, PXG_LOG_INFO, (const uint8_t *)text, strlen(text));
#endif
}

/* ---- configurations */

enum kind { HEADERS, BODIES, WHOLE, ASYNC, DUPLEX, TUNNEL, KINDS };

typedef struct config {
  enum kind kind;
  int may_hold;
  uint64_t length; /* only for those that are wrong */
  uint32_t len;
  uint8_t text[];
} config;

static pxg_str filters[KINDS];
static char names[KINDS][8] = {"headers", "bodies", "whole", "async", "duplex", "tunnel"};

static void start_worker(void);
static void forget_jobs(void) __attribute__((unused));

static void *idle(void *unused) {
  (void)unused;
  pause();
  return NULL;
}

#if defined(M_keeps_table)
static pxg_guest *kept_table;
#endif

static int has(const uint64_t *features, unsigned n) { return features[n / 64] >> (n % 64) & 1; }

static int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  int kind;
  config *c;
  (void)ctx;
  for (kind = 0; kind < KINDS; kind++) {
    if (eq(in->filter, filters[kind])) break;
  }
#if defined(M_any_filter)
  if (kind == KINDS) kind = 0;
#endif
  if (kind == KINDS) {
    out->error = LIT("no such filter");
    return PXG_E_NOTFOUND;
  }
#if defined(M_keeps_table)
  if (kept_table->major != PXG_VERSION_MAJOR) out->flags = 0;
#endif
  /* Without what a filter needs it refuses, and says so. */
  if ((kind == BODIES &&
       !(has(in->features, PXG_F_BODY_STREAM_REQUEST) && has(in->features, PXG_F_BODY_STREAM_RESPONSE))) ||
      (kind == WHOLE &&
       !(has(in->features, PXG_F_BODY_WHOLE_REQUEST) && has(in->features, PXG_F_BODY_WHOLE_RESPONSE))) ||
      (kind == ASYNC && !has(in->features, PXG_F_PEND_REQUEST_HEADERS)) ||
      (kind == DUPLEX &&
       !(has(in->features, PXG_F_PEND_REQUEST_BODY) && has(in->features, PXG_F_PEND_RESPONSE_HEADERS) &&
         has(in->features, PXG_F_BODY_STREAM_REQUEST))) ||
      (kind == TUNNEL && !has(in->features, PXG_F_L4))) {
    out->error = LIT("the host lacks a feature that this filter needs");
    return PXG_E_UNSUPPORTED;
  }
  if (in->flags & PXG_CFG_IN_VALIDATE_ONLY) {
#if defined(M_validates_with_thread)
    pthread_t t;
    pthread_create(&t, NULL, idle, NULL);
#elif defined(M_validates_with_socket)
    (void)socket(AF_INET, SOCK_STREAM, 0);
#endif
  } else if (kind == ASYNC || kind == DUPLEX) {
    start_worker();
#if defined(M_reload_forgets)
    forget_jobs();
#endif
  }
#if defined(M_forks)
  if (fork() == 0) {
    pause();
    _exit(0);
  }
#endif
  c = (config *)calloc(1, sizeof *c + in->bytes.len);
  if (!c) return PXG_E_INTERNAL;
  c->kind = (enum kind)kind;
  c->may_hold = has(in->features, PXG_F_HOLD_REQUEST) && has(in->features, PXG_F_PARTIAL_RELEASE);
  c->len = in->bytes.len;
  if (in->bytes.len) memcpy(c->text, in->bytes.ptr, in->bytes.len);
  out->config = (uint64_t)(uintptr_t)c;
  out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS) |
                   PXG_PHASE_BIT(PXG_PHASE_REQUEST_TRAILERS) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_TRAILERS) |
                   PXG_PHASE_BIT(PXG_PHASE_LOG);
  if (kind == BODIES || kind == WHOLE) {
    uint32_t mode = kind == WHOLE ? PXG_BODY_WHOLE : PXG_BODY_STREAM;
    out->subscribe |= PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_BODY);
    out->body_mode[0] = out->body_mode[1] = mode;
    if (has(in->features, PXG_F_RESIZE_REQUEST)) out->flags |= PXG_CFG_RESIZES_REQUEST;
    if (has(in->features, PXG_F_RESIZE_RESPONSE)) out->flags |= PXG_CFG_RESIZES_RESPONSE;
  }
  if (kind == DUPLEX) {
#if !defined(M_waits_for_parked_peer)
    out->flags |= PXG_CFG_DUPLEX;
#endif
    out->subscribe |= PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY);
    out->body_mode[0] = PXG_BODY_STREAM;
    out->pend_phases = PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS);
  }
  if (kind == TUNNEL) {
    out->subscribe = PXG_PHASE_BIT(PXG_PHASE_L4_OPEN) | PXG_PHASE_BIT(PXG_PHASE_L4_DOWNSTREAM) |
                     PXG_PHASE_BIT(PXG_PHASE_L4_UPSTREAM) | PXG_PHASE_BIT(PXG_PHASE_L4_CLOSE);
  }
  if (kind == ASYNC) {
    out->pend_phases = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
#if defined(M_pends_in_log)
    out->pend_phases |= PXG_PHASE_BIT(PXG_PHASE_LOG);
#endif
  }
#if defined(M_undefined_config_flag)
  out->flags |= 0x1000;
#elif defined(M_one_configuration)
  {
    static config *one[KINDS];
    if (one[kind])
      free(c);
    else
      one[kind] = c;
    out->config = (uint64_t)(uintptr_t)one[kind];
  }
#elif defined(M_zero_configuration)
  free(c);
  out->config = 0;
#endif
  return PXG_OK;
}

static void on_config_drop(uint64_t ctx, uint64_t value) {
  (void)ctx;
#if !defined(M_leaks_configuration) && !defined(M_one_configuration)
  free((void *)(uintptr_t)value);
#else
  (void)value;
#endif
}

/* ---- late uses, by a thread of their own */

enum late_use { LATE_READ, LATE_WRITE, LATE_SYSTEM_CALL };

typedef struct late {
  volatile uint8_t *at;
  enum late_use use;
} late;

static void *late_run(void *arg) {
  late *l = (late *)arg;
  struct timespec wait = {0, 4 * 1000 * 1000};
  nanosleep(&wait, NULL);
  switch (l->use) {
  case LATE_READ: {
    static volatile uint8_t sink;
    sink = *l->at;
    break;
  }
  case LATE_WRITE: *l->at = 'L'; break;
  case LATE_SYSTEM_CALL: {
    int to[2];
    if (pipe(to) == 0) {
      (void)!write(to[1], (const void *)(uintptr_t)l->at, 1);
      close(to[0]);
      close(to[1]);
    }
  }
  }
  free(l);
  return NULL;
}

static void batch(void) {
  struct sched_param p = {0};
  sched_setscheduler(0, SCHED_BATCH, &p);
}

static void *late_thread(void *arg) {
  batch();
  return late_run(arg);
}

static void use_late(const void *at, enum late_use use) __attribute__((unused));
static void use_late(const void *at, enum late_use use) {
  pthread_t t;
  late *l = (late *)malloc(sizeof *l);
  l->at = (volatile uint8_t *)(uintptr_t)at;
  l->use = use;
  pthread_create(&t, NULL, late_thread, l);
  pthread_detach(t);
}

/* ---- the worker of `async` */

typedef struct job {
  struct job *next;
  host_state *host;
  uint64_t token, stream;
  const pxg_event *event; /* only for those that are wrong */
  const uint8_t *value;
} job;

static job *jobs;
static pthread_mutex_t jobs_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t jobs_come = PTHREAD_COND_INITIALIZER;

static void forget_jobs(void) {
  pthread_mutex_lock(&jobs_lock);
  jobs = NULL;
  pthread_mutex_unlock(&jobs_lock);
}

static void finish(job *j) {
  pxg_result r;
  pxg_op op;
  int32_t status;
#if defined(M_completes_at_first_host)
  j->host = &hosts[0];
#endif
  memset(&r, 0, sizeof r);
  memset(&op, 0, sizeof op);
  op.kind = PXG_OP_HEADER_SET;
  op.key = LIT("x-async");
  op.val.bytes = LIT("1");
  r.size = sizeof r;
  r.action = PXG_ACT_CONTINUE;
  r.ops = &op;
  r.n_ops = 1;
#if defined(M_result_size_0)
  r.size = 0;
#elif defined(M_completes_with_pending)
  r.action = PXG_ACT_PENDING;
  j->host->host->complete(j->host->host->ctx, j->token, &r);
  r.action = PXG_ACT_CONTINUE;
#elif defined(M_scratch_on_worker)
  j->host->host->scratch_more(j->host->host->ctx, 64);
#elif defined(M_reads_after_pending)
  {
    static volatile uint8_t sink;
    struct timespec wait = {0, 3 * 1000 * 1000};
    nanosleep(&wait, NULL);
    if (j->value) sink = *j->value;
  }
#endif
#if defined(M_retries_unknown_status)
  {
    int tries = 0;
    do status = j->host->host->complete(j->host->host->ctx, j->token, &r);
    while (status != PXG_OK && status != PXG_E_STALE && ++tries < 1000);
    if (status == PXG_E_STALE && tries) status = PXG_OK;
  }
#else
  status = j->host->host->complete(j->host->host->ctx, j->token, &r);
  if (status < 0 && status != PXG_E_STALE) {
    /* The host could not take it: an error ends the stream. Once. */
    r.action = PXG_ACT_ERROR;
    r.ops = NULL;
    r.n_ops = 0;
    r.error = LIT("the host did not take the completion");
    j->host->host->complete(j->host->host->ctx, j->token, &r);
  }
#endif
}

static void *work(void *unused) {
  (void)unused;
#if !defined(M_preempting_thread)
  batch();
#endif
  for (;;) {
    job *j;
    pthread_mutex_lock(&jobs_lock);
    while (!jobs) pthread_cond_wait(&jobs_come, &jobs_lock);
    j = jobs;
    jobs = j->next;
#if defined(M_cancel_waits)
    finish(j);
    pthread_mutex_unlock(&jobs_lock);
#else
    pthread_mutex_unlock(&jobs_lock);
    finish(j);
#endif
    free(j);
  }
  return NULL;
}

static void start_worker(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  static pthread_t t;
  struct starter {
    int unused;
  };
  static int started;
  (void)once;
  pthread_mutex_lock(&hosts_lock);
  if (!started) {
    started = 1;
    pthread_create(&t, NULL, work, NULL);
  }
  pthread_mutex_unlock(&hosts_lock);
}

static void push(host_state *h, const pxg_event *ev) {
  job *j = (job *)calloc(1, sizeof *j), **end;
  j->host = h;
  j->token = ev->token;
  j->stream = ev->stream;
  j->event = ev;
  j->value = ev->n_fields ? ev->fields[ev->n_fields - 1].value.ptr : NULL;
  pthread_mutex_lock(&jobs_lock);
  for (end = &jobs; *end; end = &(*end)->next) {
#if defined(M_one_token_per_stream)
    if ((*end)->stream == j->stream) {
      (*end)->token = j->token;
      pthread_mutex_unlock(&jobs_lock);
      free(j);
      return;
    }
#endif
  }
  *end = j;
  pthread_cond_signal(&jobs_come);
  pthread_mutex_unlock(&jobs_lock);
}

static void on_cancel(uint64_t ctx, uint64_t conf, uint64_t user, uint64_t stream, uint64_t token, uint32_t worker) {
  job **at, *found = NULL;
  (void)conf, (void)user, (void)stream, (void)worker, (void)ctx;
#if defined(M_scratch_in_cancel)
  state_of(ctx)->host->scratch_more(state_of(ctx)->host->ctx, 64);
#endif
  pthread_mutex_lock(&jobs_lock);
  for (at = &jobs; *at; at = &(*at)->next) {
    if ((*at)->token == token) {
      found = *at;
      *at = found->next;
      break;
    }
  }
  pthread_mutex_unlock(&jobs_lock);
  free(found);
}

/* ---- events */

static void release(uint64_t p) {
#if defined(M_release_blocks)
  struct timespec wait = {0, 400 * 1000 * 1000};
  nanosleep(&wait, NULL);
#elif defined(M_release_calls)
  if (hosts[0].host->get_ext)
    (void)hosts[0].host->get_ext(hosts[0].host->ctx, (const uint8_t *)PXG_METRICS_V1_ID, sizeof PXG_METRICS_V1_ID - 1);
#endif
  free((void *)(uintptr_t)p);
}

typedef struct call {
  host_state *h;
  const pxg_event *ev;
  pxg_result *out;
  pxg_op *ops;
  uint64_t n, cap;
} call;

/* The next operation; NULL once the room is used up. */
static pxg_op *op(call *c, uint16_t kind) {
  pxg_op *o;
  if (c->n == c->cap) return NULL;
  o = &c->ops[c->n++];
  memset(o, 0, sizeof *o);
  o->kind = kind;
  return o;
}

static void set(call *c, uint16_t kind, uint32_t target, pxg_str key, pxg_str val) {
  pxg_op *o = op(c, kind);
  if (!o) return;
  o->target = target;
  o->key = key;
  o->val.bytes = val;
}

static void done(call *c, uint32_t action) {
  c->out->ops = c->n ? c->ops : NULL;
  c->out->n_ops = c->n;
  c->out->action = action;
}

static const pxg_str *find(const pxg_event *ev, pxg_str name, uint64_t *index) {
  uint64_t i;
  for (i = 0; i < ev->n_fields; i++) {
    if (eq(ev->fields[i].name, name)) {
      if (index) *index = i;
      return &ev->fields[i].value;
    }
  }
  return NULL;
}

static void reply(call *c) {
  pxg_reply *r = (pxg_reply *)(void *)c->out->scratch;
  pxg_field *f = (pxg_field *)(void *)(r + 1);
  pxg_buf *b = (pxg_buf *)(void *)(f + 1);
  memset(r, 0, sizeof *r + sizeof *f + sizeof *b);
  r->size = sizeof *r;
  r->status = 403;
  f->name = LIT("content-type");
  f->value = LIT("text/plain");
  r->fields = f;
  r->n_fields = 1;
  b->bytes = LIT("no\n");
  b->bytes.flags = PXG_BUF_STATIC;
  r->body = b;
  r->n_body = 1;
  r->details = LIT("c-guest");
#if defined(M_reply_size_8)
  r->size = 8;
#elif defined(M_zeroed_reply)
  memset(r, 0, sizeof *r);
#elif defined(M_status_101)
  r->status = 101;
#elif defined(M_absent_with_length)
  r->details.flags = PXG_STR_ABSENT;
#endif
  c->out->reply = r;
#if defined(M_reply_without_reply)
  c->out->reply = NULL;
#endif
  c->n = 0;
  done(c, PXG_ACT_REPLY);
}

static uint8_t borrowed[8] = "steady";

#if defined(M_reuses_borrowed)
static void *overwrite(void *unused) {
  struct timespec wait = {0, 2 * 1000 * 1000};
  (void)unused;
  batch();
  nanosleep(&wait, NULL);
  borrowed[0] = 'S';
  return NULL;
}
#endif

static void request_headers(call *c) {
  const pxg_event *ev = c->ev;
  pxg_op *o;
  uint64_t i = 0;
  const pxg_str *agent = find(ev, LIT("user-agent"), &i);
#if defined(M_reuses_borrowed)
  borrowed[0] = 's';
#endif
  if (find(ev, LIT("x-many-7"), NULL)) {
    reply(c);
    return;
  }
  set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("x-guest"), str(borrowed, 6));
  set(c, PXG_OP_HEADER_ADD, PXG_TARGET_HEADERS, LIT("x-empty-value"), str(NULL, 0));
  set(c, PXG_OP_HEADER_DELETE, PXG_TARGET_HEADERS, LIT("cookie"), str(NULL, 0));
  if (agent && (o = op(c, PXG_OP_SET_AT))) {
    o->u0 = i;
    o->val.bytes = LIT("changed");
  }
  if ((o = op(c, PXG_OP_HEADER_ADD))) {
    char *own = (char *)malloc(6);
    memcpy(own, "owned", 6);
    o->key = LIT("x-owned");
    o->val.bytes = str(own, 5);
    o->val.bytes.flags = PXG_BUF_OWNED;
    o->val.release = release;
    o->val.ctx = (uint64_t)(uintptr_t)own;
  }
  if ((o = op(c, PXG_OP_METADATA_SET))) {
    o->key = LIT("seen");
    o->val.bytes = LIT("yes");
  }
  if (c->h->metric && (o = op(c, PXG_OP_METRIC))) {
    o->target = c->h->metric;
    o->u0 = 1;
  }
  /* A copy of the path in scratch that was asked for. */
  {
    const pxg_str *path = find(ev, LIT(":path"), NULL);
    uint32_t n = path && path->len < 200 ? path->len : 0;
    uint32_t k;
    uint8_t *more = c->h->host->scratch_more(c->h->host->ctx, 6000);
#if defined(M_trusts_scratch_more)
    more[0] = 0;
#endif
    if (more && n) {
      memcpy(more, path->ptr, n);
      for (k = 0; k < n; k++) {
        if (more[k] <= 0x20 || more[k] >= 0x7f) more[k] = '?';
      }
      set(c, PXG_OP_HEADER_ADD, PXG_TARGET_HEADERS, LIT("x-path"), str(more, n));
    }
  }
#if defined(M_zeroed_operation)
  op(c, 0);
#elif defined(M_absent_value)
  if ((o = op(c, PXG_OP_HEADER_SET))) o->key = LIT("x-gone"), o->val.bytes.flags = PXG_STR_ABSENT;
#elif defined(M_index_of_nothing)
  if ((o = op(c, PXG_OP_SET_AT))) o->u0 = ev->n_fields, o->val.bytes = LIT("x");
#elif defined(M_adds_pseudo_header)
  set(c, PXG_OP_HEADER_ADD, PXG_TARGET_HEADERS, LIT(":path"), LIT("/second"));
#elif defined(M_sets_content_length)
  set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("content-length"), LIT("0"));
#elif defined(M_upper_case_name)
  set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("X-Upper"), LIT("1"));
#elif defined(M_unused_member)
  if ((o = op(c, PXG_OP_HEADER_DELETE))) o->key = LIT("x-none"), o->val.bytes = LIT("left");
#elif defined(M_pass_at_headers)
  if ((o = op(c, PXG_OP_PASS))) o->u0 = 1;
#elif defined(M_value_leaves_scratch)
  c->out->scratch[c->out->scratch_cap - 1] = 'v';
  set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("x-long"), str(c->out->scratch + c->out->scratch_cap - 1, 2));
#endif
  done(c, PXG_ACT_CONTINUE);
#if defined(M_forty_operations)
  for (i = c->n; i < 40; i++) c->ops[i] = c->ops[0];
  c->out->n_ops = 40;
#elif defined(M_null_operations)
  c->out->ops = NULL;
  c->out->n_ops = 1;
#elif defined(M_overruns_scratch)
  c->out->scratch[c->out->scratch_cap] = 0;
#endif
#if defined(M_reuses_borrowed)
  {
    pthread_t t;
    pthread_create(&t, NULL, overwrite, NULL);
    pthread_detach(t);
  }
#endif
}

static uint64_t view_len(const pxg_event *ev) {
  uint64_t i, n = 0;
  for (i = 0; i < ev->n_chunks; i++) n += ev->chunks[i].len;
  return n;
}

/* Puts the body between brackets: needs RESIZES, or WHOLE, to change the length. */
static void body(call *c, const config *conf) {
  const pxg_event *ev = c->ev;
  uint64_t n = view_len(ev);
  int free_length = conf->kind == WHOLE ? (ev->flags & PXG_EV_WHOLE_BODY) != 0 : 0;
  pxg_op *o;
#if defined(M_sixteen_chunks)
  if (ev->n_chunks > 16) {
    c->out->error = LIT("too many chunks");
    c->out->action = PXG_ACT_ERROR;
    return;
  }
#elif defined(M_passes_while_held)
  if (conf->kind == BODIES && conf->may_hold && ev->flags & PXG_EV_HEADERS_HELD && n &&
      !(ev->flags & (PXG_EV_BODY_END | PXG_EV_OVER_LIMIT))) {
    if ((o = op(c, PXG_OP_PASS))) o->u0 = 1;
    done(c, PXG_ACT_MORE);
    return;
  }
#elif defined(M_more_at_end)
  if (conf->kind == BODIES && ev->flags & PXG_EV_BODY_END && !(ev->flags & PXG_EV_OVER_LIMIT)) {
    done(c, PXG_ACT_MORE);
    return;
  }
#elif defined(M_passes_too_much)
  if ((o = op(c, PXG_OP_PASS))) o->u0 = n + 1;
  done(c, PXG_ACT_CONTINUE);
  return;
#endif
#if defined(M_one_length)
  if (conf->kind == BODIES) {
    config *own = (config *)(uintptr_t)conf;
    uint64_t passes = own->length ? own->length : n;
    own->length = ev->flags & PXG_EV_BODY_END ? 0 : n;
    if (passes && (o = op(c, PXG_OP_PASS))) o->u0 = passes;
    done(c, PXG_ACT_CONTINUE);
    return;
  }
#endif
  if (conf->kind == BODIES && n < 16 && !(ev->flags & (PXG_EV_BODY_END | PXG_EV_OVER_LIMIT))) {
    c->out->more_bytes = 8;
    done(c, PXG_ACT_MORE);
    return;
  }
  if (free_length) {
    if ((o = op(c, PXG_OP_INJECT))) o->val.bytes = LIT("[");
    if (n && (o = op(c, PXG_OP_PASS))) o->u0 = n;
    if ((o = op(c, PXG_OP_INJECT))) o->val.bytes = LIT("]");
  }
  done(c, PXG_ACT_CONTINUE);
}

/* A connection: the first byte of each event is dropped, the next event's first two are let through unseen. */
static void tunnel(call *c) {
  const pxg_event *ev = c->ev;
  uint64_t n = view_len(ev);
  pxg_op *o;
#if defined(M_l4_header)
  if (ev->phase == PXG_PHASE_L4_OPEN) set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("x-l4"), LIT("1"));
#elif defined(M_l4_replies)
  if (ev->phase == PXG_PHASE_L4_OPEN) {
    reply(c);
    return;
  }
#elif defined(M_l4_close_resets)
  if (ev->phase == PXG_PHASE_L4_CLOSE) {
    done(c, PXG_ACT_RESET);
    return;
  }
#endif
  if (n > 1 && !(ev->flags & PXG_EV_END_STREAM)) {
    if ((o = op(c, PXG_OP_DROP))) o->u0 = 1;
    if ((o = op(c, PXG_OP_PASS))) o->u0 = n + 1;
    if ((o = op(c, PXG_OP_INJECT))) {
      o->target = ev->phase == PXG_PHASE_L4_DOWNSTREAM ? PXG_TARGET_CLIENT : PXG_TARGET_UPSTREAM;
      o->val.bytes = LIT("+");
    }
  }
  done(c, PXG_ACT_CONTINUE);
}

static void event(call *c, const config *conf) {
  const pxg_event *ev = c->ev;
  if (conf->kind == TUNNEL) {
    tunnel(c);
    return;
  }
#if defined(M_waits_for_parked_peer)
  if (conf->kind == DUPLEX && ev->phase == PXG_PHASE_REQUEST_BODY) {
    ((config *)(uintptr_t)conf)->length = ev->token;
    done(c, PXG_ACT_PENDING);
    return;
  }
  if (conf->kind == DUPLEX && ev->phase == PXG_PHASE_RESPONSE_HEADERS && conf->length) {
    pxg_event request = *ev;
    request.token = conf->length;
    ((config *)(uintptr_t)conf)->length = 0;
    push(c->h, &request);
  }
#endif
  if (conf->kind == DUPLEX && (ev->phase == PXG_PHASE_REQUEST_BODY || ev->phase == PXG_PHASE_RESPONSE_HEADERS)) {
    push(c->h, ev);
    done(c, PXG_ACT_PENDING);
    return;
  }
  switch (ev->phase) {
  case PXG_PHASE_REQUEST_HEADERS:
    say(c->h, "request");
    if (conf->kind == ASYNC) {
      c->out->user = ev->stream;
#if defined(M_completes_and_continues)
      {
        pxg_result r;
        memset(&r, 0, sizeof r);
        r.size = sizeof r;
        r.action = PXG_ACT_CONTINUE;
        c->h->host->complete(c->h->host->ctx, ev->token, &r);
        done(c, PXG_ACT_CONTINUE);
      }
      return;
#elif !defined(M_forgets_token)
      push(c->h, ev);
#endif
#if defined(M_pending_with_operation)
      set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("x-pending"), LIT("1"));
#endif
      done(c, PXG_ACT_PENDING);
      return;
    }
#if defined(M_holds_without_feature) || defined(M_passes_while_held)
#if defined(M_passes_while_held)
    if (conf->may_hold)
#endif
      if (conf->kind == BODIES && !(ev->flags & PXG_EV_END_STREAM)) {
        done(c, PXG_ACT_MORE);
        return;
      }
#endif
    request_headers(c);
    return;
  case PXG_PHASE_RESPONSE_HEADERS:
#if defined(M_pends_undeclared)
    c->out->action = PXG_ACT_PENDING;
    return;
#endif
    set(c, PXG_OP_HEADER_ADD, PXG_TARGET_HEADERS, LIT("x-response"), LIT("1"));
    done(c, PXG_ACT_CONTINUE);
    return;
  case PXG_PHASE_REQUEST_BODY:
  case PXG_PHASE_RESPONSE_BODY: body(c, conf); return;
  case PXG_PHASE_REQUEST_TRAILERS:
  case PXG_PHASE_RESPONSE_TRAILERS:
    set(c, PXG_OP_HEADER_ADD, PXG_TARGET_TRAILERS, LIT("x-trailer"), LIT("1"));
    done(c, PXG_ACT_CONTINUE);
    return;
  case PXG_PHASE_LOG:
#if defined(M_log_resets)
    done(c, PXG_ACT_RESET);
    return;
#endif
  default: done(c, PXG_ACT_CONTINUE);
  }
}

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  call c = {state_of(ctx), ev, out, out->scratch_ops, 0, out->scratch_ops_cap};
  const pxg_str *agent = find(ev, LIT("user-agent"), NULL);
  (void)agent;
#if defined(M_leaks_requests)
  if (ev->phase == PXG_PHASE_REQUEST_HEADERS) {
    static void *volatile lost;
    lost = malloc(40);
  }
#elif defined(M_reads_past_event)
  {
    static volatile uint8_t sink;
    sink = ((const volatile uint8_t *)ev)[ev->size];
  }
#elif defined(M_refuses_longer_event)
  if (ev->size != sizeof *ev) {
    out->error = LIT("the event has another size");
    out->action = PXG_ACT_ERROR;
    return;
  }
#elif defined(M_refuses_undefined_flags)
  if (ev->flags & ~0x1fffu) {
    out->error = LIT("unknown flags");
    out->action = PXG_ACT_ERROR;
    return;
  }
#elif defined(M_strlen_of_value)
  if (agent) {
    static volatile size_t sink;
    volatile const uint8_t *p = agent->ptr;
    while (*p) p++;
    sink = (size_t)(p - agent->ptr);
  }
#elif defined(M_follows_empty_string)
  {
    static volatile uint8_t sink;
    uint64_t i;
    for (i = 0; i < ev->n_fields; i++)
      if (ev->fields[i].value.len == 0 && ev->fields[i].value.ptr) sink = *ev->fields[i].value.ptr;
  }
#elif defined(M_reads_before_value)
  if (agent) {
    static volatile uint8_t sink;
    sink = agent->ptr[-1];
  }
#elif defined(M_handle_is_pointer)
  if (ev->stream < 0x10000) {
    static volatile uint8_t sink;
    sink = *(const volatile uint8_t *)(uintptr_t)ev->stream;
  }
#elif defined(M_late_read)
  if (agent) use_late(agent->ptr, LATE_READ);
#elif defined(M_late_write)
  if (agent) use_late(agent->ptr, LATE_WRITE);
#elif defined(M_late_system_call)
  if (agent) use_late(agent->ptr, LATE_SYSTEM_CALL);
#elif defined(M_late_scratch)
  use_late(out->scratch + 100, LATE_WRITE);
#elif defined(M_frees_view)
  if (agent) free((void *)(uintptr_t)ev->fields);
#elif defined(M_resizes_scratch)
  if (agent && realloc(out->scratch, 8192) == NULL) return;
#elif defined(M_writes_view)
  if (agent) {
    volatile uint8_t *p = (volatile uint8_t *)(uintptr_t)agent->ptr;
    p[0] = (uint8_t)tolower(p[0]);
  }
#elif defined(M_blocks_signal)
  {
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &s, NULL);
  }
#elif defined(M_sleeps)
  {
    struct timespec wait = {0, 5 * 1000 * 1000};
    nanosleep(&wait, NULL);
  }
#elif defined(M_ends_the_process)
  exit(0);
#elif defined(M_redirects_output)
  {
    int file = open("/dev/null", O_WRONLY);
    dup2(file, 2);
    close(file);
  }
#elif defined(M_renames_filter)
  names[0][0] = 'H';
#elif defined(M_needs_the_host)
  extern void a_function_of_the_hosts_executable(void);
  a_function_of_the_hosts_executable();
#endif
#if defined(M_unset_action)
  return;
#endif
  event(&c, (const config *)(uintptr_t)ev->config);
#if defined(M_unknown_action)
  out->action = 9;
#elif defined(M_undefined_result_flag)
  if (out->action != PXG_ACT_PENDING) out->flags |= 0x10;
#elif defined(M_reserved_member)
  out->reserved0 = 7;
#elif defined(M_writes_past_result)
  memset((uint8_t *)out + out->size, 0, 8);
#endif
}

static void on_stream_end(uint64_t ctx, uint64_t conf, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)conf, (void)user, (void)stream, (void)worker;
}

static const void *get_ext(uint64_t ctx, const uint8_t *id, uint64_t len) {
  static const struct {
    uint32_t size, zero;
  } table = {
#if defined(M_extension_without_size)
    0,
#else
    8,
#endif
    0
  };
  (void)ctx;
#if defined(M_extension_changes)
  {
    static uint64_t many[64];
    static unsigned next;
    uint64_t *t = &many[__atomic_fetch_add(&next, 1, __ATOMIC_RELAXED) % 64];
    *t = 8;
    if (len == 11 && !memcmp(id, "pxg.admin/1", 11)) return t;
  }
#endif
  return len == 11 && !memcmp(id, "pxg.admin/1", 11) ? &table : NULL;
}

#if defined(M_closes_output)
__attribute__((constructor)) static void at_load(void) { close(1); }
#elif defined(M_forks_and_waits)
__attribute__((constructor)) static void at_load(void) { (void)!system(":"); }
#elif defined(M_daemon)
__attribute__((constructor)) static void at_load(void) {
  if (fork() == 0) {
    setsid();
    if (fork() == 0) pause();
    _exit(0);
  }
}
#endif

#if defined(M_loads_with_batch)
__attribute__((constructor)) static void at_load(void) { batch(); }
#endif

#if defined(M_exports_helper)
__attribute__((visibility("default"))) int guest_helper(void) { return 1; }
#endif

#if defined(M_odd_entry_symbol)
__attribute__((visibility("default"))) int pxg_guest_init_v1_debug(void) { return 1; }
#endif

int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  host_state *h = NULL;
  size_t i;
#if !defined(M_any_major)
  if (host->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
#endif
  if (host->size < sizeof *host || out->size < sizeof *out) return PXG_E_ARG;
  pthread_mutex_lock(&hosts_lock);
  for (i = 0; i < sizeof hosts / sizeof *hosts; i++) {
#if defined(M_one_ctx_for_all)
    if (i == 0 && hosts[i].host) hosts[i].host = host;
#endif
#if !defined(M_new_table_each_time)
    if (hosts[i].host == host) h = &hosts[i];
#endif
    if (!h && !hosts[i].host) h = &hosts[i];
    if (h) break;
  }
  if (h) {
    static const pxg_str metric = {(const uint8_t *)"requests", 8, 0};
    h->host = host;
#if defined(M_extension_without_revision)
    if (host->get_ext) (void)host->get_ext(host->ctx, (const uint8_t *)"metrics", 7);
#endif
#if defined(M_calls_null_get_ext)
    h->metrics = (const pxg_metrics_v1 *)host->get_ext(host->ctx, (const uint8_t *)PXG_METRICS_V1_ID,
                                                       sizeof PXG_METRICS_V1_ID - 1);
#else
    if (host->get_ext)
      h->metrics = (const pxg_metrics_v1 *)host->get_ext(host->ctx, (const uint8_t *)PXG_METRICS_V1_ID,
                                                         sizeof PXG_METRICS_V1_ID - 1);
#endif
    if (h->metrics && h->metrics->define(host->ctx, PXG_METRIC_COUNTER, &metric, NULL, 0, &h->metric) < 0)
      h->metric = 0;
#if defined(M_reads_null_page)
    if (host->page->log_level == PXG_LOG_TRACE) h->host = host;
#endif
  }
  pthread_mutex_unlock(&hosts_lock);
  if (!h) return PXG_E_STATE;
  for (i = 0; i < KINDS; i++) filters[i] = str(names[i], strlen(names[i]));
#if defined(M_same_name_twice)
  filters[3] = filters[2];
#endif
  out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR;
  out->minor = PXG_VERSION_MINOR;
  out->flags = PXG_GUEST_ABORTS;
  out->name = LIT("c-guest");
  out->version = LIT("1");
  out->ctx = (uint64_t)(uintptr_t)h;
  out->filters = filters;
  out->n_filters = KINDS;
  out->on_config_new = on_config_new;
  out->on_config_drop = on_config_drop;
  out->on_event = on_event;
#if !defined(M_no_cancel)
  out->on_cancel = on_cancel;
#endif
  out->on_stream_end = on_stream_end;
  out->get_ext = get_ext;
#if defined(M_keeps_table)
  kept_table = out;
#endif
  return PXG_OK;
}
