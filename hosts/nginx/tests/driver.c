/* SPDX-License-Identifier: Apache-2.0 */

/* Stands in the engine's place in tests of the glue alone: what a stream does is told by the request's own field
 * x-drive, words with spaces between them.
 *
 *   rh=MS rb=MS sh=MS sb=MS  withhold request headers, request body, response headers, response body that long; a
 *                            thread that sleeps rings the bell
 *   whole                    withhold the request's headers until its body has ended
 *   edit                     edit the fields of both messages, see drive_edit
 *   reply                    answer 403 in the place of the upstream
 *   reset                    abort at the request's head */

#include "pxg_engine.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct pxg_block {
  char *bytes;
};

typedef struct item {
  struct item *next;
  pxg_out out;
} item;

struct pxg_stream {
  struct pxg_stream *next;
  uint64_t number;
  const pxg_stream_ops *ops;
  void *data;
  int ms[4]; /* rh, rb, sh, sb. */
  bool whole, edit, reply, reset;
  bool closed[4]; /* As `ms`. */
  bool armed[4];
  bool head_out[2];
  bool ended[2]; /* Fed. */
  item *first[2], **last[2];
};

struct pxg_worker {
  void (*bell)(void *);
  void *data;
};

typedef struct mail {
  struct mail *next;
  uint64_t number;
  int place, ms;
} mail;

static pxg_worker the_worker;
static pxg_stream *streams;
static uint64_t last_number;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static mail *box;

bool pxg_fail(pxg_error *e, int32_t status, const char *format, ...) {
  va_list ap;
  if (e == NULL) return false;
  e->status = status;
  va_start(ap, format);
  vsnprintf(e->text, sizeof e->text, format, ap);
  va_end(ap);
  return false;
}

bool pxg_host_start(const pxg_driver *driver, pxg_error *why) { return true; }
void pxg_page_clock(uint64_t monotonic_ns, uint64_t realtime_ns) {}
void pxg_policy_default(pxg_policy *p) { memset(p, 0, sizeof *p); }
bool pxg_validate(const pxg_validation *v, size_t *which, pxg_error *why) {
  for (size_t i = 0; i < v->n; i++)
    if (v->specs[i].n_bytes == 3 && memcmp(v->specs[i].bytes, "bad", 3) == 0)
      return *which = i, pxg_fail(why, PXG_E_ARG, "refused by the driver");
  return true;
}
pxg_config *pxg_config_new(const pxg_config_spec *spec, pxg_error *why) { return calloc(1, sizeof(pxg_config)); }
void pxg_config_unref(pxg_config *c) { free(c); }
bool pxg_configs_to_drop(void) { return false; }
size_t pxg_configs_drop(void) { return 0; }
void pxg_page_draining(bool draining) {}
const pxg_driver *pxg_host_driver(void) {
  static const pxg_driver none;
  return &none;
}
pxg_zone *pxg_zone_open(void *memory, size_t size) { return memory; }
void pxg_zone_attach(pxg_zone *z) {}
bool pxg_zone_walk(pxg_zone *z, bool (*each)(void *data, const pxg_sample *s), void *data) { return true; }
bool pxg_zone_prometheus(pxg_zone *z, bool (*put)(void *data, const char *text, size_t len), void *data) {
  return true;
}
int32_t pxg_apply(uint64_t ctx, uint64_t stream, const pxg_result *r) { return PXG_E_STALE; }
int32_t pxg_wake(uint64_t ctx, uint64_t stream, uint64_t arg) { return PXG_E_STALE; }
const char *pxg_stream_cluster(const pxg_stream *s, bool *recompute) {
  if (recompute) *recompute = false;
  return NULL;
}
void pxg_stream_metadata(const pxg_stream *s,
                         bool (*each)(void *data, const char *key, size_t len, const pxg_str *value), void *data) {}
int32_t pxg_complete(uint64_t ctx, uint64_t token, const pxg_result *r) { return PXG_E_STALE; }

pxg_worker *pxg_worker_new(uint32_t index, void (*bell)(void *data), void *data) {
  the_worker.bell = bell, the_worker.data = data;
  return &the_worker;
}
void pxg_worker_free(pxg_worker *w) {}
void pxg_worker_warm_up(pxg_worker *w, pxg_guest_lib *lib) {}
bool pxg_stream_place(const pxg_stream *s, size_t i, pxg_place_info *info) { return false; }
const char *pxg_stream_details(const pxg_stream *s) { return NULL; }
void pxg_worker_clock(pxg_worker *w, uint64_t now_ns) {}
bool pxg_worker_batch_due(const pxg_worker *w) { return false; }
void pxg_worker_batch_end(pxg_worker *w) {}
void pxg_worker_awake(pxg_worker *w, bool awake) {}

/* Every request gets a stream. */
void pxg_glance_close(pxg_glance *g) { (void)g; }
pxg_glance *pxg_worker_next_glance(pxg_worker *w) { return (void)w, NULL; }
pxg_glanced pxg_glance_decided(pxg_glance *g, const pxg_op **edits, size_t *n_edits) { return PXG_GLANCE_MORE; }
uint64_t pxg_glance_deadline(const pxg_glance *g) { return 0; }
pxg_glanced pxg_glance_head(pxg_glance *g, pxg_worker *w, pxg_config *c, const pxg_speaker *speaker,
                            const pxg_field *fields, size_t n, uint32_t head_flags, const pxg_op **edits,
                            size_t *n_edits) {
  (void)g, (void)w, (void)c, (void)speaker, (void)fields, (void)n, (void)head_flags, (void)edits, (void)n_edits;
  return PXG_GLANCE_NONE;
}
pxg_stream *pxg_glance_stream(pxg_glance *g, const pxg_stream_ops *ops, void *data, uint64_t id, uint32_t flags,
                              uint32_t gone, uint32_t response_flags) {
  (void)g, (void)ops, (void)data, (void)id, (void)flags, (void)gone, (void)response_flags;
  return NULL;
}
pxg_stream *pxg_worker_next(pxg_worker *w) {
  for (;;) {
    pthread_mutex_lock(&lock);
    mail *m = box;
    if (m) box = m->next;
    pthread_mutex_unlock(&lock);
    if (m == NULL) return NULL;
    for (pxg_stream *s = streams; s; s = s->next)
      if (s->number == m->number) {
        s->closed[m->place] = false;
        free(m);
        return s;
      }
    free(m); /* Stale. */
  }
}

static void *sleeper(void *data) {
  mail *m = data;
  usleep((useconds_t)m->ms * 1000);
  pthread_mutex_lock(&lock);
  bool empty = box == NULL;
  m->next = box, box = m;
  pthread_mutex_unlock(&lock);
  if (empty) the_worker.bell(the_worker.data);
  return NULL;
}

static void hold(pxg_stream *s, int place) {
  if (s->ms[place] == 0 || s->armed[place]) return;
  s->armed[place] = s->closed[place] = true;
  mail *m = calloc(1, sizeof *m);
  m->number = s->number, m->place = place, m->ms = s->ms[place];
  pthread_t t;
  pthread_create(&t, NULL, sleeper, m);
  pthread_detach(t);
}

static void put(pxg_stream *s, int d, pxg_out_kind kind, const void *bytes, size_t n) {
  item *i = calloc(1, sizeof *i);
  i->out.kind = kind, i->out.direction = d;
  if (n) {
    pxg_block *b = malloc(sizeof *b);
    b->bytes = malloc(n);
    memcpy(b->bytes, bytes, n);
    i->out.slice = (pxg_slice){.ptr = (uint8_t *)b->bytes, .len = n, .owner = b};
  }
  *s->last[d] = i, s->last[d] = &i->next;
}

void pxg_slice_drop(pxg_slice *s) {
  if (s->owner) free(s->owner->bytes), free(s->owner);
  s->owner = NULL;
}

pxg_stream *pxg_stream_open(pxg_worker *w, pxg_config *const *chain, size_t n, const pxg_stream_ops *ops, void *data,
                            uint64_t id, uint32_t flags) {
  pxg_stream *s = calloc(1, sizeof *s);
  s->number = ++last_number, s->ops = ops, s->data = data;
  for (int d = 0; d < 2; d++) s->last[d] = &s->first[d];
  s->next = streams, streams = s;
  return s;
}
void *pxg_stream_data(const pxg_stream *s) { return s->data; }

#define S(text) (&(pxg_str){(const uint8_t *)(text), sizeof(text) - 1, 0})

static bool named(const pxg_field *f, const char *name) {
  return f->name.len == strlen(name) && memcmp(f->name.ptr, name, f->name.len) == 0;
}

/* Every kind of edit once, on what the test sends. The view goes out as x-view-... so that the test can compare it. */
static void drive_edit(pxg_stream *s, int d) {
  const pxg_field *f;
  size_t n;
  char names[2048] = "";
  s->ops->view(s->data, d, false, &f, &n);
  for (size_t i = 0; i < n; i++) {
    size_t at = strlen(names);
    if (at + f[i].name.len + f[i].value.len + 4 < sizeof names)
      snprintf(names + at, sizeof names - at, "%.*s=%.*s|", (int)f[i].name.len, f[i].name.ptr, (int)f[i].value.len,
               f[i].value.ptr);
  }
  pxg_str all = {(uint8_t *)names, (uint32_t)strlen(names), 0};
  bool deleted = false;
  for (size_t i = 0; i < n; i++) {
    if (named(&f[i], "x-at")) {
      pxg_edit first = deleted ? s->ops->set_at(s->data, d, false, i, S("at")) : PXG_EDIT_DONE;
      if (!deleted) first = s->ops->remove_at(s->data, d, false, i), deleted = true;
      if (first != PXG_EDIT_DONE) s->ops->set(s->data, d, false, S("x-fault"), S("an index was refused"));
    }
    if (named(&f[i], "x-path")) s->ops->set(s->data, d, false, S(":path"), &f[i].value);
    if (named(&f[i], "x-authority")) s->ops->set(s->data, d, false, S(":authority"), &f[i].value);
  }
  s->ops->remove(s->data, d, false, S("x-remove"));
  s->ops->set(s->data, d, false, S("x-set"), S("set"));
  s->ops->add(s->data, d, false, S("x-add"), S("1"));
  s->ops->add(s->data, d, false, S("x-add"), S("2"));
  if (d == PXG_DIR_REQUEST) {
    s->ops->set(s->data, d, false, S("cookie"), S("c=driver"));
    s->ops->set(s->data, d, false, S("user-agent"), S("driver"));
    s->ops->set(s->data, d, false, S("x-view-request"), &all);
  } else {
    s->ops->set(s->data, d, false, S(":status"), S("203"));
    s->ops->set(s->data, d, false, S("content-type"), S("text/driver"));
    s->ops->remove(s->data, d, false, S("last-modified"));
    s->ops->set(s->data, d, false, S("server"), S("driver"));
    s->ops->set(s->data, d, false, S("x-view-response"), &all);
  }
  s->ops->commit(s->data, d, false);
}

static void parse(pxg_stream *s) {
  const pxg_field *f;
  size_t n;
  s->ops->view(s->data, PXG_DIR_REQUEST, false, &f, &n);
  for (size_t i = 0; i < n; i++) {
    if (!named(&f[i], "x-drive")) continue;
    char text[256];
    snprintf(text, sizeof text, "%.*s", (int)f[i].value.len, f[i].value.ptr);
    char *save;
    for (char *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
      static const char *const places[] = {"rh=", "rb=", "sh=", "sb="};
      for (int p = 0; p < 4; p++)
        if (strncmp(w, places[p], 3) == 0) s->ms[p] = atoi(w + 3);
      if (strcmp(w, "whole") == 0) s->whole = true;
      if (strcmp(w, "edit") == 0) s->edit = true;
      if (strcmp(w, "reply") == 0) s->reply = true;
      if (strcmp(w, "reset") == 0) s->reset = true;
    }
  }
}

static void drive_reply(pxg_stream *s) {
  pxg_field f = {*S("x-reply"), *S("yes")};
  s->ops->replace(s->data, 403, &f, 1);
  s->ops->length(s->data, PXG_DIR_RESPONSE, 7);
  put(s, 1, PXG_OUT_HEAD, NULL, 0);
  s->first[1]->out.flags = PXG_OUT_LOCAL;
  put(s, 1, PXG_OUT_BYTES, "denied\n", 7);
  put(s, 1, PXG_OUT_END, NULL, 0);
}

void pxg_stream_head(pxg_stream *s, int d, uint32_t flags) {
  if (d == 0) {
    parse(s);
    if (flags & PXG_HEAD_ENDS) s->whole = false;
    if (s->reset) {
      put(s, 0, PXG_OUT_RESET, NULL, 0);
      return;
    }
    if (s->reply) {
      hold(s, 0);
      drive_reply(s);
      return;
    }
  }
  if (s->edit) drive_edit(s, d);
  hold(s, d * 2);
  s->head_out[d] = false;
  s->ended[d] = flags & PXG_HEAD_ENDS;
  put(s, d, PXG_OUT_HEAD, NULL, 0);
  if (flags & PXG_HEAD_ENDS) put(s, d, PXG_OUT_END, NULL, 0);
}

void pxg_stream_bytes(pxg_stream *s, int d, const pxg_slice *slices, size_t n) {
  if (s->ended[d]) abort(); /* The tests look for it in the log. */
  hold(s, d * 2 + 1);
  for (size_t i = 0; i < n; i++) put(s, d, PXG_OUT_BYTES, slices[i].ptr, slices[i].len);
}

void pxg_stream_end(pxg_stream *s, int d, bool trailers) {
  if (s->ended[d]) abort();
  s->ended[d] = true;
  if (d == 0) s->whole = false;
  put(s, d, PXG_OUT_END, NULL, 0);
}

bool pxg_stream_wants_body_first(const pxg_stream *s, int d) { return d == 0 && s->whole; }
bool pxg_stream_wants(const pxg_stream *s, int d) { return !s->ended[d]; }
void pxg_stream_skip(pxg_stream *s, int d, uint64_t n) {}
void pxg_stream_waiting(pxg_stream *s, uint64_t bytes) {}
void pxg_stream_redirected(pxg_stream *s) {}
bool pxg_stream_sees_body(const pxg_stream *s, int d) { return s->ms[d * 2 + 1] > 0; }
bool pxg_stream_holds(const pxg_stream *s, int d) { return s->first[d] != NULL; }
bool pxg_stream_pends(const pxg_stream *s, int d) { return s->first[d] != NULL; }
void pxg_stream_keep(pxg_stream *s) {}
uint64_t pxg_stream_deadline(const pxg_stream *s) { return 0; }
void pxg_stream_timer(pxg_stream *s) {}

bool pxg_take(pxg_stream *s, pxg_out *out) {
  for (int d = 0; d < 2; d++) {
    item *i = s->first[d];
    if (i == NULL) continue;
    if (i->out.kind == PXG_OUT_HEAD) {
      if (s->closed[d * 2] || (d == 0 && s->whole)) continue;
      if (d == 1 && s->reply && s->closed[0]) continue;
      s->head_out[d] = true;
    } else if (i->out.kind != PXG_OUT_RESET && (!s->head_out[d] || s->closed[d * 2 + 1])) {
      continue;
    }
    *out = i->out;
    s->first[d] = i->next;
    if (i->next == NULL) s->last[d] = &s->first[d];
    free(i);
    return true;
  }
  return false;
}

void pxg_stream_finish(pxg_stream *s, uint32_t why) {}

void pxg_stream_free(pxg_stream *s) {
  pxg_stream **at = &streams;
  while (*at != s) at = &(*at)->next;
  *at = s->next;
  for (int d = 0; d < 2; d++)
    for (item *i = s->first[d], *next; i; i = next) next = i->next, pxg_slice_drop(&i->out.slice), free(i);
  free(s);
}
