/* SPDX-License-Identifier: Apache-2.0 */

/* The end of a stream (5.7): what LOG says of it, tokens of a direction that has not ended, and threads that complete
 * while it happens. */

#include <pthread.h>
#include <sched.h>

#include "stream.h"

static void pend(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
}

static uint64_t seen[MOST + 1][PXG_PHASE_WAKE + 1]; /* Tokens. */

static void pend_and_tell(const pxg_event *ev, pxg_result *o) {
  seen[ev->config][ev->phase] = ev->token;
  o->action = PXG_ACT_PENDING;
}

static int32_t complete_token(uint64_t token, uint32_t action) {
  pxg_op op = {PXG_OP_METADATA_SET, 0, 0, 0, str("k"), {{(const uint8_t *)"v", 1, PXG_BUF_OWNED}, release, 1}};
  pxg_result r = {.size = sizeof r, .action = action, .ops = &op, .n_ops = 1};
  return pxg_complete(77, token, &r);
}

/* ---- the response ends first --------------------------------------------------------------------------------------- */

/* A guest with DUPLEX has a part of the request when the response is over. */
static void response_is_over(void) {
  reset_world();
  configs[1].flags = PXG_CFG_DUPLEX;
  configs[1].body_mode[REQ] = PXG_BODY_STREAM;
  on[1][PXG_PHASE_REQUEST_BODY] = pend_and_tell;
  begin(1);
  head(REQ, false);
  bytes(REQ, "abc");
  head(RSP, false);
  bytes(RSP, "done");
  end(RSP, false);
  LEFT("rhead shead send ");
  CHECK(pxg_stream_pends(s, REQ) && !pxg_stream_pends(s, RSP), "the token has gone");
}

static void tokens_of_the_request(void) {
  /* The driver cuts the request: cancelled before LOG, and STALE. */
  response_is_over();
  pxg_stream_finish(s, PXG_END_COMPLETE);
  SAW("1rh 1rb@0=abc 1sh 1cancel 1log1401 1end ");
  CHECK(complete_token(seen[1][PXG_PHASE_REQUEST_BODY], PXG_ACT_CONTINUE) == PXG_E_STALE, "between finish and free");
  done(0);
  CHECK(complete_token(seen[1][PXG_PHASE_REQUEST_BODY], PXG_ACT_CONTINUE) == PXG_E_STALE, "after the end");
  CHECK(released == 2 && counters.cancels == 1, "released %d, %d cancels", released, (int)counters.cancels);

  /* An accepted completion gets no on_cancel, and its buffers go. */
  response_is_over();
  CHECK(complete_token(seen[1][PXG_PHASE_REQUEST_BODY], PXG_ACT_CONTINUE) == PXG_OK, "before the end");
  done(PXG_END_COMPLETE);
  SAW("1rh 1rb@0=abc 1sh 1log1401 1end ");
  CHECK(released == 1 && !counters.cancels, "released %d, %d cancels", released, (int)counters.cancels);
  CHECK(complete_token(seen[1][PXG_PHASE_REQUEST_BODY], PXG_ACT_CONTINUE) == PXG_E_STALE, "after the end");
  CHECK(!pxg_worker_next(loop), "mail for the dead");

  /* The driver lets the request run: it goes on, and ends as it would have. */
  response_is_over();
  CHECK(complete_token(seen[1][PXG_PHASE_REQUEST_BODY], PXG_ACT_CONTINUE) == PXG_OK, "complete");
  mail();
  BODY(REQ, "abc");
  CHECK(pxg_stream_wants(s, REQ), "the rest is not wanted");
  end(REQ, false);
  CHECK(complete_token(seen[1][PXG_PHASE_REQUEST_BODY], PXG_ACT_CONTINUE) == PXG_OK, "complete the end");
  mail();
  LEFT("rhead shead send rend ");
  done(PXG_END_COMPLETE);
  SAW("1rh 1rb@0=abc 1sh 1rbEBR@3= 1log1101 1end ");

  /* A reply, a reset or the failure of the rest can no longer be told to the client. */
  for (uint32_t action = PXG_ACT_REPLY; action <= PXG_ACT_ERROR; action++) {
    pxg_reply reply = {.size = sizeof reply, .status = 403};
    pxg_result r = {.size = sizeof r, .action = action, .reply = action == PXG_ACT_REPLY ? &reply : NULL};
    response_is_over();
    CHECK(pxg_complete(77, seen[1][PXG_PHASE_REQUEST_BODY], &r) == PXG_OK, "complete");
    mail();
    LEFT("rhead shead send RESET ");
    CHECK(counters.late_replies == (action == PXG_ACT_REPLY), "%d late replies", (int)counters.late_replies);
    done(PXG_END_COMPLETE);
  }

  /* Nobody takes it up: the deadline does. */
  response_is_over();
  CHECK(pxg_stream_deadline(s) == 2000, "%d", (int)pxg_stream_deadline(s));
  pxg_worker_clock(loop, 2000);
  pxg_stream_timer(s);
  drain();
  LEFT("rhead shead send RESET ");
  done(PXG_END_COMPLETE);
}

/* ---- what LOG says ------------------------------------------------------------------------------------------------- */

static void causes(void) {
  static const struct {
    uint32_t why;
    int steps; /* 1: the request's head, 2: its end, 3: the response's head, 4: its end. */
    const char *log;
  } all[] = {{PXG_END_COMPLETE, 4, "1log1101 "},
             {PXG_END_CLIENT_ABORT, 0, "1log2 "},
             {PXG_END_CLIENT_ABORT, 1, "1log202 "},
             {PXG_END_CLIENT_ABORT, 3, "1log3102 "},
             {PXG_END_UPSTREAM_RESET, 1, "1log303 "},
             {PXG_END_UPSTREAM_RESET, 2, "1log103 "},
             {PXG_END_UPSTREAM_RESET, 3, "1log2103 "},
             {PXG_END_TIMEOUT, 3, "1log4104 "},
             {PXG_END_TIMEOUT, 1, "1log404 "},
             {PXG_END_ERROR, 3, "1log4106 "},
             {0, 4, "1log1101 "}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    reset_world();
    begin(1);
    if (all[i].steps > 0) head(REQ, false);
    if (all[i].steps > 1) end(REQ, false);
    if (all[i].steps > 2) head(RSP, false);
    if (all[i].steps > 3) end(RSP, false);
    n_trace = 0;
    done(all[i].why);
    CHECK(strstr(trace, all[i].log) == trace, "%d: found %s, expected %s", (int)i, trace, all[i].log);
  }
  /* One that was never finished has ended by an error of the driver's. */
  reset_world();
  begin(1);
  head(REQ, true);
  pxg_stream_free(s);
  SAW("1rhE 1log106 1end ");
  /* Feeding and taking are over after the end. */
  reset_world();
  begin(1);
  head(REQ, false);
  pxg_stream_finish(s, PXG_END_CLIENT_ABORT);
  n_trace = n_out = 0, trace[0] = out[0] = 0;
  bytes(REQ, "late");
  end(REQ, false);
  head(RSP, true);
  pxg_stream_timer(s);
  drain();
  SAW("");
  LEFT("");
  CHECK(!pxg_stream_deadline(s) && !pxg_stream_wants(s, REQ) && !pxg_stream_pends(s, REQ), "it lives");
  CHECK(pxg_wake(77, handles[1], 1) == PXG_E_STALE, "the handle lives");
  done(PXG_END_COMPLETE);
}

/* Tokens in the order of the chain, the request's before the response's; then LOG of all, then the ends of all. */
static void order(void) {
  reset_world();
  configs[1].policy.max_pending = 10;
  for (int i = 1; i <= 3; i++) {
    configs[i].policy.max_pending = 10;
    configs[i].flags = PXG_CFG_DUPLEX;
    configs[i].body_mode[REQ] = configs[i].body_mode[RSP] = PXG_BODY_STREAM;
  }
  on[3][PXG_PHASE_REQUEST_BODY] = on[3][PXG_PHASE_RESPONSE_BODY] = pend_and_tell;
  on[1][PXG_PHASE_REQUEST_BODY] = pend_and_tell;
  begin(3);
  head(REQ, false);
  bytes(REQ, "a");
  CHECK(complete_token(seen[1][PXG_PHASE_REQUEST_BODY], PXG_ACT_CONTINUE) == PXG_OK, "complete");
  mail();
  bytes(REQ, "b");
  head(RSP, false);
  bytes(RSP, "c");
  n_trace = 0;
  CHECK(pending_places[0] == 3, "%d are pending", pending_places[0]);
  done(PXG_END_CLIENT_ABORT);
  SAW("1cancel 3cancel 3cancel 1log3202 2log3202 3log3202 1end 2end 3end ");
}

/* ---- threads ------------------------------------------------------------------------------------------------------- */

enum { THREADS = 4, TOKENS = 8 };

static _Atomic uint64_t offered[TOKENS];
static _Atomic int taken[TOKENS], round_of_main, rounds_done[THREADS], given, given_back, odd;
static _Atomic bool stop;

static void give_back(uint64_t ctx) { given_back += (int)ctx; }

/* All threads complete all tokens, each of them twice; who is first is left to them. */
static void *completer(void *number) {
  int t = (int)(uintptr_t)number;
  for (int round = 1; !stop; round++) {
    while (round_of_main < round && !stop) sched_yield();
    for (int i = 0; i < 2 * TOKENS && !stop; i++) {
      int k = (i + t * 3) % TOKENS;
      pxg_op op = {PXG_OP_METADATA_SET, 0, 0, 0, str("k"), {{(const uint8_t *)"v", 1, PXG_BUF_OWNED}, give_back, 1}};
      pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &op, .n_ops = 1};
      given++;
      int32_t status = pxg_complete(77, offered[k], &r);
      if (status == PXG_OK)
        taken[k]++;
      else if (status != PXG_E_STALE)
        odd = status;
    }
    rounds_done[t] = round;
  }
  return NULL;
}

static void at_once(void) {
  pthread_t threads[THREADS];
  int rounds = getenv("PXG_STRESS") ? 50 * atoi(getenv("PXG_STRESS")) : 50;
  uint64_t accepted = 0;
  reset_world();
  configs[1].policy.max_pending = TOKENS;
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  pxg_log_level(PXG_LOG_OFF); /* The text of the tests' log is not for threads. */
  for (int t = 0; t < THREADS; t++) pthread_create(&threads[t], NULL, completer, (void *)(uintptr_t)t);
  for (int round = 1; round <= rounds; round++) {
    pxg_stream *streams[TOKENS];
    for (int k = 0; k < TOKENS; k++) {
      n_trace = n_out = 0;
      begin(1);
      head(REQ, true);
      streams[k] = s;
      offered[k] = tokens[1];
      taken[k] = 0;
    }
    if (round % 8 != 2) round_of_main = round;
    for (int k = 0; k < TOKENS; k++) {
      uint64_t cancels = counters.cancels;
      n_trace = 0;
      bool threads_first = round % 8 == 1; /* So that both outcomes are met for certain; else nobody waits. */
      while (threads_first && !taken[k]) sched_yield();
      for (int spins = 0; spins < (round * 7 + k) % 5; spins++) sched_yield();
      if ((round + k) % 3 == 0) (void)pxg_worker_next(loop);
      pxg_stream_finish(streams[k], PXG_END_CLIENT_ABORT);
      /* From here on it is settled, whatever threads still try. */
      uint64_t late = counters.cancels - cancels;
      pxg_stream_free(streams[k]);
      streams[k] = (pxg_stream *)(uintptr_t)late;
    }
    round_of_main = round;
    for (int t = 0; t < THREADS; t++)
      while (rounds_done[t] < round) sched_yield();
    for (int k = 0; k < TOKENS; k++) {
      int cancelled = (int)(uintptr_t)streams[k];
      accepted += (uint64_t)taken[k];
      CHECK(taken[k] + cancelled == 1, "round %d: accepted %d times, cancelled %d times", round, taken[k], cancelled);
    }
    while (pxg_worker_next(loop)) { /* void */
    }
  }
  stop = true;
  for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
  CHECK(given == given_back, "%d buffers given, %d given back", given, given_back);
  CHECK(accepted > 0 && counters.cancels > 0, "nothing raced: %d accepted, %d cancelled", (int)accepted,
        (int)counters.cancels);
  CHECK(!odd, "a thread was answered %d", odd);
  CHECK(!pending_places[0], "%u places are counted as pending", pending_places[0]);
}

/* ---- threads against what has no stream ------------------------------------------------------------------------------ */

static _Atomic uint64_t shown_token, shown_handle;
static _Atomic int completed, applied;
static bool pends;

static void pend_at_times(const pxg_event *ev, pxg_result *o) {
  shown_handle = ev->stream; /* Threads may be first, before the event has returned. */
  shown_token = ev->token;
  if (pends) pend(ev, o);
}

static void *disturber(void *none) {
  while (!stop) {
    pxg_op op = {PXG_OP_METADATA_SET, 0, 0, 0, str("k"), {{(const uint8_t *)"v", 1, PXG_BUF_OWNED}, give_back, 1}};
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &op, .n_ops = 1};
    given += 2;
    int32_t a = pxg_complete(77, shown_token, &r), b = pxg_apply(77, shown_handle, &r),
            c = pxg_wake(77, shown_handle, 1);
    completed += a == PXG_OK;
    applied += b == PXG_OK;
    if ((a != PXG_OK && a != PXG_E_STALE) || (b != PXG_OK && b != PXG_E_STALE)) odd = a;
    if (c != PXG_E_STATE && c != PXG_E_STALE) odd = c;
    sched_yield();
  }
  return none;
}

static void without_a_stream(void) {
  pthread_t threads[THREADS];
  int rounds = getenv("PXG_STRESS") ? 200 * atoi(getenv("PXG_STRESS")) : 200, n_pended = 0, grown = 0;
  reset_world();
  quiet();
  stop = false;
  given = given_back = 0;
  configs[1].subscribe = configs[1].pend_phases = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend_at_times;
  for (int t = 0; t < THREADS; t++) pthread_create(&threads[t], NULL, disturber, NULL);
  /* Until every kind of course has been met. */
  for (int i = 0; i < rounds || (i < 1000000 && !(applied && completed && counters.cancels && grown)); i++) {
    pxg_speaker speaker = {NULL, NULL, 1};
    pxg_field path = {str(":path"), str("/")};
    pxg_glance g = {0};
    const pxg_op *edits;
    size_t n;
    n_trace = n_out = 0;
    s = NULL;
    pends = i % 3 == 0;
    pxg_glanced way = pxg_glance_head(&g, loop, &configs[1], &speaker, &path, 1, PXG_HEAD_ENDS, &edits, &n);
    n_pended += pends;
    if (way == PXG_GLANCE_MORE) s = pxg_glance_stream(&g, &stream_ops, NULL, 1, 0, 0, 0);
    for (int spins = 0; spins < i % 5; spins++) sched_yield();
    while (pxg_worker_next_glance(loop)) s = pxg_glance_stream(&g, &stream_ops, NULL, 1, 0, 0, 0), grown++;
    if (i % 2) (void)pxg_worker_next(loop);
    if (pxg_glance_lives(&g)) {
      pxg_glance_close(&g);
    } else {
      drain();
      pxg_stream_finish(s, PXG_END_CLIENT_ABORT);
      pxg_stream_free(s);
    }
    CHECK(strstr(trace, "1end"), "no end: %s", trace);
  }
  stop = true;
  for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
  while (pxg_worker_next(loop)) { /* void */
  }
  /* What was completed before its event answered CONTINUE counts as stale. */
  CHECK(completed + (int)counters.cancels == n_pended + (int)counters.stale,
        "%d completions and %d cancels of %d, %d stale", completed, (int)counters.cancels, n_pended,
        (int)counters.stale);
  CHECK(applied && completed && counters.cancels && grown, "nothing raced: %d applied, %d completed, %d streams",
        applied, completed, grown);
  CHECK(given == given_back, "%d buffers given, %d given back", given, given_back);
  CHECK(!odd, "a thread was answered %d", odd);
  CHECK(!pending_places[0], "%u places are counted as pending", pending_places[0]);
}

int main(void) {
  start();
  tokens_of_the_request();
  causes();
  order();
  at_once();
  without_a_stream();
  pxg_worker_free(loop);
  return finish("ends");
}
