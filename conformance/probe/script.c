/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration: text, a statement a line. See README.md. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "probe.h"

static const struct {
  const char *name;
  uint32_t phase;
} phases[] = {
    {"request-headers", PXG_PHASE_REQUEST_HEADERS},
    {"request-body", PXG_PHASE_REQUEST_BODY},
    {"request-trailers", PXG_PHASE_REQUEST_TRAILERS},
    {"response-headers", PXG_PHASE_RESPONSE_HEADERS},
    {"response-body", PXG_PHASE_RESPONSE_BODY},
    {"response-trailers", PXG_PHASE_RESPONSE_TRAILERS},
    {"log", PXG_PHASE_LOG},
    {"wake", PXG_PHASE_WAKE},
    {"l4-open", PXG_PHASE_L4_OPEN},
    {"l4-downstream", PXG_PHASE_L4_DOWNSTREAM},
    {"l4-upstream", PXG_PHASE_L4_UPSTREAM},
    {"l4-close", PXG_PHASE_L4_CLOSE},
};

uint32_t phase_of(const char *name, size_t len) {
  for (size_t i = 0; i < sizeof phases / sizeof *phases; i++)
    if (strlen(phases[i].name) == len && !memcmp(phases[i].name, name, len)) return phases[i].phase;
  return 0;
}

static int hex(uint8_t c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

/* One word: `-` is empty, `~` absent, `%N:x` is x N times, and backslashes as in C, with `\s` for a space. */
static word decode(const uint8_t *p, size_t n) {
  word w = {0};
  if (n == 1 && *p == '~') {
    w.absent = 1;
    w.ptr = calloc(1, 1);
    return w;
  }
  size_t times = 1;
  if (n > 2 && *p == '%') {
    const uint8_t *colon = memchr(p, ':', n);
    if (colon) {
      times = strtoull((const char *)p + 1, NULL, 10);
      n -= (size_t)(colon + 1 - p), p = colon + 1;
    }
  }
  uint8_t *out = calloc(1, n + 1);
  size_t m = 0;
  if (!(n == 1 && *p == '-'))
    for (size_t i = 0; i < n; i++) {
      if (p[i] != '\\' || i + 1 == n) {
        out[m++] = p[i];
        continue;
      }
      switch (p[++i]) {
      case 'n': out[m++] = '\n'; break;
      case 'r': out[m++] = '\r'; break;
      case 't': out[m++] = '\t'; break;
      case 's': out[m++] = ' '; break;
      case '0': out[m++] = 0; break;
      case 'x':
        if (i + 2 < n && hex(p[i + 1]) >= 0 && hex(p[i + 2]) >= 0) {
          out[m++] = (uint8_t)(hex(p[i + 1]) << 4 | hex(p[i + 2]));
          i += 2;
        }
        break;
      default: out[m++] = p[i];
      }
    }
  if (times != 1) {
    uint8_t *many = calloc(1, m * times + 1);
    for (size_t i = 0; i < times; i++) memcpy(many + i * m, out, m);
    free(out);
    out = many, m *= times;
  }
  w.ptr = out;
  w.len = (uint32_t)m;
  return w;
}

/* The words of `p[0..n]`, separated by spaces. */
static int words_of(const uint8_t *p, size_t n, word *out, int most) {
  int count = 0;
  for (size_t i = 0; i < n && count < most;) {
    while (i < n && p[i] == ' ') i++;
    size_t from = i;
    while (i < n && p[i] != ' ') i++;
    if (i > from) out[count++] = decode(p + from, i - from);
  }
  return count;
}

static char *cstr(const word *w) { return (char *)w->ptr; }

static int is(const word *w, const char *s) { return w->len == strlen(s) && !memcmp(w->ptr, s, w->len); }

static uint64_t mask_of(word *w, int n, int *raw, char **error) {
  uint64_t mask = 0;
  for (int i = 0; i < n; i++) {
    if (is(&w[i], "all")) {
      for (size_t k = 0; k < sizeof phases / sizeof *phases; k++) mask |= PXG_PHASE_BIT(phases[k].phase);
    } else if (is(&w[i], "none")) {
      mask = 0;
    } else if (is(&w[i], "raw")) {
      *raw = 1;
    } else if (!strncmp(cstr(&w[i]), "0x", 2)) {
      mask |= strtoull(cstr(&w[i]), NULL, 16);
    } else {
      uint32_t p = phase_of(cstr(&w[i]), w[i].len);
      if (!p) *error = cstr(&w[i]);
      mask |= p ? PXG_PHASE_BIT(p) : 0;
    }
  }
  return mask;
}

static uint32_t mode_of(const word *w) {
  static const char *names[] = {"unset", "skip", "stream", "whole", "observe"};
  for (uint32_t i = 0; i < 5; i++)
    if (is(w, names[i])) return i;
  return (uint32_t)strtoul(cstr(w), NULL, 0);
}

static void steps_of(line *l, const uint8_t *p, size_t n) {
  for (size_t i = 0; i <= n;) {
    size_t from = i;
    while (i < n && !(p[i] == ';' && (i == 0 || p[i - 1] != '\\'))) i++;
    step s = {0};
    s.n = words_of(p + from, i - from, s.words, MAX_WORDS);
    i++;
    if (!s.n) continue;
    word *verb = &s.words[0];
    if (verb->len > 2 && !memcmp(verb->ptr, "t.", 2)) s.trailers = 1, verb->ptr += 2, verb->len -= 2;
    if (verb->len && verb->ptr[verb->len - 1] == '!') s.must = 1, verb->ptr[--verb->len] = 0;
    l->steps = realloc(l->steps, sizeof *l->steps * (size_t)(l->n + 1));
    l->steps[l->n++] = s;
  }
}

/* `PHASE[#n]: steps` or `result NAME: steps`. */
static int script_line(script *s, const uint8_t *p, size_t n) {
  const uint8_t *colon = memchr(p, ':', n);
  if (!s || !colon) return 0;
  line l = {0};
  word head[2] = {{0}};
  int k = words_of(p, (size_t)(colon - p), head, 2);
  if (k == 2 && is(&head[0], "result")) {
    l.name = cstr(&head[1]);
    free(head[0].ptr);
  } else if (k == 1) {
    char *hash = strchr(cstr(&head[0]), '#');
    size_t len = hash ? (size_t)(hash - cstr(&head[0])) : head[0].len;
    l.phase = phase_of(cstr(&head[0]), len);
    l.nth = hash ? (uint32_t)strtoul(hash + 1, NULL, 10) : 0;
    free(head[0].ptr);
  }
  if (!l.phase && !l.name) return 0;
  steps_of(&l, colon + 1, n - (size_t)(colon + 1 - p));
  s->lines = realloc(s->lines, sizeof *s->lines * (size_t)(s->n + 1));
  s->lines[s->n++] = l;
  return 1;
}

static int general_line(config *c, word *w, int n, char **error) {
  if (is(&w[0], "record") && n == 2) {
    c->record = cstr(&w[1]);
  } else if (is(&w[0], "instance") && n == 2) {
    c->instance = cstr(&w[1]);
  } else if (is(&w[0], "subscribe")) {
    c->subscribe = mask_of(w + 1, n - 1, &c->subscribe_raw, error);
  } else if (is(&w[0], "pend")) {
    c->pend = mask_of(w + 1, n - 1, &c->subscribe_raw, error);
  } else if (is(&w[0], "mode") && n == 3) {
    c->mode[is(&w[1], "response")] = mode_of(&w[2]);
  } else if (is(&w[0], "max-body") && n == 3) {
    c->max_body[is(&w[1], "response")] = strtoull(cstr(&w[2]), NULL, 0);
  } else if (is(&w[0], "pend-ms") && n == 2) {
    c->pend_ns = strtoull(cstr(&w[1]), NULL, 0) * 1000000u;
  } else if (is(&w[0], "pend-ns") && n == 2) {
    c->pend_ns = strtoull(cstr(&w[1]), NULL, 0);
  } else if (is(&w[0], "value") && n == 2) {
    c->set_value = strtoull(cstr(&w[1]), NULL, 0), c->has_value = 1;
  } else if (is(&w[0], "answer") && n == 2) {
    c->answer = (int32_t)strtol(cstr(&w[1]), NULL, 0);
  } else if (is(&w[0], "null-attrs") && n == 2) {
    c->null_attrs = strtoull(cstr(&w[1]), NULL, 0);
  } else if (is(&w[0], "scratch") && n == 2) {
    c->scratch = strtoull(cstr(&w[1]), NULL, 0);
  } else if (is(&w[0], "attr-flags") && n == 2 && c->n_attrs) { /* Of the last one. */
    c->attrs[c->n_attrs - 1].flags |= (uint32_t)strtoul(cstr(&w[1]), NULL, 0);
  } else if (is(&w[0], "attr-reserved") && n == 2 && c->n_attrs) {
    c->attrs[c->n_attrs - 1].reserved0 = (uint32_t)strtoul(cstr(&w[1]), NULL, 0);
  } else if (is(&w[0], "out-size") && n == 2) {
    c->out_size = (uint32_t)strtoul(cstr(&w[1]), NULL, 0);
  } else if (is(&w[0], "refuse") && n == 3) {
    c->refuse = (int)strtol(cstr(&w[1]), NULL, 0), c->refuse_text = w[2];
  } else if (is(&w[0], "flags")) {
    static const char *names[] = {"duplex", "resizes-request", "resizes-response", "peer",
                                  "orphan", "subrequests",     "upgrade-body"};
    for (int i = 1; i < n; i++) {
      uint32_t bit = (uint32_t)strtoul(cstr(&w[i]), NULL, 0);
      for (uint32_t k = 0; k < 7; k++)
        if (is(&w[i], names[k])) bit = 1u << k;
      c->flags |= bit;
    }
  } else if (is(&w[0], "attr") && n >= 2 && c->n_attrs < 32) {
    pxg_attr_want *a = &c->attrs[c->n_attrs++];
    a->name.ptr = w[1].ptr, a->name.len = w[1].len;
    int required = n > 2 && is(&w[2], "required"), raw = 0;
    a->flags = required ? PXG_ATTR_REQUIRED : 0;
    a->phases = mask_of(w + 2 + required, n - 2 - required, &raw, error);
  } else if (is(&w[0], "project") && n >= 2 && c->n_projection < 32) {
    pxg_projection *p = &c->projection[c->n_projection++];
    int raw = 0;
    p->name.ptr = w[1].ptr, p->name.len = w[1].len;
    p->phases = mask_of(w + 2, n - 2, &raw, error);
  } else {
    return 0;
  }
  return 1;
}

config *config_parse(const uint8_t *p, size_t len, char **error) {
  config *c = calloc(1, sizeof *c);
  script *s = NULL;
  int number = 0;
  for (size_t i = 0; i <= len;) {
    size_t from = i;
    while (i < len && p[i] != '\n') i++;
    size_t end = i++;
    number++;
    while (from < end && p[from] == ' ') from++;
    while (end > from && (p[end - 1] == ' ' || p[end - 1] == '\r')) end--;
    if (from == end || p[from] == '#') continue;
    word w[MAX_WORDS] = {{0}};
    int n = words_of(p + from, end - from, w, MAX_WORDS);
    char *wrong = NULL;
    int ok;
    if (n == 2 && is(&w[0], "case")) {
      c->scripts = realloc(c->scripts, sizeof *c->scripts * (size_t)(c->n_scripts + 1));
      s = &c->scripts[c->n_scripts++];
      memset(s, 0, sizeof *s);
      s->id = cstr(&w[1]);
      free(w[0].ptr);
      ok = 1;
    } else {
      ok = s ? script_line(s, p + from, end - from) : general_line(c, w, n, &wrong);
      /* The line of a script decodes its words itself; those of a general one stay in `c`. */
      for (int k = 0; s && k < n; k++) free(w[k].ptr);
    }
    if (!ok || wrong) {
      size_t cap = end - from + 128;
      *error = malloc(cap);
      snprintf(*error, cap, "line %d: %.*s: not understood%s%s", number, (int)(end - from), (const char *)p + from,
               wrong ? " at " : "", wrong ? wrong : "");
      return NULL;
    }
  }
  return c;
}

script *config_script(config *c, const char *id, size_t len) {
  for (int i = 0; i < c->n_scripts; i++)
    if (strlen(c->scripts[i].id) == len && !memcmp(c->scripts[i].id, id, len)) return &c->scripts[i];
  return NULL;
}

line *script_result(script *s, const char *name) {
  for (int i = 0; s && i < s->n; i++)
    if (s->lines[i].name && !strcmp(s->lines[i].name, name)) return &s->lines[i];
  return NULL;
}
