/* SPDX-License-Identifier: Apache-2.0 */

/* Lists of fields, and what a field of a guest's may look like (spec/06-headers). */

#include <strings.h>

#include "minihost.h"

static void field_fill(field *f, const void *name, size_t nn, const void *value, size_t vn, uint32_t flags) {
  *f = (field){
      copy_text(name, nn), copy_text(value, vn), (uint32_t)nn, (uint32_t)vn, flags & PXG_STR_SENSITIVE, -1, false};
  static const char *const secret[] = {"authorization", "proxy-authorization", "cookie", "set-cookie"};
  for (size_t i = 0; i < sizeof secret / sizeof *secret; i++)
    if (!strcmp(f->name, secret[i])) f->flags |= PXG_STR_SENSITIVE;
}

void fields_add(fields *f, const void *name, size_t nn, const void *value, size_t vn, uint32_t flags) {
  if (f->n == f->cap) {
    f->cap = f->cap ? f->cap * 2 : 16;
    f->at = must(realloc(f->at, f->cap * sizeof *f->at));
  }
  field_fill(&f->at[f->n++], name, nn, value, vn, flags);
}

void fields_put(fields *f, const char *name, const char *value) {
  fields_set(f, name, strlen(name), value, strlen(value), 0);
}

static bool named(const field *f, const void *name, size_t len) {
  return f->name_len == len && !memcmp(f->name, name, len);
}

const char *fields_get(const fields *f, const char *name) {
  for (size_t i = 0; i < f->n; i++)
    if (named(&f->at[i], name, strlen(name))) return f->at[i].value;
  return NULL;
}

size_t fields_count(const fields *f, const char *name) {
  size_t n = 0;
  for (size_t i = 0; i < f->n; i++) n += named(&f->at[i], name, strlen(name));
  return n;
}

void fields_remove_at(fields *f, size_t i) {
  free(f->at[i].name);
  free(f->at[i].value);
  memmove(f->at + i, f->at + i + 1, (--f->n - i) * sizeof *f->at);
}

/* Leaves one field of that name, where the first one stood. */
bool fields_set(fields *f, const void *name, size_t nn, const void *value, size_t vn, uint32_t flags) {
  bool found = false;
  for (size_t i = 0; i < f->n;) {
    if (!named(&f->at[i], name, nn)) {
      i++;
    } else if (found) {
      fields_remove_at(f, i);
    } else {
      /* `name` may be the field's own. */
      field old = f->at[i];
      field_fill(&f->at[i++], name, nn, value, vn, flags);
      name = f->at[i - 1].name;
      free(old.name);
      free(old.value);
      found = true;
      if (BUG("set-leaves-the-others")) return true;
    }
  }
  if (!found) fields_add(f, name, nn, value, vn, flags);
  return found;
}

bool fields_delete(fields *f, const void *name, size_t nn) {
  bool found = false;
  for (size_t i = 0; i < f->n;) {
    if (named(&f->at[i], name, nn)) {
      fields_remove_at(f, i);
      found = true;
    } else {
      i++;
    }
  }
  return found;
}

void fields_copy(fields *to, const fields *from) {
  for (size_t i = 0; i < from->n; i++) {
    const field *f = &from->at[i];
    fields_add(to, f->name, f->name_len, f->value, f->value_len, f->flags);
  }
}

void fields_free(fields *f) {
  for (size_t i = 0; i < f->n; i++) {
    free(f->at[i].name);
    free(f->at[i].value);
  }
  free(f->at);
  *f = (fields){0};
}

static bool all_in(const uint8_t *p, size_t n, const char *more, bool upper) {
  for (size_t i = 0; i < n; i++) {
    bool ok = (p[i] >= 'a' && p[i] <= 'z') || (p[i] >= '0' && p[i] <= '9') || (upper && p[i] >= 'A' && p[i] <= 'Z') ||
              (p[i] && strchr(more, p[i]));
    if (!ok) return false;
  }
  return n > 0;
}

bool name_is_token(const uint8_t *p, size_t n, bool upper) { return all_in(p, n, "!#$%&'*+-.^_|~`", upper); }

bool value_is_clean(const uint8_t *p, size_t n) {
  for (size_t i = 0; i < n; i++)
    if ((p[i] < 0x20 && p[i] != '\t') || p[i] == 0x7f) return false;
  return !n || (p[0] != ' ' && p[0] != '\t' && p[n - 1] != ' ' && p[n - 1] != '\t');
}

bool name_is_owned(const uint8_t *p, size_t n) {
  static const char *const owned[] = {
      "connection", "content-length",    "host",    "keep-alive", "proxy-connection", "te",
      "trailer",    "transfer-encoding", "upgrade", "expect"};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
    if (strlen(owned[i]) == n && !memcmp(owned[i], p, n)) return true;
  return false;
}

static bool is(const uint8_t *p, size_t n, const char *text) { return strlen(text) == n && !memcmp(p, text, n); }

static const char *pseudo_fault(const uint8_t *name, size_t nn, const uint8_t *v, size_t vn, int direction) {
  if (direction == RSP) {
    if (!is(name, nn, ":status")) return "a pseudo-header that the message cannot have";
    if (vn != 3 || v[0] < '2' || v[0] > '5' || v[1] < '0' || v[1] > '9' || v[2] < '0' || v[2] > '9')
      return "a :status that is not 200 to 599";
    return NULL;
  }
  if (is(name, nn, ":method")) return name_is_token(v, vn, true) ? NULL : "a bad :method";
  if (is(name, nn, ":scheme")) return is(v, vn, "http") || is(v, vn, "https") ? NULL : "a bad :scheme";
  if (is(name, nn, ":authority")) return all_in(v, vn, "-._~%!$&'()*+,;=:[]", true) ? NULL : "a bad :authority";
  if (is(name, nn, ":path")) {
    if (is(v, vn, "*")) return NULL;
    if (BUG("path-unchecked")) return NULL;
    if (!vn || v[0] != '/') return "a :path that does not begin with /";
    for (size_t i = 0; i < vn; i++)
      if (v[i] < 0x21 || v[i] > 0x7e || v[i] == '#') return "a byte in :path that is not legal there";
    return NULL;
  }
  return "a pseudo-header that cannot be set";
}

const char *field_fault(const uint8_t *name, size_t nn, const uint8_t *v, size_t vn, bool is_set, bool trailers,
                        int direction) {
  if (nn && name[0] == ':') {
    if (BUG("pseudo-header-added") && !trailers) return NULL;
    if (!is_set || trailers) return "a pseudo-header, which can only be set";
    return pseudo_fault(name, nn, v, vn, direction);
  }
  if (!name_is_token(name, nn, BUG("upper-case-accepted"))) return "a name with a byte that is not legal in names";
  if (!BUG("values-unchecked") && !value_is_clean(v, vn)) return "a value with a byte that is not legal in values";
  if (!BUG("owned-fields-accepted") && name_is_owned(name, nn)) return "a field that the host owns";
  return NULL;
}
