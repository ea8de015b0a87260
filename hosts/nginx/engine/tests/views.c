/* SPDX-License-Identifier: Apache-2.0 */

/* What an event shows besides bodies: fields of both messages, attributes (chapter 16), metadata. */

#include "stream.h"

static char shown[4096];
static size_t n_shown;

static void say(const char *format, ...) {
  va_list args;
  va_start(args, format);
  n_shown += (size_t)vsnprintf(shown + n_shown, sizeof shown - n_shown, format, args);
  va_end(args);
}

#define SHOWN(text)                                                            \
  do {                                                                         \
    CHECK(!strcmp(shown, text), "found \"%s\", expected \"%s\"", shown, text); \
    shown[n_shown = 0] = 0;                                                    \
  } while (0)

static void say_list(char name, const pxg_field *at, uint64_t n) {
  CHECK(!at == !n, "%c: a list of %d fields at %p", name, (int)n, (const void *)at);
  if (n) say("%c", name);
  for (uint64_t i = 0; i < n; i++)
    if (at[i].name.ptr[0] != ':') say("%.*s", (int)at[i].value.len, at[i].value.ptr);
}

/* "<place><phase>f...t...F...T... ": values of the fields, of the trailers, and in capitals the peer's. */
static void show_fields(const pxg_event *ev, pxg_result *o) {
  (void)o;
  say("%d.%d", (int)ev->config, (int)ev->phase);
  say_list('f', ev->fields, ev->n_fields);
  say_list('t', ev->trailers, ev->n_trailers);
  say_list('F', ev->peer_fields, ev->n_peer_fields);
  say_list('T', ev->peer_trailers, ev->n_peer_trailers);
  say(" ");
}

static void world(script f) {
  reset_world();
  lists[REQ][0].n = lists[RSP][0].n = 0;
  field(REQ, false, ":path", "/");
  field(REQ, false, "x-q", "q");
  field(RSP, false, ":status", "200");
  field(RSP, false, "x-r", "r");
  for (int i = 1; i <= 2; i++)
    for (int p = PXG_PHASE_REQUEST_HEADERS; p <= PXG_PHASE_WAKE; p++) on[i][p] = f;
  shown[n_shown = 0] = 0;
}

static void set_and_show(const pxg_event *ev, pxg_result *o) {
  show_fields(ev, o);
  o->scratch_ops[0] = (pxg_op){PXG_OP_HEADER_ADD, 0, 0, 0, str("x-1"), {str("+"), NULL, 0}};
  o->ops = o->scratch_ops;
  o->n_ops = 1;
}

static void more(const pxg_event *ev, pxg_result *o) {
  show_fields(ev, o);
  o->action = PXG_ACT_MORE;
}

static void peers(void) {
  /* Two places: the second one wants the peer's fields, the first one changes the request before. */
  world(show_fields);
  field(REQ, true, "t", "y");
  field(RSP, true, "t", "z");
  configs[2].flags = PXG_CFG_WANT_PEER_FIELDS;
  configs[1].body_mode[RSP] = configs[2].body_mode[RSP] = PXG_BODY_STREAM;
  on[1][PXG_PHASE_REQUEST_HEADERS] = set_and_show;
  begin(2);
  head(REQ, false);
  end(REQ, true);
  head(RSP, false);
  bytes(RSP, "abc");
  CHECK(pxg_wake(77, handles[2], 1) == PXG_OK, "wake");
  mail();
  end(RSP, true);
  SHOWN("1.1fq 2.1fq+ 1.3ty 2.3ty 2.4frFq+Ty 1.4fr 2.5 1.5 2.8 2.5 2.6tz 1.5 1.6tz ");
  done(PXG_END_COMPLETE);
  SHOWN("1.7frtzFq+Ty 2.7frtzFq+Ty ");

  /* With the headers held a body event shows them, and with WHOLE the trailers as well. */
  world(show_fields);
  field(RSP, true, "t", "z");
  configs[1].flags = configs[2].flags = PXG_CFG_WANT_PEER_FIELDS;
  configs[1].body_mode[RSP] = PXG_BODY_WHOLE;
  configs[2].body_mode[RSP] = PXG_BODY_STREAM;
  on[2][PXG_PHASE_RESPONSE_HEADERS] = more;
  begin(2);
  head(REQ, true);
  head(RSP, false);
  bytes(RSP, "abc");
  end(RSP, true);
  SHOWN("1.1fq 2.1fq 2.4frFq 2.5frFq 1.4frFq 2.6tz 1.5frtzFq ");
  done(PXG_END_CLIENT_ABORT);
  SHOWN("1.7frtzFq 2.7frtzFq ");

  /* What has not come is not shown: no response, no request trailers. */
  world(show_fields);
  configs[1].flags = PXG_CFG_WANT_PEER_FIELDS;
  begin(1);
  head(REQ, false);
  done(PXG_END_CLIENT_ABORT);
  SHOWN("1.1fq 1.7Fq ");
}

/* ---- attributes -------------------------------------------------------------------------------------------------- */

static void show_attributes(const pxg_event *ev, pxg_result *o) {
  (void)o;
  say("%d.%d", (int)ev->config, (int)ev->phase);
  for (uint64_t i = 0; i < ev->n_attrs; i++) {
    const pxg_str *a = &ev->attrs[i];
    CHECK(!(a->flags & PXG_STR_ABSENT) || (!a->ptr && !a->len), "ABSENT with a value");
    if (a->flags & PXG_STR_ABSENT)
      say("[-]");
    else
      say("[%.*s]", (int)a->len, a->ptr);
  }
  say(" ");
}

#define PHASE(p) PXG_PHASE_BIT(PXG_PHASE_##p)

static void want(pxg_config *c, pxg_attr *attrs, size_t n) {
  c->attrs = attrs;
  c->n_attrs = n;
  for (size_t i = 0; i < n; i++) c->attr_phases |= attrs[i].phases;
}

static void kinds(void) {
  const uint64_t all = PHASE(REQUEST_HEADERS) | PHASE(RESPONSE_HEADERS) | PHASE(LOG) | PHASE(WAKE);
  pxg_attr one[] = {{"request.id", 10, 0, all},
                    {"response.code", 13, 1, all & ~PHASE(WAKE)},
                    {"no.such", 7, PXG_ATTR_NONE, all},
                    {"two.key", 7, PXG_ATTR_METADATA, all},
                    {"x.empty", 7, 2, PHASE(REQUEST_HEADERS)}};
  pxg_attr two[] = {{"request.id", 10, 0, PHASE(RESPONSE_HEADERS)}};
  world(show_attributes);
  want(&configs[1], one, 5);
  want(&configs[2], two, 1);
  attributes[0] = "id";
  attributes[2] = "";
  begin(2);
  head(REQ, true);
  /* A phase that no attribute asks for has none; one that some ask for has all of them, the others ABSENT. */
  SHOWN("1.1[id][-][-][-][] 2.1 ");
  CHECK(pxg_wake(77, handles[1], 1) == PXG_OK, "wake");
  mail();
  SHOWN("1.8[id][-][-][-][-] ");
  attributes[0] = "another id";
  attributes[1] = "200";
  head(RSP, true);
  SHOWN("2.4[another id] 1.4[another id][200][-][-][-] ");
  done(PXG_END_COMPLETE);
  SHOWN("1.7[another id][200][-][-][-] 2.7 ");
}

/* ---- metadata ---------------------------------------------------------------------------------------------------- */

static pxg_op metadata(const char *key, uint64_t space, const char *value) {
  return (pxg_op){PXG_OP_METADATA_SET, 0, 0, space, str(key), {str(value), NULL, 0}};
}

static uint32_t then;
static pxg_reply reply;

static void set_metadata(const pxg_event *ev, pxg_result *o) {
  show_attributes(ev, o);
  o->scratch_ops[0] = metadata("key", 0, "old");
  o->scratch_ops[1] = metadata("key", 0, ev->config == 1 ? "first" : "second");
  o->scratch_ops[2] = metadata("sharedkey", 6, ev->config == 1 ? "1" : "");
  o->ops = o->scratch_ops;
  o->n_ops = 3;
  o->action = then;
  reply = (pxg_reply){.size = sizeof reply, .status = 200};
  if (then == PXG_ACT_REPLY) o->reply = &reply;
  if (then == PXG_ACT_CONTINUE && ev->config == 4) o->flags = 0x80;
}

static bool each_metadata(void *data, const char *key, size_t len, const pxg_str *value) {
  (void)data;
  say("%.*s=%.*s ", (int)len, key, (int)value->len, value->ptr);
  return true;
}

static void sets_metadata(void) {
  static const char *const shared[] = {"shared"};
  pxg_attr attrs[] = {{"one.key", 7, PXG_ATTR_METADATA, ALL_HTTP},
                      {"two.key", 7, PXG_ATTR_METADATA, ALL_HTTP},
                      {"shared.key", 10, PXG_ATTR_METADATA, ALL_HTTP}};
  for (then = PXG_ACT_CONTINUE; then <= PXG_ACT_ERROR; then++) {
    if (then == PXG_ACT_PENDING || then == PXG_ACT_MORE) continue;
    world(show_attributes);
    for (int i = 1; i <= 2; i++) {
      want(&configs[i], attrs, 3);
      configs[i].policy.namespaces = shared, configs[i].policy.n_namespaces = 1;
      on[i][PXG_PHASE_REQUEST_HEADERS] = set_metadata;
    }
    begin(2);
    head(REQ, true);
    if (then == PXG_ACT_CONTINUE) {
      SHOWN("1.1[-][-][-] 2.1[first][-][1] ");
      head(RSP, true);
      SHOWN("2.4[first][second][] 1.4[first][second][] ");
      pxg_op op = metadata("key", 0, "by apply");
      pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &op, .n_ops = 1};
      CHECK(pxg_apply(77, handles[1], &r) == PXG_OK, "apply");
      mail();
      pxg_stream_metadata(s, each_metadata, NULL);
      HAS(shown, "one.key=by apply ");
      HAS(shown, "two.key=second ");
      HAS(shown, "shared.key= ");
      shown[n_shown = 0] = 0;
      done(PXG_END_COMPLETE);
      SHOWN("1.7[by apply][second][] 2.7[by apply][second][] ");
    } else {
      /* A reply, a reset and an explicit error take them along. */
      done(PXG_END_COMPLETE);
      SHOWN(then == PXG_ACT_ERROR ? "1.1[-][-][-] 2.7[first][-][1] "
                                  : "1.1[-][-][-] 1.7[first][-][1] 2.7[first][-][1] ");
    }
  }
  /* A result that was refused does not. */
  world(show_attributes);
  then = PXG_ACT_CONTINUE;
  want(&configs[4], attrs, 3);
  configs[4].policy.namespaces = shared, configs[4].policy.n_namespaces = 1;
  on[4][PXG_PHASE_REQUEST_HEADERS] = set_metadata;
  begin(4);
  head(REQ, true);
  CHECK(counters.failures[PXG_R_INVALID] == 1, "not refused");
  shown[n_shown = 0] = 0;
  pxg_stream_metadata(s, each_metadata, NULL);
  SHOWN("");
  done(PXG_END_COMPLETE);
}

int main(void) {
  start();
  peers();
  kinds();
  sets_metadata();
  pxg_worker_free(loop);
  return finish("views");
}
