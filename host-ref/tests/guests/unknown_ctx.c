/* Calls every function of the host with a ctx that is not its own. `user` is 1 if all answered as the spec says. */
#include "guest.h"
#include "proxy_golang/ext/metrics.h"

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  static const uint64_t wrong[] = {0, 1, 77, UINT64_MAX, 0x5058470000001000ull};
  pxg_result r = result(PXG_ACT_CONTINUE);
  const pxg_metrics_v1 *m = host->get_ext(host->ctx, (const uint8_t *)PXG_METRICS_V1_ID, strlen(PXG_METRICS_V1_ID));
  int ok = m != NULL && m->size == sizeof *m;
  for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    uint64_t c = wrong[i];
    uint32_t id = 0;
    pxg_str name = LIT("n");
    ok = ok && host->complete(c, ev->token, &r) == PXG_E_STALE && host->apply(c, ev->stream, &r) == PXG_E_STALE &&
         host->wake(c, ev->stream, 1) == PXG_E_STALE && host->scratch_more(c, 1) == NULL &&
         host->get_ext(c, (const uint8_t *)PXG_METRICS_V1_ID, strlen(PXG_METRICS_V1_ID)) == NULL &&
         m->define(c, PXG_METRIC_COUNTER, &name, NULL, 0, &id) == PXG_E_STALE && m->record(c, 1, 1) == PXG_E_STALE;
    host->log(c, PXG_LOG_ERROR, (const uint8_t *)"unseen", 6);
  }
  /* NULL for everything that may be a pointer. */
  ok = ok && host->complete(host->ctx, 0, NULL) == PXG_E_STALE && host->get_ext(host->ctx, NULL, 13) == NULL &&
       host->get_ext(host->ctx, (const uint8_t *)"pxg.metrics/2", 13) == NULL &&
       m->define(host->ctx, PXG_METRIC_COUNTER, NULL, NULL, 0, NULL) == PXG_E_ARG;
  host->log(host->ctx, PXG_LOG_ERROR, NULL, 100);
  out->action = PXG_ACT_CONTINUE;
  out->user = (uint64_t)ok;
}

GUEST(config_new, event)
