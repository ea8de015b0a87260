/* SPDX-License-Identifier: Apache-2.0 */

/* Replies of guests and the answers to their failures, whole and streamed (spec/09-replies). */

#include <stdio.h>
#include <stdlib.h>

#include "pxg_internal.h"

/* The directions that a reply at place `at` cuts (5.6), and what the guests towards the client see of it. */
static void cut_for(pxg_stream *s, int at, uint64_t (*tokens)[2]) {
  for (int i = 0; i < s->n; i++) {
    pxg_place *p = &s->places[i];
    bool orphan = i > at && (p->c->flags & PXG_CFG_ORPHAN) && !p->failed && !p->d[RSP].head_in;
    tokens[i][REQ] = pxg_cut(p, REQ);
    p->open = false;
    if (i < at && !pxg_has(p->c->features, PXG_F_REPLY_REFILTER)) p->skip_response = true;
    if (i < at || orphan) continue;
    tokens[i][RSP] = pxg_cut(p, RSP);
    p->skip_response = true;
  }
  pxg_bytes_free(&s->out[REQ].bytes);
  s->out[REQ].head = s->out[REQ].head_taken;
  s->out[REQ].end = s->out[REQ].end_taken;
}

/* Places the response where it starts; after this nothing of the guest's memory is read any more. */
static void begin(pxg_place *p, const char *details, bool ends) {
  pxg_stream *s = p->s;
  uint64_t tokens[PXG_MAX_PLACES][2] = {{0}};
  size_t len = strlen(p->c->instance) + strlen(details) + 2;
  pxg_why(s, PXG_END_REPLIED);
  free(s->details);
  s->details = malloc(len);
  if (s->details) snprintf(s->details, len, "%s.%s", p->c->instance, details);
  if (!s->details) s->no_memory = true;
  cut_for(s, p->index, tokens);
  pxg_bytes_free(&s->out[RSP].bytes);
  s->began[RSP] = s->replied = s->local = s->in_done[RSP] = true;
  s->upgraded = s->eos_unknown[RSP] = false;
  for (int i = 0; i < s->n; i++)
    for (int d = 0; d < 2; d++)
      if (tokens[i][d]) pxg_call_cancel(&s->places[i], tokens[i][d]);
  if (!s->dead) pxg_enter_head(s, RSP, ends);
}

static bool starts_with(const pxg_str *s, const char *text) {
  size_t n = strlen(text);
  return s && s->len >= n && !memcmp(s->ptr, text, n);
}

/* A trailers-only response. */
static bool grpc_head(pxg_place *p, const pxg_answer *r, const pxg_str *type) {
  pxg_stream *s = p->s;
  pxg_field *f = calloc(r->n_fields + 2, sizeof *f);
  if (!f) return false;
  char number[8];
  size_t n = 2;
  snprintf(number, sizeof number, "%d", r->grpc);
  f[0].name = (pxg_str){(const uint8_t *)"content-type", 12, 0};
  f[0].value = (pxg_str){type->ptr, type->len, 0};
  f[1].name = (pxg_str){(const uint8_t *)"grpc-status", 11, 0};
  f[1].value = (pxg_str){(const uint8_t *)number, (uint32_t)strlen(number), 0};
  for (size_t i = 0; i < r->n_fields; i++)
    if (!pxg_str_is(&r->fields[i].name, "content-type")) f[n++] = r->fields[i];
  bool ok = s->ops->replace(s->data, 200, f, n) && s->ops->length(s->data, RSP, -1);
  free(f);
  return ok;
}

void pxg_reply_make(pxg_place *p, pxg_answer *r, const char *details) {
  pxg_stream *s = p->s;
  pxg_view v;
  const pxg_str *type = pxg_show(s, REQ, false, &v) ? pxg_view_get(&v, "content-type") : NULL;
  bool grpc = (r->flags & PXG_REPLY_GRPC) && starts_with(type, "application/grpc");
  bool none = !grpc && (r->status == 204 || r->status == 304);
  bool empty = grpc || none || (s->flags & PXG_STREAM_HEAD_METHOD);
  bool open = (r->flags & PXG_REPLY_OPEN) && !empty;
  bool can_trail = pxg_has(p->c->features, PXG_F_TRAILERS_OUT_RESPONSE) && s->ops->trailers &&
                   (s->flags & PXG_STREAM_RECEIVES_TRAILERS);
  bool trail = r->n_trailers && can_trail && !empty, ok;
  if (!can_trail && !grpc)
    for (size_t i = 0; i < r->n_trailers; i++) pxg_count(&p->c->counters->skipped);
  s->trailers[RSP] = false;
  if (grpc) {
    ok = grpc_head(p, r, type);
  } else {
    bool framed = open || none || trail;
    ok = s->ops->replace(s->data, r->status, r->fields, r->n_fields) &&
         s->ops->length(s->data, RSP, framed ? -1 : (int64_t)r->body.len);
    if (ok && trail) ok = s->ops->trailers(s->data, r->trailers, r->n_trailers);
  }
  if (!ok) s->no_memory = true;
  s->trailers[RSP] = trail && !open;
  if (empty) pxg_bytes_free(&r->body);
  p->replied = true;
  begin(p, details, !open && !r->body.len && !trail);
  if (s->dead) return;
  p->open = open;
  p->open_since = s->w->now;
  if (r->flags & PXG_REPLY_FLUSH) s->out[RSP].flush = true;
  pxg_enter_bytes(s, RSP, &r->body);
  if (!open) pxg_enter_end(s, RSP);
}

void pxg_reply_local(pxg_place *p, uint32_t status, const char *reason) {
  pxg_stream *s = p->s;
  s->trailers[RSP] = false;
  if (!s->ops->replace(s->data, status, NULL, 0) || !s->ops->length(s->data, RSP, 0)) s->no_memory = true;
  begin(p, reason, true);
  if (!s->dead) pxg_enter_end(s, RSP);
}

/* ---- streamed replies -------------------------------------------------------------------------------------------- */

/* An open reply that gets no write withholds the rest of it. */
uint64_t pxg_reply_idle(const pxg_place *p) { return p->open_since + p->c->policy.hold_limit_ns; }

/* BODY_INJECT: behind what of a forwarded response has passed this place. */
static bool may_inject(const pxg_place *p, const pxg_todo *o) {
  const pxg_dir *x = &p->d[RSP];
  return pxg_has(p->c->features, PXG_F_BODY_INJECT) && x->head_out && !x->end_out && x->state != S_CUT &&
         !x->end_at_head && !p->s->upgraded && !(o->flags & PXG_OPF_END) && !p->s->local && x->room < 0;
}

void pxg_reply_write(pxg_place *p, pxg_todo *o) {
  pxg_stream *s = p->s;
  pxg_bytes b = {0};
  pxg_written(p, o->val.len);
  bool inject = !p->open && may_inject(p, o);
  if (!p->open && !inject) return pxg_count(&p->c->counters->skipped);
  if (!pxg_bytes_add(&b, o->val)) s->no_memory = true;
  o->val = (pxg_slice){0};
  if (inject) p->d[RSP].changed = true;
  p->open_since = s->w->now;
  pxg_pass_bytes(p, RSP, &b, b.len);
  pxg_bytes_free(&b);
  if (inject || !(o->flags & PXG_OPF_END)) return;
  p->open = false;
  pxg_view trailers;
  s->trailers[RSP] = s->ops->trailers && pxg_show(s, RSP, true, &trailers) && trailers.n;
  pxg_place *to = pxg_next_place(p, RSP);
  if (to)
    to->d[RSP].ended = true;
  else
    s->out[RSP].end = true;
}

void pxg_reply_room(pxg_stream *s) {
  uint64_t waiting = s->waiting + s->out[RSP].bytes.len;
  for (int i = 0; i < s->n; i++) waiting += s->places[i].d[RSP].view.len;
  for (int i = 0; i < s->n; i++) {
    pxg_place *p = &s->places[i];
    if ((p->open || p->wrote) && pxg_has_room(p, waiting)) {
      pxg_effect_wake(p, PXG_EV_WRITABLE);
      s->again = true;
    }
  }
}
