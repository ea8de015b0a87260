/* The benchmarks' guest in C: the same filters as in ../main.go and ../rust/src/lib.rs. */
#include "proxy_golang_guest.h"

enum { SYNC = 1, WHOLE, NOOP };

static int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  (void)ctx;
  if (PXGG_EQ(in->filter, "bench-sync")) {
    out->config = SYNC;
    out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
    return PXG_OK;
  }
  if (PXGG_EQ(in->filter, "bench-noop")) {
    out->config = NOOP;
    out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
    return PXG_OK;
  }
  if (PXGG_EQ(in->filter, "bench-whole")) {
    out->config = WHOLE;
    out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY);
    out->body_mode[PXG_DIR_REQUEST] = PXG_BODY_WHOLE;
    return PXG_OK;
  }
  return pxgg_config_error(out, PXG_E_NOTFOUND, "the filters here are bench-sync, bench-noop and bench-whole");
}

static void on_config_drop(uint64_t ctx, uint64_t config) { (void)ctx, (void)config; }

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  pxgg_call c;
  pxgg_begin(&c, pxgg_host(ctx), out);
  if (ev->config == NOOP) {
    pxgg_continue(&c);
    return;
  }
  pxgg_set(&c, PXG_TARGET_HEADERS, PXGG_LIT("x-bench"),
           ev->config == SYNC ? PXGG_LIT("0123456789abcdef")
                              : pxgg_format(&c, "%llu", (unsigned long long)pxgg_body_len(ev)));
  pxgg_continue(&c);
}

PXGG_EXPORT int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  static pxg_str filters[3];
  int32_t status = pxgg_init(host, out, PXGG_LIT("bench-c"), PXGG_LIT("1.0"));
  if (status != PXG_OK) return status;
  filters[0] = PXGG_LIT("bench-sync");
  filters[1] = PXGG_LIT("bench-whole");
  out->filters = filters;
  filters[2] = PXGG_LIT("bench-noop");
  out->n_filters = 3;
  out->on_config_new = on_config_new;
  out->on_config_drop = on_config_drop;
  out->on_event = on_event;
  return PXG_OK;
}
