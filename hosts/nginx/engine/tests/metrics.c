/* SPDX-License-Identifier: Apache-2.0 */

/* Counters and guests' metrics in a zone that processes share. */

#define _GNU_SOURCE

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../pxg_zone.h"
#include "test.h"

static pxg_error why;
static char out[1 << 20];
static size_t n_out;

static bool put(void *data, const char *text, size_t len) {
  (void)data;
  if (len > sizeof out - 1 - n_out) return false;
  memcpy(out + n_out, text, len);
  out[n_out += len] = 0;
  return true;
}

static const char *text(pxg_zone *z) {
  n_out = 0;
  CHECK(pxg_zone_prometheus(z, put, NULL), "the text was cut");
  return out;
}

static pid_t worker(pxg_zone *z, pxg_counters *c, int n) {
  pid_t pid = fork();
  if (pid) return pid;
  pxg_zone_attach(z);
  pxg_count_pending(c, 3);
  for (int i = 0; i < n; i++) {
    pxg_count_call(c, PXG_PHASE_REQUEST_HEADERS, 1000);
    pxg_count_call(c, PXG_PHASE_LOG, 1001);
    pxg_count(&c->failures[PXG_R_CAP]);
  }
  raise(SIGSTOP);
  _exit(0);
}

static void counters(pxg_zone *z) {
  pxg_counters *c = pxg_zone_counters(z, "g\"1", "f", "c");
  CHECK(pxg_zone_counters(z, "g\"1", "f", "c") == c && pxg_zone_counters(z, "g\"1", "f", "d") != c, "instances");
  pxg_zone_attach(z);
  pxg_count_pending(c, 1);
  pid_t pids[3];
  for (int i = 0; i < 3; i++) pids[i] = worker(z, c, 100);
  for (int i = 0; i < 3; i++) waitpid(pids[i], NULL, WUNTRACED);
  text(z);
  HAS(out, "# TYPE pxg_guest_calls_total counter\n");
  HAS(out, "pxg_guest_calls_total{guest=\"g\\\"1\",filter=\"f\",config=\"c\",phase=\"request_headers\"} 300\n");
  HAS(out, "pxg_guest_call_seconds_bucket{guest=\"g\\\"1\",filter=\"f\",config=\"c\",phase=\"log\",le=\"1e-06\"} 0\n");
  HAS(out,
      "pxg_guest_call_seconds_bucket{guest=\"g\\\"1\",filter=\"f\",config=\"c\",phase=\"log\",le=\"1e-05\"} 300\n");
  HAS(out, "pxg_guest_call_seconds_bucket{guest=\"g\\\"1\",filter=\"f\",config=\"c\",phase=\"log\",le=\"+Inf\"} 300\n");
  HAS(out, "pxg_guest_call_seconds_count{guest=\"g\\\"1\",filter=\"f\",config=\"c\",phase=\"log\"} 300\n");
  HAS(out, "pxg_guest_call_seconds_sum{guest=\"g\\\"1\",filter=\"f\",config=\"c\",phase=\"request_headers\"} 0.0003\n");
  HAS(out, "pxg_guest_failures_total{guest=\"g\\\"1\",filter=\"f\",config=\"c\",reason=\"cap\"} 300\n");
  HAS(out, "pxg_guest_pending{guest=\"g\\\"1\",filter=\"f\",config=\"c\"} 10\n");
  HAS(out, "config=\"c\",phase=\"request_headers\",le=\"1e-06\"} 300\n");
  LACKS(out, "phase=\"wake\"");
  /* What a killed worker had pending is not counted on; a new one takes its column over at 0. */
  kill(pids[0], SIGKILL);
  waitpid(pids[0], NULL, 0);
  HAS(text(z), "pxg_guest_pending{guest=\"g\\\"1\",filter=\"f\",config=\"c\"} 7\n");
  pids[0] = worker(z, c, 0);
  waitpid(pids[0], NULL, WUNTRACED);
  HAS(text(z), "pxg_guest_pending{guest=\"g\\\"1\",filter=\"f\",config=\"c\"} 10\n");
  for (int i = 0; i < 3; i++) kill(pids[i], SIGKILL), waitpid(pids[i], NULL, 0);
  /* The zone of a reload goes on counting. */
  CHECK(pxg_zone_open(z, pxg_zone_size(64, 256)) == z, "opened again");
  HAS(text(z), "phase=\"request_headers\"} 300\n");
  /* Full: the rest together. */
  char name[16];
  pxg_counters *last = NULL, *before = c;
  for (int i = 0; i < 200; i++) {
    snprintf(name, sizeof name, "i%d", i);
    last = pxg_zone_counters(z, "g", "f", name);
    if (last == before) break;
    before = last;
  }
  CHECK(last == before, "never full");
  pxg_count(&last->cancels);
  HAS(text(z), "pxg_guest_cancels_total{guest=\"other\",filter=\"other\",config=\"other\"} 1\n");
}

static pxg_config *configure(const char *library, const char *bytes) {
  pxg_config_spec s = {.library = library,
                       .filter = "first",
                       .instance = "m",
                       .bytes = bytes,
                       .n_bytes = (uint32_t)strlen(bytes),
                       .features = {TEST_FEATURES}};
  pxg_policy_default(&s.policy);
  pxg_config *c = pxg_config_new(&s, &why);
  CHECK(c, "%s", why.text);
  return c;
}

static void series(pxg_zone *z) {
  const char *path = copy_of("loading.so", "metrics.so", 0);
  quiet();
  pxg_config *c = configure(path, "define");
  if (!c) return;
  HAS(said, "guest=test guest filter=first config=m: define 0: 0 same");
  HAS(said, "define 1: 0 same"); /* The order of labels is none of a series'. */
  HAS(said, "define 2: -3 none");
  HAS(said, "define 3: -3 none");
  HAS(said, "define 4: -3 none");
  HAS(said, "define 5: -3 none");
  HAS(said, "define 6: -3 none");
  HAS(said, "define 7: 0 other");
  HAS(said, "define 8: 0 other");
  HAS(said, "record: 0 -3 0 0 0 -8");
  HAS(text(z), "# TYPE pxg_user_test_guest_hits counter\npxg_user_test_guest_hits{a=\"1\",b=\"2\\\"\\n\\\\xff\"} 5\n");
  HAS(out, "# TYPE pxg_user_test_guest_sizes histogram\n");
  HAS(out, "pxg_user_test_guest_sizes_bucket{le=\"100\"} 0\npxg_user_test_guest_sizes_bucket{le=\"1000\"} 1\n"
           "pxg_user_test_guest_sizes_bucket{le=\"10000\"} 2\n");
  HAS(out, "pxg_user_test_guest_sizes_bucket{le=\"+Inf\"} 2\npxg_user_test_guest_sizes_count 2\n"
           "pxg_user_test_guest_sizes_sum 2001\n");
  HAS(out, "# TYPE pxg_user_test_guest_level gauge\npxg_user_test_guest_level -7\n");
  uint32_t id = 1;
  CHECK(pxg_metric_known(c->lib, id) && !pxg_metric_known(c->lib, 0) && !pxg_metric_known(c->lib, UINT32_MAX), "ids");
  /* A library that has not defined an id has no part in it, and none of another kind or name is made by it. */
  pxg_config *other = configure(copy_of("loading.so", "metrics-2.so", 0), "");
  if (!other) return;
  CHECK(pxg_metric_record(other->lib, id, 1) == PXG_E_NOTFOUND && !pxg_metric_known(other->lib, id), "a foreign id");
  CHECK(pxg_metric_record(c->lib, id, 37) == PXG_OK, "own id");
  HAS(text(z), "\\n\\\\xff\"} 42\n");
  pxg_config *next = configure(other->lib->path, "define-all");
  CHECK(pxg_metric_known(other->lib, id), "the same name is the same series");
  HAS(said, "full");
  pxg_config_unref(c), pxg_config_unref(other), pxg_config_unref(next);
  CHECK(!pxg_configs_drop(), "left alive");
}

/* A process that dies inside the zone's lock leaves it to others. */
static void robust(pxg_zone *z) {
  pid_t pid = fork();
  if (!pid) {
    pthread_mutex_lock(&z->lock);
    _exit(0);
  }
  waitpid(pid, NULL, 0);
  alarm(30); /* Ends the test where the lock is lost. */
  for (int i = 0; i < 2; i++) CHECK(pxg_zone_counters(z, "robust", "f", "i"), "none");
  alarm(0);
}

/* Columns of processes that are gone are given to others. */
static void columns(pxg_zone *z) {
  pxg_counters *c = pxg_zone_counters(z, "columns", "f", "c");
  for (int i = 0; i < PXG_ZONE_PROCESSES + 5; i++) {
    pid_t pid = fork();
    if (!pid) {
      pxg_zone_attach(z);
      pxg_count_pending(c, 1);
      _exit(0);
    }
    waitpid(pid, NULL, 0);
  }
  HAS(text(z), "pxg_guest_pending{guest=\"columns\",filter=\"f\",config=\"c\"} 0\n");
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  guests = argv[1], scratch = argv[2];
  size_t size = pxg_zone_size(64, 256);
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(!pxg_zone_open(memory, 4096), "a zone of one page");
  memset(memory, 0, 4096);
  pxg_zone *z = pxg_zone_open(memory, size);
  CHECK(z, "zone");
  pxg_driver d = test_driver(z);
  CHECK(pxg_host_start(&d, &why), "%s", why.text);
  robust(z);
  columns(z);
  counters(z);
  series(z);
  return finish("metrics");
}
