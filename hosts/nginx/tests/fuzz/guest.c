/* SPDX-License-Identifier: Apache-2.0 */

/* A guest that decides by chance. Its configuration is a number, which chooses what it subscribes to and the modes of
 * bodies; the field x-fuzz of a request is another, which chooses what it answers to each event of that stream: edits by
 * name and index, also of fields that it may not touch, strings that refer to the views, bytes passed, dropped and
 * injected, replies, streamed ones, PENDING with completions by threads (early, late, twice, of another's token), wakes,
 * errors and resets. Most results are legal, so that streams get far. */

#define _GNU_SOURCE
#include "proxy_golang.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define S(text) \
  { (const uint8_t *)(text), sizeof(text) - 1, 0 }
#define BIT PXG_PHASE_BIT

enum { THREADS = 3, LIVE = 256 };

static const pxg_host *host;
static const pxg_str filters[] = {S("fuzz")};

/* ---- Chance ---------------------------------------------------------------------------------------------------------- */

typedef struct {
  uint64_t at;
} chance;

static uint32_t next(chance *c, uint32_t below) {
  c->at += 0x9e3779b97f4a7c15ull;
  uint64_t z = c->at;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return (uint32_t)((z ^ z >> 31) % below);
}

static int one_in(chance *c, uint32_t n) { return next(c, n) == 0; }

/* ---- Streams --------------------------------------------------------------------------------------------------------- */

typedef struct {
  chance c;
  uint64_t handle;
  int wild, open;
} state;

static _Atomic uint64_t begun, ended, pendings, completed, stale, released, owned;

/* Values that other streams have or had. */
static _Atomic uint64_t some_tokens[LIVE], some_handles[LIVE];

typedef struct job {
  struct job *next;
  uint64_t token, handle, seed;
  uint32_t phase, delay_us;
  int parts;
} job;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static job *jobs;

static const char *const names[] = {
    "x-a",      "x-b",      "accept-encoding", "cookie",        "range",    "if-range",
    "etag",     "vary",     "content-type",    "authorization", "referer",  "user-agent",
    "x-fuzz-c", "x-fuzz-d", "last-modified",   "cache-control", "location", "set-cookie",
    "server",   "date",     "x-forwarded-for", "if-none-match", "link",     "expires",
    "refresh",  "te",       "accept-ranges",   "content-range", "via"};
static const char *const values[] = {"1",
                                     "",
                                     "bytes=0-5",
                                     "gzip",
                                     "a=b; c=d",
                                     "text/html; charset=x",
                                     "*",
                                     "/else",
                                     "no-cache",
                                     "Mon, 28 Sep 1970 06:00:00 GMT",
                                     "bytes=5-,0-2",
                                     "\"x\"",
                                     "trailers",
                                     "\xc3\xa4"};
static const char *const bad[] = {"a\r\nb: c", " x", "x ", "a\x01", ""};
static const char *const illegal[] = {
    "content-length", "transfer-encoding", "host", "connection", "X-Up", "a b", "", ":status", "x\r\ny", ":nothing"};
static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "OPTIONS", "X"};
static const char *const paths[] = {"/",
                                    "/proxy/../file/a.txt",
                                    "/file/a.txt?x=%2e",
                                    "/%00",
                                    "/a/../../b",
                                    "/file/%2e%2e/",
                                    "//",
                                    "/proxy/chunked",
                                    "*",
                                    "/no such",
                                    "/error/404"};
static const char *const hosts[] = {"a.test", "..", "A.test.:80", "[::1]:80", ".", "x/y"};

static pxg_str text(const char *s) { return (pxg_str){(const uint8_t *)s, (uint32_t)strlen(s), 0}; }

#define ANY(list) text(list[next(c, sizeof list / sizeof *list)])

static void release(uint64_t ctx) {
  released++;
  free((void *)(uintptr_t)ctx);
}

static pxg_buf bytes(chance *c, uint32_t most) {
  uint32_t n = next(c, one_in(c, 20) ? 200000 : most + 1);
  if (one_in(c, 2)) {
    uint8_t *p = malloc(n + 1);
    memset(p, 'o', n);
    owned++;
    return (pxg_buf){{p, n, PXG_BUF_OWNED}, release, (uint64_t)(uintptr_t)p};
  }
  static uint8_t letters[200000];
  if (!letters[0]) memset(letters, 's', sizeof letters);
  return (pxg_buf){{letters, n, PXG_BUF_STATIC}, 0, 0};
}

/* A string of the event, if there is one. */
static pxg_str borrowed(chance *c, const pxg_event *ev) {
  if (ev && ev->n_chunks && one_in(c, 2)) {
    pxg_str s = ev->chunks[next(c, (uint32_t)ev->n_chunks)];
    if (s.len > 40) s.len = 40;
    return s;
  }
  if (ev && ev->n_fields && one_in(c, 2)) {
    pxg_str s = ev->fields[next(c, (uint32_t)ev->n_fields)].value;
    return (pxg_str){s.ptr, s.len, 0};
  }
  if (ev && ev->n_attrs && !(ev->attrs[0].flags & PXG_STR_ABSENT)) return ev->attrs[0];
  return ANY(values);
}

static void field_op(chance *c, const pxg_event *ev, int wild, pxg_op *o) {
  if (wild && one_in(c, 30))
    o->key = ANY(illegal);
  else
    o->key = ANY(names);
  o->kind = (uint16_t)(PXG_OP_HEADER_SET + next(c, 3));
  o->val.bytes = wild && one_in(c, 40) ? ANY(bad) : one_in(c, 4) ? borrowed(c, ev) : ANY(values);
  if (one_in(c, 12)) o->target = PXG_TARGET_TRAILERS;
  if (o->kind == PXG_OP_HEADER_DELETE) o->val.bytes = (pxg_str){0};
  if (ev && ev->n_fields && one_in(c, 4)) {
    o->kind = one_in(c, 2) ? PXG_OP_SET_AT : PXG_OP_DELETE_AT;
    o->key = (pxg_str){0};
    o->u0 = next(c, (uint32_t)ev->n_fields + (wild && one_in(c, 20)));
    if (!wild && ev->fields[o->u0].name.ptr[0] == ':') o->u0 = ev->n_fields - 1;
    if (o->kind == PXG_OP_DELETE_AT) o->val.bytes = (pxg_str){0};
  } else if (one_in(c, 6) && o->target == PXG_TARGET_HEADERS) {
    bool request = !ev || ev->phase < PXG_PHASE_RESPONSE_HEADERS;
    o->kind = PXG_OP_HEADER_SET;
    if (!request)
      o->key = text(":status"), o->val.bytes = text(one_in(c, 4) ? "204" : "404");
    else if (one_in(c, 3))
      o->key = text(":method"), o->val.bytes = ANY(methods);
    else if (one_in(c, 2))
      o->key = text(":path"), o->val.bytes = ANY(paths);
    else
      o->key = text(":authority"), o->val.bytes = ANY(hosts);
  }
}

/* `ev` is null outside of on_event. `out->ops` has room for 40. */
static void operations(chance *c, const pxg_event *ev, uint32_t phase, int wild, pxg_result *out, pxg_op *ops) {
  bool body = phase == PXG_PHASE_REQUEST_BODY || phase == PXG_PHASE_RESPONSE_BODY;
  uint64_t left = 0;
  for (uint64_t i = 0; body && ev && i < ev->n_chunks; i++) left += ev->chunks[i].len;
  uint32_t n = next(c, 6);
  if (one_in(c, 30)) n = 33 + next(c, 7);
  out->ops = ops;
  for (uint32_t i = 0; i < n; i++) {
    pxg_op *o = &ops[out->n_ops];
    *o = (pxg_op){0};
    if (body && one_in(c, 2)) {
      o->kind = (uint16_t)(PXG_OP_PASS + next(c, 3));
      if (o->kind == PXG_OP_INJECT) {
        o->val = bytes(c, 64);
      } else {
        o->u0 = left ? next(c, (uint32_t)left + 1) : 0;
        left -= o->u0;
        if (wild && one_in(c, 60)) o->u0 += 1 + left;
      }
    } else if (one_in(c, 6)) {
      o->kind = PXG_OP_METADATA_SET, o->key = text(one_in(c, 2) ? "k" : "other"), o->val.bytes = borrowed(c, ev);
    } else if (one_in(c, 12) && phase == PXG_PHASE_REQUEST_HEADERS) {
      o->kind = PXG_OP_ROUTE, o->key = text(one_in(c, 2) ? "recompute" : "cluster");
      if (o->key.len == 7) o->val.bytes = text("app");
    } else {
      field_op(c, ev, wild, o);
    }
    if (wild && one_in(c, 200)) o->kind = (uint16_t)next(c, 70000), o->flags = PXG_OPF_MUST;
    out->n_ops++;
  }
  if (one_in(c, 10)) out->flags |= PXG_RES_FLUSH;
}

typedef struct {
  pxg_reply reply;
  pxg_field fields[4];
  pxg_buf body[3];
} answer;

static void reply(chance *c, const pxg_event *ev, pxg_result *out, answer *a) {
  static const uint32_t statuses[] = {200, 204, 304, 403, 404, 500, 301};
  *a = (answer){.reply = {.size = sizeof a->reply, .status = statuses[next(c, 7)]}};
  a->reply.fields = a->fields, a->reply.n_fields = next(c, 4);
  for (uint64_t i = 0; i < a->reply.n_fields; i++) a->fields[i] = (pxg_field){text(names[next(c, 8)]), borrowed(c, ev)};
  a->reply.body = a->body, a->reply.n_body = next(c, 4);
  for (uint64_t i = 0; i < a->reply.n_body; i++) a->body[i] = bytes(c, 1000);
  if (one_in(c, 4)) a->reply.trailers = a->fields, a->reply.n_trailers = a->reply.n_fields;
  if (one_in(c, 3)) a->reply.flags |= PXG_REPLY_OPEN;
  if (one_in(c, 4)) a->reply.flags |= PXG_REPLY_FLUSH;
  if (one_in(c, 4)) a->reply.flags |= PXG_REPLY_GRPC;
  a->reply.details = text("by\nchance");
  out->action = PXG_ACT_REPLY;
  out->reply = &a->reply;
}

/* ---- Threads --------------------------------------------------------------------------------------------------------- */

static void write_parts(job *j, chance *c) {
  for (int i = 0; i < j->parts; i++) {
    pxg_op op = {.kind = PXG_OP_BODY_WRITE, .flags = i == j->parts - 1 && !one_in(c, 10) ? PXG_OPF_END : 0};
    op.val = bytes(c, 4000);
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &op, .n_ops = 1};
    if (one_in(c, 30)) r.action = PXG_ACT_RESET;
    int32_t got = host->apply(host->ctx, j->handle, &r);
    if (got == PXG_E_STALE) return;
    if (one_in(c, 3)) nanosleep(&(struct timespec){0, next(c, 2000000)}, NULL);
  }
}

static void finish(job *j) {
  chance chances = {j->seed}, *c = &chances;
  pxg_op ops[40];
  answer a;
  if (j->delay_us) nanosleep(&(struct timespec){j->delay_us / 1000000, (long)(j->delay_us % 1000000) * 1000}, NULL);
  if (one_in(c, 5)) host->wake(host->ctx, j->handle, 1u << next(c, 8));
  if (j->parts) write_parts(j, c);
  if (!j->token) return;
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE};
  if (one_in(c, 8))
    reply(c, NULL, &r, &a);
  else if (one_in(c, 20))
    r.action = PXG_ACT_RESET;
  else if (one_in(c, 20))
    r.action = PXG_ACT_ERROR;
  else if (one_in(c, 10))
    r.action = PXG_ACT_MORE;
  else
    operations(c, NULL, j->phase, one_in(c, 4), &r, ops);
  int32_t got = host->complete(host->ctx, j->token, &r);
  if (got == PXG_OK) completed++;
  /* What was refused is still to be answered. */
  r = (pxg_result){.size = sizeof r, .action = PXG_ACT_CONTINUE};
  if (got != PXG_OK && got != PXG_E_STALE) got = host->complete(host->ctx, j->token, &r);
  if (got == PXG_OK && host->complete(host->ctx, j->token, &r) != PXG_E_STALE) abort();
  if (one_in(c, 10)) host->wake(host->ctx, some_handles[next(c, LIVE)], 1);
  if (one_in(c, 30) && host->complete(host->ctx, some_tokens[next(c, LIVE)], &r) == PXG_E_STALE) stale++;
  if (one_in(c, 30)) host->apply(host->ctx, some_handles[next(c, LIVE)], &r);
}

static void *work(void *data) {
  for (;;) {
    pthread_mutex_lock(&lock);
    while (jobs == NULL) pthread_cond_wait(&more, &lock);
    job *j = jobs;
    jobs = j->next;
    pthread_mutex_unlock(&lock);
    finish(j);
    free(j);
  }
  return data;
}

static void start(void) {
  pthread_t t;
  for (int i = 0; i < THREADS; i++) pthread_create(&t, NULL, work, NULL);
}

static void later(chance *c, const pxg_event *ev, uint64_t token, int parts) {
  job *j = calloc(1, sizeof *j), **last = &jobs;
  *j = (job){.token = token,
             .handle = ev->stream,
             .seed = (uint64_t)next(c, 1u << 31) << 20,
             .phase = ev->phase,
             .parts = parts};
  if (one_in(c, 3)) j->delay_us = next(c, one_in(c, 10) ? 200000 : 5000);
  pthread_once(&once, start);
  if (token && one_in(c, 10)) { /* Before on_event has returned. */
    finish(j);
    free(j);
    return;
  }
  pthread_mutex_lock(&lock);
  while (*last && one_in(c, 2) == 0) last = &(*last)->next;
  j->next = *last, *last = j;
  pthread_cond_signal(&more);
  pthread_mutex_unlock(&lock);
}

/* ---- Hooks ----------------------------------------------------------------------------------------------------------- */

typedef struct {
  chance c;
  uint64_t pends;
} settings;

static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  static const pxg_attr_want attrs[] = {
      {S("metadata.f0.k"), 0x1fe, 0, 0}, {S("path.normalized"), 0x1fe, 0, 0}, {S("duration_ns"), 0x1fe, 0, 0}};
  settings *s = calloc(1, sizeof *s);
  chance *c = &s->c;
  char number[32];
  (void)ctx;
  snprintf(number, sizeof number, "%.*s", (int)in->bytes.len, in->bytes.ptr);
  c->at = strtoull(number, NULL, 10);
  out->config = (uint64_t)(uintptr_t)s;
  out->subscribe = BIT(PXG_PHASE_REQUEST_HEADERS) | (next(c, 256) << 1 & 0x1fe) | BIT(PXG_PHASE_WAKE);
  out->pend_phases = out->subscribe & (in->features[0] & 0x3f) << 1 & (one_in(c, 3) ? next(c, 128) : 0x7e);
  for (int d = 0; d < 2; d++) {
    bool body = out->subscribe >> (d ? PXG_PHASE_RESPONSE_BODY : PXG_PHASE_REQUEST_BODY) & 1;
    out->body_mode[d] = body ? PXG_BODY_SKIP + next(c, 4) : PXG_BODY_SKIP;
    out->max_body[d] = one_in(c, 3) ? 1 + next(c, 5000) : 1 << 20;
  }
  if (one_in(c, 2)) out->flags |= PXG_CFG_RESIZES_REQUEST;
  if (one_in(c, 2)) out->flags |= PXG_CFG_RESIZES_RESPONSE;
  if (one_in(c, 3)) out->flags |= PXG_CFG_DUPLEX;
  if (one_in(c, 3)) out->flags |= PXG_CFG_WANT_PEER_FIELDS;
  if (one_in(c, 3)) out->flags |= PXG_CFG_ORPHAN;
  out->attrs = attrs, out->n_attrs = next(c, 4);
  s->pends = out->pend_phases;
  return PXG_OK;
}

/* Reads every byte of a view. */
static uint64_t touch(const pxg_event *ev) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < ev->n_fields; i++)
    for (uint32_t k = 0; k < ev->fields[i].value.len; k++) sum += ev->fields[i].value.ptr[k];
  for (uint64_t i = 0; i < ev->n_peer_fields; i++)
    for (uint32_t k = 0; k < ev->peer_fields[i].value.len; k++) sum += ev->peer_fields[i].value.ptr[k];
  for (uint64_t i = 0; i < ev->n_trailers; i++) sum += ev->trailers[i].name.ptr[0];
  for (uint64_t i = 0; i < ev->n_chunks; i++)
    for (uint32_t k = 0; k < ev->chunks[i].len; k++) sum += ev->chunks[i].ptr[k];
  for (uint64_t i = 0; i < ev->n_attrs; i++)
    for (uint32_t k = 0; k < ev->attrs[i].len; k++) sum += ev->attrs[i].ptr[k];
  return sum;
}

static state *state_of(const pxg_event *ev, pxg_result *out) {
  state *s = (state *)(uintptr_t)ev->user;
  if (s) return s;
  s = calloc(1, sizeof *s);
  s->c.at = 1;
  for (uint64_t i = 0; i < ev->n_fields; i++)
    if (ev->fields[i].name.len == 6 && !memcmp(ev->fields[i].name.ptr, "x-fuzz", 6))
      s->c.at = strtoull((const char *)ev->fields[i].value.ptr, NULL, 10) + 31 * ev->config % 7;
  s->handle = ev->stream;
  s->wild = one_in(&s->c, 4);
  begun++;
  out->user = (uint64_t)(uintptr_t)s;
  return s;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  const settings *own = (const settings *)(uintptr_t)ev->config;
  static _Thread_local answer a;
  static _Thread_local volatile uint64_t seen;
  state *s = state_of(ev, out);
  chance *c = &s->c;
  (void)ctx;
  seen += touch(ev);
  some_handles[next(c, LIVE)] = ev->stream;
  if (ev->token) some_tokens[next(c, LIVE)] = ev->token;
  out->action = PXG_ACT_CONTINUE;
  if (ev->phase == PXG_PHASE_LOG) return;
  if (ev->phase == PXG_PHASE_WAKE) {
    if (s->open && one_in(c, 2)) later(c, ev, 0, 1 + (int)next(c, 3));
    return;
  }
  if (ev->token && (own->pends >> ev->phase & 1) && one_in(c, 3)) {
    out->action = PXG_ACT_PENDING;
    pendings++;
    if (one_in(c, 200)) return; /* Forgotten: the deadline. */
    return later(c, ev, ev->token, 0);
  }
  if (one_in(c, 25)) {
    reply(c, ev, out, &a);
    if (a.reply.flags & PXG_REPLY_OPEN) s->open = 1, later(c, ev, 0, 1 + (int)next(c, 6));
    return;
  }
  if (one_in(c, 100)) {
    out->action = one_in(c, 2) ? PXG_ACT_RESET : PXG_ACT_ERROR;
    out->error = borrowed(c, ev);
    return;
  }
  if (one_in(c, 40)) later(c, ev, 0, 1); /* A write without an open reply. */
  if (one_in(c, 30)) out->unsubscribe = next(c, 256) << 1 & 0x1fe;
  if (one_in(c, 40)) out->body_mode[next(c, 2)] = PXG_BODY_SKIP;
  pxg_op *ops = out->scratch_ops;
  if (out->scratch_ops_cap < 40) ops = (pxg_op *)(void *)host->scratch_more(host->ctx, 40 * sizeof *ops);
  operations(c, ev, ev->phase, s->wild, out, ops);
  bool whole = ev->flags & (PXG_EV_END_STREAM | PXG_EV_BODY_END | PXG_EV_OVER_LIMIT);
  bool headers = ev->phase == PXG_PHASE_REQUEST_HEADERS || ev->phase == PXG_PHASE_RESPONSE_HEADERS;
  if (!whole && (!headers || s->wild) && one_in(c, 6)) {
    out->action = PXG_ACT_MORE;
    out->more_bytes = next(c, 3) * 500;
    for (uint64_t i = 0; i < out->n_ops; i++)
      if (ev->flags & PXG_EV_HEADERS_HELD && ops[i].kind == PXG_OP_PASS) ops[i].kind = PXG_OP_DROP;
  }
}

static void drop(uint64_t ctx, uint64_t config) {
  (void)ctx;
  free((void *)(uintptr_t)config);
}

static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)w;
  some_tokens[token % LIVE] = token;
}

static void end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)config, (void)worker;
  if (((state *)(uintptr_t)user)->handle != stream) abort();
  free((void *)(uintptr_t)user);
  ended++;
}

static void batch_end(uint64_t ctx, uint32_t worker) { (void)ctx, (void)worker; }

/* At the worker's end all is paid back. */
static void worker(uint64_t ctx, uint32_t index, uint32_t up) {
  char line[160];
  (void)ctx, (void)index;
  if (up) return;
  int n = snprintf(
      line, sizeof line, "fuzz balance: streams %s, owned %s; begun %llu pendings %llu completed %llu stale %llu",
      begun == ended ? "even" : "ODD", owned == released ? "even" : "not yet even", (unsigned long long)begun,
      (unsigned long long)pendings, (unsigned long long)completed, (unsigned long long)stale);
  host->log(host->ctx, PXG_LOG_ERROR, (const uint8_t *)line, (uint64_t)n);
}

__attribute__((visibility("default"))) int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {
  if (h->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  host = h;
  if (out->size > sizeof *out) out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR, out->minor = PXG_VERSION_MINOR, out->flags = PXG_GUEST_ABORTS;
  out->known[0] = ~0ull >> (64 - (PXG_F_APPLY + 1));
  out->name = (pxg_str)S("fuzz");
  out->filters = filters, out->n_filters = 1;
  out->on_config_new = config_new, out->on_config_drop = drop;
  out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
  out->on_batch_end = batch_end, out->on_worker = worker;
  return PXG_OK;
}
