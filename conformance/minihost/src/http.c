/* SPDX-License-Identifier: Apache-2.0 */

/* HTTP/1: heads, framing, bodies. What is ambiguous is refused (spec/19-security, 19.2). */

#include <ctype.h>
#include <strings.h>

#include "minihost.h"

size_t head_end(const char *buf, size_t len) {
  for (size_t i = 3; i < len; i++)
    if (buf[i] == '\n' && buf[i - 1] == '\r' && buf[i - 2] == '\n' && buf[i - 3] == '\r') return i + 1;
  return 0;
}

void head_free(head *h) {
  fields_free(&h->list);
  free(h->raw_path);
  free(h->protocol);
  *h = (head){0};
}

/* Whether a list-valued field has this element. */
static bool has_token(const fields *f, const char *name, const char *token) {
  size_t n = strlen(token);
  for (size_t i = 0; i < f->n; i++) {
    if (strcmp(f->at[i].name, name)) continue;
    for (const char *p = f->at[i].value; *p;) {
      p += strspn(p, " \t,");
      size_t k = strcspn(p, ","), end = k;
      while (end && (p[end - 1] == ' ' || p[end - 1] == '\t')) end--;
      if (end == n && !strncasecmp(p, token, n)) return true;
      p += k;
    }
  }
  return false;
}

/* The lines behind the first; NULL, or why they are refused. */
static const char *read_lines(fields *to, const char *p, const char *end, bool trailers) {
  while (p < end) {
    const char *eol = memchr(p, '\n', (size_t)(end - p));
    if (!eol || eol == p || eol[-1] != '\r') return "a line that does not end with CRLF";
    const char *stop = eol - 1;
    if (stop == p) return NULL;
    if (*p == ' ' || *p == '\t') return "an obsolete line folding";
    const char *colon = memchr(p, ':', (size_t)(stop - p));
    if (!colon || !name_is_token((const uint8_t *)p, (size_t)(colon - p), true)) return "a bad field name";
    const char *v = colon + 1, *ve = stop;
    while (v < ve && (*v == ' ' || *v == '\t')) v++;
    while (ve > v && (ve[-1] == ' ' || ve[-1] == '\t')) ve--;
    if (!value_is_clean((const uint8_t *)v, (size_t)(ve - v))) return "a bad byte in a field value";
    char name[256];
    size_t n = (size_t)(colon - p);
    if (n >= sizeof name) return "a field name that is too long";
    for (size_t i = 0; i < n; i++) name[i] = (char)tolower((unsigned char)p[i]);
    if (!trailers || !name_is_owned((uint8_t *)name, n)) fields_add(to, name, n, v, (size_t)(ve - v), 0);
    p = eol + 1;
  }
  return NULL;
}

static const char *read_framing(head *h, bool request) {
  fields *f = &h->list;
  size_t lengths = fields_count(f, "content-length"), codings = fields_count(f, "transfer-encoding");
  if (lengths > 1) return "several content-length fields";
  if (lengths && codings && !BUG("conflicting-framing-taken")) return "content-length with transfer-encoding";
  if (codings) {
    if (codings > 1 || strcasecmp(fields_get(f, "transfer-encoding"), "chunked") || h->minor == 0)
      return "a transfer-encoding that is not chunked alone";
    h->framing = F_CHUNKED;
    fields_delete(f, "content-length", 14);
  } else if (lengths) {
    const char *v = fields_get(f, "content-length");
    size_t n = strspn(v, "0123456789");
    if (!n || n > 18 || v[n]) return "a content-length that is no number";
    h->length = strtoull(v, NULL, 10);
    h->framing = h->length ? F_LENGTH : F_NONE;
  } else {
    h->framing = request ? F_NONE : F_CLOSE;
  }
  return NULL;
}

/* Removes what is between two neighbours only. */
static void strip_hop(head *h) {
  static const char *const hop[] = {"keep-alive", "proxy-connection", "te", "transfer-encoding", "trailer"};
  for (size_t i = 0; i < h->list.n; i++) {
    if (strcmp(h->list.at[i].name, "connection")) continue;
    char *names = copy_text(h->list.at[i].value, h->list.at[i].value_len), *save;
    for (char *t = strtok_r(names, ", \t", &save); t; t = strtok_r(NULL, ", \t", &save)) {
      for (char *c = t; *c; c++) *c = (char)tolower((unsigned char)*c);
      if (strcmp(t, "upgrade") && strcmp(t, "connection") && t[0] != ':') {
        size_t before = h->list.n;
        fields_delete(&h->list, t, strlen(t));
        if (h->list.n != before) i = (size_t)-1;
      }
      if (i == (size_t)-1) break;
    }
    free(names);
  }
  for (size_t i = 0; i < sizeof hop / sizeof *hop; i++) fields_delete(&h->list, hop[i], strlen(hop[i]));
  fields_delete(&h->list, "connection", 10);
  if (!h->upgrade) fields_delete(&h->list, "upgrade", 7);
}

char *path_normal(const char *path) {
  size_t n = strlen(path);
  char *out = copy_text(path, n), *query = strchr(out, '?');
  size_t end = query ? (size_t)(query - out) : n, w = 0;
  char *decoded = must(malloc(n + 1));
  for (size_t i = 0; i < end; i++) {
    if (out[i] == '%' && i + 2 < end + 1 && isxdigit((unsigned char)out[i + 1]) &&
        isxdigit((unsigned char)out[i + 2])) {
      char c = (char)strtoul((char[]){out[i + 1], out[i + 2], 0}, NULL, 16);
      bool plain = isalnum((unsigned char)c) || strchr("-._~", c ? c : '/');
      if (plain && !(BUG("escapes-kept") && c != '.')) {
        decoded[w++] = c;
      } else {
        decoded[w++] = '%';
        decoded[w++] = (char)toupper((unsigned char)out[i + 1]);
        decoded[w++] = (char)toupper((unsigned char)out[i + 2]);
      }
      i += 2;
    } else {
      decoded[w++] = out[i];
    }
  }
  decoded[w] = 0;
  /* Dot segments: RFC 3986, 5.2.4. */
  char *result = must(malloc(w + n + 2));
  size_t r = 0;
  for (char *p = decoded; *p;) {
    size_t k = strcspn(p + 1, "/") + 1;
    bool last = !p[k];
    if (k == 2 && p[1] == '.') {
      if (last) result[r++] = '/';
    } else if (k == 3 && p[1] == '.' && p[2] == '.') {
      while (r && result[--r] != '/') {}
      if (last) result[r++] = '/';
    } else {
      memcpy(result + r, p, k);
      r += k;
    }
    p += k;
  }
  if (!r) result[r++] = '/';
  strcpy(result + r, query ? query : "");
  free(decoded);
  free(out);
  return result;
}

/* Splits a request target; NULL, or why it is refused. */
static const char *read_target(head *h, const char *method, char *target) {
  fields pseudo = {0};
  const char *host = fields_get(&h->list, "host");
  if (fields_count(&h->list, "host") > 1) return "several host fields";
  char *authority = host ? copy_text(host, strlen(host)) : NULL, *path = target;
  if (!strcmp(method, "CONNECT")) {
    free(authority);
    authority = copy_text(target, strlen(target));
    path = NULL;
  } else if (!strncasecmp(target, "http://", 7)) {
    size_t n = strcspn(target + 7, "/?");
    free(authority);
    authority = copy_text(target + 7, n);
    path = target[7 + n] == '/' ? target + 7 + n : "/";
  }
  h->raw_path = path ? copy_text(path, strlen(path)) : NULL;
  fields_put(&pseudo, ":method", method);
  const char *fault = NULL;
  if (path) {
    fields_put(&pseudo, ":scheme", "http");
    char *normal = strcmp(path, "*") && !BUG("path-not-normalised") ? path_normal(path) : copy_text(path, strlen(path));
    fields_put(&pseudo, ":path", normal);
    if (field_fault((const uint8_t *)":path", 5, (uint8_t *)normal, strlen(normal), true, false, REQ))
      fault = "a bad request target";
    free(normal);
  }
  if (authority) {
    if (*authority &&
        field_fault((const uint8_t *)":authority", 10, (uint8_t *)authority, strlen(authority), true, false, REQ))
      fault = "a bad authority";
    fields_put(&pseudo, ":authority", authority);
  } else if (h->minor) {
    fault = "no host";
  }
  if (!BUG("host-beside-authority")) fields_delete(&h->list, "host", 4);
  fields_copy(&pseudo, &h->list);
  fields_free(&h->list);
  h->list = pseudo;
  free(authority);
  return fault;
}

static bool stripped(const char *name) {
  for (size_t i = 0; i < set.n_strip; i++) {
    const char *a = name, *b = set.strip[i];
    while (*a && *b &&
           (tolower((unsigned char)*b) == *a || (!BUG("strip-by-exact-name") && strchr("-_", *b) && strchr("-_", *a))))
      a++, b++;
    if (!*a && !*b) return true;
  }
  return false;
}

int head_request(head *h, const char *buf, size_t len, const char **why) {
  const char *eol = memchr(buf, '\n', len);
  char *line = copy_text(buf, eol ? (size_t)(eol - buf) : len), *save;
  line[strcspn(line, "\r")] = 0;
  char *method = strtok_r(line, " ", &save), *target = strtok_r(NULL, " ", &save),
       *version = strtok_r(NULL, " ", &save);
  *why = NULL;
  if (!eol || eol == buf || eol[-1] != '\r' || !version || strtok_r(NULL, " ", &save) ||
      (strcmp(version, "HTTP/1.1") && strcmp(version, "HTTP/1.0")) ||
      !name_is_token((uint8_t *)method, strlen(method), true) || memchr(buf, 0, len))
    *why = "a bad request line";
  if (!*why) h->minor = version[7] - '0';
  if (!*why) h->protocol = copy_text(version, 8);
  if (!*why) *why = read_lines(&h->list, eol + 1, buf + len, false);
  if (!*why) *why = read_framing(h, true);
  if (!*why) {
    h->keep_alive =
        h->minor ? !has_token(&h->list, "connection", "close") : has_token(&h->list, "connection", "keep-alive");
    h->upgrade = h->minor && has_token(&h->list, "connection", "upgrade") && fields_get(&h->list, "upgrade") &&
                 (h->framing == F_NONE || BUG("upgrade-with-a-body"));
    if (h->upgrade) h->framing = F_NONE;
    h->expect = h->minor && has_token(&h->list, "expect", "100-continue") && h->framing != F_NONE;
    strip_hop(h);
    fields_delete(&h->list, "expect", 6);
    *why = read_target(h, method, target);
    for (size_t i = 0; i < h->list.n && !BUG("strip-list-ignored"); i++)
      if (stripped(h->list.at[i].name)) fields_remove_at(&h->list, i--);
  }
  free(line);
  return *why ? 400 : 0;
}

int head_response(head *h, const char *buf, size_t len, bool to_head, bool to_connect, const char **why) {
  const char *eol = memchr(buf, '\n', len);
  *why = NULL;
  if (!eol || len < 14 || strncmp(buf, "HTTP/1.", 7) || !isdigit((unsigned char)buf[9]) ||
      !isdigit((unsigned char)buf[10]) || !isdigit((unsigned char)buf[11])) {
    *why = "a bad status line";
    return 502;
  }
  h->minor = buf[7] - '0';
  int status = atoi(buf + 9);
  fields lines = {0};
  *why = read_lines(&lines, eol + 1, buf + len, false);
  fields_add(&h->list, ":status", 7, buf + 9, 3, 0);
  fields_copy(&h->list, &lines);
  fields_free(&lines);
  if (!*why) *why = read_framing(h, false);
  if (*why) return 502;
  h->keep_alive = h->minor && !has_token(&h->list, "connection", "close");
  h->upgrade = status == 101 || (to_connect && status / 100 == 2);
  strip_hop(h);
  if (status / 100 == 1 || status == 204 || status == 304 || to_head || h->upgrade) h->framing = F_NONE;
  return 0;
}

/* ---- bodies ------------------------------------------------------------------------------------------------------ */

enum { C_SIZE, C_DATA, C_DATA_END, C_TRAILERS };

/* One line of a chunked body; its length with the line end, 0 for more, -1 for one that is too long. */
static int line_of(const char *buf, size_t len) {
  const char *eol = memchr(buf, '\n', len);
  if (!eol) return len > 8192 ? -1 : 0;
  return eol == buf || eol[-1] != '\r' ? -1 : (int)(eol - buf + 1);
}

static int decode_chunked(decoder *d, const char *buf, size_t len, size_t *used, bytes *out) {
  while (*used < len || d->step == C_DATA) {
    const char *p = buf + *used;
    size_t left = len - *used;
    if (d->step == C_DATA) {
      size_t n = d->left < left ? (size_t)d->left : left;
      bytes_copy(out, p, n);
      *used += n;
      d->left -= n;
      if (d->left) return 0;
      d->step = C_DATA_END;
      continue;
    }
    int n = line_of(p, left);
    if (n <= 0) return n;
    if (d->step == C_DATA_END) {
      if (n != 2) return -1;
      d->step = C_SIZE;
    } else if (d->step == C_SIZE) {
      size_t digits = 0;
      while (isxdigit((unsigned char)p[digits])) digits++;
      if (!digits || digits > 15 || (p[digits] != '\r' && p[digits] != ';' && p[digits] != ' ')) return -1;
      d->left = strtoull(p, NULL, 16);
      d->step = d->left ? C_DATA : C_TRAILERS;
    } else if (n == 2) {
      *used += 2;
      return 1;
    } else {
      d->trailer_bytes += (size_t)n;
      if (d->trailer_bytes > set.max_field_bytes || read_lines(&d->trailers, p, p + n, true)) return -1;
    }
    *used += (size_t)n;
  }
  return 0;
}

int decode(decoder *d, const char *buf, size_t len, size_t *used, bytes *out) {
  *used = 0;
  if (d->framing == F_CHUNKED) return decode_chunked(d, buf, len, used, out);
  if (d->framing == F_NONE) return 1;
  size_t n = d->framing == F_LENGTH && d->left < len ? (size_t)d->left : len;
  bytes_copy(out, buf, n);
  *used = n;
  if (d->framing == F_LENGTH) d->left -= n;
  return d->framing == F_LENGTH && !d->left;
}

static void line(bytes *to, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void line(bytes *to, const char *format, ...) {
  char *text = NULL;
  va_list args;
  va_start(args, format);
  int n = vasprintf(&text, format, args);
  va_end(args);
  if (n < 0) abort();
  bytes_copy(to, text, (size_t)n);
  free(text);
}

static void print_fields(bytes *to, const fields *f) {
  for (size_t i = 0; i < f->n; i++)
    if (f->at[i].name[0] != ':' && (f->at[i].name_len != 4 || memcmp(f->at[i].name, "host", 4)))
      line(to, "%s: %s\r\n", f->at[i].name, f->at[i].value);
}

void print_request(bytes *to, const stream *s, enum framing f) {
  const fields *h = &s->m[REQ].head;
  const char *path = fields_get(h, ":path"), *authority = fields_get(h, ":authority"),
             *method = fields_get(h, ":method");
  if (path && BUG("path-forwarded-as-received")) path = s->raw_path;
  char *again = path && BUG("set-path-normalised-unseen") ? path_normal(path) : NULL;
  line(to, "%s %s HTTP/1.1\r\n", method, again ? again : path ? path : authority ? authority : "/");
  free(again);
  if (authority) line(to, "host: %s\r\n", authority);
  print_fields(to, h);
  if (f == F_CHUNKED) line(to, "transfer-encoding: chunked\r\n");
  line(to, "connection: %s\r\n\r\n", fields_get(h, "upgrade") ? "upgrade" : "close");
}

void print_response(bytes *to, const stream *s, enum framing f, bool close, int minor) {
  const fields *h = &s->m[RSP].head;
  const char *status = fields_get(h, ":status");
  line(to, "HTTP/1.%d %s \r\n", minor, status);
  print_fields(to, h);
  if (f == F_CHUNKED) line(to, "transfer-encoding: chunked\r\n");
  bool upgrade = !strcmp(status, "101");
  if (upgrade || close || minor == 0)
    line(to, "connection: %s\r\n", upgrade ? "upgrade" : close ? "close" : "keep-alive");
  line(to, "\r\n");
}

void print_body(bytes *to, bytes *b, enum framing f) {
  if (!b->len) return;
  if (f == F_CHUNKED) line(to, "%llx\r\n", (unsigned long long)b->len);
  bytes_move(to, b, b->len);
  if (f == F_CHUNKED) line(to, "\r\n");
}

void print_end(bytes *to, const fields *trailers, enum framing f) {
  if (f != F_CHUNKED) return;
  line(to, "0\r\n");
  print_fields(to, trailers);
  line(to, "\r\n");
}
