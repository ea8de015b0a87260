/* Logs from threads of its own, also when no call runs; arg 1: texts that want cleaning. */
#include "guest.h"
#include <pthread.h>
#include <stdio.h>

static void *talk(void *arg) {
  char text[32];
  for (int i = 0; i < 100; i++) {
    snprintf(text, sizeof text, "thread %d line %d", (int)(intptr_t)arg, i);
    say(PXG_LOG_INFO, text);
  }
  return NULL;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  out->action = PXG_ACT_CONTINUE;
  if (ev->arg == 0) {
    pthread_t t[4];
    for (intptr_t i = 0; i < 4; i++) pthread_create(&t[i], NULL, talk, (void *)i);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    return;
  }
  static uint8_t big[1 << 20];
  memset(big, 'x', sizeof big);
  host->log(host->ctx, PXG_LOG_WARN, big, sizeof big);
  host->log(host->ctx, PXG_LOG_INFO, (const uint8_t *)"a\r\nb\0\x1b[31m\xff", 11);
  host->log(host->ctx, PXG_LOG_DEBUG, (const uint8_t *)"below", 5);
  host->log(host->ctx, 4000, (const uint8_t *)"no level", 8);
  out->user = host->page->log_level | (uint64_t)host->page->draining << 8 | host->page->monotonic_ns << 16 |
              host->page->realtime_ns << 32;
}

GUEST(config_new, event)
