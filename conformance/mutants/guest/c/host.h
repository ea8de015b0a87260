/* What every part of the guest uses: strings, and one state per host. */

static pxg_str str(const void *p, size_t n) {
  pxg_str s = {(const uint8_t *)p, (uint32_t)n, 0};
  return s;
}
#define LIT(text) str(text, sizeof text - 1)

static int eq(pxg_str a, pxg_str b) { return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0); }

/* ---- one per host */

typedef struct host_state {
  const pxg_host *host;
  const pxg_metrics_v1 *metrics;
  uint32_t metric;
} host_state;

static host_state hosts[16];
static pthread_mutex_t hosts_lock = PTHREAD_MUTEX_INITIALIZER;

static host_state *state_of(uint64_t ctx) { return (host_state *)(uintptr_t)ctx; }

static void say(host_state *h, const char *text) {
#if defined(M_calls_null_log)
  if (!h->host->page || __atomic_load_n(&h->host->page->log_level, __ATOMIC_RELAXED) > PXG_LOG_INFO) return;
  h->host->log(h->host->ctx, PXG_LOG_INFO, (const uint8_t *)text, strlen(text));
#else
#if !defined(M_logs_at_off)
  if (h->host->page && __atomic_load_n(&h->host->page->log_level, __ATOMIC_RELAXED) > PXG_LOG_INFO) return;
#endif
  if (h->host->log) h->host->log(h->host->ctx, PXG_LOG_INFO, (const uint8_t *)text, strlen(text));
#endif
}
