/* SPDX-License-Identifier: Apache-2.0 */

/* The guest of the tests. The configuration says what it does, in one word:
 *
 *   headers   adds x-guest: sync to request and response
 *   pend      the same, by a thread of its own where the phase may pend
 *   must-pend the same, and requires the features for it
 *   never     answers PENDING to requests and forgets it
 *   hang      the same, and completes what was cancelled: too late
 *   whole     puts both bodies in upper case and a line feed behind them, in mode WHOLE where it may, else unchanged
 *   stream    replaces each letter a by b in both bodies, in mode STREAM
 *   trailers  adds x-trailer to both trailers
 *   deny      replies 403 to requests
 *   late      replies 403 to responses
 *   error     fails at requests
 *   reset     resets at requests
 *   path      sets :path to /changed?q=1, :method to PUT and :authority to guest.example, and deletes x-drop; removes
 *             the first x-index by its index, and sets the field behind it
 *   counts    replies with how often the library was called (cancels, ends, late completions that were stale), and the
 *             features of its configuration
 *   attrs     sets x-attrs to the attributes that it has, in both heads, and logs them at the end
 *   must-attr the same, and requires them
 *   refuse    is no configuration
 *
 * pend@N, never@N, hang@N, error@N, reset@N and deny@N do it in phase N alone, of bodies in mode STREAM. */

#define _GNU_SOURCE
#include "proxy_golang.h"

#include <ctype.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define S(text) \
  { (const uint8_t *)(text), sizeof(text) - 1, 0 }
#define BIT PXG_PHASE_BIT

static const char *const words[] = {"",      "headers", "pend",     "must-pend", "never",    "hang",
                                    "whole", "stream",  "trailers", "deny",      "late",     "error",
                                    "reset", "path",    "counts",   "attrs",     "must-attr"};
enum {
  HEADERS = 1,
  PEND,
  MUST_PEND,
  NEVER,
  HANG,
  WHOLE,
  STREAM,
  TRAILERS,
  DENY,
  LATE,
  ERROR,
  RESET,
  PATH,
  COUNTS,
  ATTRS,
  MUST_ATTR
};

static const char *const attrs[] = {"request.id",         "request.protocol",      "path.raw",
                                    "path.normalized",    "source.address",        "connection.requests",
                                    "request.body_bytes", "response.body_bytes",   "duration_ns",
                                    "route.name",         "response.code_details", "response.code"};
enum { N_ATTRS = sizeof attrs / sizeof attrs[0] };

static const pxg_str filters[] = {S("lua-test")};
static const pxg_host *host;
static _Atomic unsigned cancels, ends, stale;
static uint64_t features;        /* Of the last `counts`. */
static _Atomic uint32_t configs; /* Values of configurations are never used again: word | phase << 8 | number << 16. */

typedef struct job {
  struct job *next;
  uint64_t token;
  int plain; /* A body's: no fields are held. */
} job;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static job *jobs, **last = &jobs;

static pxg_op add = {PXG_OP_HEADER_ADD, 0, PXG_TARGET_HEADERS, 0, S("x-guest"), {S("thread"), 0, 0}};

static void *work(void *data) {
  for (;;) {
    pthread_mutex_lock(&lock);
    while (jobs == NULL) pthread_cond_wait(&more, &lock);
    job *j = jobs;
    jobs = j->next;
    if (jobs == NULL) last = &jobs;
    pthread_mutex_unlock(&lock);
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = j->plain ? NULL : &add, .n_ops = !j->plain};
    if (host->complete(host->ctx, j->token, &r) == PXG_E_STALE) stale++;
    free(j);
  }
  return NULL;
}

static void start(void) {
  pthread_t t;
  pthread_create(&t, NULL, work, NULL);
}

static void push(uint64_t token, int plain) {
  job *j = calloc(1, sizeof *j);
  j->token = token;
  j->plain = plain;
  pthread_once(&once, start);
  pthread_mutex_lock(&lock);
  *last = j, last = &j->next;
  pthread_cond_signal(&more);
  pthread_mutex_unlock(&lock);
}

static int has(const pxg_config_in *in, unsigned f) { return in->features[f / 64] >> (f % 64) & 1; }

static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  uint64_t heads = BIT(PXG_PHASE_REQUEST_HEADERS) | BIT(PXG_PHASE_RESPONSE_HEADERS), word = 0;
  uint64_t bodies = BIT(PXG_PHASE_REQUEST_BODY) | BIT(PXG_PHASE_RESPONSE_BODY);
  const uint8_t *at = memchr(in->bytes.ptr, '@', in->bytes.len);
  size_t len = at ? (size_t)(at - in->bytes.ptr) : in->bytes.len;
  uint64_t only = at ? at[1] - '0' : 0;
  for (size_t i = 1; i < sizeof words / sizeof words[0]; i++)
    if (len == strlen(words[i]) && memcmp(in->bytes.ptr, words[i], len) == 0) word = i;
  if (word == 0) {
    out->error = (pxg_str)S("no word of this guest");
    return PXG_E_ARG;
  }
  out->config = word | only << 8 | (uint64_t)atomic_fetch_add(&configs, 1) << 16;
  if (word == MUST_PEND && !has(in, PXG_F_PEND_RESPONSE_HEADERS)) {
    out->error = (pxg_str)S("must-pend needs PEND_RESPONSE_HEADERS");
    return PXG_E_UNSUPPORTED;
  }
  if (word == COUNTS) features = in->features[0];
  out->subscribe = heads;
  if (word == NEVER || word == HANG || (word >= DENY && word != LATE)) out->subscribe = BIT(PXG_PHASE_REQUEST_HEADERS);
  if (word == LATE) out->subscribe = BIT(PXG_PHASE_RESPONSE_HEADERS);
  if (word == WHOLE || word == STREAM) {
    out->subscribe = bodies;
    out->body_mode[0] = out->body_mode[1] = word == WHOLE ? PXG_BODY_WHOLE : PXG_BODY_STREAM;
    if (word == WHOLE && !has(in, PXG_F_BODY_WHOLE_RESPONSE)) out->body_mode[1] = PXG_BODY_SKIP;
    out->max_body[0] = out->max_body[1] = 4 << 20;
  }
  if (word == ATTRS || word == MUST_ATTR) {
    static pxg_attr_want want[N_ATTRS];
    for (int i = 0; i < N_ATTRS; i++)
      want[i] = (pxg_attr_want){
          .name = {(const uint8_t *)attrs[i], (uint32_t)strlen(attrs[i]), 0},
          .phases = heads | BIT(PXG_PHASE_LOG),
          .flags = word == MUST_ATTR ? PXG_ATTR_REQUIRED : 0,
      };
    out->subscribe = heads | BIT(PXG_PHASE_LOG);
    out->attrs = want, out->n_attrs = N_ATTRS;
  }
  if (only) {
    out->subscribe = BIT(only);
    if (only == PXG_PHASE_REQUEST_BODY) out->body_mode[0] = PXG_BODY_STREAM;
    if (only == PXG_PHASE_RESPONSE_BODY) out->body_mode[1] = PXG_BODY_STREAM;
  }
  if (word <= HANG && word >= PEND) out->pend_phases = out->subscribe;
  if (word == PEND && !has(in, PXG_F_PEND_REQUEST_HEADERS)) out->pend_phases &= ~BIT(PXG_PHASE_REQUEST_HEADERS);
  if (word == PEND && !has(in, PXG_F_PEND_RESPONSE_HEADERS)) out->pend_phases &= ~BIT(PXG_PHASE_RESPONSE_HEADERS);
  if (word == TRAILERS) out->subscribe = BIT(PXG_PHASE_REQUEST_TRAILERS) | BIT(PXG_PHASE_RESPONSE_TRAILERS);
  return PXG_OK;
}

static void release(uint64_t ctx) { free((void *)ctx); }

static int to_upper(int c) { return toupper(c); }
static int a_to_b(int c) { return c == 'a' ? 'b' : c; }

static void change(const pxg_event *ev, pxg_result *out, int (*f)(int), int line) {
  uint64_t n = 0, at = 0;
  for (uint64_t i = 0; i < ev->n_chunks; i++) n += ev->chunks[i].len;
  if (n == 0) return;
  uint8_t *p = malloc(n + 1);
  for (uint64_t i = 0; i < ev->n_chunks; i++)
    for (uint32_t k = 0; k < ev->chunks[i].len; k++) p[at++] = (uint8_t)f(ev->chunks[i].ptr[k]);
  p[n] = '\n';
  n += (uint64_t)line;
  out->scratch_ops[0] = (pxg_op){.kind = PXG_OP_DROP, .u0 = at};
  out->scratch_ops[1] =
      (pxg_op){.kind = PXG_OP_INJECT, .val = {{p, (uint32_t)n, PXG_BUF_OWNED}, release, (uint64_t)(uintptr_t)p}};
  out->ops = out->scratch_ops, out->n_ops = 2;
}

static void set(pxg_result *out, pxg_str key, pxg_str value) {
  out->scratch_ops[out->n_ops] = (pxg_op){.kind = PXG_OP_HEADER_SET, .key = key, .val = {value, 0, 0}};
  out->ops = out->scratch_ops, out->n_ops++;
}

static void reply(pxg_result *out, uint32_t status, pxg_str text) {
  static const pxg_field fields[] = {{S("x-reply"), S("yes")}, {S("x-reply"), S("twice")}};
  static pxg_buf body;
  static pxg_reply r;
  body = (pxg_buf){text, 0, 0};
  r = (pxg_reply){.size = sizeof r, .status = status, .fields = fields, .n_fields = 2, .body = &body, .n_body = 1};
  r.details = (pxg_str)S("said so");
  out->action = PXG_ACT_REPLY;
  out->reply = &r;
}

/* name=value of all that is there, and nothing for what changes from run to run. */
static uint32_t show(const pxg_event *ev, char *to, size_t room) {
  size_t n = 0;
  for (uint64_t i = 0; i < ev->n_attrs; i++) {
    const pxg_str *v = &ev->attrs[i];
    if (v->flags & PXG_STR_ABSENT) continue;
    n += (size_t)snprintf(to + n, room - n, "%s=%.*s;", attrs[i], (int)v->len, (const char *)v->ptr);
  }
  return (uint32_t)n;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  static char text[4096];
  uint64_t word = ev->config & 0xff;
  int sync = word == HEADERS || ev->token == 0;

  out->action = PXG_ACT_CONTINUE;
  out->user = ev->config;
  switch (word) {
  case HEADERS:
  case PEND:
  case MUST_PEND:
    if (!sync) {
      push(ev->token, ev->phase == PXG_PHASE_REQUEST_BODY || ev->phase == PXG_PHASE_RESPONSE_BODY);
      out->action = PXG_ACT_PENDING;
      break;
    }
    out->scratch_ops[0] = add;
    out->scratch_ops[0].val.bytes = (pxg_str)S("sync");
    out->ops = out->scratch_ops, out->n_ops = 1;
    break;
  case HANG:
  case NEVER: out->action = PXG_ACT_PENDING; break;
  case WHOLE: change(ev, out, to_upper, 1); break;
  case STREAM: change(ev, out, a_to_b, 0); break;
  case TRAILERS:
    set(out, (pxg_str)S("x-trailer"), (pxg_str)S("guest"));
    out->scratch_ops[0].target = PXG_TARGET_TRAILERS;
    break;
  case DENY:
  case LATE: reply(out, 403, (pxg_str)S("denied\n")); break;
  case ERROR:
    out->action = PXG_ACT_ERROR;
    out->error = (pxg_str)S("told to fail");
    break;
  case RESET: out->action = PXG_ACT_RESET; break;
  case PATH:
    set(out, (pxg_str)S(":path"), (pxg_str)S("/changed?q=1"));
    set(out, (pxg_str)S(":method"), (pxg_str)S("PUT"));
    set(out, (pxg_str)S(":authority"), (pxg_str)S("guest.example"));
    out->scratch_ops[out->n_ops++] = (pxg_op){.kind = PXG_OP_HEADER_DELETE, .key = S("x-drop")};
    for (uint64_t i = 0; i < ev->n_fields; i++) {
      if (ev->fields[i].name.len != 7 || memcmp(ev->fields[i].name.ptr, "x-index", 7) != 0) continue;
      out->scratch_ops[out->n_ops++] = (pxg_op){.kind = PXG_OP_DELETE_AT, .u0 = i};
      out->scratch_ops[out->n_ops++] = (pxg_op){.kind = PXG_OP_SET_AT, .u0 = i, .val = {S("gone"), 0, 0}};
      out->scratch_ops[out->n_ops++] = (pxg_op){.kind = PXG_OP_SET_AT, .u0 = i + 1, .val = {S("set"), 0, 0}};
      break;
    }
    break;
  case ATTRS:
  case MUST_ATTR: {
    uint32_t n = show(ev, text, sizeof text);
    if (ev->phase == PXG_PHASE_LOG)
      host->log(host->ctx, PXG_LOG_ERROR, (const uint8_t *)text, n);
    else
      set(out, (pxg_str)S("x-attrs"), (pxg_str){(uint8_t *)text, n, 0});
    break;
  }
  case COUNTS: {
    uint32_t n = (uint32_t)snprintf(text, sizeof text, "cancels %u ends %u stale %u features %llu\n", cancels, ends,
                                    stale, (unsigned long long)features);
    reply(out, 200, (pxg_str){(uint8_t *)text, n, 0});
    break;
  }
  }
}

static void drop(uint64_t ctx, uint64_t config) {}

static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {
  cancels++;
  if ((config & 0xff) == HANG) push(token, 1);
}

static void end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) { ends++; }

int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {
  if (h->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  host = h;
  if (out->size > sizeof *out) out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR, out->minor = PXG_VERSION_MINOR, out->flags = PXG_GUEST_ABORTS;
  out->known[0] = ~0ull >> (64 - (PXG_F_APPLY + 1));
  out->name = (pxg_str)S("lua-test");
  out->filters = filters, out->n_filters = 1;
  out->on_config_new = config_new, out->on_config_drop = drop;
  out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
  return PXG_OK;
}
