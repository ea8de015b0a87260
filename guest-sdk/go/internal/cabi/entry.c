/* The entry point and the guest's table. What can be decided here does not enter Go. */
#include "pxgo.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "_cgo_export.h"

static pxgo_host *hosts[PXGO_MAX_HOSTS]; /* atomic */
static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;

pxgo_host *pxgo_host_at(uint64_t ctx) {
  return ctx - 1 < PXGO_MAX_HOSTS ? __atomic_load_n(&hosts[ctx - 1], __ATOMIC_ACQUIRE) : NULL;
}

static pxgo_ring *ring_of(pxgo_host *h, uint32_t worker) { return worker < PXGO_MAX_WORKERS ? &h->ring[worker] : NULL; }

/* ---- configurations whose phases need not enter Go */

static uint64_t async_only(pxgo_host *h, uint64_t id) {
  uint32_t i = (uint32_t)id - 1;
  if (i >= 256 * 256) return 0;
  pxgo_cfg *chunk = __atomic_load_n(&h->cfg[i >> 8], __ATOMIC_ACQUIRE);
  return chunk && chunk[i & 255].id == id ? chunk[i & 255].async_only : 0;
}

void pxgo_cfg_set(pxgo_host *h, uint64_t id, uint64_t mask) {
  uint32_t i = (uint32_t)id - 1;
  if (i >= 256 * 256) return; /* such a configuration enters Go, and works */
  pxgo_cfg *chunk = h->cfg[i >> 8];
  if (!chunk) {
    if (!mask || !(chunk = calloc(256, sizeof *chunk))) return;
    __atomic_store_n(&h->cfg[i >> 8], chunk, __ATOMIC_RELEASE);
  }
  chunk[i & 255].async_only = mask;
  chunk[i & 255].id = id;
}

/* ---- hooks */

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  pxgo_host *h = pxgo_host_at(ctx);
  if (!h || ev->size < sizeof *ev || out->size < sizeof *out) return; /* UNSET fails the stream */
  pxgo_ring *r = ring_of(h, ev->worker);
  if (ev->token && h->ring_on && ev->phase < 64 && (async_only(h, ev->config) >> ev->phase & 1) && r &&
      __atomic_load_n(&r->running, __ATOMIC_ACQUIRE) && pxgo_push_event(h, ev) == 0) {
    out->action = PXG_ACT_PENDING;
    if (!out->user) out->user = PXGO_USER_INTEREST;
  } else {
    pxgoEvent(ctx, (pxg_event *)ev, out);
  }
  if (r && !__atomic_load_n(&h->batch_end, __ATOMIC_RELAXED) && __atomic_load_n(&r->need_kick, __ATOMIC_RELAXED))
    pxgo_kick(r);
}

static void on_batch_end(uint64_t ctx, uint32_t worker) {
  pxgo_host *h = pxgo_host_at(ctx);
  pxgo_ring *r = h ? ring_of(h, worker) : NULL;
  if (!r) return;
  if (__atomic_load_n(&r->need_kick, __ATOMIC_RELAXED)) pxgo_kick(r);
  /* Under SCHED_BATCH a woken consumer does not preempt this thread: on a loop
   * that other traffic keeps busy it would wait for a whole tick. */
  if (h->yield_on && pxgo_work_left(r)) sched_yield();
}

static int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  pxgo_host *h = pxgo_host_at(ctx);
  if (!h || in->size < sizeof *in || out->size < sizeof *out) return PXG_E_ARG;
  /* The streams of such a configuration wait for no end of a batch: all events do without, for the ring is shared. */
  if (!(in->features[PXG_F_BATCH_END / 64] >> (PXG_F_BATCH_END % 64) & 1))
    __atomic_store_n(&h->batch_end, 0, __ATOMIC_RELAXED);
  return pxgoConfigNew(ctx, (pxg_config_in *)in, out);
}

static void on_config_drop(uint64_t ctx, uint64_t config) {
  pxgo_host *h = pxgo_host_at(ctx);
  if (!h) return;
  pxgo_cfg_set(h, config, 0);
  pxgoConfigDrop(ctx, config);
}

static void on_cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t worker) {
  if (pxgo_host_at(ctx)) pxgoCancel(ctx, config, user, stream, token, worker);
}

static void on_stream_end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {
  pxgo_host *h = pxgo_host_at(ctx);
  if (!h) return;
  if (user <= PXGO_USER_INTEREST && !__atomic_load_n(&h->interest, __ATOMIC_SEQ_CST)) return;
  pxgoStreamEnd(ctx, config, user, stream, worker);
}

static void on_worker(uint64_t ctx, uint32_t worker, uint32_t up) {
  if (pxgo_host_at(ctx)) pxgoWorker(ctx, worker, up); /* also the thread's warm-up call */
}

/* For benchmarks: the price of entering Go at all, to compare others with. */
static const struct {
  uint32_t size, reserved0;
  void (*empty)(void);
} empty_call = {16, 0, pxgoNop};

static const void *get_ext(uint64_t ctx, const uint8_t *id, uint64_t len) {
  static const char empty_id[] = "draft.pxg.go-empty-call/1";
  (void)ctx;
  return len == sizeof empty_id - 1 && !memcmp(id, empty_id, len) ? (const void *)&empty_call : NULL;
}

/* ---- towards the host */

uint8_t *pxgo_scratch_more(pxgo_host *h, uint64_t n) {
  return h->table->scratch_more ? h->table->scratch_more(h->table->ctx, n) : NULL;
}

int32_t pxgo_complete(pxgo_host *h, uint64_t token, const pxg_result *r) {
  pxgo_thread_policy();
  return h->table->complete ? h->table->complete(h->table->ctx, token, r) : PXG_E_UNSUPPORTED;
}

void pxgo_complete_many(pxgo_host *h, pxgo_done *d, uint64_t n) {
  for (uint64_t i = 0; i < n; i++) d[i].code = pxgo_complete(h, d[i].token, d[i].result);
}

int32_t pxgo_apply(pxgo_host *h, uint64_t stream, const pxg_result *r) {
  pxgo_thread_policy();
  return h->table->apply ? h->table->apply(h->table->ctx, stream, r) : PXG_E_UNSUPPORTED;
}

int32_t pxgo_wake(pxgo_host *h, uint64_t stream, uint64_t arg) {
  return h->table->wake ? h->table->wake(h->table->ctx, stream, arg) : PXG_E_UNSUPPORTED;
}

void pxgo_log(pxgo_host *h, uint32_t level, const uint8_t *p, uint64_t n) {
  if (h->table->log) h->table->log(h->table->ctx, level, p, n);
}

int32_t pxgo_metric_define(pxgo_host *h, uint32_t kind, const pxg_str *name, const pxg_field *labels, uint64_t n,
                           uint32_t *id) {
  return h->metrics ? h->metrics->define(h->table->ctx, kind, name, labels, n, id) : PXG_E_UNSUPPORTED;
}

int32_t pxgo_metric_record(pxgo_host *h, uint32_t id, int64_t value) {
  return h->metrics ? h->metrics->record(h->table->ctx, id, value) : PXG_E_UNSUPPORTED;
}

void pxgo_release(uint64_t ctx) { free((void *)(uintptr_t)ctx); }

void *pxgo_release_fn(void) { return (void *)pxgo_release; }

/* ---- init */

static int32_t init_host(const pxg_host *host, pxg_guest *out) {
  uint64_t i = 0;
  while (i < PXGO_MAX_HOSTS && hosts[i] && hosts[i]->table != host) i++;
  if (i == PXGO_MAX_HOSTS) return PXG_E_STATE;
  if (!hosts[i]) {
    pxgo_host *h = calloc(1, sizeof *h);
    if (!h) return PXG_E_INTERNAL;
    h->table = host;
    h->ctx = i + 1;
    h->batch_end = host->features[PXG_F_BATCH_END / 64] >> (PXG_F_BATCH_END % 64) & 1;
    if (host->get_ext) {
      const pxg_metrics_v1 *m =
          host->get_ext(host->ctx, (const uint8_t *)PXG_METRICS_V1_ID, sizeof PXG_METRICS_V1_ID - 1);
      if (m && m->size >= sizeof *m && m->define && m->record) h->metrics = m;
    }
    __atomic_store_n(&hosts[i], h, __ATOMIC_RELEASE);
    pxgoInit(h->ctx, h);
    pxgo_recipe_init((int)h->batch_end);
    h->ring_on = pxgo_steps[PXGO_RING].state == PXGO_DONE;
    h->yield_on = pxgo_steps[PXGO_YIELD].state == PXGO_DONE;
  }
  uint32_t size = out->size;
  memset(out, 0, sizeof *out);
  out->size = size;
  out->major = PXG_VERSION_MAJOR;
  out->minor = PXG_VERSION_MINOR;
  out->known[0] = (2ull << PXG_F_APPLY) - 1;
  out->ctx = hosts[i]->ctx;
  pxgoDescribe(out);
  out->on_config_new = on_config_new;
  out->on_config_drop = on_config_drop;
  out->on_event = on_event;
  out->on_cancel = on_cancel;
  out->on_stream_end = on_stream_end;
  out->on_batch_end = on_batch_end;
  out->on_worker = on_worker;
  out->get_ext = get_ext;
  return PXG_OK;
}

int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  if (!host || !out || host->size < 12) return PXG_E_ARG;
  if (host->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  if (host->size < sizeof *host || out->size < sizeof *out) return PXG_E_ARG;
  pthread_mutex_lock(&init_lock);
  int32_t code = init_host(host, out);
  pthread_mutex_unlock(&init_lock);
  return code;
}
