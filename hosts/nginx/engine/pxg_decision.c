/* SPDX-License-Identifier: Apache-2.0 */

/* A pxg_result as the engine uses it. Of a result of on_event only body bytes are copied, as it is applied before the
 * guest is entered again; of others everything (spec/11-memory, 11.3). */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "pxg_internal.h"

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

void pxg_refuse(pxg_decision *d, int32_t status, const char *format, ...) {
  if (rank(status) >= rank(d->status)) return;
  va_list args;
  va_start(args, format);
  d->status = status;
  vsnprintf(d->why, sizeof d->why, format, args);
  va_end(args);
}

void pxg_decision_init(pxg_decision *d, pxg_todo *near, size_t near_cap, uint8_t *room, size_t room_cap) {
  memset(d, 0, offsetof(pxg_decision, why));
  d->why[0] = d->text[0] = 0;
  d->ops = d->near = near;
  d->near_cap = near_cap;
  d->room = room;
  d->room_cap = room_cap;
}

typedef struct reader {
  pxg_decision *d;
  const pxg_call *lent;
  bool copy;
} reader;

/* Whether a string can be read; its form is judged on the way. */
static bool readable(reader *r, const pxg_str *s, uint32_t flags, const char *what) {
  if (s->flags & ~flags)
    pxg_refuse(r->d, PXG_E_UNSUPPORTED, "%s: found flags 0x%x, expected bits of 0x%x [PXG-ABI-005]", what, s->flags,
               flags);
  if ((s->flags & PXG_STR_ABSENT) && (s->len || s->ptr)) {
    pxg_refuse(r->d, PXG_E_ARG, "%s: found ABSENT with pointer or length, expected neither [PXG-ABI-012]", what);
    return false;
  }
  if (s->len && !s->ptr) {
    pxg_refuse(r->d, PXG_E_ARG, "%s: found NULL with length %u, expected a pointer [PXG-ABI-012]", what, s->len);
    return false;
  }
  if (r->lent && pxg_call_overruns(r->lent, s->ptr, s->len)) {
    pxg_refuse(r->d, PXG_E_ARG, "%s: found a string that leaves the lent scratch [PXG-MEM-012]", what);
    return false;
  }
  return true;
}

static bool array_ok(reader *r, const void *at, uint64_t n, size_t each, const char *what) {
  if (n && !at) {
    pxg_refuse(r->d, PXG_E_ARG, "%s: found NULL with count %llu [PXG-ABI-012]", what, (unsigned long long)n);
    return false;
  }
  if (n > READABLE || (r->lent && pxg_call_overruns(r->lent, at, n * each))) {
    pxg_refuse(r->d, PXG_E_ARG, "%s: found an array that leaves the lent scratch or is no array [PXG-MEM-012]", what);
    return false;
  }
  return true;
}

/* Room was reserved by `measure`. */
static const uint8_t *copied(reader *r, const uint8_t *ptr, size_t len) {
  pxg_decision *d = r->d;
  if (!r->copy || !len) return len ? ptr : NULL;
  if (d->copies_cap - d->copies_len < len) return NULL;
  uint8_t *to = d->copies + d->copies_len;
  memcpy(to, ptr, len);
  d->copies_len += len;
  return to;
}

static pxg_slice take_buf(reader *r, const pxg_buf *b, bool body, const char *what) {
  pxg_decision *d = r->d;
  const uint32_t life = b->bytes.flags & (PXG_BUF_STATIC | PXG_BUF_OWNED);
  pxg_slice out = {b->bytes.ptr, b->bytes.len, NULL, NULL, false};
  bool lost = false;
  if ((life & PXG_BUF_OWNED) && b->release) {
    out.owner = pxg_block_owned(b->release, b->ctx);
    lost = !out.owner;
    if (lost) b->release(b->ctx);
  }
  bool ok = readable(r, &b->bytes, PXG_STR_ABSENT | PXG_STR_SENSITIVE | PXG_BUF_STATIC | PXG_BUF_OWNED, what);
  if (life == (PXG_BUF_STATIC | PXG_BUF_OWNED))
    pxg_refuse(d, PXG_E_ARG, "%s: found STATIC and OWNED, expected one lifetime", what);
  if ((life & PXG_BUF_OWNED) && !b->release) pxg_refuse(d, PXG_E_ARG, "%s: found OWNED without release", what);
  if (lost) d->no_memory = true;
  if (!ok || !out.len || lost) {
    out.len = 0;
    if (!out.owner) out.ptr = NULL;
    return out;
  }
  if (life) return out;
  if (body) {
    out.lent = true;
    if (!pxg_slice_own(&out)) d->no_memory = true, out = (pxg_slice){0};
  } else {
    out.ptr = copied(r, out.ptr, out.len);
    if (!out.ptr) out.len = 0;
  }
  return out;
}

static void take_fields(reader *r, const pxg_field **to, size_t *count, const pxg_field *at, uint64_t n,
                        const char *what) {
  if (!array_ok(r, at, n, sizeof *at, what) || !n) return;
  pxg_decision *d = r->d;
  pxg_field *mine = NULL;
  if (r->copy) {
    d->copies_len = (d->copies_len + 7) & ~(size_t)7;
    if (d->copies_cap - d->copies_len < n * sizeof *at) return;
    mine = (pxg_field *)(void *)(d->copies + d->copies_len);
    d->copies_len += n * sizeof *at;
  }
  for (uint64_t i = 0; i < n; i++) {
    const pxg_field *f = &at[i];
    if ((f->value.flags | f->name.flags) & PXG_STR_ABSENT)
      pxg_refuse(d, PXG_E_ARG, "%s: found an ABSENT string, expected a field [PXG-HDR-002]", what);
    bool ok = readable(r, &f->name, PXG_STR_ABSENT | PXG_STR_SENSITIVE, what);
    ok = readable(r, &f->value, PXG_STR_ABSENT | PXG_STR_SENSITIVE, what) && ok;
    if (!mine) continue;
    mine[i] = (pxg_field){0};
    if (!ok) continue;
    mine[i].name = (pxg_str){copied(r, f->name.ptr, f->name.len), f->name.len, f->name.flags};
    mine[i].value = (pxg_str){copied(r, f->value.ptr, f->value.len), f->value.len, f->value.flags};
  }
  *to = mine ? mine : at;
  *count = (size_t)n;
}

static bool zeros_behind(const void *s, uint32_t size, size_t known) {
  const uint8_t *p = s;
  for (uint32_t i = (uint32_t)known; i < size; i++)
    if (p[i]) return false;
  return true;
}

static bool take_reply(reader *r, const pxg_reply *from) {
  pxg_decision *d = r->d;
  pxg_answer *o = &d->reply;
  if (r->lent && pxg_call_overruns(r->lent, from, sizeof *from)) {
    pxg_refuse(d, PXG_E_ARG, "reply: found one that leaves the lent scratch [PXG-MEM-012]");
    return false;
  }
  if (from->size < sizeof *from) {
    pxg_refuse(d, PXG_E_ARG, "reply.size: found %u, expected %zu [PXG-ABI-005]", from->size, sizeof *from);
    return false;
  }
  if (!zeros_behind(from, from->size, sizeof *from))
    pxg_refuse(d, PXG_E_UNSUPPORTED, "reply: found a tail that is not zero [PXG-ABI-005]");
  o->status = from->status;
  o->flags = from->flags;
  o->grpc = from->grpc_status;
  if (array_ok(r, from->body, from->n_body, sizeof *from->body, "reply.body"))
    for (uint64_t i = 0; i < from->n_body; i++)
      if (!pxg_bytes_add(&o->body, take_buf(r, &from->body[i], true, "reply.body"))) d->no_memory = true;
  take_fields(r, &o->fields, &o->n_fields, from->fields, from->n_fields, "reply.fields");
  take_fields(r, &o->trailers, &o->n_trailers, from->trailers, from->n_trailers, "reply.trailers");
  if (readable(r, &from->details, PXG_STR_ABSENT | PXG_STR_SENSITIVE, "reply.details"))
    pxg_clean(d->text, sizeof d->text, from->details.ptr, from->details.len);
  return true;
}

static void take_op(reader *r, pxg_todo *to, const pxg_op *from) {
  *to = (pxg_todo){.kind = from->kind, .flags = from->flags, .target = from->target, .u0 = from->u0};
  to->val_flags = from->val.bytes.flags;
  if (from->flags & ~(PXG_OPF_MUST | PXG_OPF_END))
    pxg_refuse(r->d, PXG_E_UNSUPPORTED, "operation: found flags 0x%x [PXG-ABI-005]", from->flags);
  if (readable(r, &from->key, PXG_STR_ABSENT | PXG_STR_SENSITIVE, "operation.key"))
    to->key = (pxg_str){copied(r, from->key.ptr, from->key.len), from->key.len, 0};
  to->val = take_buf(r, &from->val, from->kind == PXG_OP_INJECT || from->kind == PXG_OP_BODY_WRITE, "operation.val");
}

/* Room for everything that will be copied, at most. */
static void measure(reader *r, const pxg_result *from) {
  pxg_decision *d = r->d;
  uint64_t n = 0;
  bool ops = from->ops && from->n_ops <= READABLE;
  for (uint64_t i = 0; ops && i < from->n_ops; i++) n += from->ops[i].key.len + (uint64_t)from->ops[i].val.bytes.len;
  const pxg_reply *p = from->reply;
  if (p && p->size >= sizeof *p) {
    for (int t = 0; t < 2; t++) {
      const pxg_field *f = t ? p->trailers : p->fields;
      uint64_t count = t ? p->n_trailers : p->n_fields;
      if (!f || count > READABLE) continue;
      n += count * sizeof *f + 8;
      for (uint64_t i = 0; i < count; i++) n += (uint64_t)f[i].name.len + f[i].value.len;
    }
  }
  if (!n) return;
  d->copies = n <= d->room_cap ? d->room : malloc(n);
  if (d->copies) d->copies_cap = n;
  if (!d->copies) d->no_memory = true;
}

static void release_all(const pxg_result *from) {
  for (uint64_t i = 0; i < from->n_ops; i++) {
    const pxg_buf *b = &from->ops[i].val;
    if ((b->bytes.flags & PXG_BUF_OWNED) && b->release) b->release(b->ctx);
  }
}

static void take_ops(reader *r, const pxg_result *from) {
  pxg_decision *d = r->d;
  if (!array_ok(r, from->ops, from->n_ops, sizeof *from->ops, "ops")) return;
  if (from->n_ops > d->near_cap) {
    d->ops = malloc((size_t)from->n_ops * sizeof *d->ops);
    if (!d->ops) {
      d->ops = d->near;
      d->no_memory = true;
      return release_all(from);
    }
  }
  d->n_ops = (size_t)from->n_ops;
  for (size_t i = 0; i < d->n_ops; i++) take_op(r, &d->ops[i], &from->ops[i]);
}

void pxg_decision_read(pxg_decision *d, const pxg_result *from, pxg_source by, const pxg_call *lent) {
  reader r = {d, lent, by != BY_EVENT};
  if (!from || from->size < sizeof *from) {
    pxg_refuse(d, PXG_E_ARG, "size: found %u, expected %zu [PXG-ABI-005]", from ? from->size : 0, sizeof *from);
    return;
  }
  if (by != BY_EVENT && !zeros_behind(from, from->size, sizeof *from))
    pxg_refuse(d, PXG_E_UNSUPPORTED, "found a tail that is not zero [PXG-ABI-005]");
  d->action = from->action;
  d->flags = from->flags;
  d->user = from->user;
  d->unsubscribe = from->unsubscribe;
  d->more_bytes = from->more_bytes;
  d->pend_ns = from->pend_ns;
  memcpy(d->mode, from->body_mode, sizeof d->mode);
  if (d->flags & ~(PXG_RES_RESIZES | PXG_RES_FLUSH))
    pxg_refuse(d, PXG_E_UNSUPPORTED, "flags: found 0x%x [PXG-ABI-005]", d->flags);
  if (from->reserved0)
    pxg_refuse(d, PXG_E_UNSUPPORTED, "reserved0: found %u, expected 0 [PXG-ABI-005]", from->reserved0);
  if (r.copy) measure(&r, from);
  take_ops(&r, from);
  d->has_reply = from->reply != NULL;
  if (from->reply) take_reply(&r, from->reply);
  if (readable(&r, &from->error, PXG_STR_ABSENT | PXG_STR_SENSITIVE, "error") && from->error.len)
    pxg_clean(d->text, sizeof d->text, from->error.ptr, from->error.len);
}

void pxg_result_release(const pxg_result *r) {
  pxg_decision d;
  pxg_todo near[PXG_LETTER_OPS];
  pxg_decision_init(&d, near, PXG_LETTER_OPS, NULL, 0);
  pxg_decision_read(&d, r, BY_EVENT, NULL);
  pxg_decision_free(&d);
}

void pxg_decision_free(pxg_decision *d) {
  for (size_t i = 0; i < d->n_ops; i++) pxg_block_unref(d->ops[i].val.owner);
  if (d->ops != d->near) free(d->ops);
  pxg_bytes_free(&d->reply.body);
  if (d->copies != d->room) free(d->copies);
  d->copies = NULL;
  d->ops = d->near;
  d->n_ops = 0;
}
