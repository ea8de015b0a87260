/* SPDX-License-Identifier: Apache-2.0 */

/* Libraries: the host's table (chapter 3), loading (chapter 2), and what is lent during a hook (11.4). */

#define _DEFAULT_SOURCE
#define _XOPEN_SOURCE 700

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "pxg_loading.h"

#define SCRATCH_PRESET (1u << 20)
#define SCRATCH_LEAST (64u << 10) /* What 11.4 promises. */

/* The one state of the process: what the driver said, the page, and the list of libraries, which only grows. */
static pxg_driver driver;
static bool started;
static pxg_page page = {.size = sizeof(pxg_page), .log_level = PXG_LOG_INFO};
static _Atomic(pxg_guest_lib *) libs;
static uint64_t n_libs;
static pthread_mutex_t config_lock = PTHREAD_MUTEX_INITIALIZER;

static __thread bool loop_thread;
static __thread pxg_call *call_now;

/* ---- The driver and the page ------------------------------------------------------------------------------------- */

const pxg_driver *pxg_host_driver(void) { return &driver; }

bool pxg_host_start(const pxg_driver *d, pxg_error *why) {
  uint64_t pend[4] = {0x3f | 1ull << PXG_F_PEND_L4_OPEN | 1ull << PXG_F_PEND_L4_DATA};
  bool pends = (d->features[0] & pend[0]) != 0, applies = pxg_has(d->features, PXG_F_APPLY);
  if (started) return pxg_fail(why, PXG_E_STATE, "the host has been started in this process already");
  if (pends != (d->complete != NULL) || applies != (d->apply != NULL) || applies != (d->wake != NULL))
    return pxg_fail(why, PXG_E_ARG,
                    "found complete %s with%s a PEND feature, apply and wake %s with%s APPLY, expected entries exactly "
                    "for the features [PXG-NEG-004]",
                    d->complete ? "set" : "null", pends ? "" : "out", d->apply ? "set" : "null", applies ? "" : "out");
  if (!d->name || !d->version || !d->n_workers)
    return pxg_fail(why, PXG_E_ARG, "found a driver without name, version or workers, expected all three");
  driver = *d;
  if (!driver.scratch_limit) driver.scratch_limit = SCRATCH_PRESET;
  if (driver.scratch_limit < SCRATCH_LEAST) driver.scratch_limit = SCRATCH_LEAST;
  pxg_log_level(d->log_level);
  started = true;
  return true;
}

void pxg_host_zone(pxg_zone *zone) { driver.zone = zone; }

void pxg_page_clock(uint64_t monotonic_ns, uint64_t realtime_ns) {
  __atomic_store_n(&page.monotonic_ns, monotonic_ns, __ATOMIC_RELAXED);
  __atomic_store_n(&page.realtime_ns, realtime_ns, __ATOMIC_RELAXED);
}

void pxg_page_draining(bool draining) { __atomic_store_n(&page.draining, draining, __ATOMIC_RELAXED); }

void pxg_log_level(uint32_t level) {
  __atomic_store_n(&page.log_level, level < PXG_LOG_OFF ? level : PXG_LOG_OFF, __ATOMIC_RELAXED);
}

bool pxg_log_wants(uint32_t level) {
  if (level > PXG_LOG_ERROR) level = PXG_LOG_ERROR;
  return level >= __atomic_load_n(&page.log_level, __ATOMIC_RELAXED);
}

void pxg_loop_thread(bool is) { loop_thread = is; }

bool pxg_is_loop_thread(void) { return loop_thread; }

bool pxg_config_enter(pxg_error *why) {
  if (!started) return pxg_fail(why, PXG_E_STATE, "pxg_host_start has not been called");
  if (loop_thread && pxg_has(driver.features, PXG_F_CONFIG_THREAD))
    return pxg_fail(why, PXG_E_THREAD,
                    "found a config-thread call on a loop thread, which CONFIG_THREAD excludes [PXG-CFG-006]");
  if (call_now) return pxg_fail(why, PXG_E_THREAD, "found a config-thread call inside a hook of a guest [PXG-THR-001]");
  pthread_mutex_lock(&config_lock);
  return true;
}

void pxg_config_leave(void) { pthread_mutex_unlock(&config_lock); }

char *pxg_text_copy(const void *text, size_t len) {
  char *copy = malloc(len + 1);
  if (!copy) return NULL;
  if (len) memcpy(copy, text, len);
  copy[len] = 0;
  return copy;
}

/* ---- Scratch ----------------------------------------------------------------------------------------------------- */

/* 32 bytes, so that what follows is 16-aligned. */
struct pxg_more {
  pxg_more *next;
  uint64_t len, reserved[2];
  uint8_t bytes[];
};

void pxg_call_begin(pxg_call *c) {
  c->more = NULL;
  c->more_sum = c->more_cost = 0;
  c->over = false;
  call_now = c;
}

void pxg_call_end(pxg_call *c) {
  call_now = NULL;
  for (pxg_more *m = c->more, *next; m; m = next) {
    next = m->next;
    free(m);
  }
  c->more = NULL;
}

const pxg_call *pxg_call_current(void) { return call_now; }

/* The limit counts what the pieces cost, so that many small ones do not take many times of it; but what 11.4 promises
 * is promised for pieces of every size. */
static uint8_t *scratch_more(uint64_t ctx, uint64_t n) {
  (void)ctx;
  pxg_call *c = call_now;
  if (!c) return NULL;
  uint64_t limit = driver.scratch_limit, cost = n <= limit ? ((n + 15) & ~15ull) + sizeof(pxg_more) + 16 : 0;
  bool granted = n <= limit && (c->more_sum + n <= SCRATCH_LEAST || c->more_cost + cost <= limit);
  void *memory = NULL;
  if (!granted || posix_memalign(&memory, 16, sizeof(pxg_more) + (n ? n : 1))) {
    c->over = true;
    return NULL;
  }
  pxg_more *m = memory;
  memset(m, 0, sizeof *m + (n ? n : 1));
  m->len = n;
  m->next = c->more;
  c->more = m;
  c->more_sum += n;
  c->more_cost += cost;
  return m->bytes;
}

static bool leaves(const void *region, uint64_t size, const void *ptr, uint64_t len) {
  uintptr_t at = (uintptr_t)ptr, from = (uintptr_t)region;
  return at >= from && at - from < size && len > size - (at - from);
}

bool pxg_call_overruns(const pxg_call *c, const void *ptr, uint64_t len) {
  if (!c || !len || !ptr) return false;
  if (leaves(c->ops, c->ops_cap * sizeof *c->ops, ptr, len) || leaves(c->scratch, c->scratch_cap, ptr, len))
    return true;
  for (const pxg_more *m = c->more; m; m = m->next)
    if (leaves(m->bytes, m->len, ptr, len)) return true;
  return false;
}

/* ---- The table of the host --------------------------------------------------------------------------------------- */

pxg_guest_lib *pxg_guest_first(void) { return atomic_load_explicit(&libs, memory_order_acquire); }

pxg_guest_lib *pxg_guest_by_ctx(uint64_t ctx) {
  pxg_guest_lib *l = pxg_guest_first();
  while (l && l->ctx != ctx) l = l->next;
  return l;
}

static const void *get_ext(uint64_t ctx, const uint8_t *id, uint64_t len) {
  (void)ctx;
  bool metrics = driver.zone && id && len == sizeof PXG_METRICS_V1_ID - 1 && !memcmp(id, PXG_METRICS_V1_ID, len);
  return metrics ? &pxg_metrics_table : NULL;
}

static pxg_str text_of(const char *text) { return (pxg_str){(const uint8_t *)text, (uint32_t)strlen(text), 0}; }

static void fill_host(pxg_host *h, uint64_t ctx) {
  h->size = sizeof *h;
  h->major = PXG_VERSION_MAJOR;
  h->minor = PXG_VERSION_MINOR;
  h->n_workers = driver.n_workers;
  memcpy(h->features, driver.features, sizeof h->features);
  h->name = text_of(driver.name);
  h->version = text_of(driver.version);
  h->ctx = ctx;
  h->page = &page;
  h->complete = driver.complete;
  h->apply = driver.apply;
  h->wake = driver.wake;
  h->log = pxg_guest_log;
  h->scratch_more = scratch_more;
  h->get_ext = get_ext;
}

#define NAME(feature) [PXG_F_##feature] = #feature

const char *pxg_feature_name(unsigned feature) {
  static const char *const names[] = {NAME(PEND_REQUEST_HEADERS),
                                      NAME(PEND_REQUEST_BODY),
                                      NAME(PEND_REQUEST_TRAILERS),
                                      NAME(PEND_RESPONSE_HEADERS),
                                      NAME(PEND_RESPONSE_BODY),
                                      NAME(PEND_RESPONSE_TRAILERS),
                                      NAME(PEND_L4_OPEN),
                                      NAME(PEND_L4_DATA),
                                      NAME(BODY_STREAM_REQUEST),
                                      NAME(BODY_STREAM_RESPONSE),
                                      NAME(BODY_WHOLE_REQUEST),
                                      NAME(BODY_WHOLE_RESPONSE),
                                      NAME(BODY_OBSERVE_REQUEST),
                                      NAME(BODY_OBSERVE_RESPONSE),
                                      NAME(HOLD_REQUEST),
                                      NAME(HOLD_RESPONSE),
                                      NAME(RESIZE_REQUEST),
                                      NAME(RESIZE_RESPONSE),
                                      NAME(EXACT_EOS_REQUEST),
                                      NAME(EXACT_EOS_RESPONSE),
                                      NAME(TRAILERS_IN_REQUEST),
                                      NAME(TRAILERS_IN_RESPONSE),
                                      NAME(TRAILERS_OUT_REQUEST),
                                      NAME(TRAILERS_OUT_RESPONSE),
                                      NAME(PARTIAL_RELEASE),
                                      NAME(CONTINUE_GATE),
                                      NAME(BODY_INJECT),
                                      NAME(STREAM_REPLY),
                                      NAME(FLUSH),
                                      NAME(REPLY_REFILTER),
                                      NAME(ROUTE),
                                      NAME(METADATA),
                                      NAME(OWNED_BUF),
                                      NAME(WIRE_ORDER),
                                      NAME(ORPHAN),
                                      NAME(SUBREQUESTS),
                                      NAME(UPGRADE_BODY),
                                      NAME(THREAD_AFFINE),
                                      NAME(BATCH_END),
                                      NAME(CONFIG_REJECT),
                                      NAME(CONFIG_THREAD),
                                      NAME(L4),
                                      NAME(APPLY)};
  return feature < sizeof names / sizeof *names ? names[feature] : NULL;
}

void pxg_features_missing(char *to, size_t room, const uint64_t want[4], const uint64_t have[4]) {
  size_t n = 0;
  to[0] = 0;
  for (unsigned f = 0; f < 256 && n < room; f++) {
    if (!pxg_has(want, f) || pxg_has(have, f)) continue;
    const char *name = pxg_feature_name(f), *comma = n ? ", " : "";
    n += (size_t)(name ? snprintf(to + n, room - n, "%s%s", comma, name)
                       : snprintf(to + n, room - n, "%sfeature %u", comma, f));
  }
}

/* ---- Loading ----------------------------------------------------------------------------------------------------- */

static bool filters_ok(const pxg_guest *g, const char *path, pxg_error *why) {
  if (!g->n_filters || !g->filters)
    return pxg_fail(why, PXG_E_ARG, "%s: found no filter, expected at least one [PXG-LOAD-010]", path);
  for (uint64_t i = 0; i < g->n_filters; i++) {
    const pxg_str *name = &g->filters[i];
    if (!name->len || !name->ptr)
      return pxg_fail(why, PXG_E_ARG, "%s: found filter %llu without a name, expected one [PXG-LOAD-010]", path,
                      (unsigned long long)i);
    for (uint64_t k = 0; k < i; k++) {
      char clean[128];
      if (name->len != g->filters[k].len || memcmp(name->ptr, g->filters[k].ptr, name->len)) continue;
      pxg_clean(clean, sizeof clean, name->ptr, name->len);
      return pxg_fail(why, PXG_E_ARG, "%s: found two filters named %s, expected distinct names [PXG-LOAD-010]", path,
                      clean);
    }
  }
  return true;
}

/* 2.2 step 6. */
static bool table_ok(const pxg_guest *g, const pxg_host *h, const char *path, pxg_error *why) {
  if (g->major != PXG_VERSION_MAJOR)
    return pxg_fail(why, PXG_E_VERSION, "%s: found major version %u in its table, expected %u [PXG-LOAD-010]", path,
                    g->major, PXG_VERSION_MAJOR);
  if (g->size < sizeof *g)
    return pxg_fail(why, PXG_E_ARG, "%s: found a table of %u bytes, expected at least %zu [PXG-ABI-005]", path, g->size,
                    sizeof *g);
  if (g->flags & ~PXG_GUEST_ABORTS)
    return pxg_fail(why, PXG_E_UNSUPPORTED, "%s: found flags 0x%x in its table, expected no bit but 0x%x [PXG-ABI-005]",
                    path, g->flags, PXG_GUEST_ABORTS);
  char missing[1024];
  pxg_features_missing(missing, sizeof missing, g->required, h->features);
  if (*missing)
    return pxg_fail(why, PXG_E_UNSUPPORTED, "%s: it requires features that this host lacks: %s [PXG-NEG-003]", path,
                    missing);
  const char *hook = !g->on_config_new    ? "on_config_new"
                     : !g->on_config_drop ? "on_config_drop"
                     : !g->on_event       ? "on_event"
                     : !g->on_cancel      ? "on_cancel"
                     : !g->on_stream_end  ? "on_stream_end"
                                          : NULL;
  if (hook)
    return pxg_fail(why, PXG_E_ARG, "%s: found %s null in its table, expected a function [PXG-LOAD-010]", path, hook);
  return filters_ok(g, path, why);
}

/* A way to write the path that no loaded library has: the dynamic linker knows its libraries by name first, and would
 * take a file that replaced another one under its name for the old one. */
static char *name_for_linker(const char *path) {
  size_t turns = 0;
  for (pxg_guest_lib *l = pxg_guest_first(); l; l = l->next) turns += !strcmp(l->path, path);
  char *name = malloc(strlen(path) + 2 * turns + 1);
  if (!name) return NULL;
  size_t n = 0;
  for (size_t i = 0; i < turns; i++) name[n++] = '/', name[n++] = '.';
  strcpy(name + n, path);
  return name;
}

static pxg_guest_lib *lib_of_file(const struct stat *st) {
  pxg_guest_lib *l = pxg_guest_first();
  while (l && (l->device != st->st_dev || l->inode != st->st_ino)) l = l->next;
  return l;
}

static pxg_guest_lib *lib_new(const char *path, const struct stat *st, bool go) {
  pxg_guest_lib *l = calloc(1, sizeof *l);
  if (!l) return NULL;
  l->path = pxg_text_copy(path, strlen(path));
  l->metrics = driver.zone ? calloc(pxg_zone_series(driver.zone) / 64 + 1, sizeof *l->metrics) : NULL;
  if (!l->path || (driver.zone && !l->metrics)) {
    free(l->path);
    free((void *)l->metrics);
    free(l);
    return NULL;
  }
  l->device = st->st_dev;
  l->inode = st->st_ino;
  l->go = go;
  l->ctx = ++n_libs;
  fill_host(&l->host, l->ctx);
  /* In the list before init, so that what it logs and defines has an owner. */
  l->next = pxg_guest_first();
  atomic_store_explicit(&libs, l, memory_order_release);
  return l;
}

static bool name_it(pxg_guest_lib *l) {
  char clean[256];
  const pxg_str *name = &l->table.name;
  size_t n = pxg_clean(clean, sizeof clean, name->ptr, name->ptr ? name->len : 0);
  const char *base = strrchr(l->path, '/');
  char *copy = n ? pxg_text_copy(clean, n) : pxg_text_copy(base + 1, strlen(base + 1));
  if (!copy) return false;
  /* Threads that init started may log already. */
  __atomic_store_n(&l->name, copy, __ATOMIC_RELEASE);
  return true;
}

static bool init(pxg_guest_lib *l, pxg_error *why) {
  pxg_guest_init_v1_fn entry = NULL;
  *(void **)&entry = dlsym(l->so, PXG_GUEST_INIT_SYMBOL);
  if (!entry)
    return pxg_fail(why, PXG_E_ARG, "%s: found no function %s, expected a guest [PXG-LOAD-011]", l->path,
                    PXG_GUEST_INIT_SYMBOL);
  char said[512];
  pxg_guest table = {.size = sizeof table};
  pxg_log_capture(said, sizeof said);
  int32_t status = entry(&l->host, &table);
  pxg_log_capture(NULL, 0);
  if (status < 0)
    return pxg_fail(why, status, "%s: its init answered %s (%d), expected OK: %s [PXG-LOAD-009]", l->path,
                    pxg_status_name(status), status, *said ? said : "it does not say why");
  if (!table_ok(&table, &l->host, l->path, why)) return false;
  l->table = table;
  if (!name_it(l)) return pxg_fail(why, PXG_E_INTERNAL, "%s: out of memory", l->path);
  return l->usable = true;
}

/* Loads and initialises with the process-directed signals of a host blocked in this thread, so that threads which the
 * guest's runtime starts never run a handler of the host's. No others: a runtime and an SDK send signals to
 * their own threads (SIGURG, SIGPROF, realtime ones), which would never arrive. */
static pxg_guest_lib *load(const char *path, const struct stat *st, bool go, pxg_error *why) {
  static const int directed[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2,   SIGALRM,  SIGCHLD, SIGCONT,
                                 SIGTSTP, SIGTTIN, SIGTTOU, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGWINCH, SIGIO};
  sigset_t blocked, before;
  sigemptyset(&blocked);
  for (size_t i = 0; i < sizeof directed / sizeof *directed; i++) sigaddset(&blocked, directed[i]);
  char *name = name_for_linker(path);
  pxg_guest_lib *l = lib_of_file(st);
  if (!l && name) l = lib_new(path, st, go);
  if (!l || !name) {
    free(name);
    pxg_fail(why, PXG_E_INTERNAL, "%s: out of memory", path);
    return NULL;
  }
  struct stat now;
  bool ok = true;
  pthread_sigmask(SIG_BLOCK, &blocked, &before);
  if (!l->so) {
    dlerror();
    l->so = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!l->so) {
      const char *error = dlerror();
      ok = pxg_fail(why, PXG_E_ARG, "%s: it cannot be loaded: %s [PXG-LOAD-003]", path, error ? error : "no cause");
    } else if (stat(path, &now) || now.st_dev != st->st_dev || now.st_ino != st->st_ino) {
      l->inode = 0; /* Nobody knows which file it is: never found again. */
      ok = pxg_fail(why, PXG_E_STATE, "%s: the file was replaced while it was loaded; load it again [PXG-LOAD-007]",
                    path);
    }
  }
  ok = ok && init(l, why);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  free(name);
  return ok ? l : NULL;
}

pxg_guest_lib *pxg_guest_load_inside(const char *given, pxg_error *why) {
  char path[PATH_MAX];
  struct stat st;
  if (!realpath(given, path) || stat(path, &st)) {
    char found[128];
    if (strerror_r(errno, found, sizeof found)) memcpy(found, "an error", sizeof "an error");
    pxg_fail(why, PXG_E_ARG, "%s: found \"%s\", expected a file that this process may read [PXG-LOAD-011]", given,
             found);
    return NULL;
  }
  pxg_guest_lib *l = lib_of_file(&st);
  if (l && l->usable) return l;
  bool go;
  if (!pxg_elf_check(path, &go, why)) return NULL;
  for (l = go ? pxg_guest_first() : NULL; l; l = l->next)
    if (l->go && l->so && (l->device != st.st_dev || l->inode != st.st_ino))
      pxg_say(PXG_LOG_WARN, "%s and %s both have a Go runtime; Go does not support two in one process [PXG-LOAD-008]",
              l->path, path);
  return load(path, &st, go, why);
}

pxg_guest_lib *pxg_guest_load(const char *path, pxg_error *why) {
  if (!pxg_config_enter(why)) return NULL;
  pxg_guest_lib *l = pxg_guest_load_inside(path, why);
  pxg_config_leave();
  if (!l && why) pxg_say(PXG_LOG_ERROR, "%s", why->text);
  return l;
}
