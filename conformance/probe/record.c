/* SPDX-License-Identifier: Apache-2.0 */
/* Records: a JSON object a line, written with one write(2) to a file of the process. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "probe.h"

_Thread_local uint64_t thread_now;
_Thread_local const char *case_now;
const char *record_library;

/* The order of the process: libraries share it, in memory that a file stands for. */
static atomic_ullong own_sequence, *sequence = &own_sequence;
static char directory[512];
static int file = -1;
static pid_t file_of;
static text early; /* What was recorded before a configuration said where to. */
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local text lines[4];
static _Thread_local int depth;

static void put(text *t, const char *s, size_t n) {
  if (t->n + n + 1 > t->cap) {
    t->cap = (t->n + n + 1) * 2;
    t->p = realloc(t->p, t->cap);
  }
  memcpy(t->p + t->n, s, n);
  t->n += n;
}

void j_raw(text *t, const char *s) { put(t, s, strlen(s)); }

static void format(text *t, const char *f, ...) {
  char buffer[160];
  va_list args;
  va_start(args, f);
  int n = vsnprintf(buffer, sizeof buffer, f, args);
  va_end(args);
  put(t, buffer, n < (int)sizeof buffer ? (size_t)n : sizeof buffer - 1);
}

/* Bytes as a JSON string: each byte is the character of its number. */
static void quoted(text *t, const uint8_t *p, size_t n) {
  put(t, "\"", 1);
  for (size_t i = 0; i < n; i++) {
    if (p[i] == '"' || p[i] == '\\') {
      put(t, "\\", 1), put(t, (const char *)p + i, 1);
    } else if (p[i] < 0x20 || p[i] >= 0x7f) {
      format(t, "\\u%04x", p[i]);
    } else {
      put(t, (const char *)p + i, 1);
    }
  }
  put(t, "\"", 1);
}

const char *record_directory(void) { return directory; }

void record_to(const char *dir) {
  pthread_mutex_lock(&opening);
  if (!*directory) {
    snprintf(directory, sizeof directory, "%s", dir);
    char path[600];
    snprintf(path, sizeof path, "%s/%d.seq", directory, (int)getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    void *shared =
        fd >= 0 && !ftruncate(fd, 4096) ? mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (shared != MAP_FAILED) sequence = shared;
    if (fd >= 0) close(fd);
  }
  pthread_mutex_unlock(&opening);
}

static void out(const char *p, size_t n) {
  if (write(file, p, n) == (ssize_t)n) return;
  static const char lost[] = "pxg probe: a record could not be written\n";
  if (write(2, lost, sizeof lost - 1) < 0) abort();
}

/* What a process may record: a host that loops must not fill the disk. PXG_PROBE_MOST may set another number. */
enum { MOST_BYTES = 64 << 20 };
static unsigned long records, most_records = 200000;
static size_t bytes;

/* Under the lock: whether there is room for `n` bytes more; 2 at the last record, which says that there is none. */
static int room(size_t n) {
  if (records > most_records) return 0;
  records++, bytes += n;
  if (records <= most_records && bytes <= MOST_BYTES) return 1;
  records = most_records + 1;
  return 2;
}

static const char *full_line(void) {
  static char line[400];
  snprintf(line, sizeof line,
           "{\"side\":\"probe\",\"seq\":%llu,\"pid\":%d,\"tid\":%d,\"fn\":\"note\",\"edge\":\"enter\","
           "\"text\":\"the process has recorded %lu records or %d bytes; nothing after this is recorded\"}\n",
           (unsigned long long)atomic_fetch_add(sequence, 1) + 1, (int)getpid(), (int)syscall(SYS_gettid), most_records,
           MOST_BYTES);
  return line;
}

static void write_line(const text *t) {
  pthread_mutex_lock(&opening);
  /* A host may fork: the child has a file of its own. */
  if (*directory && file_of != getpid()) {
    char path[600];
    snprintf(path, sizeof path, "%s/%d.jsonl", directory, (int)getpid());
    file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    file_of = getpid();
    records = 0, bytes = 0;
    const char *most = getenv("PXG_PROBE_MOST");
    if (most) most_records = strtoul(most, NULL, 10);
    if (early.n) out(early.p, early.n);
    early.n = 0;
  }
  const char *p = t->p;
  size_t n = t->n;
  int may = room(n);
  if (may == 2) p = full_line(), n = strlen(p);
  if (may && file >= 0) {
    out(p, n);
  } else if (may) {
    put(&early, p, n);
  }
  pthread_mutex_unlock(&opening);
}

text *record_begin(const char *fn, int exit) {
  text *t = &lines[depth++ & 3];
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  t->n = 0;
  format(t, "{\"side\":\"probe\",\"seq\":%llu,\"t\":%llu,\"pid\":%d,\"tid\":%d,\"fn\":\"%s\",\"edge\":\"%s\"",
         (unsigned long long)atomic_fetch_add(sequence, 1) + 1,
         (unsigned long long)now.tv_sec * 1000000000u + (unsigned long long)now.tv_nsec, (int)getpid(),
         (int)syscall(SYS_gettid), fn, exit ? "exit" : "enter");
  if (record_library) format(t, ",\"library\":\"%s\"", record_library);
  return t;
}

void record_end(text *t) {
  put(t, "}\n", 2);
  depth--;
  write_line(t);
  if (depth) return;
  /* The thread may be a host's, and end unseen. */
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) free(lines[i].p), lines[i] = (text){0};
}

void j_u64(text *t, const char *key, uint64_t v) { format(t, ",\"%s\":%llu", key, (unsigned long long)v); }

void j_i32(text *t, const char *key, int32_t v) { format(t, ",\"%s\":%d", key, v); }

void j_sum(text *t, const char *key, uint64_t sum) { format(t, ",\"%s\":\"%016llx\"", key, (unsigned long long)sum); }

void j_bytes(text *t, const char *key, const void *p, size_t n) {
  format(t, ",\"%s\":", key);
  quoted(t, p, n);
}

void j_text(text *t, const char *key, const char *s) { j_bytes(t, key, s, strlen(s)); }

void j_fields(text *t, const char *key, const pxg_field *f, uint64_t n) {
  format(t, ",\"%s\":[", key);
  for (uint64_t i = 0; i < n; i++) {
    put(t, i ? ",[" : "[", i ? 2 : 1);
    quoted(t, f[i].name.ptr, f[i].name.len);
    put(t, ",", 1);
    quoted(t, f[i].value.ptr, f[i].value.len);
    put(t, "]", 1);
  }
  put(t, "]", 1);
}

uint64_t sum_bytes(uint64_t h, const void *p, size_t n) {
  const uint8_t *b = p;
  for (size_t i = 0; i < n; i++) h = (h ^ b[i]) * 0x100000001b3ull;
  return h;
}

static uint64_t sum_fields(uint64_t h, const pxg_field *f, uint64_t n) {
  h = sum_bytes(h, f, n * sizeof *f);
  for (uint64_t i = 0; i < n; i++) {
    h = sum_bytes(h, f[i].name.ptr, f[i].name.len);
    h = sum_bytes(h, f[i].value.ptr, f[i].value.len);
  }
  return h;
}

uint64_t sum_event(const pxg_event *ev) {
  size_t size = ev->size < sizeof *ev ? ev->size : sizeof *ev;
  uint64_t h = sum_bytes(SUM_START, ev, size);
  h = sum_fields(h, ev->fields, ev->n_fields);
  h = sum_fields(h, ev->trailers, ev->n_trailers);
  h = sum_fields(h, ev->peer_fields, ev->n_peer_fields);
  h = sum_fields(h, ev->peer_trailers, ev->n_peer_trailers);
  h = sum_bytes(h, ev->chunks, ev->n_chunks * sizeof *ev->chunks);
  for (uint64_t i = 0; i < ev->n_chunks; i++) h = sum_bytes(h, ev->chunks[i].ptr, ev->chunks[i].len);
  h = sum_bytes(h, ev->attrs, ev->n_attrs * sizeof *ev->attrs);
  for (uint64_t i = 0; i < ev->n_attrs; i++) h = sum_bytes(h, ev->attrs[i].ptr, ev->attrs[i].len);
  return h;
}

void j_event(text *t, const pxg_event *ev) {
  j_u64(t, "size", ev->size);
  j_u64(t, "phase", ev->phase);
  j_u64(t, "flags", ev->flags);
  j_u64(t, "worker", ev->worker);
  j_u64(t, "config", ev->config);
  j_u64(t, "user", ev->user);
  j_u64(t, "stream", ev->stream);
  j_u64(t, "token", ev->token);
  if (ev->arg) j_u64(t, "arg", ev->arg);
  if (ev->n_fields) j_fields(t, "fields", ev->fields, ev->n_fields);
  if (ev->n_trailers) j_fields(t, "trailers", ev->trailers, ev->n_trailers);
  if (ev->n_peer_fields) j_fields(t, "peer_fields", ev->peer_fields, ev->n_peer_fields);
  if (ev->n_peer_trailers) j_fields(t, "peer_trailers", ev->peer_trailers, ev->n_peer_trailers);
  int body = ev->phase == PXG_PHASE_REQUEST_BODY || ev->phase == PXG_PHASE_RESPONSE_BODY ||
             ev->phase == PXG_PHASE_L4_DOWNSTREAM || ev->phase == PXG_PHASE_L4_UPSTREAM;
  if (body || ev->n_chunks) {
    uint64_t total = 0, h = SUM_START;
    j_u64(t, "body_offset", ev->body_offset);
    j_raw(t, ",\"chunks\":[");
    for (uint64_t i = 0; i < ev->n_chunks; i++) {
      format(t, i ? ",%u" : "%u", ev->chunks[i].len);
      total += ev->chunks[i].len;
      h = sum_bytes(h, ev->chunks[i].ptr, ev->chunks[i].len);
    }
    j_raw(t, "]");
    j_sum(t, "body_sum", h);
    if (total <= 512) {
      uint8_t all[512];
      size_t n = 0;
      for (uint64_t i = 0; i < ev->n_chunks; i++) {
        if (ev->chunks[i].len) memcpy(all + n, ev->chunks[i].ptr, ev->chunks[i].len);
        n += ev->chunks[i].len;
      }
      j_bytes(t, "body", all, n);
    }
  }
  if (ev->n_attrs) {
    j_raw(t, ",\"attrs\":[");
    for (uint64_t i = 0; i < ev->n_attrs; i++) {
      if (i) put(t, ",", 1);
      if (ev->attrs[i].flags & PXG_STR_ABSENT) {
        j_raw(t, "null");
      } else {
        quoted(t, ev->attrs[i].ptr, ev->attrs[i].len);
      }
    }
    j_raw(t, "]");
  }
}

extern uint64_t owned_id(const pxg_buf *b);

void j_result(text *t, const char *name, const pxg_result *r) {
  uint64_t sums[4] = {0}, n = r->ops ? r->n_ops : 0, owned = 0;
  for (uint64_t i = 0; i < n; i++) {
    const pxg_op *op = &r->ops[i];
    switch (op->kind) {
    case PXG_OP_PASS: sums[0] += op->u0; break;
    case PXG_OP_DROP: sums[1] += op->u0; break;
    case PXG_OP_INJECT: sums[2] += op->val.bytes.len; break;
    case PXG_OP_BODY_WRITE: sums[3] += op->val.bytes.len; break;
    default: break;
    }
  }
  j_raw(t, ",\"result\":{");
  format(t, "\"action\":%u,\"flags\":%u,\"user\":%llu,\"n_ops\":%llu", r->action, r->flags, (unsigned long long)r->user,
         (unsigned long long)r->n_ops);
  format(t, ",\"pass\":%llu,\"drop\":%llu,\"inject\":%llu,\"write\":%llu", (unsigned long long)sums[0],
         (unsigned long long)sums[1], (unsigned long long)sums[2], (unsigned long long)sums[3]);
  format(t, ",\"unsubscribe\":%llu,\"modes\":[%u,%u],\"more\":%llu", (unsigned long long)r->unsubscribe,
         r->body_mode[0], r->body_mode[1], (unsigned long long)r->more_bytes);
  if (name) j_text(t, "name", name);
  if (r->reply) j_u64(t, "reply", r->reply->status);
  j_raw(t, ",\"owned\":[");
  for (uint64_t i = 0; i < n; i++)
    if (owned_id(&r->ops[i].val)) format(t, owned++ ? ",%llu" : "%llu", (unsigned long long)owned_id(&r->ops[i].val));
  for (uint64_t i = 0; r->reply && r->reply->body && i < r->reply->n_body; i++)
    if (owned_id(&r->reply->body[i]))
      format(t, owned++ ? ",%llu" : "%llu", (unsigned long long)owned_id(&r->reply->body[i]));
  j_raw(t, "]}");
}

void note(const char *rule, const char *f, ...) {
  char buffer[400];
  va_list args;
  va_start(args, f);
  vsnprintf(buffer, sizeof buffer, f, args);
  va_end(args);
  text *t = record_begin("note", 0);
  if (case_now) j_text(t, "case", case_now);
  j_text(t, "rule", rule);
  j_text(t, "text", buffer);
  record_end(t);
}
