/* What the test guests share. Each guest is one file that is named after the hazard it makes; it includes this and ends
 * with GUEST(). Where a guest has several cases, the event's `arg` chooses one, and numbers go back in `user`. */
#ifndef GUEST_H
#define GUEST_H

#include "proxy_golang.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED __attribute__((unused))
#define LIT(s) ((pxg_str){(const uint8_t *)(s), sizeof(s) - 1, 0})

static const pxg_host *host;
static UNUSED atomic_uint_fast64_t released, cancelled, ended, dropped, up, down;

/* The release function of OWNED buffers: frees what `ctx` points to, if anything, and counts. */
static UNUSED void release(uint64_t ctx) {
  free((void *)(uintptr_t)ctx);
  atomic_fetch_add(&released, 1);
}

static UNUSED pxg_buf owned(const char *text) {
  char *copy = strdup(text);
  return (pxg_buf){{(const uint8_t *)copy, (uint32_t)strlen(text), PXG_BUF_OWNED}, release, (uint64_t)(uintptr_t)copy};
}

static UNUSED pxg_buf borrowed(const char *text) {
  return (pxg_buf){{(const uint8_t *)text, (uint32_t)strlen(text), 0}, NULL, 0};
}

static UNUSED void say(uint32_t level, const char *text) {
  if (host->log) host->log(host->ctx, level, (const uint8_t *)text, strlen(text));
}

static UNUSED pxg_result result(uint32_t action) {
  pxg_result r;
  memset(&r, 0, sizeof r);
  r.size = sizeof r;
  r.action = action;
  return r;
}

/* The case that a test asks for: the field `case` of a request that runs through a stream, else the event's `arg`. */
static UNUSED uint64_t the_case(const pxg_event *ev) {
  if (ev->phase != PXG_PHASE_REQUEST_HEADERS) return ev->arg;
  uint64_t n = 0;
  for (uint64_t i = 0; i < ev->n_fields; i++)
    if (ev->fields[i].name.len == 4 && !memcmp(ev->fields[i].name.ptr, "case", 4))
      for (uint32_t k = 0; k < ev->fields[i].value.len; k++) n = n * 10 + (uint64_t)(ev->fields[i].value.ptr[k] - '0');
  return n;
}

/* What the guest wants to tell a test: WAKE answers it. */
static UNUSED int64_t told;

static UNUSED int tell(const pxg_event *ev, pxg_result *out) {
  out->action = PXG_ACT_CONTINUE;
  if (ev->phase == PXG_PHASE_WAKE) out->user = (uint64_t)told;
  return ev->phase == PXG_PHASE_WAKE;
}

static UNUSED int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  static atomic_uint_fast64_t next;
  (void)ctx;
  out->config = atomic_fetch_add(&next, 1) + 1;
  out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS) | PXG_PHASE_BIT(PXG_PHASE_WAKE);
  if (in->features[0] & 1ull << PXG_F_PEND_REQUEST_HEADERS) out->pend_phases = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
  return PXG_OK;
}

static UNUSED void config_drop(uint64_t ctx, uint64_t config) {
  (void)ctx, (void)config;
  atomic_fetch_add(&dropped, 1);
}

static UNUSED void event_continue(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx, (void)ev;
  out->action = PXG_ACT_CONTINUE;
}

static UNUSED void on_cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token,
                             uint32_t w) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)token, (void)w;
  atomic_fetch_add(&cancelled, 1);
}

static UNUSED void on_stream_end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t w) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)w;
  atomic_fetch_add(&ended, 1);
}

static UNUSED void on_worker(uint64_t ctx, uint32_t worker, uint32_t is_up) {
  (void)ctx, (void)worker;
  atomic_fetch_add(is_up ? &up : &down, 1);
}

/* The entry, with the guest's own statements at its end: they may change `out` or return something else than OK. */
#define GUEST(on_config, on_ev, ...)                                 \
  int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {     \
    static const pxg_str filters[] = {{(const uint8_t *)"f", 1, 0}}; \
    host = h;                                                        \
    out->size = sizeof *out;                                         \
    out->major = PXG_VERSION_MAJOR;                                  \
    out->minor = PXG_VERSION_MINOR;                                  \
    out->flags = PXG_GUEST_ABORTS;                                   \
    out->name = LIT("test-guest");                                   \
    out->version = LIT("1.2.3");                                     \
    out->ctx = 77;                                                   \
    out->filters = filters;                                          \
    out->n_filters = 1;                                              \
    out->on_config_new = on_config;                                  \
    out->on_config_drop = config_drop;                               \
    out->on_event = on_ev;                                           \
    out->on_cancel = on_cancel;                                      \
    out->on_stream_end = on_stream_end;                              \
    out->on_worker = on_worker;                                      \
    __VA_ARGS__;                                                     \
    return PXG_OK;                                                   \
  }

#endif
