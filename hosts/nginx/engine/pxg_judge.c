/* SPDX-License-Identifier: Apache-2.0 */

/* The checks of a result that need no state of the stream (spec/10-operations, 12.2). */

#include "pxg_internal.h"

/* The phases of version 1: HTTP's and L4's. */
#define ALL_PHASES 0xf01feull

static int direction_of(uint32_t phase) {
  return phase >= PXG_PHASE_RESPONSE_HEADERS && phase <= PXG_PHASE_RESPONSE_TRAILERS ? RSP : REQ;
}

typedef struct judged {
  pxg_decision *d;
  pxg_source by;
  const pxg_config *c;
  uint32_t phase, flags;
} judged;

static const char *where(const judged *j) { return j->by == BY_APPLY ? "apply" : pxg_phase_name(j->phase); }

static bool is_word(const uint8_t *p, size_t n, const char *more) {
  for (size_t i = 0; i < n; i++)
    if (!(p[i] >= 'a' && p[i] <= 'z') && !(p[i] >= 'A' && p[i] <= 'Z') && !(p[i] >= '0' && p[i] <= '9') &&
        !(p[i] && strchr(more, p[i])))
      return false;
  return n >= 1 && n <= 128;
}

static bool no_value(const pxg_todo *o) { return !o->val.len && !o->val_flags && !o->val.owner; }

static void unused(judged *j, const pxg_todo *o) {
  pxg_refuse(j->d, PXG_E_ARG, "operation %u: found a member that it does not use, expected zero [PXG-MUT-006]",
             o->kind);
}

static void misplaced(judged *j, const pxg_todo *o) {
  pxg_refuse(j->d, PXG_E_ARG, "operation %u: found in %s, where it is not legal [PXG-MUT-006]", o->kind, where(j));
}

static void judge_metadata(judged *j, const pxg_todo *o) {
  pxg_decision *d = j->d;
  size_t n = (size_t)o->u0;
  if (o->u0 > o->key.len) return pxg_refuse(d, PXG_E_ARG, "METADATA_SET: found a namespace longer than key");
  if ((n && !is_word(o->key.ptr, n, "_-/")) || !is_word(o->key.ptr + n, o->key.len - n, "_-/."))
    return pxg_refuse(d, PXG_E_ARG, "METADATA_SET: found a namespace or key that is not a word of 16.5");
  if (n && !pxg_config_may_namespace(j->c, o->key.ptr, n))
    return pxg_refuse(d, PXG_E_ARG,
                      "METADATA_SET: found the namespace %.*s, expected a grant of the operator [PXG-CHN-003]", (int)n,
                      o->key.ptr);
  if (o->target || (o->val_flags & PXG_STR_ABSENT)) return unused(j, o);
  if (o->val.len > 64 << 10)
    pxg_refuse(d, PXG_E_LIMIT, "METADATA_SET: found %zu bytes, expected at most 64 KiB", o->val.len);
}

static void judge_field(judged *j, const pxg_todo *o) {
  bool named = o->kind <= PXG_OP_HEADER_DELETE;
  bool deletes = o->kind == PXG_OP_HEADER_DELETE || o->kind == PXG_OP_DELETE_AT;
  if (j->by == BY_APPLY || !(pxg_is_headers(j->phase) || pxg_is_body(j->phase) || pxg_is_trailers(j->phase)))
    return misplaced(j, o);
  if (o->target > PXG_TARGET_TRAILERS)
    return pxg_refuse(j->d, PXG_E_ARG, "operation %u: found target %u, expected 0 or 1", o->kind, o->target);
  if ((named && o->u0) || (!named && o->key.len) || (deletes && !no_value(o))) return unused(j, o);
  if ((o->val_flags & PXG_STR_ABSENT) && !deletes)
    return pxg_refuse(j->d, PXG_E_ARG, "operation %u: found an ABSENT value [PXG-HDR-002]", o->kind);
  const char *fault = NULL;
  if (named) {
    fault = pxg_field_fault(o->key.ptr, o->key.len, o->val.ptr, o->val.len, o->kind == PXG_OP_HEADER_SET,
                            o->target == PXG_TARGET_TRAILERS, direction_of(j->phase));
  } else if (!pxg_value_is_clean(o->val.ptr, o->val.len)) {
    fault = "a value with a byte that is not legal in values";
  }
  if (!fault) return;
  char name[48] = "";
  if (o->key.len) pxg_clean(name, sizeof name, o->key.ptr, o->key.len < 40 ? o->key.len : 40);
  pxg_refuse(j->d, PXG_E_ARG, "operation %u on `%s`: found %s [PXG-HDR-005]", o->kind, name, fault);
}

static void judge_body(judged *j, const pxg_todo *o) {
  bool inject = o->kind == PXG_OP_INJECT;
  if (j->by == BY_APPLY || !pxg_is_body(j->phase)) return misplaced(j, o);
  if (o->target) pxg_refuse(j->d, PXG_E_ARG, "operation %u: found target %u, expected 0", o->kind, o->target);
  if (o->key.len || (inject ? o->u0 != 0 : !no_value(o))) unused(j, o);
  if (j->d->action != PXG_ACT_MORE) return;
  if ((j->flags & PXG_EV_HEADERS_HELD) && o->kind != PXG_OP_DROP)
    pxg_refuse(j->d, PXG_E_ARG, "operation %u: found with MORE while the headers are held [PXG-BODY-013]", o->kind);
  if (!pxg_has(j->c->features, PXG_F_PARTIAL_RELEASE))
    pxg_refuse(j->d, PXG_E_UNSUPPORTED, "operation %u: found with MORE, expected the feature PARTIAL_RELEASE", o->kind);
}

static void judge_route(judged *j, pxg_todo *o) {
  pxg_decision *d = j->d;
  bool here = j->by == BY_APPLY || j->phase == PXG_PHASE_REQUEST_HEADERS ||
              (j->phase == PXG_PHASE_REQUEST_BODY && (j->flags & PXG_EV_HEADERS_HELD));
  if (!here) return misplaced(j, o);
  if (o->target || o->u0) return unused(j, o);
  if (pxg_str_is(&o->key, "recompute")) {
    if (o->val.len) pxg_refuse(d, PXG_E_ARG, "ROUTE recompute: found a value, expected none");
    return;
  }
  if (!pxg_str_is(&o->key, "cluster"))
    return pxg_refuse(d, PXG_E_ARG, "ROUTE: found another key, expected cluster or recompute");
  if (!o->val.len || !pxg_config_may_cluster(j->c, o->val.ptr, o->val.len))
    pxg_refuse(d, PXG_E_ARG, "ROUTE: found a cluster that the operator did not allow [PXG-MUT-004]");
}

/* A feature that is clear: skipped and counted, with MUST a failure (3.2). */
static void needs(judged *j, pxg_todo *o, unsigned feature) {
  if (pxg_has(j->c->features, feature)) return;
  if (o->flags & PXG_OPF_MUST)
    pxg_refuse(j->d, PXG_E_UNSUPPORTED, "operation %u with MUST: expected the feature %s", o->kind,
               pxg_feature_name(feature));
  o->skip = true;
}

static void judge_op(judged *j, pxg_todo *o) {
  pxg_decision *d = j->d;
  if (o->kind != PXG_OP_METRIC && o->target > PXG_TARGET_CLIENT)
    pxg_refuse(d, PXG_E_UNSUPPORTED, "operation %u: found target %u [PXG-ABI-005]", o->kind, o->target);
  if ((o->flags & PXG_OPF_END) && o->kind != PXG_OP_BODY_WRITE)
    pxg_refuse(d, PXG_E_ARG, "operation %u: found END, which is legal on BODY_WRITE only", o->kind);
  switch (o->kind) {
  case PXG_OP_HEADER_SET:
  case PXG_OP_HEADER_ADD:
  case PXG_OP_HEADER_DELETE:
  case PXG_OP_SET_AT:
  case PXG_OP_DELETE_AT: return judge_field(j, o);
  case PXG_OP_PASS:
  case PXG_OP_DROP:
  case PXG_OP_INJECT: return judge_body(j, o);
  case PXG_OP_BODY_WRITE:
    if (j->by != BY_APPLY && j->phase != PXG_PHASE_WAKE) misplaced(j, o);
    if (o->key.len || o->u0 || o->target) unused(j, o);
    return;
  case PXG_OP_METADATA_SET: judge_metadata(j, o); return needs(j, o, PXG_F_METADATA);
  case PXG_OP_METRIC:
    if (o->key.len || !no_value(o)) unused(j, o);
    return;
  case PXG_OP_ROUTE: judge_route(j, o); return needs(j, o, PXG_F_ROUTE);
  default:
    if (o->flags & PXG_OPF_MUST)
      pxg_refuse(d, PXG_E_UNSUPPORTED, "operation: found kind %u with MUST [PXG-MUT-002]", o->kind);
    o->skip = true;
  }
}

static void judge_reply(judged *j) {
  pxg_decision *d = j->d;
  const pxg_answer *r = &d->reply;
  if (r->flags & ~(PXG_REPLY_GRPC | PXG_REPLY_OPEN | PXG_REPLY_FLUSH))
    pxg_refuse(d, PXG_E_UNSUPPORTED, "reply.flags: found 0x%x [PXG-ABI-005]", r->flags);
  if ((r->flags & PXG_REPLY_OPEN) && !pxg_has(j->c->features, PXG_F_STREAM_REPLY))
    pxg_refuse(d, PXG_E_UNSUPPORTED, "reply.flags: found OPEN, expected the feature STREAM_REPLY");
  if (r->status < 200 || r->status > 599)
    pxg_refuse(d, PXG_E_ARG, "reply.status: found %u, expected 200 to 599 [PXG-RPL-001]", r->status);
  if ((r->flags & PXG_REPLY_GRPC) && (r->grpc < 0 || r->grpc > 16))
    pxg_refuse(d, PXG_E_ARG, "reply.grpc_status: found %d, expected 0 to 16", r->grpc);
  uint64_t bytes = 0;
  for (int t = 0; t < 2; t++) {
    const pxg_field *f = t ? r->trailers : r->fields;
    for (size_t i = 0; i < (t ? r->n_trailers : r->n_fields); i++) {
      bytes += (uint64_t)f[i].name.len + f[i].value.len;
      const char *fault = pxg_field_fault(f[i].name.ptr, f[i].name.len, f[i].value.ptr, f[i].value.len, false, t, RSP);
      if (fault) pxg_refuse(d, PXG_E_ARG, "reply: found %s [PXG-HDR-005]", fault);
    }
  }
  if (r->n_fields > j->c->policy.max_fields || r->n_trailers > j->c->policy.max_fields ||
      bytes > j->c->policy.max_bytes)
    pxg_refuse(d, PXG_E_LIMIT, "reply: found %zu fields and %zu trailers of %llu bytes, over the limit [PXG-HDR-009]",
               r->n_fields, r->n_trailers, (unsigned long long)bytes);
}

static void judge_action(judged *j) {
  pxg_decision *d = j->d;
  uint32_t a = d->action;
  if (j->by == BY_EVENT) return;
  if (a == PXG_ACT_UNSET) pxg_refuse(d, PXG_E_ARG, "action: found UNSET");
  bool legal = a == PXG_ACT_CONTINUE || a == PXG_ACT_REPLY || a == PXG_ACT_RESET;
  if (j->by == BY_COMPLETE) {
    bool more =
        (pxg_is_headers(j->phase) || pxg_is_body(j->phase)) && !(j->flags & (PXG_EV_END_STREAM | PXG_EV_BODY_END));
    legal |= a == PXG_ACT_ERROR || (a == PXG_ACT_MORE && more);
  } else if (d->unsubscribe || d->mode[0] || d->mode[1] || d->more_bytes || (d->flags & PXG_RES_RESIZES)) {
    pxg_refuse(d, PXG_E_ARG, "found unsubscribe, body_mode, more_bytes or RESIZES in apply [PXG-ASY-021]");
  }
  if (!legal) pxg_refuse(d, PXG_E_STATE, "action: found %u, which is not legal here [PXG-ASY-010]", a);
}

void pxg_judge(pxg_decision *d, pxg_source by, const pxg_config *c, uint32_t phase, uint32_t flags) {
  judged j = {d, by, c, phase, flags};
  if (d->n_ops > c->policy.max_ops) {
    d->status = PXG_OK;
    return pxg_refuse(d, PXG_E_LIMIT, "ops: found %zu operations, over the limit of %llu [PXG-HDR-009]", d->n_ops,
                      (unsigned long long)c->policy.max_ops);
  }
  if (d->unsubscribe & ~ALL_PHASES)
    pxg_refuse(d, PXG_E_UNSUPPORTED, "unsubscribe: found undefined bits in 0x%llx [PXG-ABI-005]",
               (unsigned long long)d->unsubscribe);
  for (int k = 0; k < 2; k++)
    if (d->mode[k] > PXG_BODY_OBSERVE)
      pxg_refuse(d, PXG_E_UNSUPPORTED, "body_mode[%d]: found %u, expected 0 to 4", k, d->mode[k]);
  if (d->has_reply != (d->action == PXG_ACT_REPLY) && d->action != PXG_ACT_PENDING)
    pxg_refuse(d, PXG_E_ARG, "reply: found %s, expected one exactly with REPLY", d->has_reply ? "one" : "none");
  if (d->has_reply && !d->status) judge_reply(&j);
  judge_action(&j);
  bool all = d->action == PXG_ACT_CONTINUE || d->action == PXG_ACT_MORE;
  for (size_t i = 0; i < d->n_ops; i++) {
    pxg_todo *o = &d->ops[i];
    if (all || o->kind == PXG_OP_METADATA_SET || o->kind == PXG_OP_METRIC)
      judge_op(&j, o);
    else
      o->kind = 0;
  }
}
