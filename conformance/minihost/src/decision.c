/* SPDX-License-Identifier: Apache-2.0 */

/* A guest's result, copied: after this nothing of the guest's memory is read any more (spec/11-memory, 11.3). */

#include "minihost.h"

/* More elements than this are taken for a count that is no count: the array is not touched. */
#define READABLE (1u << 20)

static int rank(int32_t status) {
  switch (status) {
  case PXG_OK: return 9;
  case PXG_E_UNSUPPORTED: return 1;
  case PXG_E_STATE: return 3;
  case PXG_E_LIMIT: return 4;
  default: return 2;
  }
}

void refuse(decision *d, int32_t status, const char *format, ...) {
  if (rank(status) >= rank(d->status)) return;
  va_list args;
  va_start(args, format);
  d->status = status;
  vsnprintf(d->why, sizeof d->why, format, args);
  va_end(args);
}

/* Whether a string can be read; its form is judged on the way. */
static bool string_ok(decision *d, const pxg_str *s, uint32_t flags, const call *lent, const char *what) {
  if ((s->flags & ~flags) && !BUG("undefined-bits-ignored"))
    refuse(d, PXG_E_UNSUPPORTED, "%s: found flags 0x%x, expected bits of 0x%x [PXG-ABI-005]", what, s->flags, flags);
  if ((s->flags & PXG_STR_ABSENT) && (s->len || s->ptr))
    return refuse(d, PXG_E_ARG, "%s: found ABSENT with pointer or length, expected neither [PXG-ABI-012]", what), false;
  if (s->len && !s->ptr) {
    if (!BUG("null-arrays-accepted"))
      refuse(d, PXG_E_ARG, "%s: found NULL with length %u, expected a pointer [PXG-ABI-012]", what, s->len);
    return false;
  }
  if (call_overruns(lent, s->ptr, s->len))
    return refuse(d, PXG_E_ARG, "%s: found a string that leaves the lent scratch [PXG-MEM-012]", what), false;
  return true;
}

static slice take_buf(decision *d, const pxg_buf *b, const call *lent, const char *what) {
  const uint32_t life = b->bytes.flags & (PXG_BUF_STATIC | PXG_BUF_OWNED);
  slice out = {NULL, b->bytes.ptr, b->bytes.len};
  if ((life & PXG_BUF_OWNED) && b->release) {
    out.owner = block_owned(b->release, b->ctx);
    if (BUG("owned-released-twice")) {
      block *again = block_owned(b->release, b->ctx);
      block_unref(again);
    }
  }
  bool ok = string_ok(d, &b->bytes, PXG_STR_ABSENT | PXG_STR_SENSITIVE | PXG_BUF_STATIC | PXG_BUF_OWNED, lent, what);
  if (life == (PXG_BUF_STATIC | PXG_BUF_OWNED))
    refuse(d, PXG_E_ARG, "%s: found STATIC and OWNED, expected one lifetime", what);
  if ((life & PXG_BUF_OWNED) && !b->release) refuse(d, PXG_E_ARG, "%s: found OWNED without release", what);
  if (!ok || !out.len) {
    out.len = 0;
    if (!out.owner) out.ptr = NULL;
    return out;
  }
  if (life || BUG("borrowed-kept")) return out;
  block *copy = block_new(out.len);
  memcpy(copy->data, out.ptr, out.len);
  return (slice){copy, copy->data, out.len};
}

static void take_fields(decision *d, fields *to, const pxg_field *at, uint64_t n, const call *lent, const char *what) {
  if (n && !at) {
    if (!BUG("null-arrays-accepted"))
      refuse(d, PXG_E_ARG, "%s: found NULL with count %llu [PXG-ABI-012]", what, (unsigned long long)n);
    return;
  }
  if (n > READABLE || call_overruns(lent, at, n * sizeof *at))
    return refuse(d, PXG_E_ARG, "%s: found an array that leaves the lent scratch or is no array [PXG-MEM-012]", what);
  if (n > set.max_fields) return refuse(d, PXG_E_LIMIT, "%s: found %llu, over the limit", what, (unsigned long long)n);
  for (uint64_t i = 0; i < n; i++) {
    const pxg_field *f = &at[i];
    if ((f->value.flags & PXG_STR_ABSENT) || (f->name.flags & PXG_STR_ABSENT))
      refuse(d, PXG_E_ARG, "%s: found an ABSENT string, expected a field [PXG-HDR-002]", what);
    if (string_ok(d, &f->name, PXG_STR_ABSENT | PXG_STR_SENSITIVE, lent, what) &&
        string_ok(d, &f->value, PXG_STR_ABSENT | PXG_STR_SENSITIVE, lent, what))
      fields_add(to, f->name.ptr, f->name.len, f->value.ptr, f->value.len, f->name.flags | f->value.flags);
  }
}

static bool zeros_behind(const void *s, uint32_t size, size_t known) {
  const uint8_t *p = s;
  for (uint32_t i = (uint32_t)known; i < size; i++)
    if (p[i]) return false;
  return true;
}

static void take_reply(decision *d, const pxg_reply *r, const call *lent) {
  if (call_overruns(lent, r, sizeof *r))
    return refuse(d, PXG_E_ARG, "reply: found one that leaves the lent scratch [PXG-MEM-012]");
  if (r->size < sizeof *r && !(BUG("zeroed-reply-is-200") && !r->size)) {
    refuse(d, PXG_E_ARG, "reply.size: found %u, expected %zu [PXG-ABI-005]", r->size, sizeof *r);
    return;
  }
  if (!zeros_behind(r, r->size, sizeof *r) && !BUG("undefined-bits-ignored"))
    refuse(d, PXG_E_UNSUPPORTED, "reply: found a tail that is not zero [PXG-ABI-005]");
  if (BUG("reads-past-the-end")) {
    for (size_t i = 0; i < 8192; i++) (void)((const volatile uint8_t *)r)[i];
  }
  reply *o = d->reply = zalloc(sizeof *o);
  o->status = r->status;
  o->flags = r->flags;
  o->grpc = r->grpc_status;
  if (r->n_body && !r->body) {
    if (!BUG("null-arrays-accepted")) refuse(d, PXG_E_ARG, "reply.body: found NULL with a count [PXG-ABI-012]");
  } else if (r->n_body > READABLE || call_overruns(lent, r->body, r->n_body * sizeof *r->body)) {
    refuse(d, PXG_E_ARG, "reply.body: found an array that leaves the lent scratch or is no array [PXG-MEM-012]");
  } else {
    for (uint64_t i = 0; i < r->n_body; i++) bytes_add(&o->body, take_buf(d, &r->body[i], lent, "reply.body"));
  }
  take_fields(d, &o->fields, r->fields, r->n_fields, lent, "reply.fields");
  take_fields(d, &o->trailers, r->trailers, r->n_trailers, lent, "reply.trailers");
  if (string_ok(d, &r->details, PXG_STR_ABSENT | PXG_STR_SENSITIVE, lent, "reply.details"))
    o->details = clean_text(r->details.ptr, r->details.len);
}

static void take_op(decision *d, op *to, const pxg_op *from, const call *lent) {
  to->kind = from->kind;
  to->flags = from->flags;
  to->target = from->target;
  to->u0 = from->u0;
  to->val_flags = from->val.bytes.flags;
  if ((from->flags & ~(PXG_OPF_MUST | PXG_OPF_END)) && !BUG("undefined-bits-ignored"))
    refuse(d, PXG_E_UNSUPPORTED, "operation: found flags 0x%x [PXG-ABI-005]", from->flags);
  if (string_ok(d, &from->key, PXG_STR_ABSENT | PXG_STR_SENSITIVE, lent, "operation.key")) {
    to->key = copy_text(from->key.ptr, from->key.len);
    to->key_len = from->key.len;
  }
  to->val = take_buf(d, &from->val, lent, "operation.val");
}

void decision_read(decision *d, const pxg_result *r, enum source by, const call *lent) {
  if (!r || r->size < sizeof *r) {
    refuse(d, PXG_E_ARG, "size: found %u, expected %zu [PXG-ABI-005]", r ? r->size : 0, sizeof *r);
    return;
  }
  if (by != BY_EVENT && !zeros_behind(r, r->size, sizeof *r) && !BUG("undefined-bits-ignored"))
    refuse(d, PXG_E_UNSUPPORTED, "found a tail that is not zero [PXG-ABI-005]");
  d->action = r->action;
  d->flags = r->flags;
  d->user = r->user;
  d->unsubscribe = r->unsubscribe;
  d->more_bytes = r->more_bytes;
  d->pend_ns = r->pend_ns;
  memcpy(d->mode, r->body_mode, sizeof d->mode);
  d->has_reply = r->reply != NULL;
  if ((d->flags & ~(PXG_RES_RESIZES | PXG_RES_FLUSH)) && !BUG("undefined-bits-ignored"))
    refuse(d, PXG_E_UNSUPPORTED, "flags: found 0x%x [PXG-ABI-005]", d->flags);
  if (r->reserved0 && !BUG("undefined-bits-ignored"))
    refuse(d, PXG_E_UNSUPPORTED, "reserved0: found %u, expected 0 [PXG-ABI-005]", r->reserved0);
  if (r->n_ops && !r->ops) {
    if (!BUG("null-arrays-accepted"))
      refuse(d, PXG_E_ARG, "ops: found NULL with count %llu [PXG-ABI-012]", (unsigned long long)r->n_ops);
  } else if (r->n_ops > READABLE || call_overruns(lent, r->ops, r->n_ops * sizeof *r->ops)) {
    refuse(d, PXG_E_ARG, "ops: found an array that leaves the lent scratch or is no array [PXG-MEM-012]");
  } else if (r->n_ops) {
    uint64_t n = r->n_ops;
    if (BUG("operations-truncated") && n > 1000) n = 1000;
    d->n_ops = n;
    d->ops = zalloc(n * sizeof *d->ops);
    for (uint64_t i = 0; i < n; i++) take_op(d, &d->ops[i], &r->ops[i], lent);
    if (BUG("frees-a-buffer-of-the-guest") && by == BY_EVENT && !call_lent(lent, r->ops))
      free((void *)(uintptr_t)r->ops);
  }
  if (r->reply) take_reply(d, r->reply, lent);
  if (string_ok(d, &r->error, PXG_STR_ABSENT | PXG_STR_SENSITIVE, lent, "error"))
    d->error = clean_text(r->error.ptr, r->error.len);
}

void decision_free(decision *d) {
  for (size_t i = 0; i < d->n_ops; i++) {
    free(d->ops[i].key);
    if (!BUG("owned-leaked-on-refusal") || !d->status) block_unref(d->ops[i].val.owner);
  }
  free(d->ops);
  if (d->reply) {
    fields_free(&d->reply->fields);
    fields_free(&d->reply->trailers);
    bytes_free(&d->reply->body);
    free(d->reply->details);
    free(d->reply);
  }
  free(d->error);
  *d = (decision){0};
}
