/* SPDX-License-Identifier: Apache-2.0 */

/* Replies of guests and of the host, whole and streamed (spec/09-replies). */

#include "minihost.h"

/* The directions that a reply at place `at` cuts: 5.6. */
static void cut_for(stream *s, int at) {
  uint64_t tokens[MAX_PLACES][2] = {{0}};
  for (int i = 0; i < s->n; i++) {
    place *p = &s->places[i];
    tokens[i][REQ] = BUG("request-runs-on-after-a-reply") ? 0 : cut_quietly(p, REQ);
    bool orphan =
        (p->c->flags & PXG_CFG_ORPHAN) && !p->failed && !p->d[RSP].head_in && i > at && !BUG("orphans-ignored");
    if (i < at || orphan) continue;
    if (i > at && BUG("reply-seen-upstream-of-it") && p->reached && !p->d[RSP].head_in) continue;
    if (i > at && BUG("response-without-request") && !p->reached) continue;
    if (i == at && BUG("replier-sees-its-reply")) {
      tokens[i][RSP] = cut_quietly(p, RSP);
      if (p->d[RSP].state == S_CUT) p->d[RSP].state = S_WAIT;
      continue;
    }
    tokens[i][RSP] = cut_quietly(p, RSP);
    p->skip_response = true;
  }
  for (int i = 0; i < s->n; i++)
    for (int d = 0; d < 2; d++)
      if (tokens[i][d] && !BUG("no-cancel-by-a-reply")) call_cancel(&s->places[i], tokens[i][d]);
  for (int i = 0; i < at && BUG("reply-not-refiltered"); i++) s->places[i].skip_response = true;
}

/* A message that replaces what was or would have been the response. */
static void replace(stream *s, fields *head, fields *trailers, char *details) {
  message *m = &s->m[RSP];
  fields_free(&m->head);
  fields_free(&m->trailers);
  free(m->details);
  *m = (message){.head = *head, .trailers = *trailers, .local = true, .details = details};
  *head = *trailers = (fields){0};
  s->began[RSP] = true;
  s->replied = true;
  s->upgraded = false;
  s->in_done[RSP] = true;
}

static void begin(stream *s, int at) {
  stream_why(s, PXG_END_REPLIED);
  upstream_close(s);
  cut_for(s, at);
  stream_over(s, REQ, s->in_done[REQ] ? PXG_DIREND_COMPLETE : PXG_DIREND_PROXY);
}

/* An open reply that gets no write withholds the rest of it. */
uint64_t reply_idle(const place *p) { return p->open_since + p->c->spec->hold_span_ms * 1000000; }

void make_reply(place *p, reply *r, const char *details) {
  stream *s = p->s;
  const char *type = fields_get(&s->m[REQ].head, "content-type");
  bool grpc = (r->flags & PXG_REPLY_GRPC) && type && !strncmp(type, "application/grpc", 16);
  if (BUG("grpc-for-all")) grpc = r->flags & PXG_REPLY_GRPC;
  bool open = (r->flags & PXG_REPLY_OPEN) && !grpc;
  char text[24];
  fields head = {0}, trailers = {0};
  snprintf(text, sizeof text, "%u", grpc ? 200 : r->status);
  fields_add(&head, ":status", 7, text, 3, 0);
  if (grpc) {
    fields_put(&head, "content-type", type ? type : "application/grpc");
    snprintf(text, sizeof text, "%d", r->grpc);
    fields_put(&head, "grpc-status", text);
  }
  for (size_t i = 0; i < r->fields.n; i++) {
    const field *f = &r->fields.at[i];
    if (!grpc || strcmp(f->name, "content-type"))
      fields_add(&head, f->name, f->name_len, f->value, f->value_len, f->flags);
  }
  bool none = r->status == 204 || r->status == 304;
  if (grpc) bytes_free(&r->body);
  bool empty = none || s->head_method || grpc;
  if (!grpc) fields_copy(&trailers, &r->trailers);
  if (!open && !none && !(trailers.n && !empty && s->trailers_ok[RSP])) {
    snprintf(text, sizeof text, "%llu", (unsigned long long)r->body.len);
    fields_put(&head, "content-length", text);
  }
  if (!s->trailers_ok[RSP] || empty) {
    for (size_t i = 0; i < trailers.n && !s->trailers_ok[RSP]; i++) count_skipped(p);
    fields_free(&trailers);
  }
  if (BUG("details-to-the-client") && details) fields_put(&head, "x-details", details);
  if (empty && !BUG("body-with-204")) bytes_free(&r->body), open = false;
  p->replied = true;
  fields later = {0};
  if (open) later = trailers, trailers = (fields){0};
  begin(s, p->index);
  replace(s, &head, &trailers, (char *)(uintptr_t)details);
  if (s->dead) {
    fields_free(&later);
    return;
  }
  p->open = open;
  p->open_since = now_ns();
  p->open_trailers = later;
  if (open) stream_later(s, reply_idle(p));
  bool ends = !open && !r->body.len && !s->m[RSP].trailers.n;
  s->m[RSP].ends = ends;
  enter_head(s, RSP, ends);
  if (r->body.len) enter_bytes(s, RSP, &r->body);
  if (!open) enter_end(s, RSP);
}

void make_local(stream *s, place *from, uint32_t status, char *details) {
  fields head = {0}, none = {0};
  char text[8];
  snprintf(text, sizeof text, "%u", status % 1000);
  fields_put(&head, ":status", text);
  fields_put(&head, "content-length", "0");
  if (BUG("error-text-to-the-client") && from) fields_put(&head, "x-error", details);
  begin(s, from ? from->index : s->n);
  replace(s, &head, &none, details);
  s->m[RSP].ends = true;
  if (s->dead) return;
  enter_head(s, RSP, true);
  enter_end(s, RSP);
}

/* ---- streamed replies -------------------------------------------------------------------------------------------- */

void reply_end(place *p) {
  stream *s = p->s;
  p->open = false;
  if (p->open_trailers.n) {
    fields_free(&s->m[RSP].trailers);
    s->m[RSP].trailers = p->open_trailers;
    p->open_trailers = (fields){0};
  }
  place *to = next_place(p, RSP);
  if (to) {
    to->d[RSP].ended = true;
  } else {
    client_end(s);
  }
}

/* BODY_INJECT: behind what of a forwarded response has passed this place. */
static bool may_inject(const place *p, const op *o) {
  const struct dir *x = &p->d[RSP];
  const stream *s = p->s;
  if (!x->head_out || x->end_out || x->state == S_CUT || x->end_at_head || x->tunnel || (o->flags & PXG_OPF_END) ||
      s->m[RSP].local)
    return false;
  return x->room < 0;
}

void body_write(place *p, op *o) {
  stream *s = p->s;
  size_t n = o->val.len;
  bytes b = {0};
  pthread_mutex_lock(&tokens_lock);
  p->queued = p->queued > n ? p->queued - n : 0;
  pthread_mutex_unlock(&tokens_lock);
  if (!p->open && may_inject(p, o)) {
    bytes_add(&b, o->val);
    o->val = (slice){0};
    p->d[RSP].changed = true;
    to_next_bytes(p, RSP, &b, b.len);
    bytes_free(&b);
    return;
  }
  if (!p->open || s->over[RSP]) {
    count_skipped(p);
    if (BUG("late-write-fails")) fail(p, -1, 0, R_INVALID, "a late write");
    return;
  }
  p->open_since = now_ns();
  bytes_add(&b, o->val);
  o->val = (slice){0};
  if (BUG("writes-joined-in-reverse") && s->m[RSP].sent && s->client && s->client->out.len) {
    bytes first = s->client->out;
    s->client->out = (bytes){0};
    client_bytes(s, &b);
    bytes_move(&s->client->out, &first, first.len);
    bytes_free(&first);
  }
  place *to = next_place(p, RSP);
  if (to) {
    bytes_move(&to->d[RSP].view, &b, b.len);
  } else if (b.len) {
    s->bytes_out[RSP] += b.len;
    client_bytes(s, &b);
  }
  bytes_free(&b);
  if ((o->flags & PXG_OPF_END) && !BUG("end-of-write-ignored")) reply_end(p);
}

/* WRITABLE, where FULL was answered and the client has taken enough. */
void reply_room(stream *s) {
  uint64_t waiting = s->client ? s->client->out.len : 0;
  for (int i = 0; i < s->n; i++) waiting += s->places[i].d[RSP].view.len;
  atomic_store(&s->client_waiting, waiting);
  for (int i = 0; i < s->n; i++) {
    place *p = &s->places[i];
    pthread_mutex_lock(&tokens_lock);
    bool room = p->full && p->queued + waiting <= set.watermark / 2;
    if (room) p->full = false;
    pthread_mutex_unlock(&tokens_lock);
    if (room && !BUG("writable-never")) effect_wake(p, PXG_EV_WRITABLE, 0);
    if (room) s->again = true;
  }
}
