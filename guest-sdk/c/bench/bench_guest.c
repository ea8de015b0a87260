/* The guest of the boundary benchmark: filter `bench-headers`, the twin of the Rust filter of that name. One event
 * reads all fields, finds two of them, and makes three changes: one set with a copied value, one added, one deleted. */
#include "proxy_golang_guest.h"

static int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  (void)ctx;
  (void)in;
  out->config = 1;
  out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
  return PXG_OK;
}

static void on_config_drop(uint64_t ctx, uint64_t config) {
  (void)ctx;
  (void)config;
}

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  const pxg_field *f = ev->fields, *end = f + ev->n_fields;
  pxg_str request_id = pxgg_absent(), agent = pxgg_absent();
  uint32_t total = 0;
  pxgg_call c;
  for (; f < end; f++) {
    total += f->value.len;
    if (PXGG_EQ(f->name, "x-request-id")) {
      request_id = f->value;
    } else if (PXGG_EQ(f->name, "user-agent")) {
      agent = f->value;
    }
  }
  pxgg_begin(&c, pxgg_host(ctx), out);
  pxgg_set(&c, PXG_TARGET_HEADERS, PXGG_LIT("x-seen-id"), pxgg_copy(&c, request_id));
  pxgg_add(&c, PXG_TARGET_HEADERS, PXGG_LIT("x-size"),
           total > 1024 || pxgg_is_absent(agent) ? PXGG_LIT("large") : PXGG_LIT("small"));
  pxgg_delete(&c, PXG_TARGET_HEADERS, PXGG_LIT("user-agent"));
  pxgg_continue(&c);
}

PXGG_EXPORT int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  static pxg_str filters[1];
  int32_t status = pxgg_init(host, out, PXGG_LIT("bench-guest-c"), PXGG_LIT("1.0"));
  if (status != PXG_OK) return status;
  filters[0] = PXGG_LIT("bench-headers");
  out->filters = filters;
  out->n_filters = 1;
  out->on_config_new = on_config_new;
  out->on_config_drop = on_config_drop;
  out->on_event = on_event;
  return PXG_OK;
}
