/* SPDX-License-Identifier: Apache-2.0 */

/* The machine of one direction at one place (spec/07-bodies, 7.11), and what passes from place to place. */

#include "pxg_internal.h"

static pxg_place *from(pxg_stream *s, int d, int i) {
  for (i += d == REQ ? 1 : -1; i >= 0 && i < s->n; i += d == REQ ? 1 : -1)
    if (d == REQ || !s->places[i].skip_response) return &s->places[i];
  return NULL;
}

pxg_place *pxg_next_place(const pxg_place *p, int d) { return from(p->s, d, p->index); }

static pxg_place *entry(pxg_stream *s, int d) { return from(s, d, d == REQ ? -1 : s->n); }

static void head_into(pxg_stream *s, pxg_place *to, int d, bool ends) {
  if (!to) {
    s->out[d].head = true;
    s->out[d].head_ends = ends;
    if (d == REQ) s->route_final = true;
    return;
  }
  pxg_dir *x = &to->d[d];
  x->head_in = true;
  x->end_at_head = ends;
  if (ends) x->ended = true;
  if (d == REQ) to->reached = true;
}

static void bytes_into(pxg_stream *s, pxg_place *to, int d, pxg_bytes *b, uint64_t n) {
  if (to && to->d[d].state == S_CUT) return pxg_bytes_drop(b, n);
  if (!pxg_bytes_move(to ? &to->d[d].view : &s->out[d].bytes, b, n)) s->no_memory = true;
}

static void end_into(pxg_stream *s, pxg_place *to, int d) {
  if (to)
    to->d[d].ended = true;
  else
    s->out[d].end = true;
}

void pxg_enter_head(pxg_stream *s, int d, bool ends) { head_into(s, entry(s, d), d, ends); }
void pxg_enter_bytes(pxg_stream *s, int d, pxg_bytes *b) { bytes_into(s, entry(s, d), d, b, b->len); }
void pxg_enter_end(pxg_stream *s, int d) { end_into(s, entry(s, d), d); }

void pxg_pass_bytes(pxg_place *p, int d, pxg_bytes *b, uint64_t n) {
  pxg_dir *x = &p->d[d];
  if (!n) return;
  if (x->room >= 0) x->room = (uint64_t)x->room < n ? 0 : x->room - (int64_t)n;
  bytes_into(p->s, pxg_next_place(p, d), d, b, n);
}

void pxg_pass_headers(pxg_place *p, int d) {
  pxg_stream *s = p->s;
  pxg_dir *x = &p->d[d];
  x->held = false;
  x->head_out = true;
  x->room = -1;
  if (x->state == S_BYPASS) x->resizes = false;
  bool bodyless = d == RSP && ((s->flags & PXG_STREAM_HEAD_METHOD) || x->end_at_head);
  if (x->mode == PXG_BODY_STREAM && !bodyless && x->state != S_BYPASS) {
    pxg_view v;
    int64_t length = pxg_show(s, d, false, &v) ? pxg_view_length(&v) : -1;
    if (length >= 0 && x->resizes) {
      if (!s->ops->length(s->data, d, -1)) s->no_memory = true;
    } else {
      x->room = length;
    }
  }
  head_into(s, pxg_next_place(p, d), d, x->end_at_head);
}

void pxg_pass_end(pxg_place *p, int d) {
  pxg_dir *x = &p->d[d];
  if (x->end_out) return;
  if (x->room > 0 && (pxg_bound(x) || (x->state != S_BYPASS && !p->failed))) {
    pxg_failure(p, d, 0, PXG_R_INVALID, "the body ended short of content-length [PXG-HDR-007]");
    return;
  }
  x->end_out = true;
  if (x->state != S_CUT) x->state = S_DONE;
  end_into(p->s, pxg_next_place(p, d), d);
}

/* What passes unseen behind a changed part. */
static bool past_the_end(pxg_place *p, int d) {
  const pxg_dir *x = &p->d[d];
  if (!x->head_out || !pxg_bound(x) || x->view.len <= (uint64_t)x->room) return false;
  pxg_failure(p, d, 0, PXG_R_INVALID, "the body goes on behind the end of content-length [PXG-HDR-007]");
  return true;
}

static void pass_all(pxg_place *p, int d) {
  pxg_dir *x = &p->d[d];
  uint64_t n = x->view.len;
  if (x->held || !x->head_out) pxg_pass_headers(p, d);
  x->offset += n;
  pxg_pass_bytes(p, d, &x->view, n);
}

/* ---- cutting ----------------------------------------------------------------------------------------------------- */

void pxg_unpend(pxg_place *p) { pxg_pending_ends(p->s->w, p->c); }

uint64_t pxg_cut(pxg_place *p, int d) {
  pxg_dir *x = &p->d[d];
  uint64_t token = 0;
  if (x->state == S_DONE || x->state == S_CUT) return 0;
  if (x->state == S_PEND && x->token) {
    pxg_unpend(p);
    if (pxg_token_retire(x->token)) token = x->token;
  }
  x->token = 0;
  x->withheld = false;
  x->state = S_CUT;
  pxg_bytes_free(&x->view);
  return token;
}

/* ---- the machine ------------------------------------------------------------------------------------------------- */

bool pxg_parked(const pxg_place *p, int d) { return p->d[!d].state == S_PEND && !(p->c->flags & PXG_CFG_DUPLEX); }

static uint32_t ending(const pxg_place *p, int d) {
  if (!p->d[d].ended) return 0;
  return PXG_EV_BODY_END | (p->s->trailers[d] ? 0 : PXG_EV_END_STREAM);
}

static void deliver_body(pxg_place *p, int d, uint32_t flags) {
  pxg_dir *x = &p->d[d];
  flags |= ending(p, d);
  if (x->ended) x->body_end_seen = true;
  if (x->held) flags |= PXG_EV_HEADERS_HELD;
  if (!pxg_bytes_limit(&x->view, PXG_MOST_CHUNKS)) {
    p->s->no_memory = true;
    return;
  }
  pxg_deliver(p, d, pxg_phase(d, PXG_PHASE_REQUEST_BODY), flags, x->view.len, 0);
}

static void withhold(pxg_place *p, int d) {
  pxg_dir *x = &p->d[d];
  if (!x->withheld) x->hold_since = p->s->w->now, x->withheld = true;
}

static bool step_wait(pxg_place *p, int d) {
  pxg_dir *x = &p->d[d];
  uint32_t h = pxg_phase(d, PXG_PHASE_REQUEST_HEADERS);
  if (!x->head_in) return false;
  if (pxg_subscribed(p, h)) {
    if (pxg_parked(p, d)) return false;
    x->held = true; /* D01 */
    uint32_t flags = x->end_at_head ? PXG_EV_END_STREAM : p->s->eos_unknown[d] ? PXG_EV_EOS_UNKNOWN : 0;
    if (x->end_at_head) x->body_end_seen = true;
    pxg_deliver(p, d, h, flags, 0, 0);
    return true;
  }
  if (x->mode == PXG_BODY_WHOLE) { /* D02 */
    x->held = true;
    x->state = S_HOLD;
    x->last_event = p->s->w->now;
    withhold(p, d);
    return true;
  }
  if (pxg_parked(p, d)) return false;
  x->state = S_FLOW; /* D03 */
  pxg_pass_headers(p, d);
  return true;
}

static bool step_hold(pxg_place *p, int d) {
  pxg_dir *x = &p->d[d];
  bool whole_no_more = x->mode == PXG_BODY_STREAM && !x->need;
  if (whole_no_more || x->mode == PXG_BODY_SKIP || x->mode == PXG_BODY_OBSERVE) { /* D11 */
    x->state = S_FLOW;
    x->withheld = false;
    if (whole_no_more)
      pxg_pass_headers(p, d);
    else
      pass_all(p, d);
    return true;
  }
  if (pxg_parked(p, d)) return false;
  /* D09 */
  if (x->view.len > p->c->max_body[d]) {
    deliver_body(p, d, PXG_EV_OVER_LIMIT);
    return true;
  }
  if (x->mode == PXG_BODY_WHOLE) {
    if (!x->ended) return false;
    x->trailers_seen = true;
    deliver_body(p, d, PXG_EV_WHOLE_BODY | PXG_EV_END_STREAM);
    return true;
  }
  bool grown = x->view.len > x->kept;
  bool long_enough = p->s->w->now >= x->last_event + p->c->policy.hold_time_ns;
  if (!x->ended && x->view.len < x->need && !(grown && long_enough)) return false;
  deliver_body(p, d, 0);
  return true;
}

/* OBSERVE: what has just passed is shown; nothing waits for it. */
static void observe(pxg_place *p, int d) {
  pxg_dir *x = &p->d[d];
  pxg_bytes seen = {0};
  if (!pxg_bytes_limit(&x->view, PXG_MOST_CHUNKS) || !pxg_bytes_copy(&seen, &x->view)) {
    p->s->no_memory = true;
    return pxg_bytes_free(&seen);
  }
  uint64_t n = x->view.len;
  pxg_pass_bytes(p, d, &x->view, n);
  pxg_bytes_free(&x->view);
  x->view = seen;
  if (x->ended) x->body_end_seen = true;
  x->observing = true;
  pxg_deliver(p, d, pxg_phase(d, PXG_PHASE_REQUEST_BODY), ending(p, d), n, 0);
  x->observing = false;
  pxg_bytes_free(&x->view);
  x->offset += n;
}

static bool step_flow(pxg_place *p, int d) {
  pxg_dir *x = &p->d[d];
  if (pxg_parked(p, d)) return false;
  bool last = x->ended && !x->body_end_seen && !x->end_at_head;
  uint32_t mode = pxg_subscribed(p, pxg_phase(d, PXG_PHASE_REQUEST_BODY)) ? x->mode : PXG_BODY_SKIP;
  if (mode == PXG_BODY_STREAM && (x->view.len || last)) { /* D10 */
    deliver_body(p, d, x->view.len > p->c->max_body[d] ? PXG_EV_OVER_LIMIT : 0);
    return true;
  }
  if (mode == PXG_BODY_OBSERVE && (x->view.len || last)) {
    observe(p, d);
    return true;
  }
  if (x->view.len) { /* D12 */
    if (!past_the_end(p, d)) pass_all(p, d);
    return true;
  }
  if (!x->ended || x->end_out) return false;
  uint32_t t = pxg_phase(d, PXG_PHASE_REQUEST_TRAILERS);
  if (p->s->trailers[d] && pxg_subscribed(p, t) && !x->trailers_seen && pxg_c_has(p, d, PXG_F_TRAILERS_IN_REQUEST)) {
    x->trailers_seen = true;
    pxg_deliver(p, d, t, PXG_EV_END_STREAM, 0, 0);
    return true;
  }
  pxg_pass_end(p, d);
  return true;
}

/* D14 */
static bool step_bypass(pxg_place *p, int d) {
  pxg_dir *x = &p->d[d];
  if (x->head_in && !x->head_out) {
    pxg_pass_headers(p, d);
  } else if (x->view.len && x->head_out) {
    if (!past_the_end(p, d)) pxg_pass_bytes(p, d, &x->view, x->view.len);
  } else if (x->ended && x->head_out && !x->end_out) {
    pxg_pass_end(p, d);
  } else {
    return false;
  }
  return true;
}

bool pxg_step(pxg_place *p, int d) {
  if (d == RSP && p->skip_response) return false;
  switch (p->d[d].state) {
  case S_WAIT: return step_wait(p, d);
  case S_HOLD: return step_hold(p, d);
  case S_FLOW: return step_flow(p, d);
  case S_BYPASS: return step_bypass(p, d);
  default: return false;
  }
}
