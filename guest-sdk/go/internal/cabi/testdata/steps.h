/* Instructions of one call, counted by stepping through it one by one. Nothing of this depends on how busy the machine
 * is: all threads but the one that calls are stopped meanwhile, and the least of several calls counts. Tools that run
 * the program themselves (valgrind) do not get along with Go's runtime. */
#include <dirent.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

enum { STEPS_CALLS = 12, STEPS_LIMIT = 1000000 };

/* The child: warms up, then stops before and after each call. `filter` NULL is a call that does nothing. */
static void steps_child(const char *filter) {
  const empty_call *ext = empty_of();
  call k = new_call();
  uint64_t c = 0;
  if (filter) {
    CHECK(config_new(filter, "", &c, 0) == PXG_OK, "%s", config_error);
    measure(&k, c, 20000);
  } else {
    for (int i = 0; i < 20000; i++) ext->empty();
  }
  for (;;) {
    k.out->action = 0;
    raise(SIGSTOP);
    if (filter)
      G.on_event(G.ctx, k.ev, k.out);
    else
      ext->empty();
    raise(SIGSTOP);
  }
}

static int wait_stop(pid_t p) {
  int status;
  CHECK(waitpid(p, &status, __WALL) == p && WIFSTOPPED(status), "thread %d ended", p);
  return WSTOPSIG(status);
}

/* Lets the child run to its next SIGSTOP, with the signal that it stopped at. Others are the runtime's. */
static void to_stop(pid_t p, int sig) {
  do {
    CHECK(!ptrace(PTRACE_CONT, p, NULL, sig), "%s", strerror(errno));
    sig = wait_stop(p);
  } while (sig != SIGSTOP);
}

static void stop_others(pid_t p) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/task", p);
  DIR *tasks = opendir(path);
  CHECK(tasks, "%s: %s", path, strerror(errno));
  for (struct dirent *e; (e = readdir(tasks));) {
    pid_t t = atoi(e->d_name);
    if (t <= 0 || t == p) continue;
    CHECK(!ptrace(PTRACE_SEIZE, t, NULL, NULL) && !ptrace(PTRACE_INTERRUPT, t, NULL, NULL), "%s", strerror(errno));
    wait_stop(t);
  }
  closedir(tasks);
}

/* Prints the least number of instructions of a call, with the few of raise(). */
static void steps(pid_t p) {
  long least = STEPS_LIMIT;
  int first = wait_stop(p);
  CHECK(!ptrace(PTRACE_SETOPTIONS, p, NULL, PTRACE_O_EXITKILL), "%s", strerror(errno));
  if (first != SIGSTOP) to_stop(p, first);
  stop_others(p);
  for (int i = 0; i < STEPS_CALLS; i++) {
    long n = 0;
    if (i) to_stop(p, 0);
    for (int sig = SIGTRAP; sig != SIGSTOP && n < STEPS_LIMIT; n++) {
      CHECK(!ptrace(PTRACE_SINGLESTEP, p, NULL, sig == SIGTRAP ? 0 : sig), "%s", strerror(errno));
      sig = wait_stop(p);
    }
    if (n < least) least = n;
  }
  CHECK(least < STEPS_LIMIT, "no call came to its end within %d instructions", STEPS_LIMIT);
  printf("%ld\n", least);
  kill(p, SIGKILL);
  /* Each thread is waited for by itself. */
  while (waitpid(-1, NULL, __WALL) > 0) continue;
}
