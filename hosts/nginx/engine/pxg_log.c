/* SPDX-License-Identifier: Apache-2.0 */

/* The log of chapter 15: levels, escapes and the cap. Where lines go is the driver's business. */

#define _POSIX_C_SOURCE 200809L

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pxg_internal.h"
#include "pxg_loading.h"

/* A text of its own and a head of "guest=... filter=...". */
#define HEAD_MAX 512
#define CUT " [cut]"

static __thread struct {
  char *to;
  size_t room;
} capture;

const char *pxg_phase_name(uint32_t phase) {
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

const char *pxg_status_name(int32_t status) {
  static const char *const names[] = {"OK",    "STALE",  "STATE",   "ARG",      "UNSUPPORTED",
                                      "LIMIT", "THREAD", "VERSION", "NOTFOUND", "INTERNAL"};
  if (status > 0) return "OK";
  return status > -10 ? names[-status] : "INTERNAL";
}

bool pxg_fail(pxg_error *e, int32_t status, const char *format, ...) {
  if (!e) return false;
  va_list args;
  va_start(args, format);
  e->status = status;
  vsnprintf(e->text, sizeof e->text, format, args);
  va_end(args);
  return false;
}

/* The length of a well-formed UTF-8 sequence at `p` that a terminal shows, or 0. */
size_t pxg_utf8(const uint8_t *p, uint64_t n) {
  if (p[0] < 0x80) return 1;
  size_t len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 0;
  if (!len || len > n || p[0] > 0xf4) return 0;
  for (size_t i = 1; i < len; i++)
    if ((p[i] & 0xc0) != 0x80) return 0;
  bool overlong = (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90);
  bool no_character = (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf4 && p[1] > 0x8f);
  bool c1_control = p[0] == 0xc2 && p[1] < 0xa0;
  return overlong || no_character || c1_control ? 0 : len;
}

size_t pxg_clean(char *to, size_t room, const void *text, uint64_t len) {
  static const char hex[] = "0123456789abcdef";
  const uint8_t *p = text;
  bool cut = len > PXG_LOG_RECORD_MAX;
  if (cut) len = PXG_LOG_RECORD_MAX;
  size_t n = 0;
  for (uint64_t i = 0; i < len;) {
    size_t whole = pxg_utf8(p + i, len - i);
    bool escape = !whole || (whole == 1 && (p[i] < 0x20 || p[i] == 0x7f || p[i] == '\\'));
    if (room - n < (escape ? 4 : whole) + sizeof CUT) {
      cut = true;
      break;
    }
    if (escape) {
      to[n++] = '\\', to[n++] = 'x', to[n++] = hex[p[i] >> 4], to[n++] = hex[p[i] & 15];
      i++;
    } else {
      memcpy(to + n, p + i, whole);
      n += whole;
      i += whole;
    }
  }
  if (cut) memcpy(to + n, CUT, sizeof CUT - 1), n += sizeof CUT - 1;
  to[n] = 0;
  return n;
}

void pxg_log_capture(char *to, size_t room) {
  capture.to = to;
  capture.room = room;
  if (to) *to = 0;
}

static void put(const pxg_speaker *s, uint32_t level, const char *line, size_t len) {
  const pxg_driver *d = pxg_host_driver();
  if (level > PXG_LOG_ERROR) level = PXG_LOG_ERROR;
  if (s && s->log)
    s->log(s->data, level, line, len);
  else if (d->log)
    d->log(d->data, level, line, len);
}

static void say(const pxg_speaker *s, uint32_t level, const char *format, va_list args) {
  char line[4096];
  int n = vsnprintf(line, sizeof line, format, args);
  if (n < 0) return;
  size_t len = (size_t)n;
  if (len >= sizeof line) {
    len = sizeof line - 1;
    memcpy(line + len - (sizeof CUT - 1), CUT, sizeof CUT - 1);
  }
  put(s, level, line, len);
}

void pxg_say(uint32_t level, const char *format, ...) {
  if (!pxg_log_wants(level)) return;
  va_list args;
  va_start(args, format);
  say(NULL, level, format, args);
  va_end(args);
}

void pxg_stream_say(const pxg_stream *s, uint32_t level, const char *format, ...) {
  if (!pxg_log_wants(level)) return;
  pxg_speaker speaker = pxg_stream_speaker(s);
  va_list args;
  va_start(args, format);
  say(&speaker, level, format, args);
  va_end(args);
}

/* "<who>: <text>" with the text escaped and capped. */
static void say_text(const pxg_speaker *s, uint32_t level, const char *who, const void *text, uint64_t len) {
  char small[HEAD_MAX + 1024];
  size_t room = HEAD_MAX + 4 * (size_t)(len < PXG_LOG_RECORD_MAX ? len : PXG_LOG_RECORD_MAX) + sizeof CUT;
  char *line = room > sizeof small ? malloc(room) : small;
  if (!line) line = small;
  if (line == small) room = sizeof small;
  int n = snprintf(line, HEAD_MAX, "%s: ", who);
  size_t head = n < 0 ? 0 : n < HEAD_MAX ? (size_t)n : HEAD_MAX - 1;
  put(s, level, line, head + pxg_clean(line + head, room - head, text, len));
  if (line != small) free(line);
}

void pxg_guest_log(uint64_t ctx, uint32_t level, const uint8_t *ptr, uint64_t len) {
  const pxg_guest_lib *lib = pxg_guest_by_ctx(ctx);
  const pxg_call *call = pxg_call_current();
  const pxg_config *c = call && call->config && call->config->lib == lib ? call->config : NULL;
  if (level > PXG_LOG_ERROR) level = PXG_LOG_ERROR;
  if (!ptr) len = 0;
  if (capture.to) pxg_clean(capture.to, capture.room, ptr, len);
  if (!pxg_log_wants(level)) return;
  char who[HEAD_MAX];
  const char *name = lib ? __atomic_load_n(&lib->name, __ATOMIC_ACQUIRE) : "unknown";
  int n = snprintf(who, sizeof who, "guest=%s", name ? name : lib->path);
  if (c && n > 0 && n < HEAD_MAX)
    n += snprintf(who + n, (size_t)(HEAD_MAX - n), " filter=%s config=%s", c->filter, c->instance);
  const pxg_speaker *s = c ? call->speaker : NULL;
  if (s && n > 0 && n < HEAD_MAX)
    snprintf(who + n, (size_t)(HEAD_MAX - n), " phase=%s stream=%llu", pxg_phase_name(call->phase),
             (unsigned long long)s->id);
  say_text(s, level, who, ptr, len);
}
