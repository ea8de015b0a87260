/* Late uses, by a thread of their own. */

enum late_use { LATE_READ, LATE_WRITE, LATE_SYSTEM_CALL };

typedef struct late {
  volatile uint8_t *at;
  enum late_use use;
} late;

static void *late_run(void *arg) {
  late *l = (late *)arg;
  struct timespec wait = {0, 4 * 1000 * 1000};
  nanosleep(&wait, NULL);
  switch (l->use) {
  case LATE_READ: {
    static volatile uint8_t sink;
    sink = *l->at;
    break;
  }
  case LATE_WRITE: *l->at = 'L'; break;
  case LATE_SYSTEM_CALL: {
    int to[2];
    if (pipe(to) == 0) {
      (void)!write(to[1], (const void *)(uintptr_t)l->at, 1);
      close(to[0]);
      close(to[1]);
    }
  }
  }
  free(l);
  return NULL;
}

static void batch(void) {
  struct sched_param p = {0};
  sched_setscheduler(0, SCHED_BATCH, &p);
}

static void *late_thread(void *arg) {
  batch();
  return late_run(arg);
}

static void use_late(const void *at, enum late_use use) __attribute__((unused));
static void use_late(const void *at, enum late_use use) {
  pthread_t t;
  late *l = (late *)malloc(sizeof *l);
  l->at = (volatile uint8_t *)(uintptr_t)at;
  l->use = use;
  pthread_create(&t, NULL, late_thread, l);
  pthread_detach(t);
}
