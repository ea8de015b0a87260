/* Writing down: one JSON object a line, by one write(2). */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "script.h"

const char *const phase_names[PHASES] = {"",
                                         "request_headers",
                                         "request_body",
                                         "request_trailers",
                                         "response_headers",
                                         "response_body",
                                         "response_trailers",
                                         "log",
                                         "wake"};

typedef struct line {
  size_t n;
  char text[16384];
} line;

static void put_list(line *l, const char *format, va_list args) PXGG_PRINTF(2, 0);
static void put_list(line *l, const char *format, va_list args) {
  int n = vsnprintf(l->text + l->n, sizeof l->text - l->n, format, args);
  if (n > 0 && (size_t)n < sizeof l->text - l->n) l->n += (size_t)n;
}

static void put(line *l, const char *format, ...) PXGG_PRINTF(2, 3);
static void put(line *l, const char *format, ...) {
  va_list args;
  va_start(args, format);
  put_list(l, format, args);
  va_end(args);
}

static void put_text(line *l, const uint8_t *p, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (p[i] == '"' || p[i] == '\\' || p[i] < 0x20 || p[i] > 0x7e)
      put(l, "\\u%04x", p[i]);
    else
      put(l, "%c", p[i]);
  }
}

static void put_str(line *l, pxg_str s) { put_text(l, s.ptr, s.len); }

static void put_fields(line *l, const char *name, const pxg_field *fields, uint64_t n) {
  put(l, ",\"%s\":[", name);
  for (uint64_t i = 0; i < n; i++) {
    put(l, "%s[\"", i ? "," : "");
    put_str(l, fields[i].name);
    put(l, "\",\"");
    put_str(l, fields[i].value);
    put(l, "\"]");
  }
  put(l, "]");
}

static void begin(line *l, const char *call, const script *s) {
  l->n = 0;
  put(l, "{\"call\":\"%s\",\"case\":\"", call);
  put_str(l, s->name);
  put(l, "\",\"instance\":\"");
  put_str(l, s->config->name);
  put(l, "\"");
}

static void finish(line *l, const script *s) {
  put(l, "}\n");
  if (s->config->record >= 0) (void)!write(s->config->record, l->text, l->n);
}

void record_event(const script *s, const pxg_event *ev, uint32_t nth) {
  line l;
  uint64_t len = pxgg_body_len(ev);
  begin(&l, "event", s);
  put(&l, ",\"phase\":\"%s\",\"nth\":%u,\"flags\":%u,\"worker\":%u,\"stream\":%llu,\"token\":%llu,\"arg\":%llu",
      phase_names[ev->phase], nth, ev->flags, ev->worker, (unsigned long long)ev->stream, (unsigned long long)ev->token,
      (unsigned long long)ev->arg);
  put(&l, ",\"len\":%llu,\"chunks\":%llu,\"offset\":%llu,\"body\":\"", (unsigned long long)len,
      (unsigned long long)ev->n_chunks, (unsigned long long)ev->body_offset);
  for (uint64_t i = 0, shown = 0; i < ev->n_chunks && shown < 256; i++) {
    uint64_t n = ev->chunks[i].len < 256 - shown ? ev->chunks[i].len : 256 - shown;
    put_text(&l, ev->chunks[i].ptr, n);
    shown += n;
  }
  put(&l, "\"");
  put_fields(&l, "fields", ev->fields, ev->n_fields);
  put_fields(&l, "trailers", ev->trailers, ev->n_trailers);
  put_fields(&l, "peer_fields", ev->peer_fields, ev->n_peer_fields);
  put_fields(&l, "peer_trailers", ev->peer_trailers, ev->n_peer_trailers);
  put(&l, ",\"attrs\":[");
  for (uint64_t i = 0; i < ev->n_attrs; i++) {
    put(&l, "%s", i ? "," : "");
    if (pxgg_is_absent(ev->attrs[i])) {
      put(&l, "null");
    } else {
      put(&l, "\"");
      put_str(&l, ev->attrs[i]);
      put(&l, "\"");
    }
  }
  put(&l, "]");
  finish(&l, s);
}

void record_line(const char *call, const script *s, const char *format, ...) {
  line l;
  begin(&l, call, s);
  va_list args;
  va_start(args, format);
  put_list(&l, format, args);
  va_end(args);
  finish(&l, s);
}

void record_status(const char *call, const script *s, uint32_t phase, int32_t status) {
  line l;
  begin(&l, call, s);
  put(&l, ",\"phase\":\"%s\",\"status\":%d", phase_names[phase], status);
  finish(&l, s);
}
