/* SPDX-License-Identifier: Apache-2.0 */

/* A guest for tests of the module with its engine. The configuration says what it does, one word each:
 *
 *   headers  adds x-guest to request and response
 *   pend     the same, from a thread of its own, by `complete`
 *   whole    replaces both bodies by themselves in upper case and a line feed, in mode WHOLE
 *   stream   drops nothing and changes nothing of both bodies, in mode STREAM
 *   deny     replies 403 to every request
 *   late     replies 403 to every response
 *   never    answers PENDING and forgets it
 *   refuse   is no configuration */

#define _GNU_SOURCE
#include "proxy_golang.h"

#include <ctype.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define S(text) \
  { (const uint8_t *)(text), sizeof(text) - 1, 0 }
#define BIT PXG_PHASE_BIT

enum { HEADERS = 1, PEND, WHOLE, STREAM, DENY, LATE, NEVER };
static const char *const words[] = {"", "headers", "pend", "whole", "stream", "deny", "late", "never"};
static const pxg_str filters[] = {S("test")};
static const pxg_host *host;

typedef struct job {
  struct job *next;
  uint64_t token;
} job;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static job *jobs;

static pxg_op add = {PXG_OP_HEADER_ADD, 0, PXG_TARGET_HEADERS, 0, S("x-guest"), {S("thread"), 0, 0}};

static void *work(void *data) {
  for (;;) {
    pthread_mutex_lock(&lock);
    while (jobs == NULL) pthread_cond_wait(&more, &lock);
    job *j = jobs;
    jobs = j->next;
    pthread_mutex_unlock(&lock);
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &add, .n_ops = 1};
    host->complete(host->ctx, j->token, &r);
    free(j);
  }
  return NULL;
}

static void start(void) {
  pthread_t t;
  pthread_create(&t, NULL, work, NULL);
}

static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  uint64_t heads = BIT(PXG_PHASE_REQUEST_HEADERS) | BIT(PXG_PHASE_RESPONSE_HEADERS);
  if (in->filter.len != filters[0].len || memcmp(in->filter.ptr, filters[0].ptr, filters[0].len) != 0)
    return PXG_E_NOTFOUND;
  for (size_t i = 1; i < sizeof words / sizeof words[0]; i++)
    if (in->bytes.len == strlen(words[i]) && memcmp(in->bytes.ptr, words[i], in->bytes.len) == 0) out->config = i;
  if (out->config == 0) {
    out->error = (pxg_str)S("no word of this guest");
    return PXG_E_ARG;
  }
  out->subscribe = heads;
  if (out->config == PEND) out->pend_phases = heads;
  if (out->config >= WHOLE) {
    out->subscribe = BIT(PXG_PHASE_REQUEST_BODY) | BIT(PXG_PHASE_RESPONSE_BODY);
    out->body_mode[0] = out->body_mode[1] = out->config == WHOLE ? PXG_BODY_WHOLE : PXG_BODY_STREAM;
    out->max_body[0] = out->max_body[1] = 4 << 20;
  }
  if (out->config == NEVER) out->pend_phases = heads;
  if (out->config >= DENY) out->body_mode[0] = out->body_mode[1] = 0, out->subscribe = heads;
  if (out->config == LATE) out->subscribe = BIT(PXG_PHASE_RESPONSE_HEADERS);
  if (out->config == DENY) out->subscribe = BIT(PXG_PHASE_REQUEST_HEADERS);
  return PXG_OK;
}

static void release(uint64_t ctx) { free((void *)ctx); }

static void upper(const pxg_event *ev, pxg_result *out) {
  uint64_t n = 0, at = 0;
  for (uint64_t i = 0; i < ev->n_chunks; i++) n += ev->chunks[i].len;
  if (n == 0) return;
  uint8_t *p = malloc(n + 1);
  for (uint64_t i = 0; i < ev->n_chunks; i++)
    for (uint32_t k = 0; k < ev->chunks[i].len; k++) p[at++] = (uint8_t)toupper(ev->chunks[i].ptr[k]);
  p[n] = '\n';
  out->scratch_ops[0] = (pxg_op){.kind = PXG_OP_DROP, .u0 = n};
  out->scratch_ops[1] =
      (pxg_op){.kind = PXG_OP_INJECT, .val = {{p, (uint32_t)n + 1, PXG_BUF_OWNED}, release, (uint64_t)(uintptr_t)p}};
  out->ops = out->scratch_ops, out->n_ops = 2;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  static const pxg_field fields[] = {{S("x-reply"), S("yes")}};
  static const pxg_buf body[] = {{{(const uint8_t *)"denied\n", 7, PXG_BUF_STATIC}, 0, 0}};
  static pxg_reply reply = {
      .size = sizeof reply, .status = 403, .fields = fields, .n_fields = 1, .body = body, .n_body = 1};

  out->action = PXG_ACT_CONTINUE;
  if (ev->config == HEADERS) {
    out->scratch_ops[0] = add;
    out->scratch_ops[0].val.bytes = (pxg_str)S("sync");
    out->ops = out->scratch_ops, out->n_ops = 1;
  } else if (ev->config == PEND) {
    job *j = malloc(sizeof *j);
    j->token = ev->token;
    pthread_once(&once, start);
    pthread_mutex_lock(&lock);
    j->next = jobs, jobs = j;
    pthread_cond_signal(&more);
    pthread_mutex_unlock(&lock);
    out->action = PXG_ACT_PENDING;
  } else if (ev->config == WHOLE) {
    upper(ev, out);
  } else if (ev->config == NEVER) {
    out->action = PXG_ACT_PENDING;
  } else if (ev->config == DENY || ev->config == LATE) {
    out->action = PXG_ACT_REPLY;
    out->reply = &reply;
  }
}

static void drop(uint64_t ctx, uint64_t config) {}
static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {}
static void end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {}

int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {
  if (h->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  host = h;
  if (out->size > sizeof *out) out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR, out->minor = PXG_VERSION_MINOR, out->flags = PXG_GUEST_ABORTS;
  out->known[0] = ~0ull >> (64 - (PXG_F_APPLY + 1));
  out->name = (pxg_str)S("module-test");
  out->filters = filters, out->n_filters = 1;
  out->on_config_new = config_new, out->on_config_drop = drop;
  out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
  return PXG_OK;
}
