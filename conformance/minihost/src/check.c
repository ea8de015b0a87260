/* SPDX-License-Identifier: Apache-2.0 */

/* The checks of a result that need no state of the stream (spec/10-operations, 12.2). */

#include "minihost.h"

#define BIT(p) (1u << (p))
#define HEADERS_PHASES (BIT(PXG_PHASE_REQUEST_HEADERS) | BIT(PXG_PHASE_RESPONSE_HEADERS))
#define BODY_PHASES (BIT(PXG_PHASE_REQUEST_BODY) | BIT(PXG_PHASE_RESPONSE_BODY))
#define TRAILERS_PHASES (BIT(PXG_PHASE_REQUEST_TRAILERS) | BIT(PXG_PHASE_RESPONSE_TRAILERS))
#define L4_DATA (BIT(PXG_PHASE_L4_DOWNSTREAM) | BIT(PXG_PHASE_L4_UPSTREAM))

bool is_body_phase(uint32_t phase) { return (BODY_PHASES | L4_DATA) >> phase & 1; }

bool is_headers_phase(uint32_t phase) { return (HEADERS_PHASES | BIT(PXG_PHASE_L4_OPEN)) >> phase & 1; }

static int direction_of(uint32_t phase) {
  return phase >= PXG_PHASE_RESPONSE_HEADERS && phase <= PXG_PHASE_RESPONSE_TRAILERS ? RSP : REQ;
}

static bool word(const char *p, size_t n, const char *more) {
  for (size_t i = 0; i < n; i++)
    if (!(p[i] >= 'a' && p[i] <= 'z') && !(p[i] >= 'A' && p[i] <= 'Z') && !(p[i] >= '0' && p[i] <= '9') &&
        !(p[i] && strchr(more, p[i])))
      return false;
  return n >= 1 && n <= 128;
}

static bool granted(const config *c, const char *space, size_t n) {
  if (n == strlen(c->instance) && !memcmp(space, c->instance, n)) return true;
  for (size_t i = 0; i < c->spec->n_grants; i++)
    if (strlen(c->spec->grants[i]) == n && !memcmp(c->spec->grants[i], space, n)) return true;
  return BUG("namespace-forged");
}

static bool route_allowed(const config *c, const char *name) {
  for (size_t i = 0; i < c->spec->n_allow; i++)
    if (!strcmp(c->spec->allow[i], name)) return true;
  return !c->spec->n_allow;
}

static void check_metadata(decision *d, const op *o, const config *c) {
  if (o->u0 > o->key_len) return refuse(d, PXG_E_ARG, "METADATA_SET: found a namespace longer than key");
  size_t n = (size_t)o->u0;
  if (n && !word(o->key, n, "_-/"))
    return refuse(d, PXG_E_ARG, "METADATA_SET: found a namespace that is not a word of 16.5");
  if (!word(o->key + n, o->key_len - n, "_-/."))
    return refuse(d, PXG_E_ARG, "METADATA_SET: found a key that is not a word of 16.5");
  if (n && !granted(c, o->key, n))
    return refuse(d, PXG_E_ARG,
                  "METADATA_SET: found the namespace %.*s, expected a grant of the operator [PXG-CHN-003]", (int)n,
                  o->key);
  if (o->target || (o->val_flags & PXG_STR_ABSENT))
    return refuse(d, PXG_E_ARG, "METADATA_SET: found a target or ABSENT [PXG-MUT-006]");
  if (o->val.len > 64 << 10)
    refuse(d, PXG_E_LIMIT, "METADATA_SET: found %zu bytes, expected at most 64 KiB", o->val.len);
}

static void check_field(decision *d, const op *o, uint32_t phase, enum source by) {
  bool named = o->kind <= PXG_OP_HEADER_DELETE;
  if (by == BY_APPLY || !((HEADERS_PHASES | BODY_PHASES | TRAILERS_PHASES) >> phase & 1)) {
    if (!BUG("operations-everywhere"))
      refuse(d, PXG_E_ARG, "operation %u: found in %s, where it is not legal [PXG-MUT-006]", o->kind,
             by == BY_APPLY ? "apply" : phase_name(phase));
    return;
  }
  if (o->target > PXG_TARGET_TRAILERS)
    return refuse(d, PXG_E_ARG, "operation %u: found target %u, expected 0 or 1", o->kind, o->target);
  bool no_value = o->kind == PXG_OP_HEADER_DELETE || o->kind == PXG_OP_DELETE_AT;
  bool zero = o->val.len == 0 && !o->val_flags && !o->val.owner;
  if (((named && o->u0) || (!named && o->key_len) || (no_value && !zero)) && !BUG("unused-members-ignored"))
    return refuse(d, PXG_E_ARG, "operation %u: found a member that it does not use, expected zero [PXG-MUT-006]",
                  o->kind);
  if ((o->val_flags & PXG_STR_ABSENT) && !no_value && !BUG("absent-value-is-empty"))
    return refuse(d, PXG_E_ARG, "operation %u: found an ABSENT value [PXG-HDR-002]", o->kind);
  const char *fault = NULL;
  if (named) {
    fault = field_fault((const uint8_t *)o->key, o->key_len, o->val.ptr, o->val.len, o->kind == PXG_OP_HEADER_SET,
                        o->target == PXG_TARGET_TRAILERS, direction_of(phase));
  } else if (!value_is_clean(o->val.ptr, o->val.len) && !BUG("values-unchecked")) {
    fault = "a value with a byte that is not legal in values";
  }
  if (BUG("complete-judges-nothing-early") && by == BY_COMPLETE) return;
  if (fault)
    refuse(d, PXG_E_ARG, "operation %u on `%.40s`: found %s [PXG-HDR-005]", o->kind, o->key ? o->key : "", fault);
}

static void check_body(decision *d, const op *o, uint32_t phase, uint32_t flags, enum source by, bool l4) {
  bool inject = o->kind == PXG_OP_INJECT;
  bool elsewhere = inject && l4 && (by == BY_APPLY || phase == PXG_PHASE_WAKE);
  if (!elsewhere && (by == BY_APPLY || !is_body_phase(phase))) {
    if (!BUG("operations-everywhere"))
      refuse(d, PXG_E_ARG, "operation %u: found in %s, where it is not legal [PXG-MUT-006]", o->kind,
             by == BY_APPLY ? "apply" : phase_name(phase));
    return;
  }
  bool target =
      o->target == 0 || (inject && l4 && (o->target == PXG_TARGET_UPSTREAM || o->target == PXG_TARGET_CLIENT));
  if (elsewhere && o->target == 0) target = false;
  if (!target) refuse(d, PXG_E_ARG, "operation %u: found target %u", o->kind, o->target);
  bool zero = inject ? !o->u0 : !o->val.len && !o->val_flags && !o->val.owner;
  if ((o->key_len || !zero) && !BUG("unused-members-ignored"))
    refuse(d, PXG_E_ARG, "operation %u: found a member that it does not use, expected zero [PXG-MUT-006]", o->kind);
  if (d->action == PXG_ACT_MORE && (flags & PXG_EV_HEADERS_HELD) && o->kind != PXG_OP_DROP &&
      !BUG("bytes-overtake-headers"))
    refuse(d, PXG_E_ARG, "operation %u: found with MORE while the headers are held [PXG-BODY-013]", o->kind);
}

static void check_route(decision *d, const op *o, const config *c, uint32_t phase, uint32_t flags, enum source by,
                        bool l4) {
  bool l4_open = phase == PXG_PHASE_L4_OPEN && !BUG("route-refused-at-l4-open");
  bool here = by == BY_APPLY || phase == PXG_PHASE_REQUEST_HEADERS || l4_open ||
              (phase == PXG_PHASE_REQUEST_BODY && (flags & PXG_EV_HEADERS_HELD));
  if (!here && !BUG("operations-everywhere"))
    return refuse(d, PXG_E_ARG, "ROUTE: found in %s, where it is not legal [PXG-MUT-006]", phase_name(phase));
  if (o->target || o->u0) return refuse(d, PXG_E_ARG, "ROUTE: found a member that it does not use [PXG-MUT-006]");
  if (o->key_len == 9 && !memcmp(o->key, "recompute", 9) && !l4) {
    if (o->val.len) refuse(d, PXG_E_ARG, "ROUTE recompute: found a value, expected none");
    return;
  }
  if (o->key_len != 7 || memcmp(o->key, "cluster", 7))
    return refuse(d, PXG_E_ARG, "ROUTE: found `%.40s`, expected cluster or recompute", o->key);
  cluster *to = o->val.len < 64 ? cluster_find((const char *)o->val.ptr, o->val.len) : NULL;
  if ((!to || !route_allowed(c, to->name)) && !BUG("any-cluster-accepted"))
    refuse(d, PXG_E_ARG, "ROUTE: found a cluster that does not exist or is not allowed [PXG-MUT-004]");
}

static void check_op(decision *d, op *o, const config *c, uint32_t phase, uint32_t flags, enum source by) {
  bool l4 = has_feature(c->features, PXG_F_L4);
  if (o->kind != PXG_OP_METRIC && o->target > PXG_TARGET_CLIENT && !BUG("undefined-bits-ignored"))
    refuse(d, PXG_E_UNSUPPORTED, "operation %u: found target %u [PXG-ABI-005]", o->kind, o->target);
  if ((o->flags & PXG_OPF_END) && o->kind != PXG_OP_BODY_WRITE)
    refuse(d, PXG_E_ARG, "operation %u: found END, which is legal on BODY_WRITE only", o->kind);
  switch (o->kind) {
  case PXG_OP_HEADER_SET:
  case PXG_OP_HEADER_ADD:
  case PXG_OP_HEADER_DELETE:
  case PXG_OP_SET_AT:
  case PXG_OP_DELETE_AT: return check_field(d, o, phase, by);
  case PXG_OP_PASS:
  case PXG_OP_DROP:
  case PXG_OP_INJECT: return check_body(d, o, phase, flags, by, l4);
  case PXG_OP_BODY_WRITE:
    if ((by != BY_APPLY && phase != PXG_PHASE_WAKE) || l4)
      refuse(d, PXG_E_ARG, "BODY_WRITE: found in %s, expected apply or wake [PXG-MUT-006]", phase_name(phase));
    if (o->key_len || o->u0 || o->target)
      refuse(d, PXG_E_ARG, "BODY_WRITE: found a member that it does not use [PXG-MUT-006]");
    return;
  case PXG_OP_METADATA_SET: return check_metadata(d, o, c);
  case PXG_OP_METRIC:
    if (o->key_len || o->val.len || o->val_flags)
      refuse(d, PXG_E_ARG, "METRIC: found a member that it does not use [PXG-MUT-006]");
    return;
  case PXG_OP_ROUTE: return check_route(d, o, c, phase, flags, by, l4);
  default:
    if ((o->flags & PXG_OPF_MUST) && !BUG("unknown-kind-never-fails"))
      refuse(d, PXG_E_UNSUPPORTED, "operation: found kind %u with MUST [PXG-MUT-002]", o->kind);
    if (BUG("unknown-kind-always-fails")) refuse(d, PXG_E_UNSUPPORTED, "operation: found kind %u", o->kind);
    o->skip = true;
  }
}

static void check_reply(decision *d, bool l4) {
  reply *r = d->reply;
  if (!r) return;
  if ((r->flags & ~(PXG_REPLY_GRPC | PXG_REPLY_OPEN | PXG_REPLY_FLUSH)) && !BUG("undefined-bits-ignored"))
    refuse(d, PXG_E_UNSUPPORTED, "reply.flags: found 0x%x [PXG-ABI-005]", r->flags);
  if (BUG("zeroed-reply-is-200") && !r->status) r->status = 200;
  if ((r->status < 200 || r->status > 599) && !BUG("any-reply-status"))
    refuse(d, PXG_E_ARG, "reply.status: found %u, expected 200 to 599 [PXG-RPL-001]", r->status);
  if ((r->flags & PXG_REPLY_GRPC) && (r->grpc < 0 || r->grpc > 16))
    refuse(d, PXG_E_ARG, "reply.grpc_status: found %d, expected 0 to 16", r->grpc);
  for (int t = 0; t < 2; t++) {
    const fields *f = t ? &r->trailers : &r->fields;
    for (size_t i = 0; i < f->n; i++) {
      const char *fault = field_fault((const uint8_t *)f->at[i].name, f->at[i].name_len,
                                      (const uint8_t *)f->at[i].value, f->at[i].value_len, false, t, RSP);
      if (fault && !BUG("reply-fields-unchecked"))
        refuse(d, PXG_E_ARG, "reply field `%.40s`: found %s [PXG-HDR-005]", f->at[i].name, fault);
    }
  }
  if (l4) refuse(d, PXG_E_STATE, "found REPLY on a connection");
}

static void check_action(decision *d, enum source by, uint32_t phase, uint32_t flags) {
  uint32_t a = d->action;
  if (by == BY_APPLY) {
    if (a == PXG_ACT_UNSET) refuse(d, PXG_E_ARG, "action: found UNSET");
    if (a != PXG_ACT_CONTINUE && a != PXG_ACT_REPLY && a != PXG_ACT_RESET && !BUG("apply-takes-any-action"))
      refuse(d, PXG_E_STATE, "action: found %u, expected CONTINUE, REPLY or RESET [PXG-ASY-021]", a);
    if (d->unsubscribe || d->mode[0] || d->mode[1] || d->more_bytes || (d->flags & PXG_RES_RESIZES))
      refuse(d, PXG_E_ARG, "found unsubscribe, body_mode, more_bytes or RESIZES in apply [PXG-ASY-021]");
    return;
  }
  if (by != BY_COMPLETE) return;
  if (a == PXG_ACT_UNSET) refuse(d, PXG_E_ARG, "action: found UNSET");
  bool can_more = (is_headers_phase(phase) && phase != PXG_PHASE_L4_OPEN) || is_body_phase(phase);
  if (flags & (PXG_EV_END_STREAM | PXG_EV_BODY_END)) can_more = false;
  bool legal = a == PXG_ACT_CONTINUE || a == PXG_ACT_REPLY || a == PXG_ACT_RESET || a == PXG_ACT_ERROR ||
               (a == PXG_ACT_MORE && can_more);
  if (!legal) refuse(d, PXG_E_STATE, "action: found %u, which is not legal here [PXG-ASY-010]", a);
}

void decision_check(decision *d, enum source by, const config *c, uint32_t phase, uint32_t flags) {
  bool limited = d->n_ops > (BUG("operations-limited-to-256") ? 256 : set.max_ops);
  if (limited) {
    d->status = PXG_E_LIMIT;
    snprintf(d->why, sizeof d->why, "ops: found %zu operations, over the limit of %llu [PXG-HDR-009]", d->n_ops,
             (unsigned long long)set.max_ops);
    return;
  }
  if ((d->unsubscribe & ~0xf01feull) && !BUG("undefined-bits-ignored"))
    refuse(d, PXG_E_UNSUPPORTED, "unsubscribe: found undefined bits in 0x%llx [PXG-ABI-005]",
           (unsigned long long)d->unsubscribe);
  for (int k = 0; k < 2; k++)
    if (d->mode[k] > PXG_BODY_OBSERVE)
      refuse(d, PXG_E_UNSUPPORTED, "body_mode[%d]: found %u, expected 0 to 4", k, d->mode[k]);
  if (d->has_reply != (d->action == PXG_ACT_REPLY) && d->action != PXG_ACT_PENDING)
    refuse(d, PXG_E_ARG, "reply: found %s, expected one exactly with REPLY", d->has_reply ? "one" : "none");
  check_reply(d, has_feature(c->features, PXG_F_L4));
  check_action(d, by, phase, flags);
  bool all = d->action == PXG_ACT_CONTINUE || d->action == PXG_ACT_MORE;
  for (size_t i = 0; i < d->n_ops; i++) {
    op *o = &d->ops[i];
    bool effect = o->kind == PXG_OP_METADATA_SET || o->kind == PXG_OP_METRIC;
    if (!effect && !all && !BUG("operations-with-any-action")) {
      o->kind = 0;
    } else {
      int32_t before = d->status;
      check_op(d, o, c, phase, flags, by);
      if (BUG("bad-operation-left-out") && d->status != before) {
        d->status = before;
        o->kind = 0;
      }
    }
  }
}
