/* SPDX-License-Identifier: Apache-2.0 */

/* A driver without a network, and guests that are tables of functions: what a stream is fed with, what guests saw and
 * what left are texts to compare. */

#ifndef PXG_TEST_STREAM_H
#define PXG_TEST_STREAM_H

#include <stdarg.h>

#include "pxg_engine.h"
#include "test.h"

enum { REQ, RSP, MOST = 4 };

/* ---- messages ---------------------------------------------------------------------------------------------------- */

typedef struct entry {
  char name[48], value[96];
  bool gone;
} entry;

typedef struct list {
  entry at[64];
  size_t n;
  pxg_field view[64];
} list;

static list lists[2][2];
static int fail_after;     /* So many functions of the driver that may fail do not, the next one does; below 0: none. */
static bool fail_for_good; /* All behind it do, too. */
static int n_failed;
static const char *attributes[4]; /* By the driver's number; null: ABSENT. */

static pxg_str str(const char *s) { return (pxg_str){(const uint8_t *)s, (uint32_t)strlen(s), 0}; }

static pxg_edit put_entry(list *l, const pxg_str *name, const pxg_str *value) {
  if (l->n == sizeof l->at / sizeof *l->at) abort();
  entry *e = &l->at[l->n++];
  snprintf(e->name, sizeof e->name, "%.*s", (int)name->len, name->ptr);
  snprintf(e->value, sizeof e->value, "%.*s", (int)value->len, value->ptr);
  e->gone = false;
  return PXG_EDIT_DONE;
}

static void field(int d, bool t, const char *name, const char *value) {
  pxg_str n = str(name), v = str(value);
  put_entry(&lists[d][t], &n, &v);
}

static bool no_memory(void) {
  if (fail_after < 0) return false;
  bool fails = !fail_after;
  n_failed += fails;
  if (!fails || !fail_for_good) fail_after--;
  return fails;
}

static void tidy(list *l) {
  size_t n = 0;
  for (size_t i = 0; i < l->n; i++)
    if (!l->at[i].gone) l->at[n++] = l->at[i];
  l->n = n;
}

static bool op_commit(void *data, int d, bool t) {
  (void)data;
  tidy(&lists[d][t]);
  return !no_memory();
}

static bool op_view(void *data, int d, bool t, const pxg_field **at, size_t *n) {
  list *l = &lists[d][t];
  if (no_memory()) return false;
  tidy(l);
  (void)data;
  for (size_t i = 0; i < l->n; i++) l->view[i] = (pxg_field){str(l->at[i].name), str(l->at[i].value)};
  *at = l->view;
  *n = l->n;
  return true;
}

static pxg_edit op_add(void *data, int d, bool t, const pxg_str *name, const pxg_str *value) {
  (void)data;
  return no_memory() ? PXG_EDIT_NO_MEMORY : put_entry(&lists[d][t], name, value);
}

static void remove_entries(list *l, const pxg_str *name) {
  for (size_t i = 0; i < l->n; i++)
    if (strlen(l->at[i].name) == name->len && !memcmp(l->at[i].name, name->ptr, name->len)) l->at[i].gone = true;
}

static pxg_edit op_remove(void *data, int d, bool t, const pxg_str *name) {
  (void)data;
  remove_entries(&lists[d][t], name);
  return no_memory() ? PXG_EDIT_NO_MEMORY : PXG_EDIT_DONE;
}

static pxg_edit op_set(void *data, int d, bool t, const pxg_str *name, const pxg_str *value) {
  remove_entries(&lists[d][t], name);
  return op_add(data, d, t, name, value);
}

static pxg_edit op_set_at(void *data, int d, bool t, size_t i, const pxg_str *value) {
  (void)data;
  snprintf(lists[d][t].at[i].value, sizeof lists[d][t].at[i].value, "%.*s", (int)value->len, value->ptr);
  return no_memory() ? PXG_EDIT_NO_MEMORY : PXG_EDIT_DONE;
}

static pxg_edit op_remove_at(void *data, int d, bool t, size_t i) {
  (void)data;
  lists[d][t].at[i].gone = true;
  return no_memory() ? PXG_EDIT_NO_MEMORY : PXG_EDIT_DONE;
}

static bool op_length(void *data, int d, int64_t length) {
  char text[24];
  pxg_str name = str("content-length"), value;
  (void)data;
  snprintf(text, sizeof text, "%lld", (long long)length);
  value = str(text);
  remove_entries(&lists[d][0], &name);
  if (length >= 0) put_entry(&lists[d][0], &name, &value);
  return !no_memory();
}

static bool op_replace(void *data, uint32_t status, const pxg_field *f, size_t n) {
  char text[8];
  (void)data;
  snprintf(text, sizeof text, "%u", status % 1000);
  lists[RSP][0].n = lists[RSP][1].n = 0;
  field(RSP, false, ":status", text);
  for (size_t i = 0; i < n; i++) put_entry(&lists[RSP][0], &f[i].name, &f[i].value);
  return !no_memory();
}

static bool op_trailers(void *data, const pxg_field *f, size_t n) {
  (void)data;
  for (size_t i = 0; i < n; i++) put_entry(&lists[RSP][1], &f[i].name, &f[i].value);
  return !no_memory();
}

/* Its memory is the driver's for one event only. */
static bool op_attribute(void *data, int32_t id, uint32_t phase, pxg_str *value) {
  static char *lent[4];
  (void)data, (void)phase;
  free(lent[id]);
  lent[id] = attributes[id] ? malloc(strlen(attributes[id]) + 1) : NULL;
  if (lent[id]) *value = str(strcpy(lent[id], attributes[id]));
  return lent[id];
}

static bool op_cluster(void *data, const uint8_t *name, size_t len) {
  (void)data;
  return len == 4 && !memcmp(name, "blue", 4);
}

static const pxg_stream_ops stream_ops = {.view = op_view,
                                          .set = op_set,
                                          .add = op_add,
                                          .remove = op_remove,
                                          .set_at = op_set_at,
                                          .remove_at = op_remove_at,
                                          .commit = op_commit,
                                          .length = op_length,
                                          .replace = op_replace,
                                          .trailers = op_trailers,
                                          .attribute = op_attribute,
                                          .cluster = op_cluster};

/* "name=value,..." of a list. */
static inline const char *fields_of(int d, bool t) {
  static char text[4096];
  size_t n = 0;
  tidy(&lists[d][t]);
  text[0] = 0;
  for (size_t i = 0; i < lists[d][t].n; i++)
    n += (size_t)snprintf(text + n, sizeof text - n, "%s%s=%s", i ? "," : "", lists[d][t].at[i].name,
                          lists[d][t].at[i].value);
  return text;
}

/* ---- guests ------------------------------------------------------------------------------------------------------ */

typedef void (*script)(const pxg_event *ev, pxg_result *out);

static script on[MOST + 1][PXG_PHASE_WAKE + 1]; /* By configuration and phase; null: CONTINUE. */
static char trace[8192];
static size_t n_trace;
static uint64_t tokens[MOST + 1], handles[MOST + 1];
static uint32_t open_with; /* Flags of the next streams. */
static _Atomic int released;

static void note(const char *format, ...) {
  va_list args;
  va_start(args, format);
  n_trace += (size_t)vsnprintf(trace + n_trace, sizeof trace - n_trace, format, args);
  va_end(args);
}

static inline void release(uint64_t ctx) { released += (int)ctx; }

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  static const char *const names[] = {"", "rh", "rb", "rt", "sh", "sb", "st", "log", "wake"};
  static const char letters[] = "EBWhO.LU....RP"; /* Of flags 1, 2, 4, ...; a dot is not told. */
  (void)ctx;
  note("%d%s", (int)ev->config, names[ev->phase]);
  for (int i = 0; letters[i] && ev->phase != PXG_PHASE_LOG; i++) {
    bool resumed = i == 12;
    if ((resumed ? ev->flags & PXG_EV_RESUMED : i < 12 && letters[i] != '.' && ev->flags >> i & 1))
      note("%c", letters[i]);
  }
  if (ev->phase == PXG_PHASE_REQUEST_BODY || ev->phase == PXG_PHASE_RESPONSE_BODY) {
    note("@%d=", (int)ev->body_offset);
    for (uint64_t i = 0; i < ev->n_chunks; i++) note("%.*s", (int)ev->chunks[i].len, ev->chunks[i].ptr);
  }
  if (ev->phase == PXG_PHASE_LOG || ev->phase == PXG_PHASE_WAKE) note("%x", (unsigned)ev->arg);
  note(" ");
  tokens[ev->config] = ev->token;
  handles[ev->config] = ev->stream;
  out->user = ev->config;
  out->action = PXG_ACT_CONTINUE;
  if (on[ev->config][ev->phase]) on[ev->config][ev->phase](ev, out);
}

static void on_cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t worker) {
  (void)ctx, (void)user, (void)worker, (void)stream, (void)token;
  note("%dcancel ", (int)config);
}

static void on_stream_end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)user, (void)worker, (void)stream;
  note("%dend ", (int)config);
}

static void on_batch_end(uint64_t ctx, uint32_t worker) {
  (void)ctx, (void)worker;
  note("batch ");
}

static pxg_guest_lib lib;
static pxg_counters counters;
static pxg_config configs[MOST + 1];
static _Atomic uint32_t pending_places[2];
static pxg_worker *loop;
static pxg_stream *s;
static char out[8192], body[2][4096];
static size_t n_out, n_body[2];
static _Atomic int bells;

static void bell(void *data) {
  (void)data;
  bells++;
}

/* The host and its one worker. */
static void start(void) {
  pxg_error why = {0};
  pxg_driver driver = test_driver(NULL);
  driver.complete = pxg_complete;
  driver.apply = pxg_apply;
  driver.wake = pxg_wake;
  if (!pxg_host_start(&driver, &why)) {
    fprintf(stderr, "%s\n", why.text);
    exit(2);
  }
  loop = pxg_worker_new(0, bell, NULL);
}

#define ALL_FEATURES (~(1ull << PXG_F_L4))
#define ALL_HTTP 0x1feull
#define PENDS 0x7eull

/* Configurations 1 to MOST: all phases, all may pend, no bodies. */
static void reset_world(void) {
  lib = (pxg_guest_lib){
      .ctx = 77,
      .name = (char *)"test",
      .usable = true,
      .table = {
          .on_event = on_event, .on_cancel = on_cancel, .on_stream_end = on_stream_end, .on_batch_end = on_batch_end}};
  memset(on, 0, sizeof on);
  memset(lists, 0, sizeof lists);
  memset(&counters, 0, sizeof counters);
  memset(configs, 0, sizeof configs);
  for (int i = 1; i <= MOST; i++) {
    pxg_config *c = &configs[i];
    static const char *const names[] = {"", "one", "two", "three", "four"};
    c->refs = 1000;
    c->lib = &lib;
    c->filter = "f";
    c->instance = names[i];
    c->value = (uint64_t)i;
    c->features[0] = ALL_FEATURES;
    c->subscribe = ALL_HTTP;
    c->pend_phases = PENDS;
    c->body_mode[0] = c->body_mode[1] = PXG_BODY_SKIP;
    c->max_body[0] = c->max_body[1] = 16;
    c->counters = &counters;
    c->pending = pending_places;
    pxg_policy_default(&c->policy);
    c->policy.fail_open = false;
    c->policy.fail_status = 500;
    c->policy.pend_default_ns = 1000;
    c->policy.pend_limit_ns = 5000;
    c->policy.hold_limit_ns = 8000;
    c->policy.hold_time_ns = 100;
    c->policy.max_pending = 2;
  }
  field(REQ, false, ":method", "GET");
  field(REQ, false, ":path", "/");
  field(REQ, false, "x-a", "1");
  field(REQ, false, "x-a", "2");
  field(RSP, false, ":status", "200");
  n_trace = n_out = n_body[0] = n_body[1] = 0;
  trace[0] = out[0] = body[0][0] = body[1][0] = 0;
  released = bells = 0;
  fail_after = -1;
  memset(attributes, 0, sizeof attributes);
  open_with = PXG_STREAM_RECEIVES_TRAILERS | PXG_STREAM_UPSTREAM_TRAILERS;
  if (loop) pxg_worker_clock(loop, 1000);
}

static void drain(void) {
  static const char *const kinds[] = {"RESET", "head", "bytes", "end"};
  pxg_out o;
  while (pxg_take(s, &o)) {
    if (o.kind == PXG_OUT_BYTES) {
      if (o.slice.len) memcpy(body[o.direction] + n_body[o.direction], o.slice.ptr, o.slice.len);
      n_body[o.direction] += o.slice.len;
      body[o.direction][n_body[o.direction]] = 0;
      pxg_slice_drop(&o.slice);
      if (o.flags & PXG_OUT_FLUSH) n_out += (size_t)snprintf(out + n_out, sizeof out - n_out, "flush ");
      continue;
    }
    n_out += (size_t)snprintf(out + n_out, sizeof out - n_out, "%s%s%s%s%s%s%s ",
                              o.kind == PXG_OUT_RESET ? ""
                              : o.direction           ? "s"
                                                      : "r",
                              kinds[o.kind], o.flags & PXG_OUT_ENDS ? "." : "", o.flags & PXG_OUT_LOCAL ? "!" : "",
                              o.flags & PXG_OUT_TRAILERS ? "+" : "", o.flags & PXG_OUT_OPEN ? "~" : "",
                              o.flags & PXG_OUT_FLUSH ? "^" : "");
  }
  pxg_stream_keep(s);
}

static void begin(int n) {
  pxg_config *chain[MOST];
  for (int i = 0; i < n; i++) chain[i] = &configs[i + 1];
  s = pxg_stream_open(loop, chain, (size_t)n, &stream_ops, NULL, 1, open_with);
}

static void head(int d, bool ends) {
  pxg_stream_head(s, d, ends ? PXG_HEAD_ENDS : 0);
  drain();
}

/* Lent memory: it is gone after the call. */
static inline void bytes(int d, const char *text) {
  char *lent = malloc(strlen(text));
  memcpy(lent, text, strlen(text));
  pxg_slice one = {(uint8_t *)lent, strlen(text), NULL, NULL, false};
  pxg_stream_bytes(s, d, &one, 1);
  drain();
  memset(lent, '?', strlen(text));
  free(lent);
}

static inline void end(int d, bool trailers) {
  pxg_stream_end(s, d, trailers);
  drain();
}

static inline void mail(void) {
  while (pxg_worker_next(loop)) drain();
}

static void done(uint32_t why) {
  pxg_stream_finish(s, why);
  pxg_stream_free(s);
  CHECK(!pending_places[0], "%u places are counted as pending", pending_places[0]);
}

static inline int32_t complete(int c, uint32_t action) {
  pxg_result r = {.size = sizeof r, .action = action};
  return pxg_complete(77, tokens[c], &r);
}

#define SAW(text) CHECK(!strcmp(trace, text), "found \"%s\", expected \"%s\"", trace, text)
#define LEFT(text) CHECK(!strcmp(out, text), "found \"%s\", expected \"%s\"", out, text)
#define BODY(d, text) CHECK(!strcmp(body[d], text), "found \"%s\", expected \"%s\"", body[d], text)
#define FIELDS(d, t, text) CHECK(!strcmp(fields_of(d, t), text), "found \"%s\", expected \"%s\"", fields_of(d, t), text)

#endif
