/* SPDX-License-Identifier: Apache-2.0 */

/* What a result does: judged by 5.4 and 7.11, applied, or a failure (spec/14-errors). */

#include "minihost.h"

bool can_reply(const place *p) {
  const stream *s = p->s;
  if (BUG("second-reply") && p->replied) return !s->dead && !s->m[RSP].sent;
  return !s->l4 && !s->dead && !s->m[RSP].sent && !p->d[RSP].head_out && p->d[RSP].state != S_CUT && !p->replied;
}

/* ---- failures ---------------------------------------------------------------------------------------------------- */

static bool peer_harmless(const place *p, int d) {
  const struct dir *x = &p->d[d];
  bool begun = x->head_in || p->s->l4;
  bool passing = (x->mode == PXG_BODY_SKIP || x->mode == PXG_BODY_OBSERVE) && x->head_out;
  return !x->changed || !begun || x->state == S_DONE || passing;
}

static bool harmless(const place *p, int dir) {
  if (BUG("open-even-when-changed")) return !p->open;
  if (p->replied || p->open) return false;
  if (dir < 0) return peer_harmless(p, REQ) && peer_harmless(p, RSP);
  return !p->d[dir].changed && (peer_harmless(p, !dir) || BUG("peer-not-judged"));
}

static void bypass(place *p) {
  p->c->stats->bypassed++;
  for (int d = 0; d < 2; d++) {
    struct dir *x = &p->d[d];
    if (BUG("peer-not-bypassed") && x->state == S_HOLD) continue;
    if (x->state != S_DONE && x->state != S_CUT) x->state = S_BYPASS;
  }
}

static void count(place *p, uint32_t phase, enum reason why) {
  if (!BUG("failures-uncounted")) p->c->stats->failures[BUG("every-reason-is-error") ? R_ERROR : why]++;
  if (phase && why != R_CAP) p->c->stats->errors[phase]++;
  if (phase && why == R_PANIC) p->c->stats->panics[phase]++;
}

void fail(place *p, int dir, uint32_t phase, enum reason why, const char *text) {
  stream *s = p->s;
  count(p, phase, why);
  if (!BUG("failure-unsaid"))
    say(PXG_LOG_WARN, "guest=%s filter=%s config=%s phase=%s stream=%llu reason=%s: %s", p->c->lib->name, p->c->filter,
        p->c->instance, phase_name(phase), (unsigned long long)s->id, reason_names[why], text ? text : "");
  if (phase == PXG_PHASE_LOG || phase == PXG_PHASE_L4_CLOSE) return;
  p->failed = !BUG("calls-after-a-failure");
  if (!BUG("handle-outlives-a-failure")) handle_retire(p->handle);
  uint64_t cancelled[2] = {0};
  for (int d = 0; d < 2; d++) {
    struct dir *x = &p->d[d];
    if (x->state != S_PEND || !x->token) continue;
    unpend(p);
    if (token_retire(x->token)) cancelled[d] = x->token;
    x->token = 0;
    x->state = S_HOLD;
  }
  if (!BUG("handle-outlives-a-failure")) effects_discard(p);
  for (int d = 0; d < 2; d++)
    if (cancelled[d] && !BUG("no-cancel-at-the-deadline")) call_cancel(p, cancelled[d]);
  if (BUG("failure-spreads"))
    for (stream *o = s->w->streams, *next; o; o = next) {
      next = o->next;
      if (o != s && !o->finished && !o->running) stream_reset(o, PXG_END_ERROR);
    }
  if (p->open && BUG("open-reply-ended-by-failure")) return reply_end(p);
  if (p->open) return stream_reset(s, PXG_END_ERROR);
  if (p->c->spec->open != BUG("open-by-default") && harmless(p, dir)) return bypass(p);
  if (BUG("closed-means-open")) return bypass(p);
  if (can_reply(p)) {
    char *details = zalloc(strlen(p->c->instance) + 16);
    sprintf(details, "%s.%s", p->c->instance, reason_names[why]);
    if (BUG("error-text-to-the-client") && text) {
      free(details);
      details = clean_text(text, strlen(text));
    }
    stream_why(s, PXG_END_ERROR);
    return make_local(s, p, 500, details);
  }
  stream_reset(s, PXG_END_ERROR);
}

static enum reason reason_of(int32_t status) { return status == PXG_E_LIMIT ? R_LIMIT : R_INVALID; }

/* ---- steps 2 and 3 of 7.11 --------------------------------------------------------------------------------------- */

static uint64_t body_bit(const stream *s, int d) {
  if (s->l4) return PXG_PHASE_BIT(d ? PXG_PHASE_L4_UPSTREAM : PXG_PHASE_L4_DOWNSTREAM);
  return PXG_PHASE_BIT(d ? PXG_PHASE_RESPONSE_BODY : PXG_PHASE_REQUEST_BODY);
}

static void set_mode(place *p, int d, uint32_t mode, bool over_limit, decision *dec) {
  struct dir *x = &p->d[d];
  if (mode == PXG_BODY_UNSET || mode == x->mode) return;
  if (p->s->l4) return refuse(dec, PXG_E_ARG, "body_mode: found on a connection");
  if (!BUG("any-mode-change")) {
    bool later = ((x->mode == PXG_BODY_STREAM || x->mode == PXG_BODY_OBSERVE) && mode == PXG_BODY_SKIP) ||
                 (x->mode == PXG_BODY_WHOLE && over_limit && (mode == PXG_BODY_STREAM || mode == PXG_BODY_SKIP));
    if (x->modes_final || x->head_out) {
      if (!later)
        return refuse(dec, PXG_E_ARG, "body_mode[%d]: found a change from %u to %u that comes too late [PXG-BODY-015]",
                      d, x->mode, mode);
    }
    if (mode != PXG_BODY_SKIP && !(p->subscribe & body_bit(p->s, d)))
      return refuse(dec, PXG_E_ARG, "body_mode[%d]: found %u without its phase subscribed [PXG-BODY-015]", d, mode);
  }
  x->mode = mode;
  for (int i = 0; BUG("mode-of-the-first-place") && i < p->s->n; i++) p->s->places[i].d[d].mode = mode;
}

static void take_settings(place *p, int dir, uint32_t phase, uint32_t flags, decision *d) {
  if ((d->unsubscribe & ~p->subscribe) && BUG("unsubscribe-of-others-refused"))
    return refuse(d, PXG_E_ARG, "unsubscribe: found phases that are not subscribed");
  if (d->unsubscribe && !BUG("unsubscribe-ignored")) {
    p->subscribe &= ~d->unsubscribe;
    place_sync(p);
    for (int k = 0; k < 2; k++)
      if (!(p->subscribe & body_bit(p->s, k)) && !p->s->l4)
        p->d[k].mode = PXG_BODY_SKIP;
      else if (!(p->subscribe & body_bit(p->s, k)))
        p->d[k].mode = PXG_BODY_SKIP;
  }
  for (int k = 0; k < 2; k++) set_mode(p, k, d->mode[k], k == dir && (flags & PXG_EV_OVER_LIMIT), d);
  if (d->flags & PXG_RES_RESIZES) {
    bool held = dir >= 0 && (p->d[dir].held || is_headers_phase(phase)) && !p->s->l4;
    if (held) {
      p->d[dir].resizes = true;
    } else {
      refuse(d, PXG_E_ARG, "RESIZES: found where the headers are not held");
    }
  }
  if (dir >= 0 && is_headers_phase(phase)) p->d[dir].modes_final = true;
}

/* Whether the action is legal; a late reply is. */
static void judge_action(place *p, int dir, uint32_t phase, uint32_t flags, decision *d) {
  uint32_t a = d->action;
  bool end = phase == PXG_PHASE_LOG || phase == PXG_PHASE_L4_CLOSE;
  if (a == PXG_ACT_UNSET || a > PXG_ACT_ERROR) {
    if (!BUG("unset-is-continue")) refuse(d, PXG_E_ARG, "action: found %u, expected one of the six [PXG-ACT-001]", a);
    d->action = PXG_ACT_CONTINUE;
    return;
  }
  if (a == PXG_ACT_CONTINUE || a == PXG_ACT_ERROR) return;
  if (end && BUG("log-answer-is-obeyed")) return;
  if (end)
    return refuse(d, PXG_E_STATE, "action: found %u in %s, expected CONTINUE [PXG-ACT-009]", a, phase_name(phase));
  if (a == PXG_ACT_RESET) return;
  if (a == PXG_ACT_PENDING) return refuse(d, PXG_E_STATE, "PENDING: found where it is not legal [PXG-ACT-006]");
  bool observed = dir >= 0 && is_observing(&p->d[dir]);
  if (a == PXG_ACT_REPLY) {
    if (p->s->l4 || observed) refuse(d, PXG_E_STATE, "REPLY: found where it is not legal");
    if (p->replied && !BUG("second-reply")) refuse(d, PXG_E_STATE, "REPLY: found a second one [PXG-RPL-001]");
    return;
  }
  if (BUG("more-anywhere") && dir >= 0) return;
  bool mode =
      dir >= 0 && (p->d[dir].mode == PXG_BODY_STREAM || (is_headers_phase(phase) && p->d[dir].mode == PXG_BODY_WHOLE));
  if (BUG("more-over-the-limit") && (flags & PXG_EV_OVER_LIMIT) && !(flags & PXG_EV_BODY_END)) return;
  bool here = (is_headers_phase(phase) && phase != PXG_PHASE_L4_OPEN) || is_body_phase(phase);
  if (!mode || !here || observed || (flags & (PXG_EV_END_STREAM | PXG_EV_BODY_END)) || p->d[dir].tunnel)
    refuse(d, PXG_E_STATE, "MORE: found in %s, where it is not legal [PXG-ACT-003]", phase_name(phase));
}

/* ---- steps 4 and 5 ----------------------------------------------------------------------------------------------- */

/* An exact length, or none: the headers leave after this. */
static void frame_whole(place *p, int d, uint64_t len) {
  stream *s = p->s;
  message *m = &s->m[d];
  bool had = fields_get(&m->head, "content-length") != NULL;
  const char *status = d == RSP ? fields_get(&m->head, ":status") : NULL;
  if (d == RSP && (s->head_method || (status && (!strcmp(status, "204") || !strcmp(status, "304"))))) return;
  p->d[d].end_at_head = !len && !m->trailers.n;
  char text[24];
  snprintf(text, sizeof text, "%llu",
           (unsigned long long)(BUG("length-of-the-original") && had
                                    ? strtoull(fields_get(&m->head, "content-length"), NULL, 10)
                                    : len));
  if (m->trailers.n && !(d == RSP && BUG("added-trailers-keep-the-length"))) {
    fields_delete(&m->head, "content-length", 14);
  } else if (len || had || d == RSP) {
    fields_put(&m->head, "content-length", text);
  }
}

/* `kept`: of the event's view. What came while it was PENDING counts as more. */
static void take_more(place *p, int dir, uint64_t kept, decision *d) {
  struct dir *x = &p->d[dir];
  uint64_t least = kept / 8 > 1024 ? kept / 8 : 1024;
  x->kept = BUG("more-forgets-what-came") ? x->view.len : kept;
  x->need = x->kept + (d->more_bytes ? d->more_bytes : BUG("more-at-every-byte") ? 1 : least);
  if (BUG("more-bytes-ignored") && d->more_bytes) x->need = UINT64_MAX;
  x->state = S_HOLD;
  if (!x->hold_since) x->hold_since = now_ns();
  stream_later(p->s, x->hold_since + p->c->spec->hold_span_ms * 1000000);
}

static void go_on(place *p, int dir, uint32_t phase, uint32_t flags, uint64_t view, decision *d) {
  stream *s = p->s;
  struct dir *x = &p->d[dir];
  bytes out = {0};
  uint64_t cursor = 0;
  bool whole = flags & PXG_EV_WHOLE_BODY, observed = is_observing(x);
  bool no_ops_with_more = BUG("operations-of-more-delayed") && d->action == PXG_ACT_MORE;
  if (!no_ops_with_more) ops_apply(p, dir, phase, view, d, &out, &cursor);
  if (BUG("continue-adds-a-field") && is_headers_phase(phase) && !s->l4) fields_put(&s->m[dir].head, "x-unasked", "1");
  if (s->m[dir].trailers.n && !s->m[dir].sent && !x->end_at_head && (flags & PXG_EV_BODY_END))
    fields_delete(&s->m[dir].head, "content-length", 14);
  x->offset += observed ? 0 : cursor;
  if (d->action == PXG_ACT_MORE && !(is_headers_phase(phase) && x->mode == PXG_BODY_WHOLE)) {
    if (BUG("more-passes-the-headers") && x->held) pass_headers(p, dir);
    if (x->head_out) to_next_bytes(p, dir, &out, out.len);
    bytes_free(&out);
    if (x->mode == PXG_BODY_STREAM || BUG("more-over-the-limit")) return take_more(p, dir, view - cursor, d);
  }
  if (is_headers_phase(phase) && x->mode == PXG_BODY_WHOLE && !x->end_at_head && !s->l4) {
    bytes_free(&out);
    x->state = S_HOLD;
    if (!x->hold_since) x->hold_since = now_ns();
    stream_later(s, x->hold_since + p->c->spec->hold_span_ms * 1000000);
    if (BUG("whole-passes-the-headers")) { pass_headers(p, dir); }
    return;
  }
  uint64_t rest = view - cursor < x->view.len ? view - cursor : x->view.len;
  if (!observed) {
    if (BUG("view-passed-twice") && rest)
      bytes_copy(&out, x->view.at[x->view.first].ptr, x->view.at[x->view.first].len);
    bytes_move(&out, &x->view, rest);
    x->offset += rest;
  }
  bool streams = (flags & PXG_EV_OVER_LIMIT) && x->mode == PXG_BODY_WHOLE;
  /* Before the headers leave: a stream is bound by the length that they name. */
  if (streams) x->mode = PXG_BODY_STREAM;
  if (x->held) {
    if (whole) frame_whole(p, dir, out.len);
    x->state = S_FLOW;
    pass_headers(p, dir);
  }
  if (x->state == S_PEND || x->state == S_HOLD || x->state == S_WAIT) x->state = S_FLOW;
  x->hold_since = 0;
  x->kept = x->need = 0;
  if (s->dead) return bytes_free(&out);
  to_next_bytes(p, dir, &out, out.len);
  bytes_free(&out);
  if ((flags & PXG_EV_END_STREAM) && !s->dead && x->state == S_FLOW) pass_end(p, dir);
}

/* A mutant. */
static void send_behind(client *c, reply *r) {
  char head[64];
  int n = snprintf(head, sizeof head, "HTTP/1.1 %u \r\ncontent-length: %llu\r\n\r\n", r->status,
                   (unsigned long long)r->body.len);
  bytes_copy(&c->out, head, (size_t)n);
  bytes_move(&c->out, &r->body, r->body.len);
  client_flush(c);
}

static void reply_or_late(place *p, decision *d) {
  stream *s = p->s;
  ops_effects(p, d);
  if (!can_reply(p)) {
    p->c->stats->late += !BUG("late-reply-blamed");
    if (BUG("late-reply-blamed")) count(p, 0, R_INVALID);
    if (BUG("late-reply-sent") && s->client) send_behind(s->client, d->reply);
    return stream_reset(s, PXG_END_ERROR);
  }
  char *given = d->reply->details;
  char *details = zalloc(strlen(p->c->instance) + (given ? strlen(given) : 0) + 16);
  sprintf(details, "%s.%s", p->c->instance, given && *given ? given : "reply");
  make_reply(p, d->reply, details);
}

void take_result(place *p, int dir, uint32_t phase, uint32_t flags, uint64_t view, decision *d, enum source by) {
  stream *s = p->s;
  struct dir *x = dir >= 0 ? &p->d[dir] : NULL;
  if (x && x->state == S_PEND) x->state = S_HOLD;
  if (by == BY_EVENT) decision_check(d, by, p->c, phase, flags);
  if (!d->status && !BUG("settings-after-the-action")) take_settings(p, dir, phase, flags, d);
  if (!d->status || by == BY_EVENT) judge_action(p, dir, phase, flags, d);
  if (BUG("settings-after-the-action") && !d->status) take_settings(p, dir, phase, flags, d);
  if (!d->status && d->action != PXG_ACT_ERROR) ops_judge(p, dir, phase, flags, view, d);
  if (!d->status && d->action == PXG_ACT_MORE && (flags & PXG_EV_OVER_LIMIT) && x && x->mode == PXG_BODY_WHOLE &&
      !BUG("more-over-the-limit"))
    refuse(d, PXG_E_STATE, "MORE: found at OVER_LIMIT in WHOLE [PXG-BODY-014]");
  if (d->status) return fail(p, dir, phase, reason_of(d->status), d->why);
  if (phase == PXG_PHASE_LOG || phase == PXG_PHASE_L4_CLOSE) {
    ops_effects(p, d);
    if (d->action == PXG_ACT_ERROR) fail(p, dir, phase, R_ERROR, d->error);
    return;
  }
  switch (d->action) {
  case PXG_ACT_ERROR: {
    bool panic = d->error && !strncmp(d->error, "panic: ", 7);
    ops_effects(p, d);
    return fail(p, dir, phase, panic ? R_PANIC : R_ERROR, d->error);
  }
  case PXG_ACT_RESET: ops_effects(p, d); return stream_reset(s, PXG_END_ERROR);
  case PXG_ACT_REPLY: return reply_or_late(p, d);
  default: break;
  }
  if (dir >= 0) return go_on(p, dir, phase, flags, view, d);
  bytes none = {0};
  uint64_t cursor = 0;
  ops_apply(p, -1, phase, 0, d, &none, &cursor);
  bytes_free(&none);
}

void take_apply(place *p, decision *d) {
  bytes none = {0};
  uint64_t cursor = 0;
  if (d->action == PXG_ACT_REPLY && p->replied && !BUG("second-reply"))
    refuse(d, PXG_E_STATE, "REPLY: found a second one [PXG-RPL-001]");
  if (!d->status) ops_judge(p, -1, 0, 0, 0, d);
  if (d->status) return fail(p, -1, 0, reason_of(d->status), d->why);
  if (d->action == PXG_ACT_REPLY) return reply_or_late(p, d);
  if (d->action == PXG_ACT_RESET) {
    ops_effects(p, d);
    return stream_reset(p->s, PXG_END_ERROR);
  }
  ops_apply(p, -1, 0, 0, d, &none, &cursor);
  bytes_free(&none);
}
