/* SPDX-License-Identifier: Apache-2.0 */

/* The machine of one direction at one place (spec/07-bodies, 7.11), and what passes from place to place. */

#include "minihost.h"

static uint32_t phase_of(const stream *s, int d, uint32_t request_phase) {
  if (s->l4)
    return request_phase == PXG_PHASE_REQUEST_HEADERS ? PXG_PHASE_L4_OPEN
           : d                                        ? PXG_PHASE_L4_UPSTREAM
                                                      : PXG_PHASE_L4_DOWNSTREAM;
  return request_phase + (d == RSP ? 3 : 0);
}

bool subscribed(const place *p, uint32_t phase) { return p->subscribe >> phase & 1; }

static place *from(stream *s, int d, int i) {
  for (i += d == REQ ? 1 : -1; i >= 0 && i < s->n; i += d == REQ ? 1 : -1)
    if (d == REQ || !s->places[i].skip_response) return &s->places[i];
  return NULL;
}

place *next_place(const place *p, int d) { return from(p->s, d, p->index); }

static place *entry(stream *s, int d) { return from(s, d, d == REQ ? -1 : s->n); }

/* ---- what a sink takes ------------------------------------------------------------------------------------------- */

static void sink_head(stream *s, int d) {
  s->m[d].sent = true;
  if (d == REQ) {
    s->final_route = true;
    if (s->expect_100) client_continue(s);
    upstream_open(s);
  } else {
    client_head(s);
  }
}

static void sink_bytes(stream *s, int d, bytes *b) {
  s->bytes_out[d] += b->len;
  if (d == REQ) {
    upstream_bytes(s, b);
  } else {
    client_bytes(s, b);
  }
}

static void sink_end(stream *s, int d) {
  if (d == REQ) {
    upstream_end(s);
  } else if (s->upgraded && !s->tunnel) {
    /* The response has ended as a message; the tunnel begins when nothing of it is on the way any more. */
    s->tunnel = s->tunnel_due = true;
  } else {
    client_end(s);
  }
}

/* ---- from place to place ----------------------------------------------------------------------------------------- */

static void head_into(stream *s, place *to, int d, bool ends) {
  if (!to) {
    s->m[d].ends_out = ends;
    return sink_head(s, d);
  }
  struct dir *x = &to->d[d];
  x->head_in = true;
  x->end_at_head = ends;
  if (ends) x->ended = true;
  if (d == REQ) to->reached = true;
}

/* Credit on L4 is used up by what arrives, before anything is shown. */
static void use_credit(place *p, int d) {
  struct dir *x = &p->d[d];
  bytes out = {0};
  bool void_credit = false;
  while (x->credits) {
    credit *c = x->credits;
    if (c->what != PXG_OP_INJECT) {
      uint64_t n = c->n < x->view.len ? c->n : x->view.len;
      if (c->what == PXG_OP_PASS) {
        bytes_move(&out, &x->view, n);
      } else {
        bytes_drop(&x->view, n);
      }
      x->offset += n;
      c->n -= n;
      if (c->n && !x->ended) break;
      void_credit |= c->n > 0;
    }
    if (!void_credit || !BUG("injection-lost-with-the-credit")) bytes_move(&out, &c->inject, c->inject.len);
    bytes_free(&c->inject);
    x->credits = c->next;
    if (!x->credits) x->credits_end = &x->credits;
    free(c);
  }
  if (out.len) to_next_bytes(p, d, &out, out.len);
  bytes_free(&out);
}

void credits_free(place *p) {
  for (int d = 0; d < 2; d++)
    for (credit *c = p->d[d].credits, *next; c; c = next) {
      next = c->next;
      bytes_free(&c->inject);
      free(c);
    }
}

static void bytes_into(stream *s, place *to, int d, bytes *b) {
  if (!to) return sink_bytes(s, d, b);
  struct dir *x = &to->d[d];
  if (x->state == S_CUT) return bytes_drop(b, b->len);
  bytes_move(&x->view, b, b->len);
  if (x->credits) use_credit(to, d);
}

static void end_into(stream *s, place *to, int d) {
  if (!to) return sink_end(s, d);
  to->d[d].ended = true;
  if (to->d[d].credits) use_credit(to, d);
}

void enter_head(stream *s, int d, bool ends) { head_into(s, entry(s, d), d, ends); }
void enter_bytes(stream *s, int d, bytes *b) { bytes_into(s, entry(s, d), d, b); }
void enter_end(stream *s, int d) { end_into(s, entry(s, d), d); }

void to_next_bytes(place *p, int d, bytes *b, uint64_t n) {
  if (!n) return;
  bytes part = {0};
  bytes_move(&part, b, n);
  if (p->d[d].room >= 0) p->d[d].room = (uint64_t)p->d[d].room < n ? 0 : p->d[d].room - (int64_t)n;
  if (BUG("byte-lost-after-pending") && p->d[d].resumed && part.len > 1) bytes_drop(&part, 1);
  bytes_into(p->s, next_place(p, d), d, &part);
  bytes_free(&part);
}

void to_next_inject(place *p, int d, slice *v) {
  if (p->d[d].end_out || p->d[d].state == S_CUT || p->s->over[d] || (d == RSP && !p->d[REQ].head_out))
    return count_skipped(p);
  bytes b = {0};
  p->d[d].changed = true;
  bytes_add(&b, *v);
  *v = (slice){0};
  to_next_bytes(p, d, &b, b.len);
  bytes_free(&b);
}

void pass_headers(place *p, int d) {
  stream *s = p->s;
  struct dir *x = &p->d[d];
  message *m = &s->m[d];
  x->held = false;
  x->head_out = true;
  if (x->state == S_BYPASS) x->resizes = false;
  const char *length = fields_get(&m->head, "content-length");
  bool bodyless = d == RSP && (s->head_method || x->end_at_head);
  if (length && x->mode == PXG_BODY_STREAM && x->resizes && !bodyless && !BUG("length-kept-with-resizes")) {
    fields_delete(&m->head, "content-length", 14);
    length = NULL;
  }
  x->room = length && !bodyless && !s->l4 && x->state != S_BYPASS ? (int64_t)strtoull(length, NULL, 10) : -1;
  head_into(s, next_place(p, d), d, x->end_at_head);
}

void pass_end(place *p, int d) {
  stream *s = p->s;
  struct dir *x = &p->d[d];
  if (x->end_out) return;
  if (x->room > 0 && x->state != S_BYPASS && !p->failed && !x->tunnel && !BUG("length-unchecked")) {
    fail(p, d, 0, R_INVALID, "the body ended short of content-length [PXG-HDR-007]");
    return;
  }
  x->end_out = true;
  if (x->state != S_CUT) x->state = S_DONE;
  if (!(BUG("half-close-lost") && s->l4)) end_into(s, next_place(p, d), d);
}

void pass_all(place *p, int d) {
  struct dir *x = &p->d[d];
  uint64_t n = x->view.len;
  if (x->held || !x->head_out) pass_headers(p, d);
  x->offset += n;
  to_next_bytes(p, d, &x->view, n);
}

/* ---- cutting ----------------------------------------------------------------------------------------------------- */

void unpend(place *p) {
  p->c->pending[p->s->w->index]--;
  p->c->stats->pending--;
}

/* The token of a direction that is cut; 0 if there is none to cancel. */
uint64_t cut_quietly(place *p, int d) {
  struct dir *x = &p->d[d];
  uint64_t token = 0;
  if (x->state == S_DONE || x->state == S_CUT) return 0;
  if (x->state == S_PEND && x->token) {
    unpend(p);
    if (token_retire(x->token)) token = x->token;
  }
  x->token = 0;
  x->state = S_CUT;
  bytes_free(&x->view);
  return token;
}

void cut_all(stream *s, int d) {
  uint64_t tokens[MAX_PLACES];
  for (int i = 0; i < s->n; i++) tokens[i] = cut_quietly(&s->places[i], d);
  for (int i = 0; i < s->n; i++)
    if (tokens[i]) call_cancel(&s->places[i], tokens[i]);
}

/* ---- the machine ------------------------------------------------------------------------------------------------- */

bool dir_is_parked(const place *p, int d) {
  if (BUG("events-while-pending")) return false;
  bool peer = p->d[!d].state == S_PEND;
  if (p->s->l4 && d == RSP && !p->d[REQ].head_out) return true;
  return peer && (!(p->c->flags & PXG_CFG_DUPLEX) || BUG("duplex-ignored"));
}

static uint32_t ending(const place *p, int d) {
  const struct dir *x = &p->d[d];
  if (!x->ended) return 0;
  if (BUG("body-end-never")) return 0;
  bool trailers = p->s->m[d].trailers.n && !x->tunnel && !BUG("end-stream-twice");
  return PXG_EV_BODY_END | (trailers ? 0 : PXG_EV_END_STREAM);
}

static void deliver_body(place *p, int d, uint32_t flags) {
  struct dir *x = &p->d[d];
  flags |= ending(p, d);
  if (x->ended) x->body_end_seen = true;
  if (x->held) flags |= PXG_EV_HEADERS_HELD;
  bytes_limit(&x->view, BUG("too-many-chunks") ? 1 << 30 : 64);
  deliver(p, d, phase_of(p->s, d, PXG_PHASE_REQUEST_BODY), flags, x->view.len, 0);
}

static bool step_wait(place *p, int d) {
  struct dir *x = &p->d[d];
  uint32_t h = phase_of(p->s, d, PXG_PHASE_REQUEST_HEADERS);
  if (!x->head_in) return false;
  if (subscribed(p, h)) {
    if (dir_is_parked(p, d)) return false;
    x->held = true;
    uint32_t flags = x->end_at_head && !BUG("end-at-headers-unsaid") ? PXG_EV_END_STREAM : 0;
    if (flags) x->body_end_seen = true;
    deliver(p, d, h, flags, 0, 0);
    return true;
  }
  if (x->mode == PXG_BODY_WHOLE && !p->s->l4) {
    x->held = true;
    x->state = S_HOLD;
    x->last_event = now_ns();
    x->hold_since = x->last_event;
    stream_later(p->s, x->last_event + p->c->spec->hold_span_ms * 1000000);
    return true;
  }
  if (dir_is_parked(p, d)) return false;
  x->state = S_FLOW;
  pass_headers(p, d);
  return true;
}

static bool step_hold(place *p, int d) {
  struct dir *x = &p->d[d];
  if (x->mode == PXG_BODY_STREAM && !x->need) {
    if (BUG("whole-holds-on")) return false;
    x->state = S_FLOW;
    x->hold_since = 0;
    pass_headers(p, d);
    return true;
  }
  if (x->mode == PXG_BODY_SKIP || x->mode == PXG_BODY_OBSERVE) {
    x->state = S_FLOW;
    x->hold_since = 0;
    if (BUG("skip-drops-what-is-held")) bytes_drop(&x->view, x->view.len);
    pass_all(p, d);
    return true;
  }
  if (dir_is_parked(p, d)) return false;
  if (x->body_end_seen && bug_name) return false; /* A mutant that obeys MORE there would be shown it for ever. */
  if (d == REQ && p->s->expect_100) client_continue(p->s);
  if (BUG("more-over-the-limit") && x->need && x->view.len < x->need && !x->ended) return false;
  if (x->view.len > p->c->max_body[d] && !BUG("413-by-itself") && !BUG("over-limit-unsaid")) {
    deliver_body(p, d, PXG_EV_OVER_LIMIT);
    return true;
  }
  if (x->view.len > p->c->max_body[d] && BUG("413-by-itself")) {
    make_local(p->s, p, 413, copy_text("host.limit", 10));
    return true;
  }
  if (x->mode == PXG_BODY_WHOLE) {
    if (!x->ended) return false;
    x->trailers_seen = !BUG("trailers-twice");
    deliver_body(p, d, PXG_EV_WHOLE_BODY | (BUG("trailers-twice") ? 0 : PXG_EV_END_STREAM));
    return true;
  }
  uint64_t due = x->last_event + set.hold_time_ms * 1000000;
  bool grown = x->view.len > x->kept && !(BUG("more-bytes-ignored") && x->need == UINT64_MAX);
  if (grown && !x->ended && x->view.len < x->need) stream_later(p->s, due);
  if (x->ended || x->view.len >= x->need || (grown && now_ns() >= due && !BUG("hold-time-never"))) {
    deliver_body(p, d, 0);
    return true;
  }
  return false;
}

/* OBSERVE: what has just passed is shown; nothing waits for it. */
static void observe(place *p, int d) {
  struct dir *x = &p->d[d];
  bytes seen = {0};
  bytes_limit(&x->view, 64);
  for (size_t i = 0; i < x->view.n; i++) {
    slice s = x->view.at[x->view.first + i];
    block_ref(s.owner);
    bytes_add(&seen, s);
  }
  uint64_t n = x->view.len;
  uint32_t flags = ending(p, d);
  if (BUG("observe-holds-the-bytes")) {
    to_next_bytes(p, d, &x->late, x->late.len);
    if (!flags) bytes_move(&x->late, &x->view, n);
  }
  to_next_bytes(p, d, &x->view, x->view.len);
  bytes_free(&x->view);
  x->view = seen;
  if (x->ended) x->body_end_seen = true;
  x->observing = true;
  deliver(p, d, phase_of(p->s, d, PXG_PHASE_REQUEST_BODY), flags, n, 0);
  x->observing = false;
  bytes_free(&x->view);
  x->offset += n;
}

static bool step_flow(place *p, int d) {
  struct dir *x = &p->d[d];
  if (dir_is_parked(p, d)) return false;
  bool body = subscribed(p, phase_of(p->s, d, PXG_PHASE_REQUEST_BODY));
  uint32_t mode = body ? x->mode : PXG_BODY_SKIP;
  if (BUG("skip-is-shown") && body) mode = PXG_BODY_STREAM;
  bool last = x->ended && !x->body_end_seen && !x->end_at_head;
  if (BUG("trailers-before-the-body") && last && p->s->m[d].trailers.n && !x->trailers_seen &&
      subscribed(p, phase_of(p->s, d, PXG_PHASE_REQUEST_TRAILERS))) {
    x->trailers_seen = true;
    deliver(p, d, phase_of(p->s, d, PXG_PHASE_REQUEST_TRAILERS), 0, 0, 0);
    return true;
  }
  if (x->view.len || last) {
    if (mode == PXG_BODY_STREAM) {
      deliver_body(p, d, x->view.len > p->c->max_body[d] ? PXG_EV_OVER_LIMIT : 0);
      return true;
    }
    if (mode == PXG_BODY_OBSERVE && (x->view.len || last)) {
      observe(p, d);
      return true;
    }
    if (x->view.len) {
      pass_all(p, d);
      return true;
    }
  }
  if (!x->ended || x->end_out) return false;
  uint32_t t = phase_of(p->s, d, PXG_PHASE_REQUEST_TRAILERS);
  bool skip_trailers = BUG("trailers-only-with-a-body-mode") && mode == PXG_BODY_SKIP;
  if (!p->s->l4 && p->s->m[d].trailers.n && !x->tunnel && subscribed(p, t) && !x->trailers_seen && !skip_trailers) {
    x->trailers_seen = true;
    deliver(p, d, t, BUG("end-stream-missing-at-trailers") ? 0 : PXG_EV_END_STREAM, 0, 0);
    return true;
  }
  pass_end(p, d);
  return true;
}

static bool step_bypass(place *p, int d) {
  struct dir *x = &p->d[d];
  if (x->head_in && !x->head_out) {
    pass_headers(p, d);
  } else if (x->view.len && x->head_out) {
    to_next_bytes(p, d, &x->view, x->view.len);
  } else if (x->ended && x->head_out && !x->end_out) {
    pass_end(p, d);
  } else {
    return false;
  }
  return true;
}

bool node_step(place *p, int d) {
  if (d == RSP && p->skip_response) return false;
  if (p->again && d == REQ) {
    p->again = false;
    deliver(p, -1, PXG_PHASE_REQUEST_HEADERS, 0, 0, 0);
    return true;
  }
  switch (p->d[d].state) {
  case S_WAIT: return step_wait(p, d);
  case S_HOLD: return step_hold(p, d);
  case S_FLOW: return step_flow(p, d);
  case S_BYPASS: return step_bypass(p, d);
  case S_PEND: {
    struct dir *x = &p->d[d];
    if (!BUG("bytes-before-l4-open") || !p->s->l4 || d == RSP || (x->head_out && !x->view.len)) return false;
    if (!x->head_out) pass_headers(p, d);
    to_next_bytes(p, d, &x->view, x->view.len);
    return true;
  }
  case S_DONE:
    if (BUG("empty-body-event") && p->d[d].end_at_head && p->d[d].mode == PXG_BODY_STREAM && !p->d[d].trailers_seen) {
      p->d[d].trailers_seen = true;
      deliver(p, d, phase_of(p->s, d, PXG_PHASE_REQUEST_BODY), PXG_EV_BODY_END, 0, 0);
    }
    if (BUG("delivered-after-the-end") && p->d[d].mode == PXG_BODY_STREAM && p->d[d].body_end_seen &&
        !p->d[d].trailers_seen && d == RSP && !p->s->l4 && !p->d[d].tunnel) {
      p->d[d].trailers_seen = true;
      deliver(p, d, PXG_PHASE_RESPONSE_BODY, PXG_EV_BODY_END, 0, 0);
    }
    return false;
  default: return false;
  }
}

/* After an upgrade: 7.8. Both directions start again, as bytes. */
void tunnel_start(stream *s) {
  s->tunnel_due = false;
  if (s->up) s->up->shut_when_drained = s->up->out_shut = false, s->up->kick = true;
  if (s->client) s->client->tunnel = s->client->kick = true;
  for (int d = 0; d < 2; d++) {
    s->over[d] = false;
    s->in_done[d] = false;
    for (int i = 0; i < s->n; i++) {
      place *p = &s->places[i];
      struct dir *x = &p->d[d];
      if (x->state == S_CUT || p->failed) {
        if (p->failed && x->state == S_DONE) x->state = S_BYPASS;
        x->ended = x->end_out = false;
        continue;
      }
      x->state = x->state == S_BYPASS ? S_BYPASS : S_FLOW;
      x->tunnel = true;
      x->ended = x->end_out = x->body_end_seen = x->end_at_head = false;
      x->head_out = true;
      x->room = -1;
      x->offset = 0;
      bool shown = (p->c->flags & PXG_CFG_UPGRADE_BODY) || BUG("tunnel-always-shown");
      if (!shown || (x->mode != PXG_BODY_STREAM && x->mode != PXG_BODY_OBSERVE)) x->mode = PXG_BODY_SKIP;
    }
  }
}
