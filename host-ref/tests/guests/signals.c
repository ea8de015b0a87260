/* Looks at the signal mask while it is loaded, in init, and in a thread that it starts. LOG answers the masks, arg 0 to 2. */
#include "guest.h"
#include <pthread.h>
#include <signal.h>

static uint64_t seen[3];

static uint64_t mask(void) {
  sigset_t set;
  uint64_t bits = 0;
  pthread_sigmask(SIG_BLOCK, NULL, &set);
  for (int s = 1; s < 64; s++) bits |= (uint64_t)(sigismember(&set, s) == 1) << s;
  return bits;
}

static void *thread(void *arg) {
  (void)arg;
  seen[2] = mask();
  return NULL;
}

__attribute__((constructor)) static void loaded(void) {
  pthread_t t;
  seen[0] = mask();
  pthread_create(&t, NULL, thread, NULL);
  pthread_join(t, NULL);
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  out->action = PXG_ACT_CONTINUE;
  out->user = seen[ev->arg];
}

GUEST(config_new, event, seen[1] = mask())
