/* SPDX-License-Identifier: Apache-2.0 */

/* Results that reach for what may be gone, or was never there; under valgrind or a sanitizer a read of that is an error.
 *
 * Strings of a result may refer to the views of the same event: they are read before the views die (11.1), whatever the
 * other operations of the batch do to what is seen there. */

#include "stream.h"

static pxg_attr metadata[] = {{"one.k", 5, PXG_ATTR_METADATA, ALL_HTTP}};

static pxg_op *op(pxg_result *o, uint16_t kind) {
  o->ops = o->scratch_ops;
  o->scratch_ops[o->n_ops] = (pxg_op){.kind = kind};
  return &o->scratch_ops[o->n_ops++];
}

static void set(pxg_result *o, const char *name, const pxg_str *value) {
  pxg_op *p = op(o, PXG_OP_HEADER_SET);
  p->key = str(name);
  p->val.bytes = *value;
}

static void remember(pxg_result *o, const char *key, const pxg_str *value) {
  pxg_op *p = op(o, PXG_OP_METADATA_SET);
  p->key = str(key);
  p->val.bytes = *value;
}

static void drop_then_name(const pxg_event *ev, pxg_result *o) {
  op(o, PXG_OP_DROP)->u0 = ev->chunks[0].len;
  op(o, PXG_OP_INJECT)->val.bytes = ev->chunks[0];
  set(o, "x-body", &ev->chunks[0]);
  remember(o, "body", &ev->chunks[0]);
  pxg_op *p = op(o, PXG_OP_ROUTE);
  p->key = str("cluster");
  p->val.bytes = ev->chunks[0];
}

/* The bytes are the engine's own by then, and their last holder is the view. */
static void chunks(void) {
  reset_world();
  configs[1].body_mode[REQ] = PXG_BODY_WHOLE;
  on[1][PXG_PHASE_REQUEST_BODY] = drop_then_name;
  begin(1);
  head(REQ, false);
  bytes(REQ, "blue");
  end(REQ, false);
  FIELDS(REQ, false, ":method=GET,:path=/,x-a=1,x-a=2,x-body=blue,content-length=4");
  BODY(REQ, "blue");
  bool recompute;
  CHECK(pxg_stream_cluster(s, &recompute) && !strcmp(pxg_stream_cluster(s, &recompute), "blue"), "not the cluster");
  done(PXG_END_COMPLETE);
}

static void first(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  pxg_str v = str("a value that has to be read before it goes away");
  remember(o, "k", &v);
}

static void replace_then_read(const pxg_event *ev, pxg_result *o) {
  pxg_str other = str("another");
  remember(o, "k", &other);
  set(o, "x-k", &ev->attrs[0]);
  remember(o, "old", &ev->attrs[0]);
}

static void replace_then_reply(const pxg_event *ev, pxg_result *o) {
  static pxg_field f;
  static pxg_reply r;
  pxg_str other = str("a third");
  remember(o, "k", &other);
  f = (pxg_field){str("x-k"), ev->attrs[0]};
  r = (pxg_reply){.size = sizeof r, .status = 200, .fields = &f, .n_fields = 1};
  o->action = PXG_ACT_REPLY;
  o->reply = &r;
}

static bool list_one(void *data, const char *key, size_t len, const pxg_str *value) {
  char *text = data;
  sprintf(text + strlen(text), "%.*s=%.*s;", (int)len, key, (int)value->len, (const char *)value->ptr);
  return true;
}

static void attributes_of_metadata(void) {
  char text[512] = "";
  reset_world();
  configs[1].attrs = configs[2].attrs = metadata;
  configs[1].n_attrs = configs[2].n_attrs = 1;
  configs[1].attr_phases = configs[2].attr_phases = ALL_HTTP;
  on[1][PXG_PHASE_REQUEST_HEADERS] = first;
  on[1][PXG_PHASE_RESPONSE_HEADERS] = replace_then_reply;
  on[2][PXG_PHASE_REQUEST_HEADERS] = replace_then_read;
  configs[2].instance = "one";
  begin(2);
  head(REQ, true);
  FIELDS(REQ, false, ":method=GET,:path=/,x-a=1,x-a=2,x-k=a value that has to be read before it goes away");
  pxg_stream_metadata(s, list_one, text);
  HAS(text, "one.k=another;");
  HAS(text, "one.old=a value that has to be read before it goes away;");
  head(RSP, true);
  FIELDS(RSP, false, ":status=200,x-k=another,content-length=0");
  done(PXG_END_COMPLETE);
}

/* ---- A write that `apply` leaves out takes no room ---- */

static void pend(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
}

static void left_out(void) {
  static uint8_t much[PXG_WATERMARK + 1];
  static pxg_reply open = {.size = sizeof open, .status = 200, .flags = PXG_REPLY_OPEN};
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, true);
  pxg_op write = {.kind = PXG_OP_BODY_WRITE, .val.bytes = {much, sizeof much, PXG_BUF_STATIC}};
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_REPLY, .reply = &open, .ops = &write, .n_ops = 1};
  CHECK(pxg_apply(77, handles[1], &r) == PXG_OK, "not accepted, or FULL");
  mail();
  write.val.bytes = str("hi");
  r = (pxg_result){.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &write, .n_ops = 1};
  CHECK(pxg_apply(77, handles[1], &r) == PXG_OK, "not accepted, or FULL");
  mail();
  BODY(RSP, "hi");
  done(PXG_END_ERROR);
}

/* ---- Over the limit of WHOLE a stream begins, and what has left as content-length counts ---- */

static void more_than_said(const pxg_event *ev, pxg_result *o) {
  if (!(ev->flags & PXG_EV_OVER_LIMIT)) op(o, PXG_OP_INJECT)->val.bytes = str("smuggled");
}

static void less_than_said(const pxg_event *ev, pxg_result *o) {
  if (!(ev->flags & PXG_EV_OVER_LIMIT)) op(o, PXG_OP_DROP)->u0 = 1;
}

static void over_limit(script guest, bool resizes, const char *left, const char *passed) {
  reset_world();
  field(RSP, false, "content-length", "20");
  configs[1].body_mode[RSP] = PXG_BODY_WHOLE;
  if (resizes) configs[1].flags = PXG_CFG_RESIZES_RESPONSE;
  on[1][PXG_PHASE_RESPONSE_BODY] = guest;
  begin(1);
  head(REQ, true);
  n_out = 0;
  head(RSP, false);
  bytes(RSP, "0123456789abcdefg");
  bytes(RSP, "hij");
  end(RSP, false);
  LEFT(left);
  BODY(RSP, passed);
  FIELDS(RSP, false, resizes ? ":status=200" : ":status=200,content-length=20");
  done(PXG_END_COMPLETE);
}

/* ---- A guest that stops looking at a body ---- */

static void leave(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->unsubscribe = 1u << PXG_PHASE_RESPONSE_BODY;
}

static void skip_the_rest(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->body_mode[RSP] = PXG_BODY_SKIP;
}

static void add_and_skip(const pxg_event *ev, pxg_result *o) {
  op(o, PXG_OP_INJECT)->val.bytes = str("smuggled");
  skip_the_rest(ev, o);
}

static void drop_and_skip(const pxg_event *ev, pxg_result *o) {
  op(o, PXG_OP_DROP)->u0 = 1;
  skip_the_rest(ev, o);
}

static void add_and_leave(const pxg_event *ev, pxg_result *o) {
  op(o, PXG_OP_INJECT)->val.bytes = str("smuggled");
  leave(ev, o);
}

static void more_at_head(const pxg_event *ev, pxg_result *o) {
  if (!(ev->flags & PXG_EV_END_STREAM)) o->action = PXG_ACT_MORE;
}

/* `held`: the head waits for the first bytes. */
static void leaves(uint32_t mode, script guest, bool held, const char *left, const char *passed) {
  reset_world();
  field(RSP, false, "content-length", "10");
  configs[1].body_mode[RSP] = mode;
  if (held) on[1][PXG_PHASE_RESPONSE_HEADERS] = more_at_head;
  on[1][PXG_PHASE_RESPONSE_BODY] = guest;
  begin(1);
  head(REQ, true);
  n_out = 0;
  head(RSP, false);
  bytes(RSP, "01");
  pxg_worker_clock(loop, 2000);
  pxg_stream_timer(s);
  drain();
  if (strstr(left, "RESET") && !strstr(out, "RESET"))
    CHECK(pxg_stream_sees_body(s, RSP), "the rest would go past the engine");
  bytes(RSP, "23456789");
  end(RSP, false);
  LEFT(left);
  BODY(RSP, passed);
  done(PXG_END_COMPLETE);
}

int main(void) {
  start();
  chunks();
  attributes_of_metadata();
  left_out();
  over_limit(NULL, false, "shead send ", "0123456789abcdefghij");
  over_limit(more_than_said, false, "shead RESET ", "0123456789abcdefg");
  over_limit(less_than_said, false, "shead RESET ", "0123456789abcdefgij");
  over_limit(more_than_said, true, "shead send ", "0123456789abcdefgsmuggledhijsmuggled");
  /* What OBSERVE was shown has passed, and does not pass again. */
  leaves(PXG_BODY_OBSERVE, leave, false, "shead send ", "0123456789");
  leaves(PXG_BODY_OBSERVE, skip_the_rest, false, "shead send ", "0123456789");
  leaves(PXG_BODY_OBSERVE, add_and_skip, false, "shead RESET ", "");
  leaves(PXG_BODY_OBSERVE, add_and_leave, false, "shead RESET ", "");
  leaves(PXG_BODY_OBSERVE, drop_and_skip, false, "shead RESET ", "");
  /* content-length holds for what passes unseen behind a changed part. */
  leaves(PXG_BODY_STREAM, leave, false, "shead send ", "0123456789");
  leaves(PXG_BODY_STREAM, add_and_skip, false, "shead RESET ", "smuggled01");
  leaves(PXG_BODY_STREAM, add_and_leave, false, "shead RESET ", "smuggled01");
  leaves(PXG_BODY_STREAM, drop_and_skip, false, "shead RESET ", "123456789");
  leaves(PXG_BODY_STREAM, skip_the_rest, true, "shead send ", "0123456789");
  leaves(PXG_BODY_STREAM, add_and_skip, true, "shead RESET ", "smuggled01");
  leaves(PXG_BODY_STREAM, drop_and_skip, true, "shead RESET ", "123456789");
  pxg_worker_free(loop);
  return finish("hostile");
}
