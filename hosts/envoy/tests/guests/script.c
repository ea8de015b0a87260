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
 * meta KEY VALUE, metric N, cluster NAME, recompute, mode DIRECTION MODE, resizes, more [N], reply STATUS TEXT (with
 * rset NAME VALUE, rtrailer NAME VALUE, grpc N before it), stream STATUS PIECES SIZE, reset, error TEXT, unset, garbage N,
 * exhaust, log LEVEL TEXT, block MS, wake N, release KEY, and pend MS|early|forever|until KEY: the rest of the phase's
 * steps goes with the completion. `$N` in a value is the N-th attribute. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "proxy_golang/ext/metrics.h"
#include "proxy_golang_guest.h"

enum { PHASES = 9, MAX_OPS = 64, MAX_STEPS = 64, MAX_ATTRS = 16 };

static const char *const phase_names[PHASES] = {"",
                                                "request_headers",
                                                "request_body",
                                                "request_trailers",
                                                "response_headers",
                                                "response_body",
                                                "response_trailers",
                                                "log",
                                                "wake"};

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

/* A PENDING: what is to be done, and on which token. */
typedef struct pending {
  struct pending *next;
  const script *script;
  const step *rest; /* the steps that go with the completion */
  uint32_t phase, nth, flags;
  uint64_t token, len;
  pxg_str key;
  long wait_ms;
} pending;

static const pxg_host *host;
static const pxg_metrics_v1 *metrics;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pending *waiting;

/* ---- writing down ----------------------------------------------------------------------------------------------- */

typedef struct line {
  size_t n;
  char text[16384];
} line;

static void put(line *l, const char *format, ...) PXGG_PRINTF(2, 3);
static void put(line *l, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int n = vsnprintf(l->text + l->n, sizeof l->text - l->n, format, args);
  va_end(args);
  if (n > 0 && (size_t)n < sizeof l->text - l->n) l->n += (size_t)n;
}

static void put_text(line *l, const uint8_t *p, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (p[i] == '"' || p[i] == '\\' || p[i] < 0x20 || p[i] > 0x7e)
      put(l, "\\u%04x", p[i]);
    else
      put(l, "%c", p[i]);
  }
}

static void put_str(line *l, pxg_str s) { put_text(l, s.ptr, s.len); }

static void put_fields(line *l, const char *name, const pxg_field *fields, uint64_t n) {
  put(l, ",\"%s\":[", name);
  for (uint64_t i = 0; i < n; i++) {
    put(l, "%s[\"", i ? "," : "");
    put_str(l, fields[i].name);
    put(l, "\",\"");
    put_str(l, fields[i].value);
    put(l, "\"]");
  }
  put(l, "]");
}

static void begin(line *l, const char *call, const script *s) {
  l->n = 0;
  put(l, "{\"call\":\"%s\",\"case\":\"", call);
  put_str(l, s->name);
  put(l, "\",\"instance\":\"");
  put_str(l, s->config->name);
  put(l, "\"");
}

static void finish(line *l, const script *s) {
  put(l, "}\n");
  if (s->config->record >= 0) (void)!write(s->config->record, l->text, l->n);
}

static void record_event(const script *s, const pxg_event *ev, uint32_t nth) {
  line l;
  uint64_t len = pxgg_body_len(ev);
  begin(&l, "event", s);
  put(&l, ",\"phase\":\"%s\",\"nth\":%u,\"flags\":%u,\"worker\":%u,\"stream\":%llu,\"token\":%llu,\"arg\":%llu",
      phase_names[ev->phase], nth, ev->flags, ev->worker, (unsigned long long)ev->stream, (unsigned long long)ev->token,
      (unsigned long long)ev->arg);
  put(&l, ",\"len\":%llu,\"chunks\":%llu,\"offset\":%llu,\"body\":\"", (unsigned long long)len,
      (unsigned long long)ev->n_chunks, (unsigned long long)ev->body_offset);
  for (uint64_t i = 0, shown = 0; i < ev->n_chunks && shown < 256; i++) {
    uint64_t n = ev->chunks[i].len < 256 - shown ? ev->chunks[i].len : 256 - shown;
    put_text(&l, ev->chunks[i].ptr, n);
    shown += n;
  }
  put(&l, "\"");
  put_fields(&l, "fields", ev->fields, ev->n_fields);
  put_fields(&l, "trailers", ev->trailers, ev->n_trailers);
  put_fields(&l, "peer_fields", ev->peer_fields, ev->n_peer_fields);
  put_fields(&l, "peer_trailers", ev->peer_trailers, ev->n_peer_trailers);
  put(&l, ",\"attrs\":[");
  for (uint64_t i = 0; i < ev->n_attrs; i++) {
    put(&l, "%s", i ? "," : "");
    if (pxgg_is_absent(ev->attrs[i])) {
      put(&l, "null");
    } else {
      put(&l, "\"");
      put_str(&l, ev->attrs[i]);
      put(&l, "\"");
    }
  }
  put(&l, "]");
  finish(&l, s);
}

static void record_status(const char *call, const script *s, uint32_t phase, int32_t status) {
  line l;
  begin(&l, call, s);
  put(&l, ",\"phase\":\"%s\",\"status\":%d", phase_names[phase], status);
  finish(&l, s);
}

/* ---- running steps ---------------------------------------------------------------------------------------------- */

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

static _Thread_local result r;

static uint64_t number(pxg_str s) {
  uint64_t n = 0;
  pxgg_number(s, UINT64_MAX, &n);
  return n;
}

static pxg_op *op(pxg_result *out, uint16_t kind) {
  pxg_op *o = &r.ops[out->n_ops < MAX_OPS ? out->n_ops : MAX_OPS - 1];
  memset(o, 0, sizeof *o);
  o->kind = kind;
  out->ops = r.ops;
  if (out->n_ops < MAX_OPS) out->n_ops++;
  return o;
}

static uint32_t direction(pxg_str word) { return PXGG_EQ(word, "response") ? PXG_DIR_RESPONSE : PXG_DIR_REQUEST; }

static uint32_t body_mode(pxg_str word) {
  if (PXGG_EQ(word, "stream")) return PXG_BODY_STREAM;
  if (PXGG_EQ(word, "whole")) return PXG_BODY_WHOLE;
  if (PXGG_EQ(word, "observe")) return PXG_BODY_OBSERVE;
  return PXG_BODY_SKIP;
}

static void sleep_ms(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&t, &t) != 0 && errno == EINTR) {}
}

static int pend(const script *s, const step *at, const pxg_event *ev, uint32_t nth, pxg_str how);
static void release_all(pxg_str key);

static void garbage(pxg_result *out, uint64_t which) {
  static const pxg_field nothing = {{NULL, 7, 0}, {NULL, 7, 0}};
  pxg_op *o = op(out, PXG_OP_HEADER_SET);
  o->key = PXGG_LIT("x-garbage");
  o->val = pxgg_borrowed(PXGG_LIT("1"));
  switch (which) {
  case 0: o->kind = 99, o->flags = PXG_OPF_MUST; break;
  case 1: o->key = pxgg_str(NULL, 0), o->key.len = 12; break;
  case 2: out->n_ops = UINT64_MAX; break;
  case 3: o->key = PXGG_LIT("bad name\r\n"); break;
  case 4: o->val = pxgg_borrowed(PXGG_LIT("a\r\nx-smuggled: 1")); break;
  case 5: o->kind = PXG_OP_PASS, o->u0 = UINT64_MAX, o->key = pxgg_str(NULL, 0), o->val = pxgg_borrowed(o->key); break;
  case 6: o->kind = PXG_OP_SET_AT, o->u0 = 4096, o->key = pxgg_str(NULL, 0); break;
  case 7: out->action = PXG_ACT_REPLY; break; /* and no reply */
  case 8:
    r.reply.size = sizeof r.reply, r.reply.status = 99999, out->reply = &r.reply, out->action = PXG_ACT_REPLY;
    break;
  case 9: out->action = 4711; break;
  case 10:
    r.reply.size = sizeof r.reply, r.reply.status = 200, r.reply.fields = &nothing, r.reply.n_fields = 1;
    out->reply = &r.reply, out->action = PXG_ACT_REPLY;
    break;
  case 11: out->size = 8; break;
  default: out->reserved0 = 1; break;
  }
}

/* Text with `$N` replaced by the event's attribute N. */
static pxg_str value_of(pxg_str s, const pxg_event *ev) {
  uint64_t i;
  if (ev == NULL || s.len < 2 || s.ptr[0] != '$') return s;
  if (!pxgg_number(pxgg_str(s.ptr + 1, s.len - 1), MAX_ATTRS, &i)) return s;
  pxg_str a = pxgg_attr(ev, i);
  if (pxgg_is_absent(a) || a.len > sizeof r.values - r.used) return PXGG_LIT("(absent)");
  memcpy(r.values + r.used, a.ptr, a.len);
  pxg_str copy = pxgg_str(r.values + r.used, a.len);
  r.used += a.len;
  return copy;
}

/* Runs the steps of a phase from `at` on, for a view of `len` bytes. `ev` is null in a completion. Answers the step after which it pends. */
static const step *run(const script *s, const step *at, uint32_t phase, uint32_t flags, uint32_t nth, uint64_t len,
                       const pxg_event *ev, pxg_result *out) {
  out->action = PXG_ACT_CONTINUE;
  memset(&r.reply, 0, sizeof r.reply);
  r.used = 0;
  r.pieces = 0;
  for (; at < s->steps + s->n_steps; at++) {
    if (at->phase != phase) continue;
    if (at->nth == UINT32_MAX ? !(flags & PXG_EV_BODY_END) : at->nth != 0 && at->nth != nth) continue;
    pxg_str rest = at->text, word = pxgg_next_word(&rest), what = word;
    uint32_t target = PXG_TARGET_HEADERS;
    if (PXGG_EQ(word, "tset") || PXGG_EQ(word, "tadd") || PXGG_EQ(word, "tdelete")) {
      target = PXG_TARGET_TRAILERS;
      word = pxgg_str(word.ptr + 1, word.len - 1);
    }
    if (PXGG_EQ(word, "set") || PXGG_EQ(word, "add") || PXGG_EQ(word, "delete")) {
      pxg_op *o = op(out, PXGG_EQ(word, "set")   ? PXG_OP_HEADER_SET
                          : PXGG_EQ(word, "add") ? PXG_OP_HEADER_ADD
                                                 : PXG_OP_HEADER_DELETE);
      o->target = target;
      o->key = pxgg_next_word(&rest);
      if (!PXGG_EQ(word, "delete")) o->val = pxgg_borrowed(value_of(rest, ev));
    } else if (PXGG_EQ(what, "set_at") || PXGG_EQ(what, "delete_at")) {
      pxg_op *o = op(out, PXGG_EQ(what, "set_at") ? PXG_OP_SET_AT : PXG_OP_DELETE_AT);
      o->u0 = number(pxgg_next_word(&rest));
      if (PXGG_EQ(what, "set_at")) o->val = pxgg_borrowed(rest);
    } else if (PXGG_EQ(what, "pass") || PXGG_EQ(what, "drop")) {
      pxg_op *o = op(out, PXGG_EQ(what, "pass") ? PXG_OP_PASS : PXG_OP_DROP);
      o->u0 = PXGG_EQ(rest, "all") ? len : number(rest);
    } else if (PXGG_EQ(what, "inject")) {
      op(out, PXG_OP_INJECT)->val = pxgg_borrowed(rest);
    } else if (PXGG_EQ(what, "meta")) {
      pxg_op *o = op(out, PXG_OP_METADATA_SET);
      o->key = pxgg_next_word(&rest);
      o->val = pxgg_borrowed(rest);
    } else if (PXGG_EQ(what, "metric")) {
      pxg_op *o = op(out, PXG_OP_METRIC);
      o->target = s->config->counter;
      o->u0 = number(rest);
    } else if (PXGG_EQ(what, "cluster") || PXGG_EQ(what, "recompute")) {
      pxg_op *o = op(out, PXG_OP_ROUTE);
      o->key = what;
      if (PXGG_EQ(what, "cluster")) o->val = pxgg_borrowed(rest);
    } else if (PXGG_EQ(what, "mode")) {
      uint32_t d = direction(pxgg_next_word(&rest));
      out->body_mode[d] = body_mode(rest);
    } else if (PXGG_EQ(what, "resizes")) {
      out->flags |= PXG_RES_RESIZES;
    } else if (PXGG_EQ(what, "more")) {
      out->more_bytes = number(rest);
      out->action = PXG_ACT_MORE;
    } else if (PXGG_EQ(what, "rset") || PXGG_EQ(what, "rtrailer")) {
      int trailer = PXGG_EQ(what, "rtrailer");
      pxg_field *f = trailer ? &r.rtrailers[r.reply.n_trailers++] : &r.rfields[r.reply.n_fields++];
      f->name = pxgg_next_word(&rest);
      f->value = rest;
    } else if (PXGG_EQ(what, "grpc")) {
      r.reply.flags |= PXG_REPLY_GRPC;
      r.reply.grpc_status = (int32_t)number(rest);
    } else if (PXGG_EQ(what, "reply") || PXGG_EQ(what, "stream")) {
      r.reply.size = sizeof r.reply;
      r.reply.status = (uint32_t)number(pxgg_next_word(&rest));
      r.reply.fields = r.rfields;
      r.reply.trailers = r.rtrailers;
      r.reply.details = PXGG_LIT("script: a reply");
      if (PXGG_EQ(what, "reply") && rest.len) {
        r.rbody = pxgg_borrowed(rest);
        r.reply.body = &r.rbody;
        r.reply.n_body = 1;
      } else if (PXGG_EQ(what, "stream")) {
        r.reply.flags |= PXG_REPLY_OPEN;
        r.pieces = number(pxgg_next_word(&rest));
        r.piece_size = number(rest);
      }
      out->reply = &r.reply;
      out->action = PXG_ACT_REPLY;
    } else if (PXGG_EQ(what, "reset")) {
      out->action = PXG_ACT_RESET;
    } else if (PXGG_EQ(what, "error")) {
      out->error = rest;
      out->action = PXG_ACT_ERROR;
    } else if (PXGG_EQ(what, "unset")) {
      out->action = PXG_ACT_UNSET;
    } else if (PXGG_EQ(what, "garbage")) {
      garbage(out, number(rest));
    } else if (PXGG_EQ(what, "exhaust")) {
      uint64_t got = 0;
      while (host->scratch_more(host->ctx, 4096) != NULL) got += 4096;
      int n = snprintf(r.values, sizeof r.values, "%llu", (unsigned long long)got);
      pxg_op *o = op(out, PXG_OP_HEADER_SET);
      o->key = PXGG_LIT("x-scratch");
      o->val = pxgg_borrowed(pxgg_str(r.values, (size_t)n));
    } else if (PXGG_EQ(what, "log")) {
      uint32_t level = (uint32_t)number(pxgg_next_word(&rest));
      pxgg_log(host, level, rest);
    } else if (PXGG_EQ(what, "block")) {
      sleep_ms((long)number(rest));
    } else if (PXGG_EQ(what, "wake")) {
      if (ev) record_status("wake", s, phase, host->wake(host->ctx, ev->stream, number(rest)));
    } else if (PXGG_EQ(what, "release")) {
      release_all(rest);
    } else if (PXGG_EQ(what, "pend")) {
      return at;
    } else {
      out->error = at->text;
      out->action = PXG_ACT_ERROR;
    }
  }
  return NULL;
}

static int32_t complete(const pending *p) {
  pxg_result out;
  memset(&out, 0, sizeof out);
  out.size = sizeof out;
  run(p->script, p->rest, p->phase, p->flags, p->nth, p->len, NULL, &out);
  int32_t status = host->complete(host->ctx, p->token, &out);
  record_status("complete", p->script, p->phase, status);
  return status;
}

static void release_all(pxg_str key) {
  pthread_mutex_lock(&lock);
  pending *found = NULL;
  for (pending **at = &waiting; *at;) {
    pending *p = *at;
    if (pxgg_eq(p->key, key)) {
      *at = p->next;
      p->next = found;
      found = p;
    } else {
      at = &p->next;
    }
  }
  pthread_mutex_unlock(&lock);
  /* The steps of what is completed use this thread's memory, as those of the caller do. */
  result kept = r;
  while (found) {
    pending *p = found;
    found = p->next;
    complete(p);
    free(p);
  }
  r = kept;
}

static void *later(void *arg) {
  pending *p = arg;
  sleep_ms(p->wait_ms);
  complete(p);
  free(p);
  return NULL;
}

static void detached(void *(*function)(void *), void *arg) {
  pthread_t t;
  pthread_attr_t a;
  pthread_attr_init(&a);
  pthread_attr_setstacksize(&a, 256 << 10);
  pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
  if (pthread_create(&t, &a, function, arg) != 0) abort();
  pthread_attr_destroy(&a);
}

typedef struct watch {
  pxg_str key;
  char path[4096];
} watch;

static void *watcher(void *arg) {
  watch *w = arg;
  while (access(w->path, F_OK) != 0) sleep_ms(5);
  release_all(w->key);
  free(w);
  return NULL;
}

static int pend(const script *s, const step *at, const pxg_event *ev, uint32_t nth, pxg_str how) {
  pxg_str word = pxgg_next_word(&how);
  if (PXGG_EQ(word, "forever")) return 0;
  pending *p = calloc(1, sizeof *p);
  *p = (pending){.script = s,
                 .rest = at + 1,
                 .phase = ev->phase,
                 .nth = nth,
                 .flags = ev->flags,
                 .token = ev->token,
                 .len = pxgg_body_len(ev),
                 .key = how};
  if (PXGG_EQ(word, "until")) {
    pthread_mutex_lock(&lock);
    p->next = waiting;
    waiting = p;
    pthread_mutex_unlock(&lock);
  } else if (PXGG_EQ(word, "early")) {
    complete(p);
    free(p);
  } else {
    p->wait_ms = (long)number(word);
    detached(later, p);
  }
  return 1;
}

/* ---- streamed replies ------------------------------------------------------------------------------------------- */

typedef struct writer {
  struct writer *next;
  const script *script;
  uint64_t stream, pieces, size;
  int writable, gone;
} writer;

static writer *writers;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

/* The stream's reply has room again, or the stream has ended. */
static void tell_writer(uint64_t stream, int gone) {
  pthread_mutex_lock(&lock);
  for (writer *w = writers; w; w = w->next) {
    if (w->stream != stream) continue;
    w->writable = 1;
    w->gone |= gone;
  }
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}

static void await_room(writer *w) {
  pthread_mutex_lock(&lock);
  while (!w->writable && !w->gone) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
}

static void forget(writer *w) {
  pthread_mutex_lock(&lock);
  for (writer **at = &writers; *at; at = &(*at)->next) {
    if (*at == w) {
      *at = w->next;
      break;
    }
  }
  pthread_mutex_unlock(&lock);
  free(w);
}

static void release_piece(uint64_t ctx) { free((void *)(uintptr_t)ctx); }

/* Writes the pieces at the pace of the client: after FULL it waits for WRITABLE. */
static void *write_reply(void *arg) {
  writer *w = arg;
  uint64_t full = 0, sent = 0;
  int32_t status = PXG_OK;
  for (uint64_t i = 0; i < w->pieces && status >= 0; i++) {
    char *piece = malloc(w->size);
    memset(piece, 'a' + (int)(i % 26), w->size);
    pxg_op o;
    memset(&o, 0, sizeof o);
    o.kind = PXG_OP_BODY_WRITE;
    o.flags = i + 1 == w->pieces ? PXG_OPF_END : 0;
    o.val = pxgg_owned(pxgg_str(piece, w->size), release_piece, (uint64_t)(uintptr_t)piece);
    pxg_result out;
    memset(&out, 0, sizeof out);
    out.size = sizeof out;
    out.action = PXG_ACT_CONTINUE;
    out.ops = &o;
    out.n_ops = 1;
    pthread_mutex_lock(&lock);
    w->writable = 0;
    pthread_mutex_unlock(&lock);
    status = host->apply(host->ctx, w->stream, &out);
    if (status >= 0) sent += w->size;
    if (status == PXG_FULL) {
      full++;
      await_room(w);
    }
  }
  line l;
  begin(&l, "written", w->script);
  put(&l, ",\"status\":%d,\"full\":%llu,\"sent\":%llu", status, (unsigned long long)full, (unsigned long long)sent);
  finish(&l, w->script);
  forget(w);
  return NULL;
}

/* ---- hooks ------------------------------------------------------------------------------------------------------ */

static const script *find(const config *c, pxg_str name) {
  for (const script *s = c->scripts; s; s = s->next)
    if (pxgg_eq(s->name, name)) return s;
  return NULL;
}

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  const config *c = (const config *)(uintptr_t)ev->config;
  stream *st = (stream *)(uintptr_t)ev->user;
  out->action = PXG_ACT_CONTINUE;
  if (st == NULL) {
    pxg_str name = pxgg_header(ev, PXGG_LIT("x-case"));
    const script *s = ev->phase == PXG_PHASE_REQUEST_HEADERS && !pxgg_is_absent(name) ? find(c, name) : NULL;
    if (s == NULL) s = find(c, PXGG_LIT("*"));
    if (s == NULL) return;
    st = calloc(1, sizeof *st);
    st->script = s;
    out->user = (uint64_t)(uintptr_t)st;
  }
  const script *s = st->script;
  uint32_t nth = ++st->calls[ev->phase];
  if (ev->flags & PXG_EV_WRITABLE) tell_writer(ev->stream, 0);
  record_event(s, ev, nth);
  const step *at = run(s, s->steps, ev->phase, ev->flags, nth, pxgg_body_len(ev), ev, out);
  if (at) {
    pxg_str rest = at->text;
    pxgg_next_word(&rest);
    uint64_t user = out->user;
    pend(s, at, ev, nth, rest);
    out->user = user;
    out->action = PXG_ACT_PENDING;
    out->ops = NULL;
    out->n_ops = 0;
    out->reply = NULL;
  } else if (out->action == PXG_ACT_REPLY && r.pieces) {
    writer *w = calloc(1, sizeof *w);
    w->script = s;
    w->stream = ev->stream;
    w->pieces = r.pieces;
    w->size = r.piece_size;
    pthread_mutex_lock(&lock);
    w->next = writers;
    writers = w;
    pthread_mutex_unlock(&lock);
    detached(write_reply, w);
  }
}

static void on_cancel(uint64_t ctx, uint64_t cfg, uint64_t user, uint64_t stream_id, uint64_t token, uint32_t worker) {
  (void)ctx, (void)cfg, (void)stream_id, (void)token, (void)worker;
  stream *st = (stream *)(uintptr_t)user;
  if (st) record_status("cancel", st->script, 0, 0);
}

static void on_stream_end(uint64_t ctx, uint64_t cfg, uint64_t user, uint64_t stream_id, uint32_t worker) {
  (void)ctx, (void)cfg, (void)worker;
  stream *st = (stream *)(uintptr_t)user;
  tell_writer(stream_id, 1);
  record_status("end", st->script, 0, 0);
  free(st);
}

static void on_config_drop(uint64_t ctx, uint64_t cfg) {
  (void)ctx;
  /* Completions that come too late still read the scripts: they stay. */
  config *c = (config *)(uintptr_t)cfg;
  script own = {.name = PXGG_LIT("-"), .config = c};
  record_status("drop", &own, 0, 0);
}

static pxg_str keep(pxg_str s) {
  uint8_t *copy = malloc(s.len ? s.len : 1);
  if (s.len) memcpy(copy, s.ptr, s.len);
  return pxgg_str(copy, s.len);
}

static int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  (void)ctx;
  config *c = calloc(1, sizeof *c);
  pxg_str rest = keep(in->bytes), text;
  uint32_t n = 0;
  script *s = NULL;
  c->name = keep(in->name);
  c->record = -1;
  out->config = (uint64_t)(uintptr_t)c;
  out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
  while (pxgg_next_line(&rest, &text, &n)) {
    pxg_str whole = text, word = pxgg_next_word(&text);
    uint32_t phase = 0;
    for (uint32_t i = 1; i < PHASES; i++)
      if (pxgg_eq(word, pxgg_str(phase_names[i], strlen(phase_names[i])))) phase = i;
    if (phase && s) {
      step *st = &s->steps[s->n_steps];
      if (s->n_steps++ == MAX_STEPS) return pxgg_config_error(out, PXG_E_LIMIT, "line %u: too many steps", n);
      st->phase = phase;
      if (text.len && text.ptr[0] == '@') {
        pxg_str at = pxgg_next_word(&text);
        at = pxgg_str(at.ptr + 1, at.len - 1);
        st->nth = PXGG_EQ(at, "end") ? UINT32_MAX : (uint32_t)number(at);
      }
      st->text = text;
      out->subscribe |= PXG_PHASE_BIT(phase);
      pxg_str copy = text;
      pxg_str what = pxgg_next_word(&copy);
      if (PXGG_EQ(what, "pend")) out->pend_phases |= PXG_PHASE_BIT(phase);
      if (PXGG_EQ(what, "stream")) out->subscribe |= PXG_PHASE_BIT(PXG_PHASE_WAKE);
    } else if (PXGG_EQ(word, "case")) {
      s = calloc(1, sizeof *s);
      s->steps = calloc(MAX_STEPS, sizeof *s->steps);
      s->name = text;
      s->config = c;
      s->next = c->scripts;
      c->scripts = s;
    } else if (PXGG_EQ(word, "phases")) {
      while (text.len) {
        pxg_str p = pxgg_next_word(&text);
        for (uint32_t i = 1; i < PHASES; i++)
          if (pxgg_eq(p, pxgg_str(phase_names[i], strlen(phase_names[i])))) out->subscribe |= PXG_PHASE_BIT(i);
      }
    } else if (PXGG_EQ(word, "record")) {
      char path[4096];
      snprintf(path, sizeof path, "%.*s", (int)text.len, (const char *)text.ptr);
      c->record = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
      if (c->record < 0) return pxgg_config_error(out, PXG_E_ARG, "line %u: %s: %s", n, path, strerror(errno));
    } else if (PXGG_EQ(word, "refuse")) {
      return pxgg_config_error(out, PXG_E_ARG, "%.*s", (int)text.len, (const char *)text.ptr);
    } else if (PXGG_EQ(word, "watch")) {
      if (in->flags & PXG_CFG_IN_VALIDATE_ONLY) continue;
      watch *w = calloc(1, sizeof *w);
      w->key = pxgg_next_word(&text);
      snprintf(w->path, sizeof w->path, "%.*s", (int)text.len, (const char *)text.ptr);
      detached(watcher, w);
    } else if (PXGG_EQ(word, "features")) {
      line l = {.n = 0};
      put(&l, "{\"call\":\"features\",\"case\":\"-\",\"host\":%llu,\"config\":%llu}\n",
          (unsigned long long)host->features[0], (unsigned long long)in->features[0]);
      if (c->record >= 0) (void)!write(c->record, l.text, l.n);
    } else if (PXGG_EQ(word, "sees")) {
      if (!in->parent) return pxgg_config_error(out, PXG_E_ARG, "line %u: there is no parent", n);
    } else if (PXGG_EQ(word, "attr") && c->n_attrs < MAX_ATTRS) {
      c->attrs[c->n_attrs++] = text;
    } else if (PXGG_EQ(word, "counter")) {
      if (metrics == NULL || metrics->define(host->ctx, PXG_METRIC_COUNTER, &text, NULL, 0, &c->counter) != PXG_OK)
        return pxgg_config_error(out, PXG_E_NOTFOUND, "line %u: the host has no metrics", n);
    } else if (PXGG_EQ(word, "flags")) {
      while (text.len) {
        pxg_str f = pxgg_next_word(&text);
        out->flags |= PXGG_EQ(f, "duplex")             ? PXG_CFG_DUPLEX
                      : PXGG_EQ(f, "resizes_request")  ? PXG_CFG_RESIZES_REQUEST
                      : PXGG_EQ(f, "resizes_response") ? PXG_CFG_RESIZES_RESPONSE
                                                       : PXG_CFG_WANT_PEER_FIELDS;
      }
    } else if (PXGG_EQ(word, "max_body")) {
      uint32_t d = direction(pxgg_next_word(&text));
      out->max_body[d] = number(text);
    } else if (PXGG_EQ(word, "mode")) {
      uint32_t d = direction(pxgg_next_word(&text));
      out->body_mode[d] = body_mode(text);
    } else {
      return pxgg_config_error(out, PXG_E_ARG, "line %u: found \"%.*s\", which is no line of a script", n,
                               (int)whole.len, (const char *)whole.ptr);
    }
  }
  pxg_attr_want *want = (pxg_attr_want *)(void *)out->scratch;
  for (uint32_t i = 0; i < c->n_attrs; i++) {
    memset(&want[i], 0, sizeof want[i]);
    want[i].name = c->attrs[i];
    want[i].phases = 0x1fe;
  }
  out->attrs = c->n_attrs ? want : NULL;
  out->n_attrs = c->n_attrs;
  return PXG_OK;
}

int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {
  static const pxg_str filters[] = {{(const uint8_t *)"script", 6, 0}};
  int32_t status = pxgg_init(h, out, PXGG_LIT("script"), PXGG_LIT("1"));
  if (status != PXG_OK) return status;
  host = h;
  metrics = h->get_ext ? h->get_ext(h->ctx, (const uint8_t *)PXG_METRICS_V1_ID, sizeof PXG_METRICS_V1_ID - 1) : NULL;
  out->filters = filters;
  out->n_filters = 1;
  out->on_config_new = on_config_new;
  out->on_config_drop = on_config_drop;
  out->on_event = on_event;
  out->on_cancel = on_cancel;
  out->on_stream_end = on_stream_end;
  return PXG_OK;
}
