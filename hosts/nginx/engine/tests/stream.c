/* SPDX-License-Identifier: Apache-2.0 */

/* The machine of 7.11 row by row, operations, replies and failures. */

#include "stream.h"

static void pend(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
}
static void more(const pxg_event *ev, pxg_result *o) {
  if (!(ev->flags & (PXG_EV_BODY_END | PXG_EV_END_STREAM))) o->action = PXG_ACT_MORE, o->more_bytes = 4;
}
static void fail(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_ERROR;
  o->error = str("panic: it \x01 broke");
}
static void reset(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_RESET;
}
static void unset(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_UNSET;
}
static void add(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->scratch_ops[0] = (pxg_op){PXG_OP_HEADER_ADD, 0, 0, 0, str("x-new"), {str("v"), 0, 0}};
  o->ops = o->scratch_ops;
  o->n_ops = 1;
}
static void add_and_fail(const pxg_event *ev, pxg_result *o) {
  if (ev->phase == PXG_PHASE_REQUEST_HEADERS) return add(ev, o);
  fail(ev, o);
}
static void replace_body(const pxg_event *ev, pxg_result *o) {
  uint64_t n = 0;
  for (uint64_t i = 0; i < ev->n_chunks; i++) n += ev->chunks[i].len;
  o->scratch_ops[0] = (pxg_op){PXG_OP_INJECT, 0, 0, 0, {0}, {{(const uint8_t *)"<new>", 5, PXG_BUF_OWNED}, release, 1}};
  o->scratch_ops[1] = (pxg_op){.kind = PXG_OP_DROP, .u0 = n};
  o->ops = o->scratch_ops;
  o->n_ops = 2;
}
static void reply(const pxg_event *ev, pxg_result *o) {
  static pxg_reply r;
  static pxg_field f;
  static pxg_buf parts[2];
  (void)ev;
  f = (pxg_field){str("x-r"), str("1")};
  parts[0] = (pxg_buf){str("no "), 0, 0};
  parts[1] = (pxg_buf){{(const uint8_t *)"way", 3, PXG_BUF_OWNED}, release, 1};
  r = (pxg_reply){sizeof r, 403, 0, 0, &f, 1, parts, 2, NULL, 0, str("denied")};
  o->reply = &r;
  o->action = PXG_ACT_REPLY;
}

static void plain(void) {
  reset_world();
  begin(2);
  head(REQ, true);
  head(RSP, false);
  bytes(RSP, "hello");
  end(RSP, false);
  done(PXG_END_COMPLETE);
  SAW("1rhE 2rhE 2sh 1sh 1log1101 2log1101 1end 2end ");
  LEFT("rhead. rend shead send ");
  BODY(RSP, "hello");
}

/* D03: a phase that is not subscribed causes no crossing. D12. */
static void unsubscribed(void) {
  reset_world();
  configs[1].subscribe = PXG_PHASE_BIT(PXG_PHASE_LOG);
  begin(1);
  head(REQ, false);
  bytes(REQ, "abc");
  end(REQ, false);
  head(RSP, true);
  done(PXG_END_COMPLETE);
  SAW("1log1101 1end ");
  LEFT("rhead rend shead. send ");
  BODY(REQ, "abc");
}

/* A worker that is awake is not rung for. */
static void awake(void) {
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, true);
  pxg_worker_awake(loop, true);
  CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_OK && !bells, "%d bells", bells);
  pxg_worker_awake(loop, false);
  mail();
  LEFT("rhead. rend ");
  done(PXG_END_COMPLETE);
}

/* D01, D04, D06 and parking; D10 with RESUMED. */
static void pending(void) {
  reset_world();
  configs[1].body_mode[REQ] = PXG_BODY_STREAM;
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, false);
  bytes(REQ, "ab");
  LEFT("");
  CHECK(pxg_stream_deadline(s) == 2000, "%d", (int)pxg_stream_deadline(s));
  CHECK(pxg_worker_batch_due(loop), "no batch end");
  CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_OK, "complete");
  CHECK(bells == 1, "%d bells", bells);
  mail();
  LEFT("rhead ");
  SAW("1rh 1rbR@0=ab ");
  end(REQ, false);
  SAW("1rh 1rbR@0=ab 1rbEB@2= ");
  done(PXG_END_COMPLETE);
}

/* The peer direction waits, unless the configuration says DUPLEX. */
static void parked(void) {
  for (int duplex = 0; duplex < 2; duplex++) {
    reset_world();
    configs[1].body_mode[REQ] = PXG_BODY_STREAM;
    configs[1].flags = duplex ? PXG_CFG_DUPLEX : 0;
    on[1][PXG_PHASE_REQUEST_BODY] = pend;
    begin(1);
    head(REQ, false);
    bytes(REQ, "ab");
    uint64_t token = tokens[1];
    head(RSP, false);
    bytes(RSP, "cd");
    SAW(duplex ? "1rh 1rb@0=ab 1sh " : "1rh 1rb@0=ab ");
    LEFT(duplex ? "rhead shead " : "rhead ");
    tokens[1] = token;
    CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_OK, "complete");
    mail();
    LEFT("rhead shead ");
    BODY(REQ, "ab");
    BODY(RSP, "cd");
    done(PXG_END_CLIENT_ABORT);
  }
}

/* D05, D09 and D08 in WHOLE, with an exact length. */
static void whole(void) {
  reset_world();
  configs[1].body_mode[REQ] = PXG_BODY_WHOLE;
  on[1][PXG_PHASE_REQUEST_BODY] = replace_body;
  begin(1);
  head(REQ, false);
  CHECK(pxg_stream_wants_body_first(s, PXG_DIR_REQUEST), "the body is not wanted");
  bytes(REQ, "abc");
  bytes(REQ, "def");
  LEFT("");
  end(REQ, false);
  SAW("1rh 1rbEBWh@0=abcdef ");
  LEFT("rhead rend ");
  BODY(REQ, "<new>");
  FIELDS(REQ, false, ":method=GET,:path=/,x-a=1,x-a=2,content-length=5");
  CHECK(released == 1, "released %d times", released);
  done(PXG_END_COMPLETE);
}

/* D02: WHOLE where headers are not subscribed, also without a body. */
static void whole_alone(void) {
  reset_world();
  configs[1].subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY);
  configs[1].body_mode[REQ] = PXG_BODY_WHOLE;
  begin(1);
  head(REQ, true);
  SAW("1rbEBWh@0= ");
  LEFT("rhead. rend ");
  done(PXG_END_COMPLETE);
}

/* D07, D09 by more_bytes and by the hold time. */
static void more_bytes(void) {
  reset_world();
  configs[1].body_mode[REQ] = PXG_BODY_STREAM;
  on[1][PXG_PHASE_REQUEST_HEADERS] = on[1][PXG_PHASE_REQUEST_BODY] = more;
  begin(1);
  head(REQ, false);
  bytes(REQ, "abc");
  SAW("1rh ");
  bytes(REQ, "d");
  SAW("1rh 1rbh@0=abcd ");
  bytes(REQ, "e");
  CHECK(pxg_stream_deadline(s) == 1100, "%d", (int)pxg_stream_deadline(s));
  pxg_worker_clock(loop, 1100);
  pxg_stream_timer(s);
  SAW("1rh 1rbh@0=abcd 1rbh@0=abcde ");
  LEFT("");
  end(REQ, false);
  LEFT("rhead rend ");
  BODY(REQ, "abcde");
  done(PXG_END_COMPLETE);
}

/* D09 over the limit, and what CONTINUE makes of it (7.5). */
static void over_limit(void) {
  reset_world();
  configs[1].body_mode[REQ] = PXG_BODY_WHOLE;
  configs[1].max_body[REQ] = 4;
  begin(1);
  head(REQ, false);
  bytes(REQ, "abcdef");
  SAW("1rh 1rbhO@0=abcdef ");
  LEFT("rhead ");
  bytes(REQ, "g");
  SAW("1rh 1rbhO@0=abcdef 1rb@6=g ");
  done(PXG_END_CLIENT_ABORT);
  SAW("1rh 1rbhO@0=abcdef 1rb@6=g 1log202 1end ");
}

static void observe(void) {
  reset_world();
  configs[1].body_mode[RSP] = PXG_BODY_OBSERVE;
  begin(1);
  head(REQ, true);
  head(RSP, false);
  bytes(RSP, "abc");
  bytes(RSP, "de");
  end(RSP, false);
  SAW("1rhE 1sh 1sb@0=abc 1sb@3=de 1sbEB@5= ");
  BODY(RSP, "abcde");
  on[1][PXG_PHASE_LOG] = pend;
  done(PXG_END_COMPLETE);
  CHECK(counters.failures[PXG_R_INVALID] == 1, "LOG may not pend");
}

static void to_skip(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->body_mode[REQ] = PXG_BODY_SKIP;
}

/* D11: WAKE makes what is held pass. */
static void leave_hold(void) {
  reset_world();
  configs[1].body_mode[REQ] = PXG_BODY_STREAM;
  configs[1].subscribe &= ~PXG_PHASE_BIT(PXG_PHASE_REQUEST_TRAILERS);
  on[1][PXG_PHASE_REQUEST_HEADERS] = more;
  on[1][PXG_PHASE_WAKE] = to_skip;
  begin(1);
  head(REQ, false);
  bytes(REQ, "ab");
  CHECK(pxg_wake(77, handles[1], 5) == PXG_OK && pxg_wake(77, handles[1], 8) == PXG_OK, "wake");
  LEFT("");
  mail();
  SAW("1rh 1waked ");
  LEFT("rhead ");
  BODY(REQ, "ab");
  done(PXG_END_COMPLETE);
}

/* D13, D14: open passes everything unmodified; changed before, it is closed. */
static void open_and_closed(void) {
  reset_world();
  configs[1].body_mode[REQ] = PXG_BODY_STREAM;
  configs[1].policy.fail_open = true;
  on[1][PXG_PHASE_REQUEST_BODY] = fail;
  begin(1);
  head(REQ, false);
  bytes(REQ, "abc");
  bytes(REQ, "def");
  end(REQ, false);
  head(RSP, true);
  SAW("1rh 1rb@0=abc ");
  LEFT("rhead rend shead. send ");
  BODY(REQ, "abcdef");
  CHECK(counters.bypassed == 1 && counters.failures[PXG_R_PANIC] == 1, "not counted");
  CHECK(pxg_wake(77, handles[1], 1) == PXG_E_STALE, "the handle lives");
  done(PXG_END_COMPLETE);
  SAW("1rh 1rb@0=abc 1end ");

  reset_world();
  configs[1].body_mode[REQ] = PXG_BODY_STREAM;
  configs[1].policy.fail_open = true;
  on[1][PXG_PHASE_REQUEST_HEADERS] = on[1][PXG_PHASE_REQUEST_BODY] = add_and_fail;
  begin(1);
  head(REQ, false);
  bytes(REQ, "abc");
  LEFT("rhead shead.! send ");
  FIELDS(RSP, false, ":status=500,content-length=0");
  CHECK(!strcmp(pxg_stream_details(s), "one.panic"), "%s", pxg_stream_details(s));
  done(PXG_END_COMPLETE);

  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = unset;
  begin(2);
  head(REQ, true);
  SAW("1rhE ");
  LEFT("shead.! send ");
  done(PXG_END_COMPLETE);
  SAW("1rhE 2log1106 1end 2end ");
}

/* D15: RESET, REPLY at the request and at the response, with another place pending. */
static void replies(void) {
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = reset;
  begin(1);
  head(REQ, true);
  LEFT("RESET ");
  done(PXG_END_COMPLETE);
  SAW("1rhE 1log406 1end ");

  reset_world();
  on[2][PXG_PHASE_REQUEST_HEADERS] = reply;
  begin(3);
  head(REQ, true);
  SAW("1rhE 2rhE 1shL ");
  LEFT("shead! send ");
  BODY(RSP, "no way");
  FIELDS(RSP, false, ":status=403,x-r=1,content-length=6");
  CHECK(!strcmp(pxg_stream_details(s), "two.denied"), "%s", pxg_stream_details(s));
  CHECK(released == 1, "released %d times", released);
  done(PXG_END_COMPLETE);
  SAW("1rhE 2rhE 1shL 1log1105 2log1105 3log1105 1end 2end 3end ");

  reset_world();
  configs[2].flags = PXG_CFG_DUPLEX;
  configs[2].body_mode[REQ] = PXG_BODY_STREAM;
  on[2][PXG_PHASE_REQUEST_BODY] = pend;
  on[1][PXG_PHASE_RESPONSE_HEADERS] = reply;
  begin(2);
  head(REQ, false);
  bytes(REQ, "ab");
  head(RSP, false);
  SAW("1rh 2rh 2rb@0=ab 2sh 1sh 2cancel ");
  LEFT("rhead shead! send ");
  CHECK(complete(2, PXG_ACT_CONTINUE) == PXG_E_STALE, "the token lives");
  done(PXG_END_COMPLETE);

  reset_world();
  on[1][PXG_PHASE_RESPONSE_BODY] = reply;
  configs[1].body_mode[RSP] = PXG_BODY_STREAM;
  begin(1);
  head(REQ, true);
  head(RSP, false);
  bytes(RSP, "x");
  LEFT("rhead. rend shead RESET ");
  CHECK(counters.late_replies == 1 && released == 1, "late %d, released %d", (int)counters.late_replies, released);
  done(PXG_END_COMPLETE);
}

/* D16 to D18: aborts at each step, deadline, hold span. */
static void aborts(void) {
  static const script steps[] = {NULL, pend, more};
  for (int i = 0; i < 3; i++)
    for (int k = 0; k < 5; k++) {
      reset_world();
      configs[1].body_mode[REQ] = configs[1].body_mode[RSP] = PXG_BODY_STREAM;
      configs[1].flags = PXG_CFG_DUPLEX;
      for (int p = 1; p < 7; p++) on[1][p] = i == 2 && p % 3 == 0 ? NULL : steps[i];
      begin(2);
      if (k > 0) head(REQ, false);
      if (k > 1) bytes(REQ, "abcd");
      if (k > 2) head(RSP, false);
      if (k > 3) bytes(RSP, "abcd");
      done(PXG_END_CLIENT_ABORT);
      CHECK(!strstr(trace, "cancel") == !(i == 1 && k), "step %d %d: %s", i, k, trace);
      CHECK(strstr(trace, "1log") && strstr(trace, "2log"), "no log: %s", trace);
      CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_E_STALE, "the token lives");
    }
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, true);
  pxg_worker_clock(loop, pxg_stream_deadline(s));
  pxg_stream_timer(s);
  drain();
  SAW("1rhE 1cancel ");
  LEFT("shead.! send ");
  CHECK(counters.failures[PXG_R_DEADLINE] == 1, "not counted");
  done(PXG_END_COMPLETE);
}

static void edit(const pxg_event *ev, pxg_result *o) {
  pxg_op *p = o->scratch_ops;
  (void)ev;
  p[0] = (pxg_op){PXG_OP_SET_AT, 0, 0, 2, {0}, {str("one"), 0, 0}};
  p[1] = (pxg_op){.kind = PXG_OP_DELETE_AT, .u0 = 3};
  p[2] = (pxg_op){PXG_OP_SET_AT, PXG_OPF_MUST, 0, 3, {0}, {str("gone"), 0, 0}};
  p[3] = (pxg_op){PXG_OP_HEADER_SET, 0, 0, 0, str(":path"), {str("/new"), 0, 0}};
  p[4] = (pxg_op){PXG_OP_METADATA_SET, 0, 0, 0, str("k"), {str("v"), 0, 0}};
  p[5] = (pxg_op){PXG_OP_ROUTE, 0, 0, 0, str("cluster"), {str("blue"), 0, 0}};
  p[6] = (pxg_op){.kind = 999};
  o->ops = p;
  o->n_ops = 7;
}
static void bad_name(const pxg_event *ev, pxg_result *o) {
  add(ev, o);
  o->scratch_ops[1] = o->scratch_ops[0];
  o->scratch_ops[1].key = str("X-Upper");
  o->scratch_ops[1].val = (pxg_buf){{(const uint8_t *)"v", 1, PXG_BUF_OWNED}, release, 1};
  o->n_ops = 2;
}

static void operations(void) {
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = edit;
  begin(1);
  head(REQ, true);
  FIELDS(REQ, false, ":method=GET,x-a=one,:path=/new");
  CHECK(counters.skipped == 2, "skipped %d", (int)counters.skipped);
  CHECK(pxg_stream_cluster(s, NULL) && !strcmp(pxg_stream_cluster(s, NULL), "blue"), "no cluster");
  done(PXG_END_COMPLETE);

  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = bad_name;
  begin(1);
  head(REQ, true);
  FIELDS(REQ, false, ":method=GET,:path=/,x-a=1,x-a=2");
  LEFT("shead.! send ");
  CHECK(released == 1, "released %d times", released);
  done(PXG_END_COMPLETE);

  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = add;
  fail_after = 1;
  begin(1);
  head(REQ, true);
  LEFT("RESET ");
  done(PXG_END_COMPLETE);
}

static void trailers(void) {
  reset_world();
  field(RSP, true, "t", "1");
  begin(2);
  head(REQ, true);
  head(RSP, false);
  bytes(RSP, "a");
  end(RSP, true);
  SAW("1rhE 2rhE 2sh 1sh 2stE 1stE ");
  LEFT("rhead. rend shead send+ ");
  done(PXG_END_COMPLETE);
}

int main(void) {
  start();
  plain();
  unsubscribed();
  pending();
  awake();
  parked();
  whole();
  whole_alone();
  more_bytes();
  over_limit();
  observe();
  leave_hold();
  open_and_closed();
  replies();
  aborts();
  operations();
  trailers();
  pxg_worker_free(loop);
  return finish("stream");
}
