/* SPDX-License-Identifier: Apache-2.0 */

/* Limits of bytes, counts and time: what is exactly at one passes, one more does not. */

#include "stream.h"

static void pend(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
}

static uint64_t more_bytes, passes;

/* MORE until the end, without the first `passes` bytes where the headers have left. */
static void more(const pxg_event *ev, pxg_result *o) {
  bool is_body = ev->phase == PXG_PHASE_REQUEST_BODY || ev->phase == PXG_PHASE_RESPONSE_BODY;
  if (ev->flags & (PXG_EV_BODY_END | PXG_EV_END_STREAM)) return;
  o->action = PXG_ACT_MORE;
  o->more_bytes = more_bytes;
  if (!passes || !is_body || (ev->flags & PXG_EV_HEADERS_HELD)) return;
  o->scratch_ops[0] = (pxg_op){.kind = PXG_OP_PASS, .u0 = passes};
  o->ops = o->scratch_ops;
  o->n_ops = 1;
}

static void many(int d, size_t n) {
  static char text[1 << 15];
  memset(text, 'x', n);
  text[n] = 0;
  bytes(d, text);
}

static int count_in(const char *text, const char *part) {
  int n = 0;
  for (; (text = strstr(text, part)); text++) n++;
  return n;
}

static void at(uint64_t now) {
  pxg_worker_clock(loop, now);
  pxg_stream_timer(s);
  drain();
}

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

/* max_body is 16. */
static void held_bytes(void) {
  for (int over = 0; over < 2; over++) {
    /* WHOLE. */
    reset_world();
    configs[1].body_mode[REQ] = PXG_BODY_WHOLE;
    begin(1);
    head(REQ, false);
    many(REQ, 16);
    CHECK(pxg_stream_wants(s, REQ), "no room at the limit");
    SAW("1rh ");
    if (over) many(REQ, 1);
    end(REQ, false);
    HAS(trace, over ? "1rbhO@0=" : "1rbEBWh@0=");
    LEFT("rhead rend ");
    done(PXG_END_COMPLETE);
    /* There is no more to be asked for over it. */
    reset_world();
    quiet();
    configs[1].body_mode[REQ] = PXG_BODY_WHOLE;
    more_bytes = 4, passes = 0;
    on[1][PXG_PHASE_REQUEST_BODY] = more;
    begin(1);
    head(REQ, false);
    many(REQ, 16u + (unsigned)over);
    CHECK(!strstr(said, "MORE: found at OVER_LIMIT in WHOLE [PXG-BODY-014]") == !over, "%s", said);
    done(PXG_END_CLIENT_ABORT);
    /* A view over the limit stops the direction. */
    reset_world();
    configs[1].body_mode[REQ] = PXG_BODY_STREAM;
    on[1][PXG_PHASE_REQUEST_BODY] = pend;
    begin(1);
    head(REQ, false);
    many(REQ, 16u + (unsigned)over);
    CHECK(!strstr(trace, "1rbO") == !over, "%s", trace);
    CHECK(pxg_stream_wants(s, REQ) == !over, "wants with %d bytes", 16 + over);
    done(PXG_END_CLIENT_ABORT);
    /* MORE may keep as much, with the headers held and later. */
    for (int held = 0; held < 2; held++) {
      reset_world();
      configs[1].body_mode[REQ] = PXG_BODY_STREAM;
      more_bytes = 4, passes = 0;
      on[1][PXG_PHASE_REQUEST_BODY] = more;
      on[1][PXG_PHASE_REQUEST_HEADERS] = held ? more : NULL;
      begin(1);
      head(REQ, false);
      many(REQ, 16u + (unsigned)over);
      CHECK(counters.failures[PXG_R_INVALID] == (uint64_t)over, "%d bytes kept: %s", 16 + over, said);
      done(PXG_END_CLIENT_ABORT);
    }
    /* What is passed is not kept. */
    reset_world();
    configs[1].body_mode[REQ] = PXG_BODY_STREAM;
    more_bytes = 4, passes = over ? 1 : 2;
    on[1][PXG_PHASE_REQUEST_BODY] = more;
    begin(1);
    head(REQ, false);
    many(REQ, 18);
    HAS(trace, "1rbO@0=");
    CHECK(counters.failures[PXG_R_INVALID] == (uint64_t)over, "MORE at OVER_LIMIT");
    CHECK(n_body[REQ] == (over ? 0 : 2), "%d bytes passed", (int)n_body[REQ]);
    done(PXG_END_CLIENT_ABORT);
  }
  quiet();
}

/* 7.4: a view is shown again when it has grown by so much, or by max(1024, an eighth). */
static void growth(void) {
  static const struct {
    uint64_t more_bytes;
    size_t first, due;
  } all[] = {{5, 3, 5}, {1, 1, 1}, {0, 16, 1024}, {0, 8191, 1024}, {0, 16000, 2000}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    reset_world();
    configs[1].body_mode[REQ] = PXG_BODY_STREAM;
    configs[1].max_body[REQ] = 1 << 20;
    more_bytes = all[i].more_bytes, passes = 0;
    on[1][PXG_PHASE_REQUEST_BODY] = more;
    begin(1);
    head(REQ, false);
    many(REQ, all[i].first);
    CHECK(count_in(trace, "1rb") == 1, "%d: %s", (int)i, trace);
    if (all[i].due > 1) many(REQ, all[i].due - 1);
    n_trace = 0, trace[0] = 0;
    CHECK(pxg_stream_holds(s, REQ), "nothing is held");
    many(REQ, 1);
    CHECK(count_in(trace, "1rb") == 1, "%d: not due after %d bytes: %s", (int)i, (int)all[i].due, trace);
    done(PXG_END_CLIENT_ABORT);
  }
}

/* 64 pieces are shown as they are, more are coalesced. */
static uint64_t n_chunks, n_shown;

static void look(const pxg_event *ev, pxg_result *o) {
  (void)o;
  n_chunks = ev->n_chunks, n_shown = 0;
  for (uint64_t i = 0; i < ev->n_chunks; i++) {
    CHECK(ev->chunks[i].len, "an empty chunk");
    n_shown += ev->chunks[i].len;
  }
}

static void chunks(void) {
  for (size_t n = 63; n <= 66; n++) {
    static const uint8_t byte[] = "y";
    pxg_slice pieces[70];
    reset_world();
    configs[1].body_mode[REQ] = PXG_BODY_STREAM;
    configs[1].max_body[REQ] = 100;
    on[1][PXG_PHASE_REQUEST_BODY] = look;
    begin(1);
    head(REQ, false);
    for (size_t i = 0; i < n; i++) pieces[i] = (pxg_slice){byte, 1, NULL, NULL, false};
    pieces[n] = (pxg_slice){byte, 0, NULL, NULL, false};
    pxg_stream_bytes(s, REQ, pieces, n + 1);
    drain();
    CHECK(n_shown == n && (n <= 64 ? n_chunks == n : n_chunks <= 64), "%d pieces: %d chunks of %d bytes", (int)n,
          (int)n_chunks, (int)n_shown);
    done(PXG_END_CLIENT_ABORT);
  }
}

/* A content-length without RESIZES: exactly as many bytes leave. */
static int resize_by;

static void resize(const pxg_event *ev, pxg_result *o) {
  if (!ev->n_chunks) return;
  if (resize_by > 0) o->scratch_ops[0] = (pxg_op){PXG_OP_INJECT, 0, 0, 0, {0}, {str("+"), NULL, 0}};
  if (resize_by < 0) o->scratch_ops[0] = (pxg_op){.kind = PXG_OP_DROP, .u0 = 1};
  if (resize_by < -1) o->scratch_ops[1] = (pxg_op){PXG_OP_INJECT, 0, 0, 0, {0}, {str("+"), NULL, 0}};
  o->ops = o->scratch_ops;
  o->n_ops = resize_by < -1 ? 2 : resize_by ? 1 : 0;
}

static void lengths(void) {
  static const char *const values[] = {"4", "0004", "+4", "4 ", "1234567890123456789"};
  for (int v = 0; v < 5; v++)
    for (int resizes = 0; resizes < 2; resizes++)
      for (resize_by = -2; resize_by <= 1; resize_by++) {
        bool same = resize_by == 0 || resize_by == -2, free = v > 1 || resizes;
        reset_world();
        quiet();
        configs[1].body_mode[REQ] = PXG_BODY_STREAM;
        configs[1].flags = resizes ? PXG_CFG_RESIZES_REQUEST : 0;
        on[1][PXG_PHASE_REQUEST_BODY] = resize;
        field(REQ, false, "content-length", values[v]);
        begin(1);
        head(REQ, false);
        bytes(REQ, "abcd");
        end(REQ, false);
        CHECK(counters.failures[PXG_R_INVALID] == !(same || free), "%s, %d, %d: %s", values[v], resizes, resize_by,
              said);
        if (same || free) LEFT("rhead rend ");
        if (!same && !free) HAS(said, "[PXG-HDR-007]");
        CHECK(!strstr(fields_of(REQ, false), "content-length") == (resizes && v < 2), "%s", fields_of(REQ, false));
        done(PXG_END_COMPLETE);
      }
}

/* ---- counts ------------------------------------------------------------------------------------------------------ */

static size_t n_ops;

static void add_fields(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  for (size_t i = 0; i < n_ops; i++)
    o->scratch_ops[i] = (pxg_op){PXG_OP_HEADER_ADD, 0, 0, 0, str("x-name"), {str("four"), NULL, 0}};
  o->ops = o->scratch_ops;
  o->n_ops = n_ops;
}

static void answer(const pxg_event *ev, pxg_result *o) {
  static pxg_reply r;
  static pxg_field f[8];
  (void)ev;
  for (size_t i = 0; i < n_ops; i++) f[i] = (pxg_field){str("x-name"), str("four")};
  r = (pxg_reply){.size = sizeof r, .status = 200, .fields = f, .n_fields = n_ops, .trailers = f, .n_trailers = n_ops};
  o->action = PXG_ACT_REPLY;
  o->reply = &r;
}

static void results(void) {
  /* The request has 4 fields of 24 bytes; each that is added is one of 10. */
  static const struct {
    uint64_t max_ops, max_fields, max_bytes;
    script f;
    size_t most;
  } all[] = {{3, 100, 1000, add_fields, 3}, {100, 7, 1000, add_fields, 3}, {100, 100, 53, add_fields, 2},
             {100, 100, 54, add_fields, 3}, {100, 3, 1000, answer, 3},     {100, 100, 40, answer, 2},
             {100, 100, 39, answer, 1}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    for (int over = 0; over < 2; over++) {
      reset_world();
      quiet();
      configs[1].policy.max_ops = all[i].max_ops;
      configs[1].policy.max_fields = all[i].max_fields;
      configs[1].policy.max_bytes = all[i].max_bytes;
      on[1][PXG_PHASE_REQUEST_HEADERS] = all[i].f;
      n_ops = all[i].most + (size_t)over;
      begin(1);
      head(REQ, true);
      CHECK(counters.failures[PXG_R_LIMIT] == (uint64_t)over, "%d, %d: %s", (int)i, over, said);
      CHECK(!strstr(said, "[PXG-HDR-009]") == !over, "%d, %d: %s", (int)i, over, said);
      if (over) CHECK(!strcmp(pxg_stream_details(s), "one.limit"), "%s", pxg_stream_details(s));
      done(PXG_END_COMPLETE);
    }
  /* By `complete` it is an answer, and the token lives. */
  pxg_op ops[3] = {{.kind = PXG_OP_METRIC}, {.kind = PXG_OP_METRIC}, {.kind = PXG_OP_METRIC}};
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = ops, .n_ops = 3};
  reset_world();
  configs[1].policy.max_ops = 2;
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, true);
  CHECK(pxg_complete(77, tokens[1], &r) == PXG_E_LIMIT, "three operations");
  CHECK(pxg_apply(77, handles[1], &r) == PXG_E_LIMIT, "three operations by apply");
  r.n_ops = 2;
  CHECK(pxg_apply(77, handles[1], &r) == PXG_OK, "two operations by apply");
  CHECK(pxg_complete(77, tokens[1], &r) == PXG_OK, "two operations");
  mail();
  LEFT("rhead. rend ");
  done(PXG_END_COMPLETE);
}

static void metadata(void) {
  static uint8_t value[64 << 10], key[260];
  memset(key, 'k', sizeof key);
  static const struct {
    uint32_t space, key;
    bool legal;
  } all[] = {{0, 128, true}, {0, 129, false}, {0, 0, false}, {128, 128, true}, {129, 1, false}};
  char space[130];
  memset(space, 'k', sizeof space);
  space[128] = 0;
  const char *const spaces[] = {space};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    reset_world();
    on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
    configs[1].policy.namespaces = spaces, configs[1].policy.n_namespaces = 1;
    begin(1);
    head(REQ, true);
    pxg_op op = {PXG_OP_METADATA_SET,         0, 0, all[i].space, {key, all[i].space + all[i].key, 0},
                 {{value, 65536, 0}, NULL, 0}};
    pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &op, .n_ops = 1};
    int32_t status = pxg_complete(77, tokens[1], &r);
    CHECK(status == (all[i].legal ? PXG_OK : PXG_E_ARG), "%d: %d", (int)i, status);
    mail();
    done(PXG_END_COMPLETE);
  }
}

static void places(void) {
  pxg_config *chain[PXG_MAX_PLACES + 1];
  reset_world();
  for (int i = 0; i <= PXG_MAX_PLACES; i++) chain[i] = &configs[1];
  CHECK(!pxg_stream_open(loop, chain, PXG_MAX_PLACES + 1, &stream_ops, NULL, 1, 0), "33 places");
  s = pxg_stream_open(loop, chain, PXG_MAX_PLACES, &stream_ops, NULL, 1, 0);
  head(REQ, true);
  CHECK(count_in(trace, "1rhE") == PXG_MAX_PLACES, "%s", trace);
  LEFT("rhead. rend ");
  pxg_place_info info;
  CHECK(pxg_stream_place(s, PXG_MAX_PLACES - 1, &info) && info.config == &configs[1] && !info.failed, "the last place");
  CHECK(!pxg_stream_place(s, PXG_MAX_PLACES, &info), "one behind the last place");
  done(PXG_END_COMPLETE);
  /* None at all, and one that takes no part in subrequests. */
  reset_world();
  configs[2].flags = PXG_CFG_SUBREQUESTS;
  open_with = PXG_STREAM_SUBREQUEST;
  begin(2);
  head(REQ, true);
  SAW("2rhE ");
  done(PXG_END_COMPLETE);
}

/* 14.4: max_pending is 2. */
static void pending_places_of_a_worker(void) {
  pxg_stream *streams[3];
  uint64_t token[3];
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  for (int i = 0; i < 3; i++) {
    begin(1);
    streams[i] = s;
    n_out = 0, out[0] = 0;
    head(REQ, true);
    token[i] = tokens[1];
    LEFT(i < 2 ? "" : "shead.! send ");
  }
  SAW("1rhE 1rhE ");
  CHECK(counters.failures[PXG_R_CAP] == 1 && pending_places[0] == 2, "%d pending", pending_places[0]);
  tokens[1] = token[0];
  CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_OK, "complete");
  s = streams[0];
  mail();
  begin(1);
  n_out = 0, out[0] = 0;
  head(REQ, true);
  LEFT("");
  CHECK(pending_places[0] == 2, "%d pending", pending_places[0]);
  pxg_stream_finish(s, PXG_END_CLIENT_ABORT), pxg_stream_free(s);
  for (int i = 0; i < 3; i++) pxg_stream_finish(streams[i], PXG_END_CLIENT_ABORT), pxg_stream_free(streams[i]);
  CHECK(!pending_places[0], "%d pending", pending_places[0]);
}

/* RPL-006. */
static void watermark(void) {
  static uint8_t big[PXG_WATERMARK + 1];
  pxg_reply open = {.size = sizeof open, .status = 200, .flags = PXG_REPLY_OPEN};
  pxg_result reply = {.size = sizeof reply, .action = PXG_ACT_REPLY, .reply = &open};
  for (uint32_t waiting = 0; waiting < 2; waiting++)
    for (uint32_t over = 0; over < 2; over++) {
      pxg_op w = {PXG_OP_BODY_WRITE, 0, 0, 0, {0}, {{big, PXG_WATERMARK + over - waiting, PXG_BUF_STATIC}, NULL, 0}};
      pxg_op small = {PXG_OP_BODY_WRITE, 0, 0, 0, {0}, {str("1"), NULL, 0}};
      pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .ops = &w, .n_ops = 1};
      reset_world();
      on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
      begin(1);
      head(REQ, true);
      CHECK(pxg_apply(77, handles[1], &reply) == PXG_OK, "reply");
      mail();
      pxg_stream_waiting(s, waiting);
      CHECK(pxg_apply(77, handles[1], &r) == (over ? PXG_FULL : PXG_OK), "%u bytes, %u waiting", w.val.bytes.len,
            waiting);
      r.ops = &small;
      CHECK(pxg_apply(77, handles[1], &r) == (over ? PXG_E_LIMIT : PXG_FULL), "one more");
      /* WRITABLE comes at half of it, once. */
      CHECK(pxg_worker_next(loop) == s, "no mail");
      pxg_out o;
      while (pxg_take(s, &o)) pxg_slice_drop(&o.slice);
      n_trace = 0, trace[0] = 0;
      pxg_stream_waiting(s, PXG_WATERMARK / 2 + 1);
      SAW("");
      CHECK(pxg_apply(77, handles[1], &r) == PXG_E_LIMIT, "before WRITABLE");
      pxg_stream_waiting(s, PXG_WATERMARK / 2);
      SAW("1wake0 ");
      pxg_stream_waiting(s, 0);
      SAW("1wake0 ");
      CHECK(pxg_apply(77, handles[1], &r) == PXG_OK, "after WRITABLE");
      done(PXG_END_CLIENT_ABORT);
    }
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

static uint64_t wish;

static void pend_for(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
  o->pend_ns = wish;
}

/* D17: the wish of the result, of the configuration, the preset, and the limit. */
static void deadlines(void) {
  static const struct {
    uint64_t wish, of_config, due;
  } all[] = {{0, 0, 1000}, {3000, 0, 3000}, {5000, 0, 5000},       {5001, 0, 5000},
             {0, 70, 70},  {1, 70, 1},      {UINT64_MAX, 70, 5000}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    reset_world();
    wish = all[i].wish;
    configs[1].pend_ns = all[i].of_config;
    on[1][PXG_PHASE_REQUEST_HEADERS] = pend_for;
    begin(1);
    head(REQ, true);
    CHECK(pxg_stream_deadline(s) == 1000 + all[i].due, "%d: %d", (int)i, (int)pxg_stream_deadline(s));
    at(1000 + all[i].due - 1);
    LEFT("");
    SAW("1rhE ");
    at(1000 + all[i].due);
    LEFT("shead.! send ");
    SAW("1rhE 1cancel ");
    CHECK(!strcmp(pxg_stream_details(s), "one.deadline"), "%s", pxg_stream_details(s));
    CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_E_STALE, "after the deadline");
    done(PXG_END_COMPLETE);
  }
  /* Accepted before the deadline and taken up behind it: it counts. */
  reset_world();
  on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
  begin(1);
  head(REQ, true);
  CHECK(complete(1, PXG_ACT_CONTINUE) == PXG_OK, "complete");
  at(1 << 20);
  LEFT("rhead. rend ");
  CHECK(!counters.failures[PXG_R_DEADLINE], "a deadline that was met");
  done(PXG_END_COMPLETE);
}

/* D18: hold_limit_ns is 8000, whatever it is made of. */
static void hold_spans(void) {
  for (int open = 0; open < 2; open++)
    for (int kind = 0; kind < 3; kind++) {
      reset_world();
      quiet();
      configs[1].policy.fail_open = open;
      configs[1].policy.pend_limit_ns = configs[1].policy.pend_default_ns = 100000;
      configs[1].policy.hold_time_ns = 1 << 20;
      configs[1].body_mode[REQ] = kind == 0 ? PXG_BODY_WHOLE : PXG_BODY_STREAM;
      more_bytes = 10, passes = 0;
      on[1][PXG_PHASE_REQUEST_HEADERS] = kind == 0 ? NULL : kind == 1 ? more : pend;
      begin(1);
      head(REQ, false);
      pxg_worker_clock(loop, 2000); /* What comes later does not begin it anew. */
      bytes(REQ, "abc");
      CHECK(pxg_stream_deadline(s) == 9000, "%d: %d", kind, (int)pxg_stream_deadline(s));
      at(8999);
      LEFT("");
      at(9000);
      HAS(said, "reason=deadline: the hold span is used up");
      if (open) {
        LEFT("rhead ");
        BODY(REQ, "abc");
      } else {
        LEFT("shead.! send ");
      }
      SAW(kind == 2 ? "1rh 1cancel " : "1rh ");
      CHECK(counters.failures[PXG_R_DEADLINE] == 1 && counters.bypassed == (uint64_t)open, "%d: counted", kind);
      done(PXG_END_CLIENT_ABORT);
    }
  /* PENDING and MORE in turns go on with one span; a guest that passes everything begins a new one. */
  for (int all = 0; all < 2; all++) {
    pxg_result r = {.size = sizeof r, .action = all ? PXG_ACT_CONTINUE : PXG_ACT_MORE, .more_bytes = 1};
    uint64_t now;
    reset_world();
    configs[1].body_mode[REQ] = PXG_BODY_STREAM;
    configs[1].max_body[REQ] = 1 << 10;
    on[1][PXG_PHASE_REQUEST_BODY] = pend;
    begin(1);
    head(REQ, false);
    for (now = 1000; now < 20000; now += 500) {
      at(now);
      if (strchr(out, '!')) break;
      bytes(REQ, "a");
      CHECK(pxg_complete(77, tokens[1], &r) == PXG_OK, "complete");
      mail();
    }
    CHECK(now == (all ? 20000 : 9000), "it ended at %d", (int)now);
    LEFT(all ? "rhead " : "rhead shead.! send ");
    CHECK(n_body[REQ] == (all ? 38 : 0), "%d bytes", (int)n_body[REQ]);
    done(PXG_END_CLIENT_ABORT);
  }
}

/* 7.4: hold_time_ns is 100, and nothing is shown again that has not grown. */
static void hold_times(void) {
  reset_world();
  configs[1].body_mode[REQ] = PXG_BODY_STREAM;
  more_bytes = 10, passes = 0;
  on[1][PXG_PHASE_REQUEST_BODY] = more;
  begin(1);
  head(REQ, false);
  bytes(REQ, "a");
  SAW("1rh 1rb@0=a ");
  CHECK(pxg_stream_deadline(s) == 9000, "%d: nothing has grown", (int)pxg_stream_deadline(s));
  at(1500);
  SAW("1rh 1rb@0=a ");
  bytes(REQ, "b");
  SAW("1rh 1rb@0=a 1rb@0=ab ");
  bytes(REQ, "c");
  CHECK(pxg_stream_deadline(s) == 1600, "%d", (int)pxg_stream_deadline(s));
  at(1599);
  SAW("1rh 1rb@0=a 1rb@0=ab ");
  at(1600);
  SAW("1rh 1rb@0=a 1rb@0=ab 1rb@0=abc ");
  done(PXG_END_CLIENT_ABORT);
}

int main(void) {
  start();
  held_bytes();
  growth();
  chunks();
  lengths();
  results();
  metadata();
  places();
  pending_places_of_a_worker();
  watermark();
  deadlines();
  hold_spans();
  hold_times();
  pxg_worker_free(loop);
  return finish("limits");
}
