/* Hands over OWNED buffers on every path. WAKE answers how many were released, with arg 1 the last status;
 * any other event takes the path of its case. */
#include "guest.h"

static pxg_op ops[40];
static pxg_buf parts[2];
static pxg_reply reply;

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  out->action = PXG_ACT_CONTINUE;
  if (ev->phase == PXG_PHASE_WAKE) {
    out->user = ev->arg ? (uint64_t)told : released;
    return;
  }
  memset(ops, 0, sizeof ops);
  ops[0].kind = PXG_OP_INJECT;
  ops[0].val = owned("inject");
  pxg_result r = result(PXG_ACT_CONTINUE);
  r.ops = ops;
  r.n_ops = 1;
  switch (the_case(ev)) {
  case 0: /* taken */
    out->ops = ops;
    out->n_ops = 1;
    return;
  case 1: /* refused for another reason */
    out->ops = ops;
    out->n_ops = 1;
    out->flags = 1u << 31;
    return;
  case 2: /* the last one is beyond the host's limit of operations */
    for (int i = 1; i < 40; i++) ops[i] = (pxg_op){.kind = PXG_OP_INJECT, .val = owned("x")};
    out->ops = ops;
    out->n_ops = 40;
    return;
  case 3: /* the value of a field */
    ops[0].kind = PXG_OP_HEADER_SET;
    ops[0].key = LIT("x-owned");
    out->ops = ops;
    out->n_ops = 1;
    return;
  case 4: /* parts of a reply, one of them STATIC */
  case 5: /* and refused */
    release(0), released--, free((void *)(uintptr_t)ops[0].val.ctx);
    parts[0] = owned("part");
    parts[1] = (pxg_buf){{(const uint8_t *)"static", 6, PXG_BUF_STATIC}, NULL, 0};
    reply = (pxg_reply){.size = sizeof reply, .status = 200, .body = parts, .n_body = 2};
    if (the_case(ev) == 5) reply.flags = 1u << 9;
    out->action = PXG_ACT_REPLY;
    out->reply = &reply;
    return;
  case 6: /* an operation that nobody knows */
    ops[0].kind = 999;
    out->ops = ops;
    out->n_ops = 1;
    return;
  case 7: /* an error */
    out->action = PXG_ACT_ERROR;
    out->ops = ops;
    out->n_ops = 1;
    return;
  case 8: told = host->complete(host->ctx, 12345, &r); return;    /* no such token */
  case 9: told = host->complete(host->ctx + 1000, 1, &r); return; /* no such guest */
  case 10: told = host->apply(host->ctx, 12345, &r); return;      /* no such stream */
  case 11:                                                        /* a token that lives, an action that ends nothing */
    r.action = PXG_ACT_PENDING;
    told = host->complete(host->ctx, ev->token, &r);
    return;
  case 12: /* a result that is too short to be one, and still has its operations */
    r.size = 64;
    told = host->complete(host->ctx, ev->token, &r);
    return;
  case 13:       /* so short that it has none */
    r.size = 33; /* cuts n_ops */
    told = host->complete(host->ctx, ev->token, &r);
    release(ops[0].val.ctx), released--;
    return;
  case 14: /* accepted; the event then answers something else, or the stream ends before */
    ops[0].kind = PXG_OP_HEADER_SET;
    ops[0].key = LIT("x-owned");
    told = host->complete(host->ctx, ev->token, &r);
    return;
  case 17: /* an operation on bodies, for a token of headers */ told = host->complete(host->ctx, ev->token, &r); return;
  case 15: /* OWNED and STATIC */
    ops[0].val.bytes.flags |= PXG_BUF_STATIC;
    out->ops = ops;
    out->n_ops = 1;
    return;
  case 16: /* released although it has no bytes */
    ops[0].val.bytes.ptr = NULL;
    ops[0].val.bytes.len = 0;
    out->ops = ops;
    out->n_ops = 1;
    return;
  }
}

GUEST(config_new, event)
