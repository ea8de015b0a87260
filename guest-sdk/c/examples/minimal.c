/* The smallest useful guest: a template to copy. Filter `minimal` adds the header `x-hello` with the configured text
 * to every request, and answers 204 for the path /ping itself.
 *
 *   cc -std=c99 -O2 -fPIC -shared -fvisibility=hidden -Iinclude -I../../include examples/minimal.c -o minimal.so
 */
#include <stdlib.h>

#include "proxy_golang_guest.h"

/* One per configuration; shared by all workers, so it never changes after on_config_new. */
typedef struct config {
  uint32_t len;
  uint8_t text[];
} config;

/* [config-thread] `in` and what it points to die when this returns: copy what you keep. */
static int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  pxg_str text = pxgg_trim(in->bytes);
  config *c;
  (void)ctx;
  if (!PXGG_EQ(in->filter, "minimal"))
    return pxgg_config_error(out, PXG_E_NOTFOUND, "the only filter here is \"minimal\"");
  if (text.len == 0)
    return pxgg_config_error(out, PXG_E_ARG, "no text found; expected the value for the header x-hello");
  c = (config *)malloc(sizeof *c + text.len);
  if (c == NULL) return pxgg_config_error(out, PXG_E_INTERNAL, "out of memory");
  c->len = text.len;
  memcpy(c->text, text.ptr, text.len);

  out->config = (uint64_t)(uintptr_t)c;                      /* comes back in every event */
  out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS); /* no other phase costs anything */
  return PXG_OK;
}

/* [config-thread] The last stream of the configuration has ended. */
static void on_config_drop(uint64_t ctx, uint64_t config_value) {
  (void)ctx;
  free((void *)(uintptr_t)config_value);
}

/* [loop-thread] Must not block. Every pointer in `ev` dies when this returns. */
static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  const config *conf = (const config *)(uintptr_t)ev->config;
  pxgg_call c;
  pxgg_begin(&c, pxgg_host(ctx), out);
  if (PXGG_EQ(pxgg_header(ev, PXGG_LIT(":path")), "/ping")) {
    pxgg_reply_send(&c, pxgg_reply_new(&c, 204));
    return;
  }
  pxgg_set(&c, PXG_TARGET_HEADERS, PXGG_LIT("x-hello"), pxgg_str(conf->text, conf->len));
  pxgg_continue(&c); /* without this the action stays UNSET, which is an error of this stream */
}

/* The one exported function. */
PXGG_EXPORT int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  static pxg_str filters[1];
  int32_t status = pxgg_init(host, out, PXGG_LIT("minimal"), PXGG_LIT("1.0"));
  if (status != PXG_OK) return status;
  filters[0] = PXGG_LIT("minimal");
  out->filters = filters;
  out->n_filters = 1;
  out->on_config_new = on_config_new;
  out->on_config_drop = on_config_drop;
  out->on_event = on_event;
  return PXG_OK;
}
