/* SPDX-License-Identifier: Apache-2.0 */

/* What a field of a guest's may look like (spec/06-headers, 6.2 to 6.4), and looking into views. */

#include "pxg_internal.h"

static bool is(const uint8_t *p, size_t n, const char *text) { return strlen(text) == n && !memcmp(p, text, n); }

bool pxg_str_is(const pxg_str *s, const char *text) { return is(s->ptr, s->len, text); }

const pxg_str *pxg_view_get(const pxg_view *v, const char *name) {
  for (size_t i = 0; i < v->n; i++)
    if (pxg_str_is(&v->at[i].name, name)) return &v->at[i].value;
  return NULL;
}

int64_t pxg_view_length(const pxg_view *v) {
  const pxg_str *s = pxg_view_get(v, "content-length");
  int64_t n = 0;
  if (!s || !s->len || s->len > 18) return -1;
  for (uint32_t i = 0; i < s->len; i++) {
    if (s->ptr[i] < '0' || s->ptr[i] > '9') return -1;
    n = n * 10 + (s->ptr[i] - '0');
  }
  return n;
}

static bool all_in(const uint8_t *p, size_t n, const char *more, bool upper) {
  for (size_t i = 0; i < n; i++) {
    bool ok = (p[i] >= 'a' && p[i] <= 'z') || (p[i] >= '0' && p[i] <= '9') || (upper && p[i] >= 'A' && p[i] <= 'Z') ||
              (p[i] && strchr(more, p[i]));
    if (!ok) return false;
  }
  return n > 0;
}

static bool is_token(const uint8_t *p, size_t n, bool upper) { return all_in(p, n, "!#$%&'*+-.^_|~`", upper); }

bool pxg_value_is_clean(const uint8_t *p, size_t n) {
  for (size_t i = 0; i < n; i++)
    if ((p[i] < 0x20 && p[i] != '\t') || p[i] == 0x7f) return false;
  return !n || (p[0] != ' ' && p[0] != '\t' && p[n - 1] != ' ' && p[n - 1] != '\t');
}

bool pxg_name_is_owned(const uint8_t *p, size_t n) {
  static const char *const owned[] = {
      "connection", "content-length",    "host",    "keep-alive", "proxy-connection", "te",
      "trailer",    "transfer-encoding", "upgrade", "expect"};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
    if (is(p, n, owned[i])) return true;
  return false;
}

static const char *pseudo_fault(const uint8_t *name, size_t nn, const uint8_t *v, size_t vn, int d) {
  if (d == RSP) {
    if (!is(name, nn, ":status")) return "a pseudo-header that the message cannot have";
    if (vn != 3 || v[0] < '2' || v[0] > '5' || v[1] < '0' || v[1] > '9' || v[2] < '0' || v[2] > '9')
      return "a :status that is not 200 to 599";
    return NULL;
  }
  if (is(name, nn, ":method")) return is_token(v, vn, true) ? NULL : "a bad :method";
  if (is(name, nn, ":scheme")) return is(v, vn, "http") || is(v, vn, "https") ? NULL : "a bad :scheme";
  if (is(name, nn, ":authority")) return all_in(v, vn, "-._~%!$&'()*+,;=:[]", true) ? NULL : "a bad :authority";
  if (!is(name, nn, ":path")) return "a pseudo-header that cannot be set";
  if (is(v, vn, "*")) return NULL;
  if (!vn || v[0] != '/') return "a :path that does not begin with /";
  for (size_t i = 0; i < vn; i++)
    if (v[i] < 0x21 || v[i] > 0x7e || v[i] == '#') return "a byte in :path that is not legal there";
  return NULL;
}

const char *pxg_field_fault(const uint8_t *name, size_t nn, const uint8_t *v, size_t vn, bool set, bool trailers,
                            int d) {
  if (nn && name[0] == ':') {
    if (!set || trailers) return "a pseudo-header, which can only be set";
    return pseudo_fault(name, nn, v, vn, d);
  }
  if (!is_token(name, nn, false)) return "a name with a byte that is not legal in names";
  if (!pxg_value_is_clean(v, vn)) return "a value with a byte that is not legal in values";
  if (pxg_name_is_owned(name, nn)) return "a field that the host owns";
  return NULL;
}

uint64_t pxg_view_bytes(const pxg_view *v) {
  uint64_t n = 0;
  for (size_t i = 0; i < v->n; i++) n += v->at[i].name.len + (uint64_t)v->at[i].value.len;
  return n;
}
