/* SPDX-License-Identifier: Apache-2.0 */

/* The log on stderr, and the page (spec/15-logging-metrics). */

#include <time.h>
#include <unistd.h>

#include "minihost.h"

/* A record of a guest is cut here, with a mark. */
#define RECORD_MAX 8192

pxg_page page = {.size = sizeof(pxg_page), .log_level = PXG_LOG_INFO};

const char *const reason_names[N_REASONS] = {"error", "panic", "invalid", "deadline", "limit", "cap"};

const char *phase_name(uint32_t phase) {
  static const char *const names[] = {"none",
                                      "request_headers",
                                      "request_body",
                                      "request_trailers",
                                      "response_headers",
                                      "response_body",
                                      "response_trailers",
                                      "log",
                                      "wake"};
  static const char *const l4[] = {"l4_open", "l4_downstream", "l4_upstream", "l4_close"};
  if (phase <= PXG_PHASE_WAKE) return names[phase];
  return phase >= PXG_PHASE_L4_OPEN && phase <= PXG_PHASE_L4_CLOSE ? l4[phase - PXG_PHASE_L4_OPEN] : "unknown";
}

const char *status_name(int32_t status) {
  static const char *const names[] = {"OK",    "STALE",  "STATE",   "ARG",      "UNSUPPORTED",
                                      "LIMIT", "THREAD", "VERSION", "NOTFOUND", "INTERNAL"};
  if (status > 0) return "OK";
  return status > -10 ? names[-status] : "INTERNAL";
}

static uint64_t clock_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

uint64_t wall_ns(void) { return clock_ns(CLOCK_REALTIME); }

void page_tick(void) {
  __atomic_store_n(&page.monotonic_ns, now_ns(), __ATOMIC_RELAXED);
  __atomic_store_n(&page.realtime_ns, wall_ns(), __ATOMIC_RELAXED);
}

static const char *level_name(uint32_t level) {
  static const char *const names[] = {"TRACE", "DEBUG", "INFO", "WARN", "ERROR"};
  return names[level < 5 ? level : PXG_LOG_ERROR];
}

/* One write a record, so that records of threads do not mix. */
static void put(const char *text, size_t len) {
  while (len) {
    ssize_t n = write(2, text, len);
    if (n <= 0) return;
    text += n;
    len -= (size_t)n;
  }
}

void say(uint32_t level, const char *format, ...) {
  if (level < __atomic_load_n(&page.log_level, __ATOMIC_RELAXED)) return;
  char line[4 * RECORD_MAX + 512];
  int n = snprintf(line, sizeof line, "%llu %s ", (unsigned long long)(wall_ns() / 1000000), level_name(level));
  va_list args;
  va_start(args, format);
  n += vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
  va_end(args);
  if ((size_t)n > sizeof line - 2) n = sizeof line - 2;
  line[n++] = '\n';
  put(line, (size_t)n);
}

/* The length of a well-formed UTF-8 sequence at `p`, or 0. */
static size_t utf8(const uint8_t *p, size_t n) {
  if (p[0] < 0x80) return 1;
  size_t len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 0;
  if (!len || len > n || p[0] > 0xf4) return 0;
  for (size_t i = 1; i < len; i++)
    if ((p[i] & 0xc0) != 0x80) return 0;
  if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
      (p[0] == 0xf4 && p[1] > 0x8f))
    return 0;
  /* C1 controls are control bytes to a terminal. */
  return p[0] == 0xc2 && p[1] < 0xa0 ? 0 : len;
}

char *clean_text(const void *text, size_t len) {
  const uint8_t *p = text;
  bool cut = len > RECORD_MAX && !BUG("log-uncapped");
  if (cut) len = RECORD_MAX;
  char *out = must(malloc(len * 4 + 32));
  size_t n = 0;
  for (size_t i = 0; i < len;) {
    size_t k = utf8(p + i, len - i);
    if (BUG("log-unescaped")) {
      out[n++] = (char)p[i++];
    } else if (!k || (k == 1 && (p[i] < 0x20 || p[i] == 0x7f || p[i] == '\\'))) {
      n += (size_t)sprintf(out + n, "\\x%02x", p[i++]);
    } else {
      memcpy(out + n, p + i, k);
      n += k;
      i += k;
    }
  }
  strcpy(out + n, cut ? " [cut]" : "");
  return out;
}

void say_escaped(uint32_t level, const char *who, const uint8_t *text, uint64_t len) {
  if (level < __atomic_load_n(&page.log_level, __ATOMIC_RELAXED)) return;
  char *clean = clean_text(text, len);
  if (BUG("log-uncapped") || BUG("log-unescaped")) {
    put(who, strlen(who));
    put(" ", 1);
    put(clean, BUG("log-unescaped") ? len : strlen(clean));
    put("\n", 1);
  } else {
    say(level, "%s: %s", who, clean);
  }
  free(clean);
}

/* What a record names is kept by the mutant and printed after the call: write(2) refuses memory that is gone. */
static const uint8_t *late_text;
static uint64_t late_len;

void guest_log(uint64_t ctx, uint32_t level, const uint8_t *text, uint64_t len) {
  lib *l = lib_by_ctx(ctx);
  if (level > PXG_LOG_ERROR) level = PXG_LOG_ERROR;
  if (BUG("log-kept-uncopied")) {
    if (late_text) put((const char *)late_text, late_len);
    late_text = text;
    late_len = len;
    return;
  }
  char who[160];
  snprintf(who, sizeof who, "guest=%s", l ? l->name ? l->name : l->path : "unknown");
  say_escaped(level, who, text, text ? len : 0);
}
