/* SPDX-License-Identifier: Apache-2.0 */

/* A request and its response through the engine, as often as told: `events header N` sets one field in a sync guest,
 * `events pending N` does the same by a completion. Under callgrind the difference of two runs is the number of
 * instructions of a request: `make instructions`. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pxg_engine.h"

static const pxg_str name = {(const uint8_t *)"x-new", 5, 0}, value = {(const uint8_t *)"value", 5, 0};
static pxg_field fields[12];
static uint64_t token, edits;
static bool pends;

static bool view(void *data, int d, bool trailers, const pxg_field **at, size_t *n) {
  (void)data, (void)d;
  *at = fields;
  *n = trailers ? 0 : 12;
  return true;
}

static pxg_edit edit(void *data, int d, bool trailers, const pxg_str *n, const pxg_str *v) {
  (void)data, (void)d, (void)trailers, (void)n, (void)v;
  edits++;
  return PXG_EDIT_DONE;
}

static bool commit(void *data, int d, bool trailers) {
  (void)data, (void)d, (void)trailers;
  return true;
}

static const pxg_stream_ops ops = {.view = view, .set = edit, .add = edit, .commit = commit};

static void set_field(pxg_op *op) { *op = (pxg_op){PXG_OP_HEADER_SET, 0, 0, 0, name, {value, NULL, 0}}; }

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  token = ev->token;
  out->action = pends ? PXG_ACT_PENDING : PXG_ACT_CONTINUE;
  if (pends) return;
  set_field(out->scratch_ops);
  out->ops = out->scratch_ops;
  out->n_ops = 1;
}

static void on_stream_end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)worker;
}

static void ring(void *data) { (void)data; }

static void discard(void *data, uint32_t level, const char *line, size_t len) {
  (void)data, (void)level, (void)line, (void)len;
}

static void take_all(pxg_stream *s) {
  pxg_out out;
  while (pxg_take(s, &out)) pxg_slice_drop(&out.slice);
  pxg_stream_keep(s);
}

static void exchange(pxg_worker *w, pxg_config *c) {
  pxg_stream *s = pxg_stream_open(w, &c, 1, &ops, NULL, 1, 0);
  if (!s) exit(1);
  pxg_stream_head(s, PXG_DIR_REQUEST, PXG_HEAD_ENDS);
  take_all(s);
  if (pends) {
    pxg_op op;
    set_field(&op);
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &op, .n_ops = 1};
    if (pxg_complete(7, token, &r) != PXG_OK) exit(1);
    while ((s = pxg_worker_next(w))) take_all(s), (void)pxg_stream_deadline(s), c->value = (uint64_t)(uintptr_t)s;
    s = (pxg_stream *)(uintptr_t)c->value;
  }
  pxg_stream_head(s, PXG_DIR_RESPONSE, 0);
  take_all(s);
  pxg_stream_end(s, PXG_DIR_RESPONSE, false);
  take_all(s);
  pxg_stream_finish(s, PXG_END_COMPLETE);
  pxg_stream_free(s);
}

int main(int argc, char **argv) {
  static pxg_guest_lib lib = {.ctx = 7, .name = (char *)"bench", .usable = true};
  static pxg_counters counters;
  static _Atomic uint32_t pending[1];
  static pxg_config c;
  pxg_driver driver = {.name = "bench",
                       .version = "1",
                       .n_workers = 1,
                       .features = {1ull << PXG_F_PEND_REQUEST_HEADERS},
                       .log = discard,
                       .log_level = PXG_LOG_OFF,
                       .complete = pxg_complete};
  pxg_error why;
  if (argc != 3 || !pxg_host_start(&driver, &why)) return 1;
  pends = !strcmp(argv[1], "pending");
  lib.table.on_event = on_event;
  lib.table.on_stream_end = on_stream_end;
  c.refs = 1;
  c.lib = &lib;
  c.filter = c.instance = "bench";
  c.features[0] = driver.features[0];
  c.subscribe = 1ull << PXG_PHASE_REQUEST_HEADERS;
  c.pend_phases = pends ? c.subscribe : 0;
  c.body_mode[0] = c.body_mode[1] = PXG_BODY_SKIP;
  c.counters = &counters;
  c.pending = pending;
  pxg_policy_default(&c.policy);
  for (size_t i = 0; i < 12; i++) fields[i] = (pxg_field){{(const uint8_t *)"accept-encoding", 15, 0}, value};
  pxg_worker *w = pxg_worker_new(0, ring, NULL);
  pxg_worker_clock(w, 1000);
  for (long n = atol(argv[2]); n > 0; n--) exchange(w, &c);
  pxg_worker_free(w);
  return edits ? 0 : 1;
}
