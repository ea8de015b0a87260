/* SPDX-License-Identifier: Apache-2.0 */

/* Threads of a guest against the loop thread: completions, cancels, wakes and applies race each other and the deaths of
 * their streams. Nothing that was accepted gets lost, nothing takes effect twice, every buffer is given back once.
 * PXG_STRESS is how often more (`make races` does it under ThreadSanitizer). */

#include <pthread.h>
#include <sched.h>

#include "stream.h"

enum { THREADS = 3, OPEN = 16 };

static int rounds = 100;
static _Atomic bool stop;
static _Atomic int32_t odd; /* An answer to a thread that none of them expects. */

static void expect(bool as_expected, int32_t answer) {
  if (!as_expected) odd = answer;
}

/* ---- completions and wakes against deaths ------------------------------------------------------------------------ */

/* What threads may use of a stream; values of streams long dead stay here until they are overwritten. */
static _Atomic uint64_t shown_token[OPEN], shown_handle[OPEN];
static _Atomic int n_completed, n_woken, n_applied, n_owned, n_given_back;
static int n_pended;

static void give_back(uint64_t ctx) { n_given_back += (int)ctx; }

static uint64_t next_random(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  return *state ^= *state << 17;
}

static void pend(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
  n_pended++;
}

static void complete_one(uint64_t token) {
  pxg_op op = {PXG_OP_HEADER_ADD, 0, 0, 0, str("x-new"), {{(const uint8_t *)"v", 1, PXG_BUF_OWNED}, give_back, 1}};
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &op, .n_ops = 1};
  n_owned++;
  int32_t answer = pxg_complete(77, token, &r);
  if (answer == PXG_OK) n_completed++;
  expect(answer == PXG_OK || answer == PXG_E_STALE, answer);
}

static void *guest_thread(void *seed) {
  uint64_t random = (uint64_t)(uintptr_t)seed * 0x9e3779b97f4a7c15u;
  pxg_result nothing = {.size = sizeof nothing, .action = PXG_ACT_CONTINUE};
  while (!stop) {
    uint64_t r = next_random(&random);
    int i = (int)(r % OPEN);
    uint64_t handle = shown_handle[i], token = shown_token[i];
    if (r >> 60 < 10 && token) complete_one(token);
    if (r >> 60 > 12 && handle && pxg_wake(77, handle, 1) == PXG_OK) n_woken++;
    if (r >> 60 == 11 && handle && pxg_apply(77, handle, &nothing) == PXG_OK) n_applied++;
    if (r >> 52 & 1) sched_yield();
  }
  return NULL;
}

static void deaths(void) {
  pthread_t threads[THREADS];
  pxg_stream *open[OPEN] = {NULL};
  uint64_t random = 42;
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  configs[1].policy.max_pending = OPEN;
  configs[1].subscribe |= 1ull << PXG_PHASE_WAKE;
  for (int t = 0; t < THREADS; t++) pthread_create(&threads[t], NULL, guest_thread, (void *)(uintptr_t)(t + 1));
  for (int i = 0; i < rounds * OPEN; i++) {
    int k = (int)(next_random(&random) % OPEN);
    if (open[k]) {
      pxg_stream_finish(open[k], PXG_END_CLIENT_ABORT);
      pxg_stream_free(open[k]);
    }
    n_trace = n_out = 0;
    lists[REQ][0].n = 4;
    begin(1);
    open[k] = s;
    pxg_stream_head(s, REQ, PXG_HEAD_ENDS);
    drain();
    shown_token[k] = tokens[1];
    shown_handle[k] = handles[1];
    for (int n = 0; n < (int)(next_random(&random) % 8); n++) {
      if (next_random(&random) & 1) sched_yield();
      while (pxg_worker_next(loop)) lists[REQ][0].n = 4;
      n_trace = n_out = 0;
    }
  }
  stop = true;
  for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
  while (pxg_worker_next(loop)) n_trace = 0;
  for (int k = 0; k < OPEN; k++) {
    n_trace = 0;
    if (open[k]) pxg_stream_finish(open[k], PXG_END_CLIENT_ABORT), pxg_stream_free(open[k]);
  }
  CHECK(n_pended == rounds * OPEN, "%d events", n_pended);
  CHECK(n_completed + (int)counters.cancels == n_pended, "%d completions and %d cancels of %d", (int)n_completed,
        (int)counters.cancels, n_pended);
  CHECK(n_owned == n_given_back, "%d buffers given, %d given back", (int)n_owned, (int)n_given_back);
  CHECK(n_completed > 0 && counters.cancels > 0 && n_woken > 0 && n_applied > 0,
        "nothing raced: %d completed, %d cancelled, %d woken, %d applied", (int)n_completed, (int)counters.cancels,
        (int)n_woken, (int)n_applied);
  CHECK(!pending_places[0], "%u places are counted as pending", pending_places[0]);
}

/* ---- a wake is never lost ---------------------------------------------------------------------------------------- */

static _Atomic uint64_t asked[THREADS];
static uint64_t seen;

static void on_wake(const pxg_event *ev, pxg_result *o) {
  (void)o;
  seen |= ev->arg;
}

/* One bit a time, the next one only after the last one was seen: a wake that is lost stops the thread. */
static void *waker(void *number) {
  int t = (int)(uintptr_t)number;
  for (int i = 0; i < rounds; i++) {
    asked[t] = 1ull << (t * 20 + i % 20);
    int32_t answer = pxg_wake(77, shown_handle[0], asked[t]);
    expect(answer == PXG_OK, answer);
    while (asked[t]) sched_yield();
  }
  return NULL;
}

static void wakes(void) {
  pthread_t threads[THREADS];
  reset_world();
  on[1][PXG_PHASE_WAKE] = on_wake;
  configs[1].subscribe |= 1ull << PXG_PHASE_WAKE;
  begin(1);
  head(REQ, true);
  shown_handle[0] = handles[1];
  for (int t = 0; t < THREADS; t++) pthread_create(&threads[t], NULL, waker, (void *)(uintptr_t)t);
  for (int left = THREADS * rounds; left;) {
    seen = 0;
    n_trace = n_out = 0;
    if (!pxg_worker_next(loop)) sched_yield();
    for (int t = 0; t < THREADS; t++)
      if (asked[t] & seen) {
        asked[t] = 0;
        left--;
      }
  }
  for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
  n_trace = 0;
  done(PXG_END_COMPLETE);
}

/* ---- a worker that sleeps is woken ------------------------------------------------------------------------------- */

enum { SLEEPS = 300 }; /* On a busy machine each takes its time. */

static void *completer(void *data) {
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE};
  (void)data;
  for (int i = 0; i < SLEEPS; i++) {
    uint64_t token;
    while (!(token = atomic_exchange(&shown_token[0], 0))) {
      if (stop) return NULL;
      sched_yield(); /* valgrind runs one thread at a time. */
    }
    expect(pxg_complete(77, token, &r) == PXG_OK, 0);
  }
  return NULL;
}

/* It looks into its box only after it said that it will sleep, and after each bell: as a driver does. */
static bool wait_for_mail(int *slept) {
  for (long spins = 0; !pxg_worker_next(loop); ++*slept) {
    while (!bells && ++spins < 20000000) sched_yield();
    if (!bells) return false;
    bells = 0;
  }
  return true;
}

static void sleeps(void) {
  pthread_t thread;
  int slept = 0, lost = 0;
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  stop = false;
  shown_token[0] = 0;
  pthread_create(&thread, NULL, completer, NULL);
  for (int i = 0; i < SLEEPS && !lost; i++) {
    n_trace = n_out = 0;
    lists[REQ][0].n = 4;
    pxg_worker_awake(loop, true);
    begin(1);
    pxg_stream_head(s, REQ, PXG_HEAD_ENDS);
    drain();
    shown_token[0] = tokens[1];
    if (i & 1)
      for (int k = i % 64; k; k--) sched_yield();
    pxg_worker_awake(loop, false);
    lost += !wait_for_mail(&slept);
    done(PXG_END_COMPLETE);
  }
  stop = true;
  pthread_join(thread, NULL);
  CHECK(!lost, "a completion was lost after %d bells", slept);
  CHECK(slept, "the worker never slept");
}

/* ---- order and watermarks of writes ------------------------------------------------------------------------------- */

typedef struct record {
  uint32_t thread, number;
} record;

static void open_reply(const pxg_event *ev, pxg_result *o) {
  static pxg_reply r;
  (void)ev;
  r = (pxg_reply){.size = sizeof r, .status = 200, .flags = PXG_REPLY_OPEN};
  o->reply = &r;
  o->action = PXG_ACT_REPLY;
}

static _Atomic int writers;
static _Atomic uint64_t room_made; /* WRITABLE events. */

static void on_writable(const pxg_event *ev, pxg_result *o) {
  (void)o;
  room_made += ev->flags & PXG_EV_WRITABLE ? 1 : 0;
}

enum { BLOCK = 32 << 10 };

/* Records in blocks of 32 KiB; after FULL and LIMIT it waits for WRITABLE. */
static void *writer(void *number) {
  record *block = calloc(1, BLOCK);
  uint32_t t = (uint32_t)(uintptr_t)number;
  for (uint32_t i = 0; i < (uint32_t)rounds / 4;) {
    *block = (record){t, i};
    pxg_op w = {PXG_OP_BODY_WRITE, 0, 0, 0, {0}, {{(const uint8_t *)block, BLOCK, 0}, NULL, 0}};
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &w, .n_ops = 1};
    uint64_t before = room_made;
    int32_t answer = pxg_apply(77, shown_handle[0], &r);
    expect(answer == PXG_OK || answer == PXG_FULL || answer == PXG_E_LIMIT, answer);
    if (answer >= 0) i++;
    if (answer != PXG_OK)
      for (int spins = 0; room_made == before && spins < 100000; spins++) sched_yield();
  }
  free(block);
  writers--;
  return NULL;
}

static void writes(void) {
  pthread_t threads[THREADS];
  uint32_t next[THREADS] = {0};
  uint64_t total = 0;
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = open_reply;
  on[1][PXG_PHASE_WAKE] = on_writable;
  configs[1].subscribe |= 1ull << PXG_PHASE_WAKE;
  begin(1);
  pxg_stream_head(s, REQ, PXG_HEAD_ENDS);
  drain();
  shown_handle[0] = handles[1];
  writers = THREADS;
  for (int t = 0; t < THREADS; t++) pthread_create(&threads[t], NULL, writer, (void *)(uintptr_t)t);
  for (bool over = false; !over;) {
    over = !writers;
    n_trace = n_out = 0;
    uint64_t step = 0;
    while (pxg_worker_next(loop)) {
      pxg_out o;
      while (pxg_take(s, &o)) {
        if (o.kind == PXG_OUT_BYTES) {
          record r;
          memcpy(&r, o.slice.ptr, sizeof r);
          CHECK(o.slice.len == BLOCK && r.thread < THREADS && r.number == next[r.thread],
                "thread %u: found %u, expected %u", r.thread, r.number, next[r.thread % THREADS]);
          next[r.thread % THREADS] = r.number + 1;
          step += o.slice.len;
        }
        pxg_slice_drop(&o.slice);
      }
    }
    total += step;
    if (!step) sched_yield();
    pxg_stream_waiting(s, 0);
  }
  for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
  CHECK(total == (uint64_t)THREADS * (uint64_t)(rounds / 4) * BLOCK, "%llu bytes left", (unsigned long long)total);
  n_trace = 0;
  done(PXG_END_COMPLETE);
}

int main(void) {
  if (getenv("PXG_STRESS")) rounds *= atoi(getenv("PXG_STRESS"));
  start();
  pxg_log_level(PXG_LOG_OFF); /* The text of the tests' log is not for threads. */
  deaths();
  wakes();
  sleeps();
  writes();
  CHECK(!odd, "a thread was answered %d", odd);
  pxg_worker_free(loop);
  return finish("stress");
}
