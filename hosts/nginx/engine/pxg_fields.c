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

/* What a byte may be part of. */
enum { NAME = 1, UPPER = 2, AUTHORITY = 4 };

#define T NAME
#define A AUTHORITY
#define U (UPPER | AUTHORITY)
#define B (NAME | AUTHORITY)
static const uint8_t classes[128] = {
    ['!'] = B, ['#'] = T, ['$'] = B, ['%'] = B, ['&'] = B, ['\''] = B, ['('] = A, [')'] = A, ['*'] = B, ['+'] = B,
    [','] = A, ['-'] = B, ['.'] = B, ['0'] = B, ['1'] = B, ['2'] = B,  ['3'] = B, ['4'] = B, ['5'] = B, ['6'] = B,
    ['7'] = B, ['8'] = B, ['9'] = B, [':'] = A, [';'] = A, ['='] = A,  ['A'] = U, ['B'] = U, ['C'] = U, ['D'] = U,
    ['E'] = U, ['F'] = U, ['G'] = U, ['H'] = U, ['I'] = U, ['J'] = U,  ['K'] = U, ['L'] = U, ['M'] = U, ['N'] = U,
    ['O'] = U, ['P'] = U, ['Q'] = U, ['R'] = U, ['S'] = U, ['T'] = U,  ['U'] = U, ['V'] = U, ['W'] = U, ['X'] = U,
    ['Y'] = U, ['Z'] = U, ['['] = A, [']'] = A, ['^'] = T, ['_'] = B,  ['`'] = T, ['a'] = B, ['b'] = B, ['c'] = B,
    ['d'] = B, ['e'] = B, ['f'] = B, ['g'] = B, ['h'] = B, ['i'] = B,  ['j'] = B, ['k'] = B, ['l'] = B, ['m'] = B,
    ['n'] = B, ['o'] = B, ['p'] = B, ['q'] = B, ['r'] = B, ['s'] = B,  ['t'] = B, ['u'] = B, ['v'] = B, ['w'] = B,
    ['x'] = B, ['y'] = B, ['z'] = B, ['|'] = T, ['~'] = B};
#undef T
#undef A
#undef U
#undef B

static bool all_in(const uint8_t *p, size_t n, unsigned what) {
  for (size_t i = 0; i < n; i++)
    if (p[i] >= 128 || !(classes[p[i]] & what)) return false;
  return n > 0;
}

static bool is_blank(uint8_t c) { return c == ' ' || c == '\t'; }

#define EACH(byte) (UINT64_MAX / 255 * (byte))

/* Whether one of eight bytes is below 0x20 or 0x7f. */
static bool has_control(uint64_t x) {
  uint64_t del = x ^ EACH(0x7f);
  return ((x - EACH(0x20)) & ~x & EACH(0x80)) || ((del - EACH(1)) & ~del & EACH(0x80));
}

bool pxg_value_is_clean(const uint8_t *p, size_t n) {
  for (size_t i = 0; i < n; i++) {
    uint64_t eight;
    while (n - i >= sizeof eight) {
      memcpy(&eight, p + i, sizeof eight);
      if (has_control(eight)) break;
      i += sizeof eight;
    }
    if (i < n && ((p[i] < 0x20 && p[i] != '\t') || p[i] == 0x7f)) return false;
  }
  return !n || (!is_blank(p[0]) && !is_blank(p[n - 1]));
}

#define IS(text) (!memcmp(p, text, sizeof(text) - 1))

bool pxg_name_is_owned(const uint8_t *p, size_t n) {
  switch (n) {
  case 2: return IS("te");
  case 4: return IS("host");
  case 6: return IS("expect");
  case 7: return IS("trailer") || IS("upgrade");
  case 10: return IS("connection") || IS("keep-alive");
  case 14: return IS("content-length");
  case 16: return IS("proxy-connection");
  case 17: return IS("transfer-encoding");
  default: return false;
  }
}

static const char *pseudo_fault(const uint8_t *name, size_t nn, const uint8_t *v, size_t vn, int d) {
  if (d == RSP) {
    if (!is(name, nn, ":status")) return "a pseudo-header that the message cannot have";
    if (vn != 3 || v[0] < '2' || v[0] > '5' || v[1] < '0' || v[1] > '9' || v[2] < '0' || v[2] > '9')
      return "a :status that is not 200 to 599";
    return NULL;
  }
  if (is(name, nn, ":method")) return all_in(v, vn, NAME | UPPER) ? NULL : "a bad :method";
  if (is(name, nn, ":scheme")) return is(v, vn, "http") || is(v, vn, "https") ? NULL : "a bad :scheme";
  if (is(name, nn, ":authority")) return all_in(v, vn, AUTHORITY) ? NULL : "a bad :authority";
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
  if (!all_in(name, nn, NAME)) return "a name with a byte that is not legal in names";
  if (!pxg_value_is_clean(v, vn)) return "a value with a byte that is not legal in values";
  if (pxg_name_is_owned(name, nn)) return "a field that the host owns";
  return NULL;
}

uint64_t pxg_view_bytes(const pxg_view *v) {
  uint64_t n = 0;
  for (size_t i = 0; i < v->n; i++) n += v->at[i].name.len + (uint64_t)v->at[i].value.len;
  return n;
}
