/* SPDX-License-Identifier: Apache-2.0 */

/* A guest of the do-no-harm run. It looks at all it gets and changes nothing: filter `head` at requests' headers, `heads` at
 * those of responses, too, `stream` also at the bytes of bodies, `whole` at requests' bodies once they are whole. Filter `touch` changes the first byte of each
 * response's body, which the run has to notice. */

#include "proxy_golang_guest.h"

enum { HEAD = 1, HEADS, STREAM, TOUCH, WHOLE, FILTERS = WHOLE };
static pxg_str filters[FILTERS];
static volatile uint64_t sum; /* So that nothing read is optimised away. */

static uint64_t look(pxg_str s) {
  uint64_t n = 0;
  for (uint32_t i = 0; i < s.len; i++) n += s.ptr[i];
  return n;
}

static int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  uint64_t heads = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS);
  (void)ctx;
  for (uint64_t i = 0; i < FILTERS; i++)
    if (pxgg_eq(in->filter, filters[i])) out->config = i + 1;
  if (out->config == 0) return PXG_E_NOTFOUND;
  out->subscribe = out->config == HEAD ? PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS) : heads;
  if (out->config >= STREAM) {
    out->subscribe |= PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_BODY);
    out->body_mode[0] = out->body_mode[1] = PXG_BODY_STREAM;
  }
  if (out->config == WHOLE) {
    out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY);
    out->body_mode[0] = PXG_BODY_WHOLE, out->body_mode[1] = PXG_BODY_SKIP;
    out->max_body[0] = 1 << 30;
  }
  return PXG_OK;
}

static void on_config_drop(uint64_t ctx, uint64_t config) { (void)ctx, (void)config; }

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  uint64_t n = 0;
  pxgg_call c;
  pxgg_begin(&c, pxgg_host(ctx), out);
  for (uint64_t i = 0; i < ev->n_fields; i++) n += look(ev->fields[i].name) + look(ev->fields[i].value);
  for (uint64_t i = 0; i < ev->n_chunks; i++) n += look(ev->chunks[i]);
  sum += n;
  if (ev->config == TOUCH && ev->phase == PXG_PHASE_RESPONSE_BODY && ev->body_offset == 0 && pxgg_body_len(ev) > 0) {
    pxgg_drop(&c, 1);
    pxgg_inject(&c, pxgg_borrowed(PXGG_LIT("?")));
  }
  pxgg_continue(&c);
}

PXGG_EXPORT int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  int32_t status = pxgg_init(host, out, PXGG_LIT("no-op"), PXGG_LIT("1.0"));
  if (status != PXG_OK) return status;
  filters[0] = PXGG_LIT("head"), filters[1] = PXGG_LIT("heads"), filters[2] = PXGG_LIT("stream");
  filters[3] = PXGG_LIT("touch"), filters[4] = PXGG_LIT("whole");
  out->filters = filters;
  out->n_filters = FILTERS;
  out->on_config_new = on_config_new;
  out->on_config_drop = on_config_drop;
  out->on_event = on_event;
  return PXG_OK;
}
