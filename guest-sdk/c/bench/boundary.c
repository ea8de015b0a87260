/* The boundary benchmark: the host's side of one REQUEST_HEADERS call, over and over, against one guest.
 *
 *   boundary GUEST.so FILTER CALLS     or     boundary - - CALLS     for a function that does nothing
 *
 * Prints one JSON line: calls, ns per call, ns per call of the empty function in the same run, the same once more, allocations
 * that the calls made, and the operations of the last result. For instruction counts run it twice under
 * `valgrind --tool=callgrind`, with N and 2N calls, for the guest and for `-`:
 *   instructions per call = ((guest 2N - guest N) - (empty 2N - empty N)) / N
 * The host's own work (presetting the result) is in both and cancels out. bench/instructions.sh does that. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "proxy_golang_guest.h"

/* Counts the guest's allocations: a guest's malloc resolves to the executable's. */
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t m);
extern void *__libc_realloc(void *p, size_t n);
static uint64_t allocations;
void *malloc(size_t n) {
  allocations++;
  return __libc_malloc(n);
}
void *calloc(size_t n, size_t m) {
  allocations++;
  return __libc_calloc(n, m);
}
void *realloc(void *p, size_t n) {
  allocations++;
  return __libc_realloc(p, n);
}

static pxg_op scratch_ops[64];
static uint8_t scratch[8192] __attribute__((aligned(16)));

static uint8_t *scratch_more(uint64_t ctx, uint64_t n) {
  (void)ctx;
  (void)n;
  return NULL;
}

static void empty(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  (void)ev;
  out->action = PXG_ACT_CONTINUE;
}

/* A browser's request: 20 fields, 600 bytes. */
static const char *const request[20][2] = {
    {":method", "GET"},
    {":scheme", "https"},
    {":authority", "www.example.com"},
    {":path", "/assets/app.js?v=20260101"},
    {"accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
    {"accept-encoding", "gzip, deflate, br"},
    {"accept-language", "en-GB,en;q=0.7,de;q=0.3"},
    {"cache-control", "no-cache"},
    {"cookie", "session=8f14e45fceea167a5a36dedd4bea2543; theme=dark"},
    {"dnt", "1"},
    {"pragma", "no-cache"},
    {"referer", "https://www.example.com/"},
    {"sec-fetch-dest", "script"},
    {"sec-fetch-mode", "no-cors"},
    {"sec-fetch-site", "same-origin"},
    {"upgrade-insecure-requests", "1"},
    {"user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"},
    {"x-forwarded-for", "203.0.113.7"},
    {"x-forwarded-proto", "https"},
    {"x-request-id", "7d444840-9dc0-11d1-b245-5ffdce74fad2"},
};

static pxg_result preset(const pxg_event *ev) {
  pxg_result out;
  memset(&out, 0, sizeof out);
  out.size = sizeof out;
  out.user = ev->user;
  out.scratch_ops = scratch_ops;
  out.scratch_ops_cap = 64;
  out.scratch = scratch;
  out.scratch_cap = sizeof scratch;
  return out;
}

typedef void (*event_fn)(uint64_t ctx, const pxg_event *ev, pxg_result *out);

static pxg_result calls(event_fn on_event, uint64_t ctx, const pxg_event *ev, uint64_t n) {
  pxg_result out = preset(ev);
  while (n--) {
    out = preset(ev);
    on_event(ctx, ev, &out);
  }
  return out;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int fail(const char *what, const char *why) {
  fprintf(stderr, "boundary: %s: %s\n", what, why);
  return 1;
}

int main(int argc, char **argv) {
  static pxg_host host;
  static pxg_field fields[20];
  pxg_guest guest;
  pxg_event ev;
  pxg_result out;
  uint64_t n, i, before, made;
  double start, guest_ns, empty_ns, again_ns;
  event_fn on_event = empty;

  if (argc != 4) return fail("usage", "boundary GUEST.so|- FILTER|- CALLS");
  n = strtoull(argv[3], NULL, 10);
  if (n == 0) return fail(argv[3], "expected a number of calls above 0");
  for (i = 0; i < 20; i++) {
    fields[i].name = pxgg_str(request[i][0], strlen(request[i][0]));
    fields[i].value = pxgg_str(request[i][1], strlen(request[i][1]));
  }
  memset(&ev, 0, sizeof ev);
  ev.size = sizeof ev;
  ev.phase = PXG_PHASE_REQUEST_HEADERS;
  ev.flags = PXG_EV_END_STREAM | PXG_EV_CAN_REPLY;
  ev.stream = 1;
  ev.fields = fields;
  ev.n_fields = 20;

  memset(&guest, 0, sizeof guest);
  if (strcmp(argv[1], "-") != 0) {
    pxg_config_in in;
    pxg_config_out config;
    pxg_guest_init_v1_fn init;
    void *lib = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    int32_t status;
    if (lib == NULL) return fail("dlopen", dlerror());
    *(void **)&init = dlsym(lib, "pxg_guest_init_v1");
    if (init == NULL) return fail(argv[1], "no symbol pxg_guest_init_v1");
    host.size = sizeof host;
    host.major = PXG_VERSION_MAJOR;
    host.minor = PXG_VERSION_MINOR;
    host.n_workers = 1;
    host.name = PXGG_LIT("boundary");
    host.version = PXGG_LIT("1");
    host.ctx = 1;
    host.scratch_more = scratch_more;
    guest.size = sizeof guest;
    status = init(&host, &guest);
    if (status != PXG_OK) return fail(argv[1], "init answered an error");
    memset(&in, 0, sizeof in);
    in.size = sizeof in;
    in.filter = pxgg_str(argv[2], strlen(argv[2]));
    in.name = PXGG_LIT("bench");
    memset(&config, 0, sizeof config);
    config.size = sizeof config;
    config.scratch = scratch;
    config.scratch_cap = sizeof scratch;
    status = guest.on_config_new(guest.ctx, &in, &config);
    if (status != PXG_OK) {
      fprintf(stderr, "boundary: configuration: %.*s\n", (int)config.error.len, (const char *)config.error.ptr);
      return 1;
    }
    ev.config = config.config;
    on_event = guest.on_event;
  }

  out = calls(on_event, guest.ctx, &ev, 1000 < n ? 1000 : n); /* warm up */
  if (out.action != PXG_ACT_CONTINUE) return fail(argv[1], "the guest did not answer CONTINUE");
  before = allocations;
  start = now();
  out = calls(on_event, guest.ctx, &ev, n);
  guest_ns = (now() - start) / (double)n;
  made = allocations - before;
  start = now();
  calls(empty, 0, &ev, n);
  empty_ns = (now() - start) / (double)n;
  start = now();
  calls(empty, 0, &ev, n);
  again_ns = (now() - start) / (double)n;
  printf("{\"calls\":%" PRIu64 ",\"ns\":%.2f,\"empty_ns\":%.2f,\"empty_again_ns\":%.2f,\"allocations\":%" PRIu64
         ",\"operations\":%" PRIu64 "}\n",
         n, guest_ns, empty_ns, again_ns, made, out.n_ops);
  return 0;
}
