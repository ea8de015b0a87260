/* SPDX-License-Identifier: Apache-2.0 */

/* The life of a token (A01 to A10), apply, wake, streamed replies, and completions that race. */

#include <pthread.h>
#include <sched.h>

#include "stream.h"

static int32_t answer;

static void pend(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
}

static int32_t complete_with_value(uint64_t ctx, uint32_t action) {
  pxg_op op = {PXG_OP_HEADER_ADD, 0, 0, 0, str("x-new"), {{(const uint8_t *)"v", 1, PXG_BUF_OWNED}, release, 1}};
  pxg_result r = {.size = sizeof r, .action = action, .ops = &op, .n_ops = 1};
  return pxg_complete(ctx, tokens[1], &r);
}

static void early(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
  answer = complete_with_value(77, PXG_ACT_CONTINUE);
  CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_E_STALE, "A09: completed twice");
}

static void early_and_continue(const pxg_event *ev, pxg_result *o) {
  early(ev, o);
  o->action = PXG_ACT_CONTINUE;
}

/* A01, A02, A05, A06, A09. */
static void within_the_event(void) {
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = early;
  begin(1);
  head(REQ, true);
  CHECK(answer == PXG_OK, "answered %d", answer);
  mail();
  LEFT("rhead. rend ");
  FIELDS(REQ, false, ":method=GET,:path=/,x-a=1,x-a=2,x-new=v");
  CHECK(released == 1, "released %d times", released);
  done(PXG_END_COMPLETE);

  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = early_and_continue;
  begin(1);
  head(REQ, true);
  mail();
  FIELDS(REQ, false, ":method=GET,:path=/,x-a=1,x-a=2");
  CHECK(released == 1 && counters.stale == 1, "released %d, stale %d", released, (int)counters.stale);
  done(PXG_END_COMPLETE);
}

/* A03, A04, A07, A09, A10. */
static void after_the_event(void) {
  reset_world();
  begin(1);
  head(REQ, false);
  CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_E_STALE, "A04");
  done(PXG_END_COMPLETE);

  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, true);
  uint64_t token = tokens[1];
  pxg_result small = {.size = 8, .action = PXG_ACT_CONTINUE}, flags = {.size = sizeof flags, .action = 1, .flags = 64};
  CHECK(complete_with_value(78, PXG_ACT_CONTINUE) == PXG_E_STALE, "a foreign token");
  CHECK(complete(1, PXG_ACT_PENDING) == PXG_E_STATE, "A10 PENDING");
  CHECK(complete(1, PXG_ACT_UNSET) == PXG_E_ARG, "A10 UNSET");
  CHECK(complete(1, PXG_ACT_MORE) == PXG_E_STATE, "A10 MORE at the end");
  CHECK(pxg_complete(77, token, &small) == PXG_E_ARG, "A10 size");
  CHECK(pxg_complete(77, token, &flags) == PXG_E_UNSUPPORTED, "A10 flags");
  CHECK(pxg_complete(77, token ^ 1ull << 30, &flags) == PXG_E_STALE, "another generation");
  CHECK(pxg_complete(77, 0, &flags) == PXG_E_STALE, "0");
  CHECK(pxg_complete(77, handles[1], &flags) == PXG_E_STALE, "a handle is no token");
  CHECK(complete_with_value(77, PXG_ACT_CONTINUE) == PXG_OK, "A07");
  CHECK(complete_with_value(77, PXG_ACT_CONTINUE) == PXG_E_STALE, "A09");
  mail();
  LEFT("rhead. rend ");
  CHECK(released == 3, "released %d times", released);
  done(PXG_END_COMPLETE);
}

/* A08, and a completion that the stream's death overtakes. */
static void cancelled(void) {
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, true);
  done(PXG_END_CLIENT_ABORT);
  SAW("1rhE 1cancel 1log202 1end ");
  CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_E_STALE, "A09");

  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, true);
  CHECK(complete_with_value(77, PXG_ACT_CONTINUE) == PXG_OK, "A07");
  done(PXG_END_CLIENT_ABORT);
  SAW("1rhE 1log202 1end ");
  CHECK(released == 1, "released %d times", released);
  CHECK(!pxg_worker_next(loop), "mail for the dead");
}

/* 14.4: the cap, without a crossing. */
static void capped(void) {
  reset_world();
  configs[1].policy.max_pending = 0;
  begin(1);
  head(REQ, true);
  SAW("");
  LEFT("shead.! send ");
  CHECK(counters.failures[PXG_R_CAP] == 1, "not counted");
  done(PXG_END_COMPLETE);
}

static int32_t apply(uint32_t action, pxg_op *ops, uint64_t n) {
  pxg_result r = {.size = sizeof r, .action = action, .ops = ops, .n_ops = n};
  return pxg_apply(77, handles[1], &r);
}

/* REPLY by apply while pending; what apply does not take. */
static void applied(void) {
  pxg_op header = {PXG_OP_HEADER_ADD, 0, 0, 0, str("x"), {str("v"), 0, 0}};
  pxg_reply r = {.size = sizeof r, .status = 429};
  pxg_result reply = {.size = sizeof reply, .action = PXG_ACT_REPLY, .reply = &r};
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, true);
  CHECK(apply(PXG_ACT_MORE, NULL, 0) == PXG_E_STATE, "MORE");
  CHECK(apply(PXG_ACT_CONTINUE, &header, 1) == PXG_E_ARG, "a header");
  CHECK(apply(PXG_ACT_CONTINUE, NULL, 2) == PXG_E_ARG, "NULL");
  CHECK(pxg_apply(78, handles[1], &reply) == PXG_E_STALE && pxg_wake(78, handles[1], 1) == PXG_E_STALE,
        "a foreign handle");
  CHECK(pxg_apply(77, tokens[1], &reply) == PXG_E_STALE && pxg_wake(77, tokens[1], 1) == PXG_E_STALE, "a token");
  CHECK(pxg_apply(77, handles[1], &reply) == PXG_OK, "REPLY");
  mail();
  SAW("1rhE 1cancel ");
  LEFT("shead.! send ");
  FIELDS(RSP, false, ":status=429,content-length=0");
  done(PXG_END_COMPLETE);
  CHECK(apply(PXG_ACT_CONTINUE, NULL, 0) == PXG_E_STALE, "the handle lives");
}

static void open_reply(const pxg_event *ev, pxg_result *o) {
  static pxg_reply r;
  static pxg_buf part;
  (void)ev;
  part = (pxg_buf){str("first "), 0, 0};
  r = (pxg_reply){.size = sizeof r, .status = 200, .flags = PXG_REPLY_OPEN, .body = &part, .n_body = 1};
  o->reply = &r;
  o->action = PXG_ACT_REPLY;
}

static void streamed(void) {
  static uint8_t big[PXG_WATERMARK + 1];
  pxg_op w = {PXG_OP_BODY_WRITE, 0, 0, 0, {0}, {str("second "), 0, 0}};
  pxg_op last = {PXG_OP_BODY_WRITE, PXG_OPF_END, 0, 0, {0}, {str("third"), 0, 0}};
  pxg_op flood = {PXG_OP_BODY_WRITE, 0, 0, 0, {0}, {{big, sizeof big, PXG_BUF_STATIC}, NULL, 0}};
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = open_reply;
  begin(1);
  head(REQ, true);
  LEFT("shead!~ ");
  CHECK(apply(PXG_ACT_CONTINUE, &w, 1) == PXG_OK && apply(PXG_ACT_CONTINUE, &last, 1) == PXG_OK, "writes");
  CHECK(apply(PXG_ACT_CONTINUE, &w, 1) == PXG_OK, "a late write");
  mail();
  LEFT("shead!~ send ");
  BODY(RSP, "first second third");
  CHECK(counters.skipped == 1, "skipped %d", (int)counters.skipped);
  done(PXG_END_COMPLETE);

  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = open_reply;
  begin(1);
  head(REQ, true);
  pxg_stream_waiting(s, 1);
  CHECK(apply(PXG_ACT_CONTINUE, &flood, 1) == PXG_FULL, "FULL");
  CHECK(apply(PXG_ACT_CONTINUE, &w, 1) == PXG_E_LIMIT, "LIMIT");
  pxg_out o;
  pxg_worker_next(loop);
  SAW("1rhE ");
  while (pxg_take(s, &o)) pxg_slice_drop(&o.slice);
  pxg_stream_waiting(s, 0);
  SAW("1rhE 1wake0 ");
  CHECK(apply(PXG_ACT_CONTINUE, &w, 1) == PXG_OK, "room");
  mail();
  pxg_worker_clock(loop, pxg_stream_deadline(s));
  pxg_stream_timer(s);
  n_out = 0;
  drain();
  LEFT("RESET ");
  CHECK(counters.failures[PXG_R_DEADLINE] == 1, "idle");
  done(PXG_END_COMPLETE);
}

/* Completions of another thread race the deaths of their streams: one of the two wins, and buffers go once. */
static _Atomic uint64_t racing;
static _Atomic int accepted, ready_to_end;

static void *racer(void *none) {
  pxg_op op = {PXG_OP_HEADER_ADD, 0, 0, 0, str("x-new"), {{(const uint8_t *)"v", 1, PXG_BUF_OWNED}, release, 1}};
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &op, .n_ops = 1};
  while (!ready_to_end) {
    uint64_t token = atomic_exchange(&racing, 0);
    if (token && pxg_complete(77, token, &r) == PXG_OK) accepted++;
    if (!token) sched_yield(); /* valgrind runs one thread at a time. */
  }
  return none;
}

static void race(void) {
  pthread_t t;
  int cancels = 0, rounds = 2000;
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  pthread_create(&t, NULL, racer, NULL);
  for (int i = 0; i < rounds; i++) {
    begin(1);
    n_trace = n_out = 0;
    lists[REQ][0].n = 4;
    head(REQ, true);
    racing = tokens[1];
    for (int k = 0; k < i % 50; k++) pxg_stream_deadline(s);
    if (i % 2) pxg_worker_next(loop);
    while (racing) sched_yield();
    done(PXG_END_CLIENT_ABORT);
    cancels += strstr(trace, "cancel") != NULL;
  }
  ready_to_end = 1;
  pthread_join(t, NULL);
  CHECK(cancels + accepted == rounds, "%d cancels and %d completions of %d", cancels, (int)accepted, rounds);
  CHECK(released == rounds, "released %d of %d", released, rounds);
}

int main(void) {
  start();
  within_the_event();
  after_the_event();
  cancelled();
  capped();
  applied();
  streamed();
  race();
  pxg_worker_free(loop);
  return finish("tokens");
}
