/* SPDX-License-Identifier: Apache-2.0 */

/* A guest for what an operator sees of one. The configuration's first word says what it does, the rest is its text:
 *
 *   header TEXT   adds x-guest: TEXT to responses, and says `parent` in x-parent for an override
 *   count KIND    the same, and counts requests in the metric "seen", of that kind, "all"
 *   pend          answers PENDING to requests and completes them in a thread of its own
 *   never         answers PENDING to requests
 *   drain         answers PENDING to requests and completes them once the host drains
 *   reply, late   replies 403 to requests, or to responses, with the details "not_today"
 *   reset         ends requests without an answer
 *   error TEXT    fails at requests with TEXT
 *   user          puts the x-user that it sees into x-seen of the response
 *   long N        logs a record of N bytes at each request, from a thread of its own
 *   say TEXT      logs TEXT at requests, at each level: "TEXT at 0" and so on
 *   child         starts a child in a thread of its own at each request and says what wait(2) told
 *   length        says how long its configuration is
 *   override      is refused, unless it has a parent
 *   refuse TEXT   is refused with TEXT; `silent` without a word
 *   crash, exit, hang    on_config_new does what the word says
 *
 * What happens to configurations and workers is logged with "life: ". */

#define _GNU_SOURCE
#include "proxy_golang.h"
#include "proxy_golang/ext/metrics.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define S(text) \
  { (const uint8_t *)(text), sizeof(text) - 1, 0 }
#define BIT PXG_PHASE_BIT
#define SAY(level, ...)                                                \
  do {                                                                 \
    char line_[512];                                                   \
    int n_ = snprintf(line_, sizeof line_, __VA_ARGS__);               \
    host->log(host->ctx, level, (const uint8_t *)line_, (uint64_t)n_); \
  } while (0)

typedef struct config {
  char word[16], text[256], name[160];
  int is_child;
  uint32_t metric;
} config;

/* What a thread gets: a token, or a number. Nothing of a configuration, which may be dropped meanwhile. */
typedef struct job {
  uint64_t value;
} job;

static const pxg_str filters[] = {S("operator"), S("other")};
static const pxg_host *host;

static int is(const config *c, const char *word) { return strcmp(c->word, word) == 0; }

/* ---- Configurations ------------------------------------------------------------------------------------------------ */

static void define(config *c) {
  const char *kind = c->text[0] ? c->text : "all";
  const pxg_field labels[] = {{S("kind"), {(const uint8_t *)kind, (uint32_t)strlen(kind), 0}}};
  static const pxg_str name = S("seen");
  const pxg_metrics_v1 *m =
      host->get_ext ? host->get_ext(host->ctx, (const uint8_t *)PXG_METRICS_V1_ID, sizeof PXG_METRICS_V1_ID - 1) : NULL;
  if (m == NULL || m->define(host->ctx, PXG_METRIC_COUNTER, &name, labels, 1, &c->metric) != PXG_OK)
    SAY(PXG_LOG_ERROR, "life: no metrics");
}

static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  config *c = calloc(1, sizeof *c);
  char bytes[512];
  (void)ctx;
  for (size_t i = 0; i < 2; i++) {
    if (in->filter.len == filters[i].len && memcmp(in->filter.ptr, filters[i].ptr, filters[i].len) == 0) break;
    if (i == 1) return PXG_E_NOTFOUND;
  }
  snprintf(bytes, sizeof bytes, "%.*s", (int)in->bytes.len, (const char *)in->bytes.ptr);
  sscanf(bytes, "%15s %255[^\n]", c->word, c->text);
  snprintf(c->name, sizeof c->name, "%.*s", (int)in->name.len, (const char *)in->name.ptr);
  c->is_child = in->parent != 0;
  if (is(c, "override") && !c->is_child) strcpy(c->word, "refuse"), strcpy(c->text, "found no parent, expected one");
  if (is(c, "refuse") || is(c, "silent") || c->word[0] == 0) {
    static char why[256];
    snprintf(why, sizeof why, "%s", c->word[0] ? c->text : "no word, expected one");
    if (!is(c, "silent")) out->error = (pxg_str){(const uint8_t *)why, (uint32_t)strlen(why), 0};
    free(c);
    return PXG_E_ARG;
  }
  if (is(c, "length")) {
    const uint8_t *last = memrchr(in->bytes.ptr, 0, in->bytes.len);
    SAY(PXG_LOG_INFO, "life: %u bytes, the last NUL is at %lld", in->bytes.len,
        last ? (long long)(last - in->bytes.ptr) : -1ll);
  }
  if (is(c, "crash")) abort();
  if (is(c, "exit")) _exit(3);
  while (is(c, "hang")) sleep(60);
  out->config = (uint64_t)(uintptr_t)c;
  out->subscribe = BIT(PXG_PHASE_REQUEST_HEADERS) | BIT(PXG_PHASE_RESPONSE_HEADERS);
  if (is(c, "pend") || is(c, "never") || is(c, "drain")) out->pend_phases = BIT(PXG_PHASE_REQUEST_HEADERS);
  if (in->flags & PXG_CFG_IN_VALIDATE_ONLY) return PXG_OK;
  if (is(c, "count")) define(c);
  SAY(PXG_LOG_INFO, "life: new %s %s", c->name, c->word);
  return PXG_OK;
}

static void config_drop(uint64_t ctx, uint64_t value) {
  config *c = (config *)(uintptr_t)value;
  (void)ctx;
  SAY(PXG_LOG_INFO, "life: drop %s %s draining=%u", c->name, c->word,
      host->page ? (unsigned)__atomic_load_n(&host->page->draining, __ATOMIC_RELAXED) : 9u);
  free(c);
}

static void on_worker(uint64_t ctx, uint32_t worker, uint32_t up) {
  (void)ctx;
  SAY(PXG_LOG_INFO, "life: worker %u of %u %s", worker, host->n_workers, up ? "up" : "down");
}

static void batch_end(uint64_t ctx, uint32_t worker) {
  (void)ctx, (void)worker;
  SAY(PXG_LOG_INFO, "life: batch end");
}

/* ---- Threads ------------------------------------------------------------------------------------------------------- */

static void *complete(void *data) {
  job *j = data;
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE};
  usleep(1000);
  host->complete(host->ctx, j->value, &r);
  free(j);
  return NULL;
}

static void *complete_at_drain(void *data) {
  job *j = data;
  while (!__atomic_load_n(&host->page->draining, __ATOMIC_RELAXED)) usleep(1000);
  return complete(j);
}

static void *long_record(void *data) {
  job *j = data;
  size_t n = (size_t)j->value;
  uint8_t *line = malloc(n + 1);
  memset(line, 'x', n);
  memcpy(line, "begin", 5);
  memcpy(line + n - 3, "end", 3);
  host->log(host->ctx, PXG_LOG_WARN, line, n);
  free(line);
  free(j);
  return NULL;
}

static void *a_child(void *data) {
  int status = 0;
  pid_t pid = fork();
  if (pid == 0) _exit(7);
  usleep(50000);
  pid_t got = waitpid(pid, &status, 0);
  SAY(PXG_LOG_WARN, "child: %s", got == pid && WEXITSTATUS(status) == 7 ? "its status" : "lost");
  free(data);
  return NULL;
}

static void start(void *(*run)(void *), uint64_t value) {
  job *j = malloc(sizeof *j);
  pthread_t t;
  *j = (job){value};
  pthread_create(&t, NULL, run, j);
  pthread_detach(t);
}

/* ---- Events -------------------------------------------------------------------------------------------------------- */

static void add(pxg_result *out, const char *name, const char *value) {
  out->scratch_ops[out->n_ops++] = (pxg_op){.kind = PXG_OP_HEADER_ADD,
                                            .target = PXG_TARGET_HEADERS,
                                            .key = {(const uint8_t *)name, (uint32_t)strlen(name), 0},
                                            .val = {{(const uint8_t *)value, (uint32_t)strlen(value), 0}, 0, 0}};
  out->ops = out->scratch_ops;
}

static void answer(pxg_result *out) {
  static pxg_reply reply = {.size = sizeof reply, .status = 403, .details = S("not_today")};
  out->action = PXG_ACT_REPLY;
  out->reply = &reply;
}

static void request(config *c, const pxg_event *ev, pxg_result *out) {
  if (is(c, "pend") || is(c, "never") || is(c, "drain")) {
    if (!is(c, "never")) start(is(c, "pend") ? complete : complete_at_drain, ev->token);
    out->action = PXG_ACT_PENDING;
  } else if (is(c, "reply")) {
    answer(out);
  } else if (is(c, "reset")) {
    out->action = PXG_ACT_RESET;
  } else if (is(c, "error")) {
    out->action = PXG_ACT_ERROR;
    out->error = (pxg_str){(const uint8_t *)c->text, (uint32_t)strlen(c->text), 0};
  } else if (is(c, "long")) {
    start(long_record, (uint64_t)atoi(c->text));
  } else if (is(c, "say")) {
    for (uint32_t level = PXG_LOG_TRACE; level <= PXG_LOG_ERROR; level++) SAY(level, "%s at %u", c->text, level);
  } else if (is(c, "child")) {
    start(a_child, 0);
  } else if (is(c, "count")) {
    out->scratch_ops[0] = (pxg_op){.kind = PXG_OP_METRIC, .target = c->metric, .u0 = 1};
    out->ops = out->scratch_ops, out->n_ops = 1;
  } else if (is(c, "user")) {
    for (uint64_t i = 0; i < ev->n_fields; i++) {
      const pxg_str *name = &ev->fields[i].name;
      if (name->len == 6 && (name->ptr[1] == '-' || name->ptr[1] == '_') && memcmp(name->ptr + 2, "user", 4) == 0)
        out->user = 1;
    }
  }
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  config *c = (config *)(uintptr_t)ev->config;
  (void)ctx;
  out->action = PXG_ACT_CONTINUE;
  if (ev->phase == PXG_PHASE_REQUEST_HEADERS) {
    request(c, ev, out);
  } else if (is(c, "late")) {
    answer(out);
  } else if (is(c, "user")) {
    add(out, "x-seen", ev->user ? "user" : "none");
  } else {
    add(out, "x-guest", c->text[0] ? c->text : c->word);
    if (c->is_child) add(out, "x-parent", c->name);
  }
}

static void cancel(uint64_t ctx, uint64_t value, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {
  (void)ctx, (void)value, (void)user, (void)stream, (void)token, (void)w;
  SAY(PXG_LOG_INFO, "life: cancel");
}
static void end(uint64_t ctx, uint64_t value, uint64_t user, uint64_t stream, uint32_t w) {
  (void)ctx, (void)value, (void)user, (void)stream, (void)w;
}

__attribute__((visibility("default"))) int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {
  if (h->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  host = h;
  if (out->size > sizeof *out) out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR, out->minor = PXG_VERSION_MINOR, out->flags = PXG_GUEST_ABORTS;
  out->known[0] = ~0ull >> (64 - (PXG_F_APPLY + 1));
  out->name = (pxg_str)S("operator-test");
  out->filters = filters, out->n_filters = 2;
  out->on_config_new = config_new, out->on_config_drop = config_drop;
  out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
  out->on_worker = on_worker, out->on_batch_end = batch_end;
  return PXG_OK;
}
