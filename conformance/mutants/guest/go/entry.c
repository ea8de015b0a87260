/* The C side of the Go guest: the table, what must not be Go (release), and the threads' policy. */
#define _GNU_SOURCE
#define PXG_NO_PROTOTYPES
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "_cgo_export.h"
#include "entry.h"

static pxg_str str(const char *p) {
  pxg_str s = {(const uint8_t *)p, (uint32_t)strlen(p), 0};
  return s;
}

/* Go's threads inherit SCHED_BATCH from the thread that loads the library, which gets its own policy back. */
static int policy_before = -1;

__attribute__((constructor(101))) static void before_go(void) {
  struct sched_param p = {0};
  policy_before = sched_getscheduler(0);
  sched_setscheduler(0, SCHED_BATCH, &p);
}

static void after_go(void) {
  struct sched_param p = {0};
  if (policy_before >= 0) sched_setscheduler(0, policy_before, &p);
  policy_before = -1;
}

static int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  return goConfigNew(ctx, (pxg_config_in *)in, out);
}
static void on_config_drop(uint64_t ctx, uint64_t config) { goConfigDrop(ctx, config); }
static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) { goEvent(ctx, (pxg_event *)ev, out); }
static void on_cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t worker) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)token, (void)worker;
}
static void on_stream_end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)worker;
}
static void on_worker(uint64_t ctx, uint32_t worker, uint32_t up) { goWorker(ctx, worker, up); }

static void c_release(uint64_t p) { free((void *)(uintptr_t)p); }
uintptr_t release_in_c(void) { return (uintptr_t)c_release; }
uintptr_t release_in_go(void) { return (uintptr_t)goRelease; }

int32_t call_complete(uint64_t ctx, uint64_t token) {
  const pxg_host *host = (const pxg_host *)(uintptr_t)ctx;
  pxg_result r;
  memset(&r, 0, sizeof r);
  r.size = sizeof r;
  r.action = PXG_ACT_CONTINUE;
  return host->complete(host->ctx, token, &r);
}

/* The name of this library's file. */
static char *own_name(void) {
  Dl_info i;
  const char *slash;
  if (!dladdr((void *)(uintptr_t)own_name, &i)) return "";
  slash = strrchr(i.dli_fname, '/');
  return (char *)(slash ? slash + 1 : i.dli_fname);
}

__attribute__((visibility("default"))) int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  static pxg_str filters[3];
  after_go();
  if (host->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  if (host->size < sizeof *host || out->size < sizeof *out) return PXG_E_ARG;
  goInit(host->n_workers, own_name());
  filters[0] = str("go");
  filters[1] = str("go-async");
  filters[2] = str("go-panics");
  out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR;
  out->minor = PXG_VERSION_MINOR;
  out->name = str("go-guest");
  out->version = str("1");
  out->ctx = (uint64_t)(uintptr_t)host;
  out->filters = filters;
  out->n_filters = 3;
  out->on_config_new = on_config_new;
  out->on_config_drop = on_config_drop;
  out->on_event = on_event;
  out->on_cancel = on_cancel;
  out->on_stream_end = on_stream_end;
  out->on_worker = on_worker;
  return PXG_OK;
}
