/* Never decides, and says in which order all of it ends. */
#include "guest.h"

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  out->user = 1;
  out->action = ev->token ? PXG_ACT_PENDING : PXG_ACT_CONTINUE;
  if (ev->token) say(PXG_LOG_WARN, "end: pending");
}

static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)token, (void)w;
  say(PXG_LOG_WARN, "end: cancel");
}

static void stream_end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t w) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)w;
  say(PXG_LOG_WARN, "end: stream");
}

static void drop(uint64_t ctx, uint64_t config) {
  (void)ctx, (void)config;
  say(PXG_LOG_WARN, "end: config");
}

static void worker(uint64_t ctx, uint32_t w, uint32_t is_up) {
  (void)ctx, (void)w;
  if (!is_up) say(PXG_LOG_WARN, "end: worker");
}

GUEST(config_new, event, out->on_cancel = cancel; out->on_stream_end = stream_end; out->on_config_drop = drop;
      out->on_worker = worker)
