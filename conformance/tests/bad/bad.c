/* Libraries that are no guests, or end badly before anything of theirs can be judged: one -D each. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy_golang.h"

#if defined(CRASHES_AT_LOAD)
__attribute__((constructor)) static void at_load(void) { abort(); }
#elif defined(FORKS_AT_LOAD)
__attribute__((constructor)) static void at_load(void) {
  if (fork() == 0) {
    pause();
    _exit(0);
  }
}
#elif defined(ESCAPES)
__attribute__((constructor)) static void at_load(void) {
  if (fork() == 0) {
    setsid();
    if (fork() == 0) pause();
    _exit(0);
  }
}
#elif defined(EXITS_AT_LOAD)
__attribute__((constructor)) static void at_load(void) { exit(0); }
#elif defined(HANGS_AT_LOAD)
__attribute__((constructor)) static void at_load(void) { pause(); }
#elif defined(STOPS_AT_LOAD)
__attribute__((constructor)) static void at_load(void) { raise(SIGSTOP); }
#elif defined(CLOSES_OUTPUT)
__attribute__((constructor)) static void at_load(void) {
  int i;
  for (i = 0; i < 64; i++) close(i);
}
#elif defined(PRINTS)
__attribute__((constructor)) static void at_load(void) {
  static char line[4096];
  int i;
  memset(line, 'p', sizeof line);
  for (i = 0; i < 1024; i++) fwrite(line, 1, sizeof line, i % 2 ? stdout : stderr);
}
#elif defined(STARTS_THREADS)
static void *idle(void *unused) {
  pause();
  return unused;
}
__attribute__((constructor)) static void at_load(void) {
  pthread_attr_t a;
  pthread_t t;
  int i;
  pthread_attr_init(&a);
  pthread_attr_setstacksize(&a, 64 << 10);
  for (i = 0; i < 1000; i++) pthread_create(&t, &a, idle, NULL);
}
#endif

static const pxg_str filters[] = {{(const uint8_t *)"bad", 3, 0}};
static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  static uint64_t last;
  (void)ctx;
  if (in->filter.len != 3 || memcmp(in->filter.ptr, "bad", 3)) return PXG_E_NOTFOUND;
  out->config = ++last;
  out->subscribe = PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS);
  return PXG_OK;
}
static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx, (void)ev;
#if defined(EXITS)
  exit(0);
#elif defined(READS_FREED)
  {
    /* Its own memory: no rule speaks of it, and nothing but valgrind sees it. */
    volatile char *own = (volatile char *)malloc(16);
    static volatile char sink;
    own[0] = 'x';
    free((void *)own);
    sink = own[0];
  }
#endif
  out->action = PXG_ACT_CONTINUE;
}
static void drop(uint64_t ctx, uint64_t config) { (void)ctx, (void)config; }
static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)token, (void)w;
}
static void end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)worker;
}

#if !defined(NO_ENTRY)
int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
#if defined(HANGS_IN_INIT)
  for (;;) pause();
#endif
  if (host->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  if (out->size > sizeof *out) out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR, out->minor = PXG_VERSION_MINOR, out->flags = PXG_GUEST_ABORTS;
  out->ctx = (uint64_t)(uintptr_t)host;
  out->filters = filters, out->n_filters = 1, out->on_config_new = config_new, out->on_config_drop = drop;
  out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
  return PXG_OK;
}
#endif
