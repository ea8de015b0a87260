/* apply with what only an event may answer. WAKE answers the status of the last case. */
#include "guest.h"

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  if (tell(ev, out)) return;
  pxg_op op = {.kind = PXG_OP_METRIC, .target = 1, .u0 = 1};
  pxg_result r = result(PXG_ACT_CONTINUE);
  r.ops = &op;
  r.n_ops = 1;
  switch (the_case(ev)) {
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
  }
  told = host->apply(host->ctx, ev->stream, the_case(ev) == 11 ? NULL : &r);
}

GUEST(config_new, event)
