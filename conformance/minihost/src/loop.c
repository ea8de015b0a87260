/* SPDX-License-Identifier: Apache-2.0 */

/* Workers: one thread and one epoll each; a stream stays on the worker that accepted its connection. */

#include <arpa/inet.h>
#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "minihost.h"

worker *workers;

/* The end of all: streams, then configurations, then workers. */
static pthread_barrier_t quiet, dropped;

void handler_set(worker *w, handler *h, uint32_t interest) {
  struct epoll_event e = {.events = interest, .data.ptr = h};
  if (interest == h->interest || h->fd < 0) return;
  epoll_ctl(w->epoll, !interest ? EPOLL_CTL_DEL : h->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, h->fd, &e);
  h->interest = interest;
}

/* ---- waking ------------------------------------------------------------------------------------------------------ */

void worker_ready(stream *s) {
  worker *w = s->w;
  pthread_mutex_lock(&w->lock);
  bool first = !s->ready;
  if (first) {
    s->ready = true;
    atomic_fetch_add(&s->refs, 1);
    s->ready_next = w->ready;
    w->ready = s;
  }
  pthread_mutex_unlock(&w->lock);
  uint64_t one = 1;
  if (first && write(w->wake.fd, &one, sizeof one) < 0) say(PXG_LOG_ERROR, "eventfd");
}

/* A mutant's: whether `complete` has left something for it. */
static bool is_completed(const stream *s) {
  pthread_mutex_lock(&tokens_lock);
  bool found = false;
  for (int i = 0; i < s->n; i++) found |= s->places[i].first && s->places[i].first->kind == E_COMPLETE;
  pthread_mutex_unlock(&tokens_lock);
  return found;
}

static void woken(handler *h, uint32_t events) {
  (void)events;
  worker *w = (worker *)((char *)h - offsetof(worker, wake));
  uint64_t n;
  if (read(h->fd, &n, sizeof n) < 0 && errno != EAGAIN) return;
  pthread_mutex_lock(&w->lock);
  stream *list = w->ready;
  w->ready = NULL;
  for (stream *s = list; s; s = s->ready_next) s->ready = false;
  /* A stream that becomes ready again from here on is a new entry. */
  stream **all = NULL;
  size_t count = 0;
  for (stream *s = list; s; s = s->ready_next) count++;
  all = must(malloc((count + 1) * sizeof *all));
  count = 0;
  for (stream *s = list; s; s = s->ready_next) all[count++] = s;
  pthread_mutex_unlock(&w->lock);
  bool lost = false;
  for (size_t i = count; i-- > 0;) {
    if (BUG("completion-lost-with-its-neighbour") && w->bereft && is_completed(all[i])) {
      lost = true;
    } else {
      stream_run(all[i]);
    }
    stream_unref(all[i]);
  }
  if (lost) w->bereft = false;
  free(all);
}

static void accept_some(handler *h, uint32_t events) {
  (void)events;
  worker *w = (worker *)((char *)h - offsetof(worker, listener));
  int fd = accept4(h->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) client_accept(w, fd);
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

static void timers(worker *w) {
  uint64_t now = now_ns();
  if (w->next_timer && w->next_timer <= now) {
    w->next_timer = 0;
    for (stream *s = w->streams, *next; s; s = next) {
      next = s->next;
      if (next) atomic_fetch_add(&next->refs, 1);
      stream_timers(s, now);
      if (next) {
        /* It may have ended meanwhile: then the rest is looked at in the next round. */
        bool ended = next->finished;
        stream_unref(next);
        if (ended) {
          stream_later(w->streams ? w->streams : s, now);
          break;
        }
      }
    }
  }
  for (client *c = w->clients, *next; c; c = next) {
    next = c->next;
    client_idle(c, now);
  }
}

static void sweep(worker *w) {
  for (client *c = w->dead_clients, *next; c; c = next) {
    next = c->next;
    if (c->s) continue;
    client_free(c);
  }
  w->dead_clients = NULL;
  for (upstream *u = w->dead_ups, *next; u; u = next) {
    next = u->dead_next;
    free(u);
  }
  w->dead_ups = NULL;
}

static void batch_end(worker *w) {
  for (lib *l = lib_first(); l; l = l->next) {
    if (l->ctx >= w->n_libs || !w->lib_pended[l->ctx]) continue;
    w->lib_pended[l->ctx] = false;
    if ((l->table.on_batch_end || BUG("optional-hooks-called")) && !BUG("batch-end-never"))
      l->table.on_batch_end(l->table.ctx, w->index);
    if (l->table.on_batch_end && BUG("batch-end-twice")) l->table.on_batch_end(l->table.ctx, w->index);
  }
}

_Thread_local bool loop_thread;

/* This thread runs on one processor from here on, another one for each `index` as far as there are some. */
void pin(uint32_t index) {
  cpu_set_t all, one;
  if (sched_getaffinity(0, sizeof all, &all)) return;
  int n = CPU_COUNT(&all), skip = n ? (int)(index % (uint32_t)n) : 0, cpu = 0;
  while (cpu < CPU_SETSIZE && !(CPU_ISSET(cpu, &all) && !skip--)) cpu++;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  (void)sched_setaffinity(0, sizeof one, &one);
}

static void *run(void *of) {
  worker *w = of;
  loop_thread = true;
  if (set.pin) pin((uint32_t)(w - workers));
  for (lib *l = lib_first(); l; l = l->next)
    if (l->name) loop_enter(w, l);
  while (!atomic_load(&w->stop)) {
    struct epoll_event events[64];
    int wait = 500;
    if (w->next_timer) {
      uint64_t now = now_ns();
      uint64_t ms = w->next_timer <= now ? 0 : (w->next_timer - now) / 1000000 + 1;
      if (ms < (uint64_t)wait) wait = (int)ms;
    }
    if (BUG("waits-for-any-child")) wait = 1;
    int n = epoll_wait(w->epoll, events, 64, wait);
    if (!BUG("page-clock-stands")) page_tick();
    for (int i = 0; i < n; i++) {
      handler *h = events[i].data.ptr;
      if (h->fd >= 0) h->ready(h, events[i].events);
    }
    if (BUG("waits-for-any-child")) waitpid(-1, NULL, WNOHANG);
    if (BUG("reload-cuts-streams") && atomic_exchange(&w->cut, false))
      while (w->streams) stream_reset(w->streams, PXG_END_ERROR);
    timers(w);
    batch_end(w);
    sweep(w);
    if (atomic_load(&w->draining) && w->listener.fd >= 0) {
      handler_set(w, &w->listener, 0);
      close(w->listener.fd);
      w->listener.fd = -1;
    }
  }
  /* The drain's limit: what still runs is cancelled. */
  while (w->streams && !BUG("streams-left-at-shutdown")) stream_reset(w->streams, PXG_END_TIMEOUT);
  sweep(w);
  pthread_barrier_wait(&quiet);
  pthread_barrier_wait(&dropped);
  for (lib *l = lib_first(); l; l = l->next)
    if (l->ctx < w->n_libs && w->lib_up[l->ctx] && l->table.on_worker) l->table.on_worker(l->table.ctx, w->index, 0);
  return NULL;
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

static int listen_at(const char *host, uint16_t port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  inet_pton(AF_INET, host, &a.sin_addr);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &(int){1}, sizeof(int));
  if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 1024)) {
    close(fd);
    return -1;
  }
  return fd;
}

bool workers_start(uint16_t *port) {
  char host[64];
  const char *colon = strrchr(set.listen, ':');
  if (!colon || colon - set.listen > 63) return false;
  memcpy(host, set.listen, (size_t)(colon - set.listen));
  host[colon - set.listen] = 0;
  *port = (uint16_t)atoi(colon + 1);
  workers = zalloc(set.workers * sizeof *workers);
  for (uint32_t i = 0; i < set.workers; i++) {
    worker *w = &workers[i];
    w->index = i;
    w->epoll = epoll_create1(EPOLL_CLOEXEC);
    pthread_mutex_init(&w->lock, NULL);
    w->scratch_ops = must(aligned_alloc(64, SCRATCH_OPS * sizeof *w->scratch_ops));
    memset(w->scratch_ops, 0, SCRATCH_OPS * sizeof *w->scratch_ops);
    w->scratch = must(aligned_alloc(64, SCRATCH_BYTES));
    w->wake = (handler){woken, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), 0};
    w->listener = (handler){accept_some, listen_at(host, *port), 0};
    if (w->listener.fd < 0) return false;
    struct sockaddr_in a;
    socklen_t len = sizeof a;
    getsockname(w->listener.fd, (struct sockaddr *)&a, &len);
    *port = ntohs(a.sin_port);
    handler_set(w, &w->wake, EPOLLIN);
    handler_set(w, &w->listener, EPOLLIN);
  }
  pthread_barrier_init(&quiet, NULL, set.workers + 1);
  pthread_barrier_init(&dropped, NULL, set.workers + 1);
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, BUG("small-stacks") ? 128 << 10 : 1 << 20);
  for (uint32_t i = 0; i < set.workers; i++)
    if (pthread_create(&workers[i].thread, &attr, run, &workers[i])) return false;
  pthread_attr_destroy(&attr);
  return true;
}

static void poke(worker *w) {
  uint64_t one = 1;
  if (write(w->wake.fd, &one, sizeof one) < 0) say(PXG_LOG_ERROR, "eventfd");
}

void workers_drain(void) {
  for (uint32_t i = 0; i < set.workers; i++) {
    atomic_store(&workers[i].draining, true);
    poke(&workers[i]);
  }
}

void workers_cut(void) {
  for (uint32_t i = 0; i < set.workers; i++) {
    atomic_store(&workers[i].cut, true);
    poke(&workers[i]);
  }
}

uint32_t worker_streams(void) {
  int n = 0;
  for (uint32_t i = 0; i < set.workers; i++) n += atomic_load(&workers[i].live);
  return (uint32_t)n;
}

void workers_stop(void) {
  for (uint32_t i = 0; i < set.workers; i++) {
    atomic_store(&workers[i].stop, true);
    poke(&workers[i]);
  }
  pthread_barrier_wait(&quiet);
}

void workers_end(void) {
  pthread_barrier_wait(&dropped);
  for (uint32_t i = 0; i < set.workers; i++) pthread_join(workers[i].thread, NULL);
  pthread_barrier_destroy(&quiet);
  pthread_barrier_destroy(&dropped);
  for (uint32_t i = 0; i < set.workers; i++) {
    worker *w = &workers[i];
    for (client *c = w->clients, *next; c; c = next) {
      next = c->next;
      close(c->h.fd);
      client_free(c);
    }
    if (w->listener.fd >= 0) close(w->listener.fd);
    close(w->wake.fd);
    close(w->epoll);
    free(w->scratch_ops);
    free(w->scratch);
    free(w->fields);
    free(w->lib_up);
    free(w->lib_pended);
    pthread_mutex_destroy(&w->lock);
  }
  free(workers);
}
