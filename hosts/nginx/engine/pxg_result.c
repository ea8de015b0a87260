/* SPDX-License-Identifier: Apache-2.0 */

/* What a result does: judged by 5.4 and 7.11, applied, or a failure (spec/14-errors). */

#include <stdio.h>

#include "pxg_internal.h"

bool pxg_can_reply(const pxg_place *p) {
  const pxg_stream *s = p->s;
  return !s->dead && !s->out[RSP].head && !p->d[RSP].head_out && p->d[RSP].state != S_CUT && !p->replied;
}

/* ---- failures ---------------------------------------------------------------------------------------------------- */

static bool peer_harmless(const pxg_place *p, int d) {
  const pxg_dir *x = &p->d[d];
  bool passing = (x->mode == PXG_BODY_SKIP || x->mode == PXG_BODY_OBSERVE) && x->head_out;
  return !x->changed || !x->head_in || x->state == S_DONE || passing;
}

static bool harmless(const pxg_place *p, int dir) {
  if (p->replied || p->open) return false;
  if (dir < 0) return peer_harmless(p, REQ) && peer_harmless(p, RSP);
  return !p->d[dir].changed && peer_harmless(p, !dir);
}

/* D13 */
static void bypass(pxg_place *p) {
  pxg_count(&p->c->counters->bypassed);
  for (int d = 0; d < 2; d++) {
    pxg_dir *x = &p->d[d];
    x->withheld = false;
    if (x->state != S_DONE && x->state != S_CUT) x->state = S_BYPASS;
  }
}

void pxg_failure(pxg_place *p, int dir, uint32_t phase, pxg_reason why, const char *text) {
  pxg_stream *s = p->s;
  pxg_counters *k = p->c->counters;
  pxg_count(&k->failures[why]);
  if (phase && why != PXG_R_CAP) pxg_count(&k->errors[phase]);
  if (phase && why == PXG_R_PANIC) pxg_count(&k->panics[phase]);
  pxg_stream_say(s, PXG_LOG_ERROR, "guest=%s filter=%s config=%s phase=%s stream=%llu reason=%s: %s", p->c->lib->name,
                 p->c->filter, p->c->instance, phase ? pxg_phase_name(phase) : "none", (unsigned long long)s->id,
                 pxg_reason_name(why), text ? text : "");
  if (phase == PXG_PHASE_LOG) return;
  p->failed = true;
  pxg_handle_retire(s->w, p->handle);
  uint64_t cancelled[2] = {0};
  for (int d = 0; d < 2; d++) {
    pxg_dir *x = &p->d[d];
    if (x->state != S_PEND || !x->token) continue;
    pxg_unpend(p);
    if (pxg_token_retire(x->token)) cancelled[d] = x->token;
    x->token = 0;
    x->state = S_HOLD;
  }
  pxg_effects_discard(p);
  for (int d = 0; d < 2; d++)
    if (cancelled[d]) pxg_call_cancel(p, cancelled[d]);
  if (p->open) return pxg_reset(s, PXG_END_ERROR);
  if (p->c->policy.fail_open && harmless(p, dir)) return bypass(p);
  if (!pxg_can_reply(p)) return pxg_reset(s, PXG_END_ERROR);
  pxg_why(s, PXG_END_ERROR);
  pxg_reply_local(p, p->c->policy.fail_status, pxg_reason_name(why));
}

static pxg_reason reason_of(int32_t status) { return status == PXG_E_LIMIT ? PXG_R_LIMIT : PXG_R_INVALID; }

/* ---- steps 2 and 3 of 7.11 --------------------------------------------------------------------------------------- */

static const unsigned mode_features[] = {[PXG_BODY_STREAM] = PXG_F_BODY_STREAM_REQUEST,
                                         [PXG_BODY_WHOLE] = PXG_F_BODY_WHOLE_REQUEST,
                                         [PXG_BODY_OBSERVE] = PXG_F_BODY_OBSERVE_REQUEST};

static bool body_on(const pxg_place *p, int d) { return pxg_subscribed(p, pxg_phase(d, PXG_PHASE_REQUEST_BODY)); }

static void set_mode(pxg_place *p, int d, uint32_t mode, bool over_limit, pxg_decision *dec) {
  pxg_dir *x = &p->d[d];
  if (mode == PXG_BODY_UNSET || mode == x->mode) return;
  bool later = ((x->mode == PXG_BODY_STREAM || x->mode == PXG_BODY_OBSERVE) && mode == PXG_BODY_SKIP) ||
               (x->mode == PXG_BODY_WHOLE && over_limit && (mode == PXG_BODY_STREAM || mode == PXG_BODY_SKIP));
  if ((x->modes_final || x->head_out) && !later)
    return pxg_refuse(dec, PXG_E_ARG, "body_mode[%d]: found a change from %u to %u that comes too late [PXG-BODY-015]",
                      d, x->mode, mode);
  if (mode != PXG_BODY_SKIP && !body_on(p, d))
    return pxg_refuse(dec, PXG_E_ARG, "body_mode[%d]: found %u without its phase subscribed [PXG-BODY-015]", d, mode);
  if (mode != PXG_BODY_SKIP && !pxg_c_has(p, d, mode_features[mode]))
    return pxg_refuse(dec, PXG_E_UNSUPPORTED, "body_mode[%d]: found %u, expected the feature %s", d, mode,
                      pxg_feature_name(mode_features[mode] + (unsigned)d));
  x->mode = mode;
}

static void take_settings(pxg_place *p, int dir, uint32_t phase, uint32_t flags, pxg_decision *d) {
  if (d->unsubscribe) {
    p->subscribe &= ~d->unsubscribe;
    pxg_handle_subscribes(p);
    for (int k = 0; k < 2; k++)
      if (!body_on(p, k)) p->d[k].mode = PXG_BODY_SKIP;
  }
  for (int k = 0; k < 2; k++) set_mode(p, k, d->mode[k], k == dir && (flags & PXG_EV_OVER_LIMIT), d);
  if (d->flags & PXG_RES_RESIZES) {
    bool held = dir >= 0 && (p->d[dir].held || pxg_is_headers(phase));
    if (held && pxg_c_has(p, dir, PXG_F_RESIZE_REQUEST))
      p->d[dir].resizes = true;
    else
      pxg_refuse(d, PXG_E_ARG, "RESIZES: found where the headers are not held, or without the feature");
  }
  if (dir >= 0 && pxg_is_headers(phase)) p->d[dir].modes_final = true;
}

static void judge_more(pxg_place *p, int dir, uint32_t phase, uint32_t flags, pxg_decision *d) {
  uint32_t mode = dir >= 0 ? p->d[dir].mode : PXG_BODY_SKIP;
  bool headers = pxg_is_headers(phase);
  bool legal = headers ? mode == PXG_BODY_WHOLE || mode == PXG_BODY_STREAM
                       : pxg_is_body(phase) &&
                             (mode == PXG_BODY_STREAM || (mode == PXG_BODY_WHOLE && (flags & PXG_EV_OVER_LIMIT)));
  if (!legal || (flags & (PXG_EV_END_STREAM | PXG_EV_BODY_END)) || p->s->upgraded)
    return pxg_refuse(d, PXG_E_STATE, "MORE: found in %s, where it is not legal [PXG-ACT-003]", pxg_phase_name(phase));
  if (headers && mode == PXG_BODY_STREAM && !pxg_c_has(p, dir, PXG_F_HOLD_REQUEST))
    pxg_refuse(d, PXG_E_UNSUPPORTED, "MORE: expected the feature %s", pxg_feature_name(PXG_F_HOLD_REQUEST + dir));
  if (pxg_is_body(phase) && mode == PXG_BODY_WHOLE)
    pxg_refuse(d, PXG_E_STATE, "MORE: found at OVER_LIMIT in WHOLE [PXG-BODY-014]");
}

/* Whether the action is legal; a late reply is. */
static void judge_action(pxg_place *p, int dir, uint32_t phase, uint32_t flags, pxg_decision *d) {
  uint32_t a = d->action;
  bool observed = dir >= 0 && p->d[dir].observing;
  if (a == PXG_ACT_CONTINUE || a == PXG_ACT_ERROR) return;
  if (a == PXG_ACT_UNSET || a > PXG_ACT_ERROR)
    return pxg_refuse(d, PXG_E_ARG, "action: found %u, expected one of the six [PXG-ACT-001]", a);
  if (phase == PXG_PHASE_LOG)
    return pxg_refuse(d, PXG_E_STATE, "action: found %u in log, expected CONTINUE [PXG-ACT-009]", a);
  if (a == PXG_ACT_PENDING) return pxg_refuse(d, PXG_E_STATE, "PENDING: found where it is not legal [PXG-ACT-006]");
  if (a == PXG_ACT_MORE) return judge_more(p, dir, phase, flags, d);
  if (a != PXG_ACT_REPLY) return;
  if (observed) pxg_refuse(d, PXG_E_STATE, "REPLY: found in OBSERVE [PXG-BODY-007]");
  if (p->replied) pxg_refuse(d, PXG_E_STATE, "REPLY: found a second one [PXG-RPL-001]");
}

/* ---- steps 4 and 5 ----------------------------------------------------------------------------------------------- */

/* An exact length, or none: the headers leave after this. */
static void frame_whole(pxg_place *p, int d, uint64_t len) {
  pxg_stream *s = p->s;
  pxg_view v;
  if (!pxg_show(s, d, false, &v)) return;
  const pxg_str *status = d == RSP ? pxg_view_get(&v, ":status") : NULL;
  if (d == RSP && (s->flags & PXG_STREAM_HEAD_METHOD)) return;
  if (status && (pxg_str_is(status, "204") || pxg_str_is(status, "304"))) return;
  p->d[d].end_at_head = !len && !s->trailers[d];
  bool had = pxg_view_length(&v) >= 0, ok = true;
  if (s->trailers[d])
    ok = !had || s->ops->length(s->data, d, -1);
  else if (len || had || d == RSP)
    ok = s->ops->length(s->data, d, (int64_t)len);
  if (!ok) s->no_memory = true;
}

static void withhold(pxg_place *p, pxg_dir *x) {
  x->state = S_HOLD;
  if (!x->withheld) x->hold_since = p->s->w->now, x->withheld = true;
}

/* D07. `kept`: of the event's view. What came while it was PENDING counts as more. */
static void take_more(pxg_place *p, int dir, uint64_t kept, const pxg_decision *d) {
  pxg_dir *x = &p->d[dir];
  uint64_t least = kept / 8 > 1024 ? kept / 8 : 1024, more = d->more_bytes ? d->more_bytes : least;
  x->kept = kept;
  x->need = more > UINT64_MAX - kept ? UINT64_MAX : kept + more;
  withhold(p, x);
}

/* Where a guest that has seen a part of the body lets the rest pass unseen. */
static int64_t length_of(pxg_place *p, int dir) {
  pxg_view v;
  return pxg_show(p->s, dir, false, &v) ? pxg_view_length(&v) : -1;
}

static void go_on(pxg_place *p, int dir, uint32_t phase, uint32_t flags, uint64_t view, pxg_decision *d) {
  pxg_stream *s = p->s;
  pxg_dir *x = &p->d[dir];
  pxg_bytes out = {0};
  uint64_t cursor = 0;
  bool headers = pxg_is_headers(phase), observed = x->observing;
  pxg_settle_apply(p, dir, d, &out, &cursor);
  if (d->flags & PXG_RES_FLUSH) s->out[dir].flush = true;
  /* Trailers that were added are framed by chunks. */
  if (s->trailers[dir] && x->held && (flags & (PXG_EV_BODY_END | PXG_EV_WHOLE_BODY)) == PXG_EV_BODY_END)
    s->no_memory |= !s->ops->length(s->data, dir, -1);
  if (!observed) x->offset += cursor;
  if (headers && x->mode == PXG_BODY_WHOLE && !x->end_at_head) { /* D05 */
    pxg_bytes_free(&out);
    return withhold(p, x);
  }
  if (d->action == PXG_ACT_MORE) {
    if (x->head_out) pxg_pass_bytes(p, dir, &out, out.len);
    pxg_bytes_free(&out);
    return take_more(p, dir, view - cursor, d);
  }
  /* D06, D08 */
  if (!observed) {
    uint64_t rest = view - cursor < x->view.len ? view - cursor : x->view.len;
    if (!pxg_bytes_move(&out, &x->view, rest)) s->no_memory = true;
    x->offset += rest;
  }
  /* Before the headers leave: a stream is bound by the length that they name. */
  if ((flags & PXG_EV_OVER_LIMIT) && x->mode == PXG_BODY_WHOLE)
    x->mode = pxg_c_has(p, dir, PXG_F_BODY_STREAM_REQUEST) ? PXG_BODY_STREAM : PXG_BODY_SKIP;
  if (x->held) {
    if (flags & PXG_EV_WHOLE_BODY) frame_whole(p, dir, out.len);
    x->state = S_FLOW;
    pxg_pass_headers(p, dir);
    /* The rest passes unseen, and still ends where the headers say. */
    if (pxg_is_body(phase) && !(flags & PXG_EV_WHOLE_BODY) && x->mode == PXG_BODY_SKIP) x->room = length_of(p, dir);
  }
  if (x->state == S_PEND || x->state == S_HOLD || x->state == S_WAIT) x->state = S_FLOW;
  x->withheld = false;
  x->kept = x->need = 0;
  pxg_pass_bytes(p, dir, &out, out.len);
  pxg_bytes_free(&out);
  if ((flags & PXG_EV_END_STREAM) && x->state == S_FLOW) pxg_pass_end(p, dir);
}

static void reply_or_late(pxg_place *p, pxg_decision *d) {
  pxg_settle_effects(p, d);
  if (!pxg_can_reply(p)) {
    pxg_count(&p->c->counters->late_replies);
    return pxg_reset(p->s, PXG_END_ERROR);
  }
  pxg_reply_make(p, &d->reply, d->text[0] ? d->text : "reply");
}

void pxg_take_result(pxg_place *p, int dir, uint32_t phase, uint32_t flags, uint64_t view, pxg_decision *d,
                     pxg_source by) {
  pxg_dir *x = dir >= 0 ? &p->d[dir] : NULL;
  if (x && x->state == S_PEND) x->state = S_HOLD;
  if (by == BY_EVENT) pxg_judge(d, by, p->c, phase, flags);
  if (!d->status) take_settings(p, dir, phase, flags, d);
  if (!d->status) judge_action(p, dir, phase, flags, d);
  if (!d->status && d->action != PXG_ACT_ERROR) pxg_settle_judge(p, dir, phase, flags, view, d);
  if (p->s->no_memory && dir >= 0) return; /* Nothing was judged by a view that could not be had. */
  if (d->status || (d->action != PXG_ACT_CONTINUE && d->action != PXG_ACT_MORE)) pxg_keep_views(p->s, false);
  if (d->status) return pxg_failure(p, dir, phase, reason_of(d->status), d->why);
  switch (d->action) {
  case PXG_ACT_ERROR:
    pxg_settle_effects(p, d);
    return pxg_failure(p, dir, phase, strncmp(d->text, "panic: ", 7) ? PXG_R_ERROR : PXG_R_PANIC, d->text);
  case PXG_ACT_RESET: pxg_settle_effects(p, d); return pxg_reset(p->s, PXG_END_ERROR);
  case PXG_ACT_REPLY: return reply_or_late(p, d);
  default: break;
  }
  if (dir >= 0) return go_on(p, dir, phase, flags, view, d);
  if (phase == PXG_PHASE_LOG) return pxg_settle_effects(p, d);
  pxg_bytes none = {0};
  uint64_t cursor = 0;
  pxg_settle_apply(p, -1, d, &none, &cursor);
}

void pxg_take_apply(pxg_place *p, pxg_decision *d) {
  pxg_bytes none = {0};
  uint64_t cursor = 0;
  if (d->action == PXG_ACT_REPLY && p->replied) pxg_refuse(d, PXG_E_STATE, "REPLY: found a second one [PXG-RPL-001]");
  if (!d->status) pxg_settle_judge(p, -1, 0, 0, 0, d);
  if (d->status) return pxg_failure(p, -1, 0, reason_of(d->status), d->why);
  if (d->action == PXG_ACT_REPLY) return reply_or_late(p, d);
  if (d->action == PXG_ACT_RESET) {
    pxg_settle_effects(p, d);
    return pxg_reset(p->s, PXG_END_ERROR);
  }
  if (d->flags & PXG_RES_FLUSH) p->s->out[RSP].flush = true;
  pxg_settle_apply(p, -1, d, &none, &cursor);
}
