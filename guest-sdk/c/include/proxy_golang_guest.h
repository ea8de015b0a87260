/* proxy_golang_guest.h: small helpers for proxy_golang guests in C99 and C++11.
 *
 * Everything is `static inline`, works on the structs of proxy_golang.h and can be mixed freely with code that fills
 * them by hand. Nothing here allocates: results are written into the scratch memory that the host lends for a call.
 *
 *   int32_t pxg_guest_init_v1(...)    pxgg_init() fills the table; set your hooks after it.
 *   on_config_new                     pxgg_config_error() refuses with a text; pxgg_next_line(), pxgg_next_word() parse.
 *   on_event                          pxgg_begin(), then operations, then exactly one of pxgg_continue(), pxgg_more(),
 *                                     pxgg_pending(), pxgg_reply(), pxgg_reset(), pxgg_error().
 *
 * Ownership in one rule: the bytes behind a pxg_str that you put into an operation or a reply must stay valid until
 * the next call into this guest on the same thread (PXG-MEM-004). String literals, the memory of your configuration and
 * what pxgg_alloc(), pxgg_copy() or pxgg_format() answered do; so do the views of the same event, which the host copies
 * before they die. The stack of on_event does not, and nothing of an event may be kept beyond it (PXG-MEM-002).
 */
#ifndef PROXY_GOLANG_GUEST_H
#define PROXY_GOLANG_GUEST_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "proxy_golang.h"

#if defined(__GNUC__) || defined(__clang__)
#define PXGG_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define PXGG_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define PXGG_EXPORT __attribute__((visibility("default")))
#else
#define PXGG_PRINTF(fmt, args)
#define PXGG_UNLIKELY(x) (x)
#define PXGG_EXPORT
#endif

/* ---- strings ---------------------------------------------------------------------------------------------------- */

/* A view of n bytes at p. Longer than 4 GiB - 1 is cut there, which no field and no configuration reaches. */
static inline pxg_str pxgg_str(const void *p, size_t n) {
  pxg_str s;
  s.ptr = (const uint8_t *)p;
  s.len = n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
  s.flags = 0;
  return s;
}

/* A string literal as pxg_str. */
#define PXGG_LIT(literal) pxgg_str("" literal, sizeof(literal) - 1)

/* What is not there; differs from empty. */
static inline pxg_str pxgg_absent(void) {
  pxg_str s = pxgg_str(NULL, 0);
  s.flags = PXG_STR_ABSENT;
  return s;
}

static inline int pxgg_is_absent(pxg_str s) { return (s.flags & PXG_STR_ABSENT) != 0; }

/* Byte for byte. Field names arrive in lower case, so this is the comparison for them. */
static inline int pxgg_eq(pxg_str a, pxg_str b) {
  return a.len == b.len && (b.len == 0 || memcmp(a.ptr, b.ptr, b.len) == 0);
}

/* Compares with a string literal; the compiler turns it into a few word compares. */
#define PXGG_EQ(s, literal) pxgg_eq((s), PXGG_LIT(literal))

static inline int pxgg_starts_with(pxg_str s, pxg_str prefix) {
  return s.len >= prefix.len && (prefix.len == 0 || memcmp(s.ptr, prefix.ptr, prefix.len) == 0);
}

/* ASCII only, for values such as content types. */
static inline int pxgg_eq_nocase(pxg_str a, pxg_str b) {
  uint32_t i;
  if (a.len != b.len) return 0;
  for (i = 0; i < a.len; i++) {
    uint8_t x = a.ptr[i], y = b.ptr[i];
    if (x >= 'A' && x <= 'Z') x = (uint8_t)(x + 32);
    if (y >= 'A' && y <= 'Z') y = (uint8_t)(y + 32);
    if (x != y) return 0;
  }
  return 1;
}

/* ---- fields ----------------------------------------------------------------------------------------------------- */

/* The first field of that name (lower case), or NULL. */
static inline const pxg_field *pxgg_find(const pxg_field *fields, uint64_t n, pxg_str name) {
  uint64_t i;
  for (i = 0; i < n; i++) {
    if (pxgg_eq(fields[i].name, name)) return &fields[i];
  }
  return NULL;
}

/* The value of the event's first header field of that name, ABSENT if there is none. A view: dies with the call. */
static inline pxg_str pxgg_header(const pxg_event *ev, pxg_str name) {
  const pxg_field *f = pxgg_find(ev->fields, ev->n_fields, name);
  return f ? f->value : pxgg_absent();
}

/* The attribute that the configuration asked for at this index; ABSENT if the host has none here. A view. */
static inline pxg_str pxgg_attr(const pxg_event *ev, uint64_t index) {
  return index < ev->n_attrs ? ev->attrs[index] : pxgg_absent();
}

/* Length of the body view of this event. */
static inline uint64_t pxgg_body_len(const pxg_event *ev) {
  uint64_t i, n = 0;
  for (i = 0; i < ev->n_chunks; i++) n += ev->chunks[i].len;
  return n;
}

/* ---- features --------------------------------------------------------------------------------------------------- */

static inline int pxgg_has(const uint64_t features[4], uint32_t feature) {
  return feature < 256 && (features[feature / 64] >> (feature % 64) & 1u) != 0;
}

static inline void pxgg_add_feature(uint64_t features[4], uint32_t feature) {
  if (feature < 256) features[feature / 64] |= UINT64_C(1) << (feature % 64);
}

/* ---- logging [any-thread] --------------------------------------------------------------------------------------- */

/* Whether a line of this level is wanted: one relaxed load, no crossing (PXG-OBS-002). */
static inline int pxgg_log_on(const pxg_host *host, uint32_t level) {
  if (host->log == NULL) return 0;
  return host->page == NULL || level >= *(const volatile uint32_t *)&host->page->log_level;
}

static inline void pxgg_log(const pxg_host *host, uint32_t level, pxg_str line) {
  if (pxgg_log_on(host, level)) host->log(host->ctx, level, line.ptr, line.len);
}

/* printf-like; formats nothing if the level is off, and cuts the line at 1023 bytes. */
static inline void pxgg_logf(const pxg_host *host, uint32_t level, const char *fmt, ...) PXGG_PRINTF(3, 4);
static inline void pxgg_logf(const pxg_host *host, uint32_t level, const char *fmt, ...) {
  char line[1024];
  va_list args;
  int n;
  if (!pxgg_log_on(host, level)) return;
  va_start(args, fmt);
  n = vsnprintf(line, sizeof line, fmt, args);
  va_end(args);
  if (n < 0) return;
  host->log(host->ctx, level, (const uint8_t *)line, (size_t)n < sizeof line ? (uint64_t)n : sizeof line - 1);
}

/* ---- init [config-thread] --------------------------------------------------------------------------------------- */

/* What a guest that keeps nothing for a stream has as on_cancel and on_stream_end: a table needs both (PXG-LOAD-010). */
static inline void pxgg_no_cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token,
                                  uint32_t worker) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)token, (void)worker;
}

static inline void pxgg_no_stream_end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)worker;
}

/* Checks the host and fills the guest's table but for its hooks and filters: sizes, version, the flag ABORTS (C has no
 * panic containment), every feature of v1.0 as known, hooks on_cancel and on_stream_end that do nothing, and `ctx` = the
 * host's table, so that a hook gets it back with pxgg_host(ctx) and several hosts in one process need no global. Answers PXG_OK, or what init has to return:
 * PXG_E_VERSION or PXG_E_ARG. */
static inline int32_t pxgg_init(const pxg_host *host, pxg_guest *out, pxg_str name, pxg_str version) {
  if (host == NULL || out == NULL) return PXG_E_ARG;
  if (host->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  if (host->size < sizeof(pxg_host) || host->scratch_more == NULL) return PXG_E_ARG;
  if (out->size < sizeof(pxg_guest)) return PXG_E_ARG;
  out->size = (uint32_t)sizeof(pxg_guest);
  out->major = PXG_VERSION_MAJOR;
  out->minor = PXG_VERSION_MINOR;
  out->flags = PXG_GUEST_ABORTS;
  out->known[0] = (UINT64_C(1) << (PXG_F_APPLY + 1)) - 1;
  out->name = name;
  out->version = version;
  out->ctx = (uint64_t)(uintptr_t)host;
  out->on_cancel = pxgg_no_cancel;
  out->on_stream_end = pxgg_no_stream_end;
  return PXG_OK;
}

/* The host's table from a hook's ctx, if pxgg_init() filled the guest's. */
static inline const pxg_host *pxgg_host(uint64_t ctx) { return (const pxg_host *)(uintptr_t)ctx; }

/* ---- configuration [config-thread] ------------------------------------------------------------------------------ */

/* Writes a text for the operator into the host's scratch, cut at its capacity, and answers `status`:
 *   return pxgg_config_error(out, PXG_E_ARG, "line %u: ...", line);
 * Name what was found, what was expected and what to do. */
static inline int32_t pxgg_config_error(pxg_config_out *out, int32_t status, const char *fmt, ...) PXGG_PRINTF(3, 4);
static inline int32_t pxgg_config_error(pxg_config_out *out, int32_t status, const char *fmt, ...) {
  va_list args;
  int n;
  out->error = pxgg_str(NULL, 0);
  if (out->scratch == NULL || out->scratch_cap == 0) return status;
  va_start(args, fmt);
  n = vsnprintf((char *)out->scratch, (size_t)out->scratch_cap, fmt, args);
  va_end(args);
  if (n > 0) {
    uint64_t len = (uint64_t)n;
    out->error = pxgg_str(out->scratch, (size_t)(len < out->scratch_cap ? len : out->scratch_cap - 1));
  }
  return status;
}

static inline int pxgg_is_blank(uint8_t c) { return c == ' ' || c == '\t' || c == '\r'; }

/* Takes blanks from both ends. */
static inline pxg_str pxgg_trim(pxg_str s) {
  while (s.len > 0 && pxgg_is_blank(s.ptr[0])) {
    s.ptr++;
    s.len--;
  }
  while (s.len > 0 && pxgg_is_blank(s.ptr[s.len - 1])) s.len--;
  return s;
}

/* Takes the next line off `rest`, trimmed, without its line end. Answers 0 at the end. Empty lines and lines that
 * begin with '#' are skipped; *number counts all lines, from 1 if it was 0 before the first call. */
static inline int pxgg_next_line(pxg_str *rest, pxg_str *line, uint32_t *number) {
  while (rest->len > 0) {
    const uint8_t *end = (const uint8_t *)memchr(rest->ptr, '\n', rest->len);
    uint32_t n = end ? (uint32_t)(end - rest->ptr) : rest->len;
    uint32_t taken = end ? n + 1 : n;
    *line = pxgg_trim(pxgg_str(rest->ptr, n));
    rest->ptr += taken;
    rest->len -= taken;
    ++*number;
    if (line->len > 0 && line->ptr[0] != '#') return 1;
  }
  return 0;
}

/* Takes the next word off a line: bytes up to a blank. Answers the empty string at the end. */
static inline pxg_str pxgg_next_word(pxg_str *line) {
  pxg_str s = pxgg_trim(*line), word = s;
  word.len = 0;
  while (word.len < s.len && !pxgg_is_blank(s.ptr[word.len])) word.len++;
  *line = pxgg_trim(pxgg_str(s.ptr + word.len, s.len - word.len));
  return word;
}

/* Splits `key = value`, both trimmed. Answers 0 without a '=' or with an empty key. */
static inline int pxgg_key_value(pxg_str line, pxg_str *key, pxg_str *value) {
  const uint8_t *eq = line.len ? (const uint8_t *)memchr(line.ptr, '=', line.len) : NULL;
  if (eq == NULL) return 0;
  *key = pxgg_trim(pxgg_str(line.ptr, (size_t)(eq - line.ptr)));
  *value = pxgg_trim(pxgg_str(eq + 1, line.len - (size_t)(eq - line.ptr) - 1));
  return key->len > 0;
}

/* A decimal number up to `max`. Answers 0 if the string is anything else. */
static inline int pxgg_number(pxg_str s, uint64_t max, uint64_t *out) {
  uint64_t n = 0;
  uint32_t i;
  if (s.len == 0) return 0;
  for (i = 0; i < s.len; i++) {
    uint64_t digit = (uint64_t)s.ptr[i] - '0';
    if (s.ptr[i] < '0' || s.ptr[i] > '9' || digit > max || n > (max - digit) / 10) return 0;
    n = n * 10 + digit;
  }
  *out = n;
  return 1;
}

/* ---- one call of on_event [loop-thread] ------------------------------------------------------------------------- */

/* The state of a result under construction. Lives on the stack of on_event. */
typedef struct pxgg_call {
  const pxg_host *host;
  pxg_result *out;
  pxg_op *ops; /* the array in use; out->scratch_ops until it is full */
  uint64_t n_ops, cap_ops;
  uint8_t *mem; /* what is left of the scratch bytes */
  uint64_t mem_left;
  uint32_t failed; /* scratch was refused: the result becomes ERROR */
} pxgg_call;

static inline void pxgg_begin(pxgg_call *c, const pxg_host *host, pxg_result *out) {
  c->host = host;
  c->out = out;
  c->ops = out->scratch_ops;
  c->n_ops = 0;
  c->cap_ops = out->scratch_ops_cap;
  c->mem = out->scratch;
  c->mem_left = out->scratch_cap;
  c->failed = 0;
}

/* n bytes of scratch, 16-aligned, content undefined, valid for the result; NULL over the host's limit, and then the
 * call ends as ERROR whatever action follows. */
static inline void *pxgg_alloc(pxgg_call *c, uint64_t n) {
  uint64_t pad = (16 - ((uintptr_t)c->mem & 15)) & 15;
  uint8_t *p;
  if (PXGG_UNLIKELY(c->mem_left < pad || c->mem_left - pad < n)) {
    uint64_t want = n > 4096 ? n : 4096;
    p = c->host->scratch_more(c->host->ctx, want);
    if (p == NULL) {
      c->failed = 1;
      return NULL;
    }
    /* Keep the block with more room left: a large request must not throw away a nearly empty one. */
    if (want - n > c->mem_left) {
      c->mem = p + n;
      c->mem_left = want - n;
    }
    return p;
  }
  p = c->mem + pad;
  c->mem = p + n;
  c->mem_left -= pad + n;
  return p;
}

/* Copies bytes, such as a view, into scratch. Empty on failure, see pxgg_alloc(). */
static inline pxg_str pxgg_copy(pxgg_call *c, pxg_str s) {
  void *p = s.len ? pxgg_alloc(c, s.len) : NULL;
  if (p == NULL) return pxgg_str(NULL, 0);
  memcpy(p, s.ptr, s.len);
  return pxgg_str(p, s.len);
}

/* printf into scratch. Empty on failure, see pxgg_alloc(). */
static inline pxg_str pxgg_format(pxgg_call *c, const char *fmt, ...) PXGG_PRINTF(2, 3);
static inline pxg_str pxgg_format(pxgg_call *c, const char *fmt, ...) {
  va_list args;
  int n;
  char *p;
  va_start(args, fmt);
  n = vsnprintf(NULL, 0, fmt, args);
  va_end(args);
  p = n > 0 ? (char *)pxgg_alloc(c, (uint64_t)n + 1) : NULL;
  if (p == NULL) return pxgg_str(NULL, 0);
  va_start(args, fmt);
  vsnprintf(p, (size_t)n + 1, fmt, args);
  va_end(args);
  return pxgg_str(p, (size_t)n);
}

/* Room for one more operation; for kinds that have no helper below. NULL over the host's limit, see pxgg_alloc().
 * Operations are one array: when the lent one is full, a larger one is taken and the operations move. */
static inline pxg_op *pxgg_op(pxgg_call *c) {
  if (PXGG_UNLIKELY(c->n_ops == c->cap_ops)) {
    uint64_t cap = c->cap_ops ? c->cap_ops * 2 : 32;
    pxg_op *grown = (pxg_op *)(void *)c->host->scratch_more(c->host->ctx, cap * sizeof(pxg_op));
    if (grown == NULL) {
      c->failed = 1;
      return NULL;
    }
    if (c->n_ops) memcpy(grown, c->ops, (size_t)c->n_ops * sizeof(pxg_op));
    c->ops = grown;
    c->cap_ops = cap;
  }
  return &c->ops[c->n_ops++];
}

static inline pxg_buf pxgg_borrowed(pxg_str bytes) {
  pxg_buf b;
  b.bytes = bytes;
  b.release = NULL;
  b.ctx = 0;
  return b;
}

/* Bytes that the host releases exactly once, on any thread, by release(ctx) (PXG-MEM-006). */
static inline pxg_buf pxgg_owned(pxg_str bytes, void (*release)(uint64_t ctx), uint64_t ctx) {
  pxg_buf b;
  b.bytes = bytes;
  b.bytes.flags |= PXG_BUF_OWNED;
  b.release = release;
  b.ctx = ctx;
  return b;
}

static inline void pxgg_op_put(pxgg_call *c, uint16_t kind, uint32_t target, uint64_t u0, pxg_str key, pxg_buf val) {
  pxg_op *op = pxgg_op(c);
  if (PXGG_UNLIKELY(op == NULL)) {
    if (val.bytes.flags & PXG_BUF_OWNED) val.release(val.ctx);
    return;
  }
  op->kind = kind;
  op->flags = 0;
  op->target = target;
  op->u0 = u0;
  op->key = key;
  op->val = val;
}

/* Header and trailer operations; `target` is PXG_TARGET_HEADERS or PXG_TARGET_TRAILERS of the event's direction. */
static inline void pxgg_set(pxgg_call *c, uint32_t target, pxg_str name, pxg_str value) {
  pxgg_op_put(c, PXG_OP_HEADER_SET, target, 0, name, pxgg_borrowed(value));
}
static inline void pxgg_add(pxgg_call *c, uint32_t target, pxg_str name, pxg_str value) {
  pxgg_op_put(c, PXG_OP_HEADER_ADD, target, 0, name, pxgg_borrowed(value));
}
static inline void pxgg_delete(pxgg_call *c, uint32_t target, pxg_str name) {
  pxgg_op_put(c, PXG_OP_HEADER_DELETE, target, 0, name, pxgg_borrowed(pxgg_str(NULL, 0)));
}
/* By index into the delivered view, counted before all operations of the batch (PXG-HDR-004). */
static inline void pxgg_set_at(pxgg_call *c, uint32_t target, uint64_t index, pxg_str value) {
  pxgg_op_put(c, PXG_OP_SET_AT, target, index, pxgg_str(NULL, 0), pxgg_borrowed(value));
}
static inline void pxgg_delete_at(pxgg_call *c, uint32_t target, uint64_t index) {
  pxgg_op_put(c, PXG_OP_DELETE_AT, target, index, pxgg_str(NULL, 0), pxgg_borrowed(pxgg_str(NULL, 0)));
}

/* Body operations move a cursor that starts at the view's first byte. */
static inline void pxgg_pass(pxgg_call *c, uint64_t n) {
  pxgg_op_put(c, PXG_OP_PASS, 0, n, pxgg_str(NULL, 0), pxgg_borrowed(pxgg_str(NULL, 0)));
}
static inline void pxgg_drop(pxgg_call *c, uint64_t n) {
  pxgg_op_put(c, PXG_OP_DROP, 0, n, pxgg_str(NULL, 0), pxgg_borrowed(pxgg_str(NULL, 0)));
}
static inline void pxgg_inject(pxgg_call *c, pxg_buf bytes) {
  pxgg_op_put(c, PXG_OP_INJECT, 0, 0, pxgg_str(NULL, 0), bytes);
}

/* Metadata in the guest's own namespace; later guests see it as the attribute metadata.<namespace>.<key>. */
static inline void pxgg_metadata(pxgg_call *c, pxg_str key, pxg_str value) {
  pxgg_op_put(c, PXG_OP_METADATA_SET, 0, 0, key, pxgg_borrowed(value));
}
/* A value for the metric `id` that pxg.metrics/1 defined. */
static inline void pxgg_metric(pxgg_call *c, uint32_t id, int64_t value) {
  pxgg_op_put(c, PXG_OP_METRIC, id, (uint64_t)value, pxgg_str(NULL, 0), pxgg_borrowed(pxgg_str(NULL, 0)));
}
static inline void pxgg_route_cluster(pxgg_call *c, pxg_str cluster) {
  pxgg_op_put(c, PXG_OP_ROUTE, 0, 0, PXGG_LIT("cluster"), pxgg_borrowed(cluster));
}
static inline void pxgg_route_recompute(pxgg_call *c) {
  pxgg_op_put(c, PXG_OP_ROUTE, 0, 0, PXGG_LIT("recompute"), pxgg_borrowed(pxgg_str(NULL, 0)));
}

/* ---- replies ---------------------------------------------------------------------------------------------------- */

/* A reply under construction, in scratch; NULL over the host's limit, and every function below takes that NULL:
 *   pxg_reply *r = pxgg_reply_new(&c, 403);
 *   pxgg_reply_header(&c, r, PXGG_LIT("content-type"), PXGG_LIT("text/plain"));
 *   pxgg_reply_body(&c, r, PXGG_LIT("no\n"));
 *   pxgg_reply_send(&c, r);
 * The host adds content-length and framing itself. Room for 8 header fields and 4 body parts is taken at once; more
 * move to a larger array. */
static inline pxg_reply *pxgg_reply_new(pxgg_call *c, uint32_t status) {
  pxg_reply *r = (pxg_reply *)pxgg_alloc(c, sizeof(pxg_reply));
  if (r == NULL) return NULL;
  memset(r, 0, sizeof *r);
  r->size = (uint32_t)sizeof *r;
  r->status = status;
  return r;
}

/* Grows an array in scratch: capacities are `first` times a power of two, so the count alone says when it is full. */
static inline void *pxgg_reply_grow(pxgg_call *c, const void *array, uint64_t n, uint64_t first, uint64_t element) {
  void *grown;
  if (n != 0 && (n < first || (n & (n - 1)) != 0)) return (void *)(uintptr_t)array;
  grown = pxgg_alloc(c, (n ? n * 2 : first) * element);
  if (grown != NULL && n) memcpy(grown, array, (size_t)(n * element));
  return grown;
}

static inline void pxgg_reply_header(pxgg_call *c, pxg_reply *r, pxg_str name, pxg_str value) {
  pxg_field *f = r ? (pxg_field *)pxgg_reply_grow(c, r->fields, r->n_fields, 8, sizeof(pxg_field)) : NULL;
  if (f == NULL) return;
  f[r->n_fields].name = name;
  f[r->n_fields++].value = value;
  r->fields = f;
}

static inline void pxgg_reply_body(pxgg_call *c, pxg_reply *r, pxg_str bytes) {
  pxg_buf *b = r ? (pxg_buf *)pxgg_reply_grow(c, r->body, r->n_body, 4, sizeof(pxg_buf)) : NULL;
  if (b == NULL) return;
  b[r->n_body++] = pxgg_borrowed(bytes);
  r->body = b;
}

/* ---- the end of a call: exactly one of these -------------------------------------------------------------------- */

/* `text`: for the log; valid until the next call into this guest on this thread. Operations are not applied. */
static inline void pxgg_error(pxgg_call *c, pxg_str text) {
  uint64_t i;
  for (i = 0; i < c->n_ops; i++) {
    if (c->ops[i].val.bytes.flags & PXG_BUF_OWNED) c->ops[i].val.release(c->ops[i].val.ctx);
  }
  c->n_ops = 0;
  c->out->ops = NULL;
  c->out->n_ops = 0;
  c->out->reply = NULL;
  c->out->error = text;
  c->out->action = PXG_ACT_ERROR;
}

static inline void pxgg_finish(pxgg_call *c, uint32_t action) {
  if (PXGG_UNLIKELY(c->failed)) {
    pxgg_error(c, PXGG_LIT("scratch_more refused memory: the result is over the host's limit"));
    return;
  }
  c->out->ops = c->ops;
  c->out->n_ops = c->n_ops;
  c->out->action = action;
}

/* Apply the operations and go on. */
static inline void pxgg_continue(pxgg_call *c) { pxgg_finish(c, PXG_ACT_CONTINUE); }

/* Keep the rest of the view, or the headers; `bytes` more are worth an event, 0 leaves the pace to the host. */
static inline void pxgg_more(pxgg_call *c, uint64_t bytes) {
  c->out->more_bytes = bytes;
  pxgg_finish(c, PXG_ACT_MORE);
}

/* Hold; host->complete(host->ctx, ev->token, ...) or on_cancel follows. Legal without operations only, and in a phase
 * of pend_phases. `ns`: a wish for the deadline, 0 for the configuration's. */
static inline void pxgg_pending(pxgg_call *c, uint64_t ns) {
  if (PXGG_UNLIKELY(c->n_ops)) {
    pxgg_error(c, PXGG_LIT("PENDING with operations: pass them with complete instead"));
    return;
  }
  /* Everything else of the result stays as the host preset it. */
  c->out->pend_ns = ns;
  c->out->action = PXG_ACT_PENDING;
}

static inline void pxgg_reply_send(pxgg_call *c, const pxg_reply *r) {
  c->out->reply = r;
  pxgg_finish(c, PXG_ACT_REPLY);
}

/* Abort both directions without a reply. */
static inline void pxgg_reset(pxgg_call *c) { pxgg_finish(c, PXG_ACT_RESET); }

#endif /* PROXY_GOLANG_GUEST_H */
