/* SPDX-License-Identifier: Apache-2.0 */

/* Three places that decide at random, bodies in random pieces: what leaves is what came, in every mix of modes, MORE,
 * PENDING, partial release and time. */

#include "stream.h"

static uint32_t seed;

static uint32_t any(uint32_t n) {
  seed = seed * 1664525 + 1013904223;
  return (seed >> 8) % n;
}

static uint64_t waiting[64];
static int n_waiting;

static void decide(const pxg_event *ev, pxg_result *o) {
  bool is_body = ev->phase == PXG_PHASE_REQUEST_BODY || ev->phase == PXG_PHASE_RESPONSE_BODY;
  int d = ev->phase >= PXG_PHASE_RESPONSE_HEADERS;
  uint32_t mode = configs[ev->config].body_mode[d];
  uint64_t n = 0;
  for (uint64_t i = 0; i < ev->n_chunks; i++) n += ev->chunks[i].len;
  if (mode == PXG_BODY_OBSERVE && is_body) return;
  uint32_t choice = any(3);
  if (choice == 1) {
    o->action = PXG_ACT_PENDING;
    waiting[n_waiting++] = ev->token;
    return;
  }
  bool ends = ev->flags & (PXG_EV_END_STREAM | PXG_EV_BODY_END);
  if (choice == 2 && mode == PXG_BODY_STREAM && is_body && !ends && !(ev->flags & PXG_EV_OVER_LIMIT)) {
    o->action = PXG_ACT_MORE;
    o->more_bytes = any(6);
  }
  if (is_body && n && !(ev->flags & PXG_EV_HEADERS_HELD) && any(2)) {
    o->scratch_ops[0] = (pxg_op){.kind = PXG_OP_PASS, .u0 = any((uint32_t)n + 1)};
    o->ops = o->scratch_ops;
    o->n_ops = 1;
  }
}

static void complete_one(void) {
  if (!n_waiting) return;
  int i = (int)any((uint32_t)n_waiting);
  uint64_t token = waiting[i];
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE};
  waiting[i] = waiting[--n_waiting];
  CHECK(pxg_complete(77, token, &r) == PXG_OK, "seed %u", seed);
  mail();
}

static void one(uint32_t from) {
  static const uint32_t modes[] = {PXG_BODY_SKIP, PXG_BODY_STREAM, PXG_BODY_WHOLE, PXG_BODY_OBSERVE};
  char sent[2][1024] = {{0}}, piece[16];
  size_t n_sent[2] = {0};
  int fed[2] = {0};
  reset_world();
  seed = from;
  n_waiting = 0;
  for (int i = 1; i <= 3; i++) {
    configs[i].policy.max_pending = 100;
    configs[i].flags = any(2) ? PXG_CFG_DUPLEX : 0;
    for (int d = 0; d < 2; d++) configs[i].body_mode[d] = modes[any(4)], configs[i].max_body[d] = 8 + any(100);
    for (int p = 1; p < 7; p++) on[i][p] = decide;
    if (any(4) == 0) configs[i].subscribe &= ~PXG_PHASE_BIT(1 + any(6));
    for (int d = 0; d < 2; d++)
      if (!(configs[i].subscribe >> (d ? PXG_PHASE_RESPONSE_BODY : PXG_PHASE_REQUEST_BODY) & 1))
        configs[i].body_mode[d] = PXG_BODY_SKIP;
  }
  begin(3);
  head(REQ, false);
  for (int turn = 0; turn < 400 && !(strstr(out, "rend") && strstr(out, "send")); turn++) {
    int d = (int)any(2);
    n_trace = 0;
    if (d == RSP && !fed[RSP] && strstr(out, "rhead")) fed[RSP] = 1, head(RSP, false);
    bool begun = d == REQ ? fed[REQ] < 8 : fed[RSP] > 0 && fed[RSP] < 8;
    if (begun && any(3)) {
      size_t n = 1 + any(9);
      for (size_t i = 0; i < n; i++) piece[i] = sent[d][n_sent[d]++] = (char)('a' + any(26));
      piece[n] = 0;
      bytes(d, piece);
      if (++fed[d] == 8) end(d, false);
    }
    if (any(2)) complete_one();
    if (any(5) == 0) {
      pxg_worker_clock(loop, 1000 + (uint64_t)turn);
      pxg_stream_timer(s);
      drain();
    }
  }
  while (n_waiting) complete_one();
  HAS(out, "rend");
  HAS(out, "send");
  for (int d = 0; d < 2; d++) CHECK(!strcmp(body[d], sent[d]), "seed %u: %s, %s", from, body[d], sent[d]);
  done(PXG_END_COMPLETE);
  CHECK(!counters.failures[PXG_R_INVALID], "seed %u: %s", from, said);
}

int main(void) {
  start();
  for (uint32_t i = 0; i < 1000; i++) one(i);
  pxg_worker_free(loop);
  return finish("random");
}
