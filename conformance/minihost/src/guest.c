/* SPDX-License-Identifier: Apache-2.0 */

/* Libraries: loading (spec/02-loading), the host's table (spec/03-negotiation), scratch (spec/11-memory). */

#include <dlfcn.h>
#include <limits.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>
#include <fcntl.h>

#include "minihost.h"

static _Atomic(lib *) libs;
static uint64_t n_libs;

lib *lib_first(void) { return atomic_load(&libs); }

lib *lib_by_ctx(uint64_t ctx) {
  for (lib *l = atomic_load(&libs); l; l = l->next)
    if (l->ctx == ctx) return l;
  return NULL;
}

bool has_feature(const uint64_t *features, unsigned f) { return features[f / 64] >> (f % 64) & 1; }

static const void *get_ext(uint64_t ctx, const uint8_t *id, uint64_t len) {
  (void)ctx;
  static const char name[] = PXG_METRICS_V1_ID;
  if (BUG("extension-comes-and-goes")) {
    static atomic_uint times;
    if (atomic_fetch_add(&times, 1) % 2) return NULL;
  }
  if (BUG("extension-without-revision") && id && len == strlen("pxg.metrics") && !memcmp(id, name, len))
    return &metrics_table;
  if (BUG("extension-size-zero")) {
    static pxg_metrics_v1 sizeless;
    sizeless = metrics_table;
    sizeless.size = 0;
    return id && len == sizeof name - 1 && !memcmp(id, name, len) ? &sizeless : NULL;
  }
  return id && len == sizeof name - 1 && !memcmp(id, name, len) ? &metrics_table : NULL;
}

/* ---- scratch ----------------------------------------------------------------------------------------------------- */

_Thread_local call *call_now;

void call_begin(call *c) {
  c->n_more = 0;
  c->more_sum = 0;
  c->over = false;
  call_now = c;
}

void call_end(call *c) {
  call_now = NULL;
  for (size_t i = 0; i < c->n_more && !BUG("scratch-handed-out-twice"); i++) free(c->more[i]);
  c->n_more = 0;
  /* What a guest left there is of no use to anyone. */
  memset(c->scratch, 0xdb, c->scratch_cap);
}

uint8_t *guest_scratch_more(uint64_t ctx, uint64_t n) {
  (void)ctx;
  call *c = call_now;
  if (!c) return BUG("scratch-outside-hooks") ? must(calloc(1, n + 1)) : NULL;
  uint64_t limit = BUG("scratch-of-4-kib") ? 4096 : set.scratch_limit;
  if (n > limit || c->more_sum + n > limit || c->n_more == 64) {
    c->over = true;
    return NULL;
  }
  uint64_t size = (n + 31) & ~15ull;
  if (BUG("scratch-handed-out-twice") && c->n_more && n <= c->more_len[0]) return c->more[0];
  uint8_t *more = must(aligned_alloc(16, size + 16));
  memset(more, BUG("scratch-more-dirty") ? 0xa5 : 0, size);
  c->more[c->n_more] = more;
  c->more_len[c->n_more++] = n;
  c->more_sum += n;
  return BUG("scratch-misaligned") ? more + 8 : more;
}

static bool overruns(const void *region, uint64_t size, const void *ptr, uint64_t len) {
  uintptr_t at = (uintptr_t)ptr, from = (uintptr_t)region;
  return at >= from && at < from + size && len > from + size - at;
}

bool call_lent(const call *c, const void *ptr) {
  const uint64_t beyond = UINT64_MAX; /* Whatever its length: what counts is where it begins. */
  bool in =
      overruns(c->ops, c->ops_cap * sizeof *c->ops, ptr, beyond) || overruns(c->scratch, c->scratch_cap, ptr, beyond);
  for (size_t i = 0; i < c->n_more; i++) in |= overruns(c->more[i], c->more_len[i], ptr, beyond);
  return in;
}

bool call_overruns(const call *c, const void *ptr, uint64_t len) {
  if (!c || !len || BUG("lent-bounds-unchecked")) return false;
  if (overruns(c->ops, c->ops_cap * sizeof *c->ops, ptr, len) || overruns(c->scratch, c->scratch_cap, ptr, len))
    return true;
  for (size_t i = 0; i < c->n_more; i++)
    if (overruns(c->more[i], c->more_len[i], ptr, len)) return true;
  return false;
}

/* ---- the host's table -------------------------------------------------------------------------------------------- */

#define F(n) (1ull << (n))

static pxg_host shared_table;

const pxg_host *host_table(void) {
  if (shared_table.size) return &shared_table;
  pxg_host *h = &shared_table;
  static const char name[] = "pxg-minihost", version[] = "1.0.0";
  h->major = PXG_VERSION_MAJOR;
  h->minor = PXG_VERSION_MINOR;
  h->n_workers = set.workers;
  /* All of version 1.0 but subrequests: this host makes none. */
  h->features[0] = (F(PXG_F_APPLY + 1) - 1) & ~F(PXG_F_SUBREQUESTS);
  h->name = (pxg_str){(const uint8_t *)name, sizeof name - 1, 0};
  h->version = (pxg_str){(const uint8_t *)version, sizeof version - 1, 0};
  h->page = &page;
  h->complete = guest_complete;
  h->apply = guest_apply;
  h->wake = guest_wake;
  h->log = guest_log;
  h->scratch_more = guest_scratch_more;
  h->get_ext = get_ext;
  h->size = sizeof *h;
  if (BUG("null-apply")) h->apply = NULL;
  return h;
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

static char *text(const char *format, ...) __attribute__((format(printf, 1, 2)));

static char *text(const char *format, ...) {
  char *out = NULL;
  va_list args;
  va_start(args, format);
  if (vasprintf(&out, format, args) < 0) abort();
  va_end(args);
  return out;
}

#define NAME(feature) [PXG_F_##feature] = #feature

static const char *const feature_names[256] = {NAME(PEND_REQUEST_HEADERS),
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

void name_features(char *to, size_t room, const uint64_t *want, const uint64_t *have) {
  size_t n = 0;
  to[0] = 0;
  for (unsigned f = 0; f < 256; f++) {
    if (!has_feature(want, f) || has_feature(have, f) || n >= room) continue;
    if (feature_names[f]) {
      n += (size_t)snprintf(to + n, room - n, "%s%s", n ? ", " : "", feature_names[f]);
    } else {
      n += (size_t)snprintf(to + n, room - n, "%s%u", n ? ", " : "", f);
    }
  }
}

static char *table_fault(const pxg_guest *g, const pxg_host *h) {
  if (g->size < sizeof *g) return text("found a table of %u bytes, expected %zu or more", g->size, sizeof *g);
  if (g->major != PXG_VERSION_MAJOR) return text("found major %u, expected %u", g->major, PXG_VERSION_MAJOR);
  char missing[1024];
  name_features(missing, sizeof missing, g->required, h->features);
  if (*missing && !BUG("required-ignored"))
    return text("requires features that this host lacks: %s [PXG-NEG-003]", missing);
  if ((g->flags & ~PXG_GUEST_ABORTS) && !BUG("undefined-bits-ignored"))
    return text("UNSUPPORTED: flags 0x%x, expected no bit but ABORTS [PXG-ABI-005]", g->flags);
  if (BUG("table-unchecked")) return NULL;
  const char *hook = !g->on_config_new    ? "on_config_new"
                     : !g->on_config_drop ? "on_config_drop"
                     : !g->on_event       ? "on_event"
                     : !g->on_cancel      ? "on_cancel"
                     : !g->on_stream_end  ? "on_stream_end"
                                          : NULL;
  if (hook) return text("the hook %s is NULL, expected a function [PXG-LOAD-010]", hook);
  if (!g->n_filters || !g->filters) return text("found no filter, expected at least one [PXG-LOAD-010]");
  for (uint64_t i = 0; i < g->n_filters; i++) {
    if (!g->filters[i].len || !g->filters[i].ptr)
      return text("filter %llu has no name [PXG-LOAD-010]", (unsigned long long)i);
    for (uint64_t k = 0; k < i; k++)
      if (g->filters[i].len == g->filters[k].len && !memcmp(g->filters[i].ptr, g->filters[k].ptr, g->filters[i].len))
        return text("two filters are named %.*s, expected distinct names [PXG-LOAD-010]", (int)g->filters[i].len,
                    (const char *)g->filters[i].ptr);
  }
  return NULL;
}

/* The path to load: a file that replaced a loaded one under the same name is reached by its descriptor, because the
 * dynamic linker would take it for the loaded one. */
static char *load_name(const char *path, const struct stat *st) {
  for (lib *l = lib_first(); l; l = l->next)
    if (!strcmp(l->path, path) && l->inode != st->st_ino)
      return text("/proc/self/fd/%d", open(path, O_RDONLY | O_CLOEXEC));
  return copy_text(path, strlen(path));
}

static lib *lib_of_file(const struct stat *st) {
  lib *l = lib_first();
  while (l && (l->device != st->st_dev || l->inode != st->st_ino)) l = l->next;
  return l;
}

static lib *load(const char *path, const struct stat *st, bool go, char **why) {
  char *name = load_name(path, st);
  sigset_t all, before;
  sigfillset(&all);
  for (int s = 0; s < 5; s++) sigdelset(&all, ((int[]){SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT})[s]);
  if (BUG("signals-open-at-load")) {
    sigemptyset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
  }
  pthread_sigmask(SIG_BLOCK, &all, &before);
  lib *l = lib_of_file(st);
  if (!l) {
    l = zalloc(sizeof *l);
    l->ctx = ++n_libs;
    l->path = copy_text(path, strlen(path));
    l->device = st->st_dev;
    l->inode = st->st_ino;
    l->go = go;
    l->host = *host_table();
    l->host.ctx = l->ctx;
    /* In the list before init, so that what it logs has a name. */
    l->next = atomic_load(&libs);
    atomic_store(&libs, l);
  }
  l->table = (pxg_guest){0};
  dlerror();
  void *so = dlopen(name, BUG("symbols-global") ? RTLD_LAZY | RTLD_GLOBAL : RTLD_NOW | RTLD_LOCAL);
  const char *error = so ? NULL : dlerror();
  if (!so) *why = text("%s: cannot be loaded: %s [PXG-LOAD-003]", path, error ? error : "unknown");
  free(name);
  pxg_guest_init_v1_fn init = NULL;
  if (so) *(void **)&init = dlsym(so, PXG_GUEST_INIT_SYMBOL);
  if (so && !init) *why = text("%s: %s is not found [PXG-LOAD-011]", path, PXG_GUEST_INIT_SYMBOL);
  if (init) {
    l->table.size = sizeof l->table;
    if (BUG("table-incomplete-at-init")) l->host.get_ext = NULL;
    int32_t status = init(&l->host, &l->table);
    if (BUG("table-incomplete-at-init")) l->host.get_ext = get_ext;
    char *fault = NULL;
    if (status < 0) {
      *why = text("%s: init answered %s (%d), expected OK", path, status_name(status), status);
    } else if ((fault = table_fault(&l->table, &l->host))) {
      *why = text("%s: %s", path, fault);
      free(fault);
    } else {
      l->name = clean_text(l->table.name.ptr, l->table.name.ptr ? l->table.name.len : 0);
      if (!*l->name) {
        free(l->name);
        const char *base = strrchr(path, '/');
        l->name = copy_text(base ? base + 1 : path, strlen(base ? base + 1 : path));
      }
    }
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  l->so = so;
  return *why ? NULL : l;
}

lib *lib_load(const char *given, char **why) {
  char path[PATH_MAX];
  struct stat st;
  *why = NULL;
  if (!realpath(given, path) || stat(path, &st)) {
    *why = text("%s: found no file, expected a guest", given);
    return NULL;
  }
  for (lib *l = lib_first(); l; l = l->next)
    if (l->name &&
        ((l->device == st.st_dev && l->inode == st.st_ino) || (BUG("same-path-same-guest") && !strcmp(l->path, path))))
      return l;
  bool go;
  char *fault = elf_check(path, &go);
  if (fault && !BUG("file-unchecked")) {
    *why = fault;
    return NULL;
  }
  free(fault);
  for (lib *l = lib_first(); go && l && !BUG("second-go-runtime-unsaid"); l = l->next)
    if (l->go)
      say(PXG_LOG_WARN, "%s and %s both contain a Go runtime; Go does not support that [PXG-LOAD-008]", l->path, path);
  return load(path, &st, go, why);
}

void lib_unload(lib *l) {
  l->table = (pxg_guest){0};
  l->name = NULL;
  dlclose(l->so);
}
