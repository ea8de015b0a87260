/* SPDX-License-Identifier: Apache-2.0 */

/* A guest for tests of what a host may offer. Its configuration has one command on each line:
 *
 *   request|response set|add NAME VALUE, delete NAME, set-at N VALUE, delete-at N
 *   trailers set|add NAME VALUE        to the response, with its end
 *   view                               adds x-view: what was seen, `name=value;`, to both messages
 *   attr NAME                          adds x-attr-NAME to both messages (`-` if absent) and logs it at the end
 *   peer                               adds x-peer to the response: the request's :path
 *   route CLUSTER, recompute           at the request's headers
 *   meta KEY VALUE                     at the request's headers; KEY may have another namespace before a `:`
 *   wake KEY VALUE                     a thread wakes the pending request, and WAKE sets the metadata
 *   reply STATUS TEXT                  to the request
 *   stream N                           a reply of N parts of 64 KiB, by a thread
 *   resize                             puts `<` before and `>` behind both bodies
 *   flush                              what passes of a response is flushed
 *   orphan                             sees replies to requests that it has not seen */

#define _GNU_SOURCE
#include "proxy_golang.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define S(text) \
  { (const uint8_t *)(text), sizeof(text) - 1, 0 }
#define BIT PXG_PHASE_BIT

enum { MOST = 16, PART = 64 << 10 };
enum { TO_REQUEST, TO_RESPONSE, TO_TRAILERS, AT_WAKE, N_LISTS };

typedef struct {
  pxg_op ops[MOST];
  int n;
} list;

typedef struct {
  list lists[N_LISTS];
  pxg_attr_want attrs[MOST];
  int n_attrs, parts, status;
  int view, peer, resize, flush, wake;
  pxg_buf body;
} settings;

typedef struct job {
  struct job *next;
  uint64_t token, stream;
  int parts, writable;
} job;

static const pxg_str filters[] = {S("features")};
static const pxg_host *host;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static job *jobs, *writing;

static pxg_str text(const char *s) { return (pxg_str){(const uint8_t *)s, (uint32_t)strlen(s), 0}; }

/* ---- Threads --------------------------------------------------------------------------------------------------------- */

static void release(uint64_t ctx) { free((void *)(uintptr_t)ctx); }

/* Writes as long as there is room, and goes on when WAKE says so. */
static void write_parts(job *j) {
  for (int i = 0; i < j->parts;) {
    uint8_t *p = malloc(PART);
    memset(p, 'a' + i % 26, PART);
    pxg_op op = {.kind = PXG_OP_BODY_WRITE, .flags = i == j->parts - 1 ? PXG_OPF_END : 0};
    op.val = (pxg_buf){{p, PART, PXG_BUF_OWNED}, release, (uint64_t)(uintptr_t)p};
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &op, .n_ops = 1};
    int32_t got = host->apply(host->ctx, j->stream, &r);
    if (got == PXG_OK || got == PXG_FULL) i++;
    if (got == PXG_E_STALE) return;
    if (got != PXG_FULL && got != PXG_E_LIMIT) continue;
    /* A stream that has died gets no WAKE: `apply` tells. */
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    pthread_mutex_lock(&lock);
    if (!j->writable) pthread_cond_timedwait(&more, &lock, &until);
    j->writable = 0;
    pthread_mutex_unlock(&lock);
  }
}

static void *work(void *data) {
  (void)data;
  for (;;) {
    pthread_mutex_lock(&lock);
    while (jobs == NULL) pthread_cond_wait(&more, &lock);
    job *j = jobs;
    jobs = j->next;
    writing = j->parts ? j : NULL;
    pthread_mutex_unlock(&lock);
    if (j->token) {
      host->wake(host->ctx, j->stream, 1);
      pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE};
      host->complete(host->ctx, j->token, &r);
    }
    write_parts(j);
    pthread_mutex_lock(&lock);
    writing = NULL;
    pthread_mutex_unlock(&lock);
    free(j);
  }
  return NULL;
}

static void start(void) {
  pthread_t t;
  pthread_create(&t, NULL, work, NULL);
}

static void begin(const pxg_event *ev, uint64_t token, int parts) {
  job *j = calloc(1, sizeof *j);
  j->token = token, j->stream = ev->stream, j->parts = parts;
  pthread_once(&once, start);
  pthread_mutex_lock(&lock);
  job **last = &jobs;
  while (*last) last = &(*last)->next;
  *last = j;
  pthread_cond_broadcast(&more);
  pthread_mutex_unlock(&lock);
}

/* ---- Configurations -------------------------------------------------------------------------------------------------- */

static void push(settings *s, int to, uint16_t kind, const char *key, const char *value, uint64_t u0) {
  list *l = &s->lists[to];
  pxg_op *o = &l->ops[l->n++];
  o->kind = kind;
  o->target = to == TO_TRAILERS ? PXG_TARGET_TRAILERS : PXG_TARGET_HEADERS;
  o->u0 = u0;
  if (key) o->key = text(strdup(key));
  if (value) o->val.bytes = text(strdup(value));
}

static int command(settings *s, pxg_config_out *out, char *line) {
  char *word = strtok(line, " "), *a = strtok(NULL, " "), *b = strtok(NULL, " ");
  char *c = strtok(NULL, "");

  if (!word) return 1;
  int to = !strcmp(word, "request") ? TO_REQUEST : !strcmp(word, "response") ? TO_RESPONSE : TO_TRAILERS;
  if (to != TO_TRAILERS || !strcmp(word, "trailers")) {
    if (!a || !b) return 0;
    if (!strcmp(a, "set")) push(s, to, PXG_OP_HEADER_SET, b, c ? c : "", 0);
    if (!strcmp(a, "add")) push(s, to, PXG_OP_HEADER_ADD, b, c ? c : "", 0);
    if (!strcmp(a, "delete")) push(s, to, PXG_OP_HEADER_DELETE, b, NULL, 0);
    if (!strcmp(a, "set-at")) push(s, to, PXG_OP_SET_AT, NULL, c ? c : "", strtoull(b, NULL, 10));
    if (!strcmp(a, "delete-at")) push(s, to, PXG_OP_DELETE_AT, NULL, NULL, strtoull(b, NULL, 10));
    return 1;
  }
  if (!strcmp(word, "route")) push(s, TO_REQUEST, PXG_OP_ROUTE, "cluster", a, 0);
  if (!strcmp(word, "recompute")) push(s, TO_REQUEST, PXG_OP_ROUTE, "recompute", NULL, 0);
  if (!strcmp(word, "wake")) s->wake = 1;
  if (!strcmp(word, "meta") || !strcmp(word, "wake")) {
    char *colon = strchr(a, ':');
    uint64_t space = colon ? (uint64_t)(colon - a) : 0;
    if (colon) memmove(colon, colon + 1, strlen(colon));
    push(s, s->wake ? AT_WAKE : TO_REQUEST, PXG_OP_METADATA_SET, a, b, space);
  }
  if (!strcmp(word, "attr")) {
    uint64_t phases = BIT(PXG_PHASE_REQUEST_HEADERS) | BIT(PXG_PHASE_RESPONSE_HEADERS) | BIT(PXG_PHASE_LOG);
    s->attrs[s->n_attrs++] = (pxg_attr_want){text(strdup(a)), phases, 0, 0};
  }
  if (!strcmp(word, "view")) s->view = 1;
  if (!strcmp(word, "peer")) s->peer = 1, out->flags |= PXG_CFG_WANT_PEER_FIELDS;
  if (!strcmp(word, "orphan")) out->flags |= PXG_CFG_ORPHAN;
  if (!strcmp(word, "resize")) s->resize = 1, out->flags |= PXG_CFG_RESIZES_REQUEST | PXG_CFG_RESIZES_RESPONSE;
  if (!strcmp(word, "flush")) s->flush = 1;
  if (!strcmp(word, "stream")) s->parts = atoi(a), s->status = 200;
  if (!strcmp(word, "reply")) s->status = atoi(a), s->body = (pxg_buf){text(strdup(b)), 0, 0};
  return 1;
}

static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  settings *s = calloc(1, sizeof *s);
  char *lines = strndup((const char *)in->bytes.ptr, in->bytes.len), *rest = lines, *line;
  (void)ctx;
  while ((line = strsep(&rest, "\n")) != NULL)
    if (!command(s, out, line)) return PXG_E_ARG;
  free(lines);
  out->config = (uint64_t)(uintptr_t)s;
  out->subscribe = BIT(PXG_PHASE_REQUEST_HEADERS) | BIT(PXG_PHASE_RESPONSE_HEADERS) | BIT(PXG_PHASE_WAKE);
  if (s->n_attrs) out->subscribe |= BIT(PXG_PHASE_LOG);
  if (s->resize) {
    out->subscribe |= BIT(PXG_PHASE_REQUEST_BODY) | BIT(PXG_PHASE_RESPONSE_BODY);
    out->body_mode[0] = PXG_BODY_STREAM;
  }
  if (s->lists[TO_TRAILERS].n || s->flush)
    out->subscribe |= BIT(PXG_PHASE_RESPONSE_BODY) | BIT(PXG_PHASE_RESPONSE_TRAILERS);
  if (out->subscribe & BIT(PXG_PHASE_RESPONSE_BODY)) out->body_mode[1] = PXG_BODY_STREAM;
  if (s->wake) out->pend_phases = BIT(PXG_PHASE_REQUEST_HEADERS);
  out->attrs = s->attrs, out->n_attrs = (uint64_t)s->n_attrs;
  return PXG_OK;
}

/* ---- Events ---------------------------------------------------------------------------------------------------------- */

typedef struct {
  pxg_result *out;
  uint64_t used;
} writer;

static pxg_op *op(writer *w) {
  w->out->ops = w->out->scratch_ops;
  return &w->out->scratch_ops[w->out->n_ops++];
}

static void add(writer *w, const char *name, const char *more, const char *value, size_t n) {
  uint8_t *key = w->out->scratch + w->used, *val;
  size_t len = (size_t)sprintf((char *)key, "%s%s", name, more);
  val = key + len;
  memcpy(val, value, n);
  w->used += len + n;
  *op(w) = (pxg_op){.kind = PXG_OP_HEADER_ADD, .key = {key, (uint32_t)len, 0}, .val = {{val, (uint32_t)n, 0}, 0, 0}};
}

static void show(writer *w, const pxg_event *ev) {
  char seen[4096];
  size_t n = 0;
  for (uint64_t i = 0; i < ev->n_fields; i++)
    n += (size_t)snprintf(seen + n, sizeof seen - n, "%.*s=%.*s;", (int)ev->fields[i].name.len, ev->fields[i].name.ptr,
                          (int)ev->fields[i].value.len, ev->fields[i].value.ptr);
  add(w, "x-view", "", seen, n);
}

static void attributes(writer *w, const settings *s, const pxg_event *ev) {
  for (uint64_t i = 0; i < ev->n_attrs; i++) {
    const pxg_str *v = &ev->attrs[i];
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)s->attrs[i].name.len, s->attrs[i].name.ptr);
    const char *value = v->flags & PXG_STR_ABSENT ? "-" : (const char *)v->ptr;
    size_t n = v->flags & PXG_STR_ABSENT ? 1 : v->len;
    if (ev->phase != PXG_PHASE_LOG) {
      add(w, "x-attr-", name, value, n);
      continue;
    }
    char line[256];
    int len = snprintf(line, sizeof line, "attribute %s=%.*s", name, (int)n, value);
    host->log(host->ctx, PXG_LOG_INFO, (const uint8_t *)line, (uint64_t)len);
  }
}

static void commands(writer *w, const list *l) {
  for (int i = 0; i < l->n; i++) *op(w) = l->ops[i];
}

static void around(writer *w, const pxg_event *ev) {
  static const uint8_t marks[] = "<>";
  uint64_t n = 0;
  if (ev->body_offset == 0 && ev->n_chunks)
    *op(w) = (pxg_op){.kind = PXG_OP_INJECT, .val = {{marks, 1, PXG_BUF_STATIC}, 0, 0}};
  if (!(ev->flags & PXG_EV_BODY_END)) return;
  for (uint64_t i = 0; i < ev->n_chunks; i++) n += ev->chunks[i].len;
  *op(w) = (pxg_op){.kind = PXG_OP_PASS, .u0 = n};
  *op(w) = (pxg_op){.kind = PXG_OP_INJECT, .val = {{marks + 1, 1, PXG_BUF_STATIC}, 0, 0}};
}

static void on_request(writer *w, const settings *s, const pxg_event *ev) {
  static const pxg_field fields[] = {{S("x-reply"), S("yes")}};
  static _Thread_local pxg_reply reply;

  if (s->wake) {
    w->out->action = PXG_ACT_PENDING;
    w->out->n_ops = 0;
    return begin(ev, ev->token, 0);
  }
  commands(w, &s->lists[TO_REQUEST]);
  if (!s->status) return;
  reply = (pxg_reply){.size = sizeof reply, .status = (uint32_t)s->status, .fields = fields, .n_fields = 1};
  reply.flags = s->parts ? PXG_REPLY_OPEN : 0;
  reply.body = &s->body, reply.n_body = s->parts ? 0 : 1;
  w->out->action = PXG_ACT_REPLY;
  w->out->reply = &reply;
  if (s->parts) begin(ev, 0, s->parts);
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  const settings *s = (const settings *)(uintptr_t)ev->config;
  writer w = {out, 0};
  (void)ctx;

  out->action = PXG_ACT_CONTINUE;
  attributes(&w, s, ev);
  if (s->view && ev->n_fields && ev->phase != PXG_PHASE_LOG) show(&w, ev);
  switch (ev->phase) {
  case PXG_PHASE_REQUEST_HEADERS: on_request(&w, s, ev); break;
  case PXG_PHASE_RESPONSE_HEADERS:
    commands(&w, &s->lists[TO_RESPONSE]);
    for (uint64_t i = 0; s->peer && i < ev->n_peer_fields; i++)
      if (ev->peer_fields[i].name.len == 5 && !memcmp(ev->peer_fields[i].name.ptr, ":path", 5))
        add(&w, "x-peer", "", (const char *)ev->peer_fields[i].value.ptr, ev->peer_fields[i].value.len);
    break;
  case PXG_PHASE_REQUEST_BODY:
  case PXG_PHASE_RESPONSE_BODY:
    if (s->resize) around(&w, ev);
    if (s->flush) out->flags |= PXG_RES_FLUSH;
    if (ev->phase == PXG_PHASE_RESPONSE_BODY && (ev->flags & PXG_EV_END_STREAM)) commands(&w, &s->lists[TO_TRAILERS]);
    break;
  case PXG_PHASE_RESPONSE_TRAILERS: commands(&w, &s->lists[TO_TRAILERS]); break;
  case PXG_PHASE_WAKE:
    commands(&w, &s->lists[AT_WAKE]);
    if (!(ev->flags & PXG_EV_WRITABLE)) break;
    pthread_mutex_lock(&lock);
    if (writing) writing->writable = 1;
    pthread_cond_broadcast(&more);
    pthread_mutex_unlock(&lock);
    break;
  }
}

static void drop(uint64_t ctx, uint64_t config) { (void)ctx, (void)config; }
static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)token, (void)w;
}
static void end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)worker;
}

__attribute__((visibility("default"))) int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {
  if (h->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  host = h;
  if (out->size > sizeof *out) out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR, out->minor = PXG_VERSION_MINOR, out->flags = PXG_GUEST_ABORTS;
  out->known[0] = ~0ull >> (64 - (PXG_F_APPLY + 1));
  out->name = (pxg_str)S("features");
  out->filters = filters, out->n_filters = 1;
  out->on_config_new = config_new, out->on_config_drop = drop;
  out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
  return PXG_OK;
}
