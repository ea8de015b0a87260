/* SPDX-License-Identifier: Apache-2.0 */

/* Validation of configurations in a child, for processes that never load a guest (2.2 step 2). */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pxg_zone.h"

#define TIMEOUT_PRESET_NS 10000000000ull

/* What the child is at, or its answer. Shorter than PIPE_BUF, so one write is one record. */
typedef enum stage { BECOMING, LOADING, CONFIGURING, ANSWER } stage;

typedef struct record {
  uint32_t stage, which;
  pxg_error error;
} record;

static const char *doing(uint32_t s) {
  return s == BECOMING  ? "while it took on what a worker has"
         : s == LOADING ? "while the library was loaded and its init ran"
                        : "in on_config_new";
}

/* ---- The child --------------------------------------------------------------------------------------------------- */

static void tell(int to, const record *r) {
  if (to >= 0)
    while (write(to, r, sizeof *r) < 0 && errno == EINTR) {}
}

/* Loads and configures one after the other; `to` is -1 where nobody listens. */
static void check_all(const pxg_validation *v, int to, record *r) {
  pxg_config **made = calloc(v->n + 1, sizeof *made);
  if (!made) pxg_fail(&r->error, PXG_E_INTERNAL, "out of memory");
  for (size_t i = 0; made && i < v->n; i++) {
    pxg_config_spec s = v->specs[i];
    int parent = v->parents ? v->parents[i] : -1;
    s.validate_only = true;
    s.parent = parent >= 0 && (size_t)parent < i ? made[parent] : NULL;
    r->which = (uint32_t)i;
    r->stage = LOADING;
    tell(to, r);
    if (!pxg_config_enter(&r->error)) break;
    bool loaded = pxg_guest_load_inside(s.library, &r->error);
    pxg_config_leave();
    if (!loaded) break;
    r->stage = CONFIGURING;
    tell(to, r);
    made[i] = pxg_config_new(&s, &r->error);
    if (!made[i]) break;
  }
  for (size_t i = v->n; made && i-- > 0;)
    if (made[i] && to < 0) pxg_config_unref(made[i]);
  free(made);
}

/* Handlers are those of a process that this one is not. */
static void own_signals(void) {
  sigset_t none;
  for (int s = 1; s < NSIG; s++) {
    struct sigaction a;
    if (sigaction(s, NULL, &a) || a.sa_handler == SIG_DFL || a.sa_handler == SIG_IGN) continue;
    memset(&a, 0, sizeof a);
    a.sa_handler = SIG_DFL;
    sigaction(s, &a, NULL);
  }
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
}

/* What guests define at init stays out of the zone that serves. */
static bool own_zone(pxg_error *why) {
  const pxg_zone *z = pxg_host_driver()->zone;
  void *memory = NULL;
  if (!z) return true;
  if (posix_memalign(&memory, 64, z->size)) return pxg_fail(why, PXG_E_INTERNAL, "out of memory");
  memset(memory, 0, z->size);
  pxg_host_zone(pxg_zone_open(memory, z->size));
  return true;
}

static void __attribute__((noreturn)) child(const pxg_validation *v, int to) {
  record r = {.stage = BECOMING};
  own_signals();
  pxg_loop_thread(false);
  tell(to, &r);
  if ((!v->become || v->become(v->data, &r.error)) && own_zone(&r.error)) {
    /* Only now: a change of user takes it back. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    check_all(v, to, &r);
  }
  r.stage = ANSWER;
  tell(to, &r);
  _exit(0);
}

/* ---- The parent -------------------------------------------------------------------------------------------------- */

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* True at the answer or the end of the pipe, false at the deadline. */
static bool listen_to(int from, size_t n_specs, uint64_t deadline, record *r) {
  for (;;) {
    uint64_t now = now_ns();
    if (now >= deadline) return false;
    struct pollfd p = {.fd = from, .events = POLLIN};
    uint64_t ms = (deadline - now) / 1000000 + 1;
    if (poll(&p, 1, ms < 60000 ? (int)ms : 60000) <= 0) continue;
    record next;
    ssize_t n = read(from, &next, sizeof next);
    if (n < 0 && errno == EINTR) continue;
    if (n != sizeof next || next.which >= n_specs || next.stage > ANSWER) return true;
    *r = next;
    if (r->stage == ANSWER) return true;
  }
}

static pid_t reap(pid_t pid, int *status) {
  pid_t got;
  do got = waitpid(pid, status, 0);
  while (got < 0 && errno == EINTR);
  return got;
}

static void how_it_ended(const pxg_validation *v, const record *r, bool in_time, bool known, int status,
                         uint64_t timeout_ns, pxg_error *why) {
  const pxg_config_spec *s = &v->specs[r->which];
  const char *where = doing(r->stage);
  if (!in_time) {
    pxg_fail(why, PXG_E_INTERNAL,
             "filter=%s config=%s file=%s: found no answer within %llu ms, %s, in the process that validates; expected "
             "an answer without delay",
             s->filter, s->instance, s->library, (unsigned long long)(timeout_ns / 1000000), where);
  } else if (known && WIFSIGNALED(status)) {
    pxg_fail(why, PXG_E_INTERNAL,
             "filter=%s config=%s file=%s: found a crash by signal %d (%s) %s, in the process that validates; expected "
             "an answer",
             s->filter, s->instance, s->library, WTERMSIG(status), strsignal(WTERMSIG(status)), where);
  } else {
    pxg_fail(
        why, PXG_E_INTERNAL,
        "filter=%s config=%s file=%s: found the end of the process that validates (exit status %d) %s; expected an "
        "answer, and a guest never ends the process [PXG-RT-007]",
        s->filter, s->instance, s->library, known && WIFEXITED(status) ? WEXITSTATUS(status) : -1, where);
  }
}

static bool in_child(const pxg_validation *v, record *r, pxg_error *why) {
  int ends[2], status = 0;
  sigset_t chld, before;
  if (pipe2(ends, O_CLOEXEC)) return pxg_fail(why, PXG_E_INTERNAL, "pipe: %s", strerror(errno));
  /* So that a handler which waits for any child leaves this one. */
  sigemptyset(&chld);
  sigaddset(&chld, SIGCHLD);
  pthread_sigmask(SIG_BLOCK, &chld, &before);
  pid_t pid = fork();
  if (!pid) {
    close(ends[0]);
    child(v, ends[1]);
  }
  close(ends[1]);
  bool ok = pid > 0 || pxg_fail(why, PXG_E_INTERNAL, "fork: %s", strerror(errno));
  if (ok) {
    uint64_t timeout = v->timeout_ns ? v->timeout_ns : TIMEOUT_PRESET_NS;
    bool in_time = listen_to(ends[0], v->n, now_ns() + timeout, r);
    /* One that has answered has no more to do, whatever its guest's threads think. */
    if (!in_time || r->stage == ANSWER) kill(pid, SIGKILL);
    bool known = reap(pid, &status) == pid;
    if (r->stage == ANSWER) {
      *why = r->error;
      ok = why->status == PXG_OK;
    } else {
      how_it_ended(v, r, in_time, known, status, timeout, why);
      ok = false;
    }
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  close(ends[0]);
  return ok;
}

static bool has_guests(void) {
  for (const pxg_guest_lib *l = pxg_guest_first(); l; l = l->next)
    if (l->so) return true;
  return false;
}

bool pxg_validate(const pxg_validation *v, size_t *which, pxg_error *why) {
  pxg_error own;
  size_t first;
  if (!why) why = &own;
  if (!which) which = &first;
  *why = (pxg_error){.status = PXG_OK};
  record r = {.stage = BECOMING};
  for (*which = 0; *which < v->n; ++*which) {
    bool go;
    if (!pxg_elf_check(v->specs[*which].library, &go, why)) return false;
  }
  *which = 0;
  if (!v->n) return true;
  bool ok;
  if (has_guests()) {
    check_all(v, -1, &r);
    pxg_configs_drop();
    *why = r.error;
    ok = why->status == PXG_OK;
  } else {
    ok = in_child(v, &r, why);
  }
  *which = r.which < v->n ? r.which : 0;
  return ok;
}
