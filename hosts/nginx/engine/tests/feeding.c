/* SPDX-License-Identifier: Apache-2.0 */

/* What the driver says and asks beside the plain course of a message: responses that replace others, upgrades, redirects,
 * bytes that go past, the calls of a worker, records of a stream. */

#include "stream.h"

static void pend(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
}
static void fail(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_ERROR;
  o->error = str("it broke");
}

/* 5.6: a response of the host's own in the place of one that is on its way. */
static void replaced(void) {
  /* The second place has the head and thinks; the first one has not seen it, and sees the new one. */
  reset_world();
  on[2][PXG_PHASE_RESPONSE_HEADERS] = pend;
  begin(2);
  head(REQ, true);
  head(RSP, false);
  bytes(RSP, "old");
  SAW("1rhE 2rhE 2sh ");
  uint64_t token = tokens[2];
  pxg_stream_head(s, RSP, PXG_HEAD_LOCAL | PXG_HEAD_ENDS);
  drain();
  SAW("1rhE 2rhE 2sh 2cancel 1shEL ");
  LEFT("rhead. rend shead. send ");
  BODY(RSP, "");
  tokens[2] = token;
  CHECK(complete(2, PXG_ACT_CONTINUE) == PXG_E_STALE, "the token lives");
  done(PXG_END_COMPLETE);
  /* Nobody sees the second head where all had the first one. */
  reset_world();
  begin(1);
  head(REQ, true);
  head(RSP, false);
  pxg_stream_head(s, RSP, PXG_HEAD_LOCAL);
  drain();
  bytes(RSP, "new");
  end(RSP, false);
  SAW("1rhE 1sh ");
  LEFT("rhead. rend shead shead send ");
  BODY(RSP, "new");
  done(PXG_END_COMPLETE);
}

static uint32_t flags_seen;

static void keep_flags(const pxg_event *ev, pxg_result *o) {
  (void)o;
  flags_seen = ev->flags;
}

static void upgraded(void) {
  reset_world();
  configs[1].body_mode[RSP] = PXG_BODY_STREAM;
  begin(1);
  head(REQ, true);
  on[1][PXG_PHASE_RESPONSE_HEADERS] = on[1][PXG_PHASE_WAKE] = keep_flags;
  pxg_stream_head(s, RSP, PXG_HEAD_UPGRADED);
  drain();
  CHECK(flags_seen & PXG_EV_UPGRADED, "found flags 0x%x", flags_seen);
  bytes(RSP, "frames");
  CHECK(pxg_wake(77, handles[1], 1) == PXG_OK, "wake");
  mail();
  CHECK(flags_seen & PXG_EV_UPGRADED, "found flags 0x%x", flags_seen);
  SAW("1rhE 1shE 1wake1 ");
  LEFT("rhead. rend shead. send ");
  BODY(RSP, "");
  done(PXG_END_COMPLETE);
}

static void flags(void) {
  static const uint32_t ways[] = {PXG_STREAM_REDIRECTED, PXG_STREAM_SUBREQUEST, 0};
  static const uint32_t expected[] = {PXG_EV_REDIRECTED, PXG_EV_SUBREQUEST, PXG_EV_EOS_UNKNOWN};
  for (int i = 0; i < 3; i++) {
    reset_world();
    open_with = ways[i];
    configs[1].flags = PXG_CFG_SUBREQUESTS;
    on[1][PXG_PHASE_REQUEST_HEADERS] = on[1][PXG_PHASE_RESPONSE_HEADERS] = keep_flags;
    begin(1);
    pxg_stream_head(s, REQ, i == 2 ? PXG_HEAD_EOS_UNKNOWN : 0);
    drain();
    CHECK((flags_seen & ~PXG_EV_CAN_REPLY) == expected[i], "found flags 0x%x", flags_seen);
    if (i == 2) pxg_stream_redirected(s);
    head(RSP, true);
    CHECK((flags_seen & ~PXG_EV_CAN_REPLY) == (PXG_EV_END_STREAM | expected[i == 2 ? 0 : i]), "found flags 0x%x",
          flags_seen);
    CHECK(pxg_stream_data(s) == NULL, "data");
    done(PXG_END_COMPLETE);
  }
}

static void skip_the_rest(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->body_mode[REQ] = PXG_BODY_SKIP;
}

/* Bytes that no place looks at need not be fed; they count for offsets and for content-length. */
static void passed_by(void) {
  reset_world();
  configs[1].body_mode[REQ] = PXG_BODY_STREAM;
  on[1][PXG_PHASE_REQUEST_BODY] = skip_the_rest;
  field(REQ, false, "content-length", "10");
  begin(1);
  CHECK(pxg_stream_sees_body(s, REQ), "before the head");
  head(REQ, false);
  CHECK(pxg_stream_sees_body(s, REQ) && !pxg_stream_wants_body_first(s, REQ) && !pxg_stream_holds(s, REQ), "STREAM");
  bytes(REQ, "abc");
  CHECK(!pxg_stream_sees_body(s, REQ), "SKIP");
  pxg_stream_skip(s, REQ, 6);
  bytes(REQ, "j");
  end(REQ, false);
  head(RSP, true);
  LEFT("rhead rend shead. send ");
  CHECK(!pxg_stream_sees_body(s, REQ) && !pxg_stream_sees_body(s, RSP), "over");
  CHECK(!counters.failures[PXG_R_INVALID], "%s", said);
  done(PXG_END_COMPLETE);
  /* Short of it, it is a failure. */
  reset_world();
  quiet();
  configs[1].body_mode[REQ] = PXG_BODY_STREAM;
  on[1][PXG_PHASE_REQUEST_BODY] = skip_the_rest;
  field(REQ, false, "content-length", "10");
  begin(1);
  head(REQ, false);
  bytes(REQ, "abc");
  pxg_stream_skip(s, REQ, 6);
  end(REQ, false);
  LEFT("rhead shead.! send ");
  HAS(said, "the body ended short of content-length [PXG-HDR-007]");
  done(PXG_END_COMPLETE);
}

/* A guest that fails in WAKE before a head has come to it is bypassed by that head, too. */
static void bypassed_before(void) {
  reset_world();
  configs[1].policy.fail_open = true;
  on[1][PXG_PHASE_WAKE] = fail;
  begin(1);
  head(REQ, true);
  CHECK(pxg_wake(77, handles[1], 1) == PXG_OK, "wake");
  mail();
  head(RSP, false);
  bytes(RSP, "abc");
  end(RSP, false);
  SAW("1rhE 1wake1 ");
  LEFT("rhead. rend shead send ");
  BODY(RSP, "abc");
  pxg_place_info info;
  CHECK(pxg_stream_place(s, 0, &info) && info.failed && !info.replied && info.config == &configs[1], "the place");
  done(PXG_END_COMPLETE);
}

/* ---- the worker -------------------------------------------------------------------------------------------------- */

static pxg_guest_lib *real;

static void on_worker(uint64_t ctx, uint32_t worker, uint32_t up) {
  (void)ctx;
  note("worker%d%s ", (int)worker, up ? "up" : "down");
}

static void take_too_much(const pxg_event *ev, pxg_result *o) {
  fail(ev, o);
  CHECK(!real->host.scratch_more(real->ctx, 1ull << 40), "scratch without an end");
}

/* Functions of this test in the place of a library's. */
static void world_of_a_library(void) {
  reset_world();
  real->table.on_event = on_event;
  real->table.on_cancel = on_cancel;
  real->table.on_stream_end = on_stream_end;
  real->table.on_batch_end = on_batch_end;
  real->table.on_worker = on_worker;
  for (int i = 1; i <= MOST; i++) configs[i].lib = real;
}

static void workers(void) {
  world_of_a_library();
  pxg_worker *old = loop;
  loop = pxg_worker_new(1, bell, NULL);
  pxg_worker_clock(loop, 1000);
  pxg_worker_warm_up(loop, real);
  pxg_worker_warm_up(loop, real);
  SAW("worker1up ");
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, true);
  SAW("worker1up 1rhE ");
  CHECK(pxg_worker_batch_due(loop), "no batch");
  pxg_worker_batch_end(loop);
  CHECK(!pxg_worker_batch_due(loop), "still due");
  pxg_worker_batch_end(loop);
  SAW("worker1up 1rhE batch ");
  done(PXG_END_CLIENT_ABORT);
  /* Without the feature, and for a result that is none. */
  on[1][PXG_PHASE_REQUEST_HEADERS] = fail;
  begin(1);
  head(REQ, true);
  CHECK(!pxg_worker_batch_due(loop), "a batch of nothing");
  done(PXG_END_COMPLETE);
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  configs[1].features[0] &= ~(1ull << PXG_F_BATCH_END);
  begin(1);
  head(REQ, true);
  CHECK(!pxg_worker_batch_due(loop), "a batch without the feature");
  done(PXG_END_CLIENT_ABORT);
  n_trace = 0;
  pxg_worker_free(loop);
  SAW("worker1down ");
  loop = old;
  /* A worker that never called the library says nothing to it. */
  n_trace = 0, trace[0] = 0;
  pxg_worker_free(pxg_worker_new(1, bell, NULL));
  SAW("");
}

/* A failure whose cause was scratch over the limit is told as that. */
static void scratch_over_the_limit(void) {
  world_of_a_library();
  on[1][PXG_PHASE_REQUEST_HEADERS] = take_too_much;
  begin(1);
  head(REQ, true);
  CHECK(counters.failures[PXG_R_LIMIT] == 1 && !strcmp(pxg_stream_details(s), "one.limit"), "%s",
        pxg_stream_details(s));
  done(PXG_END_COMPLETE);
}

/* ---- records ----------------------------------------------------------------------------------------------------- */

static char of_stream[1024];

static void keep_record(void *data, uint32_t level, const char *line, size_t len) {
  snprintf(of_stream, sizeof of_stream, "%d %u %.*s", *(int *)data, level, (int)len, line);
}

static void say_and_fail(const pxg_event *ev, pxg_result *o) {
  fail(ev, o);
  real->host.log(real->ctx, PXG_LOG_ERROR, (const uint8_t *)"in the event", 12);
  HAS(of_stream, "7 4 guest=test guest filter=f config=one phase=request_headers stream=99");
  HAS(of_stream, ": in the event");
}

static void records(void) {
  pxg_stream_ops with_log = stream_ops;
  pxg_config *chain[] = {&configs[1]};
  int seven = 7;
  with_log.log = keep_record;
  world_of_a_library();
  quiet();
  on[1][PXG_PHASE_REQUEST_HEADERS] = say_and_fail;
  s = pxg_stream_open(loop, chain, 1, &with_log, &seven, 99, 0);
  head(REQ, true);
  CHECK(*(int *)pxg_stream_data(s) == 7, "data");
  HAS(of_stream, "7 4 guest=test guest filter=f config=one phase=request_headers stream=99 reason=error: it broke");
  CHECK(!n_said, "said elsewhere: %s", said);
  done(PXG_END_COMPLETE);
  /* Outside of an event it is nobody's. */
  real->host.log(real->ctx, PXG_LOG_ERROR, (const uint8_t *)"outside", 7);
  HAS(said, "4 guest=test guest: outside\n");
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  guests = argv[1], scratch = argv[2];
  start();
  real = pxg_guest_load(copy_of("loading.so", "real.so", 0), NULL);
  if (!real) return 2;
  replaced();
  upgraded();
  flags();
  passed_by();
  bypassed_before();
  workers();
  scratch_over_the_limit();
  records();
  pxg_worker_free(loop);
  return finish("feeding");
}
