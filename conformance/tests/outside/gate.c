/* A guest by somebody who has the header and the specification, and nothing else: three filters that guard and count.
 *
 *   gate        lets a request pass that carries the configured bearer token
 *   gate-async  the same, decided by a thread of its own
 *   tally       counts the bytes of both bodies and logs them
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy_golang.h"

#define ARRAY(a) (sizeof(a) / sizeof *(a))

static pxg_str text(const char *s) {
  pxg_str t = {(const uint8_t *)s, (uint32_t)strlen(s), 0};
  return t;
}

static int is(pxg_str s, const char *word) {
  size_t n = strlen(word);
  return s.len == n && (n == 0 || memcmp(s.ptr, word, n) == 0);
}

enum filter { GATE, GATE_ASYNC, TALLY, FILTERS };
static const char *const filter_names[FILTERS] = {"gate", "gate-async", "tally"};
static pxg_str filter_list[FILTERS];

struct settings {
  enum filter filter;
  uint32_t len;
  char token[];
};

struct counts {
  uint64_t request, response;
};

/* ---- requests that wait for the thread */

struct waiting {
  struct waiting *next;
  const pxg_host *host;
  uint64_t token;
  int allowed;
};

static struct {
  pthread_mutex_t lock;
  pthread_cond_t more;
  struct waiting *first;
  int running;
} line = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, NULL, 0};

/* What is refused: 401 with one field. The memory is the caller's. */
struct refusal {
  pxg_reply reply;
  pxg_field fields[1];
  pxg_buf body[1];
};

static void refuse(struct refusal *r, pxg_result *out) {
  memset(r, 0, sizeof *r);
  r->fields[0].name = text("www-authenticate");
  r->fields[0].value = text("Bearer");
  r->body[0].bytes = text("who are you?\n");
  r->reply.size = sizeof r->reply;
  r->reply.status = 401;
  r->reply.fields = r->fields;
  r->reply.n_fields = ARRAY(r->fields);
  r->reply.body = r->body;
  r->reply.n_body = ARRAY(r->body);
  out->reply = &r->reply;
  out->action = PXG_ACT_REPLY;
}

static void welcome(pxg_op *ops, pxg_result *out) {
  memset(ops, 0, 2 * sizeof *ops);
  ops[0].kind = PXG_OP_HEADER_DELETE;
  ops[0].key = text("authorization");
  ops[1].kind = PXG_OP_HEADER_SET;
  ops[1].key = text("x-gate");
  ops[1].val.bytes = text("passed");
  out->ops = ops;
  out->n_ops = 2;
  out->action = PXG_ACT_CONTINUE;
}

static void *decide(void *unused) {
  struct sched_param none = {0};
  (void)unused;
  /* Loop threads go first. */
  sched_setscheduler(0, SCHED_BATCH, &none);
  for (;;) {
    struct waiting *w;
    struct refusal refusal;
    pxg_op ops[2];
    pxg_result r;
    pthread_mutex_lock(&line.lock);
    while (!line.first) pthread_cond_wait(&line.more, &line.lock);
    w = line.first;
    line.first = w->next;
    pthread_mutex_unlock(&line.lock);
    memset(&r, 0, sizeof r);
    r.size = sizeof r;
    if (w->allowed) {
      welcome(ops, &r);
    } else {
      refuse(&refusal, &r);
    }
    /* Negative is a failure. The stream may be gone, which is no news; otherwise it must not wait for ever. */
    if (w->host->complete(w->host->ctx, w->token, &r) < 0) {
      memset(&r, 0, sizeof r);
      r.size = sizeof r;
      r.action = PXG_ACT_ERROR;
      r.error = text("gate-async: the decision was not taken");
      w->host->complete(w->host->ctx, w->token, &r);
    }
    free(w);
  }
  return NULL;
}

static int start(void) {
  int ok = 1;
  pthread_mutex_lock(&line.lock);
  if (!line.running) {
    pthread_t t;
    ok = pthread_create(&t, NULL, decide, NULL) == 0;
    line.running = ok;
  }
  pthread_mutex_unlock(&line.lock);
  return ok;
}

static void enqueue(struct waiting *w) {
  struct waiting **at = &line.first;
  pthread_mutex_lock(&line.lock);
  while (*at) at = &(*at)->next;
  *at = w;
  pthread_cond_signal(&line.more);
  pthread_mutex_unlock(&line.lock);
}

/* ---- hooks; ctx is the host's table */

static int has(const pxg_config_in *in, unsigned feature) { return in->features[feature / 64] >> (feature % 64) & 1; }

static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  struct settings *s;
  int filter = 0;
  (void)ctx;
  while (filter < FILTERS && !is(in->filter, filter_names[filter])) filter++;
  if (filter == FILTERS) return PXG_E_NOTFOUND;
  if (filter != TALLY && in->bytes.len == 0) {
    out->error = text("the configuration is the token, and it is empty");
    return PXG_E_ARG;
  }
  if (filter == GATE_ASYNC && !has(in, PXG_F_PEND_REQUEST_HEADERS)) {
    out->error = text("gate-async needs a host that lets REQUEST_HEADERS wait");
    return PXG_E_UNSUPPORTED;
  }
  if (filter == TALLY && !(has(in, PXG_F_BODY_OBSERVE_REQUEST) && has(in, PXG_F_BODY_OBSERVE_RESPONSE))) {
    out->error = text("tally needs a host that shows bodies");
    return PXG_E_UNSUPPORTED;
  }
  if (filter == GATE_ASYNC && !(in->flags & PXG_CFG_IN_VALIDATE_ONLY) && !start()) {
    out->error = text("no thread could be started");
    return PXG_E_INTERNAL;
  }
  s = malloc(sizeof *s + in->bytes.len);
  if (!s) return PXG_E_INTERNAL;
  s->filter = (enum filter)filter;
  s->len = in->bytes.len;
  if (s->len) memcpy(s->token, in->bytes.ptr, s->len);
  out->config = (uint64_t)(uintptr_t)s;
  switch (s->filter) {
  case GATE: out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS); break;
  case GATE_ASYNC: out->subscribe = out->pend_phases = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS); break;
  default:
    out->subscribe =
        PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_BODY) | PXG_PHASE_BIT(PXG_PHASE_LOG);
    out->body_mode[0] = out->body_mode[1] = PXG_BODY_OBSERVE;
  }
  return PXG_OK;
}

static void config_drop(uint64_t ctx, uint64_t config) {
  (void)ctx;
  free((void *)(uintptr_t)config);
}

static int carries(const pxg_event *ev, const struct settings *s) {
  static const char scheme[] = "Bearer ";
  const uint32_t n = sizeof scheme - 1;
  uint64_t i;
  for (i = 0; i < ev->n_fields; i++) {
    const pxg_field *f = &ev->fields[i];
    if (is(f->name, "authorization") && f->value.len == n + s->len && !memcmp(f->value.ptr, scheme, n) &&
        !memcmp(f->value.ptr + n, s->token, s->len))
      return 1;
  }
  return 0;
}

static void ask(const pxg_host *host, const pxg_event *ev, const struct settings *s, pxg_result *out) {
  struct waiting *w;
  int allowed = carries(ev, s);
  if (s->filter == GATE) {
    /* The lent scratch is large enough for both: 4096 bytes and 32 operations. */
    if (allowed)
      welcome(out->scratch_ops, out);
    else
      refuse((struct refusal *)(void *)out->scratch, out);
    return;
  }
  w = calloc(1, sizeof *w);
  if (!w) {
    out->error = text("gate-async: no memory");
    out->action = PXG_ACT_ERROR;
    return;
  }
  w->host = host;
  w->token = ev->token;
  w->allowed = allowed;
  out->action = PXG_ACT_PENDING;
  enqueue(w);
}

static void report(const pxg_host *host, const struct counts *c) {
  char buffer[96];
  int n;
  if (!host->log || !host->page || __atomic_load_n(&host->page->log_level, __ATOMIC_RELAXED) > PXG_LOG_INFO) return;
  n = snprintf(buffer, sizeof buffer, "request %llu bytes, response %llu bytes", (unsigned long long)c->request,
               (unsigned long long)c->response);
  host->log(host->ctx, PXG_LOG_INFO, (const uint8_t *)buffer, (uint64_t)n);
}

static void tally(const pxg_host *host, const pxg_event *ev, pxg_result *out) {
  struct counts *c = (struct counts *)(uintptr_t)ev->user;
  uint64_t i, n = 0;
  out->action = PXG_ACT_CONTINUE;
  if (ev->phase == PXG_PHASE_LOG) {
    if (c) report(host, c);
    return;
  }
  if (!c) {
    c = calloc(1, sizeof *c);
    if (!c) return;
    out->user = (uint64_t)(uintptr_t)c;
  }
  for (i = 0; i < ev->n_chunks; i++) n += ev->chunks[i].len;
  *(ev->phase == PXG_PHASE_REQUEST_BODY ? &c->request : &c->response) += n;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  const pxg_host *host = (const pxg_host *)(uintptr_t)ctx;
  const struct settings *s = (const struct settings *)(uintptr_t)ev->config;
  if (s->filter == TALLY)
    tally(host, ev, out);
  else if (ev->phase == PXG_PHASE_REQUEST_HEADERS)
    ask(host, ev, s, out);
  else
    out->action = PXG_ACT_CONTINUE;
}

static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t worker) {
  struct waiting **at, *gone = NULL;
  (void)ctx, (void)config, (void)user, (void)stream, (void)worker;
  pthread_mutex_lock(&line.lock);
  for (at = &line.first; *at; at = &(*at)->next) {
    if ((*at)->token == token) {
      gone = *at;
      *at = gone->next;
      break;
    }
  }
  pthread_mutex_unlock(&line.lock);
  free(gone);
}

static void stream_end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)config, (void)stream, (void)worker;
  free((void *)(uintptr_t)user);
}

int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  int i;
  if (host->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  if (host->size < sizeof *host || out->size < sizeof *out) return PXG_E_ARG;
  for (i = 0; i < FILTERS; i++) filter_list[i] = text(filter_names[i]);
  out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR;
  out->minor = PXG_VERSION_MINOR;
  out->flags = PXG_GUEST_ABORTS;
  out->name = text("gate");
  out->version = text("1.0");
  out->ctx = (uint64_t)(uintptr_t)host;
  out->filters = filter_list;
  out->n_filters = FILTERS;
  out->on_config_new = config_new;
  out->on_config_drop = config_drop;
  out->on_event = event;
  out->on_cancel = cancel;
  out->on_stream_end = stream_end;
  return PXG_OK;
}
