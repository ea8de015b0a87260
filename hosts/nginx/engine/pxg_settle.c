/* SPDX-License-Identifier: Apache-2.0 */

/* Operations: what depends on the stream, and what they do to it (spec/06-headers, 10-operations). */

#include <stdlib.h>

#include "pxg_internal.h"

static void count_skipped(pxg_place *p) { pxg_count(&p->c->counters->skipped); }

static void skip(pxg_decision *d, pxg_todo *o, const char *why) {
  if (o->flags & PXG_OPF_MUST) pxg_refuse(d, PXG_E_STATE, "operation %u with MUST: %s", o->kind, why);
  o->skip = true;
}

static bool is_field_op(const pxg_todo *o) { return o->kind >= PXG_OP_HEADER_SET && o->kind <= PXG_OP_DELETE_AT; }
static bool is_body_op(const pxg_todo *o) { return o->kind >= PXG_OP_PASS && o->kind <= PXG_OP_INJECT; }

/* ---- judging ----------------------------------------------------------------------------------------------------- */

static const char *trailer_late(const pxg_place *p, int dir, uint32_t phase, uint32_t flags) {
  static const uint32_t receives[] = {PXG_STREAM_UPSTREAM_TRAILERS, PXG_STREAM_RECEIVES_TRAILERS};
  if (!pxg_c_has(p, dir, PXG_F_TRAILERS_OUT_REQUEST)) return "the feature TRAILERS_OUT is clear";
  if (!pxg_is_trailers(phase) && !(pxg_is_body(phase) && (flags & PXG_EV_END_STREAM)))
    return "trailers are not to be changed here [PXG-TRL-001]";
  return p->s->flags & receives[dir] ? NULL : "the receiver cannot take trailers";
}

static bool pseudo_missing(const pxg_view *v, const pxg_todo *o) {
  const pxg_str *method = pxg_view_get(v, ":method");
  return method && pxg_str_is(method, "CONNECT") && (pxg_str_is(&o->key, ":path") || pxg_str_is(&o->key, ":scheme"));
}

static void judge_index(pxg_decision *d, const pxg_todo *o, const pxg_view *v, int dir) {
  bool trailers = o->target == PXG_TARGET_TRAILERS;
  if (o->u0 >= v->n)
    return pxg_refuse(d, PXG_E_ARG, "operation %u: found index %llu, expected one below the view's count [PXG-HDR-004]",
                      o->kind, (unsigned long long)o->u0);
  const pxg_str *name = &v->at[o->u0].name;
  const char *fault = NULL;
  if (name->len && name->ptr[0] == ':' && o->kind == PXG_OP_DELETE_AT)
    fault = "a pseudo-header, which cannot be removed";
  else if (o->kind == PXG_OP_SET_AT || pxg_name_is_owned(name->ptr, name->len))
    fault = pxg_field_fault(name->ptr, name->len, o->val.ptr, o->val.len, true, trailers, dir);
  if (fault)
    pxg_refuse(d, PXG_E_ARG, "operation %u on `%.*s`: found %s [PXG-HDR-006]", o->kind,
               (int)(name->len < 40 ? name->len : 40), name->ptr, fault);
}

static void judge_field(pxg_place *p, int dir, uint32_t phase, uint32_t flags, const pxg_view views[2], pxg_decision *d,
                        pxg_todo *o) {
  const pxg_view *v = &views[o->target == PXG_TARGET_TRAILERS];
  const char *late = NULL;
  if (o->kind == PXG_OP_HEADER_SET && o->key.ptr[0] == ':' && dir == REQ && pseudo_missing(v, o))
    return pxg_refuse(d, PXG_E_ARG, "HEADER_SET: found a message that cannot have it [PXG-HDR-006]");
  if (o->target == PXG_TARGET_TRAILERS)
    late = trailer_late(p, dir, phase, flags);
  else if (!pxg_is_headers(phase) && !p->d[dir].held)
    late = "the headers have left this place [PXG-HDR-011]";
  if (late) return skip(d, o, late);
  if (o->kind >= PXG_OP_SET_AT) judge_index(d, o, v, dir);
}

/* `v` is null where the headers are as an answer of PENDING saw them. */
static void judge_sizes(pxg_place *p, const pxg_dir *x, const pxg_view *v, pxg_decision *d) {
  uint64_t n = v ? v->n : x->shown_fields, len = v ? 0 : x->shown_bytes, added = 0;
  for (size_t i = 0; i < d->n_ops; i++) {
    const pxg_todo *o = &d->ops[i];
    bool adds = o->kind == PXG_OP_HEADER_ADD || o->kind == PXG_OP_HEADER_SET || o->kind == PXG_OP_SET_AT;
    if (!adds || o->skip) continue;
    added++;
    n += o->kind == PXG_OP_HEADER_ADD;
    len += o->key.len + (uint64_t)o->val.len;
  }
  if (!added) return;
  if (v) len += pxg_view_bytes(v);
  if (n > p->c->policy.max_fields || len > p->c->policy.max_bytes)
    pxg_refuse(d, PXG_E_LIMIT, "found %llu fields of %llu bytes, over the limit [PXG-HDR-009]", (unsigned long long)n,
               (unsigned long long)len);
}

static bool needs_view(const pxg_todo *o) {
  return o->kind >= PXG_OP_SET_AT || (o->kind == PXG_OP_HEADER_SET && o->key.ptr[0] == ':');
}

static void judge_fields(pxg_place *p, int dir, uint32_t phase, uint32_t flags, pxg_decision *d) {
  pxg_stream *s = p->s;
  pxg_view views[2] = {{NULL, 0}, {NULL, 0}};
  bool found[2] = {false, false}, seen[2] = {false, false};
  bool known = pxg_is_headers(phase) && p->d[dir].shown_fields;
  for (size_t i = 0; i < d->n_ops; i++) {
    pxg_todo *o = &d->ops[i];
    if (!is_field_op(o) || o->skip || d->status) continue;
    if (p->d[dir].observing) {
      pxg_refuse(d, PXG_E_ARG, "operation %u: found in OBSERVE [PXG-BODY-007]", o->kind);
      continue;
    }
    bool t = o->target == PXG_TARGET_TRAILERS;
    found[t] = true;
    if (!seen[t] && (t || !known || needs_view(o))) {
      if ((!t || s->trailers[dir]) && !pxg_show(s, dir, t, &views[t])) return;
      seen[t] = true;
    }
    judge_field(p, dir, phase, flags, views, d, o);
  }
  for (int t = 0; t < 2; t++)
    if (found[t] && !d->status) judge_sizes(p, &p->d[dir], seen[t] ? &views[t] : NULL, d);
}

static bool bodyless(const pxg_place *p, int dir) {
  pxg_view v;
  if (dir != RSP || !p->d[RSP].end_at_head) return false;
  if (p->s->flags & PXG_STREAM_HEAD_METHOD) return true;
  const pxg_str *status = pxg_show(p->s, RSP, false, &v) ? pxg_view_get(&v, ":status") : NULL;
  return status && (pxg_str_is(status, "204") || pxg_str_is(status, "304"));
}

/* What content-length still allows to leave this place: -1 is everything. */
static int64_t room(pxg_place *p, int dir) {
  const pxg_dir *x = &p->d[dir];
  pxg_view v;
  if (!x->held) return x->room;
  if (x->resizes && x->mode == PXG_BODY_STREAM) return -1;
  return pxg_show(p->s, dir, false, &v) ? pxg_view_length(&v) : -1;
}

static void judge_length(pxg_place *p, int dir, uint32_t flags, uint64_t sent, pxg_decision *d) {
  int64_t most = room(p, dir);
  if (most < 0) return;
  if (sent > (uint64_t)most)
    pxg_refuse(d, PXG_E_ARG, "found %llu bytes to send, expected at most the %lld of content-length [PXG-HDR-007]",
               (unsigned long long)sent, (long long)most);
  else if (d->action == PXG_ACT_CONTINUE && (flags & PXG_EV_BODY_END) && sent < (uint64_t)most)
    pxg_refuse(d, PXG_E_ARG, "found a body that ends %lld bytes short of content-length [PXG-HDR-007]",
               (long long)((uint64_t)most - sent));
}

static void judge_body(pxg_place *p, int dir, uint32_t flags, uint64_t view, pxg_decision *d) {
  uint64_t moved = 0, sent = 0;
  bool observed = p->d[dir].observing;
  for (size_t i = 0; i < d->n_ops; i++) {
    pxg_todo *o = &d->ops[i];
    if (o->kind < PXG_OP_PASS || o->kind > PXG_OP_INJECT || o->skip) continue;
    if (observed) {
      pxg_refuse(d, PXG_E_ARG, "operation %u: found in OBSERVE [PXG-BODY-007]", o->kind);
    } else if (o->kind == PXG_OP_INJECT) {
      if (bodyless(p, dir))
        skip(d, o, "the message cannot have a body");
      else
        sent += o->val.len;
    } else if (o->u0 > view - moved) {
      return pxg_refuse(d, PXG_E_ARG,
                        "operation %u: found %llu bytes, expected at most %llu of the view [PXG-BODY-006]", o->kind,
                        (unsigned long long)o->u0, (unsigned long long)(view - moved));
    } else {
      moved += o->u0;
      if (o->kind == PXG_OP_PASS) sent += o->u0;
    }
  }
  if (observed || (d->action != PXG_ACT_CONTINUE && d->action != PXG_ACT_MORE)) return;
  uint64_t kept = view - moved;
  if (d->action == PXG_ACT_CONTINUE)
    sent += kept;
  else if (kept > p->c->max_body[dir])
    return pxg_refuse(d, PXG_E_ARG, "MORE: found %llu bytes kept, expected at most %llu [PXG-BODY-014]",
                      (unsigned long long)kept, (unsigned long long)p->c->max_body[dir]);
  if (!(flags & PXG_EV_WHOLE_BODY)) judge_length(p, dir, flags, sent, d);
}

void pxg_settle_judge(pxg_place *p, int dir, uint32_t phase, uint32_t flags, uint64_t view, pxg_decision *d) {
  pxg_stream *s = p->s;
  bool fields = false;
  for (size_t i = 0; i < d->n_ops; i++) {
    pxg_todo *o = &d->ops[i];
    if (o->skip) continue;
    fields |= is_field_op(o);
    if (o->kind == PXG_OP_METRIC && !pxg_metric_known(p->c->lib, o->target))
      skip(d, o, "the metric is unknown [PXG-OBS-003]");
    if (o->kind != PXG_OP_ROUTE) continue;
    bool named = pxg_str_is(&o->key, "cluster");
    if (named && !(s->ops->cluster && s->ops->cluster(s->data, o->val.ptr, o->val.len)))
      pxg_refuse(d, PXG_E_ARG, "ROUTE: found a cluster that does not exist [PXG-MUT-004]");
    else if (s->route_final)
      skip(d, o, "routing is final [PXG-MUT-004]");
  }
  if (dir < 0) return;
  if (fields) judge_fields(p, dir, phase, flags, d);
  if (pxg_is_body(phase) && !d->status) judge_body(p, dir, flags, view, d);
}

/* ---- effects ----------------------------------------------------------------------------------------------------- */

const pxg_meta *pxg_meta_find(const pxg_stream *s, const char *key, size_t len) {
  const pxg_meta *m = s->meta;
  while (m && (m->key_len != len || memcmp(m->key, key, len))) m = m->next;
  return m;
}

void pxg_stream_metadata(const pxg_stream *s,
                         bool (*each)(void *data, const char *key, size_t len, const pxg_str *value), void *data) {
  for (const pxg_meta *m = s->meta; m; m = m->next) {
    pxg_str value = {m->value, m->len, 0};
    if (!each(data, m->key, m->key_len, &value)) return;
  }
}

static bool set_metadata(pxg_place *p, const pxg_todo *o) {
  const char *space = o->u0 ? (const char *)o->key.ptr : p->c->instance;
  size_t n = o->u0 ? (size_t)o->u0 : strlen(space), rest = o->key.len - (size_t)o->u0, len = n + 1 + rest;
  char key[260];
  memcpy(key, space, n);
  key[n] = '.';
  memcpy(key + n + 1, o->key.ptr + o->u0, rest);
  uint8_t *value = malloc(o->val.len + 1);
  if (!value) return false;
  if (o->val.len) memcpy(value, o->val.ptr, o->val.len);
  pxg_meta *m = malloc(sizeof *m + len), **at = &p->s->meta;
  if (!m) return free(value), false;
  memcpy(m->key, key, len);
  m->key_len = (uint32_t)len;
  m->value = value;
  m->len = (uint32_t)o->val.len;
  while (*at && ((*at)->key_len != len || memcmp((*at)->key, key, len))) at = &(*at)->next;
  pxg_meta *old = *at;
  m->next = old ? old->next : NULL;
  *at = m;
  if (old) old->next = p->s->spent, p->s->spent = old;
  return true;
}

void pxg_meta_free(pxg_meta **all) {
  for (pxg_meta *m = *all, *next; m; m = next) {
    next = m->next;
    free(m->value);
    free(m);
  }
  *all = NULL;
}

static void effect_of(pxg_place *p, const pxg_todo *o) {
  if (o->kind == PXG_OP_METADATA_SET && !set_metadata(p, o)) p->s->no_memory = true;
  if (o->kind == PXG_OP_METRIC && pxg_metric_record(p->c->lib, o->target, (int64_t)o->u0)) count_skipped(p);
}

void pxg_settle_effects(pxg_place *p, pxg_decision *d) {
  for (size_t i = 0; i < d->n_ops; i++) {
    if (d->ops[i].skip)
      count_skipped(p);
    else
      effect_of(p, &d->ops[i]);
  }
}

static void route(pxg_stream *s, const pxg_todo *o) {
  if (!pxg_str_is(&o->key, "cluster")) {
    free(s->cluster);
    s->cluster = NULL;
    s->recompute = true;
    return;
  }
  char *name = malloc(o->val.len + 1);
  if (!name) {
    s->no_memory = true;
    return;
  }
  memcpy(name, o->val.ptr, o->val.len);
  name[o->val.len] = 0;
  free(s->cluster);
  s->cluster = name;
  s->recompute = false;
}

/* Whether an operation before `k` has removed the field at its index, or replaced it by name. */
static bool index_gone(const pxg_decision *d, size_t k, const pxg_view *v) {
  const pxg_todo *o = &d->ops[k];
  const pxg_str *name = &v->at[o->u0].name;
  for (size_t i = 0; i < k; i++) {
    const pxg_todo *b = &d->ops[i];
    if (b->skip || b->target != o->target) continue;
    bool by_name = b->kind == PXG_OP_HEADER_SET || b->kind == PXG_OP_HEADER_DELETE;
    if (by_name && b->key.len == name->len && !memcmp(b->key.ptr, name->ptr, name->len)) return true;
    if (b->kind == PXG_OP_DELETE_AT && b->u0 == o->u0) return true;
  }
  return false;
}

static void change(pxg_place *p, int dir, const pxg_decision *d, size_t k, const pxg_view *v) {
  pxg_stream *s = p->s;
  const pxg_stream_ops *ops = s->ops;
  const pxg_todo *o = &d->ops[k];
  bool t = o->target == PXG_TARGET_TRAILERS;
  pxg_str value = {o->val.ptr, (uint32_t)o->val.len, o->val_flags & PXG_STR_SENSITIVE};
  pxg_edit done = PXG_EDIT_DONE;
  if (o->kind >= PXG_OP_SET_AT && index_gone(d, k, v)) return count_skipped(p);
  switch (o->kind) {
  case PXG_OP_HEADER_SET: done = ops->set(s->data, dir, t, &o->key, &value); break;
  case PXG_OP_HEADER_ADD: done = ops->add(s->data, dir, t, &o->key, &value); break;
  case PXG_OP_HEADER_DELETE: done = ops->remove(s->data, dir, t, &o->key); break;
  case PXG_OP_SET_AT: done = ops->set_at(s->data, dir, t, (size_t)o->u0, &value); break;
  default: done = ops->remove_at(s->data, dir, t, (size_t)o->u0); break;
  }
  if (done == PXG_EDIT_GONE) return count_skipped(p);
  if (done == PXG_EDIT_NO_MEMORY) s->no_memory = true;
  if (t && (o->kind == PXG_OP_HEADER_SET || o->kind == PXG_OP_HEADER_ADD)) s->trailers[dir] = true;
  p->d[dir].changed = true;
}

static void body_op(pxg_place *p, int dir, pxg_todo *o, pxg_bytes *out, uint64_t *cursor) {
  pxg_dir *x = &p->d[dir];
  if (o->kind == PXG_OP_INJECT) {
    if (!pxg_bytes_add(out, o->val)) p->s->no_memory = true;
    o->val = (pxg_slice){0};
    x->changed = true;
    return;
  }
  *cursor += o->u0;
  if (o->kind == PXG_OP_PASS) {
    if (!pxg_bytes_move(out, &x->view, o->u0)) p->s->no_memory = true;
    return;
  }
  pxg_bytes_drop(&x->view, o->u0);
  x->changed = true;
}

void pxg_settle_apply(pxg_place *p, int dir, pxg_decision *d, pxg_bytes *out, uint64_t *cursor) {
  pxg_stream *s = p->s;
  pxg_view views[2] = {{NULL, 0}, {NULL, 0}};
  bool edited[2] = {false, false}, shown[2] = {false, false}, moves = false;
  /* Indices count in the view from before all edits. */
  for (size_t k = 0; k < d->n_ops; k++) {
    const pxg_todo *o = &d->ops[k];
    bool t = o->target == PXG_TARGET_TRAILERS;
    if (o->skip || !is_field_op(o) || o->kind < PXG_OP_SET_AT || shown[t] || (t && !s->trailers[dir])) continue;
    if (!pxg_show(s, dir, t, &views[t])) return;
    shown[t] = true;
  }
  pxg_keep_views(s, false);
  for (size_t k = 0; k < d->n_ops; k++) {
    pxg_todo *o = &d->ops[k];
    if (o->skip) {
      count_skipped(p);
    } else if (is_field_op(o)) {
      bool t = o->target == PXG_TARGET_TRAILERS;
      edited[t] = true;
      change(p, dir, d, k, &views[t]);
    } else if (o->kind == PXG_OP_BODY_WRITE) {
      pxg_reply_write(p, o);
    } else if (is_body_op(o)) {
      moves = true;
    } else if (o->kind == PXG_OP_ROUTE) {
      route(s, o);
    } else {
      effect_of(p, o);
    }
  }
  for (int t = 0; t < 2; t++)
    if (edited[t] && !s->ops->commit(s->data, dir, t)) s->no_memory = true;
  /* Only now: strings of the others may refer to the view (11.1), which ends here. */
  for (size_t k = 0; moves && k < d->n_ops; k++)
    if (!d->ops[k].skip && is_body_op(&d->ops[k])) body_op(p, dir, &d->ops[k], out, cursor);
}
