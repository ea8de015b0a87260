/* A result that does not hold together: the case is `arg`. */
#include "guest.h"

static pxg_op ops[64];
static pxg_field fields[2];
static pxg_reply reply;
static struct {
  pxg_reply reply;
  uint64_t tail[2];
} long_reply;

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  memset(ops, 0, sizeof ops);
  memset(&long_reply, 0, sizeof long_reply);
  reply = (pxg_reply){.size = sizeof reply, .status = 200};
  out->action = PXG_ACT_CONTINUE;
  out->ops = ops;
  pxg_op *op = &ops[0];
  *op = (pxg_op){.kind = PXG_OP_HEADER_SET, .key = LIT("a"), .val = borrowed("b")};
  switch (ev->arg) {
  case 0: out->n_ops = 1; break; /* nothing wrong */
  case 1: out->size -= 8; break;
  case 2: out->size += 64; break;
  case 3: out->flags = 0x10; break;
  case 4: out->reserved0 = 1; break;
  case 5: out->unsubscribe = 1ull << 50; break;
  case 6: out->body_mode[1] = 7; break;
  case 7: out->n_ops = 33; break; /* the test's limit is 32 */
  case 8: out->ops = NULL, out->n_ops = 1; break;
  case 9: out->ops = (const pxg_op *)((const char *)ops + 4), out->n_ops = 1; break;
  case 10: out->ops = out->scratch_ops + out->scratch_ops_cap - 1, out->n_ops = 2; break;
  case 11: out->n_ops = 1, op->key = (pxg_str){out->scratch + out->scratch_cap - 3, 10, 0}; break;
  case 12: out->n_ops = 1, op->val.bytes = (pxg_str){out->scratch + 1, (uint32_t)out->scratch_cap, 0}; break;
  case 13: {
    uint8_t *more = host->scratch_more(host->ctx, 100);
    out->n_ops = 1, op->val.bytes = (pxg_str){more + 90, 11, 0};
    break;
  }
  case 14: out->n_ops = 1, op->key.ptr = NULL; break;
  case 15: out->n_ops = 1, op->key.flags = 0x40; break;
  case 16: out->n_ops = 1, op->key.flags = PXG_STR_ABSENT; break;
  case 17: out->n_ops = 1, op->flags = 0x8000; break;
  case 18: out->n_ops = 1, op->target = 9; break;
  case 19: out->n_ops = 1, op->target = PXG_TARGET_CLIENT; break;
  case 20: out->n_ops = 1, op->val.bytes.flags = 0x40; break;
  case 21: out->n_ops = 1, op->val.bytes.flags = PXG_BUF_OWNED; break; /* and no release */
  case 22: out->n_ops = 1, op->val.release = release; break;           /* and not OWNED */
  case 23: out->n_ops = 1, op->u0 = 5; break;
  case 24: out->n_ops = 1, op->kind = PXG_OP_HEADER_DELETE; break; /* with a value */
  case 25: out->n_ops = 1, *op = (pxg_op){.kind = PXG_OP_ROUTE, .key = LIT("elsewhere")}; break;
  case 26: out->n_ops = 1, *op = (pxg_op){.kind = PXG_OP_METADATA_SET, .u0 = 4, .key = LIT("abc")}; break;
  case 27: out->n_ops = 1, op->flags = PXG_OPF_END; break;
  case 28: out->action = PXG_ACT_REPLY; break;
  case 29: out->reply = &reply; break;
  case 30: out->action = PXG_ACT_REPLY, out->reply = &reply, reply.size = 40; break;
  case 31: /* longer, with zeros: legal */
  case 32: /* longer, with something */
    long_reply.reply = reply;
    long_reply.reply.size = sizeof long_reply;
    long_reply.tail[1] = ev->arg == 32 ? 0x70000 : 0;
    out->action = PXG_ACT_REPLY, out->reply = &long_reply.reply;
    break;
  case 33: out->action = PXG_ACT_REPLY, out->reply = &reply, reply.flags = 0x100; break;
  case 34: out->action = PXG_ACT_REPLY, out->reply = &reply, reply.n_fields = 2; break;
  case 35:
    out->action = PXG_ACT_REPLY, out->reply = &reply;
    fields[1].name = LIT("x"), fields[1].value = (pxg_str){NULL, 3, 0};
    fields[0].name = LIT("x"), reply.fields = fields, reply.n_fields = 2;
    break;
  case 36: out->action = PXG_ACT_REPLY, out->reply = &reply, reply.fields = fields, reply.n_fields = 1000; break;
  case 37: out->action = PXG_ACT_REPLY, out->reply = &reply, reply.size = 5000; break;
  case 38: out->n_ops = UINT64_MAX; break;
  case 39: out->error = (pxg_str){NULL, 4, 0}; break;
  case 40: /* two faults: UNSUPPORTED comes before ARG */
    out->n_ops = 2, op->key.ptr = NULL;
    ops[1] = (pxg_op){.kind = PXG_OP_PASS, .flags = 0x4000};
    break;
  case 41: out->n_ops = 1, *op = (pxg_op){.kind = PXG_OP_ROUTE, .key = LIT("recompute"), .val = borrowed("x")}; break;
  case 42: out->n_ops = 1, *op = (pxg_op){.kind = PXG_OP_PASS, .u0 = 1, .target = 1}; break;
  case 43: out->action = PXG_ACT_REPLY, out->reply = (const pxg_reply *)((const char *)&reply + 2); break;
  }
}

GUEST(config_new, event)
