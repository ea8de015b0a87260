/* REQUEST_HEADERS keeps 99 in `user` and returns a result that does not hold together. WAKE answers the `user` with which
 * `on_stream_end` was called. */
#include "guest.h"

static void stream_end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t w) {
  (void)ctx, (void)config, (void)stream, (void)w;
  told = (int64_t)user;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  if (tell(ev, out)) return;
  out->user = 99;
  out->flags = 0x10;
}

GUEST(config_new, event, out->on_stream_end = stream_end)
