/* Says at LOG what the event tells: `arg`, and the attributes of both bodies. */
#include "guest.h"
#include <stdio.h>

static int32_t configure(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  static const uint64_t log = PXG_PHASE_BIT(PXG_PHASE_LOG);
  static pxg_attr_want want[2];
  int32_t status = config_new(ctx, in, out);
  want[0] = (pxg_attr_want){LIT("request.body_bytes"), log, 0, 0};
  want[1] = (pxg_attr_want){LIT("response.body_bytes"), log, 0, 0};
  out->subscribe = PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS) | log;
  out->pend_phases = 0;
  out->attrs = want;
  out->n_attrs = 2;
  return status;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  char text[128];
  (void)ctx;
  out->action = PXG_ACT_CONTINUE;
  if (ev->phase == PXG_PHASE_RESPONSE_HEADERS)
    snprintf(text, sizeof text, "flags upgraded=%d end=%d", !!(ev->flags & PXG_EV_UPGRADED),
             !!(ev->flags & PXG_EV_END_STREAM));
  else
    snprintf(text, sizeof text, "LOG arg=%#x request=%.*s response=%.*s", (unsigned)ev->arg, (int)ev->attrs[0].len,
             (const char *)ev->attrs[0].ptr, (int)ev->attrs[1].len, (const char *)ev->attrs[1].ptr);
  say(PXG_LOG_WARN, text);
}

GUEST(configure, event)
