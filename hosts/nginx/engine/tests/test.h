/* SPDX-License-Identifier: Apache-2.0 */

/* What the tests of loading share: a driver whose log is kept, copies of the guest, and checks that go on. */

#ifndef PXG_TEST_H
#define PXG_TEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pxg_host.h"

static int failed, checks;
static char said[1 << 20];
static size_t n_said;
static const char *guests, *scratch;

#define CHECK(condition, ...)                                         \
  do {                                                                \
    checks++;                                                         \
    if (!(condition)) {                                               \
      failed++;                                                       \
      fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      fprintf(stderr, __VA_ARGS__);                                   \
      fputc('\n', stderr);                                            \
    }                                                                 \
  } while (0)
#define HAS(text, part) CHECK(strstr(text, part), "found \"%s\", expected \"%s\" in it", text, part)
#define LACKS(text, part) CHECK(!strstr(text, part), "found \"%s\", expected no \"%s\" in it", text, part)

static inline void test_log(void *data, uint32_t level, const char *line, size_t len) {
  (void)data;
  n_said += (size_t)snprintf(said + n_said, sizeof said - n_said, "%u %.*s\n", level, (int)len, line);
}

static inline void quiet(void) { said[n_said = 0] = 0; }

static inline int32_t test_attribute(void *data, const char *name, size_t len) {
  (void)data;
  return len == 10 && !memcmp(name, "request.id", 10) ? 3 : PXG_ATTR_NONE;
}

static inline int32_t refuse_complete(uint64_t ctx, uint64_t token, const pxg_result *r) {
  (void)ctx, (void)token, (void)r;
  return PXG_E_STALE;
}

static inline int32_t refuse_wake(uint64_t ctx, uint64_t stream, uint64_t arg) {
  (void)ctx, (void)stream, (void)arg;
  return PXG_E_STALE;
}

#define TEST_FEATURES                                                                                             \
  (1ull << PXG_F_PEND_REQUEST_HEADERS | 1ull << PXG_F_PEND_RESPONSE_HEADERS | 1ull << PXG_F_BODY_STREAM_REQUEST | \
   1ull << PXG_F_BODY_STREAM_RESPONSE | 1ull << PXG_F_METADATA | 1ull << PXG_F_APPLY | 1ull << PXG_F_CONFIG_THREAD)

static inline pxg_driver test_driver(pxg_zone *zone) {
  return (pxg_driver){.name = "test",
                      .version = "1",
                      .n_workers = 2,
                      .features = {TEST_FEATURES},
                      .zone = zone,
                      .log_level = PXG_LOG_INFO,
                      .log = test_log,
                      .attribute = test_attribute,
                      .complete = refuse_complete,
                      .apply = refuse_complete,
                      .wake = refuse_wake};
}

/* The first `len` bytes of a guest (0: all) under another name in the test's own folder. */
static inline const char *copy_of(const char *from, const char *name, size_t len) {
  static char paths[64][512];
  static int n;
  char source[512], *path = paths[n++ % 64], byte[65536];
  snprintf(source, sizeof source, "%s/%s", guests, from);
  snprintf(path, 512, "%s/%s", scratch, name);
  remove(path); /* A file that is mapped is never written to. */
  FILE *in = fopen(source, "rb"), *out = fopen(path, "wb");
  if (!in || !out) perror(path), exit(2);
  size_t left = len ? len : SIZE_MAX, got;
  while (left && (got = fread(byte, 1, left < sizeof byte ? left : sizeof byte, in))) {
    fwrite(byte, 1, got, out);
    left -= got;
  }
  fclose(in);
  fclose(out);
  return path;
}

static inline int finish(const char *what) {
  printf("%s: %d checks, %d failed\n", what, checks, failed);
  return failed != 0;
}

#endif
