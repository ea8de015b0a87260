/* SPDX-License-Identifier: Apache-2.0 */

/* Operations: what depends on the stream, and what they do to it (spec/06-headers, 10-operations). */

#include "minihost.h"

void count_skipped(place *p) { p->c->stats->skipped += !BUG("skipped-uncounted"); }

static void skip(place *p, decision *d, op *o, const char *why) {
  (void)p;
  if (o->flags & PXG_OPF_MUST) refuse(d, PXG_E_STATE, "operation %u with MUST: %s", o->kind, why);
  o->skip = true;
}

static const char *header_late(const place *p, int dir, uint32_t phase) {
  if (BUG("late-headers-applied")) return NULL;
  return is_headers_phase(phase) || p->d[dir].held ? NULL : "the headers have left this place [PXG-HDR-011]";
}

static const char *trailer_late(const place *p, int dir, uint32_t phase, uint32_t flags) {
  if (BUG("trailers-out-declared-and-missing")) return "trailers are not changed by this host";
  bool at_trailers = phase == PXG_PHASE_REQUEST_TRAILERS || phase == PXG_PHASE_RESPONSE_TRAILERS;
  if (!at_trailers && !(is_body_phase(phase) && (flags & PXG_EV_END_STREAM)) && !BUG("trailers-anytime"))
    return "trailers are not to be changed here [PXG-TRL-001]";
  return p->s->trailers_ok[dir] ? NULL : "the receiver cannot take trailers";
}

static bool pseudo_missing(const stream *s, const op *o) {
  const char *method = fields_get(&s->m[REQ].head, ":method");
  bool connect = method && !strcmp(method, "CONNECT");
  return connect &&
         ((o->key_len == 5 && !memcmp(o->key, ":path", 5)) || (o->key_len == 7 && !memcmp(o->key, ":scheme", 7)));
}

static size_t view_count(const fields *f) {
  int64_t most = -1;
  for (size_t i = 0; i < f->n; i++)
    if (f->at[i].seen > most) most = f->at[i].seen;
  return (size_t)(most + 1);
}

static void judge_field(place *p, int dir, uint32_t phase, uint32_t flags, decision *d, op *o) {
  bool trailers = o->target == PXG_TARGET_TRAILERS;
  const fields *list = trailers ? &p->s->m[dir].trailers : &p->s->m[dir].head;
  if (o->kind == PXG_OP_HEADER_SET && o->key_len && o->key[0] == ':' && dir == REQ && pseudo_missing(p->s, o))
    return refuse(d, PXG_E_ARG, "HEADER_SET `%s`: found a message that cannot have it [PXG-HDR-006]", o->key);
  const char *late = trailers ? trailer_late(p, dir, phase, flags) : header_late(p, dir, phase);
  if (o->kind >= PXG_OP_SET_AT && late && BUG("late-index-refused"))
    return refuse(d, PXG_E_ARG, "operation %u: found index %llu, and no view", o->kind, (unsigned long long)o->u0);
  if (o->kind >= PXG_OP_SET_AT && !late) {
    if (o->u0 >= view_count(list)) {
      if (BUG("bad-index-skipped")) return skip(p, d, o, "the index");
      return refuse(d, PXG_E_ARG, "operation %u: found index %llu, expected one below the view's count [PXG-HDR-004]",
                    o->kind, (unsigned long long)o->u0);
    }
    for (size_t i = 0; i < list->n; i++) {
      const field *f = &list->at[i];
      if (f->seen != (int64_t)o->u0) continue;
      const char *fault = NULL;
      if (f->name[0] == ':' && o->kind == PXG_OP_DELETE_AT) {
        if (!BUG("pseudo-header-added")) fault = "a pseudo-header, which cannot be removed";
      } else if (o->kind == PXG_OP_SET_AT || name_is_owned((uint8_t *)f->name, f->name_len)) {
        fault = field_fault((uint8_t *)f->name, f->name_len, o->val.ptr, o->val.len, true, trailers, dir);
      }
      if (fault) return refuse(d, PXG_E_ARG, "operation %u on `%s`: found %s [PXG-HDR-006]", o->kind, f->name, fault);
    }
  }
  if (late) skip(p, d, o, late);
}

/* What content-length still allows to leave this place: -1 is everything. */
static int64_t room(const place *p, int dir) {
  const struct dir *x = &p->d[dir];
  if (!x->held) return x->room;
  const char *length = fields_get(&p->s->m[dir].head, "content-length");
  bool kept = length && !(x->resizes && x->mode == PXG_BODY_STREAM);
  return kept ? (int64_t)strtoull(length, NULL, 10) : -1;
}

static void judge_body(place *p, int dir, uint32_t phase, uint32_t flags, uint64_t view, decision *d) {
  struct dir *x = &p->d[dir];
  bool l4 = p->s->l4, whole = flags & PXG_EV_WHOLE_BODY;
  uint64_t moved = 0, sent = 0;
  for (size_t i = 0; i < d->n_ops; i++) {
    op *o = &d->ops[i];
    if (o->kind < PXG_OP_PASS || o->kind > PXG_OP_INJECT || o->skip) continue;
    if (is_observing(x)) {
      if (!BUG("observe-changes-bytes")) refuse(d, PXG_E_ARG, "operation %u: found in OBSERVE [PXG-BODY-007]", o->kind);
      continue;
    }
    if (o->kind == PXG_OP_INJECT) {
      bool bodyless = dir == RSP && !l4 && x->end_at_head &&
                      (p->s->head_method || !strcmp(fields_get(&p->s->m[RSP].head, ":status"), "204") ||
                       !strcmp(fields_get(&p->s->m[RSP].head, ":status"), "304"));
      if (bodyless)
        skip(p, d, o, "the message cannot have a body");
      else if (o->target == 0)
        sent += o->val.len;
      continue;
    }
    uint64_t most = l4 ? (1ull << 63) - 1 : view;
    if (o->u0 > most || moved > most - o->u0) {
      if (!BUG("counts-clamped"))
        return refuse(d, PXG_E_ARG,
                      "operation %u: found %llu bytes, expected at most the %llu of the view [PXG-BODY-006]", o->kind,
                      (unsigned long long)(moved + o->u0), (unsigned long long)view);
      o->u0 = most - moved;
    }
    moved += o->u0;
    if (o->kind == PXG_OP_PASS) sent += o->u0;
  }
  if (l4 || is_observing(x)) return;
  uint64_t kept = view - moved;
  if (d->action == PXG_ACT_MORE && kept > p->c->max_body[dir] && is_body_phase(phase) &&
      !BUG("keeps-more-than-max-body") && !(BUG("more-over-the-limit") && p->d[dir].mode == PXG_BODY_WHOLE))
    return refuse(d, PXG_E_ARG, "MORE: found %llu bytes kept, expected at most %llu [PXG-BODY-014]",
                  (unsigned long long)kept, (unsigned long long)p->c->max_body[dir]);
  if (d->action != PXG_ACT_CONTINUE && d->action != PXG_ACT_MORE) return;
  if (d->action == PXG_ACT_CONTINUE) sent += kept;
  int64_t most = whole || x->tunnel || !is_body_phase(phase) ? -1 : room(p, dir);
  if (most < 0 || BUG("length-unchecked")) return;
  if (sent > (uint64_t)most)
    return refuse(d, PXG_E_ARG,
                  "found %llu bytes to send, expected at most the %lld that content-length allows [PXG-HDR-007]",
                  (unsigned long long)sent, (long long)most);
  if (d->action == PXG_ACT_CONTINUE && (flags & PXG_EV_BODY_END) && sent < (uint64_t)most)
    refuse(d, PXG_E_ARG, "found a body that ends %lld bytes short of content-length [PXG-HDR-007]",
           (long long)((uint64_t)most - sent));
}

static void judge_size(place *p, int dir, decision *d) {
  const fields *f = &p->s->m[dir].head;
  uint64_t n = f->n, len = 0;
  for (size_t i = 0; i < f->n; i++) len += f->at[i].name_len + f->at[i].value_len;
  for (size_t i = 0; i < d->n_ops; i++) {
    const op *o = &d->ops[i];
    if ((o->kind != PXG_OP_HEADER_ADD && o->kind != PXG_OP_HEADER_SET && o->kind != PXG_OP_SET_AT) || o->skip) continue;
    n += o->kind == PXG_OP_HEADER_ADD;
    len += o->key_len + o->val.len;
  }
  if (n > set.max_fields || len > set.max_field_bytes)
    refuse(d, PXG_E_LIMIT, "found %llu fields of %llu bytes, over the limit [PXG-HDR-009]", (unsigned long long)n,
           (unsigned long long)len);
}

void ops_judge(place *p, int dir, uint32_t phase, uint32_t flags, uint64_t view, decision *d) {
  for (size_t i = 0; i < d->n_ops; i++) {
    op *o = &d->ops[i];
    bool late_route = p->s->final_route && !BUG("late-route-unsaid");
    if (o->kind == 0 || o->skip) continue;
    if (o->kind <= PXG_OP_DELETE_AT && dir >= 0) {
      if (is_observing(&p->d[dir])) {
        refuse(d, PXG_E_ARG, "operation %u: found in OBSERVE [PXG-BODY-007]", o->kind);
      } else {
        judge_field(p, dir, phase, flags, d, o);
      }
    } else if (o->kind == PXG_OP_ROUTE && late_route) {
      skip(p, d, o, "routing is final [PXG-MUT-004]");
    } else if (o->kind == PXG_OP_METRIC && !metric_known(p->c->lib->ctx, o->target)) {
      skip(p, d, o, "the metric is unknown [PXG-OBS-003]");
    }
  }
  if (dir < 0) return;
  judge_body(p, dir, phase, flags, view, d);
  if (!p->s->l4) judge_size(p, dir, d);
}

/* ---- effects ----------------------------------------------------------------------------------------------------- */

static void set_metadata(place *p, const op *o) {
  char key[512];
  size_t n = (size_t)o->u0;
  snprintf(key, sizeof key, "%.*s.%.*s", n ? (int)n : (int)strlen(p->c->instance), n ? o->key : p->c->instance,
           (int)(o->key_len - n), o->key + n);
  meta *m = p->s->meta;
  while (m && strcmp(m->key, key)) m = m->next;
  if (!m) {
    m = zalloc(sizeof *m);
    m->key = copy_text(key, strlen(key));
    m->next = p->s->meta;
    p->s->meta = m;
  }
  size_t len = BUG("metadata-cut-at-nul") ? strnlen((const char *)o->val.ptr, o->val.len) : o->val.len;
  free(m->value);
  m->value = copy_text(o->val.ptr, len);
  m->len = len;
}

static void effect_of(place *p, op *o) {
  if (o->kind == PXG_OP_METADATA_SET && !BUG("metadata-ignored")) set_metadata(p, o);
  if (o->kind == PXG_OP_METRIC && !metric_record(p->c->lib->ctx, o->target, (int64_t)o->u0)) count_skipped(p);
}

void ops_effects(place *p, decision *d) {
  if (BUG("effects-lost-with-reply")) return;
  for (size_t i = 0; i < d->n_ops; i++) {
    op *o = &d->ops[i];
    if (o->skip) {
      count_skipped(p);
    } else {
      effect_of(p, o);
    }
  }
}

static void route(place *p, const op *o) {
  stream *s = p->s;
  if (o->key[0] == 'c') {
    s->cluster = cluster_find((const char *)o->val.ptr, o->val.len);
    if (!s->cluster) s->cluster = cluster_find("default", 7);
    return;
  }
  const char *path = fields_get(&s->m[REQ].head, ":path");
  s->cluster = route_of(path ? path : "/");
  if (BUG("headers-twice") && !p->recomputed) p->recomputed = p->again = true;
  if (BUG("recompute-changes-the-chain")) {
    config *chain[MAX_PLACES];
    size_t n = world_take(path, chain);
    for (size_t i = (size_t)s->n; i < n; i++) config_unref(chain[i]);
    for (size_t i = 0; i < n && i < (size_t)s->n; i++) {
      config *old = s->places[i].c;
      s->places[i].c = chain[i];
      config_unref(old);
    }
  }
}

/* The field that stood at an index of the delivered view. */
static field *at_index(fields *f, uint64_t index) {
  for (size_t i = 0; i < f->n; i++)
    if (f->at[i].seen == (int64_t)index || (BUG("index-in-the-changed-list") && i == index)) return &f->at[i];
  return NULL;
}

static void change(place *p, int dir, const op *o) {
  fields *list = o->target == PXG_TARGET_TRAILERS ? &p->s->m[dir].trailers : &p->s->m[dir].head;
  uint32_t sensitive = o->val_flags & PXG_STR_SENSITIVE;
  field *f = NULL;
  if (o->kind >= PXG_OP_SET_AT && !(f = at_index(list, o->u0))) return count_skipped(p);
  switch (o->kind) {
  case PXG_OP_HEADER_SET: fields_set(list, o->key, o->key_len, o->val.ptr, o->val.len, sensitive); break;
  case PXG_OP_HEADER_ADD:
    if (BUG("empty-value-is-no-field") && !o->val.len) return;
    fields_add(list, o->key, o->key_len, o->val.ptr, o->val.len, sensitive);
    list->at[list->n - 1].changed = true;
    break;
  case PXG_OP_HEADER_DELETE: fields_delete(list, o->key, o->key_len); break;
  case PXG_OP_SET_AT:
    free(f->value);
    f->value = copy_text(o->val.ptr, o->val.len);
    f->value_len = (uint32_t)o->val.len;
    f->flags |= sensitive;
    break;
  case PXG_OP_DELETE_AT: fields_remove_at(list, (size_t)(f - list->at)); break;
  default: break;
  }
  p->d[dir].changed = true;
  if (BUG("sensitive-values-logged"))
    say(PXG_LOG_INFO, "guest=%s sets %s: %.*s", p->c->lib->name, o->key ? o->key : "", (int)o->val.len,
        (const char *)o->val.ptr);
}

static void credit_add(struct dir *x, int what, uint64_t n, slice *inject) {
  credit *c = zalloc(sizeof *c);
  c->what = what;
  c->n = n;
  if (inject) bytes_add(&c->inject, *inject), *inject = (slice){0};
  *x->credits_end = c;
  x->credits_end = &c->next;
}

/* Operations that go beyond the view leave credit, and what is behind a credit waits for it. */
static void body_op(place *p, int dir, op *o, uint64_t view, bytes *out, uint64_t *cursor) {
  struct dir *x = &p->d[dir];
  if (o->kind == PXG_OP_INJECT) {
    int to = o->target == PXG_TARGET_UPSTREAM ? REQ : o->target == PXG_TARGET_CLIENT ? RSP : dir;
    if (to != dir) return to_next_inject(p, to, &o->val);
    x->changed = true;
    if (x->credits && !BUG("injection-before-credit")) return credit_add(x, PXG_OP_INJECT, 0, &o->val);
    bytes_add(out, o->val);
    o->val = (slice){0};
    return;
  }
  uint64_t left = view - *cursor, n = o->u0 < left ? o->u0 : left;
  if (o->kind == PXG_OP_PASS) {
    bytes_move(out, &x->view, n);
  } else {
    bytes_drop(&x->view, n);
    x->changed = true;
  }
  *cursor += n;
  if (o->u0 > n && !BUG("credit-lost")) credit_add(x, o->kind, o->u0 - n, NULL);
}

void ops_apply(place *p, int dir, uint32_t phase, uint64_t view, decision *d, bytes *out, uint64_t *cursor) {
  (void)phase;
  for (size_t k = 0; k < d->n_ops; k++) {
    op *o = &d->ops[BUG("operations-in-reverse") ? d->n_ops - 1 - k : k];
    if (o->skip) {
      count_skipped(p);
    } else if (o->kind >= PXG_OP_HEADER_SET && o->kind <= PXG_OP_DELETE_AT && dir >= 0) {
      change(p, dir, o);
    } else if (o->kind == PXG_OP_BODY_WRITE) {
      body_write(p, o);
    } else if (o->kind == PXG_OP_INJECT && dir < 0) {
      to_next_inject(p, o->target == PXG_TARGET_UPSTREAM ? REQ : RSP, &o->val);
    } else if (o->kind >= PXG_OP_PASS && o->kind <= PXG_OP_INJECT) {
      body_op(p, dir, o, view, out, cursor);
    } else if (o->kind == PXG_OP_ROUTE) {
      route(p, o);
    } else {
      effect_of(p, o);
    }
  }
}
