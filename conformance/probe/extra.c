/* SPDX-License-Identifier: Apache-2.0 */
/* Effects that are no part of a result: metrics, signals, children, symbols, and calls with arguments that no guest may
 * hand over. */
#include <dirent.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probe.h"
#include "proxy_golang/ext/metrics.h"

static const char *cstr(const word *w) { return (const char *)w->ptr; }

static int is(const word *w, const char *s) { return w->len == strlen(s) && !memcmp(w->ptr, s, w->len); }

/* A record of an effect: what it was about, its answer and a number. */
static void done(const state *s, const char *fn, const word *about, int32_t status, uint64_t arg) {
  text *t = record_begin(fn, 1);
  if (s) j_text(t, "case", s->id);
  if (s && s->cfg->instance) j_text(t, "instance", s->cfg->instance);
  if (about) j_bytes(t, "text", about->ptr, about->len);
  j_i32(t, "status", status);
  j_u64(t, "arg", arg);
  record_end(t);
}

/* ---- metrics ---- */

static struct {
  char name[96];
  uint32_t id;
} ids[64];
static atomic_int n_ids;

static const pxg_metrics_v1 *metrics(void) {
  static const char id[] = PXG_METRICS_V1_ID;
  return the_host->get_ext ? the_host->get_ext(the_host->ctx, (const uint8_t *)id, sizeof id - 1) : NULL;
}

extern uint64_t act_foreign(const char *name);
extern void act_publish(const char *name, uint64_t value);

/* `$NAME` is the id that `define NAME` was answered last, `@NAME` one that another library has published. */
uint32_t extra_metric(const word *w) {
  if (w->len && *w->ptr == '@') return (uint32_t)act_foreign(cstr(w) + 1);
  if (!w->len || *w->ptr != '$') return (uint32_t)strtoull(cstr(w), NULL, 0);
  for (int i = n_ids; i-- > 0;)
    if (!strcmp(ids[i % 64].name, cstr(w) + 1)) return ids[i % 64].id;
  return 0;
}

static int32_t define(const pxg_metrics_v1 *m, uint32_t kind, const word *name, const word *labels, int n,
                      uint32_t *id) {
  pxg_field fields[MAX_WORDS];
  for (int i = 0; i < n; i++) {
    const uint8_t *equals = memchr(labels[i].ptr, '=', labels[i].len);
    uint32_t len = equals ? (uint32_t)(equals - labels[i].ptr) : labels[i].len;
    fields[i] = (pxg_field){{labels[i].ptr, len, 0}, {NULL, 0, 0}};
    if (equals) fields[i].value = (pxg_str){equals + 1, labels[i].len - len - 1, 0};
  }
  /* The only memory of a guest that a host writes to. */
  struct {
    uint32_t before, id, after;
  } lent = {0xcafecafe, 0, 0xcafecafe};
  pxg_str text = {name->ptr, name->len, 0};
  int32_t status = m->define(the_host->ctx, kind, &text, n ? fields : NULL, (uint64_t)n, &lent.id);
  if (lent.before != 0xcafecafe || lent.after != 0xcafecafe)
    note("PXG-ABI-004", "define wrote beside the id it was lent");
  *id = lent.id;
  return status;
}

/* ---- signals ---- */

static atomic_int caught[65];
static struct sigaction before[65];

static void catch (int signal) { atomic_fetch_add(&caught[signal], 1); }

static const int watched[] = {SIGURG, SIGSEGV, SIGBUS, SIGFPE, SIGPIPE};

/* Handlers as a runtime installs them while it is loaded. */
void extra_handlers(void) {
  for (size_t i = 0; i < sizeof watched / sizeof *watched; i++) {
    struct sigaction a = {.sa_handler = catch, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigaction(watched[i], &a, &before[watched[i]]);
  }
}

/* Delivers a signal to this thread, on a small stack of its own, as a runtime does that sets SA_ONSTACK on every handler. */
static int raise_here(int signal) {
  struct sigaction is;
  /* Where nobody handles it, it would end the process: the host takes it otherwise, or not at all. */
  if (sigaction(signal, NULL, &is) || (is.sa_handler == SIG_DFL && signal != SIGCHLD && signal != SIGURG)) return 0;
  stack_t old, alt = {.ss_sp = malloc(32 << 10), .ss_size = 32 << 10};
  struct sigaction a;
  sigaltstack(&alt, &old);
  if (!sigaction(signal, NULL, &a) && a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN &&
      !(a.sa_flags & SA_ONSTACK)) {
    a.sa_flags |= SA_ONSTACK;
    sigaction(signal, &a, NULL);
  }
  sigset_t open;
  sigemptyset(&open), sigaddset(&open, signal);
  pthread_sigmask(SIG_UNBLOCK, &open, NULL);
  syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), signal);
  sigaltstack(&old, NULL);
  free(alt.ss_sp);
  return 1;
}

/* Interrupts the system calls of every other thread, `rounds` times. */
static uint64_t storm(uint64_t rounds) {
  struct sigaction a = {.sa_handler = catch}, old; /* Without SA_RESTART: calls answer EINTR. */
  sigaction(SIGURG, &a, &old);
  uint64_t sent = 0;
  pid_t self = (pid_t)syscall(SYS_gettid);
  for (uint64_t i = 0; i < rounds; i++) {
    DIR *d = opendir("/proc/self/task");
    for (struct dirent *e; d && (e = readdir(d));) {
      pid_t tid = (pid_t)strtol(e->d_name, NULL, 10);
      if (tid > 0 && tid != self) sent += !syscall(SYS_tgkill, getpid(), tid, SIGURG);
    }
    if (d) closedir(d);
    usleep(500);
  }
  sigaction(SIGURG, &old, NULL);
  return sent;
}

/* Children of its own, each waited for by its id: how many of them were there to be reaped. */
static uint64_t reap(uint64_t n) {
  uint64_t found = 0;
  for (uint64_t i = 0; i < n; i++) {
    pid_t child = fork();
    if (!child) _exit(7);
    int status = 0;
    usleep(1000); /* It ends, and SIGCHLD tempts the host. */
    found += child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7;
  }
  return found;
}

/* ---- calls that no guest may make ---- */

static uint64_t bad_calls(const state *s) {
  const pxg_host *h = the_host;
  /* Counts without arrays, every bit set; no pointer that is wild: what it points to may be read. */
  pxg_result zero = {0}, wild, short_one = {.size = 8, .action = PXG_ACT_CONTINUE};
  memset(&wild, 0xff, sizeof wild), wild.size = sizeof wild;
  wild.ops = NULL, wild.reply = NULL, wild.error = (pxg_str){NULL, ~0u, ~0u};
  const pxg_result *results[] = {NULL, &zero, &short_one, &wild};
  const uint64_t values[] = {
      0, 1, ~0ull, 1ull << 63, 0x0102030405060708ull, s->token ^ 1ull << 50, s->stream ^ 1ull << 50};
  uint64_t accepted = 0;
  for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
    for (size_t r = 0; r < sizeof results / sizeof *results; r++) {
      if (h->complete) accepted += h->complete(h->ctx, values[v], results[r]) >= 0;
      if (h->apply) accepted += h->apply(h->ctx, values[v], results[r]) >= 0;
    }
    if (h->wake) accepted += h->wake(h->ctx, values[v], ~0ull) >= 0;
    if (h->complete) accepted += h->complete(h->ctx ^ values[v] ^ 1, s->token, results[1]) >= 0;
  }
  for (size_t r = 0; r < sizeof results / sizeof *results; r++) {
    if (h->complete && s->token) accepted += h->complete(h->ctx, s->token, results[r]) >= 0;
    if (h->apply) accepted += h->apply(h->ctx, s->stream, results[r]) >= 0;
  }
  static const uint8_t junk[] = "\0\xff\xfe%s%n\r\n\x1b[31m";
  if (h->log) {
    h->log(h->ctx, 99, junk, sizeof junk - 1), h->log(h->ctx, ~0u, NULL, 0), h->log(h->ctx, 2, (const uint8_t *)1, 0);
    h->log(h->ctx ^ ~0ull, 2, junk, sizeof junk - 1);
  }
  if (h->get_ext) {
    accepted += h->get_ext(h->ctx, NULL, 0) != NULL, accepted += h->get_ext(h->ctx, junk, sizeof junk - 1) != NULL;
    accepted += h->get_ext(h->ctx, (const uint8_t *)1, 0) != NULL;
  }
  accepted += h->scratch_more(h->ctx, ~0ull) != NULL;
  accepted += h->scratch_more(h->ctx, 1ull << 63) != NULL;
  const pxg_metrics_v1 *m = metrics();
  if (m) {
    pxg_str name = {junk, sizeof junk - 1, 0}, none = {NULL, 0, 0};
    uint32_t id;
    accepted += m->define(h->ctx, 1, &name, NULL, 0, &id) >= 0,
        accepted += m->define(h->ctx, 1, &none, NULL, 0, &id) >= 0;
    accepted += m->define(h->ctx, 1, NULL, NULL, 0, &id) >= 0,
        accepted += m->define(h->ctx, 1, &name, NULL, 3, &id) >= 0;
    name = (pxg_str){(const uint8_t *)"pxg_bad", 7, 0};
    accepted += m->define(h->ctx, 99, &name, NULL, 0, &id) >= 0,
        accepted += m->define(h->ctx, 1, &name, NULL, 0, NULL) >= 0;
    accepted += m->record(h->ctx, ~0u, 1) >= 0;
  }
  return accepted;
}

/* ---- the page ---- */

/* What a word of the page says, when it is `value` or the time is over. */
static uint32_t page_until(const uint32_t *word, uint32_t value, int ms) {
  uint32_t is_now = __atomic_load_n(word, __ATOMIC_RELAXED);
  for (int i = 0; i < ms && is_now != value; i++, usleep(1000)) is_now = __atomic_load_n(word, __ATOMIC_RELAXED);
  return is_now;
}

/* ---- steps ---- */

int extra_effect(state *s, const step *st) {
  const word *w = st->words;
  static const word none = {(uint8_t *)"", 0, 0};
  const word *w1 = st->n > 1 ? &w[1] : &none, *w2 = st->n > 2 ? &w[2] : &none;
  uint64_t n = strtoull(cstr(w1), NULL, 0);
  const pxg_metrics_v1 *m;
  if (is(&w[0], "define")) { /* define KIND NAME [LABEL=VALUE...] */
    uint32_t id = 0;
    int32_t status = PXG_E_UNSUPPORTED;
    if ((m = metrics())) status = define(m, (uint32_t)n, w2, w + 3, st->n > 3 ? st->n - 3 : 0, &id);
    if (status >= 0) {
      int at = atomic_fetch_add(&n_ids, 1) % 64;
      snprintf(ids[at].name, sizeof ids[at].name, "%s", cstr(w2)), ids[at].id = id;
    }
    done(s, "define", w2, status, id);
  } else if (is(&w[0], "define-many")) { /* define-many KIND NAME MOST: another label value each, until it is refused */
    uint64_t most = st->n > 3 ? strtoull(cstr(&w[3]), NULL, 0) : 0, i = 0;
    int32_t status = PXG_E_UNSUPPORTED;
    for (m = metrics(); m && i < most; i++) {
      char label[48];
      uint32_t id, len = (uint32_t)snprintf(label, sizeof label, "n=%llu", (unsigned long long)i);
      word l = {(uint8_t *)label, len, 0};
      if ((status = define(m, (uint32_t)n, w2, &l, 1, &id)) < 0) break;
    }
    done(s, "define-many", w2, status, i);
  } else if (is(&w[0], "record")) { /* record ID VALUE */
    int32_t status =
        (m = metrics()) ? m->record(the_host->ctx, extra_metric(w1), strtoll(cstr(w2), NULL, 0)) : PXG_E_UNSUPPORTED;
    done(s, "record", w1, status, extra_metric(w1));
  } else if (is(&w[0], "publish-metric")) {
    for (int i = n_ids; i-- > 0;)
      if (!strcmp(ids[i % 64].name, cstr(w1))) {
        act_publish(cstr(w1), ids[i % 64].id);
        break;
      }
  } else if (is(&w[0], "get-ext")) {
    const void *p = the_host->get_ext ? the_host->get_ext(the_host->ctx, w1->ptr, w1->len) : NULL;
    done(s, "get_ext", w1, p ? PXG_OK : PXG_E_NOTFOUND, (uint64_t)(uintptr_t)p);
    if (p && *(const uint32_t *)p < 8) note("PXG-EXT-002", "an extension's table of %u bytes", *(const uint32_t *)p);
  } else if (is(&w[0], "dlsym")) {
    void *p = dlsym(RTLD_DEFAULT, cstr(w1));
    done(s, "dlsym", w1, p ? PXG_OK : PXG_E_NOTFOUND, 0);
  } else if (is(&w[0], "log-level")) {
    uint32_t level = the_host->page ? page_until(&the_host->page->log_level, (uint32_t)n, 20) : 99;
    done(s, "log-level", w1, level == n ? PXG_OK : PXG_E_NOTFOUND, level);
  } else if (is(&w[0], "draining")) {
    uint32_t is_so = the_host->page ? page_until(&the_host->page->draining, 1, 2000) : 0;
    done(s, "draining", NULL, is_so ? PXG_OK : PXG_E_NOTFOUND, is_so);
  } else if (is(&w[0], "page-clocks")) {
    static const word names[] = {{(uint8_t *)"monotonic", 9, 0}, {(uint8_t *)"realtime", 8, 0}};
    const pxg_page *p = the_host->page;
    if (p) done(s, "page-clock", &names[0], PXG_OK, __atomic_load_n(&p->monotonic_ns, __ATOMIC_RELAXED));
    if (p) done(s, "page-clock", &names[1], PXG_OK, __atomic_load_n(&p->realtime_ns, __ATOMIC_RELAXED));
  } else if (is(&w[0], "reap")) {
    done(s, "reap", w1, PXG_OK, reap(n));
  } else if (is(&w[0], "storm")) {
    done(s, "storm", w1, PXG_OK, storm(n));
  } else if (is(&w[0], "raise")) { /* The answer: OK if the probe's own handler ran, STATE if nobody handles it. */
    int was = caught[n & 63];
    int raised = raise_here((int)n);
    done(s, "raise", w1, !raised ? PXG_E_STATE : caught[n & 63] > was ? PXG_OK : PXG_E_NOTFOUND, n);
  } else if (is(&w[0], "bad-calls")) {
    done(s, "bad-calls", NULL, PXG_OK, bad_calls(s));
  } else {
    return 0;
  }
  return 1;
}
