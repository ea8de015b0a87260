/* SPDX-License-Identifier: Apache-2.0 */

/* Libraries that a host refuses, by the macro that is given:
 *
 *   OTHER_MAJOR   speaks another version of the ABI        NEEDS      requires a feature
 *   NO_HOOK       has no on_event                          SAYS_NO    init answers INTERNAL with a text
 *   UNRESOLVED    needs a symbol of nobody's */

#include "proxy_golang.h"

#define S(text) \
  { (const uint8_t *)(text), sizeof(text) - 1, 0 }
#define EXPORT __attribute__((visibility("default")))

static const pxg_str filters[] = {S("operator")};

static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  (void)ctx, (void)in;
  out->config = 1;
  return PXG_OK;
}
static void drop(uint64_t ctx, uint64_t config) { (void)ctx, (void)config; }
static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx, (void)ev;
  out->action = PXG_ACT_CONTINUE;
}
static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)token, (void)w;
}
static void end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t w) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)w;
}

#ifdef UNRESOLVED
extern int nobody_has_this(void);
#endif

EXPORT int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {
#ifdef SAYS_NO
  static const char text[] = "the licence is in the other coat";
  h->log(h->ctx, PXG_LOG_ERROR, (const uint8_t *)text, sizeof text - 1);
  return PXG_E_INTERNAL;
#endif
#ifdef UNRESOLVED
  if (nobody_has_this()) return PXG_E_INTERNAL;
#endif
  (void)h;
  if (out->size > sizeof *out) out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR, out->minor = PXG_VERSION_MINOR, out->flags = PXG_GUEST_ABORTS;
  out->name = (pxg_str)S("refused");
  out->filters = filters, out->n_filters = 1;
  out->on_config_new = config_new, out->on_config_drop = drop;
  out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
#ifdef OTHER_MAJOR
  out->major = 2;
#endif
#ifdef NEEDS
  out->required[PXG_F_L4 / 64] = out->known[PXG_F_L4 / 64] = 1ull << (PXG_F_L4 % 64);
#endif
#ifdef NO_HOOK
  out->on_event = 0;
#endif
  return PXG_OK;
}
