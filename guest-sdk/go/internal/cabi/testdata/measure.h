/* What minihost.c measures: time, allocations, memory. Nothing here is a verdict but the allocations. */
static int allocations(uint64_t c, uint64_t *n) {
  /* The filter answers the number of Go heap objects ever allocated as the metric 1. */
  call k = new_call();
  if (run(&k, 1, c, 0, 40, 0) != PXG_ACT_CONTINUE || k.out->n_ops != 1) return -1;
  *n = k.ops[0].u0;
  return 0;
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}

static double measure(call *k, uint64_t config, int rounds) {
  memset(k->ev, 0, sizeof *k->ev);
  memset(k->out, 0, sizeof *k->out);
  k->ev->size = sizeof *k->ev, k->out->size = sizeof *k->out;
  k->ev->phase = 1, k->ev->config = config;
  k->ev->fields = request, k->ev->n_fields = N_REQUEST;
  k->out->scratch_ops = k->ops, k->out->scratch_ops_cap = MIN_OPS, k->out->scratch = k->scratch,
  k->out->scratch_cap = MIN_SCRATCH;
  uint64_t t = now_ns();
  for (int i = 0; i < rounds; i++) {
    k->out->action = 0;
    G.on_event(G.ctx, k->ev, k->out);
  }
  t = now_ns() - t;
  CHECK(k->out->action == PXG_ACT_CONTINUE, "action %u: %s", k->out->action, error_of(k));
  return (double)t / rounds;
}

/* CPU time of the whole process per asynchronous request, 32 to a batch. */
static double measure_async(call *k, uint64_t config, int batches) {
  enum { BATCH = 32 };
  struct timespec t0, t1;
  uint64_t done = H.completed;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
  for (int b = 0; b < batches; b++) {
    for (int i = 0; i < BATCH; i++) {
      memset(k->ev, 0, sizeof *k->ev);
      memset(k->out, 0, sizeof *k->out);
      k->ev->size = sizeof *k->ev, k->out->size = sizeof *k->out;
      k->ev->phase = 1, k->ev->config = config, k->ev->fields = request, k->ev->n_fields = N_REQUEST;
      k->out->scratch_ops = k->ops, k->out->scratch_ops_cap = MIN_OPS, k->out->scratch = k->scratch,
      k->out->scratch_cap = MIN_SCRATCH;
      pthread_mutex_lock(&H.lock);
      k->ev->token = H.next_token = H.next_token % (TOKENS - 1) + 1;
      H.state[k->ev->token] = ALIVE;
      pthread_mutex_unlock(&H.lock);
      G.on_event(G.ctx, k->ev, k->out);
      CHECK(k->out->action == PXG_ACT_PENDING, "action %u", k->out->action);
    }
    G.on_batch_end(G.ctx, 0);
    wait_completed(done += BATCH);
  }
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t1);
  return ((double)(t1.tv_sec - t0.tv_sec) * 1e9 + (double)(t1.tv_nsec - t0.tv_nsec)) / batches / BATCH;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* What a call into Go costs at least: the library's own function that does nothing. */
typedef struct {
  uint32_t size, reserved0;
  void (*empty)(void);
} empty_call;

static const empty_call *empty_of(void) {
  const empty_call *ext = G.get_ext(G.ctx, (const uint8_t *)"draft.pxg.go-empty-call/1", 25);
  CHECK(ext, "no empty call");
  return ext;
}

static double measure_empty(const empty_call *ext, int rounds) {
  uint64_t t = now_ns();
  for (int i = 0; i < rounds; i++) ext->empty();
  return (double)(now_ns() - t) / rounds;
}

/* Prints what a person reads, and in one line of JSON each round's times, for who takes differences of one round. */
static void bench(int rounds) {
  static const char *names[] = {"empty call",  "empty call again", "test-nothing",
                                "test-read20", "test-set3",        "test-read20-set3"};
  enum { N = sizeof names / sizeof *names, FILTERS = 2, REPEAT = 15 };
  uint64_t c[N] = {0};
  double ns[N][REPEAT];
  call k = new_call();
  set_fault("fault");
  for (int i = FILTERS; i < N; i++) CHECK(config_new(names[i], "", &c[i], 0) == PXG_OK, "%s", config_error);
  const empty_call *ext = empty_of();
  for (int r = 0; r < REPEAT; r++)
    for (int i = 0; i < N; i++) ns[i][r] = i < FILTERS ? measure_empty(ext, rounds) : measure(&k, c[i], rounds);
  for (int i = 0; i < N; i++) {
    printf("%s\"%s\": [", i ? ", " : "{", names[i]);
    for (int r = 0; r < REPEAT; r++) printf("%s%.2f", r ? ", " : "", ns[i][r]);
    printf("]");
  }
  printf("}\n");
  for (int i = 0; i < N; i++) {
    qsort(ns[i], REPEAT, sizeof(double), by_value);
    printf("%-18s min %6.1f ns  median %6.1f ns\n", names[i], ns[i][0], ns[i][REPEAT / 2]);
  }
  static const char *async[] = {"test-async-nonblocking", "test-async-only", "faulty"};
  static const char *how[] = {"copied, on the ring", "copied, a goroutine", "entered, a goroutine"};
  set_fault("async-nothing");
  for (int i = 0; i < 3; i++) {
    uint64_t config;
    double best = 1e9;
    CHECK(config_new(async[i], "", &config, 0) == PXG_OK, "%s", config_error);
    for (int r = 0; r < 7; r++) {
      double cost = measure_async(&k, config, rounds / 200);
      if (cost < best) best = cost;
    }
    printf("async, %-20s %6.0f ns of CPU per request, all threads\n", how[i], best);
  }
  set_fault("");
  uint64_t counter, a, b;
  CHECK(config_new("test-mallocs", "", &counter, 0) == PXG_OK, "%s", config_error);
  allocations(counter, &a), allocations(counter, &a);
  measure(&k, c[N - 1], 100000);
  CHECK(!allocations(counter, &b), "mallocs");
  printf("allocations per call: %.5f (%lu in 100000 calls)\n", (double)(b - a) / 100000, (unsigned long)(b - a));
  CHECK(b - a < 1000, "the header path allocates: %lu objects in 100000 calls", (unsigned long)(b - a));
}

static uint64_t resident(void) {
  unsigned long total, pages = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  CHECK(f && fscanf(f, "%lu %lu", &total, &pages) == 2, "/proc/self/statm");
  fclose(f);
  return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* What a stream costs while it waits: a goroutine, the copy of its event, its context. */
static void memory(uint64_t idle, const char *filter) {
  enum { STREAMS = 20000 };
  printf("idle guest: %lu KiB\n", (unsigned long)(resident() - idle) / 1024);
  set_fault("async-never");
  call k = new_call();
  uint64_t c, before = resident();
  CHECK(config_new(filter, "", &c, 0) == PXG_OK, "%s", config_error);
  for (int i = 0; i < STREAMS; i++) {
    CHECK(run(&k, 1, c, 0, 60 + i, 1) == PXG_ACT_PENDING, "%s", error_of(&k));
    if (i % 32 == 31) kick(1);
  }
  kick(1);
  sleep(1); /* nothing tells when the last goroutine waits */
  printf("waiting stream of %s: %.1f KiB\n", filter, (double)(resident() - before) / STREAMS / 1024);
}
