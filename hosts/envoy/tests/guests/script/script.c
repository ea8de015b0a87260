#include <stdatomic.h>
#include <string.h>

#include "script.h"

const pxg_host *host;
const pxg_metrics_v1 *metrics;
pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const script *find(const config *c, pxg_str name) {
  for (const script *s = c->scripts; s; s = s->next)
    if (pxgg_eq(s->name, name)) return s;
  return NULL;
}

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  const config *c = (const config *)(uintptr_t)ev->config;
  stream *st = (stream *)(uintptr_t)ev->user;
  out->action = PXG_ACT_CONTINUE;
  if (st == NULL) {
    pxg_str name = pxgg_header(ev, PXGG_LIT("x-case"));
    const script *s = ev->phase == PXG_PHASE_REQUEST_HEADERS && !pxgg_is_absent(name) ? find(c, name) : NULL;
    if (s == NULL) s = find(c, PXGG_LIT("*"));
    if (s == NULL) return;
    st = calloc(1, sizeof *st);
    st->script = s;
    out->user = (uint64_t)(uintptr_t)st;
  }
  const script *s = st->script;
  uint32_t nth = ++st->calls[ev->phase];
  if (ev->flags & PXG_EV_WRITABLE) tell_writer(ev->stream, 0);
  record_event(s, ev, nth);
  const step *at = run(s, s->steps, ev->phase, ev->flags, nth, pxgg_body_len(ev), ev, out);
  if (at) {
    pxg_str rest = at->text;
    pxgg_next_word(&rest);
    uint64_t user = out->user;
    pend(s, at, ev, nth, rest);
    out->user = user;
    out->action = PXG_ACT_PENDING;
    out->ops = NULL;
    out->n_ops = 0;
    out->reply = NULL;
  } else if (out->action == PXG_ACT_REPLY && r.pieces) {
    write_later(s, ev->stream, r.pieces, r.piece_size);
  }
}

static void on_cancel(uint64_t ctx, uint64_t cfg, uint64_t user, uint64_t stream_id, uint64_t token, uint32_t worker) {
  (void)ctx, (void)cfg, (void)stream_id, (void)token, (void)worker;
  stream *st = (stream *)(uintptr_t)user;
  if (st) record_status("cancel", st->script, 0, 0);
}

static void on_stream_end(uint64_t ctx, uint64_t cfg, uint64_t user, uint64_t stream_id, uint32_t worker) {
  (void)ctx, (void)cfg, (void)worker;
  stream *st = (stream *)(uintptr_t)user;
  tell_writer(stream_id, 1);
  record_status("end", st->script, 0, 0);
  free(st);
}

static void on_config_drop(uint64_t ctx, uint64_t cfg) {
  (void)ctx;
  /* Completions that come too late still read the scripts: they stay. */
  config *c = (config *)(uintptr_t)cfg;
  script own = {.name = PXGG_LIT("-"), .config = c};
  record_status("drop", &own, 0, 0);
}

static _Atomic uint64_t batches;

static void on_batch_end(uint64_t ctx, uint32_t worker) {
  (void)ctx, (void)worker;
  atomic_fetch_add(&batches, 1);
}

uint64_t batches_ended(void) { return atomic_load(&batches); }

int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {
  static const pxg_str filters[] = {{(const uint8_t *)"script", 6, 0}};
  int32_t status = pxgg_init(h, out, PXGG_LIT("script"), PXGG_LIT("1"));
  if (status != PXG_OK) return status;
  host = h;
  metrics = h->get_ext ? h->get_ext(h->ctx, (const uint8_t *)PXG_METRICS_V1_ID, sizeof PXG_METRICS_V1_ID - 1) : NULL;
  out->filters = filters;
  out->n_filters = 1;
  out->on_config_new = on_config_new;
  out->on_config_drop = on_config_drop;
  out->on_event = on_event;
  out->on_cancel = on_cancel;
  out->on_stream_end = on_stream_end;
  out->on_batch_end = on_batch_end;
  return PXG_OK;
}
