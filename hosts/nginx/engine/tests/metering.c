/* SPDX-License-Identifier: Apache-2.0 */

/* The operation METRIC and the limits of pxg.metrics/1: what a guest records in a stream, and who may record what. */

#define _POSIX_C_SOURCE 200809L

#include "../pxg_loading.h"
#include "stream.h"

static pxg_guest_lib *real, *foreign;
static uint32_t hits, level, sizes, theirs;
static pxg_zone *zone;

static int32_t define(pxg_guest_lib *l, uint32_t kind, const char *name, const pxg_field *labels, uint64_t n,
                      uint32_t *id) {
  pxg_str text = str(name);
  return pxg_metrics_table.define(l->ctx, kind, &text, labels, n, id);
}

static char text[1 << 16];
static size_t n_text;

static bool put(void *data, const char *piece, size_t len) {
  (void)data;
  if (len > sizeof text - 1 - n_text) return false;
  memcpy(text + n_text, piece, len);
  text[n_text += len] = 0;
  return true;
}

static const char *exposition(pxg_zone *z) {
  n_text = 0;
  CHECK(pxg_zone_prometheus(z, put, NULL), "the text was cut");
  return text;
}

/* "hits level sizes": the counter, the gauge, and the sum of the histogram. */
static void recorded(const char *expected) {
  char found[128], line[64];
  const char *const names[] = {"\npxg_user_test_guest_hits{way=\"op\"} ", "\npxg_user_test_guest_level ",
                               "\npxg_user_test_guest_sizes_sum "};
  size_t n = 0;
  exposition(zone);
  for (int i = 0; i < 3; i++) {
    const char *at = strstr(text, names[i]);
    sscanf(at ? at + strlen(names[i]) : "none", "%63s", line);
    n += (size_t)snprintf(found + n, sizeof found - n, "%s%s", i ? " " : "", line);
  }
  CHECK(!strcmp(found, expected), "found %s, expected %s", found, expected);
}

/* ---- METRIC ------------------------------------------------------------------------------------------------------ */

static uint32_t action;
static pxg_op ops[4];
static size_t n_ops;

static void metric(uint32_t id, int64_t value, bool must) {
  ops[n_ops++] = (pxg_op){.kind = PXG_OP_METRIC, .flags = must ? PXG_OPF_MUST : 0, .target = id, .u0 = (uint64_t)value};
}

static void record(const pxg_event *ev, pxg_result *o) {
  static pxg_reply reply;
  (void)ev;
  memcpy(o->scratch_ops, ops, sizeof ops);
  o->ops = o->scratch_ops;
  o->n_ops = n_ops;
  o->action = action;
  reply = (pxg_reply){.size = sizeof reply, .status = 200};
  if (action == PXG_ACT_REPLY) o->reply = &reply;
}

static void pend(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
}

/* A world of the real library's metrics and this test's functions. */
static void world(int phase, uint32_t with) {
  reset_world();
  lib.ctx = real->ctx, lib.metrics = real->metrics;
  if (phase) on[1][phase] = record;
  action = with;
  n_ops = 0;
}

static void exchange(void) {
  begin(1);
  head(REQ, true);
  head(RSP, true);
  done(PXG_END_COMPLETE);
}

static void operations(void) {
  world(PXG_PHASE_REQUEST_HEADERS, PXG_ACT_CONTINUE);
  metric(hits, 5, false);
  metric(level, -7, true);
  metric(sizes, 1001, false);
  metric(hits, INT64_MAX, false);
  exchange();
  recorded("9223372036854775812 -7 1001"); /* A counter is read as unsigned. */
  CHECK(!counters.skipped, "skipped %d", (int)counters.skipped);

  world(PXG_PHASE_LOG, PXG_ACT_CONTINUE);
  metric(level, INT64_MIN, false);
  metric(sizes, -1001, false);
  metric(hits, -1, true); /* A negative value of a counter: skipped and counted. */
  exchange();
  recorded("9223372036854775812 -9223372036854775808 0");
  CHECK(counters.skipped == 1 && !counters.failures[PXG_R_INVALID], "skipped %d", (int)counters.skipped);

  /* Ids of nobody, and of another library. */
  static const uint32_t bad[] = {0, 99, UINT32_MAX};
  for (size_t i = 0; i < 4; i++)
    for (int must = 0; must < 2; must++) {
      world(PXG_PHASE_RESPONSE_HEADERS, PXG_ACT_CONTINUE);
      metric(i < 3 ? bad[i] : theirs, 1, must);
      metric(level, (int64_t)i, false);
      exchange();
      CHECK(counters.skipped == !must && counters.failures[PXG_R_INVALID] == (uint64_t)must, "%d: skipped %d", (int)i,
            (int)counters.skipped);
      CHECK(!must || strstr(said, "the metric is unknown [PXG-OBS-003]"), "%s", said);
    }
  recorded("9223372036854775812 3 0");

  /* Of a batch with REPLY, RESET and an explicit ERROR they count; of one that is refused they do not. */
  static const uint32_t actions[] = {PXG_ACT_REPLY, PXG_ACT_RESET, PXG_ACT_ERROR, PXG_ACT_UNSET, PXG_ACT_MORE, 99};
  for (size_t i = 0; i < 6; i++) {
    world(PXG_PHASE_REQUEST_HEADERS, actions[i]);
    metric(level, 100 + (int64_t)i, false);
    exchange();
  }
  recorded("9223372036854775812 102 0");
}

static void by_threads(void) {
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = ops};
  world(0, 0);
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  metric(level, 1, false);
  r.n_ops = n_ops;
  begin(1);
  head(REQ, true);
  CHECK(pxg_apply(real->ctx, handles[1], &r) == PXG_OK, "apply");
  recorded("9223372036854775812 102 0");
  mail();
  recorded("9223372036854775812 1 0");
  ops[0].u0 = 2;
  CHECK(pxg_complete(real->ctx, tokens[1], &r) == PXG_OK, "complete");
  done(PXG_END_CLIENT_ABORT); /* Accepted and never applied. */
  recorded("9223372036854775812 1 0");
  CHECK(pxg_apply(real->ctx, handles[1], &r) == PXG_E_STALE, "the handle lives");
}

/* ---- define and record ------------------------------------------------------------------------------------------- */

static void definitions(void) {
  static char names[33][16];
  pxg_field labels[33];
  char long_value[8192];
  uint32_t id = 0, again = 0;
  for (int i = 0; i < 33; i++) {
    snprintf(names[i], sizeof names[i], "l%d", i);
    labels[i] = (pxg_field){str(names[i]), str("v")};
  }
  CHECK(define(real, PXG_METRIC_GAUGE, "labels", labels, 32, &id) == PXG_OK, "32 labels");
  CHECK(define(real, PXG_METRIC_GAUGE, "labels", labels, 33, &again) == PXG_E_LIMIT && !again, "33 labels");
  CHECK(define(real, PXG_METRIC_GAUGE, "labels", labels, 32, &again) == PXG_OK && again == id, "the same one");
  CHECK(define(real, PXG_METRIC_GAUGE, "labels", NULL, 1, &again) == PXG_E_ARG, "no labels");
  CHECK(define(real, PXG_METRIC_GAUGE, "", NULL, 0, &again) == PXG_E_ARG, "no name");
  CHECK(define(real, PXG_METRIC_HISTOGRAM + 1, "kind", NULL, 0, &again) == PXG_E_ARG, "a kind");
  CHECK(define(real, 0, "kind", NULL, 0, &again) == PXG_E_ARG, "no kind");
  CHECK(pxg_metrics_table.define(real->ctx, PXG_METRIC_GAUGE, NULL, NULL, 0, &again) == PXG_E_ARG, "NULL for a name");
  pxg_str name = str("null_id");
  CHECK(pxg_metrics_table.define(real->ctx, PXG_METRIC_GAUGE, &name, NULL, 0, NULL) == PXG_E_ARG, "NULL for an id");
  CHECK(pxg_metrics_table.define(12345, PXG_METRIC_GAUGE, &name, NULL, 0, &again) == PXG_E_ARG, "no library");
  pxg_field no_value = {str("l"), {NULL, 3, 0}};
  CHECK(define(real, PXG_METRIC_GAUGE, "no_value", &no_value, 1, &again) == PXG_E_ARG, "NULL for a value");
  memset(long_value, 'x', sizeof long_value);
  pxg_field long_one = {str("l"), {(const uint8_t *)long_value, 8000, 0}};
  CHECK(define(real, PXG_METRIC_GAUGE, "long_one", &long_one, 1, &again) == PXG_E_LIMIT, "a value of 8000 bytes");
  memset(long_value, 'a', sizeof long_value);
  pxg_str long_name = {(const uint8_t *)long_value, sizeof long_value, 0};
  CHECK(pxg_metrics_table.define(real->ctx, PXG_METRIC_GAUGE, &long_name, NULL, 0, &again) == PXG_E_LIMIT, "a name");
  CHECK(pxg_metrics_table.record(12345, hits, 1) == PXG_E_NOTFOUND, "no library");
  CHECK(pxg_metrics_table.record(real->ctx, theirs, 1) == PXG_E_NOTFOUND, "a foreign id");
  CHECK(pxg_metrics_table.record(foreign->ctx, theirs, 9) == PXG_OK, "their own");
  HAS(exposition(zone), "pxg_user_test_guest_theirs 9\n");
}

/* After a reload the same memory is opened again, and a new file of the library goes on counting. */
static void reloaded(void *memory, size_t size) {
  uint32_t id = 0;
  zone = pxg_zone_open(memory, size);
  CHECK(zone, "not opened again");
  pxg_guest_lib *next = pxg_guest_load(copy_of("loading.so", "next.so", 0), NULL);
  pxg_field way = {str("way"), str("op")};
  CHECK(next && pxg_metrics_table.record(next->ctx, hits, 1) == PXG_E_NOTFOUND, "before it was defined");
  if (!next) return;
  CHECK(define(next, PXG_METRIC_COUNTER, "hits", &way, 1, &id) == PXG_OK && id == hits, "another id, %u", id);
  CHECK(define(next, PXG_METRIC_GAUGE, "hits", &way, 1, &id) == PXG_E_ARG, "another kind");
  CHECK(pxg_metrics_table.record(next->ctx, hits, 3) == PXG_OK, "record");
  recorded("9223372036854775815 1 0");
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  guests = argv[1], scratch = argv[2];
  size_t size = pxg_zone_size(64, 64);
  void *memory = NULL;
  if (posix_memalign(&memory, 64, size)) return 2;
  start();
  zone = pxg_zone_open(memset(memory, 0, size), size);
  pxg_host_zone(zone);
  real = pxg_guest_load(copy_of("loading.so", "real.so", 0), NULL);
  foreign = pxg_guest_load(copy_of("loading.so", "foreign.so", 0), NULL);
  if (!real || !foreign) return 2;
  pxg_field way = {str("way"), str("op")};
  CHECK(define(real, PXG_METRIC_COUNTER, "hits", &way, 1, &hits) == PXG_OK, "hits");
  CHECK(define(real, PXG_METRIC_GAUGE, "level", NULL, 0, &level) == PXG_OK, "level");
  CHECK(define(real, PXG_METRIC_HISTOGRAM, "sizes", NULL, 0, &sizes) == PXG_OK, "sizes");
  CHECK(define(foreign, PXG_METRIC_GAUGE, "theirs", NULL, 0, &theirs) == PXG_OK, "theirs");
  operations();
  by_threads();
  definitions();
  reloaded(memory, size);
  pxg_worker_free(loop);
  return finish("metering");
}
