/* apply with what only an event may answer. `user` is the status of the case `arg`. */
#include "guest.h"

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  pxg_op op = {.kind = PXG_OP_METRIC, .target = 1, .u0 = 1};
  pxg_result r = result(PXG_ACT_CONTINUE);
  r.ops = &op;
  r.n_ops = 1;
  switch (ev->arg) {
  case 0: r.action = PXG_ACT_MORE; break;
  case 1: r.action = PXG_ACT_PENDING; break;
  case 2: r.action = PXG_ACT_ERROR; break;
  case 3: r.action = PXG_ACT_UNSET; break;
  case 4: r.unsubscribe = PXG_PHASE_BIT(PXG_PHASE_LOG); break;
  case 5: r.body_mode[0] = PXG_BODY_SKIP; break;
  case 6: r.more_bytes = 1; break;
  case 7: r.flags = PXG_RES_RESIZES; break;
  case 8: op = (pxg_op){.kind = PXG_OP_HEADER_DELETE, .key = LIT("a")}; break;
  case 9: op = (pxg_op){.kind = PXG_OP_PASS, .u0 = 1}; break;
  case 10: r.flags = PXG_RES_FLUSH; break; /* legal */
  case 11: out->user = (uint64_t)(int64_t)host->apply(host->ctx, ev->stream, NULL); out->action = PXG_ACT_CONTINUE; return;
  }
  out->user = (uint64_t)(int64_t)host->apply(host->ctx, ev->stream, &r);
  out->action = PXG_ACT_CONTINUE;
}

GUEST(config_new, event)
