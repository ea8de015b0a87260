/* SPDX-License-Identifier: Apache-2.0 */

/* Replies (chapter 9): gRPC, messages without a body, trailers, streamed ones, who sees them (5.6), FLUSH, and the
 * answers to failures (14.2). */

#include "stream.h"

static pxg_reply answer; /* What `reply` answers with. */

static void reply(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->reply = &answer;
  o->action = PXG_ACT_REPLY;
}
static void fail(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_ERROR;
}
static void pend(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_PENDING;
}

static pxg_buf owned = {{(const uint8_t *)"body", 4, PXG_BUF_OWNED}, release, 1};

/* A world in which `place` answers the request's headers with `r`. */
static void world(int place, pxg_reply r) {
  reset_world();
  answer = r;
  answer.size = sizeof answer;
  on[place][PXG_PHASE_REQUEST_HEADERS] = reply;
}

static int32_t apply_to(int place, pxg_op *ops, uint64_t n, uint32_t flags) {
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE, .flags = flags, .ops = ops, .n_ops = n};
  return pxg_apply(77, handles[place], &r);
}

static int32_t write_to(int place, const char *text, uint16_t flags, uint32_t result_flags) {
  pxg_op w = {PXG_OP_BODY_WRITE,
              flags,
              0,
              0,
              {0},
              {{(const uint8_t *)text, (uint32_t)strlen(text), PXG_BUF_OWNED}, release, 1}};
  return apply_to(place, &w, 1, result_flags);
}

/* ---- gRPC -------------------------------------------------------------------------------------------------------- */

static pxg_field message = {{(const uint8_t *)"grpc-message", 12, 0}, {(const uint8_t *)"no%20way", 8, 0}};
static pxg_field type = {{(const uint8_t *)"content-type", 12, 0}, {(const uint8_t *)"text/plain", 10, 0}};
static pxg_field trailer = {{(const uint8_t *)"x-sum", 5, 0}, {(const uint8_t *)"7", 1, 0}};

static void grpc(void) {
  pxg_field fields[2] = {type, message};
  world(1, (pxg_reply){.status = 403,
                       .flags = PXG_REPLY_GRPC | PXG_REPLY_OPEN,
                       .grpc_status = 7,
                       .fields = fields,
                       .n_fields = 2,
                       .body = &owned,
                       .n_body = 1,
                       .trailers = &trailer,
                       .n_trailers = 1});
  field(REQ, false, "content-type", "application/grpc+proto");
  begin(1);
  head(REQ, false);
  LEFT("shead.! send ");
  BODY(RSP, "");
  FIELDS(RSP, false, ":status=200,content-type=application/grpc+proto,grpc-status=7,grpc-message=no%20way");
  FIELDS(RSP, true, "");
  CHECK(released == 1 && !counters.skipped, "released %d, skipped %d", released, (int)counters.skipped);
  CHECK(!pxg_stream_deadline(s), "a gRPC reply is never open");
  done(PXG_END_COMPLETE);
  SAW("1rh 1log1405 1end ");

  /* Any other request gets the status and the body. */
  world(1, (pxg_reply){.status = 403, .flags = PXG_REPLY_GRPC, .grpc_status = 7, .body = &owned, .n_body = 1});
  field(REQ, false, "content-type", "application/json");
  begin(1);
  head(REQ, false);
  LEFT("shead! send ");
  BODY(RSP, "body");
  FIELDS(RSP, false, ":status=403,content-length=4");
  done(PXG_END_COMPLETE);

  static const struct {
    int32_t status;
    bool legal;
  } limits[] = {{-1, false}, {0, true}, {16, true}, {17, false}};
  for (int i = 0; i < 4; i++) {
    char expected[128];
    snprintf(expected, sizeof expected, ":status=200,content-type=application/grpc,grpc-status=%d", limits[i].status);
    world(1, (pxg_reply){.status = 200, .flags = PXG_REPLY_GRPC, .grpc_status = limits[i].status});
    field(REQ, false, "content-type", "application/grpc");
    begin(1);
    head(REQ, true);
    FIELDS(RSP, false, limits[i].legal ? expected : ":status=500,content-length=0");
    CHECK(counters.failures[PXG_R_INVALID] == !limits[i].legal, "grpc_status %d", limits[i].status);
    done(PXG_END_COMPLETE);
  }
  /* Without the flag the number is nobody's business. */
  world(1, (pxg_reply){.status = 200, .grpc_status = 99});
  field(REQ, false, "content-type", "application/grpc");
  begin(1);
  head(REQ, true);
  FIELDS(RSP, false, ":status=200,content-length=0");
  done(PXG_END_COMPLETE);
}

/* ---- bodies and trailers ----------------------------------------------------------------------------------------- */

static void without_a_body(void) {
  static const struct {
    uint32_t status, with;
    const char *fields;
  } all[] = {{204, 0, ":status=204"},
             {304, 0, ":status=304"},
             {200, PXG_STREAM_HEAD_METHOD, ":status=200,content-length=4"},
             {304, PXG_STREAM_HEAD_METHOD, ":status=304"}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    for (uint32_t open = 0; open < 2; open++) {
      world(1, (pxg_reply){.status = all[i].status,
                           .flags = open ? PXG_REPLY_OPEN : 0,
                           .body = &owned,
                           .n_body = 1,
                           .trailers = &trailer,
                           .n_trailers = 1});
      open_with |= all[i].with;
      begin(1);
      head(REQ, true);
      LEFT("shead.! send ");
      BODY(RSP, "");
      FIELDS(RSP, false, all[i].fields);
      CHECK(released == 1, "released %d times", released);
      done(PXG_END_COMPLETE);
    }
}

static void with_trailers(void) {
  const pxg_reply r = {.status = 200, .body = &owned, .n_body = 1, .trailers = &trailer, .n_trailers = 1};
  world(1, r);
  begin(1);
  head(REQ, true);
  LEFT("shead! send+ ");
  FIELDS(RSP, false, ":status=200");
  FIELDS(RSP, true, "x-sum=7");
  done(PXG_END_COMPLETE);
  /* The client cannot take them, or the configuration may not send them. */
  for (int i = 0; i < 2; i++) {
    world(1, r);
    if (i) open_with = 0;
    if (!i) configs[1].features[0] &= ~(1ull << PXG_F_TRAILERS_OUT_RESPONSE);
    begin(1);
    head(REQ, true);
    LEFT("shead! send ");
    FIELDS(RSP, false, ":status=200,content-length=4");
    FIELDS(RSP, true, "");
    CHECK(counters.skipped == 1, "skipped %d", (int)counters.skipped);
    done(PXG_END_COMPLETE);
  }
}

static void details(void) {
  static const char *const expected[] = {"one.reply", "one.a\\x0ab"};
  for (int i = 0; i < 2; i++) {
    world(1, (pxg_reply){.status = 200, .details = i ? str("a\nb") : str("")});
    begin(1);
    head(REQ, true);
    CHECK(!strcmp(pxg_stream_details(s), expected[i]), "%s", pxg_stream_details(s));
    FIELDS(RSP, false, ":status=200,content-length=0");
    done(PXG_END_COMPLETE);
  }
}

/* ---- who sees it ------------------------------------------------------------------------------------------------- */

static void orphans(void) {
  world(2, (pxg_reply){.status = 403, .body = &owned, .n_body = 1});
  configs[3].flags = PXG_CFG_ORPHAN;
  configs[3].body_mode[RSP] = configs[4].body_mode[RSP] = PXG_BODY_STREAM;
  begin(4);
  head(REQ, true);
  SAW("1rhE 2rhE 3shL 1shL 3sbEBL@0=body ");
  BODY(RSP, "body");
  done(PXG_END_COMPLETE);
  SAW("1rhE 2rhE 3shL 1shL 3sbEBL@0=body 1log1105 2log1105 3log1105 4log1105 1end 2end 3end 4end ");

  /* Those come first, in response order, and what they do is in what leaves. */
  world(1, (pxg_reply){.status = 403});
  configs[2].flags = configs[3].flags = PXG_CFG_ORPHAN;
  begin(3);
  head(REQ, true);
  SAW("1rhE 3shEL 2shEL ");
  LEFT("shead.! send ");
  done(PXG_END_COMPLETE);

  /* An orphan that has seen the upstream's headers sees nothing of a reply; nor does one that has failed. */
  world(4, (pxg_reply){.status = 403});
  on[4][PXG_PHASE_REQUEST_HEADERS] = NULL;
  on[2][PXG_PHASE_RESPONSE_HEADERS] = reply;
  configs[3].flags = PXG_CFG_ORPHAN;
  begin(3);
  head(REQ, true);
  head(RSP, false);
  SAW("1rhE 2rhE 3rhE 3sh 2sh 1shEL ");
  LEFT("rhead. rend shead.! send ");
  done(PXG_END_COMPLETE);

  world(2, (pxg_reply){.status = 403});
  on[2][PXG_PHASE_REQUEST_HEADERS] = NULL;
  on[1][PXG_PHASE_REQUEST_BODY] = reply;
  on[2][PXG_PHASE_REQUEST_HEADERS] = fail;
  configs[2].flags = PXG_CFG_ORPHAN;
  configs[2].policy.fail_open = true;
  configs[1].body_mode[REQ] = PXG_BODY_STREAM;
  begin(2);
  head(REQ, false);
  bytes(REQ, "x");
  SAW("1rh 2rh 1rb@0=x ");
  LEFT("rhead shead.! send ");
  done(PXG_END_COMPLETE);

  /* A response of the host's own comes to places that the request never reached only if they are orphans; to any only
   * with REPLY_REFILTER. */
  for (int refilter = 0; refilter < 2; refilter++) {
    reset_world();
    on[1][PXG_PHASE_REQUEST_HEADERS] = pend;
    configs[1].flags = PXG_CFG_DUPLEX;
    configs[3].flags = PXG_CFG_ORPHAN;
    for (int i = 1; i <= 3 && !refilter; i++) configs[i].features[0] &= ~(1ull << PXG_F_REPLY_REFILTER);
    begin(3);
    head(REQ, false);
    pxg_stream_head(s, RSP, PXG_HEAD_LOCAL | PXG_HEAD_ENDS);
    drain();
    SAW(refilter ? "1rh 3shEL 1shEL " : "1rh ");
    LEFT("shead. send ");
    done(PXG_END_COMPLETE);
  }
}

/* The last of two replies counts: nothing of the first one is shown or sent any more, streamed or whole. */
static void replaced(void) {
  for (uint32_t open = 0; open < 2; open++) {
    world(2, (pxg_reply){.status = 201, .flags = open ? PXG_REPLY_OPEN : 0, .body = &owned, .n_body = 1});
    on[1][PXG_PHASE_RESPONSE_HEADERS] = fail;
    begin(2);
    head(REQ, true);
    LEFT("shead.! send ");
    BODY(RSP, "");
    FIELDS(RSP, false, ":status=500,content-length=0");
    CHECK(!strcmp(pxg_stream_details(s), "one.error"), "%s", pxg_stream_details(s));
    CHECK(!pxg_stream_deadline(s), "a reply that was replaced is waited for until %d", (int)pxg_stream_deadline(s));
    CHECK(write_to(2, "late", 0, 0) == PXG_OK, "write");
    mail();
    BODY(RSP, "");
    CHECK(counters.skipped == 1 && released == 2, "skipped %d, released %d", (int)counters.skipped, released);
    done(PXG_END_COMPLETE);
  }
}

/* ---- streamed replies -------------------------------------------------------------------------------------------- */

static char seen_trailers[64];

static void look_at_trailers(const pxg_event *ev, pxg_result *o) {
  (void)o;
  size_t n = strlen(seen_trailers);
  snprintf(seen_trailers + n, sizeof seen_trailers - n, "%d%s%d ", (int)ev->config,
           ev->phase == PXG_PHASE_LOG ? "log" : "", (int)ev->n_trailers);
}

/* Trailers of an open reply are there when it has ended, and not before. */
static void trailers_of_open_ones(void) {
  for (int ends = 0; ends < 2; ends++) {
    world(2, (pxg_reply){.status = 200, .flags = PXG_REPLY_OPEN, .trailers = &trailer, .n_trailers = 1});
    seen_trailers[0] = 0;
    for (int p = PXG_PHASE_RESPONSE_HEADERS; p <= PXG_PHASE_LOG; p++) on[1][p] = look_at_trailers;
    on[2][PXG_PHASE_LOG] = look_at_trailers;
    configs[1].body_mode[RSP] = PXG_BODY_STREAM;
    begin(2);
    head(REQ, true);
    LEFT("shead!~ ");
    CHECK(write_to(2, "a", 0, 0) == PXG_OK, "write");
    mail();
    if (ends) CHECK(write_to(2, "b", PXG_OPF_END, 0) == PXG_OK, "the last write");
    mail();
    done(ends ? PXG_END_COMPLETE : PXG_END_CLIENT_ABORT);
    LEFT(ends ? "shead!~ send+ " : "shead!~ ");
    BODY(RSP, ends ? "ab" : "a");
    CHECK(!strcmp(seen_trailers, ends ? "10 10 10 11 1log1 2log1 " : "10 10 1log0 2log0 "), "%s", seen_trailers);
  }
}

/* An empty END, one without the feature, and a write in WAKE. */
static void write_in_wake(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->scratch_ops[0] = (pxg_op){PXG_OP_BODY_WRITE, PXG_OPF_END, 0, 0, {0}, {{NULL, 0, 0}, NULL, 0}};
  o->scratch_ops[1] = (pxg_op){PXG_OP_BODY_WRITE, 0, 0, 0, {0}, {str("behind the end"), NULL, 0}};
  o->ops = o->scratch_ops;
  o->n_ops = 2;
}

static void open_ones(void) {
  world(1, (pxg_reply){.status = 200, .flags = PXG_REPLY_OPEN, .body = &owned, .n_body = 1});
  on[1][PXG_PHASE_WAKE] = write_in_wake;
  begin(1);
  head(REQ, true);
  CHECK(pxg_wake(77, handles[1], 1) == PXG_OK, "wake");
  mail();
  LEFT("shead!~ send ");
  BODY(RSP, "body");
  CHECK(counters.skipped == 1, "skipped %d", (int)counters.skipped);
  CHECK(!pxg_stream_deadline(s), "an end is not waited for");
  done(PXG_END_COMPLETE);

  world(1, (pxg_reply){.status = 200, .flags = PXG_REPLY_OPEN});
  configs[1].features[0] &= ~(1ull << PXG_F_STREAM_REPLY);
  begin(1);
  head(REQ, true);
  FIELDS(RSP, false, ":status=500,content-length=0");
  HAS(said, "found OPEN, expected the feature STREAM_REPLY");
  done(PXG_END_COMPLETE);

  /* RPL-009: a failure resets, whatever the mode; the idle limit counts only while the client could take something. */
  world(1, (pxg_reply){.status = 200, .flags = PXG_REPLY_OPEN});
  configs[1].policy.fail_open = true;
  on[1][PXG_PHASE_WAKE] = fail;
  begin(1);
  head(REQ, true);
  CHECK(pxg_wake(77, handles[1], 1) == PXG_OK, "wake");
  mail();
  LEFT("shead!~ RESET ");
  done(PXG_END_COMPLETE);

  world(1, (pxg_reply){.status = 200, .flags = PXG_REPLY_OPEN});
  begin(1);
  head(REQ, true);
  pxg_stream_waiting(s, 1);
  CHECK(pxg_stream_deadline(s) == 9000, "%d", (int)pxg_stream_deadline(s));
  pxg_worker_clock(loop, 9000);
  pxg_stream_timer(s);
  drain();
  LEFT("shead!~ ");
  CHECK(pxg_stream_deadline(s) == 17000, "%d", (int)pxg_stream_deadline(s));
  pxg_stream_waiting(s, 0);
  pxg_worker_clock(loop, 16999);
  pxg_stream_timer(s);
  drain();
  LEFT("shead!~ ");
  pxg_worker_clock(loop, 17000);
  pxg_stream_timer(s);
  drain();
  LEFT("shead!~ RESET ");
  done(PXG_END_COMPLETE);
}

/* BODY_INJECT: bytes behind what has passed of a forwarded response. */
static void injected(void) {
  static const struct {
    const char *length;
    int when; /* 0: before the head, 1: in the body, 2: behind the end. */
    uint16_t flags;
    const char *body;
  } all[] = {
      {NULL, 1, 0, "a<>b"}, {NULL, 0, 0, "ab"}, {NULL, 2, 0, "ab"}, {"2", 1, 0, "ab"}, {NULL, 1, PXG_OPF_END, "ab"}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    reset_world();
    configs[1].body_mode[RSP] = PXG_BODY_STREAM;
    if (all[i].length) field(RSP, false, "content-length", all[i].length);
    begin(1);
    head(REQ, true);
    if (all[i].when == 0) CHECK(write_to(1, "<>", all[i].flags, 0) == PXG_OK, "write");
    mail();
    head(RSP, false);
    bytes(RSP, "a");
    if (all[i].when == 1) CHECK(write_to(1, "<>", all[i].flags, 0) == PXG_OK, "write");
    mail();
    bytes(RSP, "b");
    end(RSP, false);
    if (all[i].when == 2) CHECK(write_to(1, "<>", all[i].flags, 0) == PXG_OK, "write");
    mail();
    BODY(RSP, all[i].body);
    CHECK((int)counters.skipped == !strchr(all[i].body, '<') && released == 1, "%d: skipped %d, released %d", (int)i,
          (int)counters.skipped, released);
    done(PXG_END_COMPLETE);
  }
}

/* ---- FLUSH ------------------------------------------------------------------------------------------------------- */

static void flush(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->flags = PXG_RES_FLUSH;
}

/* It is on the last of what the result lets pass, so that all before it goes out with it. */
static void flushes(void) {
  reset_world();
  configs[1].body_mode[REQ] = configs[1].body_mode[RSP] = PXG_BODY_STREAM;
  for (int p = 1; p <= 6; p++) on[1][p] = flush;
  begin(1);
  head(REQ, false);
  bytes(REQ, "ab");
  head(RSP, false);
  bytes(RSP, "cd");
  end(RSP, false);
  LEFT("rhead^ flush shead^ flush send^ ");
  done(PXG_END_COMPLETE);

  world(1, (pxg_reply){.status = 200, .flags = PXG_REPLY_FLUSH, .body = &owned, .n_body = 1});
  begin(1);
  head(REQ, true);
  LEFT("shead! flush send ");
  done(PXG_END_COMPLETE);

  world(1, (pxg_reply){.status = 200, .flags = PXG_REPLY_OPEN, .body = &owned, .n_body = 1});
  begin(1);
  head(REQ, true);
  CHECK(write_to(1, "b", 0, 0) == PXG_OK && write_to(1, "c", 0, PXG_RES_FLUSH) == PXG_OK, "writes");
  mail();
  LEFT("shead!~ flush ");
  CHECK(write_to(1, "d", 0, 0) == PXG_OK, "write");
  mail();
  LEFT("shead!~ flush ");
  CHECK(apply_to(1, NULL, 0, PXG_RES_FLUSH) == PXG_OK, "a flush of what has been taken");
  mail();
  LEFT("shead!~ flush flush ");
  BODY(RSP, "bodybcd");
  done(PXG_END_COMPLETE);
}

/* ---- answers to failures ------------------------------------------------------------------------------------------ */

static void more(const pxg_event *ev, pxg_result *o) {
  (void)ev;
  o->action = PXG_ACT_MORE;
}

static void failures(void) {
  static const struct {
    int phase;
    bool fail_open;
    uint32_t status;
    const char *left, *fields;
  } all[] = {
      {PXG_PHASE_REQUEST_HEADERS, false, 503, "shead.! send ", ":status=503,content-length=0"},
      {PXG_PHASE_REQUEST_BODY, false, 500, "rhead shead.! send ", ":status=500,content-length=0"},
      {PXG_PHASE_RESPONSE_HEADERS, false, 599, "rhead rend shead.! send ", ":status=599,content-length=0"},
      {PXG_PHASE_RESPONSE_BODY, false, 500, "rhead rend shead RESET ", ":status=200,x-up=1"},
      {PXG_PHASE_RESPONSE_TRAILERS, false, 500, "rhead rend shead RESET ", ":status=200,x-up=1"},
      {PXG_PHASE_REQUEST_HEADERS, true, 500, "rhead rend shead send+ ", ":status=200,x-up=1"},
      {PXG_PHASE_REQUEST_BODY, true, 500, "rhead rend shead send+ ", ":status=200,x-up=1"},
      {PXG_PHASE_RESPONSE_HEADERS, true, 500, "rhead rend shead send+ ", ":status=200,x-up=1"},
      {PXG_PHASE_RESPONSE_BODY, true, 500, "rhead rend shead send+ ", ":status=200,x-up=1"},
      {PXG_PHASE_RESPONSE_TRAILERS, true, 500, "rhead rend shead send+ ", ":status=200,x-up=1"},
      {PXG_PHASE_LOG, false, 500, "rhead rend shead send+ ", ":status=200,x-up=1"},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    reset_world();
    configs[1].policy.fail_open = all[i].fail_open;
    configs[1].policy.fail_status = all[i].status;
    configs[1].body_mode[REQ] = configs[1].body_mode[RSP] = PXG_BODY_STREAM;
    on[1][all[i].phase] = fail;
    field(RSP, false, "x-up", "1");
    field(RSP, true, "t", "1");
    begin(1);
    head(REQ, false);
    bytes(REQ, "ab");
    end(REQ, false);
    head(RSP, false);
    bytes(RSP, "cd");
    end(RSP, true);
    LEFT(all[i].left);
    FIELDS(RSP, false, all[i].fields);
    BODY(RSP, strstr(all[i].left, "send+") || all[i].phase == PXG_PHASE_RESPONSE_TRAILERS ? "cd" : "");
    CHECK(!pxg_stream_details(s) == !strchr(all[i].left, '!'), "%d: details", (int)i);
    CHECK(!pxg_stream_details(s) || !strcmp(pxg_stream_details(s), "one.error"), "%s", pxg_stream_details(s));
    done(PXG_END_COMPLETE);
    CHECK(counters.failures[PXG_R_ERROR] == 1 && counters.bypassed == all[i].fail_open, "%d: counted", (int)i);
    CHECK(!strstr(trace, "1log") == (all[i].phase != PXG_PHASE_LOG), "%d: %s", (int)i, trace);
  }
  /* Open: what is held passes unmodified, and so does what the peer direction holds. */
  reset_world();
  configs[1].policy.fail_open = true;
  configs[1].flags = PXG_CFG_DUPLEX;
  configs[1].body_mode[REQ] = configs[1].body_mode[RSP] = PXG_BODY_STREAM;
  on[1][PXG_PHASE_REQUEST_HEADERS] = more;
  on[1][PXG_PHASE_RESPONSE_HEADERS] = pend;
  on[1][PXG_PHASE_WAKE] = fail;
  begin(1);
  head(REQ, false);
  bytes(REQ, "ab");
  head(RSP, false);
  bytes(RSP, "cd");
  LEFT("");
  CHECK(pxg_wake(77, handles[1], 1) == PXG_OK, "wake");
  mail();
  end(REQ, false);
  end(RSP, false);
  SAW("1rh 1sh 1wake1 1cancel ");
  LEFT("rhead shead rend send ");
  BODY(REQ, "ab");
  BODY(RSP, "cd");
  done(PXG_END_COMPLETE);
}

int main(void) {
  start();
  grpc();
  without_a_body();
  with_trailers();
  details();
  orphans();
  replaced();
  trailers_of_open_ones();
  open_ones();
  injected();
  flushes();
  failures();
  pxg_worker_free(loop);
  return finish("replies");
}
