/* A guest that does nothing wrong; LOG answers the counters: arg 0 configurations dropped, 1 workers up, 2 workers down,
 * 3 the length of the view's first value, 4 whether empty arrays and strings came as NULL. */
#include "guest.h"

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  out->action = PXG_ACT_CONTINUE;
  switch (ev->arg) {
  case 0: out->user = dropped; break;
  case 1: out->user = up; break;
  case 2: out->user = down; break;
  case 3: out->user = ev->n_fields ? ev->fields[0].value.len : 999; break;
  case 4:
    out->user =
        !ev->trailers && !ev->peer_fields && !ev->chunks && !ev->attrs && ev->n_fields == 1 && !ev->fields[0].value.ptr;
    break;
  }
}

GUEST(config_new, event)
