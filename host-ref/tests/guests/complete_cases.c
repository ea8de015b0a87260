/* complete with results that are none: the token lives on each time. WAKE answers the status of the last case. */
#include "guest.h"

static struct {
  pxg_result r;
  uint64_t tail[4];
} longer;

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  if (tell(ev, out)) return;
  pxg_result r = result(PXG_ACT_CONTINUE);
  memset(&longer, 0, sizeof longer);
  longer.r = r;
  longer.r.size = sizeof longer;
  const pxg_result *give = &r;
  static const uint8_t name[] = "x-split", value[] = "a\r\nb";
  pxg_op op = {.key = {name, sizeof name - 1, 0}, .val = {{value, sizeof value - 1, 0}, 0, 0}};
  pxg_reply reply = {.size = sizeof reply};
  switch (the_case(ev)) {
  case 0: give = NULL; break;
  case 1: give = (const pxg_result *)((const char *)&longer + 4); break;
  case 2: r.size = sizeof r - 8; break;
  case 3: longer.tail[3] = 1ull << 63, give = &longer.r; break;
  case 4: longer.r.size = 100000, give = &longer.r; break;
  case 5: r.action = PXG_ACT_UNSET; break;
  case 6: r.action = PXG_ACT_PENDING; break;
  case 7: r.action = 99; break;
  case 8: r.flags = 0x20; break;
  case 9: give = &longer.r; break; /* longer with zeros: taken */
  case 10: op.kind = PXG_OP_HEADER_SET, r.ops = &op, r.n_ops = 1; break;
  case 11: reply.status = 99, r.action = PXG_ACT_REPLY, r.reply = &reply; break;
  }
  told = host->complete(host->ctx, ev->token, give);
  /* Afterwards a good one, to see whether the token still lives. */
  r = result(PXG_ACT_CONTINUE);
  told = told * 1000 + host->complete(host->ctx, ev->token, &r);
}

GUEST(config_new, event)
