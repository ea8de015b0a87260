/* SPDX-License-Identifier: Apache-2.0 */

/* Want of memory: each scenario again and again, with the first, the second, ... allocation failing, and with all from
 * there on. An allocation is one of the engine's, or a function of the driver that may fail. Whatever fails: no crash, no
 * leak, every owned buffer is given back once, a completion is accepted, and the stream either goes as it would have gone
 * or is reset; it never waits for ever.
 *
 * Linked with --wrap for the functions below. */

#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <pthread.h>

#include "../pxg_loading.h"
#include "stream.h"

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t each);
void *__real_realloc(void *at, size_t n);
int __real_posix_memalign(void **to, size_t alignment, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t each);
void *__wrap_realloc(void *at, size_t n);
int __wrap_posix_memalign(void **to, size_t alignment, size_t n);

static bool armed;

void *__wrap_malloc(size_t n) { return armed && no_memory() ? NULL : __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t each) { return armed && no_memory() ? NULL : __real_calloc(n, each); }
void *__wrap_realloc(void *at, size_t n) { return armed && no_memory() ? NULL : __real_realloc(at, n); }
int __wrap_posix_memalign(void **to, size_t alignment, size_t n) {
  return armed && no_memory() ? ENOMEM : __real_posix_memalign(to, alignment, n);
}

/* ---- what guests do ---------------------------------------------------------------------------------------------- */

enum { MANY = 40 }; /* More than the engine has room for without an allocation. */

static int given, refused; /* Owned buffers; applies that were refused. */

static pxg_buf give(const char *text) {
  given++;
  return (pxg_buf){{(const uint8_t *)text, (uint32_t)strlen(text), PXG_BUF_OWNED}, release, 1};
}

static void pend(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
}
static void fail(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_ERROR;
  o->error = str("it broke");
}
static void more(const pxg_event *ev, pxg_result *o) {
  if (!(ev->flags & PXG_EV_BODY_END)) o->action = PXG_ACT_MORE, o->more_bytes = 1000;
}

static size_t edits(pxg_op *op, bool by_index) {
  size_t n = 0;
  op[n++] = (pxg_op){PXG_OP_HEADER_SET, 0, 0, 0, str("x-set"), give("1")};
  op[n++] = (pxg_op){PXG_OP_HEADER_DELETE, 0, 0, 0, str("x-a"), {{0}, NULL, 0}};
  op[n++] = (pxg_op){PXG_OP_METADATA_SET, 0, 0, 0, str("key"), give("value")};
  op[n++] = (pxg_op){PXG_OP_METADATA_SET, 0, 0, 0, str("key"), give("another")};
  if (by_index) op[n++] = (pxg_op){PXG_OP_SET_AT, 0, 0, 0, {0}, give("203")};
  if (by_index) op[n++] = (pxg_op){PXG_OP_DELETE_AT, 0, 0, 1, {0}, {{0}, NULL, 0}};
  while (n < MANY) op[n++] = (pxg_op){PXG_OP_HEADER_ADD, 0, 0, 0, str("x-many"), give("v")};
  return n;
}

static void edit_request(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->ops = o->scratch_ops;
  o->n_ops = edits(o->scratch_ops, false);
  o->scratch_ops[o->n_ops++] = (pxg_op){PXG_OP_ROUTE, 0, 0, 0, str("cluster"), {str("blue"), NULL, 0}};
}
static void edit_response(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->ops = o->scratch_ops;
  o->n_ops = edits(o->scratch_ops, true);
}
static void edit_trailers(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->scratch_ops[0] = (pxg_op){PXG_OP_HEADER_ADD, 0, PXG_TARGET_TRAILERS, 0, str("x-sum"), give("v")};
  o->scratch_ops[1] = (pxg_op){.kind = PXG_OP_DELETE_AT, .target = PXG_TARGET_TRAILERS};
  o->ops = o->scratch_ops;
  o->n_ops = 2;
}
static void replace_body(const pxg_event *ev, pxg_result *o) {
  uint64_t n = 0;
  for (uint64_t i = 0; i < ev->n_chunks; i++) n += ev->chunks[i].len;
  for (int i = 0; i < 6; i++) o->scratch_ops[i] = (pxg_op){PXG_OP_INJECT, 0, 0, 0, {0}, give("<new>")};
  o->scratch_ops[6] = (pxg_op){PXG_OP_INJECT, 0, 0, 0, {0}, {str("<borrowed>"), NULL, 0}};
  o->scratch_ops[7] = (pxg_op){.kind = PXG_OP_DROP, .u0 = n / 2};
  o->ops = o->scratch_ops;
  o->n_ops = 8;
}

static pxg_reply answer;
static pxg_field answer_fields[2];
static pxg_buf answer_body[6];

static void make_answer(uint32_t flags) {
  answer_fields[0] = (pxg_field){str("x-r"), str("1")};
  answer_fields[1] = (pxg_field){str("x-t"), str("2")};
  for (int i = 0; i < 5; i++) answer_body[i] = give("part ");
  answer_body[5] = (pxg_buf){str("borrowed "), NULL, 0};
  answer = (pxg_reply){sizeof answer, 403, flags, 7, answer_fields, 1, answer_body, 6, answer_fields + 1, 1, str("no")};
}
static void reply(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  make_answer(0);
  o->reply = &answer;
  o->action = PXG_ACT_REPLY;
}
static void reply_grpc(const pxg_event *ev, pxg_result *o) {
  reply(ev, o);
  answer.flags = PXG_REPLY_GRPC;
}
static void reply_open(const pxg_event *ev, pxg_result *o) {
  reply(ev, o);
  answer.flags = PXG_REPLY_OPEN;
}
static void metadata(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->scratch_ops[0] = (pxg_op){PXG_OP_METADATA_SET, 0, 0, 0, str("key"), give("value")};
  o->ops = o->scratch_ops;
  o->n_ops = 1;
}

/* ---- what happens to a stream ------------------------------------------------------------------------------------- */

/* Lent memory that is gone after the call. */
static void feed(int d, const char *text, int times) {
  static char lent[64];
  for (int i = 0; i < times; i++) {
    size_t n = strlen(text);
    pxg_slice one = {(uint8_t *)memcpy(lent, text, n), n, NULL, NULL, false};
    pxg_stream_bytes(s, d, &one, 1);
    drain();
    memset(lent, '?', n);
  }
}

static void exchange(void) {
  head(REQ, false);
  feed(REQ, "request ", 7);
  end(REQ, true);
  head(RSP, false);
  feed(RSP, "response ", 7);
  end(RSP, true);
}

static uint32_t action;
static bool with_body;

/* A guest's thread. What it got is one completion. */
static void *completes(void *token) {
  pxg_op op[MANY];
  size_t n = action == PXG_ACT_CONTINUE ? edits(op, false) : 0;
  if (action == PXG_ACT_REPLY) make_answer(0);
  pxg_result r = {.size = sizeof r, .action = action, .ops = op, .n_ops = n};
  if (with_body) op[r.n_ops - 1] = (pxg_op){PXG_OP_INJECT, 0, 0, 0, {0}, {str("injected"), NULL, 0}}, given--;
  r.reply = action == PXG_ACT_REPLY ? &answer : NULL;
  int32_t status = pxg_complete(77, *(uint64_t *)token, &r);
  CHECK(status == PXG_OK, "a completion is answered %d", status);
  return NULL;
}

/* The kernel's part of a thread is not the engine's. */
static void *in_a_thread(void *(*f)(void *), void *argument) {
  pthread_t t;
  void *answered = NULL;
  if (pthread_create(&t, NULL, f, argument)) exit(2);
  pthread_join(t, &answered);
  return answered;
}

static void complete_all(void) {
  while (s && pxg_stream_pends(s, REQ) + pxg_stream_pends(s, RSP)) {
    uint64_t token = tokens[1];
    in_a_thread(completes, &token);
    mail();
    drain();
  }
}

static void pended(void) {
  head(REQ, false);
  complete_all();
  feed(REQ, "request ", 7);
  complete_all();
  end(REQ, false);
  complete_all();
  if (!strstr(out, "!")) head(RSP, false);
  complete_all();
  end(RSP, false);
}

static void *writes(void *none) {
  for (int i = 0; i < 3; i++) {
    pxg_op w[2] = {{PXG_OP_BODY_WRITE, 0, 0, 0, {0}, give("owned ")},
                   {PXG_OP_BODY_WRITE, i == 2 ? PXG_OPF_END : 0, 0, 0, {0}, {str("borrowed "), NULL, 0}}};
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = w, .n_ops = 2};
    int32_t status = pxg_apply(77, handles[1], &r);
    CHECK(status == PXG_OK || status == PXG_E_LIMIT || status == PXG_E_STALE, "apply is answered %d", status);
    if (status != PXG_OK) refused++;
  }
  return none;
}

static void streamed(void) {
  head(REQ, true);
  in_a_thread(writes, NULL);
  mail();
  int32_t status = pxg_wake(77, handles[1], 1);
  CHECK(status == PXG_OK || status == PXG_E_STALE, "wake is answered %d", status);
  mail();
  if (!refused) return;
  pxg_worker_clock(loop, pxg_stream_deadline(s)); /* A guest that was answered LIMIT and gives up. */
  pxg_stream_timer(s);
}

static void timed_out(void) {
  head(REQ, false);
  feed(REQ, "request ", 7);
  uint64_t at = pxg_stream_deadline(s);
  if (at) pxg_worker_clock(loop, at);
  pxg_stream_timer(s);
  drain();
  end(REQ, false);
  head(RSP, true);
}

/* ---- scenarios --------------------------------------------------------------------------------------------------- */

static void bodies(uint32_t mode) {
  for (int i = 1; i <= 2; i++)
    for (int d = 0; d < 2; d++) configs[i].body_mode[d] = mode, configs[i].max_body[d] = 1000;
}
static void set_edits(void) {
  on[1][PXG_PHASE_REQUEST_HEADERS] = edit_request;
  on[2][PXG_PHASE_RESPONSE_HEADERS] = edit_response;
  on[1][PXG_PHASE_RESPONSE_TRAILERS] = on[1][PXG_PHASE_REQUEST_TRAILERS] = edit_trailers;
}
static void set_streamed_bodies(void) {
  bodies(PXG_BODY_STREAM);
  on[1][PXG_PHASE_REQUEST_HEADERS] = on[1][PXG_PHASE_RESPONSE_HEADERS] = more;
  on[1][PXG_PHASE_REQUEST_BODY] = on[2][PXG_PHASE_RESPONSE_BODY] = replace_body;
}
static void set_whole_bodies(void) {
  bodies(PXG_BODY_WHOLE);
  on[1][PXG_PHASE_REQUEST_BODY] = on[2][PXG_PHASE_RESPONSE_BODY] = replace_body;
}
static void set_observed(void) { bodies(PXG_BODY_OBSERVE); }
static void set_pending(void) {
  bodies(PXG_BODY_STREAM);
  for (int p = PXG_PHASE_REQUEST_HEADERS; p <= PXG_PHASE_RESPONSE_HEADERS; p++) on[1][p] = pend;
  action = PXG_ACT_CONTINUE;
}
static void set_pending_reply(void) {
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  action = PXG_ACT_REPLY;
}
static void set_pending_body(void) {
  bodies(PXG_BODY_STREAM);
  on[1][PXG_PHASE_REQUEST_BODY] = pend;
  action = PXG_ACT_CONTINUE;
  with_body = true;
}
static void set_reply(void) {
  bodies(PXG_BODY_STREAM);
  on[2][PXG_PHASE_REQUEST_HEADERS] = reply;
}
static void set_grpc(void) {
  on[1][PXG_PHASE_REQUEST_HEADERS] = reply_grpc;
  field(REQ, false, "content-type", "application/grpc");
}
static void set_open(void) { on[1][PXG_PHASE_REQUEST_HEADERS] = reply_open; }
static void set_closed(void) {
  bodies(PXG_BODY_STREAM);
  on[2][PXG_PHASE_REQUEST_BODY] = fail;
}
static void set_bypass(void) {
  bodies(PXG_BODY_STREAM);
  configs[2].policy.fail_open = true;
  on[2][PXG_PHASE_REQUEST_BODY] = fail;
}
static void set_deadline(void) {
  bodies(PXG_BODY_STREAM);
  configs[1].policy.fail_open = true;
  on[1][PXG_PHASE_REQUEST_BODY] = pend;
}
static void set_attributes(void) {
  static pxg_attr all[] = {{"request.id", 10, 1, ALL_HTTP}, {"one.key", 7, PXG_ATTR_METADATA, ALL_HTTP}};
  attributes[1] = "value";
  for (int i = 1; i <= 2; i++) {
    configs[i].attrs = all, configs[i].n_attrs = 2, configs[i].attr_phases = ALL_HTTP;
    configs[i].flags = PXG_CFG_WANT_PEER_FIELDS;
  }
  on[1][PXG_PHASE_REQUEST_HEADERS] = on[2][PXG_PHASE_LOG] = metadata;
}

static const struct {
  const char *name;
  void (*set)(void), (*run)(void);
} scenarios[] = {{"edits", set_edits, exchange},
                 {"streamed bodies", set_streamed_bodies, exchange},
                 {"whole bodies", set_whole_bodies, exchange},
                 {"observed bodies", set_observed, exchange},
                 {"pending", set_pending, pended},
                 {"pending, then a reply", set_pending_reply, pended},
                 {"pending at a body", set_pending_body, pended},
                 {"a reply", set_reply, exchange},
                 {"a gRPC reply", set_grpc, exchange},
                 {"a streamed reply", set_open, streamed},
                 {"a failure, closed", set_closed, exchange},
                 {"a failure, open", set_bypass, exchange},
                 {"a deadline", set_deadline, timed_out},
                 {"attributes and metadata", set_attributes, exchange}};

typedef struct outcome {
  char out[1024], body[2][1024], fields[4096];
} outcome;

static void keep_outcome(outcome *to) {
  strncat(strcpy(to->out, ""), out, sizeof to->out - 1);
  for (int d = 0; d < 2; d++) strncat(strcpy(to->body[d], ""), body[d], sizeof to->body[d] - 1);
  strncat(strcpy(to->fields, ""), fields_of(RSP, false), sizeof to->fields - 1);
}

static bool same(const outcome *a, const outcome *b) {
  return !strcmp(a->out, b->out) && !strcmp(a->body[0], b->body[0]) && !strcmp(a->body[1], b->body[1]) &&
         !strcmp(a->fields, b->fields);
}

static int count_in(const char *text, const char *part) {
  int n = 0;
  for (; (text = strstr(text, part)); text++) n++;
  return n;
}

/* True: that many allocations succeeded, and there were no more. */
static bool run(size_t k, int n, bool for_good, outcome *is) {
  const char *name = scenarios[k].name;
  given = refused = 0;
  with_body = false;
  reset_world();
  field(REQ, true, "t", "1");
  field(RSP, false, "x-a", "1");
  field(RSP, true, "t", "1");
  scenarios[k].set();
  quiet();
  fail_after = n;
  n_failed = 0;
  fail_for_good = for_good;
  armed = true;
  loop = pxg_worker_new(0, bell, NULL);
  s = NULL;
  if (loop) pxg_worker_clock(loop, 1000), begin(2);
  if (loop && s) {
    scenarios[k].run();
    drain();
    CHECK(strstr(out, "RESET") || strstr(out, "send"), "%s, %d: the stream waits: %s", name, n, out);
    keep_outcome(is);
    done(PXG_END_COMPLETE);
    for (int i = 1; i <= 2; i++) {
      char end[16], log[16], any[16];
      snprintf(end, sizeof end, "%dend", i), snprintf(log, sizeof log, "%dlog", i), snprintf(any, sizeof any, "%dr", i);
      CHECK(count_in(trace, end) == (strstr(trace, any) || strstr(trace, log)), "%s, %d: %s", name, n, trace);
    }
    CHECK(!pxg_worker_next(loop), "%s, %d: mail for the dead", name, n);
  }
  if (loop) pxg_worker_free(loop);
  loop = NULL;
  armed = false;
  fail_after = -1;
  fail_for_good = false;
  CHECK(given == released, "%s, %d: %d buffers given, %d given back", name, n, given, released);
  return !n_failed;
}

static void all_scenarios(void) {
  for (size_t k = 0; k < sizeof scenarios / sizeof *scenarios; k++) {
    outcome good, is;
    for (int for_good = 0; for_good < 2; for_good++) {
      int n = 0, resets = 0;
      while (memset(&is, 0, sizeof is), !run(k, n, for_good, &is)) {
        outcome kept = is;
        if (!n && !for_good) run(k, 1 << 20, false, &good);
        resets += strstr(kept.out, "RESET") != NULL;
        CHECK(!*kept.out || refused || strstr(kept.out, "RESET") || same(&kept, &good), "%s, %d: %s (%s), expected %s",
              scenarios[k].name, n, kept.out, kept.body[RSP], good.out);
        n++;
      }
      CHECK(n > 3 && resets > 1 && !strstr(is.out, "RESET"), "%s: %d allocations, %d resets, then %s",
            scenarios[k].name, n, resets, is.out);
    }
  }
}

/* ---- a token for which there is no slot ---------------------------------------------------------------------------- */

enum { SLOTS = 255 }; /* What the first piece of memory for slots holds. */

static void without_a_slot(void) {
  static pxg_stream *all[SLOTS];
  reset_world();
  loop = pxg_worker_new(0, bell, NULL);
  for (int i = 0; i < SLOTS; i++) {
    begin(1);
    all[i] = s;
    CHECK(s, "stream %d", i);
  }
  fail_after = 0, fail_for_good = true, armed = true;
  pxg_config *chain[] = {&configs[1]};
  CHECK(!pxg_stream_open(loop, chain, 1, &stream_ops, NULL, 1, 0), "a stream without memory");
  fail_after = 1; /* The stream's own memory, but none for its handle. */
  s = pxg_stream_open(loop, chain, 1, &stream_ops, NULL, 1, 0);
  if (s) {
    head(REQ, true);
    LEFT("RESET ");
    done(PXG_END_COMPLETE);
  }
  n_out = 0;
  fail_after = 1; /* The view, but none for the token. */
  s = all[0];
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  head(REQ, true);
  LEFT("RESET ");
  LACKS(trace, "rh");
  armed = fail_for_good = false;
  fail_after = -1;
  for (int i = 0; i < SLOTS; i++) {
    s = all[i];
    n_trace = 0;
    done(PXG_END_COMPLETE);
  }
  pxg_worker_free(loop);
  loop = NULL;
}

/* ---- libraries, configurations, validation, log --------------------------------------------------------------------- */

static pxg_config_spec spec_of(const char *library, const char *text) {
  static const char *const clusters[] = {"one", "two"}, *const spaces[] = {"shared", "other"};
  pxg_config_spec spec = {.library = library,
                          .filter = "first",
                          .instance = "m",
                          .bytes = text,
                          .n_bytes = (uint32_t)strlen(text),
                          .features = {TEST_FEATURES}};
  pxg_policy_default(&spec.policy);
  spec.policy.clusters = clusters, spec.policy.n_clusters = 2;
  spec.policy.namespaces = spaces, spec.policy.n_namespaces = 2;
  return spec;
}

static void arm(int n, bool for_good) {
  n_failed = 0;
  fail_after = n;
  fail_for_good = for_good;
  armed = true;
}

static void disarm(void) {
  armed = fail_for_good = false;
  fail_after = -1;
}

/* True: all allocations succeeded. What was refused for want of memory can be had afterwards. */
static bool load(int n, bool for_good) {
  pxg_error why = {0};
  char name[32];
  snprintf(name, sizeof name, "load-%d-%d.so", n, for_good);
  const char *library = copy_of("loading.so", name, 0);
  pxg_config_spec spec = spec_of(library, "full");
  arm(n, for_good);
  pxg_config *c = pxg_config_new(&spec, &why);
  disarm();
  bool all = !n_failed;
  CHECK(c ? all : why.status == PXG_E_INTERNAL || strstr(why.text, "memory"), "%d: status %d: %s", n, why.status,
        why.text);
  if (!c) c = pxg_config_new(&spec, &why);
  CHECK(c && c->n_attrs == 2, "%d: not made a second time: %s", n, why.text);
  if (c) pxg_config_unref(c);
  CHECK(!pxg_configs_drop(), "left alive");
  return all;
}

static bool validated(int n, bool for_good, const char *library) {
  pxg_error why = {0};
  size_t which;
  pxg_config_spec specs[2] = {spec_of(library, ""), spec_of(library, "full")};
  int parents[2] = {-1, 0};
  pxg_validation v = {.specs = specs, .parents = parents, .n = 2};
  arm(n, for_good);
  bool ok = pxg_validate(&v, &which, &why);
  disarm();
  CHECK(ok || why.status == PXG_E_INTERNAL || strstr(why.text, "memory"), "%d: status %d: %s", n, why.status, why.text);
  return ok;
}

static void loading(void) {
  int n = 0;
  for (int for_good = 0; for_good < 2; for_good++) {
    for (n = 0; !load(n, for_good); n++) { /* void */
    }
    CHECK(n > 8, "%d allocations", n);
  }
  const char *library = copy_of("loading.so", "validated.so", 0);
  for (n = 0; !validated(n, false, library) && n < 100; n++) { /* void */
  }
  CHECK(n > 8 && n < 100, "validation: %d allocations", n);
}

/* In a child; its allocations are the same ones, so a few are enough. */
static void validating(void) {
  const char *library = copy_of("loading.so", "in-a-child.so", 0);
  int n;
  for (n = 0; !validated(n, true, library) && n < 10000; n += 1 + n / 4) { /* void */
  }
  CHECK(n > 8 && n < 10000, "validation in a child: %d allocations", n);
}

/* A record that finds no memory is cut, and there. */
static void records(void) {
  char text[6000];
  memset(text, 'x', sizeof text);
  quiet();
  arm(0, true);
  pxg_guest_log(99, PXG_LOG_ERROR, (const uint8_t *)text, sizeof text);
  disarm();
  HAS(said, "4 guest=unknown: xxxx");
  HAS(said, "xxxx [cut]\n");
}

/* ---- without a stream ----------------------------------------------------------------------------------------------- */

static void set_owned(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->scratch_ops[0] = (pxg_op){PXG_OP_HEADER_SET, 0, 0, 0, str("x-set"), give("1")};
  o->ops = o->scratch_ops;
  o->n_ops = 1;
}

static void *applies(void *none) {
  pxg_op op = {PXG_OP_METADATA_SET, 0, 0, 0, str("later"), give("1")};
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &op, .n_ops = 1};
  int32_t status = pxg_apply(77, handles[1], &r);
  CHECK(status == PXG_OK || status == PXG_E_LIMIT || status == PXG_E_STALE, "apply is answered %d", status);
  return none;
}

static void glance_mail(pxg_glance *g, pxg_glanced *way) {
  const pxg_op *edits;
  size_t n;
  while (pxg_worker_next_glance(loop)) {
    pxg_glanced now = pxg_glance_decided(g, &edits, &n);
    if (now == PXG_GLANCE_PASSED) *way = now;
    if (now == PXG_GLANCE_MORE) s = pxg_glance_stream(g, &stream_ops, NULL, 1, open_with, 0, 0);
  }
  mail();
}

/* The driver's part: a glance, and a stream where it takes one. */
static void glance_at(script f) {
  pxg_speaker speaker = {NULL, NULL, 1};
  pxg_glance g = {0};
  pxg_field fields[2] = {{str(":path"), str("/")}, {str("x-a"), str("1")}};
  const pxg_op *edited;
  size_t n;
  s = NULL;
  pxg_glanced way = pxg_glance_head(&g, loop, &configs[1], &speaker, fields, 2, PXG_HEAD_ENDS, &edited, &n);
  bool had = strstr(trace, "1rh");
  if (way == PXG_GLANCE_MORE) s = pxg_glance_stream(&g, &stream_ops, NULL, 1, open_with, 0, 0);
  if (s) drain();
  in_a_thread(applies, NULL);
  glance_mail(&g, &way);
  bool completed = !s && g.waiting;
  if (completed) {
    in_a_thread(completes, &tokens[1]);
    glance_mail(&g, &way);
  }
  if (s) complete_all();
  if (s) {
    CHECK(strstr(out, "RESET") || strstr(out, "send") || strstr(out, "rend") || way == PXG_GLANCE_PASSED,
          "the stream waits: %s", out);
    done(PXG_END_COMPLETE);
  } else if (pxg_glance_lives(&g)) {
    CHECK(way == PXG_GLANCE_PASSED, "a glance that nobody needs");
    pxg_glance_close(&g);
  }
  CHECK(count_in(trace, "1end") == had, "%s", trace);
  CHECK(f != pend || !had || s || completed || strstr(trace, "1cancel"), "a token of nobody: %s", trace);
  CHECK(!pxg_worker_next(loop) && !pxg_worker_next_glance(loop), "mail for the dead");
}

static void glances(void) {
  static const script all[] = {NULL, metadata, set_owned, pend, fail, reply};
  for (size_t k = 0; k < sizeof all / sizeof *all; k++)
    for (int for_good = 0; for_good < 2; for_good++) {
      int n = 0;
      for (n_failed = 1; n_failed; n++) {
        given = 0;
        with_body = false;
        action = PXG_ACT_CONTINUE;
        reset_world();
        quiet();
        configs[1].subscribe = configs[1].pend_phases = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
        on[1][PXG_PHASE_REQUEST_HEADERS] = all[k];
        arm(n, for_good);
        loop = pxg_worker_new(0, bell, NULL);
        if (loop) pxg_worker_clock(loop, 1000), glance_at(all[k]), pxg_worker_free(loop);
        loop = NULL;
        disarm();
        CHECK(given == released, "%d, %d: %d buffers given, %d given back", (int)k, n, given, released);
      }
      CHECK(n > 3, "%d allocations", n);
    }
}

/* Letters are used again: this is the first one of the process. An accepted completion has no room, and is not lost. */
static void the_first_letter(void) {
  pxg_op op = {PXG_OP_METADATA_SET, 0, 0, 0, str("key"), {{(const uint8_t *)"v", 1, PXG_BUF_OWNED}, release, 1}};
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &op, .n_ops = 1};
  reset_world();
  loop = pxg_worker_new(0, bell, NULL);
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, true);
  arm(0, true);
  CHECK(pxg_apply(77, handles[1], &r) == PXG_E_LIMIT, "apply");
  CHECK(pxg_complete(77, tokens[1], &r) == PXG_OK, "complete");
  CHECK(pxg_complete(77, tokens[1], &r) == PXG_E_STALE, "completed twice");
  mail();
  disarm();
  LEFT("RESET ");
  CHECK(released == 3, "released %d times", released);
  done(PXG_END_COMPLETE);
  pxg_worker_free(loop);
  loop = NULL;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  guests = argv[1], scratch = argv[2];
  size_t size = pxg_zone_size(8, 64);
  void *memory = NULL;
  if (posix_memalign(&memory, 64, size)) return 2;
  start();
  pxg_worker_free(loop);
  loop = NULL;
  the_first_letter();
  without_a_slot();
  all_scenarios();
  glances();
  records();
  pxg_host_zone(pxg_zone_open(memset(memory, 0, size), size));
  validating();
  loading();
  return finish("memory");
}
