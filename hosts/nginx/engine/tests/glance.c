/* SPDX-License-Identifier: Apache-2.0 */

/* A filter of the request's head is driven without a stream and with one, by every kind of result and by what can happen
 * after it: guest and driver must see the same. */

#include "stream.h"

static bool by_glance;
static pxg_glance g;
static uint32_t gone, response;
static int decided; /* Completions that took no stream. */
static int without; /* Runs that had no stream to their end. */

/* ---- results ----------------------------------------------------------------------------------------------------- */

typedef enum result {
  NOTHING,
  SET,
  ADD,
  DELETE,
  MUST,
  SENSITIVE,
  STATIC,
  OWNED,
  MANY,
  OVER_LIMIT,
  TOO_MANY,
  TOO_LONG,
  NO_NAME,
  BAD_NAME,
  BAD_VALUE,
  HOST_OWNED,
  PSEUDO,
  BAD_PSEUDO,
  SET_AT,
  DELETE_AT,
  BAD_INDEX,
  TRAILER,
  BAD_TARGET,
  INDEXED_NAME,
  BAD_FLAGS,
  ABSENT_KEY,
  ABSENT_VALUE,
  NULL_VALUE,
  DELETE_WITH_VALUE,
  OVERRUN,
  ARRAY_OVERRUN,
  NO_ARRAY,
  METADATA,
  METRIC,
  CLUSTER,
  NO_CLUSTER,
  RECOMPUTE,
  INJECT,
  UNKNOWN,
  UNKNOWN_MUST,
  MIXED,
  FLUSH,
  RESIZES,
  RES_FLAGS,
  UNSUBSCRIBE,
  MODE,
  SMALL,
  RESERVED,
  SAID,
  MORE_BYTES,
  NO_USER,
  UNSET,
  WRONG,
  PEND,
  MORE,
  FAIL,
  PANIC,
  RESET,
  REPLY,
  REPLY_WITHOUT,
  BORROWED,
  APPLIES,
  REPLIES_ASIDE,
  COMPLETES,
  RESULTS
} result;

static result what;

static pxg_op op(uint16_t kind, const char *key, const char *value) {
  return (pxg_op){kind, 0, PXG_TARGET_HEADERS, 0, str(key), {str(value), NULL, 0}};
}

static void answer(const pxg_event *ev, pxg_result *o) {
  static pxg_reply reply;
  static pxg_op far;
  pxg_op *a = o->scratch_ops;
  size_t n = 1;
  *a = op(PXG_OP_HEADER_SET, "x-new", "v");
  switch (what) {
  case NOTHING: n = 0; break;
  case SET: a[n++] = op(PXG_OP_HEADER_SET, "x-a", "3"); break;
  case ADD: *a = op(PXG_OP_HEADER_ADD, "x-a", "3"); break;
  case DELETE: *a = op(PXG_OP_HEADER_DELETE, "x-a", ""); break;
  case MUST: a->flags = PXG_OPF_MUST; break;
  case SENSITIVE: a->val.bytes.flags = PXG_STR_SENSITIVE; break;
  case STATIC: a->val.bytes.flags = PXG_BUF_STATIC; break;
  case OWNED: a->val = (pxg_buf){{(const uint8_t *)"own", 3, PXG_BUF_OWNED}, release, 1}; break;
  case MANY:
    for (n = 0; n < 20; n++) a[n] = op(PXG_OP_HEADER_ADD, "x-b", "1");
    break;
  case OVER_LIMIT:
    for (n = 0; n < 12; n++) a[n] = op(PXG_OP_HEADER_DELETE, "x-b", "");
    break;
  case TOO_MANY:
    for (n = 0; n < 40; n++) a[n] = op(PXG_OP_HEADER_ADD, "x-b", "1");
    break;
  case TOO_LONG:
    *a = op(PXG_OP_HEADER_SET, "x-new", "0123456789012345678901234567890123456789012345678901234567890");
    break;
  case NO_NAME: a->key = str(""); break;
  case BAD_NAME: a->key = str("X-New"); break;
  case BAD_VALUE: a->val.bytes = str("a\nb"); break;
  case HOST_OWNED: a->key = str("connection"); break;
  case PSEUDO: *a = op(PXG_OP_HEADER_SET, ":path", "/new"); break;
  case BAD_PSEUDO: *a = op(PXG_OP_HEADER_DELETE, ":path", ""); break;
  case SET_AT: *a = op(PXG_OP_SET_AT, "", "at"), a->u0 = 2; break;
  case DELETE_AT: *a = op(PXG_OP_DELETE_AT, "", ""), a->u0 = 2; break;
  case BAD_INDEX: *a = op(PXG_OP_DELETE_AT, "", ""), a->u0 = 9; break;
  case TRAILER: a->target = PXG_TARGET_TRAILERS; break;
  case BAD_TARGET: a->target = 7; break;
  case INDEXED_NAME: a->u0 = 1; break;
  case BAD_FLAGS: a->flags = 0x80; break;
  case ABSENT_KEY: a->key = (pxg_str){NULL, 0, PXG_STR_ABSENT}; break;
  case ABSENT_VALUE: a->val.bytes = (pxg_str){NULL, 0, PXG_STR_ABSENT}; break;
  case NULL_VALUE: a->val.bytes = (pxg_str){NULL, 4, 0}; break;
  case DELETE_WITH_VALUE: a->kind = PXG_OP_HEADER_DELETE; break;
  case OVERRUN: a->val.bytes = (pxg_str){o->scratch + o->scratch_cap - 1, 8, 0}; break;
  case ARRAY_OVERRUN: n = (size_t)o->scratch_ops_cap + 1; break;
  case NO_ARRAY: a = NULL; break;
  case METADATA: *a = op(PXG_OP_METADATA_SET, "key", "value"); break;
  case METRIC: *a = op(PXG_OP_METRIC, "", ""), a->target = 3; break;
  case CLUSTER: *a = op(PXG_OP_ROUTE, "cluster", "blue"); break;
  case NO_CLUSTER: *a = op(PXG_OP_ROUTE, "cluster", "red"); break;
  case RECOMPUTE: *a = op(PXG_OP_ROUTE, "recompute", ""); break;
  case INJECT: *a = op(PXG_OP_INJECT, "", "body"); break;
  case UNKNOWN: a->kind = 99; break;
  case UNKNOWN_MUST: a->kind = 99, a->flags = PXG_OPF_MUST; break;
  case MIXED: a[n++] = op(PXG_OP_METADATA_SET, "key", "value"); break;
  case FLUSH: o->flags = PXG_RES_FLUSH; break;
  case RESIZES: o->flags = PXG_RES_RESIZES; break;
  case RES_FLAGS: o->flags = 0x100; break;
  case UNSUBSCRIBE: o->unsubscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS); break;
  case MODE: o->body_mode[REQ] = PXG_BODY_STREAM; break;
  case SMALL: o->size = 8; break;
  case RESERVED: o->reserved0 = 1; break;
  case SAID: o->error = str("a word"); break;
  case MORE_BYTES: o->more_bytes = o->pend_ns = 5; break;
  case NO_USER: o->user = 0; break;
  case UNSET: o->action = PXG_ACT_UNSET; break;
  case WRONG: o->action = 77; break;
  case PEND: n = 0, o->action = PXG_ACT_PENDING; break;
  case MORE: o->action = PXG_ACT_MORE; break;
  case FAIL: o->action = PXG_ACT_ERROR, o->error = str("it broke"); break;
  case PANIC: o->action = PXG_ACT_ERROR, o->error = str("panic: it broke"); break;
  case RESET: o->action = PXG_ACT_RESET; break;
  case REPLY_WITHOUT: o->action = PXG_ACT_REPLY; break;
  case REPLY:
    reply = (pxg_reply){.size = sizeof reply, .status = 403, .details = str("denied")};
    o->reply = &reply, o->action = PXG_ACT_REPLY;
    break;
  case BORROWED: far = *a, a = &far; break;
  case APPLIES: {
    pxg_op meta = op(PXG_OP_METADATA_SET, "inside", "1");
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &meta, .n_ops = 1};
    note("apply=%d ", (int)pxg_apply(77, ev->stream, &r));
    break;
  }
  case REPLIES_ASIDE: {
    reply = (pxg_reply){.size = sizeof reply, .status = 403, .details = str("aside")};
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_REPLY, .reply = &reply};
    note("apply=%d ", (int)pxg_apply(77, ev->stream, &r));
    break;
  }
  case COMPLETES: {
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE};
    note("complete=%d ", (int)pxg_complete(77, ev->token, &r));
    break;
  }
  default: break;
  }
  o->ops = a;
  o->n_ops = n;
}

/* ---- what may follow --------------------------------------------------------------------------------------------- */

typedef enum later {
  QUIET,
  A_METADATA,
  A_REPLY,
  A_RESET,
  A_EMPTY,
  A_ROUTE,
  A_EDIT,
  WAKE,
  TWICE,
  C_CONTINUE,
  C_REPLY,
  C_EDITS,
  C_METADATA,
  C_PSEUDO,
  C_INDEX,
  C_OWNED,
  C_LONG,
  C_FULL,
  C_FAIL,
  C_UNSUBSCRIBE,
  C_TWICE,
  C_AFTER_APPLY,
  C_BEFORE_APPLY,
  TIMER,
  LATERS
} later;
typedef enum moment { BEFORE, BEHIND_HEAD, BEHIND_END, MOMENTS } moment;

static void act(later l) {
  static pxg_reply refusal;
  refusal = (pxg_reply){.size = sizeof refusal, .status = 404, .details = str("late")};
  pxg_op one = op(PXG_OP_METADATA_SET, "later", "1");
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &one, .n_ops = 1};
  if (l == A_REPLY || l == C_REPLY) r = (pxg_result){.size = sizeof r, .action = PXG_ACT_REPLY, .reply = &refusal};
  if (l == A_RESET) r = (pxg_result){.size = sizeof r, .action = PXG_ACT_RESET};
  if (l == A_EMPTY || l == C_CONTINUE) r = (pxg_result){.size = sizeof r, .action = PXG_ACT_CONTINUE};
  if (l == A_ROUTE) one = op(PXG_OP_ROUTE, "cluster", "blue");
  if (l == A_EDIT) one = op(PXG_OP_HEADER_SET, "x-late", "1");
  pxg_op three[20] = {op(PXG_OP_HEADER_SET, "x-a", "3"), op(PXG_OP_HEADER_ADD, "x-b", "1"),
                      op(PXG_OP_HEADER_DELETE, "x-no", "")};
  pxg_result edits = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = three, .n_ops = 3, .user = 9};
  if (l == C_METADATA) three[1] = op(PXG_OP_METADATA_SET, "later", "1");
  if (l == C_PSEUDO) three[1] = op(PXG_OP_HEADER_SET, ":path", "/new");
  if (l == C_INDEX) three[1] = op(PXG_OP_DELETE_AT, "", ""), three[1].u0 = 2;
  if (l == C_OWNED) three[1].val = (pxg_buf){{(const uint8_t *)"own", 3, PXG_BUF_OWNED}, release, 1};
  if (l == C_LONG) three[1].val.bytes = str("0123456789012345678901234567890123456789012345678901234567890");
  for (; l == C_FULL && edits.n_ops < 20; edits.n_ops++) three[edits.n_ops] = three[1];
  if (l == C_FAIL) edits.action = PXG_ACT_ERROR;
  if (l == C_UNSUBSCRIBE) edits.unsubscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
  if (l == C_AFTER_APPLY) note("apply=%d ", (int)pxg_apply(77, handles[1], &r));
  if (l >= C_EDITS && l <= C_BEFORE_APPLY) note("complete=%d ", (int)pxg_complete(77, tokens[1], &edits));
  if (l == C_TWICE) note("complete=%d ", (int)pxg_complete(77, tokens[1], &edits));
  if (l == C_BEFORE_APPLY) note("apply=%d ", (int)pxg_apply(77, handles[1], &r));
  if (l >= A_METADATA && l <= A_EDIT) note("apply=%d ", (int)pxg_apply(77, handles[1], &r));
  if (l == WAKE) note("wake=%d ", (int)pxg_wake(77, handles[1], 1));
  if (l == C_CONTINUE || l == C_REPLY) note("complete=%d ", (int)pxg_complete(77, tokens[1], &r));
  if (l == TWICE) {
    note("apply=%d ", (int)pxg_apply(77, handles[1], &r));
    one = op(PXG_OP_METADATA_SET, "later", "2");
    note("apply=%d ", (int)pxg_apply(77, handles[1], &r));
  }
}

/* ---- the driver's two ways ---------------------------------------------------------------------------------------- */

static void say(const char *text) { n_out += (size_t)snprintf(out + n_out, sizeof out - n_out, "%s", text); }

static bool live(void) { return by_glance && pxg_glance_lives(&g); }

static bool ends;

/* What a glance answered with PASSED. */
static void pass(const pxg_op *edits, size_t n) {
  for (size_t i = 0; i < n; i++) {
    const pxg_op *e = &edits[i];
    if (e->kind == PXG_OP_HEADER_SET) op_set(NULL, REQ, false, &e->key, &e->val.bytes);
    if (e->kind == PXG_OP_HEADER_ADD) op_add(NULL, REQ, false, &e->key, &e->val.bytes);
    if (e->kind == PXG_OP_HEADER_DELETE) op_remove(NULL, REQ, false, &e->key);
  }
  op_commit(NULL, REQ, false);
  say(ends ? "rhead. rend " : "rhead ");
}

static void make_stream(void) {
  s = pxg_glance_stream(&g, &stream_ops, NULL, 1, PXG_STREAM_RECEIVES_TRAILERS | PXG_STREAM_UPSTREAM_TRAILERS, gone,
                        response);
}

static void request(bool end) {
  const pxg_field *fields;
  const pxg_op *edits;
  size_t n;
  gone = response = 0;
  ends = end;
  if (!by_glance) {
    begin(1);
    return head(REQ, ends);
  }
  op_view(NULL, REQ, false, &fields, &n);
  CHECK(pxg_glance_suits(&configs[1]), "found a filter that does not suit");
  pxg_speaker speaker = {stream_ops.log, NULL, 1};
  pxg_glanced way = pxg_glance_head(&g, loop, &configs[1], &speaker, fields, n, ends ? PXG_HEAD_ENDS : 0, &edits, &n);
  if (way == PXG_GLANCE_NONE) {
    begin(1);
    return head(REQ, ends);
  }
  if (way == PXG_GLANCE_MORE) {
    make_stream();
    return drain();
  }
  if (way == PXG_GLANCE_PASSED) pass(edits, n);
}

static void request_end(void) {
  if (live() && g.waiting) make_stream();
  if (!live()) return end(REQ, false);
  gone |= PXG_GLANCE_REQUEST_END;
  say("rend ");
}

static void response_head(uint32_t flags) {
  if (live() && g.waiting) make_stream();
  if (!live()) {
    pxg_stream_head(s, RSP, flags);
    return drain();
  }
  gone |= PXG_GLANCE_RESPONSE_HEAD;
  response = flags;
  say(flags & PXG_HEAD_ENDS ? "shead. send " : "shead ");
}

static void response_end(void) {
  if (!live()) return end(RSP, false);
  gone |= PXG_GLANCE_RESPONSE_END;
  say("send ");
}

static void post(void) {
  const pxg_op *edits;
  size_t n;
  while (by_glance && pxg_worker_next_glance(loop)) {
    bool waited = g.waiting;
    if (pxg_glance_decided(&g, &edits, &n) == PXG_GLANCE_PASSED)
      pass(edits, n);
    else
      make_stream();
    if (waited && live()) decided++;
  }
  mail();
}

static void over(uint32_t why) {
  if (!live()) return done(why);
  pxg_glance_close(&g);
  without++;
}

/* ---- one run ----------------------------------------------------------------------------------------------------- */

typedef struct seen {
  char trace[8192], out[8192], fields[2][4096], more[4096], log[8192];
  pxg_counters counters;
  int released;
} seen;

static bool tell_meta(void *data, const char *key, size_t len, const pxg_str *value) {
  seen *to = data;
  size_t n = strlen(to->more);
  snprintf(to->more + n, sizeof to->more - n, "%.*s=%.*s ", (int)len, key, (int)value->len, value->ptr);
  return true;
}

static void copy(char *to, const char *from, size_t room) {
  CHECK(strlen(from) < room, "found %zu bytes, expected less than %zu", strlen(from), room);
  strncpy(to, from, room - 1)[room - 1] = 0;
}

typedef struct course {
  result what;
  later later;
  moment moment;
  bool pends, body, open, full;
  uint32_t response, why;
} course;

static void follow(const course *c, moment at) {
  if (c->moment != at) return;
  if (c->later == TIMER) {
    pxg_worker_clock(loop, 2000000);
    if (live() && g.waiting) {
      CHECK(pxg_glance_deadline(&g) && pxg_glance_deadline(&g) <= 2000000, "no deadline");
      make_stream();
    }
    if (!live()) pxg_stream_timer(s), drain();
    return;
  }
  act(c->later);
  post();
}

static void run(const course *c, bool glance, seen *to) {
  reset_world();
  quiet();
  by_glance = glance;
  memset(&g, 0, sizeof g);
  what = c->what;
  on[1][PXG_PHASE_REQUEST_HEADERS] = answer;
  configs[1].subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
  configs[1].pend_phases = c->pends ? configs[1].subscribe : 0;
  configs[1].policy.fail_open = c->open;
  if (c->full) configs[1].policy.max_pending = 0;
  configs[1].policy.max_ops = c->what == OVER_LIMIT ? 10 : 32;
  configs[1].policy.max_bytes = 90;
  request(!c->body);
  post();
  follow(c, BEFORE);
  if (c->body) request_end();
  response_head(c->response);
  follow(c, BEHIND_HEAD);
  if (!(c->response & PXG_HEAD_ENDS)) response_end();
  follow(c, BEHIND_END);
  to->more[0] = 0;
  if (!live()) {
    bool recompute;
    const char *cluster = pxg_stream_cluster(s, &recompute), *details = pxg_stream_details(s);
    pxg_place_info info;
    pxg_stream_place(s, 0, &info);
    snprintf(to->more, sizeof to->more, "%s %d %s %d %d ", cluster ? cluster : "", recompute, details ? details : "",
             info.failed, info.replied);
    pxg_stream_metadata(s, tell_meta, to);
  } else {
    snprintf(to->more, sizeof to->more, " 0  0 0 ");
  }
  over(c->why);
  act(c->later); /* Too late. */
  post();
  copy(to->trace, trace, sizeof to->trace);
  copy(to->out, out, sizeof to->out);
  for (int d = 0; d < 2; d++) copy(to->fields[d], fields_of(d, false), sizeof to->fields[d]);
  copy(to->log, said, sizeof to->log);
  memcpy(&to->counters, &counters, sizeof counters);
  memset((void *)&to->counters.call_ns, 0, sizeof to->counters.call_ns);
  memset((void *)&to->counters.call_buckets, 0, sizeof to->counters.call_buckets);
  to->released = released;
}

#define SAME(part)                                                                                                     \
  CHECK(!strcmp(a.part, b.part),                                                                                       \
        "result %d, then %d at %d, pends %d, body %d, open %d, response %x: without a stream \"%s\", with one \"%s\"", \
        c->what, c->later, c->moment, c->pends, c->body, c->open, c->response, b.part, a.part)

static void compare(const course *c) {
  static seen a, b;
  run(c, false, &a);
  run(c, true, &b);
  SAME(trace);
  SAME(out);
  SAME(fields[REQ]);
  SAME(fields[RSP]);
  SAME(more);
  SAME(log);
  CHECK(!memcmp(&a.counters, &b.counters, sizeof a.counters), "result %d, then %d at %d: other counts", c->what,
        c->later, c->moment);
  CHECK(a.released == b.released, "result %d: %d buffers released without a stream, %d with one", c->what, b.released,
        a.released);
}

static void everything(void) {
  static const uint32_t responses[] = {0, PXG_HEAD_ENDS, PXG_HEAD_LOCAL | PXG_HEAD_ENDS};
  for (int i = 0; i < RESULTS * LATERS * MOMENTS; i++) {
    course c = {.what = (result)(i / (LATERS * MOMENTS)),
                .later = (later)(i / MOMENTS % LATERS),
                .moment = (moment)(i % MOMENTS),
                .response = responses[i / 8 % 3],
                .why = i % 5 ? PXG_END_COMPLETE : PXG_END_CLIENT_ABORT};
    for (int way = 0; way < 2; way++) {
      int k = way ? ~i : i / 3; /* Each of the eight with each of the others, but not all with all. */
      c.pends = k & 1, c.body = k & 2, c.open = k & 4;
      compare(&c);
    }
  }
}

/* All that may follow on PENDING. */
static void waits(void) {
  for (int i = 0; i < LATERS * MOMENTS * 8; i++) {
    course c = {.what = PEND,
                .later = (later)(i % LATERS),
                .moment = (moment)(i / LATERS % MOMENTS),
                .pends = true,
                .body = i / LATERS / MOMENTS & 1,
                .open = i / LATERS / MOMENTS & 2,
                .why = i / LATERS / MOMENTS & 4 ? PXG_END_COMPLETE : PXG_END_CLIENT_ABORT};
    compare(&c);
  }
}

/* As many as may be pending are. */
static void cap(void) {
  compare(&(course){.pends = true, .full = true});
  compare(&(course){.pends = true, .full = true, .open = true, .body = true, .later = A_REPLY});
}

static void suits(void) {
  reset_world();
  CHECK(!pxg_glance_suits(&configs[1]), "found a filter of all phases that suits");
  configs[1].subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
  CHECK(pxg_glance_suits(&configs[1]), "found a filter of the head that does not suit");
  configs[1].body_mode[RSP] = PXG_BODY_WHOLE;
  CHECK(!pxg_glance_suits(&configs[1]), "found a filter with a mode of bodies that suits");
}

int main(void) {
  start();
  suits();
  everything();
  waits();
  cap();
  CHECK(decided > 10, "%d completions took no stream, expected more than 10", decided);
  CHECK(without > 300, "%d runs had no stream to their end, expected more than 300", without);
  pxg_worker_free(loop);
  return finish("glance");
}
