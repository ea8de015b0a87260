/* WAKE: completes the token in `arg` and answers the status. REQUEST_HEADERS: pends. */
#include "guest.h"

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  if (ev->phase == PXG_PHASE_REQUEST_HEADERS) {
    out->action = PXG_ACT_PENDING;
    return;
  }
  pxg_result r = result(PXG_ACT_CONTINUE);
  out->action = PXG_ACT_CONTINUE;
  out->user = (uint64_t)(int64_t)host->complete(host->ctx, ev->arg, &r);
}

GUEST(config_new, event)
