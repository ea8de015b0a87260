/* How Go's runtime threads are kept from polling beside the proxy's event loops
 * and from preempting them. Nothing here needs a privilege or a private symbol of
 * Go, and whatever does not work out changes nothing. */
#define _GNU_SOURCE
#include "pxgo.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "_cgo_export.h"

#define MAX_TIDS 4096
#define SLACK_NS 5000000ul /* sysmon: what it does may come 5 ms later */

pxgo_step pxgo_steps[PXGO_STEPS];

static const char *const step_names[PXGO_STEPS] = {"batch", "sysmon", "procs", "ring", "yield"};
static pid_t *before; /* the threads that were there before Go's */
static int n_before = -1;
static int policy_before = -1;
static int want_batch; /* atomic */

void pxgo_step_set(int step, int state, const char *detail) {
  pxgo_steps[step].state = state;
  snprintf(pxgo_steps[step].detail, sizeof pxgo_steps[step].detail, "%s", detail);
}

__attribute__((format(printf, 3, 4))) static void step(int n, int state, const char *format, ...) {
  va_list args;
  va_start(args, format);
  pxgo_steps[n].state = state;
  vsnprintf(pxgo_steps[n].detail, sizeof pxgo_steps[n].detail, format, args);
  va_end(args);
}

static int threads(pid_t *out, int cap) {
  DIR *d = opendir("/proc/self/task");
  if (!d) return -1;
  int n = 0;
  for (struct dirent *e; n < cap && (e = readdir(d));)
    if (e->d_name[0] != '.') out[n++] = atoi(e->d_name);
  closedir(d);
  return n;
}

/* The threads that came after the constructor below: Go's, and those that the
 * host started meanwhile. */
static int new_threads(pid_t *out, int cap) {
  pid_t all[MAX_TIDS];
  int n_all = n_before < 0 ? -1 : threads(all, MAX_TIDS), n = 0;
  for (int i = 0; i < n_all && n < cap; i++) {
    int old = 0;
    for (int k = 0; k < n_before && !old; k++) old = before[k] == all[i];
    if (!old) out[n++] = all[i];
  }
  return n_all < 0 ? -1 : n;
}

/* ---- switches */

static void read_environment(void) {
  const char *v = getenv("PROXY_GOLANG_GO_RECIPE");
  while (v && *v) {
    size_t n = strcspn(v, ",");
    for (int i = 0; i < PXGO_STEPS; i++)
      if (v[0] == '-' && n == strlen(step_names[i]) + 1 && !strncmp(v + 1, step_names[i], n - 1))
        step(i, PXGO_OFF, "PROXY_GOLANG_GO_RECIPE");
    v += n + (v[n] == ',');
  }
}

/* ---- batch: inherited by all threads that Go's constructor starts, because this
 * one runs before it and restore_policy after it. */

__attribute__((constructor(101))) static void set_policy(void) {
  read_environment();
  before = malloc(MAX_TIDS * sizeof *before);
  n_before = before ? threads(before, MAX_TIDS) : -1;
  if (pxgo_steps[PXGO_BATCH].state == PXGO_OFF) return;
  policy_before = sched_getscheduler(0);
  struct sched_param p = {0};
  if (policy_before != SCHED_OTHER) {
    step(PXGO_BATCH, PXGO_SKIPPED, "the loading thread has scheduling policy %d, which is left alone", policy_before);
    policy_before = -1;
  } else if (sched_setscheduler(0, SCHED_BATCH, &p)) {
    step(PXGO_BATCH, PXGO_FAILED, "sched_setscheduler(SCHED_BATCH): %s", strerror(errno));
    policy_before = -1;
  }
}

__attribute__((constructor)) static void restore_policy(void) {
  struct sched_param p = {0};
  if (policy_before >= 0 && sched_setscheduler(0, policy_before, &p))
    step(PXGO_BATCH, PXGO_FAILED, "the loading thread's policy was not restored: %s", strerror(errno));
}

static void check_batch(int host_batch_end) {
  pid_t tids[MAX_TIDS];
  struct sched_param p = {0};
  int off = pxgo_steps[PXGO_BATCH].state == PXGO_OFF;
  int n = new_threads(tids, MAX_TIDS), batch = 0;
  if (policy_before < 0) return;
  for (int i = 0; i < n; i++) batch += sched_getscheduler(tids[i]) == SCHED_BATCH;
  if (off || !host_batch_end) {
    /* Without the yield at the end of a batch, SCHED_BATCH makes asynchronous
     * work wait for a tick whenever the loop is busy. */
    for (int i = 0; i < n; i++)
      if (sched_getscheduler(tids[i]) == SCHED_BATCH) sched_setscheduler(tids[i], SCHED_OTHER, &p);
    if (!off) step(PXGO_BATCH, PXGO_SKIPPED, "the host has no BATCH_END");
  } else if (n < 0) {
    step(PXGO_BATCH, PXGO_DONE, "not verified: no /proc/self/task");
    __atomic_store_n(&want_batch, 1, __ATOMIC_RELAXED);
  } else if (!batch) {
    step(PXGO_BATCH, PXGO_FAILED, "none of %d new threads inherited SCHED_BATCH", n);
  } else {
    step(PXGO_BATCH, PXGO_DONE, "%d of %d new threads have SCHED_BATCH", batch, n);
    __atomic_store_n(&want_batch, 1, __ATOMIC_RELAXED);
  }
}

/* Go may clone a thread from a loop thread, whose policy it then has. A thread
 * that runs this is one of Go's. */
void pxgo_thread_policy(void) {
  static __thread int done;
  if (done) return;
  done = 1;
  struct sched_param p = {0};
  if (__atomic_load_n(&want_batch, __ATOMIC_RELAXED) && sched_getscheduler(0) == SCHED_OTHER)
    sched_setscheduler(0, SCHED_BATCH, &p);
}

/* ---- sysmon: found by what it does, told by a signal that only it gets */

static int slack_result; /* atomic: 0 waiting, 1 done, 2 failed */

static void on_slack_signal(int sig) {
  (void)sig;
  int e = errno;
  int failed = syscall(SYS_prctl, PR_SET_TIMERSLACK, SLACK_NS, 0, 0, 0) != 0;
  __atomic_store_n(&slack_result, failed ? 2 : 1, __ATOMIC_SEQ_CST);
  errno = e;
}

static void sleep_us(long us) {
  struct timespec t = {0, us * 1000};
  nanosleep(&t, NULL);
}

static int in_nanosleep(pid_t tid) {
  char path[64], buf[32];
  snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t n = read(fd, buf, sizeof buf - 1);
  close(fd);
  if (n <= 0) return -1;
  buf[n] = 0;
  return buf[0] >= '0' && buf[0] <= '9' && atoi(buf) == SYS_nanosleep;
}

static int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The new threads; of these, those with SCHED_BATCH if there are any: then they
 * are Go's, and threads that the host started meanwhile are not among them. */
static int candidates(pid_t *tids, int cap) {
  int n = new_threads(tids, cap), batch = 0;
  for (int i = 0; i < n; i++)
    if (sched_getscheduler(tids[i]) == SCHED_BATCH) tids[batch++] = tids[i];
  return batch ? batch : n;
}

static void sample(const pid_t *tids, int *hits, int n, int *readable) {
  for (int i = 0; i < n; i++) {
    int in = in_nanosleep(tids[i]);
    *readable += in >= 0;
    hits[i] += in > 0;
  }
}

/* The monitor thread is the only one of Go's that sleeps by nanosleep; the others
 * wait on futexes. It sleeps so most of the time as long as there are calls, but on
 * a busy machine it gets to that late: so the search goes on until it has seen
 * enough, and in the end takes a thread that was seen a few times and alone. */
static pid_t find_sysmon(char *why, size_t cap) {
  enum { ROUNDS = 200, ENOUGH = 20, FEW = 3, CANDIDATES = 64, MS = 1000 };
  pid_t tids[CANDIDATES];
  int hits[CANDIDATES] = {0}, readable = 0;
  int n = candidates(tids, CANDIDATES);
  if (n < 0) {
    snprintf(why, cap, "no /proc/self/task");
    return 0;
  }
  int64_t until = now_ms() + MS;
  int best = 0, seen = 0;
  for (int round = 0; round < ROUNDS || (hits[best] < ENOUGH && readable && now_ms() < until); round++) {
    pxgoNop(); /* gives it something to look after */
    sample(tids, hits, n, &readable);
    sleep_us(30);
    sample(tids, hits, n, &readable);
    seen = 0;
    for (int i = 0; i < n; i++) {
      if (hits[i] > hits[best]) best = i;
      seen += hits[i] > 0;
    }
  }
  if (seen == 1 && hits[best] >= FEW) return tids[best];
  if (!readable)
    snprintf(why, cap, "/proc/self/task/*/syscall can't be read");
  else
    snprintf(why, cap, "%d of %d new threads look like it, the first one %d times", seen, n, n ? hits[best] : 0);
  return 0;
}

static void slow_sysmon(void) {
  char why[96] = "";
  pid_t tid = find_sysmon(why, sizeof why);
  if (!tid) {
    step(PXGO_SYSMON, PXGO_SKIPPED, "monitor thread not identified: %s", why);
    return;
  }
  struct sigaction old, act;
  int sig = SIGRTMAX - 3;
  for (; sig > SIGRTMIN; sig--)
    if (!sigaction(sig, NULL, &old) && !(old.sa_flags & SA_SIGINFO) && old.sa_handler == SIG_DFL) break;
  if (sig <= SIGRTMIN) {
    step(PXGO_SYSMON, PXGO_SKIPPED, "no realtime signal is free");
    return;
  }
  memset(&act, 0, sizeof act);
  act.sa_handler = on_slack_signal;
  act.sa_flags = SA_ONSTACK | SA_RESTART;
  sigfillset(&act.sa_mask);
  if (sigaction(sig, &act, &old)) {
    step(PXGO_SYSMON, PXGO_FAILED, "sigaction(%d): %s", sig, strerror(errno));
    return;
  }
  int sent = !syscall(SYS_tgkill, getpid(), tid, sig), result = 0;
  int error = errno;
  for (int i = 0; sent && i < 2000 && !(result = __atomic_load_n(&slack_result, __ATOMIC_SEQ_CST)); i++) sleep_us(100);
  /* A signal that is still on its way must find its handler. */
  if (!sent || result) sigaction(sig, &old, NULL);
  if (!sent)
    step(PXGO_SYSMON, PXGO_FAILED, "tgkill: %s", strerror(error));
  else if (!result)
    step(PXGO_SYSMON, PXGO_FAILED, "thread %d did not take signal %d; its handler stays", tid, sig);
  else if (result == 2)
    step(PXGO_SYSMON, PXGO_FAILED, "prctl(PR_SET_TIMERSLACK) on thread %d failed", tid);
  else
    step(PXGO_SYSMON, PXGO_DONE, "timer slack of thread %d set to %lu ms", tid, SLACK_NS / 1000000);
}

/* ---- once, at the first init */

void pxgo_recipe_init(int host_batch_end) {
  static int ran;
  if (ran++) return;
  if (pxgo_steps[PXGO_SYSMON].state != PXGO_OFF) slow_sysmon();
  check_batch(host_batch_end);
  if (pxgo_steps[PXGO_RING].state != PXGO_OFF)
    step(PXGO_RING, PXGO_DONE,
         host_batch_end ? "one wake-up per batch" : "a wake-up per event: the host has no BATCH_END");
  if (pxgo_steps[PXGO_YIELD].state != PXGO_OFF) {
    if (!host_batch_end)
      step(PXGO_YIELD, PXGO_SKIPPED, "the host has no BATCH_END");
    else if (pxgo_steps[PXGO_RING].state != PXGO_DONE)
      step(PXGO_YIELD, PXGO_SKIPPED, "the ring is off");
    else
      step(PXGO_YIELD, PXGO_DONE, "after a wake-up that left work");
  }
}
