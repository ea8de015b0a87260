/* Reading a script. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "script.h"

uint64_t number(pxg_str s) {
  uint64_t n = 0;
  pxgg_number(s, UINT64_MAX, &n);
  return n;
}

uint32_t direction(pxg_str word) { return PXGG_EQ(word, "response") ? PXG_DIR_RESPONSE : PXG_DIR_REQUEST; }

uint32_t body_mode(pxg_str word) {
  if (PXGG_EQ(word, "stream")) return PXG_BODY_STREAM;
  if (PXGG_EQ(word, "whole")) return PXG_BODY_WHOLE;
  if (PXGG_EQ(word, "observe")) return PXG_BODY_OBSERVE;
  return PXG_BODY_SKIP;
}

static pxg_str keep(pxg_str s) {
  uint8_t *copy = malloc(s.len ? s.len : 1);
  if (s.len) memcpy(copy, s.ptr, s.len);
  return pxgg_str(copy, s.len);
}

int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  (void)ctx;
  config *c = calloc(1, sizeof *c);
  pxg_str rest = keep(in->bytes), text;
  uint32_t n = 0;
  script *s = NULL;
  c->name = keep(in->name);
  c->record = -1;
  out->config = (uint64_t)(uintptr_t)c;
  out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
  while (pxgg_next_line(&rest, &text, &n)) {
    pxg_str whole = text, word = pxgg_next_word(&text);
    uint32_t phase = 0;
    for (uint32_t i = 1; i < PHASES; i++)
      if (pxgg_eq(word, pxgg_str(phase_names[i], strlen(phase_names[i])))) phase = i;
    if (phase && s) {
      step *st = &s->steps[s->n_steps];
      if (s->n_steps++ == MAX_STEPS) return pxgg_config_error(out, PXG_E_LIMIT, "line %u: too many steps", n);
      st->phase = phase;
      if (text.len && text.ptr[0] == '@') {
        pxg_str at = pxgg_next_word(&text);
        at = pxgg_str(at.ptr + 1, at.len - 1);
        st->nth = PXGG_EQ(at, "end") ? UINT32_MAX : (uint32_t)number(at);
      }
      st->text = text;
      out->subscribe |= PXG_PHASE_BIT(phase);
      pxg_str copy = text;
      pxg_str what = pxgg_next_word(&copy);
      if (PXGG_EQ(what, "pend")) out->pend_phases |= PXG_PHASE_BIT(phase);
      if (PXGG_EQ(what, "stream")) out->subscribe |= PXG_PHASE_BIT(PXG_PHASE_WAKE);
    } else if (PXGG_EQ(word, "case")) {
      s = calloc(1, sizeof *s);
      s->steps = calloc(MAX_STEPS, sizeof *s->steps);
      s->name = text;
      s->config = c;
      s->next = c->scripts;
      c->scripts = s;
    } else if (PXGG_EQ(word, "phases")) {
      while (text.len) {
        pxg_str p = pxgg_next_word(&text);
        for (uint32_t i = 1; i < PHASES; i++)
          if (pxgg_eq(p, pxgg_str(phase_names[i], strlen(phase_names[i])))) out->subscribe |= PXG_PHASE_BIT(i);
      }
    } else if (PXGG_EQ(word, "record")) {
      char path[4096];
      snprintf(path, sizeof path, "%.*s", (int)text.len, (const char *)text.ptr);
      c->record = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
      if (c->record < 0) return pxgg_config_error(out, PXG_E_ARG, "line %u: %s: %s", n, path, strerror(errno));
    } else if (PXGG_EQ(word, "refuse")) {
      return pxgg_config_error(out, PXG_E_ARG, "%.*s", (int)text.len, (const char *)text.ptr);
    } else if (PXGG_EQ(word, "watch")) {
      if (in->flags & PXG_CFG_IN_VALIDATE_ONLY) continue;
      pxg_str key = pxgg_next_word(&text);
      watch(key, text);
    } else if (PXGG_EQ(word, "features")) {
      script own = {.name = PXGG_LIT("-"), .config = c};
      record_line("features", &own, ",\"host\":%llu,\"config\":%llu", (unsigned long long)host->features[0],
                  (unsigned long long)in->features[0]);
    } else if (PXGG_EQ(word, "sees")) {
      if (!in->parent) return pxgg_config_error(out, PXG_E_ARG, "line %u: there is no parent", n);
    } else if (PXGG_EQ(word, "attr") && c->n_attrs < MAX_ATTRS) {
      c->attrs[c->n_attrs++] = text;
    } else if (PXGG_EQ(word, "counter")) {
      if (metrics == NULL || metrics->define(host->ctx, PXG_METRIC_COUNTER, &text, NULL, 0, &c->counter) != PXG_OK)
        return pxgg_config_error(out, PXG_E_NOTFOUND, "line %u: the host has no metrics", n);
    } else if (PXGG_EQ(word, "flags")) {
      while (text.len) {
        pxg_str f = pxgg_next_word(&text);
        out->flags |= PXGG_EQ(f, "duplex")             ? PXG_CFG_DUPLEX
                      : PXGG_EQ(f, "resizes_request")  ? PXG_CFG_RESIZES_REQUEST
                      : PXGG_EQ(f, "resizes_response") ? PXG_CFG_RESIZES_RESPONSE
                                                       : PXG_CFG_WANT_PEER_FIELDS;
      }
    } else if (PXGG_EQ(word, "max_body")) {
      uint32_t d = direction(pxgg_next_word(&text));
      out->max_body[d] = number(text);
    } else if (PXGG_EQ(word, "mode")) {
      uint32_t d = direction(pxgg_next_word(&text));
      out->body_mode[d] = body_mode(text);
    } else {
      return pxgg_config_error(out, PXG_E_ARG, "line %u: found \"%.*s\", which is no line of a script", n,
                               (int)whole.len, (const char *)whole.ptr);
    }
  }
  pxg_attr_want *want = (pxg_attr_want *)(void *)out->scratch;
  for (uint32_t i = 0; i < c->n_attrs; i++) {
    memset(&want[i], 0, sizeof want[i]);
    want[i].name = c->attrs[i];
    want[i].phases = 0x1fe;
  }
  out->attrs = c->n_attrs ? want : NULL;
  out->n_attrs = c->n_attrs;
  return PXG_OK;
}
