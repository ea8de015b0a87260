/* Defines metrics; `user` is 1 if all statuses were right. arg 1: records what was defined; arg 2: record(id of another). */
#include "guest.h"
#include "proxy_golang/ext/metrics.h"

static uint32_t counter, gauge;

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  const pxg_metrics_v1 *m = host->get_ext(host->ctx, (const uint8_t *)PXG_METRICS_V1_ID, strlen(PXG_METRICS_V1_ID));
  pxg_str hits = LIT("hits"), depth = LIT("depth"), bad = LIT("no-name");
  pxg_field labels[] = {{LIT("code"), LIT("200")}};
  uint32_t again = 0;
  int ok = 1;
  out->action = PXG_ACT_CONTINUE;
  switch (ev->arg) {
  case 0:
    ok = m->define(host->ctx, PXG_METRIC_COUNTER, &hits, labels, 1, &counter) == PXG_OK && counter != 0 &&
         m->define(host->ctx, PXG_METRIC_COUNTER, &hits, labels, 1, &again) == PXG_OK && again == counter &&
         m->define(host->ctx, PXG_METRIC_GAUGE, &depth, NULL, 0, &gauge) == PXG_OK &&
         m->define(host->ctx, PXG_METRIC_GAUGE, &hits, labels, 1, &again) == PXG_E_ARG &&
         m->define(host->ctx, PXG_METRIC_GAUGE, &bad, NULL, 0, &again) == PXG_E_ARG &&
         m->define(host->ctx, PXG_METRIC_GAUGE, &depth, NULL, 1, &again) == PXG_E_ARG;
    break;
  case 1:
    ok = m->record(host->ctx, counter, 5) == PXG_OK && m->record(host->ctx, gauge, -2) == PXG_OK &&
         m->record(host->ctx, counter, -1) == PXG_E_ARG && m->record(host->ctx, 0, 1) == PXG_E_NOTFOUND;
    break;
  case 2: ok = m->record(host->ctx, 1, 1) == PXG_E_NOTFOUND; break;
  case 3: ok = (int)counter; break;
  }
  out->user = (uint64_t)ok;
}

GUEST(config_new, event)
