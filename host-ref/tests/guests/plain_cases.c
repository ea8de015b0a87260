/* Operations on fields by name, in borrowed memory: the case is the field `case` of the request. With 10 added the same
 * comes by `complete`, when the batch ends. WAKE answers the status of that. */
#include "guest.h"

static uint64_t token;
static uint64_t which;
static pxg_op ops[2];

static uint64_t make(uint64_t n) {
  ops[0] = (pxg_op){.kind = PXG_OP_HEADER_SET, .key = LIT("x-set"), .val = borrowed("1")};
  ops[1] = (pxg_op){.kind = PXG_OP_HEADER_ADD, .key = LIT("x-add"), .val = borrowed("2")};
  switch (n) {
  case 0: return 0;
  case 1: ops[1].val.bytes.flags = PXG_STR_SENSITIVE; break;
  case 2: ops[1].key = LIT("X-Upper"); break;
  case 3: ops[1].key = LIT("host"); break;
  case 4: ops[1].val = borrowed("a\nb"); break;
  case 5: ops[1].target = PXG_TARGET_TRAILERS; break;
  case 6: ops[1].target = PXG_TARGET_TRAILERS, ops[1].flags = PXG_OPF_MUST; break;
  case 7: ops[1].kind = PXG_OP_HEADER_SET, ops[1].key = LIT(":path"), ops[1].val = borrowed("/new"); break;
  case 8: ops[1] = (pxg_op){.kind = PXG_OP_HEADER_DELETE, .key = LIT("case")}; break;
  case 9: ops[1].key = LIT(""); break;
  }
  return 2;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  if (tell(ev, out)) return;
  which = the_case(ev);
  if (which >= 10) {
    out->action = PXG_ACT_PENDING;
    token = ev->token;
    return;
  }
  out->ops = ops;
  out->n_ops = make(which);
}

static void batch_end(uint64_t ctx, uint32_t worker) {
  (void)ctx, (void)worker;
  pxg_result r = result(PXG_ACT_CONTINUE);
  r.ops = ops;
  r.n_ops = make(which - 10);
  told = host->complete(host->ctx, token, &r);
}

GUEST(config_new, event, out->on_batch_end = batch_end)
