/* Deciding later: on threads of its own, or when another stream says so. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "script.h"

/* A PENDING: what is to be done, and on which token. */
typedef struct pending {
  struct pending *next;
  const script *script;
  const step *rest; /* the steps that go with the completion */
  uint32_t phase, nth, flags;
  uint64_t token, len;
  pxg_str key;
  long wait_ms;
} pending;

static pending *waiting;

void sleep_ms(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&t, &t) != 0 && errno == EINTR) {}
}

static int32_t complete(const pending *p) {
  pxg_result out;
  memset(&out, 0, sizeof out);
  out.size = sizeof out;
  run(p->script, p->rest, p->phase, p->flags, p->nth, p->len, NULL, &out);
  int32_t status = host->complete(host->ctx, p->token, &out);
  record_status("complete", p->script, p->phase, status);
  return status;
}

void release_all(pxg_str key) {
  pthread_mutex_lock(&lock);
  pending *found = NULL;
  for (pending **at = &waiting; *at;) {
    pending *p = *at;
    if (pxgg_eq(p->key, key)) {
      *at = p->next;
      p->next = found;
      found = p;
    } else {
      at = &p->next;
    }
  }
  pthread_mutex_unlock(&lock);
  /* The steps of what is completed use this thread's memory, as those of the caller do. */
  result kept = r;
  while (found) {
    pending *p = found;
    found = p->next;
    complete(p);
    free(p);
  }
  r = kept;
}

static void *later(void *arg) {
  pending *p = arg;
  sleep_ms(p->wait_ms);
  complete(p);
  free(p);
  return NULL;
}

void detached(void *(*function)(void *), void *arg) {
  pthread_t t;
  pthread_attr_t a;
  pthread_attr_init(&a);
  pthread_attr_setstacksize(&a, 256 << 10);
  pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
  if (pthread_create(&t, &a, function, arg) != 0) abort();
  pthread_attr_destroy(&a);
}

typedef struct watched {
  pxg_str key;
  char path[4096];
} watched;

static void *watcher(void *arg) {
  watched *w = arg;
  while (access(w->path, F_OK) != 0) sleep_ms(5);
  release_all(w->key);
  free(w);
  return NULL;
}

void watch(pxg_str key, pxg_str path) {
  watched *w = calloc(1, sizeof *w);
  w->key = key;
  snprintf(w->path, sizeof w->path, "%.*s", (int)path.len, (const char *)path.ptr);
  detached(watcher, w);
}

void pend(const script *s, const step *at, const pxg_event *ev, uint32_t nth, pxg_str how) {
  pxg_str word = pxgg_next_word(&how);
  if (PXGG_EQ(word, "forever")) return;
  pending *p = calloc(1, sizeof *p);
  *p = (pending){.script = s,
                 .rest = at + 1,
                 .phase = ev->phase,
                 .nth = nth,
                 .flags = ev->flags,
                 .token = ev->token,
                 .len = pxgg_body_len(ev),
                 .key = how};
  if (PXGG_EQ(word, "until")) {
    pthread_mutex_lock(&lock);
    p->next = waiting;
    waiting = p;
    pthread_mutex_unlock(&lock);
  } else if (PXGG_EQ(word, "early")) {
    complete(p);
    free(p);
  } else {
    p->wait_ms = (long)number(word);
    detached(later, p);
  }
}
